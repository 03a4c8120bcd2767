"""Makes the SERVER span of each request for an answer: a completion's, and that of whoever reads one.

Other calls get none. A completion's span has an id that its own id tells, so that whoever reads it
later, in any process, can link to it. Never here: what becomes of a completion (`completions`).
"""

import re
import time
from collections.abc import Callable
from contextvars import ContextVar

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from service.edge.errors import failure_of, status_of
from service.telemetry import (
    COMPLETION_ID,
    FIRST_TRACE_ID,
    REPLAYED,
    REQUEST_ID,
    TRACE,
    Trace,
)
from service.tracing.spans import Kind, Span, Value, cut
from statemachine import SessionRecord, State

ASKING_PATH = "/v1/chat/completions"
READING_ROUTE = "/v1/chat/completions/{completion_id}"
_ID = re.compile(r"chatcmpl-[0-9a-f]{8}([0-9a-f]{16})")
_NO_ID = "0" * 16
_HEX_ID = re.compile(r"[0-9a-f]{32}")
_DIGITS = re.compile(r"[0-9]{1,15}", re.ASCII)

Send = Callable[[Span], None]
IsSampled = Callable[[Trace, str], bool]


def span_id_of(completion_id: str) -> str | None:
    """The id of the SERVER span of the request that asked for this; None if the id isn't one of ours."""
    found = _ID.fullmatch(completion_id)
    return None if found is None or found[1] == _NO_ID else found[1]


class RequestSpan:
    """A request's SERVER span while it is open. It ends when the request has been answered and the
    completion that it began, if it did, is over.

    Attributes:
        span_id: of this span; changes once, before anybody is told of it.
    """

    __slots__ = (
        "_attributes",
        "_is_error",
        "_is_handled",
        "_left_at",
        "_links",
        "_name",
        "_runs",
        "_send",
        "_started_ns",
        "span_id",
        "trace",
    )

    def __init__(self, name: str, trace: Trace, attributes: dict[str, Value], send: Send) -> None:
        self.trace = trace
        self.span_id = trace.span_id
        self._name = name
        self._attributes = attributes
        self._send = send
        self._started_ns = time.time_ns()
        self._links: tuple[tuple[str, str], ...] = ()
        self._left_at: float | None = None
        self._is_error = self._is_handled = self._runs = False

    def begin(self, completion_id: str) -> None:
        """A completion began."""
        self._runs = True
        self.span_id = span_id_of(completion_id) or self.span_id

    def note_end(self, record: SessionRecord) -> None:
        """It ended like this."""
        attributes, failure = self._attributes, record.failure
        attributes["verbatim.state"] = record.state.value
        if failure is not None:
            attributes["error.type"] = failure.code
        self._is_error = record.state is State.FAILED
        self._left_at = record.client_left_at

    def close(self) -> None:
        """It is over."""
        self._runs = False
        self._end_if_over()

    def note_handled(self, request: web.Request, status: int | None, code: str | None) -> None:
        """The request was answered with this status, or its client has gone (None).

        Args:
            code: of the error that it was answered with instead of a completion.
        """
        attributes = self._attributes
        if status is not None:
            attributes["http.response.status_code"] = status
            if status >= 500:
                self._is_error = True
                attributes.setdefault("error.type", code or str(status))
            elif status >= 400:
                self._is_error = False  # the client's mistake is no failure of a server's span
                if code is not None:
                    attributes.setdefault("error.type", code)
        completion_id = request.get(COMPLETION_ID)
        if completion_id is not None:
            attributes["verbatim.completion_id"] = completion_id
            if (first := request.get(FIRST_TRACE_ID)) is not None:
                self._link(first, completion_id)
            if REPLAYED in request:
                attributes["verbatim.replayed"] = True
        self._is_handled = True
        self._end_if_over()

    def _link(self, first_trace_id: str, completion_id: str) -> None:
        span_id = span_id_of(completion_id)
        if span_id is not None and _HEX_ID.fullmatch(first_trace_id):
            self._links = ((first_trace_id, span_id),)

    def _end_if_over(self) -> None:
        if self._runs or not self._is_handled:
            return
        trace, left_at = self.trace, self._left_at
        self._send(
            Span(
                trace.trace_id,
                self.span_id,
                trace.parent_id,
                self._name,
                Kind.SERVER,
                self._started_ns,
                time.time_ns(),
                self._attributes,
                self._is_error,
                (("client_left", int(left_at * 1e9)),) if left_at is not None else (),
                self._links,
                trace.parent_id is not None,
            )
        )


CURRENT: ContextVar[RequestSpan | None] = ContextVar("request_span", default=None)
"""The span of the request that is being handled; requests of one connection share a context."""


class Requests:
    """The middleware, which belongs inside the one that renders errors.

    Args:
        is_sampled: asked once for each request; what it says holds for all spans of the trace here.
        send: takes each span that has ended.
        is_from_sibling: whether another worker sent a request on.
    """

    def __init__(
        self, is_sampled: IsSampled, send: Send, is_from_sibling: Callable[[web.Request], bool]
    ) -> None:
        self._is_sampled = is_sampled
        self._send = send
        self._is_from_sibling = is_from_sibling

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Make a span of a request for an answer; hand any other on."""
        route = _route_of(request)
        if route is None:
            return await handler(request)
        trace, name = request[TRACE], f"{request.method} {route}"
        is_sampled = self._is_sampled(trace, name)
        flags = "01" if is_sampled else "00"
        trace = Trace(trace.trace_id, trace.span_id, flags, trace.parent_id, is_sampled)
        request[TRACE] = trace
        if not is_sampled:
            CURRENT.set(None)
            return await handler(request)
        span = RequestSpan(name, trace, _attributes_of(request, route), self._send)
        CURRENT.set(span)
        return await self._handle(request, handler, span)

    async def _handle(
        self, request: web.Request, handler: Handler, span: RequestSpan
    ) -> web.StreamResponse:
        status: int | None = None
        code: str | None = None
        try:
            response = await handler(request)
            status = response.status
            return response
        except Exception as error:
            failure = failure_of(error, request)
            status, code = status_of(failure), failure.code
            raise
        finally:
            CURRENT.set(None)  # or an idle connection would keep it
            # A worker is asked what it doesn't have by each of its siblings.
            if status != web.HTTPNotFound.status_code or not self._is_from_sibling(request):
                span.note_handled(request, status, code)


def _route_of(request: web.Request) -> str | None:
    """The route of a request for an answer; None for any other."""
    path = request.path
    if request.method == hdrs.METH_POST:
        return ASKING_PATH if path == ASKING_PATH else None
    if request.method != hdrs.METH_GET or not path.startswith(ASKING_PATH + "/"):
        return None
    if request.query.get("stream", "").lower() != "true" or "/" in path[len(ASKING_PATH) + 1 :]:
        return None
    return READING_ROUTE


def _attributes_of(request: web.Request, route: str) -> dict[str, Value]:
    attributes: dict[str, Value] = {
        "http.request.method": request.method,
        "http.route": route,
        "url.path": cut(request.path),
        "url.scheme": request.scheme,
        "verbatim.request_id": request[REQUEST_ID],
    }
    host, _, port = request.host.rpartition(":")
    if host and port.isascii() and port.isdigit() and len(port) < 6:
        attributes["server.address"], attributes["server.port"] = cut(host), int(port)
    else:
        attributes["server.address"] = cut(request.host)
    if agent := request.headers.get(hdrs.USER_AGENT):
        attributes["user_agent.original"] = cut(agent)
    if route is READING_ROUTE:
        position: str = request.query.get("starting_after", "")
        position = position or request.headers.get("Last-Event-ID", "0")
        if _DIGITS.fullmatch(position):
            attributes["verbatim.starting_after"] = int(position)
    return attributes
