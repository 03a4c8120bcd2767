"""Who asks: from a request to the name of its caller. Called by the endpoints."""

from aiohttp import web

ANONYMOUS = "anonymous"
"""The owner of what is asked without a key."""


def owner_of(request: web.Request) -> str:
    """The name that owns whatever this request makes, and whose things alone it can see."""
    return ANONYMOUS
