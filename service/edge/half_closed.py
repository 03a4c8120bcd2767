"""Finds out whether a client that sends nothing more still reads, or has gone.

Either way its end of the connection comes as a FIN (RFC 9293, section 3.6), and its kernel tells the
two apart only when it is sent something: one that reads acknowledges it, one that has gone answers
with a reset. So a little is sent that says nothing. What becomes of the answer is decided elsewhere.
"""

import asyncio
import socket
from collections.abc import Callable

PROBE_AFTER_SECONDS = 0.1
"""Where no response has begun: an answer that is there by then needs no probe, and some clients don't
expect what they are probed with."""
_LOOKS_AFTER_SECONDS = (0.002, 0.01, 0.03, 0.05, 0.1, 0.2, 0.4, 1.0)
"""When the kernel is asked what became of the probe. A connection's round trip takes as long as that;
after the last look, the next write finds out."""
_TCP_INFO: int | None = getattr(socket, "TCP_INFO", None)
_STATE_BYTES = 1
_TCP_CLOSE = 7
"""The state that a reset leaves behind: Linux, `include/net/tcp_states.h`."""
_INTERNET = (socket.AF_INET, socket.AF_INET6)


def can_be_probed(transport: asyncio.Transport) -> bool:
    """True if this connection's kernel can say what became of it: TCP on Linux."""
    sock = transport.get_extra_info("socket")
    return _TCP_INFO is not None and sock is not None and sock.family in _INTERNET


class Probe:
    """The watch over one half-closed connection, from its FIN on. It ends by itself.

    Args:
        transport: the connection; it is aborted if its client has gone.
        nothing: returns what may be sent now and says nothing, or None if there is no such thing;
            then the client counts as gone.
        delay_seconds: when to send it.
    """

    __slots__ = ("_looks", "_nothing", "_transport")

    def __init__(
        self,
        transport: asyncio.Transport,
        nothing: Callable[[], bytes | None],
        delay_seconds: float,
    ) -> None:
        self._transport = transport
        self._nothing = nothing
        self._looks = iter(_LOOKS_AFTER_SECONDS)
        asyncio.get_running_loop().call_later(delay_seconds, self._send)

    def _send(self) -> None:
        if self._transport.is_closing():
            return
        nothing = self._nothing()
        if nothing is None:
            self._transport.abort()
            return
        self._transport.write(nothing)
        self._look_later()

    def _look_later(self) -> None:
        if (delay := next(self._looks, None)) is not None:
            asyncio.get_running_loop().call_later(delay, self._look)

    def _look(self) -> None:
        if self._transport.is_closing():
            return
        assert _TCP_INFO is not None  # or there were no probe
        sock = self._transport.get_extra_info("socket")
        (state,) = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _STATE_BYTES)
        if state == _TCP_CLOSE:
            self._transport.abort()
        else:
            self._look_later()
