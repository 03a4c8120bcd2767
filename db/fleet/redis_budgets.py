"""What callers may use over all replicas, on Redis and Valkey: `RedisBudgets`. One script, on the server's
clock.

An owner's keys are of one slot, and each lives for a limited time: an amount that is full again is the same
as none at all.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from db.fleet.budgets import Amounts, Standing, Used
from db.fleet.contract import FleetUnavailable
from db.fleet.keys import owner_key, text_of
from db.fleet.redis_link import RedisLink, Told

_STREAMS_KEPT_SECONDS = 3600
"""How long an owner's streams are known to the server, and what each replica has charged. Each stream has a
lease of its own, which is shorter."""

_SCRIPT = """
local clock = redis.call('TIME')
-- since 2026, as a double has no microseconds for longer times
local now = clock[1] - 1767225600 + clock[2] / 1e6
local told = {} -- in one argument, as the client takes its time for each
for part in ARGV[1]:gmatch('%S+') do told[#told + 1] = part end
local requests, tokens, streams = tonumber(told[1]), tonumber(told[2]), tonumber(told[3])
local wants_request, lease, stream = told[4] == '1', told[5], ARGV[2]
local keep = told[10]

local kept = redis.call('HMGET', KEYS[1], 'at', 'r', 'rn', 't', 'tn')
local at = tonumber(kept[1] or now)
local is_changed = at > now -- a clock that was set back takes the amounts along
at = math.max(at, now)
local function full_in(full_at, had, has)
  if not has or full_at == false or had == 'none' then return 0 end
  return math.max(0, full_at - at) * had / has
end
local r, t = full_in(kept[2], kept[3], requests), full_in(kept[4], kept[5], tokens)

local function take(left, count, has)
  return has and left + count * 60 / has or 0
end
local seen = redis.call('HMGET', KEYS[3], 'r', 't')
local r_known = math.max(tonumber(seen[1] or 0), tonumber(told[6]))
local t_known = math.max(tonumber(seen[2] or 0), tonumber(told[8]))
local r_sum, t_sum = math.max(r_known, tonumber(told[7])), math.max(t_known, tonumber(told[9]))
if r_sum > r_known or t_sum > t_known then
  r, t = take(r, r_sum - r_known, requests), take(t, t_sum - t_known, tokens)
  is_changed = true
  redis.call('HSET', KEYS[3], 'r', r_sum, 't', t_sum)
  redis.call('EXPIRE', KEYS[3], keep)
end
for i = 3, #ARGV do redis.call('ZREM', KEYS[2], ARGV[i]) end

local running, refusal = 0, ''
if streams then
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  running = redis.call('ZCARD', KEYS[2])
end
local function is_used_up(left, has) return has and left + 60 / has - 60 > 1e-6 end
if stream ~= '' and streams and redis.call('ZSCORE', KEYS[2], stream) then
  wants_request = false -- it was admitted, and the answer lost
elseif stream ~= '' then
  if streams and running >= streams then refusal = 'streams'
  elseif is_used_up(t, tokens) then refusal = 'tokens' end
end
if refusal == '' and wants_request and is_used_up(r, requests) then refusal = 'requests' end
if refusal == '' then
  if wants_request and requests then r, is_changed = take(r, 1, requests), true end
  if stream ~= '' and streams then
    if redis.call('ZADD', KEYS[2], now + lease, stream) == 1 then running = running + 1 end
    redis.call('EXPIRE', KEYS[2], keep)
  end
end
if is_changed or (kept[3] or 'none') ~= told[1] or (kept[5] or 'none') ~= told[2] then
  local digits = '%.17g'
  redis.call('HSET', KEYS[1], 'at', digits:format(now), 'r', digits:format(now + r), 'rn', told[1],
    't', digits:format(now + t), 'tn', told[2])
  redis.call('PEXPIRE', KEYS[1], math.ceil((math.max(r, t) + 60) * 1000))
end
return {refusal, running, ('%.17g'):format(r), ('%.17g'):format(t)}
"""
# What is settled alone goes by many owners at once, with the text: a cluster's pipeline refuses digests.

_SERVER_TIME = "return redis.call('TIME')"


class RedisBudgets:
    """See `Budgets`.

    Args:
        link: the way there.
        token: this replica's.
    """

    def __init__(self, link: RedisLink, token: str) -> None:
        self._link = link
        self._token = token
        self._script = link.script(_SCRIPT)
        self._time = link.script(_SERVER_TIME)

    async def admit(
        self,
        owner: str,
        amounts: Amounts,
        used: Used,
        *,
        request: bool = True,
        stream: str | None = None,
        lease_seconds: float = 60.0,
    ) -> Standing:
        arguments = _arguments(amounts, used, int(request), lease_seconds, stream or "")
        return _standing(await self._script(self._keys(owner), arguments))

    async def settle(self, accounts: Mapping[str, tuple[Amounts, Used]]) -> Mapping[str, Standing]:
        if len(accounts) == 1:
            ((owner, (amounts, used)),) = accounts.items()
            return {
                owner: _standing(await self._script(self._keys(owner), _arguments(amounts, used)))
            }
        commands: list[Told] = []
        for owner, (amounts, used) in accounts.items():
            keys, arguments = self._keys(owner), _arguments(amounts, used)
            commands.append(("EVAL", (_SCRIPT, len(keys), *keys, *arguments)))
        found: dict[str, Standing] = {}
        for (_, told), result in await self._link.pipelined(commands):
            if isinstance(result, FleetUnavailable):
                raise result
            found[told[2]] = _standing(result)
        return {owner: found[owner_key("limit", owner)] for owner in accounts}

    async def renew(self, streams: Mapping[str, Sequence[str]], lease_seconds: float) -> None:
        if not streams:
            return
        key = owner_key("streams", next(iter(streams)))
        seconds, microseconds = await self._time([key], [])
        until = int(seconds) - 1767225600 + int(microseconds) / 1e6 + lease_seconds
        commands: list[Told] = []
        for owner, names in streams.items():
            key = owner_key("streams", owner)
            scores = [part for name in names for part in (until, name)]
            commands.append(("ZADD", (key, *scores)))
            commands.append(("EXPIRE", (key, _STREAMS_KEPT_SECONDS)))
        await self._link.all_of(commands)

    def _keys(self, owner: str) -> tuple[str, ...]:
        charged = f"{owner_key('charged', owner)}:{self._token}"
        return owner_key("limit", owner), owner_key("streams", owner), charged


def _arguments(
    amounts: Amounts, used: Used, request: int = 0, lease_seconds: float = 0.0, stream: str = ""
) -> list[str]:
    limits = (amounts.requests, amounts.tokens, amounts.streams)
    requests, tokens, streams = ("none" if limit is None else limit for limit in limits)
    told = (
        f"{requests} {tokens} {streams} {request} {lease_seconds} {used.known_requests} "
        f"{used.requests} {used.known_tokens} {used.tokens} {_STREAMS_KEPT_SECONDS}"
    )
    return [told, stream, *used.ended]


def _standing(told: Any) -> Standing:
    refusal, streams, requests, tokens = told
    return Standing(text_of(refusal) or None, streams, float(requests), float(tokens))  # type: ignore[arg-type]
