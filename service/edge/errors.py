"""Renders every error as OpenAI's error body: the codes, their statuses, the middleware.

Handlers raise `ApiError`; no other file builds an error response.
"""

import math
from collections.abc import Callable, Mapping

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from service.wire import InvalidRequest, encode_json, error_body
from statemachine import Failure

log = structlog.get_logger(__name__)

ERROR_CODES: Mapping[str, int] = {
    # the status if the error comes before the 200 is sent
    "invalid_request": 400,
    "invalid_api_key": 401,
    "admin_key_required": 403,
    "host_not_allowed": 403,
    "origin_not_allowed": 403,
    "not_found": 404,
    "model_not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "body_too_large": 413,
    "unsupported_encoding": 415,
    "stopped": 409,
    "position_ahead": 409,
    "idempotency_pending": 409,
    "runs_elsewhere": 409,
    "position_expired": 410,
    "idempotency_mismatch": 422,
    "rate_limited": 429,
    "too_many_streams": 429,
    "too_many_readers": 429,
    "headers_too_large": 431,
    "internal_error": 500,
    "answer_too_large": 502,
    "tool_failed": 502,
    "too_many_turns": 502,
    "upstream_error": 502,
    "upstream_incomplete": 502,
    "upstream_malformed": 502,
    "upstream_redirected": 502,
    "upstream_unreachable": 502,
    "adopted_elsewhere": 503,
    "answer_unavailable": 503,
    "database_unavailable": 503,
    "draining": 503,
    "fleet_unavailable": 503,
    "journal_full": 503,
    "tools_unavailable": 503,
    "upstream_unavailable": 503,
    "connect_timeout": 504,
    "first_token_timeout": 504,
    "idle_timeout": 504,
    "total_timeout": 504,
    # Of stored answers only: no client was left to be told.
    "client_left": 499,
    "process_died": 500,
    "journal_damaged": 500,
}
"""Code → HTTP status, of the service's own errors. An upstream's code is passed on as it is."""

_ERRORS = range(400, 600)
"""What a failure may leave as, whatever status an upstream gave it."""
_DONT_RETRY = frozenset(
    (
        "answer_too_large",
        "position_ahead",
        "stopped",
        "too_many_turns",
        "tool_failed",
        "total_timeout",
    )
)
"""The SDKs retry on 408, 409, 429 and from 500; for these codes that would do harm."""


class ApiError(Exception):
    """An answer other than 200. Clients see the failure's message as it is."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def invalid_request(message: str, param: str | None = None) -> ApiError:
    """A 400, naming the parameter at fault."""
    return ApiError(Failure("invalid_request", message, type="invalid_request_error", param=param))


def status_of(failure: Failure) -> int:
    """The HTTP status that a failure leaves with."""
    status = failure.status
    return ERROR_CODES[failure.code] if status is None or status not in _ERRORS else status


def error_response(failure: Failure) -> web.Response:
    """The response for a failure: its status, its body, and the headers that the SDKs obey."""
    status = status_of(failure)
    response = web.Response(
        status=status, body=encode_json(error_body(failure)), content_type="application/json"
    )
    wait = failure.retry_after_seconds
    if wait is not None and math.isfinite(wait):
        response.headers["Retry-After"] = str(max(0, round(wait)))
    if failure.code == "invalid_api_key":
        response.headers["WWW-Authenticate"] = "Bearer"  # RFC 9110, section 11.6.1
    if failure.code == "unsupported_encoding":
        response.headers[hdrs.ACCEPT_ENCODING] = "identity"  # RFC 9110, section 15.5.16
    should_retry = False if failure.code in _DONT_RETRY else failure.should_retry
    if should_retry is not None:
        response.headers["x-should-retry"] = "true" if should_retry else "false"
    return response


Check = Callable[[web.Request], None]
"""Raises ApiError for a request that is to be refused."""


def refusing(*checks: Check) -> Middleware:
    """The middleware that passes on what all checks let pass. One for all of them, as each costs every
    request a coroutine."""

    @web.middleware
    async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
        for check in checks:
            check(request)
        return await handler(request)

    return refuse


def rendering(note: Callable[[str], None]) -> Middleware:
    """The middleware that renders whatever a handler raises. A bug becomes a 500 that tells nothing about
    it.

    Args:
        note: told the code of each. Must not raise.
    """

    @web.middleware
    async def render(request: web.Request, handler: Handler) -> web.StreamResponse:
        headers: dict[str, str] = {}
        try:
            return await handler(request)
        except (ApiError, InvalidRequest) as error:
            failure = failure_of(error, request)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            failure = failure_of(error, request)
            if hdrs.ALLOW in error.headers:
                headers = {hdrs.ALLOW: error.headers[hdrs.ALLOW]}  # RFC 9110, section 15.5.6
        except Exception as error:
            log.exception("request failed", method=request.method, path=request.path)
            failure = failure_of(error, request)
        note(failure.code)
        response = error_response(failure)
        response.headers.update(headers)
        return response

    return render


def _ignore(_code: str) -> None:
    pass


errors_middleware = rendering(_ignore)
"""The same, for who counts nothing."""


def failure_of(error: Exception, request: web.Request) -> Failure:
    """What a handler's exception is rendered as."""
    match error:
        case ApiError():
            return error.failure
        case InvalidRequest():
            return invalid_request(error.message, error.param).failure
        case web.HTTPException():
            return _http_failure(error, request)
    message = "The service made a mistake; the log has the details under this request's id."
    return Failure("internal_error", message)


def _http_failure(error: web.HTTPException, request: web.Request) -> Failure:
    """The failure for one of aiohttp's refusals: no such route, wrong method, body too large."""
    codes = {
        404: "not_found",
        405: "method_not_allowed",
        408: "request_timeout",
        413: "body_too_large",
    }
    match error:
        case web.HTTPNotFound():
            message = f"There is nothing at {request.method} {request.path}."
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            message = f"{request.path} does not take {request.method}; it takes {allowed}."
        case web.HTTPRequestEntityTooLarge():
            message = (
                "The request's body is larger than this service takes (server.max_body_bytes)."
            )
        case _:
            message = error.reason
    return Failure(
        codes.get(error.status, "invalid_request"),
        message,
        type="invalid_request_error",
        status=error.status,
    )
