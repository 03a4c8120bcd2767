"""The engine on Redis or Valkey, from 6.2: standalone, Sentinel, Cluster.

`db.fleet.redis_link` is the way there.

1. An entry has an id of our own, so that a command that the client repeats, since its answer was lost, is
   refused the second time. After a refusal it is looked at what is there.
   The id that closes a log is above all of them, so that the server itself refuses what comes late.
2. No command has keys of two slots. In a cluster logs are looked at in turns, since one `XREAD` can't wait
   for several slots.
"""

import asyncio
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from db.fleet.budgets import Budgets
from db.fleet.contract import (
    CLOSED,
    VERSION,
    Appended,
    Command,
    Entry,
    FleetUnavailable,
    Replica,
    Run,
)
from db.fleet.keys import (
    CLOSING_ID,
    REPLICAS,
    after_id,
    entries_of,
    entry_of,
    key_of,
    name_in,
    owner_key,
    text_of,
)
from db.fleet.redis_budgets import RedisBudgets
from db.fleet.redis_claims import RedisClaims
from db.fleet.redis_link import LONGEST_BLOCK_SECONDS, RedisLink, Refused, Told
from db.fleet.redis_mending import RedisMending
from db.fleet.shared_claims import SharedClaims

_START_SECONDS = 1.0
_LOOK_SECONDS = 0.03
"""Between two looks at logs in a cluster."""
_LOOK_SHARE = 3
"""So many times as long as a look took there is at least until the next: a quarter of a core, at most."""
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
_TAKE_OVER = """
if redis.call('EXISTS', KEYS[1]) == 1 then return '' end
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then return holder end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""
_GIVE_BACK = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


class RedisEngine:
    """See `db.fleet.contract.Engine`.

    Args:
        link: the way there.
        token: this replica's.
        wait_replicas: how many replicas of a server are to have what is appended.
    """

    def __init__(self, link: RedisLink, token: str, *, wait_replicas: int = 0) -> None:
        self.token = token
        self.health = link.health
        self.budgets: Budgets = RedisBudgets(link, token)
        self.claims: SharedClaims = RedisClaims(link)
        self._link = link
        self._client = link.client
        self._lease = link.script(_LEASE)
        self._take_over = link.script(_TAKE_OVER)
        self._give_back = link.script(_GIVE_BACK)
        self._answers: dict[str, asyncio.Future[str]] = {}
        self._nudged = asyncio.Event()
        self._wait_replicas = wait_replicas
        self._mending = RedisMending(link, token)
        self._other_versions: set[int] = set()
        self._rings = 0
        self._bell = "0"

    async def start(self) -> None:
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._link.call(self._client.ping())
        except (FleetUnavailable, TimeoutError):
            pass

    async def close(self) -> None:
        await self._link.close()

    # --- who is there -----------------------------------------------------------------------

    async def join(self, name: str, seconds: float) -> str:
        milliseconds = round(seconds * 1000)
        told = json.dumps({"name": name, "version": VERSION})
        commands: list[Told] = [
            ("SET", (key_of("alive", self.token), name, "PX", milliseconds)),
            ("HSET", (REPLICAS, self.token, told)),
            ("EXPIRE", (REPLICAS, round(_KEEP_SECONDS))),
        ]
        await self._link.all_of(commands)
        return text_of(await self._lease([key_of("lease", name)], [self.token, milliseconds]))

    async def leave(self, name: str) -> None:
        await self._give_back([key_of("lease", name)], [self.token])
        await self._link.call(self._client.delete(key_of("alive", self.token)))
        if not await self.left_by(self.token):
            await self._link.call(self._client.hdel(REPLICAS, self.token))

    async def replicas(self) -> Sequence[Replica]:
        told = await self._link.call(self._client.hgetall(REPLICAS))
        known = [(text_of(token), json.loads(value)) for token, value in told.items()]
        keys = [key_of("alive", token, each["version"]) for token, each in known]
        commands: list[Told] = [("PTTL", (key,)) for key in keys]
        left = {
            arguments[0]: max(0, _checked(result)) / 1000  # below 0: there is no such key
            for (_, arguments), result in await self._link.pipelined(commands)
        }
        found = [
            Replica(each["name"], token, each["version"], left[key])
            for key, (token, each) in zip(keys, known, strict=True)
        ]
        self._other_versions = {each.version for each in found} - {VERSION}
        return found

    async def take_over(self, dead: Replica, seconds: float) -> bool:
        if dead.version != VERSION:
            return False
        keys = [key_of(kind, dead.token) for kind in ("alive", "adopt")]
        adopter = await self._take_over(keys, [self.token, round(seconds * 1000)])
        return text_of(adopter) == self.token

    async def bury(self, dead: Replica) -> None:
        await self._link.call(self._client.hdel(REPLICAS, dead.token))
        await self._link.call(self._client.delete(key_of("asked", dead.token)))

    # --- what runs --------------------------------------------------------------------------

    async def append(self, entries: Sequence[Entry], runs: Sequence[Run] = ()) -> Appended:
        commands: list[Told] = []
        seconds = round(_KEEP_SECONDS)
        for run in runs:
            told = json.dumps([run.owner, run.replica, run.token])
            under_way, owned = key_of("runs", run.token), owner_key("owner", run.owner)
            whose = json.dumps([run.replica, run.token])
            commands += (
                ("SET", (key_of("run", run.completion_id), told, "EX", seconds)),
                ("HSET", (under_way, run.completion_id, run.owner)),
                ("EXPIRE", (under_way, seconds)),
                ("HSET", (owned, run.completion_id, whose)),
                ("EXPIRE", (owned, seconds)),
            )
        for entry in entries:
            key = key_of("log", entry.completion_id)
            added = (f"1-{entry.number}", "c", entry.count, "l", entry.lines)
            where = (key, "NOMKSTREAM") if entry.number else (key,)
            commands.append(("XADD", (*where, *added)))
            if entry.number == 0:
                commands.append(("EXPIRE", (key, seconds)))
        lost: set[str] = set()
        refused: dict[tuple[str, str], Refused] = {}
        for (name, arguments), result in await self._link.pipelined(commands, self._wait_replicas):
            if name == "XADD" and result is None:
                lost.add(name_in(arguments[0]))
            elif name == "XADD" and isinstance(result, Refused):
                refused[arguments[0], arguments[-5]] = result
            else:
                _checked(result)
        if lost:
            self._mending.note_loss()
        return Appended(lost, await self._fenced(refused) if refused else ())

    async def _fenced(self, refused: Mapping[tuple[str, str], Refused]) -> set[str]:
        """Of completions with entries that were refused those whose logs are closed. Entries that are
        there already are fine. Raises FleetUnavailable if one was refused for another reason.

        Args:
            refused: by their logs' keys, and their ids.
        """
        looks: list[Told] = []
        for key, entry_id in refused:
            looks += (("XRANGE", (key, each, each)) for each in (entry_id, CLOSING_ID))
        there = {
            arguments[:2]
            for (_, arguments), result in await self._link.pipelined(looks)
            if _checked(result)
        }
        fenced: set[str] = set()
        for key, entry_id in refused:
            if (key, entry_id) in there:
                continue
            if (key, CLOSING_ID) not in there:
                raise refused[key, entry_id]
            fenced.add(name_in(key))
        return fenced

    async def fence(self, completion_ids: Sequence[str]) -> None:
        commands: list[Told] = []
        for completion_id in completion_ids:
            key = key_of("log", completion_id)
            commands += (
                ("XADD", (key, CLOSING_ID, "c", 0, "l", "")),
                ("EXPIRE", (key, round(_KEEP_SECONDS))),
            )
        refused: list[tuple[str, Refused]] = []
        for (_, arguments), result in await self._link.pipelined(commands):
            if isinstance(result, Refused):
                refused.append((arguments[0], result))
            else:
                _checked(result)
        for key, refusal in refused:
            if not await self._link.call(self._client.xrange(key, CLOSING_ID, CLOSING_ID)):
                raise refusal

    async def length(self, completion_id: str) -> int:
        key = key_of("log", completion_id)
        found = await self._link.call(self._client.xrevrange(key, "1", "-", count=1))
        entries = [entry_of(completion_id, *item) for item in found]
        return entries[0].number + entries[0].count if entries else 0

    async def lost_at(self) -> float:
        return await self._mending.lost_at()

    async def mend(self, completion_id: str) -> int:
        return await self._mending.mend(completion_id)

    async def find(self, completion_id: str) -> Run | None:
        for version in (VERSION, *self._other_versions):
            told = await self._link.call(self._client.get(key_of("run", completion_id, version)))
            if told is not None:
                owner, replica, token = json.loads(told)[:3]
                return Run(completion_id, owner, replica, token, version)
        return None

    async def left_by(self, token: str) -> Sequence[Run]:
        told = await self._link.call(self._client.hgetall(key_of("runs", token)))
        return [Run(text_of(name), text_of(owner), "", token) for name, owner in told.items()]

    async def runs_of(self, owner: str) -> Sequence[Run]:
        told = await self._link.call(self._client.hgetall(owner_key("owner", owner)))
        return [Run(text_of(name), owner, *json.loads(whose)) for name, whose in told.items()]

    async def finish(self, token: str, completion_ids: Sequence[str], seconds: float) -> None:
        commands: list[Told] = []
        for completion_id in completion_ids:
            for kind in ("log", "run"):
                key = key_of(kind, completion_id)
                commands.append(("PEXPIRE", (key, round(seconds * 1000))))
        if completion_ids:
            under_way = key_of("runs", token)
            owners = await self._link.call(self._client.hmget(under_way, list(completion_ids)))
            for completion_id, owner in zip(completion_ids, owners, strict=True):
                if owner is not None:
                    commands.append(("HDEL", (owner_key("owner", text_of(owner)), completion_id)))
            # Last: what is left here, if this fails, is finished again.
            commands.append(("HDEL", (under_way, *completion_ids)))
        await self._link.all_of(commands)

    async def is_under_way(self, run: Run) -> bool:
        under_way = key_of("runs", run.token, run.version)
        found = await self._link.call(self._client.hexists(under_way, run.completion_id))
        return bool(found)

    async def forget(self, completion_id: str) -> None:
        keys = (key_of("log", completion_id), key_of("run", completion_id))
        await self._link.call(self._client.delete(*keys))

    async def read(self, completion_id: str, after: int = -1) -> Sequence[Entry]:
        if after >= CLOSED:
            return []
        key = key_of("log", completion_id)
        begin = f"1-{after + 1}"
        found = await self._link.call(self._client.xrange(key, begin, "+", count=_READ_COUNT))
        return [entry_of(completion_id, *item) for item in found]

    async def wait(self, after: Mapping[str, int], seconds: float) -> Sequence[Entry]:
        if self._link.is_cluster:
            return await self._look(after, seconds)
        bell = key_of("bell", self.token)
        streams = {key_of("log", name): after_id(number) for name, number in after.items()}
        streams[bell] = self._bell
        block = round(min(seconds, LONGEST_BLOCK_SECONDS) * 1000)
        found = await self._link.call(
            self._link.blocking.xread(streams, count=_READ_COUNT, block=block)
        )
        entries = entries_of(found)
        for rung in (each for each in entries if each.completion_id == self.token):
            self._bell = f"1-{rung.number}"
        return [each for each in entries if each.completion_id != self.token]

    async def nudge(self) -> None:
        self._nudged.set()
        if not self._link.is_cluster:
            self._rings += 1
            ring = (key_of("bell", self.token), "MAXLEN", 1, f"1-{self._rings}", "c", 0, "l", "")
            await self._link.call(self._client.execute_command("XADD", *ring))
            await self._link.call(self._client.expire(ring[0], round(_ANSWER_SECONDS)))

    async def _look(self, after: Mapping[str, int], seconds: float) -> Sequence[Entry]:
        """The same in a cluster."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while True:
            looked_at = loop.time()
            commands: list[Told] = []
            for name, number in after.items():
                read = ("COUNT", _READ_COUNT, "STREAMS", key_of("log", name), after_id(number))
                commands.append(("XREAD", read))
            found: list[Entry] = []
            for result in await self._link.all_of(commands):
                found += entries_of(result)
            if found or loop.time() >= until or self._nudged.is_set():
                self._nudged.clear()
                return found
            await asyncio.sleep(max(_LOOK_SECONDS, _LOOK_SHARE * (loop.time() - looked_at)))

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
        block = max(min(seconds, LONGEST_BLOCK_SECONDS), 0.01)
        found = await self._link.call(
            self._link.blocking.blpop([key_of("asked", self.token)], block)
        )
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
        await self._link.call(self._client.rpush(key, told))
        await self._link.call(self._client.expire(key, round(_ANSWER_SECONDS)))


def _checked(result: Any) -> Any:
    """The result. Raises FleetUnavailable if it is an error."""
    if isinstance(result, FleetUnavailable):
        raise result
    return result
