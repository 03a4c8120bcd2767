"""Measures whether a client takes what is sent to it, by what its machine acknowledges.

Whether to wait for it any longer is decided in `service.edge.connections`.
"""

import asyncio
import socket
import struct

from service.edge.kernel import internet_socket, tcp_info

_TCP_NOTSENT_LOWAT: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", None)
_MOST_UNSENT_BYTES = 64 * 1024
"""What the kernel takes of a stream beyond what is on its way. Its own limit is megabytes, all of
which would be read from a backend, and kept, for a client that takes nothing."""
_INFO = struct.Struct("=24x I 92x Q 16x I")
"""Of Linux's `struct tcp_info`: packets that aren't acknowledged, bytes that are, bytes not sent."""


def bound_unsent(transport: asyncio.BaseTransport) -> None:
    """Have the kernel hold little that it can't send, so that waiting begins early."""
    sock = internet_socket(transport)
    if _TCP_NOTSENT_LOWAT is not None and sock is not None:
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _MOST_UNSENT_BYTES)


class Progress:
    """How long the client at the other end of a transport has taken nothing of what waits for it.

    On Linux that is what its kernel has not acknowledged: it acknowledges what it has room for, and
    makes room in steps when the client reads. Elsewhere, and on Unix sockets, it is what this
    process still holds. TCP_USER_TIMEOUT would count from the first byte that waits, however many
    others are taken meanwhile (Linux 6.18; test_slow_readers.py).
    """

    __slots__ = ("_acknowledged", "_stuck_since", "owes")

    def __init__(self) -> None:
        self.owes = False
        """Something waits for the client, or did when `stuck_seconds` last looked."""
        self._acknowledged = 0
        self._stuck_since: float | None = None

    def stuck_seconds(self, transport: asyncio.WriteTransport, now: float) -> float:
        """Look now; the seconds since the first of the looks in a row at which something waited and
        nothing had been taken. 0 if nothing waits. Never raises."""
        self.owes, acknowledged = _taken(transport)
        if not self.owes:
            self._stuck_since = None
            return 0.0
        if self._stuck_since is None or acknowledged != self._acknowledged:
            self._stuck_since = now
        self._acknowledged = acknowledged
        return now - self._stuck_since


def _taken(transport: asyncio.WriteTransport) -> tuple[bool, int]:
    """Whether anything waits for the client, and a number that changes whenever it takes some."""
    held: int = transport.get_write_buffer_size()
    try:
        info = tcp_info(transport, _INFO.size)
        if info is None:
            return held > 0, held
        packets, acknowledged, unsent = _INFO.unpack(info)
    except (OSError, struct.error):  # closed just before; a kernel older than 4.6
        return held > 0, held
    return held > 0 or packets > 0 or unsent > 0, acknowledged
