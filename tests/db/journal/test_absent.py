"""No journal: every question that a journal answers, for a service without one."""

import inspect
from pathlib import Path

import pytest

from db.journal import Journal, NoJournal
from db.memory.store import MemoryStore
from db.saver import Saver
from statemachine import SessionPolicy, UpstreamFinished
from tests.db.journal.journals import open_journal
from tests.db.records import make_record, make_request


def public(one: object) -> set[str]:
    return {name for name in dir(one) if not name.startswith("_")}


def test_it_has_whatever_others_ask_of_a_journal(tmp_path: Path) -> None:
    """All that a journal offers is there, with the same parameters, but for what only its own
    room and its operators' tests look at."""
    journal = open_journal(tmp_path)
    assert {"open", "segments_of"} == public(journal) - public(NoJournal())
    assert public(NoJournal()) <= public(journal)
    for name in public(NoJournal()) & {name for name, _ in inspect.getmembers(Journal, callable)}:
        assert inspect.signature(getattr(Journal, name)) == inspect.signature(
            getattr(NoJournal, name)
        ), name
    journal.close()


async def test_it_keeps_nothing_and_holds_nobody_up(tmp_path: Path) -> None:
    """Sessions begin and end without it; nothing can be read back."""
    journal, request = NoJournal(), make_request()
    assert journal.check() is None
    assert journal.begin(request, SessionPolicy())
    assert journal.begin(request, SessionPolicy())
    journal.append(request.completion_id, [UpstreamFinished()], 1.0)
    await journal.settle(is_final=True)
    assert (False, False) == (journal.settles_ends, journal.settles_chunks)
    assert not journal.has_whole(request.completion_id)
    assert [] == [record async for record in journal.read_back([request.completion_id])]
    journal.forget([request.completion_id])
    journal.close()


async def test_without_a_journal_everything_waits_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The saver's bound gives way where nothing could be read back."""
    monkeypatch.setattr("db.saver.MAX_WAITING", 2)
    store, records = MemoryStore(), [make_record() for _ in range(5)]
    saver = Saver(store, NoJournal())
    futures = [saver.save(record) for record in records]
    saver.start()
    for future in futures:
        await future
    for record in records:
        assert await store.find(record.completion_id) is not None
    assert 0 == await saver.stop(1)
