"""Segments of the journal: which stay, which go, and how large all of them get."""

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from db.journal import Fsync, Journal
from db.journal.reading import read_lines
from statemachine import SessionPolicy, SessionRequest
from tests.db.journal.journals import (
    begin,
    ids,
    lines,
    live,
    open_files,
    open_journal,
    replayed,
    say,
    segments,
    segments_of,
    size_on_disk,
)
from tests.db.records import make_request

steps = st.lists(
    st.tuples(st.sampled_from(["begin", "say", "say", "forget", "forget two"]), st.integers(0, 5)),
    max_size=60,
)


@settings(max_examples=50, deadline=None)
@given(walk=steps, limit=st.sampled_from([1, 400, 1500]))
def test_segments_hold_what_is_needed_and_no_more(walk: list[tuple[str, int]], limit: int) -> None:
    """After every call: all lines of all that aren't committed are there; each segment but the
    last is needed by one of them; committed ones never come back; bytes and descriptors agree."""
    descriptors = len(open_files())
    with TemporaryDirectory(prefix="verbatim-") as path, segments_of(limit):
        journal = open_journal(Path(path))
        counts: dict[str, int] = {}
        for number, (step, chosen) in enumerate(walk):
            names = sorted(counts)
            if step == "begin":
                counts[f"c{number}"] = 1
                assert begin(journal, f"c{number}")
            elif names and step == "say":
                name = names[chosen % len(names)]
                counts[name] += 1
                say(journal, name, "x")
            elif names:
                gone = {names[chosen % len(names)], names[0]} if "two" in step else {names[-1]}
                journal.forget(gone)
                for name in gone:
                    del counts[name]
            found = lines(journal.directory)
            for name, count in counts.items():
                assert list(range(count)) == [item["n"] for item in found if item.get("id") == name]
            *full, _ = segments(journal.directory)
            for segment in full:
                held = {item.get("id") for item in read_lines(segment.read_bytes())}  # type: ignore[union-attr]
                assert held & counts.keys()
            assert size_on_disk(journal.directory) == journal.size
            assert len(counts) == journal.uncommitted
            assert descriptors + 2 == len(open_files())  # the lock and the last segment
        assert sorted(counts) == sorted(ids(replayed(journal.directory)))
        journal.close()
    assert descriptors == len(open_files())


def test_a_long_stream_does_not_hold_later_segments(tmp_path: Path) -> None:
    """Segments go in any order; that what they marked as saved is saved stays known."""
    with segments_of(2000):
        journal = open_journal(tmp_path)
        begin(journal, "long")
        live(journal, "first", ["x"])
        while len(segments(journal.directory)) < 3:
            say(journal, "first", "late")
        journal.forget(["first"])
        for number in range(20):
            live(journal, f"c{number}", ["x"])
            journal.forget([f"c{number}"])
        first, *others = segments(journal.directory)
        assert "000001.jsonl" == first.name
        assert 1 == len(others)
        assert ["long"] == ids(replayed(journal.directory))
        journal.close()


def test_an_idle_segment_is_dropped_without_waiting_for_its_end(tmp_path: Path) -> None:
    """A current segment that nobody needs is replaced once it is worth it."""
    journal = open_journal(tmp_path)
    begin(journal, "a", messages=[{"role": "user", "content": "x" * 1_100_000}])
    journal.forget(["a"])
    assert 0 == journal.size == size_on_disk(journal.directory)
    assert ["000002.jsonl"] == [path.name for path in segments(journal.directory)]
    journal.close()


def test_max_bytes_refuses_beginnings_only(tmp_path: Path) -> None:
    """A full journal takes no new sessions and says why; running ones are written on; it takes
    new ones again once there is room."""
    with segments_of(500):
        journal = open_journal(tmp_path, max_bytes=2000)
        number = 0
        while begin(journal, f"c{number}"):
            assert journal.size < 3000
            number += 1
        assert journal.size >= 2000
        assert f"the journal is full ({journal.size} bytes of journal.max_bytes)" == journal.check()
        size = journal.size
        say(journal, "c0", "still written")
        assert journal.size > size
        assert journal.has_whole("c0")
        assert number == journal.uncommitted
        journal.forget([f"c{index}" for index in range(number)])
        assert journal.check() is None
        assert begin(journal, "next")
        journal.close()


def test_segments_of_names_the_files_to_read_back(tmp_path: Path) -> None:
    """The files that hold any of the completions, oldest first, each once."""
    with segments_of(1):
        journal = open_journal(tmp_path)
        for name in ("a", "b", "a", "c", "b"):
            if not begin(journal, name):
                say(journal, name, "x")
        names = [f"{number:06}.jsonl" for number in (1, 2, 3, 4, 5)]
        assert names == [path.name for path in segments(journal.directory)]
        held = [path.name for path in journal.segments_of(["b", "a", "unknown"])]
        assert [names[index] for index in (0, 1, 2, 4)] == held
        journal.close()


def test_a_small_journal_is_full_only_while_it_is_needed(tmp_path: Path) -> None:
    """However small `max_bytes`, a journal whose completions are all committed takes new ones."""
    journal = Journal.open(tmp_path, Fsync.NEVER, 300)
    first, second = make_request(), make_request()
    assert journal.begin(first, SessionPolicy())
    assert not journal.begin(second, SessionPolicy())
    assert "max_bytes" in str(journal.check())
    journal.forget([first.completion_id])
    assert journal.check() is None
    assert journal.begin(second, SessionPolicy())
    journal.close()


# --- requests, read back -----------------------------------------------------------------------


def large_request(name: str, text: str = "\ud800 x" * 2000) -> SessionRequest:
    messages = [{"role": "user", "content": text}]
    return SessionRequest(name, 1.5, "t", "o", "a", "m", messages, tools=[{"big": 2**70}])


def test_a_large_request_is_read_back_as_it_was(tmp_path: Path) -> None:
    """From whichever segment, also once that is full, or somebody has deleted the files."""
    before = len(open_files())
    journal = open_journal(tmp_path)
    with segments_of(30_000):
        for number in range(5):
            assert journal.begin(large_request(f"c{number}"), SessionPolicy())
            say(journal, f"c{number}", "x")
    shutil.rmtree(journal.directory)
    for number in range(5):
        assert journal.has_request(f"c{number}")
        assert large_request(f"c{number}") == journal.request(f"c{number}")
    journal.forget([f"c{number}" for number in range(5)])
    journal.close()
    assert before == len(open_files())
    assert not journal.has_request("c1")
    assert journal.request("c1") is None


def test_small_and_enormous_requests_are_not_worth_it(tmp_path: Path) -> None:
    """They are held in memory."""
    journal = open_journal(tmp_path)
    for name, text in (("small", "x"), ("enormous", "x" * 1_000_000)):
        assert journal.begin(large_request(name, text), SessionPolicy())
        assert not journal.has_request(name)
        assert journal.request(name) is None
    journal.close()


def test_a_request_that_the_disk_spoils_is_not_given_back(tmp_path: Path) -> None:
    """What isn't the line that was written is nobody's request."""
    journal = open_journal(tmp_path)
    assert journal.begin(large_request("c"), SessionPolicy())
    (path,) = segments(journal.directory)
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    assert journal.request("c") is None
    journal.close()


def test_a_journal_that_is_cut_while_in_use_goes_on_in_another_file(tmp_path: Path) -> None:
    """What comes afterwards is written, and read back, where it is."""
    journal = open_journal(tmp_path)
    assert journal.begin(large_request("before"), SessionPolicy())
    (path,) = segments(journal.directory)
    os.truncate(path, 0)
    assert journal.begin(large_request("after"), SessionPolicy())
    assert not journal.has_request("before")
    assert journal.request("before") is None
    assert large_request("after") == journal.request("after")
    assert not journal.has_whole("before")
    assert journal.has_whole("after")
    journal.close()
