"""Tells operators' paths from the API's, and keeps each at its own address if there are two.

Who may look there is decided elsewhere (`service.callers.admin`). A route for operators lies at a
path of which `of_operators` is true; nothing else makes it one.
"""

from aiohttp import web

from service.edge.errors import Check
from service.edge.other_sites import is_from_sibling

_API = "/v1/"
OPERATORS = frozenset(("metrics", "page"))
"""The first segments of operators' paths, beside `/` itself; the page's other paths are below `/page`."""


def of_operators(path: str) -> bool:
    """True of a path, such as `/metrics`, that belongs to whoever runs the service, and not to the API."""
    if path.startswith(_API):
        return False
    return path == "/" or (path[:1] == "/" and path.split("/", 2)[1] in OPERATORS)


class Addresses:
    """Where operators' paths are served.

    Attributes:
        operators_port: the port of operators' own address; None: they have none, or it isn't bound yet.
    """

    def __init__(self) -> None:
        self.operators_port: int | None = None

    def is_operators(self, request: web.Request) -> bool:
        """True of a request that came to operators' own address."""
        name = request.transport.get_extra_info("sockname") if request.transport else None
        return isinstance(name, tuple) and name[1] == self.operators_port


def apart(addresses: Addresses, open_paths: frozenset[str]) -> Check:
    """The check for a service with two addresses: each has nothing of the other's. It raises
    `web.HTTPNotFound`. A worker's own socket has everything.

    Args:
        open_paths: what is at both.
    """

    def check(request: web.Request) -> None:
        path = request.path
        if of_operators(path) == addresses.is_operators(request) or path in open_paths:
            return
        if not is_from_sibling(request):
            raise web.HTTPNotFound

    return check
