"""Runs a store call for a request: shielded from the client's disconnect, store errors turned into
API errors. Never here: which call."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

from db.store import StoreUnavailable, UnknownCursor
from service.edge.errors import ApiError, invalid_request
from statemachine import Failure

log = structlog.get_logger(__name__)

_T = TypeVar("_T")

UNAVAILABLE = Failure(
    "database_unavailable",
    "What is stored can't be reached now; please try again.",
    retry_after_seconds=1,
)
_under_way: set["asyncio.Task[Any]"] = set()
"""Keeps the tasks alive: asyncio holds them weakly."""


def unknown_cursor() -> ApiError:
    """The 400 for an `after` that names no item of the list."""
    message = "'after' must be the id of an item of this list, such as its last_id."
    return invalid_request(message, "after")


async def ask(call: Coroutine[Any, Any, _T]) -> _T:
    """Await a call of the store, in a task of its own. Cancelling this leaves the call running: a
    client that leaves cancels its request, and a cancelled database call costs its connection.

    Raises:
        ApiError: `database_unavailable` (503), or `invalid_request` for an unknown `after`.
    """
    try:
        return await to_its_end(call)
    except StoreUnavailable as error:
        log.warning("store not reached", reason=str(error))
        raise ApiError(UNAVAILABLE) from None
    except UnknownCursor:
        raise unknown_cursor() from None


async def to_its_end(call: Coroutine[Any, Any, _T]) -> _T:
    """The same; raises what the call raises."""
    task = asyncio.create_task(call, name="ask the store")
    _under_way.add(task)
    task.add_done_callback(_ended)
    return await asyncio.shield(task)


def _ended(task: "asyncio.Task[Any]") -> None:
    _under_way.discard(task)
    if not task.cancelled():
        task.exception()  # or asyncio logs an error that nobody awaited
