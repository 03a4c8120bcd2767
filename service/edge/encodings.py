"""Refuses requests whose body is packed, before a byte of it is read. Unpacks nothing, ever."""

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from service.edge.errors import ApiError
from statemachine import Failure

_PLAIN = ("", "identity")
_LONGEST_SHOWN = 100


@web.middleware
async def refuse_packed(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Pass requests on whose body is as it is, and refuse all others.

    Raises:
        ApiError: `unsupported_encoding` (415), for a `Content-Encoding` other than `identity` and a
            `Transfer-Encoding` other than `chunked`, whether or not there is a body.
    """
    headers = request.headers
    if hdrs.CONTENT_ENCODING in headers:
        for coding in ",".join(headers.getall(hdrs.CONTENT_ENCODING)).split(","):
            if coding.strip().lower() not in _PLAIN:
                raise _refusal(hdrs.CONTENT_ENCODING, coding.strip())
    if hdrs.TRANSFER_ENCODING in headers:
        coding = headers[hdrs.TRANSFER_ENCODING].strip()
        if coding.lower() != "chunked":
            raise _refusal(hdrs.TRANSFER_ENCODING, coding)
    return await handler(request)


def _refusal(header: str, coding: str) -> ApiError:
    message = (
        f"Requests are taken as they are, not packed: {header} {coding[:_LONGEST_SHOWN]!r} is not "
        "supported. Please send the body without it."
    )
    return ApiError(Failure("unsupported_encoding", message, type="invalid_request_error"))
