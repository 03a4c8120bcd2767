"""Notices what the engine on Redis may have lost, and what is missing in a log: `RedisMending`.

1. Who is asked has an id of its own from each start on, and one from each time that it became the master.
   If one of them is another than at the last look, what was acknowledged may be gone, without any error:
   a failover that Sentinel was told to make took ten seconds of entries (Redis 6.2 to 8.2).
2. A key of this replica's is gone when the engine was emptied. In a cluster that tells of one node; another
   that is emptied without a restart is noticed once a log isn't there that goes on.
3. After a failover a log may have lost its tail and gone on all the same, since a stream takes every id that
   is above its last one. Such a log is deleted, in one step with finding it out.

Never here: sending anything again.
"""

import asyncio
import time
from collections.abc import Mapping

from db.fleet.keys import key_of
from db.fleet.redis_link import RedisLink

_KEEP_SECONDS = 86_400

# A log that another replica has closed has an id beyond 1-N, and stays as it is.
_MEND = """
local at = 0
while true do
    local found = redis.call('XRANGE', KEYS[1], '1-' .. at, '+', 'COUNT', 64)
    if #found == 0 then return at end
    for _, entry in ipairs(found) do
        local ms, number = entry[1]:match('^(%d+)-(%d+)$')
        if ms ~= '1' then return at end
        if tonumber(number) ~= at then
            local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
            if last[1]:sub(1, 2) ~= '1-' then return at end
            redis.call('DEL', KEYS[1])
            return 0
        end
        for i = 1, #entry[2], 2 do
            if entry[2][i] == 'c' then at = at + tonumber(entry[2][i + 1]) end
        end
    end
end
"""


class RedisMending:
    """See `Engine.lost_at` and `Engine.mend`.

    Args:
        link: the way there.
        token: this replica's.
    """

    def __init__(self, link: RedisLink, token: str) -> None:
        self._link = link
        self._mark = key_of("mark", token)
        self._mend = link.script(_MEND)
        self._marks: Mapping[str, str] | None = None
        self._lost_at = self._looked_at = float("-inf")
        self._looking = asyncio.Lock()

    def note_loss(self) -> None:
        """Something is gone."""
        self._lost_at = time.monotonic()

    async def lost_at(self) -> float:
        """See `Engine.lost_at`. Those who ask while it is being looked share the next look."""
        asked_at = time.monotonic()
        async with self._looking:
            if self._looked_at < asked_at:
                began_at = time.monotonic()
                if await self._has_changed():
                    self.note_loss()
                self._looked_at = began_at
        return self._lost_at

    async def _has_changed(self) -> bool:
        """Since the last call."""
        before, client = self._marks, self._link.client
        marks = await self._link.marks()
        is_there = await self._link.call(client.getex(self._mark, ex=_KEEP_SECONDS)) is not None
        # Not before: where there is no room, this is refused.
        if not is_there:
            await self._link.call(client.set(self._mark, "1", ex=_KEEP_SECONDS))
        self._marks = {**(before or {}), **marks}
        if before is None:
            return False
        return not is_there or any(before.get(name) != mark for name, mark in marks.items())

    async def mend(self, completion_id: str) -> int:
        """See `Engine.mend`."""
        return int(await self._mend([key_of("log", completion_id)], []))
