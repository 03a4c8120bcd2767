"""The way to a Redis or Valkey: standalone, behind Sentinel, as a cluster. The only file that sees redis-py.

1. What blocks has a connection of its own, and never blocks for longer than `LONGEST_BLOCK_SECONDS`:
   the client's socket time-out, which tells a dead connection, is longer than that.
2. In a cluster a pipeline is sent for each slot's node, so that one node's end costs the others nothing.
3. No call takes longer than `CALL_SECONDS`, whatever is away: the client alone would repeat one against a
   server that is frozen, or a network that swallows all, for most of a minute.

Never here: what is kept there.
"""

import asyncio
import hashlib
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit, urlunsplit

import redis.asyncio
from redis.asyncio.client import Pipeline
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import ExponentialBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from db.cancelling import cancelled_if_told
from db.fleet.contract import FleetUnavailable
from db.fleet.health import EngineHealth
from db.fleet.keys import ROOT
from db.fleet.packing import packed

_RETRIES = 3
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.02, 0.5
_CONNECT_SECONDS = 2.0
_SOCKET_SECONDS = 3.0
LONGEST_BLOCK_SECONDS = 2.0
CALL_SECONDS = 5.0
"""How long a call takes at most, with all that the client repeats of it."""
_COPY_SECONDS = 1.0
"""How long the server waits for its replicas."""
_CLOSE_SECONDS = 0.5

_GONE = (RedisError, OSError, RuntimeError, AttributeError)
"""What redis-py 8.1 raises where a connection is gone. The last two come of a cluster's client alone, if
another call has closed the connection meanwhile: uvloop's "the handler is closed", and a writer that is None.
Seen by `make fleet-faults ARGS="--only 'node killed'"`."""

_T = TypeVar("_T")

Told = tuple[str, tuple[Any, ...]]
"""Its name and its arguments; the first of these that begins with our prefix is its key."""


class Refused(FleetUnavailable):
    """The server has answered that it won't do this."""


class RedisLink:
    """Two clients: one for what answers at once, one for what waits.

    Args:
        url: `redis://`, `rediss://` or `unix://`, as redis-py reads them; `redis+sentinel://host:port,
            host:port/service` for Sentinel; `redis+cluster://host:port` for a cluster.

    Attributes:
        client: for what answers at once.
        blocking: for what waits; one call at a time is quick.
        is_cluster: no command may have keys of two slots.
        health: how the calls went.

    Raises:
        ValueError: the URL can't be read.
    """

    def __init__(self, url: str) -> None:
        self.health = EngineHealth()
        self.client = _client(url)
        self.blocking = _client(url)
        self.is_cluster = isinstance(self.client, RedisCluster)
        self._is_ready = False
        self._getting_ready = asyncio.Lock()

    async def close(self) -> None:
        """Release every resource. Never raises."""
        for client in (self.client, self.blocking):
            # A client that Sentinel made doesn't close the connections to those who watch.
            watched = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
            for each in (client, *(watched.sentinels if watched else ())):
                with suppress(RedisError, OSError):
                    async with asyncio.timeout(_CLOSE_SECONDS):
                        await each.aclose()

    def script(self, text: str) -> Callable[[Sequence[str], Sequence[Any]], Awaitable[Any]]:
        """A Lua script, to be called with its keys and its other arguments. The server is sent the text if it
        never saw it."""
        digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        # redis-py's own script costs a third more CPU.
        execute = self.client.execute_command if self.is_cluster else partial(_alone, self.client)

        async def ask(keys: Sequence[str], arguments: Sequence[Any]) -> Any:
            told = (len(keys), *keys, *arguments)
            try:
                return await execute("EVALSHA", digest, *told)
            except NoScriptError:
                return await execute("EVAL", text, *told)

        async def run(keys: Sequence[str], arguments: Sequence[Any]) -> Any:
            return await self.call(ask(keys, arguments))

        return run

    async def call(self, call: Awaitable[_T] | Any) -> _T:
        """The result of a client's command. Raises FleetUnavailable, after `CALL_SECONDS` at the latest."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._get_ready()
                with cancelled_if_told():
                    result: _T = await call
        except _GONE as error:
            if asyncio.iscoroutine(call):
                call.close()  # it may not have begun
            raise self._failed(error) from error
        self.health.note_answer()
        return result

    def _failed(self, error: Exception) -> FleetUnavailable:
        self.health.note_failure(_said(error))
        return FleetUnavailable(_said(error))

    async def marks(self) -> Mapping[str, str]:
        """For each server that takes writes, as far as it answers, what is another text after it was
        restarted or another was made the master. Raises FleetUnavailable if none answers."""
        if not isinstance(self.client, RedisCluster):
            return {"": await self._mark({})}
        await self.call(asyncio.sleep(0))  # makes it ready
        nodes = self.client.get_primaries()
        found = await asyncio.gather(
            *(self._mark({"target_nodes": node}) for node in nodes), return_exceptions=True
        )
        marks: dict[str, str] = {}
        for node, mark in zip(nodes, found, strict=True):
            if isinstance(mark, str):
                marks[node.name] = mark
            elif not isinstance(mark, FleetUnavailable):
                raise mark
        if not marks:
            raise FleetUnavailable("no node of the cluster answers")
        return marks

    async def _mark(self, where: Mapping[str, Any]) -> str:
        server = await self.call(self.client.info("server", **where))
        copying = await self.call(self.client.info("replication", **where))
        return f"{server['run_id']} {copying['master_replid']} {copying['role']}"

    async def _get_ready(self) -> None:
        """In a cluster, have it looked who has which slots, once: redis-py 8.1 closes connections that
        others have just made, where several find it out at once."""
        if self.is_cluster and not self._is_ready:
            async with self._getting_ready:
                for client in (self.client, self.blocking):
                    if not self._is_ready:
                        await client.initialize()
                self._is_ready = True

    async def all_of(self, commands: Sequence[Told]) -> list[Any]:
        """The results of all. Raises FleetUnavailable if one is an error."""
        results = [result for _, result in await self.pipelined(commands)]
        for result in results:
            if isinstance(result, FleetUnavailable):
                raise result
        return results

    async def pipelined(self, commands: Sequence[Told], copies: int = 0) -> list[tuple[Told, Any]]:
        """Each command with its result, or with `Refused` or FleetUnavailable. In a cluster those of one
        node go together, and apart from the others'; if one can't be reached, the others have theirs.

        Args:
            copies: how many replicas of each server are to have it too. Raises FleetUnavailable if fewer
                say so in time; it is done nevertheless.
        """
        if not self.is_cluster:
            return await self._sent(commands, copies, None) if commands else []
        if not self._is_ready:
            await self.call(asyncio.sleep(0))  # makes it so
        groups: dict[str | None, list[Told]] = {}
        for command in commands:
            groups.setdefault(self._node_of(command), []).append(command)
        found = await asyncio.gather(
            *(self._sent(group, copies, node) for node, group in groups.items())
        )
        return [each for part in found for each in part]

    def _node_of(self, command: Told) -> str | None:
        key = next(part for part in command[1] if str(part).startswith(ROOT))
        node = self.client.get_node_from_key(key)
        return node.name if node else None

    async def _sent(
        self, commands: Sequence[Told], copies: int, node: str | None
    ) -> list[tuple[Told, Any]]:
        """The same of commands that go together, to this node if it is a cluster."""
        pipeline = _pipeline(self.client)
        for name, arguments in commands:
            pipeline.execute_command(name, *arguments)
        if copies:
            where = {"target_nodes": self.client.get_node(node_name=node)} if node else {}
            pipeline.execute_command("WAIT", copies, round(_COPY_SECONDS * 1000), **where)
        try:
            found = await self.call(pipeline.execute(raise_on_error=False))
        except FleetUnavailable as error:
            if not self.is_cluster:
                raise
            return [(command, error) for command in commands]
        if copies:
            _check_copies(_told(found.pop()), copies)
            # What has moved went elsewhere, and this node's replicas were asked.
            if node is not None and any(self._node_of(each) != node for each in commands):
                raise FleetUnavailable("slots have moved")
        return list(zip(commands, map(_told, found), strict=True))


def _check_copies(told: Any, wanted: int) -> None:
    """What `WAIT` has answered."""
    if isinstance(told, FleetUnavailable):
        raise told
    if told < wanted:
        raise FleetUnavailable(f"{told} of {wanted} replicas of the engine have it")


class _LeanPipeline(Pipeline):
    """A pipeline that packs all its commands at once and has one time-out for sending them and for all
    answers, where redis-py's has one for each: a third of its CPU (`python -m
    benchmarks.questions.packing`)."""

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Once past the client's retries and what it records, which take a quarter of a small call's CPU;
        where that fails, in its own way."""
        connection = await self.connection_pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            return await self._execute_pipeline(connection, self.command_stack, raise_on_error)
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
            await connection.disconnect()
        finally:
            await self.connection_pool.release(connection)
        found: list[Any] = await super().execute(raise_on_error)
        return found

    async def _execute_pipeline(
        self, connection: Any, commands: Any, raise_on_error: bool
    ) -> list[Any]:
        found: list[Any] = []
        try:
            async with asyncio.timeout(_SOCKET_SECONDS):
                await _send(connection, packed([words for words, _ in commands]))
                for words, options in commands:
                    try:
                        told = await connection.read_response(timeout=math.inf)
                    except ResponseError as error:
                        found.append(error)
                        continue
                    understood = self.response_callbacks.get(words[0])
                    found.append(understood(told, **options) if understood else told)
        except TimeoutError:  # the connection has been closed: what comes late is nobody's
            raise redis.exceptions.TimeoutError("no answer in time") from None
        return found


async def _send(connection: Any, data: bytes) -> None:
    """Send this without the connection's own time-out, which takes a task."""
    patience, connection.socket_timeout = connection.socket_timeout, None
    try:
        await connection.send_packed_command(data)
    finally:
        connection.socket_timeout = patience


async def _alone(client: Any, *words: Any) -> Any:
    """One command's result, by the same way. Raises what the server answers."""
    pipeline = _pipeline(client)
    pipeline.execute_command(*words)
    (found,) = await pipeline.execute(raise_on_error=False)
    if isinstance(found, Exception):
        raise found
    return found


def _pipeline(client: Any) -> Any:
    if isinstance(client, RedisCluster):
        return client.pipeline(transaction=False)
    return _LeanPipeline(client.connection_pool, client.response_callbacks, False, None)


def _told(result: Any) -> Any:
    if not isinstance(result, Exception):
        return result
    kind = Refused if isinstance(result, ResponseError) else FleetUnavailable
    return kind(_said(result))


def _said(error: Exception) -> str:
    """What went wrong, without anything that was stored: the server quotes no values."""
    return f"{type(error).__name__}: {str(error)[:200] or 'no answer in time'}"


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
