"""The engine on Redis or Valkey, from 6.2: standalone, Sentinel, Cluster. The only file that sees redis-py.

1. An entry has an id of our own, so that a command that redis-py repeats, since its answer was lost, is
   refused the second time. After a refusal it is looked at what is there.
2. What blocks has a connection of its own, and never blocks for longer than `_LONGEST_BLOCK_SECONDS`:
   the client's socket time-out, which tells a dead connection, is longer than that.
3. No command has keys of two slots. In a cluster a pipeline is sent for each slot's node, so that one
   node's end costs the others nothing; logs are looked at in turns, since one `XREAD` can't wait for
   several slots.
"""

import asyncio
import json
import secrets
from collections.abc import Awaitable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit, urlunsplit

import redis.asyncio
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError, ResponseError

from db.cancelling import cancelled_if_told
from db.fleet.contract import VERSION, Command, Entry, FleetUnavailable, Replica, Run
from db.fleet.keys import PREFIX, after_id, entries_of, entry_of, key_of, name_in, text_of

_RETRIES = 3
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.02, 0.5
_CONNECT_SECONDS = 2.0
_SOCKET_SECONDS = 5.0
_LONGEST_BLOCK_SECONDS = 2.0
_LOOK_SECONDS = 0.03
"""Between two looks at logs in a cluster."""
_KEEP_SECONDS = 86_400.0
"""How long what runs is kept if nobody ends it."""
_ANSWER_SECONDS = 60.0
_READ_COUNT = 200
"""Entries read at once; each is what one read from an upstream brought, 64 KiB at most as a rule."""

_LEASE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return holder end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""
_GIVE_BACK = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""

_T = TypeVar("_T")


class RedisEngine:
    """See `db.fleet.contract.Engine`.

    Args:
        url: `redis://`, `rediss://` or `unix://`, as redis-py reads them; `redis+sentinel://host:port,
            host:port/service` for Sentinel; `redis+cluster://host:port` for a cluster.
        token: this replica's.

    Raises:
        ValueError: the URL can't be read.
    """

    def __init__(self, url: str, token: str) -> None:
        self.token = token
        self._client = _client(url)
        self._blocking = _client(url)
        self._is_cluster = isinstance(self._client, RedisCluster)
        self._is_ready = False
        self._getting_ready = asyncio.Lock()
        self._lease = self._client.register_script(_LEASE)
        self._give_back = self._client.register_script(_GIVE_BACK)
        self._answers: dict[str, asyncio.Future[str]] = {}
        self._nudged = asyncio.Event()
        self._rings = 0
        self._bell = "0"

    async def start(self) -> None:
        try:
            await self._call(self._client.ping())
        except FleetUnavailable:
            pass

    async def close(self) -> None:
        for client in (self._client, self._blocking):
            # A client that Sentinel made doesn't close the connections to those who watch.
            watched = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
            for each in (client, *(watched.sentinels if watched else ())):
                with suppress(RedisError, OSError):
                    await each.aclose()

    # --- who is there -----------------------------------------------------------------------

    async def join(self, name: str, seconds: float) -> str:
        milliseconds = round(seconds * 1000)
        holder = await self._call(self._lease([key_of("lease", name)], [self.token, milliseconds]))
        if (token := text_of(holder)) == self.token:
            told = json.dumps({"name": name, "version": VERSION})
            everybody = f"{PREFIX}replicas"
            await self._call(self._client.hset(everybody, self.token, told))
            await self._call(self._client.expire(everybody, round(_KEEP_SECONDS)))
        return token

    async def leave(self, name: str) -> None:
        await self._call(self._give_back([key_of("lease", name)], [self.token]))
        if not await self.left_by(self.token):
            await self._call(self._client.hdel(f"{PREFIX}replicas", self.token))

    async def replicas(self) -> Sequence[Replica]:
        told = await self._call(self._client.hgetall(f"{PREFIX}replicas"))
        found = []
        for token, value in told.items():
            known = json.loads(value)
            holder = await self._call(self._client.get(key_of("lease", known["name"])))
            is_alive = holder == token
            found.append(Replica(known["name"], text_of(token), known["version"], is_alive))
        return found

    async def take_over(self, dead: Replica, seconds: float) -> bool:
        holder = await self._call(self._client.get(key_of("lease", dead.name)))
        if holder is not None and text_of(holder) == dead.token:
            return False
        arguments = [self.token, round(seconds * 1000)]
        adopter = await self._call(self._lease([key_of("adopt", dead.token)], arguments))
        return text_of(adopter) == self.token

    async def bury(self, dead: Replica) -> None:
        await self._call(self._client.hdel(f"{PREFIX}replicas", dead.token))
        await self._call(self._client.delete(key_of("asked", dead.token)))

    # --- what runs --------------------------------------------------------------------------

    async def append(self, entries: Sequence[Entry], runs: Sequence[Run] = ()) -> Collection[str]:
        commands: list[tuple[str, tuple[Any, ...]]] = []
        seconds = round(_KEEP_SECONDS)
        for run in runs:
            told = json.dumps([run.owner, run.replica, run.token])
            under_way = key_of("runs", run.token)
            commands += (
                ("SET", (key_of("run", run.completion_id), told, "EX", seconds)),
                ("HSET", (under_way, run.completion_id, run.owner)),
                ("EXPIRE", (under_way, seconds)),
            )
        for entry in entries:
            key = key_of("log", entry.completion_id)
            added = (f"1-{entry.number}", "c", entry.count, "l", entry.lines)
            where = (key, "NOMKSTREAM") if entry.number else (key,)
            commands.append(("XADD", (*where, *added)))
            if entry.number == 0:
                commands.append(("EXPIRE", (key, seconds)))
        lost: set[str] = set()
        for (name, arguments), result in await self._pipelined(commands):
            if name == "XADD" and result is None:
                lost.add(name_in(arguments[0]))
            elif name == "XADD" and isinstance(result, ResponseError):
                await self._check_there(arguments[0], arguments[-5], result)
            elif isinstance(result, Exception):
                raise FleetUnavailable(_said(result)) from result
        return lost

    async def _check_there(self, key: str, number: str, refusal: ResponseError) -> None:
        """An entry was refused: fine if it is there already."""
        if not await self._call(self._client.xrange(key, number, number, count=1)):
            raise FleetUnavailable(_said(refusal)) from refusal

    async def length(self, completion_id: str) -> int:
        found = await self._call(self._client.xrevrange(key_of("log", completion_id), count=1))
        entries = [entry_of(completion_id, *item) for item in found]
        return entries[0].number + entries[0].count if entries else 0

    async def find(self, completion_id: str) -> Run | None:
        told = await self._call(self._client.get(key_of("run", completion_id)))
        return None if told is None else Run(completion_id, *json.loads(told))

    async def left_by(self, token: str) -> Sequence[Run]:
        told = await self._call(self._client.hgetall(key_of("runs", token)))
        return [Run(text_of(name), text_of(owner), "", token) for name, owner in told.items()]

    async def finish(self, token: str, completion_ids: Sequence[str], seconds: float) -> None:
        commands: list[tuple[str, tuple[Any, ...]]] = []
        for completion_id in completion_ids:
            for kind in ("log", "run"):
                key = key_of(kind, completion_id)
                commands.append(("PEXPIRE", (key, round(seconds * 1000))))
        if completion_ids:
            commands.append(("HDEL", (key_of("runs", token), *completion_ids)))
        await self._all_of(commands)

    async def is_under_way(self, run: Run) -> bool:
        found = await self._call(self._client.hexists(key_of("runs", run.token), run.completion_id))
        return bool(found)

    async def forget(self, completion_id: str) -> None:
        keys = (key_of("log", completion_id), key_of("run", completion_id))
        await self._call(self._client.delete(*keys))

    async def read(self, completion_id: str, after: int = -1) -> Sequence[Entry]:
        key = key_of("log", completion_id)
        begin = f"1-{after + 1}"
        found = await self._call(self._client.xrange(key, begin, "+", count=_READ_COUNT))
        return [entry_of(completion_id, *item) for item in found]

    async def wait(self, after: Mapping[str, int], seconds: float) -> Sequence[Entry]:
        if self._is_cluster:
            return await self._look(after, seconds)
        bell = key_of("bell", self.token)
        streams = {key_of("log", name): after_id(number) for name, number in after.items()}
        streams[bell] = self._bell
        block = round(min(seconds, _LONGEST_BLOCK_SECONDS) * 1000)
        found = await self._call(self._blocking.xread(streams, count=_READ_COUNT, block=block))
        entries = entries_of(found)
        for rung in (each for each in entries if each.completion_id == self.token):
            self._bell = f"1-{rung.number}"
        return [each for each in entries if each.completion_id != self.token]

    async def nudge(self) -> None:
        self._nudged.set()
        if not self._is_cluster:
            self._rings += 1
            ring = (key_of("bell", self.token), "MAXLEN", 1, f"1-{self._rings}", "c", 0, "l", "")
            await self._call(self._client.execute_command("XADD", *ring))
            await self._call(self._client.expire(ring[0], round(_ANSWER_SECONDS)))

    async def _look(self, after: Mapping[str, int], seconds: float) -> Sequence[Entry]:
        """The same in a cluster."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while True:
            commands: list[tuple[str, tuple[Any, ...]]] = []
            for name, number in after.items():
                read = ("COUNT", _READ_COUNT, "STREAMS", key_of("log", name), after_id(number))
                commands.append(("XREAD", read))
            found: list[Entry] = []
            for result in await self._all_of(commands):
                found += entries_of(result)
            if found or loop.time() >= until or self._nudged.is_set():
                self._nudged.clear()
                return found
            await asyncio.sleep(_LOOK_SECONDS)

    # --- asking each other ------------------------------------------------------------------

    async def ask(self, token: str, what: str, seconds: float) -> str | None:
        command_id = secrets.token_hex(8)
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._answers[command_id] = answer
        try:
            told = json.dumps({"id": command_id, "what": what, "asker": self.token})
            await self._tell(token, told)
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._answers[command_id]

    async def asked(self, seconds: float) -> Command | None:
        block = max(min(seconds, _LONGEST_BLOCK_SECONDS), 0.01)
        found = await self._call(self._blocking.blpop([key_of("asked", self.token)], block))
        if found is None:
            return None
        told = json.loads(found[1])
        if "answer" in told:
            answer = self._answers.get(told["id"])
            if answer is not None and not answer.done():
                answer.set_result(told["answer"])
            return None
        return Command(told["id"], told["what"], told["asker"])

    async def answer(self, command: Command, answer: str) -> None:
        await self._tell(command.asker, json.dumps({"id": command.command_id, "answer": answer}))

    async def _tell(self, token: str, told: str) -> None:
        key = key_of("asked", token)
        await self._call(self._client.rpush(key, told))
        await self._call(self._client.expire(key, round(_ANSWER_SECONDS)))

    # --- the way there ----------------------------------------------------------------------

    async def _call(self, call: Awaitable[_T] | Any) -> _T:
        try:
            await self._get_ready()
            with cancelled_if_told():
                result: _T = await call
        except (RedisError, OSError) as error:
            if asyncio.iscoroutine(call):
                call.close()  # it may not have begun
            raise FleetUnavailable(_said(error)) from error
        return result

    async def _get_ready(self) -> None:
        """In a cluster, have it looked who has which slots, once: redis-py 8.1 closes connections that
        others have just made, where several find it out at once."""
        if self._is_cluster and not self._is_ready:
            async with self._getting_ready:
                for client in (self._client, self._blocking):
                    if not self._is_ready:
                        await client.initialize()
                self._is_ready = True

    async def _all_of(self, commands: Sequence[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        """The results of all. Raises FleetUnavailable if one is an error."""
        results = [result for _, result in await self._pipelined(commands)]
        for result in results:
            if isinstance(result, Exception):
                raise FleetUnavailable(_said(result)) from result
        return results

    async def _pipelined(
        self, commands: Sequence[tuple[str, tuple[Any, ...]]]
    ) -> list[tuple[tuple[str, tuple[Any, ...]], Any]]:
        """Each command with its result, or the error that the server gave. In a cluster those of one
        node go together, and apart from the others'."""
        results: list[tuple[tuple[str, tuple[Any, ...]], Any]] = []
        try:
            await self._get_ready()
        except (RedisError, OSError) as error:
            raise FleetUnavailable(_said(error)) from error
        for group in self._groups(commands):
            pipeline = self._client.pipeline(transaction=False)
            for name, arguments in group:
                pipeline.execute_command(name, *arguments)
            found = await self._call(pipeline.execute(raise_on_error=False))
            results += zip(group, found, strict=True)
        return results

    def _groups(
        self, commands: Sequence[tuple[str, tuple[Any, ...]]]
    ) -> Sequence[Sequence[tuple[str, tuple[Any, ...]]]]:
        if not isinstance(self._client, RedisCluster):
            return [commands] if commands else []
        groups: dict[str, list[tuple[str, tuple[Any, ...]]]] = {}
        for command in commands:
            key = next(part for part in command[1] if str(part).startswith(PREFIX))
            node = self._client.get_node_from_key(key)
            groups.setdefault(node.name if node else "", []).append(command)
        return list(groups.values())


def _said(error: Exception) -> str:
    """What went wrong, without anything that was stored: the server quotes no values."""
    return f"{type(error).__name__}: {str(error)[:200]}"


# --- which client -------------------------------------------------------------------------------


def _client(url: str) -> Any:
    # Not all of redis-py's ways to make a client have retries and time-outs of their own.
    options: dict[str, Any] = {
        "retry": Retry(ExponentialBackoff(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS), _RETRIES),
        "socket_timeout": _SOCKET_SECONDS,
        "socket_connect_timeout": _CONNECT_SECONDS,
    }
    parts = urlsplit(url)
    if parts.scheme in ("redis+sentinel", "rediss+sentinel"):
        return _of_sentinels(parts, options)
    if parts.scheme in ("redis+cluster", "rediss+cluster"):
        plain = urlunsplit(parts._replace(scheme=parts.scheme.partition("+")[0]))
        return RedisCluster.from_url(plain, **options)
    return redis.asyncio.Redis.from_url(url, **options)


def _of_sentinels(parts: Any, options: dict[str, Any]) -> Any:
    """The client of whoever is the master now."""
    name, _, hosts = parts.netloc.rpartition("@")
    user, _, password = name.partition(":")
    places = [host.rpartition(":") for host in hosts.split(",")]
    addresses = [(host or port, int(port) if host else 26379) for host, _, port in places]
    if parts.scheme.startswith("rediss"):
        options = {**options, "ssl": True}
    path, _, database = parts.path.strip("/").partition("/")
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    sentinel_options: dict[str, Any] = {"socket_timeout": _CONNECT_SECONDS}
    if "sentinel_password" in query:
        sentinel_options["password"] = query["sentinel_password"]
    make: Any = Sentinel  # without types
    sentinel = make(addresses, sentinel_kwargs=sentinel_options, **options)
    return sentinel.master_for(
        path or "mymaster",
        username=user or None,
        password=password or None,
        db=int(database or 0),
        **options,
    )
