"""Binds the listening sockets: the API's address, and operators' own if they have one, for each worker.

Serves nothing, starts no process.
"""

import socket
import sys
from collections.abc import Sequence

from attrs import frozen

from service.settings.config import Config

BACKLOG = 1024
"""Connections that the kernel holds until they are accepted; a page's users may all come at once."""
HAS_SOCKETS_APIECE = sys.platform == "linux"
"""Elsewhere SO_REUSEPORT doesn't deal out connections, and workers share one socket."""


class CannotServe(Exception):
    """The service can't start. The message gives the reason and the remedy."""


@frozen
class Listeners:
    """The listening sockets of one process.

    Attributes:
        api: where the API is, and all else unless operators have an address of their own.
        operators: that address's.
    """

    api: socket.socket
    operators: socket.socket | None = None

    @property
    def all(self) -> Sequence[socket.socket]:
        """Both, or the one there is."""
        return (self.api,) if self.operators is None else (self.api, self.operators)

    def close(self) -> None:
        """Close them. Safe to call twice."""
        for listener in self.all:
            listener.close()


@frozen
class Places:
    """The addresses that were bound, host and port each; no port is 0.

    Attributes:
        api, operators: see `Listeners`.
    """

    api: tuple[str, int]
    operators: tuple[str, int] | None = None

    @classmethod
    def of(cls, listeners: Listeners) -> "Places":
        """Where these listen."""
        names: list[tuple[str, int]] = [each.getsockname()[:2] for each in listeners.all]
        return cls(*names)

    def bind(self) -> Listeners:
        """Further sockets there, beside those of the other workers. Raises CannotServe."""
        operators = self.operators and _bind(*self.operators, "admin.port", shared=True)
        return Listeners(_bind(*self.api, "server.port", shared=True), operators)


def bind(config: Config) -> Listeners:
    """The sockets of a service of one process; port 0 takes any free one.

    Raises:
        CannotServe: an address is taken, or isn't this machine's; or both have one port.
    """
    (listeners,) = bind_apiece(config, 1)
    return listeners


def bind_apiece(config: Config, count: int) -> list[Listeners]:
    """The sockets of each of `count` workers, all at the same addresses. Raises CannotServe."""
    server, admin = config.server, config.admin
    if admin.port is not None and admin.port == server.port != 0:
        raise CannotServe(
            f"admin.port and server.port are both {admin.port}. Choose another for one of them, or "
            "leave admin.port out: then the page and /metrics are where the API is."
        )
    api = _bind_each(server.host, server.port, "server.port", count)
    if admin.port is None:
        return [Listeners(each) for each in api]
    try:
        operators = _bind_each(admin.host, admin.port, "admin.port", count)
    except CannotServe:
        for each in api:
            each.close()
        raise
    return [Listeners(*pair) for pair in zip(api, operators, strict=True)]


def _bind_each(host: str, port: int, key: str, count: int) -> list[socket.socket]:
    first = _bind(host, port, key)  # not shared, so it fails if another service has the port
    if count == 1 or not HAS_SOCKETS_APIECE:
        return [first] * count
    port = first.getsockname()[1]
    first.close()
    return [_bind(host, port, key, shared=True) for _ in range(count)]


def _bind(host: str, port: int, key: str, *, shared: bool = False) -> socket.socket:
    """A listening socket. Raises CannotServe, which names the port's key.

    Args:
        shared: this is one of several sockets on the port; the kernel deals out the connections.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=shared)
    except OSError as error:
        flag = "--port, or " if key == "server.port" else ""
        raise CannotServe(
            f"Cannot listen on {host}:{port}: {error.strerror or error}. "
            f"Choose another with {flag}{key} in the configuration."
        ) from None
