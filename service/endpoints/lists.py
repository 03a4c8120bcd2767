"""Turns a request's query into a page to ask for, and a page into OpenAI's list object.

Never here: what is listed. A misspelt filter would show what it should keep out, so an unknown
parameter is refused, not ignored.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from aiohttp import web
from attrs import frozen

from db.store import CompletionFilter, Page, Paging
from service.edge.errors import ApiError, invalid_request
from service.endpoints.asking import unknown_cursor
from service.wire import encode_json
from statemachine import Failure, State

_T = TypeVar("_T")

_METADATA = re.compile(r"metadata\[(.*)\]", re.DOTALL)
_LONGEST_SHOWN = 100


@frozen
class Limits:
    """How many items a page has by default, and at most."""

    default: int = 20
    most: int = 100


def paging_of(request: web.Request, limits: Limits = Limits()) -> Paging:
    """The page that a list's request asks for.

    Raises:
        ApiError: `invalid_request`, naming the parameter.
    """
    _check_parameters(request, ("after", "limit", "order"))
    return _paging(request, limits)


def filtered_paging_of(
    request: web.Request,
) -> tuple[CompletionFilter, Paging, State | None]:
    """The page and the filters that a request for the list of completions asks for, and the state that
    they name."""
    _check_parameters(request, ("after", "limit", "order", "model", "state"), _METADATA)
    metadata = {
        found[1]: value
        for name, value in request.query.items()
        if (found := _METADATA.fullmatch(name))
    }
    state = _state(request)
    ended = state if state is not None and state.is_final else None
    wanted = CompletionFilter(request.query.get("model"), metadata or None, ended)
    return wanted, _paging(request, Limits()), state


def _state(request: web.Request) -> State | None:
    given = request.query.get("state")
    if given is None:
        return None
    try:
        return State(given)
    except ValueError:
        known = ", ".join(state.value for state in State)
        message = f"'state' must be one of {known}, not {given[:_LONGEST_SHOWN]!r}."
        raise invalid_request(message, "state") from None


def page_of(items: Sequence[dict[str, Any]], paging: Paging) -> Page[dict[str, Any]]:
    """A page of items that are all at hand, in the order of lists.

    Raises:
        ApiError: `invalid_request` for an unknown `after`.
    """
    ordered = sorted(items, key=lambda item: (item["created"], item["id"]))
    if paging.descending:
        ordered.reverse()
    if paging.after is not None:
        ids = [item["id"] for item in ordered]
        if paging.after not in ids:
            raise unknown_cursor()
        ordered = ordered[ids.index(paging.after) + 1 :]
    return Page(tuple(ordered[: paging.limit]), len(ordered) > paging.limit)


def _check_parameters(
    request: web.Request, known: Iterable[str], pattern: re.Pattern[str] | None = None
) -> None:
    """Raises ApiError for a parameter that is unknown or given twice."""
    for name in request.query:
        shown = name[:_LONGEST_SHOWN]
        if name not in known and not (pattern is not None and pattern.fullmatch(name)):
            filters = ", metadata[key]" if pattern else ""
            message = f"Unknown parameter {shown!r}; known are {', '.join(known)}{filters}."
            raise invalid_request(message, shown)
        if len(request.query.getall(name)) > 1:
            raise invalid_request(f"'{shown}' is given more than once.", shown)


def _paging(request: web.Request, limits: Limits) -> Paging:
    limit = request.query.get("limit", str(limits.default))
    if not re.fullmatch(r"[0-9]{1,9}", limit) or not 1 <= int(limit) <= limits.most:
        shown = limit[:_LONGEST_SHOWN]
        message = f"'limit' must be a whole number from 1 to {limits.most}, not {shown!r}."
        raise invalid_request(message, "limit")
    order = request.query.get("order", "asc")
    if order not in ("asc", "desc"):
        shown = order[:_LONGEST_SHOWN]
        raise invalid_request(f"'order' must be 'asc' or 'desc', not {shown!r}.", "order")
    return Paging(int(limit), request.query.get("after") or None, order == "desc")


def list_object(page: Page[_T], shape: Callable[[_T], dict[str, Any]]) -> dict[str, Any]:
    """OpenAI's list object."""
    data: Sequence[dict[str, Any]] = [shape(item) for item in page.items]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else "",  # OpenAI's schema wants a string
        "last_id": data[-1]["id"] if data else "",
        "has_more": page.has_more,
    }


def json_response(value: Any) -> web.Response:
    """Any JSON value as a response, lone surrogates included."""
    return web.Response(body=encode_json(value), content_type="application/json")


def not_found(what: str, name: str, param: str) -> ApiError:
    """The 404 for an id that is unknown, another owner's, or hidden: the client can't tell which."""
    message = f"There is no {what} with the id {name[:_LONGEST_SHOWN]!r}."
    return ApiError(Failure("not_found", message, type="invalid_request_error", param=param))
