"""Finds out whether a client that sends nothing more still reads, or has gone.

Either way its end of the connection comes as a FIN (RFC 9293, section 3.6), and its kernel tells the
two apart only when it is sent something: one that reads acknowledges it, one that has gone answers
with a reset. So a little is sent that says nothing. What becomes of the answer is decided elsewhere.
"""

import asyncio
from collections.abc import Callable

from service.edge.kernel import tcp_info

PROBE_AFTER_SECONDS = 0.1
"""Where no response has begun: an answer that is there by then needs no probe, and some clients don't
expect what they are probed with."""
_LOOKS_AFTER_SECONDS = (0.002, 0.01, 0.03, 0.05, 0.1, 0.2, 0.4, 1.0)
"""When the kernel is asked what became of the probe. A connection's round trip takes as long as that;
after the last look, the next write finds out."""
_STATE_BYTES = 1
_TCP_CLOSE = b"\x07"
"""The state that a reset leaves behind: Linux, `include/net/tcp_states.h`."""


class Probe:
    """The watch over one half-closed connection, from its FIN on. It ends by itself.

    Args:
        transport: the connection; it is aborted if its client has gone.
        nothing: returns what may be sent now and says nothing, or None if there is no such thing;
            then the client counts as gone.
        delay_seconds: when to send it.
        give: has it sent, in turn with what other clients cause.
    """

    __slots__ = ("_looks", "_nothing", "_transport")

    def __init__(
        self,
        transport: asyncio.Transport,
        nothing: Callable[[], bytes | None],
        delay_seconds: float,
        give: Callable[[Callable[[], None]], None],
    ) -> None:
        self._transport = transport
        self._nothing = nothing
        self._looks = iter(_LOOKS_AFTER_SECONDS)
        asyncio.get_running_loop().call_later(delay_seconds, give, self._send)

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
        try:
            is_gone = tcp_info(self._transport, _STATE_BYTES) == _TCP_CLOSE
        except OSError:  # closed just before
            return
        if is_gone:
            self._transport.abort()
        else:
            self._look_later()
