"""Decides how often a stream is pinged: as configured, as its caller's key says, or oftener if a header
asks for it."""

import re

from aiohttp import web

from service.callers.auth import owner_of
from service.edge.errors import invalid_request
from service.settings.config import Config

_HEADER = "X-Keep-Alive-Interval"
_SHORTEST_SECONDS = 1.0
"""That a header may ask for."""
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)


def keep_alive_interval(request: web.Request, config: Config) -> float:
    """The seconds of silence after which this request's stream is pinged.

    A header asks for shorter ones only, since the operator's suit what stands in front.

    Raises:
        ApiError: `invalid_request` (400), for a header that is no number of seconds.
    """
    seconds = config.sse.keep_alive_interval_seconds
    if config.auth.api_keys:
        seconds = _of_key(owner_of(request), config) or seconds
    asked = request.headers.get(_HEADER)
    if asked is None:
        return seconds
    return min(seconds, max(_read(asked), _SHORTEST_SECONDS))


def _of_key(owner: str, config: Config) -> float | None:
    for key in config.auth.api_keys:
        if key.name == owner:
            return key.keep_alive_interval_seconds
    return None


def _read(text: str) -> float:
    if not _SECONDS.fullmatch(text):
        raise invalid_request(f"The header {_HEADER} is to be a number of seconds.", _HEADER)
    return float(text)
