"""Asking the store in a request's name: what the request's end may not interrupt, and what the
client is told when it fails. Called by `service.endpoints.stored` and `service.endpoints.conversations`."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

from db.store import StoreUnavailable, UnknownCursor
from service.edge.errors import ApiError, invalid_request
from statemachine import Failure

log = structlog.get_logger(__name__)

_T = TypeVar("_T")

_UNAVAILABLE = Failure(
    "database_unavailable",
    "What is stored can't be reached now; please try again.",
    retry_after_seconds=1,
)
_under_way: set["asyncio.Task[Any]"] = set()
"""asyncio itself holds its tasks weakly."""


async def ask(call: Coroutine[Any, Any, _T]) -> _T:
    """What the store answers.

    The call runs in a task of its own: a client that leaves cancels its request, and a database
    call that is cancelled costs its connection. Cancelling this leaves the call running.

    Raises:
        ApiError: `database_unavailable` (503), or `invalid_request` for an unknown `after`.
    """
    task = asyncio.create_task(call, name="ask the store")
    _under_way.add(task)
    task.add_done_callback(_ended)
    try:
        return await asyncio.shield(task)
    except StoreUnavailable as error:
        log.warning("store not reached", reason=str(error))
        raise ApiError(_UNAVAILABLE) from None
    except UnknownCursor:
        message = "'after' must be the id of an item of this list, such as its last_id."
        raise invalid_request(message, "after") from None


def _ended(task: "asyncio.Task[Any]") -> None:
    _under_way.discard(task)
    if not task.cancelled():
        task.exception()  # asyncio complains of an error that nobody waited for
