"""Large journals come back in parts, so that no more of them is in memory than one part."""

import asyncio
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from db.journal import survey as survey_module
from db.journal.format import _line
from db.journal.reading import Damage, read_lines
from db.journal.recovery import Recovery
from db.journal.survey import survey
from statemachine import SessionRecord
from tests.db.journal.journals import begin, open_journal, say, segments, segments_of, words


def write(directory: Path, names: Sequence[str], texts: int = 6, size: int = 400) -> Path:
    """A dead process's journal of sessions that ran at once, in several segments."""
    with segments_of(2000):
        journal = open_journal(directory)
        for name in names:
            begin(journal, name)
        for number in range(texts):
            for name in names:
                say(journal, name, f"{name}:{number};".ljust(size, "."))
        journal.close()
    return journal.directory


async def recovered(directory: Path) -> tuple[dict[str, SessionRecord], int]:
    """What comes back, and the most records that wait for the store at a time."""
    found: dict[str, SessionRecord] = {}
    waiting = most = 0

    def save(record: SessionRecord) -> "asyncio.Future[None]":
        nonlocal waiting, most
        found[record.completion_id] = record
        waiting += 1
        most = max(most, waiting)
        done = asyncio.get_running_loop().create_future()

        def commit() -> None:
            nonlocal waiting
            waiting -= 1
            done.set_result(None)

        asyncio.get_running_loop().call_later(0.01, commit)
        return done

    await Recovery(directory, None, save).run()
    return found, most


@pytest.mark.parametrize(("part", "most"), [(1, 1), (7000, 2), (10**9, 12)])
async def test_completions_come_back_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int, most: int
) -> None:
    """However large the parts, each completion comes back whole, once, and no more than a part of
    them waits for the store at a time."""
    monkeypatch.setattr(survey_module, "PART_BYTES", part)
    names = [f"c{number}" for number in range(12)]
    write(tmp_path, names)
    found, at_once = await recovered(tmp_path)
    assert set(names) == found.keys()
    for name, record in found.items():
        assert "".join(f"{name}:{number};".ljust(400, ".") for number in range(6)) == words(record)
    assert at_once <= most
    assert [] == list(tmp_path.iterdir())


async def test_damage_is_noticed_once_however_many_parts_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal is kept, the damage logged once, and the completion that it hit is marked."""
    monkeypatch.setattr(survey_module, "PART_BYTES", 1)
    path = segments(write(tmp_path, ["c0", "c1", "c2"]))[2]
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes((data[100] ^ 1,)) + data[101:])
    with capture_logs() as logs:
        found, _ = await recovered(tmp_path)
    assert 3 == len(found)
    assert 1 == sum(entry["event"] == "journal damaged" for entry in logs)
    codes = [record.failure.code for record in found.values() if record.failure]
    assert ["journal_damaged", "process_died", "process_died"] == sorted(codes)
    assert 1 == len(list(tmp_path.glob("damaged-*")))


def test_what_is_saved_is_in_no_part(tmp_path: Path) -> None:
    """A completion that is committed is not looked for again."""
    journal = open_journal(tmp_path)
    for name in ("kept", "lost"):
        begin(journal, name)
        say(journal, name, "word")
    journal.forget(["kept"])
    journal.close()
    found = survey(segments(journal.directory))
    assert [{"lost"}] == [set(part.completion_ids) for part in found.parts]


@pytest.mark.parametrize("wanted", [["c1"], ["c1", "c11"], [f"c{n}" for n in range(0, 24, 2)]])
def test_only_some_completions_lines_are_read(tmp_path: Path, wanted: Collection[str]) -> None:
    """Few or many, looked for one by one or line by line, the same lines are found, in each one's
    order; an id that begins another is not that other."""
    for path in segments(write(tmp_path, [f"c{number}" for number in range(24)])):
        data = path.read_bytes()
        every = [line for line in read_lines(data) if not isinstance(line, Damage)]
        some = [line for line in read_lines(data, wanted) if not isinstance(line, Damage)]
        for name in wanted:
            of_it = [line for line in some if line["id"] == name]
            assert [line for line in every if line["id"] == name] == of_it
        assert set(wanted) >= {line["id"] for line in some}


async def test_a_line_that_is_none_of_ours_keeps_its_journal(tmp_path: Path) -> None:
    """Another version's line may hold words: the journal stays, for that version to read."""
    journal = write(tmp_path, ["c0"])
    with segments(journal)[-1].open("ab") as file:
        file.write(_line({"kind": "from the future"}))
    await recovered(tmp_path)
    assert 1 == len(list(tmp_path.glob("damaged-*")))
