"""Answers browsers' CORS preflights and marks responses; off unless origins are listed.

aiohttp-cors isn't used: it serves registered routes only, and a page must be able to read a 404
and a 401 too.
"""

from collections.abc import Awaitable, Callable, Collection

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

_EXPOSED = ", ".join(
    ["x-request-id", "x-trace-id", "x-completion-id", "idempotency-replayed"]
    + ["retry-after", "x-should-retry"]
    + [f"x-ratelimit-{what}-requests" for what in ("limit", "remaining", "reset")]
    + [f"x-ratelimit-{what}-tokens" for what in ("limit", "remaining", "reset")]
)
_METHODS = "GET, POST, DELETE, OPTIONS"
_PREFLIGHT_SECONDS = "600"

PrepareSignal = Callable[[web.Request, web.StreamResponse], Awaitable[None]]


def cors(origins: Collection[str]) -> tuple[Middleware, PrepareSignal]:
    """The middleware that answers preflights, and the signal that marks every other response.

    Args:
        origins: allowed values of `Origin`; `*` among them allows any. Cookies are never allowed:
            keys travel in `Authorization`.
    """

    def allowed(request: web.Request) -> str | None:
        origin = request.headers.get(hdrs.ORIGIN)
        return origin if origin and ("*" in origins or origin in origins) else None

    @web.middleware
    async def answer_preflight(request: web.Request, handler: Handler) -> web.StreamResponse:
        wanted = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_METHOD)
        if request.method != hdrs.METH_OPTIONS or wanted is None or allowed(request) is None:
            return await handler(request)
        headers = {
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: _METHODS,
            hdrs.ACCESS_CONTROL_MAX_AGE: _PREFLIGHT_SECONDS,
        }
        if names := request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS):
            headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = names
        return web.Response(status=204, headers=headers)

    async def mark(request: web.Request, response: web.StreamResponse) -> None:
        if origins:
            response.headers[hdrs.VARY] = hdrs.ORIGIN
        if (origin := allowed(request)) is not None:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED

    return answer_preflight, mark
