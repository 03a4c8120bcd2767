"""The engine's claims, on Redis and Valkey: `RedisClaims`.

A claim is a hash of its own, which expires. Whether it gives way is decided in one script, so that of all
who take a key at once one gets it.
"""

from collections.abc import Sequence
from typing import Any

from db.claims import Claim
from db.fleet.keys import key_of, text_of
from db.fleet.redis_link import RedisLink, Told

_FIELDS = ("body", "id", "holder", "at", "token")

_TAKE = """
local held = redis.call('HMGET', KEYS[1], 'body', 'id', 'holder', 'at', 'token')
local id, at = held[2], tonumber(held[4] or 0)
if id and id ~= ARGV[1] and at > tonumber(ARGV[2]) then return held end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'body', ARGV[4], 'id', ARGV[5], 'holder', ARGV[6], 'at', ARGV[7],
  'token', ARGV[8])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return redis.call('HMGET', KEYS[1], 'body', 'id', 'holder', 'at', 'token')
"""
_RELEASE = """
if redis.call('HGET', KEYS[1], 'id') == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 0
"""
_MOST_AT_ONCE = 500
_KNOWN_SECONDS = 86_400


class RedisClaims:
    """See `db.fleet.claims.SharedClaims`.

    Args:
        link: the way there.
    """

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._take = link.script(_TAKE)
        self._release = link.script(_RELEASE)

    async def take(
        self, claim: Claim, *, since: float, keep_seconds: float, instead_of: str | None = None
    ) -> Claim:
        arguments = [instead_of or "", since, *_kept(claim, keep_seconds)]
        held = await self._take([_key(claim.key)], arguments)
        found = _claim(claim.key, held)
        assert found is not None
        return found

    async def find(self, key: bytes, *, since: float) -> Claim | None:
        held = await self._link.call(self._link.client.hmget(_key(key), _FIELDS))
        found = _claim(key, held)
        return None if found is None or found.is_expired(since) else found

    async def release(self, claim: Claim) -> None:
        await self._release([_key(claim.key)], [claim.completion_id])

    async def tell_again(self, claims: Sequence[Claim], keep_seconds: float) -> None:
        for start in range(0, len(claims), _MOST_AT_ONCE):
            commands: list[Told] = [
                ("EVAL", (_TAKE, 1, _key(claim.key), "", 0, *_kept(claim, keep_seconds)))
                for claim in claims[start : start + _MOST_AT_ONCE]
            ]
            await self._link.all_of(commands)

    async def know(self, token: str) -> bool:
        call = self._link.client.set(key_of("knows", token), "1", ex=_KNOWN_SECONDS, get=True)
        return await self._link.call(call) is not None


def _key(key: bytes) -> str:
    return key_of("claim", key.hex())


def _kept(claim: Claim, keep_seconds: float) -> tuple[Any, ...]:
    milliseconds = max(1, round(keep_seconds * 1000))
    return (
        milliseconds,
        claim.body,
        claim.completion_id,
        claim.holder,
        repr(claim.claimed_at),
        claim.token,
    )


def _claim(key: bytes, held: Any) -> Claim | None:
    body, completion_id, holder, claimed_at, token = held
    if completion_id is None:
        return None
    return Claim(
        key,
        body,
        text_of(completion_id),
        text_of(holder),
        float(claimed_at),
        text_of(token),
    )
