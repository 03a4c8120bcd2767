"""Readers elsewhere of a log that the engine has lost lines of."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from db.fleet import Entry, Run
from db.fleet import outbox as outboxes
from db.fleet.memory import MemoryEngine, Shared
from service.fleet import mirrors as mirrors_module
from service.fleet.mirrors import Mirror, Mirrors
from tests.db.fleet.writers import Writer

ONE = "chatcmpl-1"


@asynccontextmanager
async def reading(shared: Shared, path: Path) -> AsyncIterator[tuple[Writer, Mirror, Mirrors]]:
    """One who writes, with two lines, and one who reads along at another replica."""
    writer = Writer(path / "journal", MemoryEngine("a", shared))
    mirrors = Mirrors(MemoryEngine("b", shared), 30)
    mirrors.start()
    try:
        await writer.engine.join("a", 30)
        writer.begin(ONE)
        writer.say(ONE, "one ")
        await asyncio.wait_for(writer.outbox.sent(), 5)
        run = await writer.engine.find(ONE)
        assert run is not None
        mirror = await mirrors.join(run)
        assert mirror is not None
        yield writer, mirror, mirrors
    finally:
        await mirrors.stop()
        await writer.close()


def read_by(mirror: Mirror) -> str:
    return "".join(each.message["content"] for each in mirror.session.transcript.choices())


async def until_read(mirror: Mirror, text: str) -> None:
    async with asyncio.timeout(10):
        while read_by(mirror) != text:
            await asyncio.sleep(0.02)


async def lose_the_second(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second word doesn't get into the log, and the third does."""
    append = writer.engine.append

    async def lossy(entries: Sequence[Entry], runs: Sequence[Run] = ()) -> object:
        return await append([each for each in entries if each.number != 2], runs)

    with monkeypatch.context() as patch:
        patch.setattr(writer.engine, "append", lossy)
        for word in ("two ", "three "):
            writer.say(ONE, word)
        await asyncio.wait_for(writer.outbox.sent(), 5)


async def test_a_gap_is_waited_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its readers get every word once and in order when the log is whole again, and go on."""
    monkeypatch.setattr(outboxes, "LOOK_SECONDS", 0.3)
    shared = Shared()
    async with reading(shared, tmp_path) as (writer, mirror, _):
        await lose_the_second(writer, monkeypatch)
        await asyncio.sleep(0.1)
        assert "one " == read_by(mirror)
        assert not mirror.audience.is_over
        shared.losses += 1
        await until_read(mirror, "one two three ")
        writer.say(ONE, "four ")
        await until_read(mirror, "one two three four ")
        writer.end(ONE)
        async with asyncio.timeout(5):
            while mirror.record is None:
                await asyncio.sleep(0.02)


async def test_a_gap_that_stays_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No reader hangs."""
    monkeypatch.setattr(mirrors_module, "_MEND_SECONDS", 0.3)
    monkeypatch.setattr(outboxes, "LOOK_SECONDS", 100)
    shared = Shared()
    async with reading(shared, tmp_path) as (writer, mirror, _):
        await lose_the_second(writer, monkeypatch)
        async with asyncio.timeout(5):
            while not mirror.audience.is_over:
                await asyncio.sleep(0.02)
        assert "one " == read_by(mirror)


async def test_an_end_that_was_lost_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has ended and is stored comes no more by its log; its readers find it where it is stored."""
    monkeypatch.setattr(mirrors_module, "_MEND_SECONDS", 0.3)
    monkeypatch.setattr(mirrors_module, "_SILENT_SECONDS", 0.1)
    monkeypatch.setattr(mirrors_module, "_WAIT_SECONDS", 0.1)
    shared = Shared()
    async with reading(shared, tmp_path) as (writer, mirror, _):
        await asyncio.sleep(1)
        was_over = mirror.audience.is_over
        await writer.engine.finish("a", [ONE], 600)
        async with asyncio.timeout(5):
            while not mirror.audience.is_over:
                await asyncio.sleep(0.02)
        assert (False, None) == (was_over, mirror.record)


async def test_silence_is_counted_only_while_something_is_read(tmp_path: Path) -> None:
    """As long as there is nothing to follow, nothing is due from the engine."""
    shared = Shared()
    idle = Mirrors(MemoryEngine("c", shared), 30)
    idle.start()
    async with reading(shared, tmp_path) as (writer, mirror, mirrors):
        await until_read(mirror, "one ")
        shared.is_away = True
        await asyncio.sleep(0.2)
        assert 0 == idle.pulse.silent_seconds
        assert 0.1 < mirrors.pulse.silent_seconds
        assert 0.1 < writer.outbox.pulse.silent_seconds
    await idle.stop()
