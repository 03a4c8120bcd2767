"""Dead letters: what no database would take, kept whole, shown, and tried again."""

import asyncio
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from db.dead_letters import DeadLetters, main
from db.postgres.store import PostgresStore
from db.rows.tapes import columns_of
from db.store import RecordRejected, StoredMessage
from service.wire.jsontext import DEEPEST_NESTING
from statemachine import Failure, SessionRecord, State
from tests.db.records import make_partial, make_record, user
from tests.db.tapes import all_on, record_of
from tests.db.test_tapes_contract import ANSWERS

NASTY = "NUL \0, lone \ud800 and \udc00, a split pair \ud83d\ude00, the escape ␛0000, é, 漢, 😀, \n"


def refused(**fields: object) -> SessionRecord:
    """A record that PostgreSQL refuses: no completion is kept before its end."""
    return make_record(state=State.PENDING, **fields)


async def read(database_url: str, completion_id: str) -> list[StoredMessage]:
    store = await PostgresStore.open(database_url)
    try:
        return await store.answer(completion_id)
    finally:
        await store.close()


async def chunks(database_url: str, completion_id: str) -> list[Any]:
    store = await PostgresStore.open(database_url)
    try:
        found = await store.replayable("alice", completion_id)
        assert found is not None and found.tape is not None
        return all_on(found.tape.tape)
    finally:
        await store.close()


def test_a_letter_holds_the_whole_record(tmp_path: Path) -> None:
    """Every field comes back as it was, whatever text is in it, and nobody else may read it."""
    failure = Failure("upstream_error", NASTY, upstream_code="7", retry_after_seconds=0.5)
    nested: object = "x"
    for _ in range(DEEPEST_NESTING - 2):
        nested = [nested]
    records = [
        make_partial(user(NASTY), answer=NASTY, failure=failure, extra={NASTY: [2**70, "\udfff"]}),
        make_record(
            user([{"type": "text", "text": nested}]),
            answer=({"role": "assistant", "content": None, "tool_calls": [{"index": 0}]}, "two"),
            request={"tools": [{"a": 1}], "metadata": {"b": "c"}},
            client_left_at=5.0,
            usage=None,
        ),
    ]
    letters = DeadLetters(tmp_path)
    for record in records:
        letters.add(record, f"reason for {NASTY}")
    expected = [(record, f"reason for {NASTY}") for record in records]
    assert expected == [letters.read(path) for path in letters.paths()]
    for path in letters.paths():
        assert 0o600 == stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("name", ANSWERS)
def test_a_letter_holds_the_tape(tmp_path: Path, name: str) -> None:
    """Every chunk comes back as it was, and what is sent with the usage."""
    record, letters = record_of(*ANSWERS[name]), DeadLetters(tmp_path)
    letters.add(record, "why")
    (path,) = letters.paths()
    found, _ = letters.read(path)
    assert record == found
    assert record.tape is not None and found.tape is not None
    assert all_on(record.tape) == all_on(found.tape)
    assert record.tape.created == found.tape.created
    assert record.usage_frame == found.usage_frame
    assert columns_of(found) == columns_of(letters.read(path)[0])


def test_a_letter_has_no_tape_that_is_not_whole(tmp_path: Path) -> None:
    """No more than a row would have."""
    record, letters = record_of(*ANSWERS["words"]), DeadLetters(tmp_path)
    assert record.tape is not None
    record.tape.first = 1
    letters.add(record, "why")
    (path,) = letters.paths()
    assert letters.read(path)[0].tape is None


@pytest.mark.parametrize("edit", ["none", "damaged"])
def test_a_letter_without_a_sound_tape_is_read(tmp_path: Path, edit: str) -> None:
    """A letter of before has none, and where somebody mended an answer, the tape doesn't fit it."""
    record, letters = record_of(*ANSWERS["words"]), DeadLetters(tmp_path)
    letters.add(record, "why")
    (path,) = letters.paths()
    letter = json.loads(path.read_bytes())
    if edit == "none":
        del letter["tape"], letter["tape_lengths"], letter["record"]["tape"]
        del letter["record"]["usage_frame"]
    else:
        letter["record"]["choices"][0]["message"]["content"] = "x"
    path.write_text(json.dumps(letter))
    found, reason = letters.read(path)
    assert (record.completion_id, None, "why") == (found.completion_id, found.tape, reason)


def test_a_letter_is_json_for_ordinary_tools(tmp_path: Path) -> None:
    """One file per completion, named after it, with the reason and the record."""
    record = make_record(answer="Hi!")
    DeadLetters(tmp_path).add(record, "why")
    (path,) = (tmp_path / "dead-letters").iterdir()
    letter = json.loads(path.read_bytes())
    assert f"{record.completion_id}.json" == path.name
    assert ("why", "Hi!") == (
        letter["reason"],
        letter["record"]["choices"][0]["message"]["content"],
    )


def test_nothing_is_made_before_there_is_a_letter(tmp_path: Path) -> None:
    """A service without dead letters has no folder for them."""
    assert [] == DeadLetters(tmp_path).paths()
    assert [] == list(tmp_path.iterdir())


def test_a_letter_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails midway leaves no half letter, and the earlier one as it was."""

    def refuse(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    record, letters = make_record(), DeadLetters(tmp_path)
    letters.add(record, "first")
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="No space"):
            letters.add(record, "second")
    (path,) = letters.paths()
    assert (record, "first") == letters.read(path)
    letters.add(record, "third")
    assert ["third"] == [letters.read(path)[1] for path in letters.paths()]


def test_a_letter_is_on_the_disk_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal forgets the record once it is here, so a loss of power may not take the letter:
    file, folder and the folder's own name are synced, in this order."""
    synced: list[tuple[str, bool]] = []
    record = make_record()
    path = tmp_path / "dead-letters" / f"{record.completion_id}.json"

    def note(fd: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{fd}"), path.exists()))

    monkeypatch.setattr(os, "fsync", note)
    DeadLetters(tmp_path).add(record, "why")
    expected = [(path.with_suffix(".new"), False), (path.parent, True), (tmp_path, True)]
    assert [(str(name), was_there) for name, was_there in expected] == synced


def test_letters_are_listed_oldest_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Id, state and reason of each; one that can't be read is named, not stumbled over."""
    letters = DeadLetters(tmp_path)
    records = [make_record(), make_partial(), make_record()]
    for age, record in enumerate(reversed(records)):
        letters.add(record, f"because {record.completion_id}")
        path = tmp_path / "dead-letters" / f"{record.completion_id}.json"
        os.utime(path, (1000 - age, 1000 - age))
    middle = tmp_path / "dead-letters" / f"{records[1].completion_id}.json"
    middle.write_bytes(b'{"reason": "no record"}')
    os.utime(middle, (999, 999))
    assert 0 == main([str(tmp_path), "list"])
    first, unreadable, last = capsys.readouterr().out.splitlines()
    name = records[0].completion_id
    assert f"{name}  completed  because {name}" == first
    assert unreadable.startswith(f"{records[1].completion_id}  unreadable  ")
    assert records[2].completion_id in last


def test_a_letter_that_goes_meanwhile_is_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else may retry them just now."""
    letters = DeadLetters(tmp_path)
    for record in (make_record(), make_record()):
        letters.add(record, "because")
    going, staying = letters.paths()
    listed = [going, staying]
    monkeypatch.setattr(Path, "glob", lambda _folder, _pattern: iter(listed))
    going.unlink()
    assert [staying] == letters.paths()


def test_letters_are_counted_without_reading_them(tmp_path: Path) -> None:
    """None before there is a folder; one that is being written is none yet."""
    letters = DeadLetters(tmp_path)
    assert 0 == letters.count()
    for record in (make_record(), make_record()):
        letters.add(record, "because")
    (tmp_path / "dead-letters" / "chatcmpl-1.new").write_bytes(b"half")
    assert 2 == letters.count()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b'{"record": 5, "reason": ""}'])
def test_a_file_that_is_no_letter_is_a_value_error(tmp_path: Path, data: bytes) -> None:
    """Whatever is wrong with a file, its reader hears of it in one way."""
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.json is no dead letter"):
        DeadLetters(tmp_path).read(path)


def test_a_letter_that_is_fine_now_is_saved_and_gone(
    tmp_path: Path, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Retrying saves what PostgreSQL takes, exactly, and deletes its letter; what it still refuses,
    and what can't be read, stays and is told."""
    letters = DeadLetters(tmp_path)
    fine, bad = make_record(user(NASTY), answer=NASTY), refused()
    taped = record_of(*ANSWERS["half characters"])
    for record in (bad, fine, taped):
        letters.add(record, "why")
    odd = tmp_path / "dead-letters" / "odd.json"
    odd.write_bytes(b"{")
    os.utime(odd, (0, 0))
    assert 1 == main([str(tmp_path), "retry", "--database", database_url])
    told = capsys.readouterr().out.splitlines()
    assert f"odd: {odd} is no dead letter" == told[0]
    assert told[1].startswith(f"{bad.completion_id}: PostgreSQL refuses the data: SQLSTATE 23514")
    assert f"{fine.completion_id}: saved" == told[2]
    left = tmp_path / "dead-letters" / f"{bad.completion_id}.json"
    assert [odd, left] == letters.paths()
    (answer,) = asyncio.run(read(database_url, fine.completion_id))
    assert NASTY == answer.content
    kept = asyncio.run(chunks(database_url, taped.completion_id))
    assert taped.tape is not None
    assert all_on(taped.tape) == kept
    odd.unlink()
    letters.add(evolve(bad, state=State.COMPLETED), "mended")
    assert 0 == main([str(tmp_path), "retry", "--database", database_url])
    assert [] == letters.paths()
    assert [] != asyncio.run(read(database_url, bad.completion_id))


def test_retrying_twice_is_harmless(tmp_path: Path, database_url: str) -> None:
    """Stopped between the commit and the deletion, it saves nothing a second time."""
    record, letters = make_record(), DeadLetters(tmp_path)
    for _ in range(2):
        letters.add(record, "why")
        assert 0 == main([str(tmp_path), "retry", "--database", database_url])
        assert [] == letters.paths()
    assert 1 == len(asyncio.run(read(database_url, record.completion_id)))


def test_without_a_database_nothing_is_deleted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that is away, or none given, is told in one sentence, and the letters stay."""
    letters = DeadLetters(tmp_path)
    letters.add(make_record(), "why")
    assert 1 == main([str(tmp_path), "retry", "--database", "postgresql://u:secret@127.0.0.1:1/x"])
    told = capsys.readouterr()
    assert "nothing listens there" in told.err
    assert "secret" not in told.out + told.err
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), "retry"])
    assert 1 == len(letters.paths())


async def test_the_refused_record_of_these_tests_is_refused(database_url: str) -> None:
    """PostgreSQL itself turns it down for good."""
    store = await PostgresStore.open(database_url)
    with pytest.raises(RecordRejected):
        await store.save([refused()])
    await store.close()
