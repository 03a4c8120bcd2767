"""Asks the kernel about a client's connection. What follows from it is decided elsewhere."""

import asyncio
import socket
import sys

_INTERNET = (socket.AF_INET, socket.AF_INET6)
_TCP_INFO: int | None = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
"""Other systems have it too, with other fields."""


def internet_socket(transport: asyncio.BaseTransport) -> socket.socket | None:
    """The TCP socket of a connection; None of a Unix socket's."""
    sock: socket.socket | None = transport.get_extra_info("socket")
    return sock if sock is not None and sock.family in _INTERNET else None


def tells_of(transport: asyncio.BaseTransport) -> bool:
    """True if `tcp_info` has an answer for this connection: TCP on Linux."""
    return _TCP_INFO is not None and internet_socket(transport) is not None


def tcp_info(transport: asyncio.BaseTransport, size: int) -> bytes | None:
    """The first bytes of Linux's `struct tcp_info` of a connection; None if there is none.

    Raises OSError: it was closed just before.
    """
    sock = internet_socket(transport)
    if sock is None or _TCP_INFO is None:
        return None
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, size)
    except ValueError as error:  # uvloop's, of a descriptor that it has closed
        raise OSError(str(error)) from None
