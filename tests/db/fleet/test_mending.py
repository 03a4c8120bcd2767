"""An engine that loses what it had acknowledged, freezes, or has no room: what it lacks is sent again, in
order, each line once."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from db.fleet import FleetUnavailable
from db.fleet import outbox as outboxes
from db.fleet.memory import MemoryEngine, Shared
from db.fleet.redis import RedisEngine
from db.fleet.redis_link import RedisLink
from tests.db.fleet.writers import Writer, read, text_of
from tests.redis_servers import RedisServer, redis_cluster, redis_sentinels, redis_server

ONE, TWO = "chatcmpl-1", "chatcmpl-2"
QUICK = ("--repl-diskless-sync-delay", "0", "--cluster-node-timeout", "2000")


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outboxes, "LOOK_SECONDS", 0.05)


@asynccontextmanager
async def writing(engine: MemoryEngine | RedisEngine, path: Path) -> AsyncIterator[Writer]:
    writer = Writer(path / "journal", engine)
    try:
        yield writer
    finally:
        await writer.close()
        await engine.close()


@pytest.fixture
async def on_redis(own_redis: RedisServer, tmp_path: Path) -> AsyncIterator[Writer]:
    engine = RedisEngine(RedisLink(own_redis.url), "token")
    async with writing(engine, tmp_path) as writer:
        yield writer


async def until(holds: Callable[[], Awaitable[bool]], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not await holds():
            await asyncio.sleep(0.02)


async def sent(writer: Writer, seconds: float = 10) -> None:
    await asyncio.wait_for(writer.outbox.sent(), seconds)


async def test_a_log_that_lost_lines_in_a_failover_is_whole_again(tmp_path: Path) -> None:
    """Where it went on after a gap all of it is sent again, where it is only short the rest."""
    shared = Shared()
    async with writing(MemoryEngine("token", shared), tmp_path) as writer:
        for name in (ONE, TWO):
            writer.begin(name)
            for number in range(5):
                writer.say(name, f"{number} ")
                await sent(writer)
        for name in (ONE, TWO):
            del shared.logs[name].entries[3:]
        writer.say(ONE, "5 ")
        await sent(writer)
        assert [0, 1, 2, 6] == [each.number for each in shared.logs[ONE].entries]
        shared.losses += 1

        async def is_whole() -> bool:
            return 7 == sum(each.count for each in shared.logs[ONE].entries) and (
                6 == sum(each.count for each in shared.logs[TWO].entries)
            )

        await until(is_whole)
        assert 2 == writer.outbox.mended
        texts = [text_of(await read(writer.engine, name)) for name in (ONE, TWO)]
        assert ["0 1 2 3 4 5 ", "0 1 2 3 4 "] == texts


async def test_those_who_ask_together_share_a_look(own_redis: RedisServer) -> None:
    """A thousand readers that come back at once don't wait for a thousand looks."""
    engine = RedisEngine(RedisLink(own_redis.url), "token")
    try:
        await engine.lost_at()
        with redis.Redis(port=own_redis.port) as client:
            before: Any = client.info("commandstats")
            await asyncio.gather(*(engine.lost_at() for _ in range(100)))
            after: Any = client.info("commandstats")
        looks = [told["cmdstat_getex"]["calls"] for told in (before, after)]
        assert looks[1] - looks[0] in (1, 2)
    finally:
        await engine.close()


async def test_what_has_ended_is_not_taken_for_running_after_a_failover(tmp_path: Path) -> None:
    """The engine may have lost that it ended; it is told again."""
    shared = Shared()
    async with writing(MemoryEngine("token", shared), tmp_path) as writer:
        writer.begin(ONE)
        writer.end(ONE)
        await sent(writer)
        writer.journal.forget([ONE])

        async def has_ended() -> bool:
            return not await writer.engine.left_by("token")

        await until(has_ended)
        shared.logs[ONE].goes_at = float("inf")
        shared.losses += 1
        await until(has_ended)


async def test_nobody_is_told_that_lines_are_there_while_others_of_before_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits has all that was added before sent, also if another completion's lines go first."""
    monkeypatch.setattr(outboxes, "MOST_HELD_BYTES", 1)
    shared = Shared()
    async with writing(MemoryEngine("token", shared), tmp_path) as writer:
        writer.begin(ONE)
        await sent(writer)
        shared.is_away = True
        writer.say(ONE, "a", "b", "c")
        waiting = asyncio.create_task(writer.outbox.sent())
        await asyncio.sleep(0)
        writer.outbox._note_sent(10)  # as of completions that began since
        await asyncio.sleep(0.05)
        assert not waiting.done()
        shared.is_away = False
        await asyncio.wait_for(waiting, 10)
        assert "abc" == text_of(await read(writer.engine, ONE))


async def test_an_emptied_engine_gets_what_runs_without_a_word_more(
    on_redis: Writer, own_redis: RedisServer
) -> None:
    """Also a completion whose model thinks meanwhile."""
    on_redis.begin(ONE)
    on_redis.say(ONE, "one ")
    await sent(on_redis)
    await asyncio.sleep(0.2)  # it has been looked who answers
    own_redis.empty()

    async def is_there() -> bool:
        return 2 == await on_redis.engine.mend(ONE)

    await until(is_there)
    assert "one " == text_of(await read(on_redis.engine, ONE))
    assert await on_redis.engine.find(ONE) is not None


@pytest.fixture
def old_file(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that reads at its start what it had at some time before."""
    with redis_server(tmp_path / "redis", "--dbfilename", "old.rdb") as server:
        yield server


async def test_a_server_restarted_with_an_older_file_is_noticed(
    old_file: RedisServer, tmp_path: Path
) -> None:
    """Its logs end where the file does, take what comes next, and are made whole."""
    async with writing(RedisEngine(RedisLink(old_file.url), "token"), tmp_path) as writer:
        writer.begin(ONE)
        writer.say(ONE, "one ")
        await sent(writer)
        await asyncio.sleep(0.2)
        with redis.Redis(port=old_file.port) as client:
            client.save()
        for word in ("two ", "three "):
            writer.say(ONE, word)
            await sent(writer)
        old_file.stop()
        old_file.start()
        writer.say(ONE, "four ")

        async def is_whole() -> bool:
            return 5 == await writer.engine.mend(ONE)

        await until(is_whole, 20)
        assert "one two three four " == text_of(await read(writer.engine, ONE))


async def test_a_server_without_room_costs_nothing_but_the_copy(
    on_redis: Writer, own_redis: RedisServer
) -> None:
    """It refuses lines and is read; once there is room again it has them all."""
    on_redis.begin(ONE)
    on_redis.say(ONE, "one ")
    await sent(on_redis)
    with redis.Redis(port=own_redis.port) as client:
        client.config_set("maxmemory", 1)
        try:
            on_redis.say(ONE, "two ")

            async def is_refused() -> bool:
                return "OutOfMemory" in (on_redis.outbox.failure or "")

            await until(is_refused)
            assert "one " == text_of(await read(on_redis.engine, ONE))
        finally:
            client.config_set("maxmemory", 0)
    on_redis.say(ONE, "three ")
    await sent(on_redis)
    assert "one two three " == text_of(await read(on_redis.engine, ONE))


async def test_an_entry_refused_between_two_that_were_taken_leaves_no_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a server that ran out of memory in the middle of a call."""
    shared = Shared()
    async with writing(MemoryEngine("token", shared), tmp_path) as writer:
        writer.begin(ONE)
        await sent(writer)
        append = writer.engine.append
        calls = 0

        async def refuse_first(entries: object, runs: object = ()) -> object:
            nonlocal calls
            calls += 1
            if calls > 1:
                return await append(entries, runs)  # type: ignore[arg-type]
            await append(entries[1:], runs)  # type: ignore[arg-type, index]
            raise FleetUnavailable("no room for the first")

        monkeypatch.setattr(writer.engine, "append", refuse_first)
        writer.say(ONE, "a", "b", "c")
        await sent(writer)
        assert "abc" == text_of(await read(writer.engine, ONE))


@pytest.mark.fleet
async def test_a_frozen_server_has_each_line_once(on_redis: Writer, own_redis: RedisServer) -> None:
    """What was sent to it before it froze lands late, and what was sent again as well."""
    on_redis.begin(ONE)
    on_redis.say(ONE, "one ")
    await sent(on_redis)
    assert own_redis.process is not None
    own_redis.process.send_signal(signal.SIGSTOP)
    try:
        for number in range(16):
            on_redis.say(ONE, f"{number} ")
            await asyncio.sleep(0.5)
        assert on_redis.outbox.failure is not None
    finally:
        own_redis.process.send_signal(signal.SIGCONT)
    await sent(on_redis)
    expected = "one " + "".join(f"{number} " for number in range(16))
    assert expected == text_of(await read(on_redis.engine, ONE))


@pytest.mark.fleet
async def test_a_planned_failover_behind_sentinels_costs_no_line(tmp_path: Path) -> None:
    """It raises nothing, and loses what the old master took while it was on its way out."""
    with redis_sentinels(tmp_path / "redis") as (url, _, _):
        async with writing(RedisEngine(RedisLink(url), "token"), tmp_path) as writer:
            writer.begin(ONE)
            await sent(writer)
            hosts = url.partition("//")[2].split("/")[0].split(",")
            with redis.Redis(port=int(hosts[0].rpartition(":")[2])) as sentinel:
                sentinel.execute_command("SENTINEL FAILOVER", "verbatim")
            for number in range(250):
                writer.say(ONE, f"{number} ")
                await asyncio.sleep(0.06)
            expected = "".join(f"{number} " for number in range(250))

            async def is_whole() -> bool:
                return 251 == await writer.engine.mend(ONE)

            await until(is_whole, 20)
            assert expected == text_of(await read(writer.engine, ONE))


@pytest.mark.fleet
async def test_a_node_of_a_cluster_that_restarts_empty_gets_its_logs(tmp_path: Path) -> None:
    """Those of the other nodes stay as they are."""
    with redis_cluster(tmp_path / "redis") as nodes:
        url = f"redis+cluster://127.0.0.1:{nodes[0].port}"
        async with writing(RedisEngine(RedisLink(url), "token"), tmp_path) as writer:
            names = [f"chatcmpl-{number}" for number in range(12)]
            for name in names:
                writer.begin(name)
                writer.say(name, "one ")
            await sent(writer)
            await asyncio.sleep(0.3)
            nodes[1].stop()
            await asyncio.sleep(0.5)
            nodes[1].start()

            async def are_whole() -> bool:
                try:
                    return all([2 == await writer.engine.mend(name) for name in names])
                except FleetUnavailable:
                    return False

            await until(are_whole, 30)
            assert ["one "] * 12 == [text_of(await read(writer.engine, name)) for name in names]


@pytest.mark.fleet
async def test_a_replica_that_is_promoted_in_a_cluster_is_noticed(tmp_path: Path) -> None:
    """Its logs may lack their tails; each is as long as it should be soon after, and goes on."""
    with (
        redis_cluster(tmp_path / "redis") as nodes,
        redis_server(tmp_path / "spare", "--cluster-enabled", "yes", *QUICK) as spare,
    ):
        with redis.Redis(port=spare.port) as client, redis.Redis(port=nodes[1].port) as master:
            client.execute_command("CLUSTER MEET", "127.0.0.1", nodes[0].port)
            name = str(master.execute_command("CLUSTER MYID"), "ascii")
            await until(lambda: replicates(client, name), 20)
        url = f"redis+cluster://127.0.0.1:{nodes[0].port}"
        async with writing(RedisEngine(RedisLink(url), "token"), tmp_path) as writer:
            names = [f"chatcmpl-{number}" for number in range(12)]
            for name in names:
                writer.begin(name)
                writer.say(name, "one ")
            await sent(writer)
            await asyncio.sleep(0.3)
            with redis.Redis(port=nodes[1].port) as old, redis.Redis(port=spare.port) as new:
                # What it took last doesn't reach the one that takes its place.
                old.execute_command("CLIENT KILL TYPE replica")
                new.config_set("masterauth", "wrong")
                for name in names:
                    writer.say(name, "two ")
                await sent(writer)
                new.execute_command("CLUSTER FAILOVER TAKEOVER")
            nodes[1].stop()
            for name in names:
                writer.say(name, "three ")

            async def are_whole() -> bool:
                try:
                    return all([4 == await writer.engine.mend(name) for name in names])
                except FleetUnavailable:
                    return False

            await until(are_whole, 40)
            texts = [text_of(await read(writer.engine, name)) for name in names]
            assert ["one two three "] * 12 == texts


async def replicates(client: Any, master: str) -> bool:
    """Have it follow this node of its cluster, once it knows it; True once it has all."""
    told = client.info("replication")
    if told["role"] == "master":
        with suppress(redis.ResponseError):
            client.execute_command("CLUSTER REPLICATE", master)
    return bool(told.get("master_link_status") == "up")
