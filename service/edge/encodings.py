"""Refuses requests whose body is packed, before a byte of it is read. Unpacks nothing, ever."""

from aiohttp import hdrs, web

from service.edge.errors import ApiError
from service.wire.codings import codings_in
from statemachine import Failure

_LONGEST_SHOWN = 100


def refuse_packed(request: web.Request) -> None:
    """Refuse every request whose body isn't as it is.

    Raises:
        ApiError: `unsupported_encoding` (415), for a `Content-Encoding` other than `identity` and a
            `Transfer-Encoding` other than `chunked`, whether or not there is a body.
    """
    headers = request.headers
    if hdrs.CONTENT_ENCODING in headers:
        for coding in codings_in(headers.getall(hdrs.CONTENT_ENCODING)):
            raise _refusal(hdrs.CONTENT_ENCODING, coding)
    if hdrs.TRANSFER_ENCODING in headers:
        coding = headers[hdrs.TRANSFER_ENCODING].strip()
        if coding.lower() != "chunked":
            raise _refusal(hdrs.TRANSFER_ENCODING, coding)


def _refusal(header: str, coding: str) -> ApiError:
    message = (
        f"Requests are taken as they are, not packed: {header} {coding[:_LONGEST_SHOWN]!r} is not "
        "supported. Please send the body without it."
    )
    return ApiError(Failure("unsupported_encoding", message, type="invalid_request_error"))
