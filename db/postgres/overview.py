"""Reads what whoever runs the service asks for: everybody's completions. No SQL here.

Never sees to connections or errors. Steps of a call see the rows of one moment, as in
`db.postgres.reading`.
"""

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from attrs import asdict

from db.overview import OVERVIEW_SECONDS, Found, Place, Sought, Stretch
from db.postgres import overview_sql, reading, sql
from db.postgres.reading import ask
from db.postgres.saving import Cursor
from db.rows.columns import readable
from db.store import CompletionView, ConversationView, Page, Paging, StoredMessage, TooSlow

_T = TypeVar("_T")
_GRACE_SECONDS = 0.5
"""For the server to give up by itself, which leaves its connection usable."""


class Overseeing:
    """The calls of `db.overview.Overview`: the base of `db.postgres.store.PostgresStore`.

    Args:
        most: how many of them may read at once, so that who looks on keeps no reader waiting.
    """

    def __init__(self, most: int) -> None:
        self._places = asyncio.Semaphore(most)

    async def list_all(self, sought: Sought, limit: int, after: Place | None = None) -> Stretch:
        """See `db.overview.Overview.list_all`."""
        return await self._oversee(lambda c: stretch(c, sought, limit, after))

    async def find_any(self, name: str, limit: int) -> Found:
        """See `db.overview.Overview.find_any`."""
        return await self._oversee(lambda c: found(c, name, limit))

    async def view_any(self, completion_id: str) -> CompletionView | None:
        """See `db.overview.Overview.view_any`."""
        return await self._oversee(lambda c: reading.view(c, None, completion_id))

    async def list_any_prompt(
        self, completion_id: str, paging: Paging
    ) -> Page[StoredMessage] | None:
        """See `db.overview.Overview.list_any_prompt`."""
        return await self._oversee(lambda c: reading.prompt(c, None, completion_id, paging))

    async def view_any_conversation(
        self, conversation_id: str, paging: Paging
    ) -> ConversationView | None:
        """See `db.overview.Overview.view_any_conversation`."""
        return await self._oversee(lambda c: reading.conversation(c, None, conversation_id, paging))

    async def _oversee(self, read: Callable[[Cursor], Awaitable[_T]]) -> _T:
        """Run this at one moment, no longer than an overview may take."""
        try:
            async with asyncio.timeout(OVERVIEW_SECONDS + _GRACE_SECONDS), self._places:
                return await self._read(lambda cursor: _by_index(cursor, read), OVERVIEW_SECONDS)
        except TimeoutError:
            raise TooSlow("What is stored can't be looked through in time") from None

    @abstractmethod
    async def _read(
        self, read: Callable[[Cursor], Awaitable[_T]], seconds: float | None = None
    ) -> _T:
        """Run this at one moment, each statement no longer than that. Raises the store's errors."""


async def _by_index(cursor: Cursor, read: Callable[[Cursor], Awaitable[_T]]) -> _T:
    await cursor.execute(overview_sql.PLANNER)
    return await read(cursor)


async def stretch(cursor: Cursor, sought: Sought, limit: int, after: Place | None) -> Stretch:
    """See `db.overview.Overview.list_all`."""
    values = _values(sought, limit + 1, after)
    lead = await _lead(cursor, sought, after, values)
    rows = await ask(cursor, overview_sql.page(lead, sought, after), **values)
    items = tuple(sql.completion_from(row) for row in rows[:limit])
    if len(rows) > limit:
        return Stretch(items, Place(items[-1].created_at, items[-1].completion_id))
    if len(overview_sql.filters_of(sought)) <= (lead != overview_sql.ALL):
        return Stretch(items, None)
    reached = await ask(cursor, overview_sql.reach(lead, sought, after), **values)
    return Stretch(items, Place(*reached[0]) if reached else None)


async def _lead(cursor: Cursor, sought: Sought, after: Place | None, values: dict[str, Any]) -> str:
    """The filter to read by: of several the one whose next rows reach back furthest, as it has the
    fewest."""
    leads = overview_sql.leads_of(sought)
    if len(leads) == 1 or leads[0] == "conversation_id":
        return leads[0]
    furthest, best = float("inf"), leads[0]
    for lead in leads:
        reached = await ask(cursor, overview_sql.reach(lead, sought, after), **values)
        if not reached:
            return lead
        if reached[0][0] < furthest:
            furthest, best = reached[0][0], lead
    return best


async def found(cursor: Cursor, name: str, limit: int) -> Found:
    """See `db.overview.Overview.find_any`."""
    values = {"name": readable(name), "limit": limit}
    rows = await ask(cursor, overview_sql.FIND, **values)
    conversations = await ask(cursor, overview_sql.FIND_CONVERSATION, **values)
    completions = tuple(sql.completion_from(row) for row in rows)
    return Found(completions, conversations[0][0] if conversations else None)


def _values(sought: Sought, limit: int, after: Place | None) -> dict[str, Any]:
    values = {
        name: readable(value) if isinstance(value, str) else value
        for name, value in asdict(sought).items()
    }
    return {
        **values,
        "state": sought.state and sought.state.value,
        "limit": limit,
        "at": after and after.created_at,
        "after": after and readable(after.completion_id),
    }
