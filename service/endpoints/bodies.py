"""Reads a request's body and has it parsed: a long one beside the event loop. Never here: how."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from aiohttp import web

from service.edge.connections import read_body

_T = TypeVar("_T")

LONG_BODY_BYTES = 256 * 1024
"""From here on parsing may take so many milliseconds that every stream would notice."""


async def parsed_body(
    request: web.Request, timeout_seconds: float, parse: Callable[[bytes], _T]
) -> tuple[_T, bytes]:
    """What `parse` makes of the request's body, and the body.

    Raises whatever `read_body` raises for the body, and `parse` for what is in it. Cancelling leaves
    a long body's parsing to end by itself.
    """
    body = await read_body(request, timeout_seconds)
    if len(body) < LONG_BODY_BYTES:
        return parse(body), body
    return await asyncio.to_thread(parse, body), body
