"""Dead replicas' completions are brought to an end by another; whatever happens meanwhile, one owner each."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from attrs import define, evolve, field
from structlog.testing import capture_logs

from db.fleet import Engine, Replica, Run
from db.fleet.adoption import Adoption
from db.fleet.journal import CopiedJournal
from db.fleet.membership import Membership
from db.fleet.memory import MemoryEngine, Shared
from db.fleet.outbox import Outbox
from db.journal import Fsync
from db.journal.live import LiveReplay
from statemachine import ChunkReceived, SessionRecord, UpstreamFinished
from tests.db.fleet.conftest import MakeEngine
from tests.db.journal.journals import PLENTY, begin, say, words
from tests.statemachine.conftest import finish_chunk

LEASE_SECONDS = 0.6
ONE, TWO = "chatcmpl-1", "chatcmpl-2"


@define(eq=False)
class Shelf:
    """Where records go; holds them up while it is shut."""

    records: list[SessionRecord] = field(factory=list)
    is_open: bool = True
    waiting: list["asyncio.Future[None]"] = field(factory=list)

    def save(self, record: SessionRecord) -> "asyncio.Future[None]":
        self.records.append(record)
        done = asyncio.get_running_loop().create_future()
        if self.is_open:
            done.set_result(None)
        else:
            self.waiting.append(done)
        return done

    async def has(self, completion_id: str) -> bool:
        return completion_id in {record.completion_id for record in self.records}

    @property
    def told(self) -> dict[str, tuple[str, str]]:
        return {
            each.completion_id: (each.failure.code if each.failure else "whole", words(each))
            for each in self.records
        }


class Member:
    """One replica: its lease, its journal, its looking after others."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        path: Path,
        *,
        copies: bool = True,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.engine = engine
        self.shelf = Shelf()
        self.membership = Membership(engine, name, lease_seconds)
        self.outbox = Outbox(engine, name, copies_lines=copies)
        self.lost: list[str] = []
        self.outbox.note_fenced = self.lost.extend
        self.journal = CopiedJournal(path / engine.token, Fsync.NEVER, PLENTY, self.outbox)
        self.adoption = Adoption(engine, lease_seconds, self.shelf.save, self.shelf.has)

    async def start(self) -> "Member":
        self.journal.start()
        await self.membership.start()
        self.outbox.start()
        self.adoption.start()
        return self

    async def run(self, name: str, *texts: str) -> None:
        """A completion of which so much is said, and copied."""
        assert begin(self.journal, name)
        for text in texts:
            say(self.journal, name, text)
        await asyncio.wait_for(self.outbox.sent(), 5)

    async def die(self) -> None:
        """Stop at once; nobody is told."""
        await cancelled(self.membership._task, *self.outbox._tasks, self.adoption._task)

    async def close(self) -> None:
        await self.die()
        self.journal.close()


async def cancelled(*tasks: "asyncio.Task[None] | None") -> None:
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def until(what: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.01)


MakeMember = Callable[..., Member]


@pytest.fixture
async def make_member(make_engine: MakeEngine, tmp_path: Path) -> AsyncIterator[MakeMember]:
    made: list[Member] = []

    def make(name: str, **how: bool) -> Member:
        made.append(member := Member(make_engine(), name, tmp_path, **how))
        return member

    yield make
    for member in made:
        await member.close()


async def test_what_the_dead_ran_is_ended_and_kept(make_member: MakeMember) -> None:
    """Every word that the log has, as recovery tells it; and an end that was its own stays so. Nothing of
    it is under way afterwards, and the dead one is forgotten."""
    dead, other = await make_member("a").start(), await make_member("b").start()
    await dead.run(ONE, "Hello", " there")
    await dead.run(TWO, "All")
    dead.journal.append(TWO, [ChunkReceived(finish_chunk()), UpstreamFinished()], 2.0)
    await asyncio.wait_for(dead.outbox.sent(), 5)
    await dead.die()
    await until(lambda: len(other.shelf.records) == 2)
    assert {ONE: ("process_died", "Hello there"), TWO: ("whole", "All")} == other.shelf.told
    async with asyncio.timeout(5):
        while len(await other.engine.replicas()) > 1:
            await asyncio.sleep(0.01)
    assert [] == list(await other.engine.left_by(dead.engine.token))
    assert 2 == other.adoption.adopted
    assert not await other.engine.is_under_way(Run(ONE, "", "a", dead.engine.token))


async def test_one_that_was_cut_off_yields(make_member: MakeMember) -> None:
    """It is told before anything more that it says is in the log, and what it began since is its own."""
    member, other = await make_member("a").start(), await make_member("b").start()
    await member.run(ONE, "Hello")
    await member.die()
    await until(lambda: len(other.shelf.records) == 1)
    say(member.journal, ONE, " again")
    await member.membership.start()
    member.outbox.start()
    await member.run(TWO, "New")
    await until(lambda: member.lost == [ONE])
    say(member.journal, ONE, " and again")
    await asyncio.wait_for(member.outbox.sent(), 5)
    assert 1 == member.outbox.fenced
    assert b" again" not in b"".join(each.lines for each in await other.engine.read(ONE))
    await asyncio.sleep(LEASE_SECONDS)
    assert {ONE: ("process_died", "Hello")} == other.shelf.told
    member.journal.forget([ONE])
    await until_left(other.engine, member.engine.token, [TWO])


async def until_left(engine: Engine, token: str, names: Sequence[str]) -> None:
    async with asyncio.timeout(5):
        while [each.completion_id for each in await engine.left_by(token)] != list(names):
            await asyncio.sleep(0.01)


async def test_an_adopter_that_dies_is_followed_by_another(make_member: MakeMember) -> None:
    """What it had not kept yet is kept by the next one; what its log has is all the same."""
    dead, first = await make_member("a").start(), make_member("b")
    first.shelf.is_open = False
    await dead.run(ONE, "Hello")
    await first.start()
    await dead.die()
    await until(lambda: len(first.shelf.records) == 1)
    await first.die()
    second = await make_member("c").start()
    await until(lambda: len(second.shelf.records) == 1)
    assert first.shelf.told == second.shelf.told == {ONE: ("process_died", "Hello")}


async def test_what_has_no_log_is_left_to_its_machine(make_member: MakeMember) -> None:
    """Until that has stored it."""
    dead, other = await make_member("a", copies=False).start(), await make_member("b").start()
    await dead.run(ONE, "Hello")
    await until_left(other.engine, dead.engine.token, [ONE])
    await dead.die()
    await asyncio.sleep(LEASE_SECONDS * 3)
    await until_left(other.engine, dead.engine.token, [ONE])
    assert [] == other.shelf.records
    other.shelf.records.append(await a_record(make_member))
    await until_left(other.engine, dead.engine.token, [])
    assert 0 == other.adoption.adopted


async def a_record(make_member: MakeMember) -> SessionRecord:
    """One of the completion ONE."""
    writer = make_member("w")
    writer.journal.start()
    assert begin(writer.journal, ONE)
    say(writer.journal, ONE, "Hello")
    live = LiveReplay()
    live.feed(b"".join(path.read_bytes() for path in writer.journal.segments_of([ONE])))
    live.end()
    assert live.record is not None
    return live.record


# --- who is not dead ----------------------------------------------------------------------------


@pytest.fixture
def shared() -> Shared:
    return Shared()


async def two(shared: Shared, path: Path) -> tuple[Member, Member]:
    members = [Member(MemoryEngine(name, shared), name, path) for name in ("a", "b")]
    for member in members:
        await member.start()
    return members[0], members[1]


async def test_nobody_is_adopted_when_the_engine_was_away_for_all(
    shared: Shared, tmp_path: Path
) -> None:
    """Longer than a lease: whoever is back first gives the others the time to be back, too."""
    one, other = await two(shared, tmp_path)
    try:
        await one.run(ONE, "Hello")
        await other.run(TWO, "Hello")
        await asyncio.sleep(LEASE_SECONDS * 2)  # both take part by now
        shared.is_away = True
        await asyncio.sleep(LEASE_SECONDS * 2)
        shared.is_away = False
        await asyncio.sleep(LEASE_SECONDS * 3)
        assert [[], []] == [each.shelf.records for each in (one, other)]
        assert [[], []] == [each.lost for each in (one, other)]
    finally:
        await one.close()
        await other.close()


async def test_nobody_is_adopted_when_the_engine_was_emptied(
    shared: Shared, tmp_path: Path
) -> None:
    """The living are unknown until they join again, and not dead."""
    one, other = await two(shared, tmp_path)
    try:
        await one.run(ONE, "Hello")
        await asyncio.sleep(LEASE_SECONDS * 2)
        for kept in (shared.alive_until, shared.leases, shared.known, shared.logs):
            kept.clear()
        say(one.journal, ONE, " there")
        await asyncio.sleep(LEASE_SECONDS * 3)
        assert ([], []) == (other.shelf.records, one.lost)
        assert b" there" in b"".join(each.lines for each in await other.engine.read(ONE))
    finally:
        await one.close()
        await other.close()


async def test_nobody_is_adopted_whose_lease_the_engine_forgot(
    shared: Shared, tmp_path: Path
) -> None:
    """As a node of a cluster does that comes back empty: by the time that the lease would have ended
    whoever lives has it again. The dead are adopted then, and no sooner."""
    one, other = await two(shared, tmp_path)
    try:
        await one.run(ONE, "Hello")
        await asyncio.sleep(LEASE_SECONDS * 2)
        for _ in range(20):
            shared.alive_until.clear()
            await asyncio.sleep(LEASE_SECONDS / 10)
        assert ([], []) == (other.shelf.records, one.lost)
        await one.die()
        shared.alive_until.clear()
        await until(lambda: bool(other.shelf.records), seconds=2 * LEASE_SECONDS)
    finally:
        await one.close()
        await other.close()


async def test_nobody_is_adopted_whose_last_renewals_the_engine_forgot(
    shared: Shared, tmp_path: Path
) -> None:
    """As a copy does that becomes the master and was late: what was seen before counts."""
    one, other = await two(shared, tmp_path)
    other.adoption._pause_seconds = LEASE_SECONDS / 30
    try:
        await one.run(ONE, "Hello")
        await asyncio.sleep(LEASE_SECONDS * 2)
        for _ in range(10):
            shared.alive_until["a"] = shared.clock() + 0.05
            await asyncio.sleep(LEASE_SECONDS / 2)
        assert ([], []) == (other.shelf.records, one.lost)
    finally:
        await one.close()
        await other.close()


class OfAnotherVersion(MemoryEngine):
    """Sees everybody else as of the next version."""

    async def replicas(self) -> Sequence[Replica]:
        return [
            each if each.token == self.token else evolve(each, version=each.version + 1)
            for each in await super().replicas()
        ]


async def test_another_versions_dead_are_left_alone(shared: Shared, tmp_path: Path) -> None:
    """Said once: what it wrote is for those who know it."""
    dead = await Member(MemoryEngine("a", shared), "a", tmp_path).start()
    await dead.run(ONE, "Hello")
    await dead.close()
    with capture_logs() as logs:
        other = await Member(OfAnotherVersion("b", shared), "b", tmp_path).start()
        await asyncio.sleep(LEASE_SECONDS * 4)
        await other.close()
    assert [] == other.shelf.records
    assert 1 == len([line for line in logs if line["event"] == "dead replica left alone"])


async def test_of_a_log_with_a_gap_what_is_before_it_is_kept(
    shared: Shared, tmp_path: Path
) -> None:
    """A tape that is read is extended later, and never changed."""
    dead = await Member(MemoryEngine("a", shared), "a", tmp_path).start()
    await dead.run(ONE, "One", " two", " three")
    del shared.logs[ONE].entries[2]
    await dead.close()
    other = await Member(MemoryEngine("b", shared), "b", tmp_path).start()
    await until(lambda: len(other.shelf.records) == 1)
    await other.close()
    assert {ONE: ("process_died", "One")} == other.shelf.told
