"""Closes a connection whose request isn't wholly read, such that its client can read the answer.

To close it at once would have the kernel answer what still comes with a reset, at which the client
may lose an answer that it hasn't read yet (RFC 9112, section 9.6). So our end is closed first, and
what comes is thrown away unparsed, for a little while. What is answered is decided elsewhere.
"""

import asyncio

_LONGEST_SECONDS = 2.0
_MOST_BYTES = 16 * 1024 * 1024
"""Room for a client that sends all of a body that just misses the limit before it reads."""


class Parting:
    """The end of a connection, from the last byte of its last response on.

    Args:
        transport: what the response was written to. Its writing end is closed here, and its reading
            is resumed; whoever made this closes the rest.
    """

    __slots__ = ("_bytes_left", "_ended")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._bytes_left = _MOST_BYTES
        self._ended = asyncio.get_running_loop().create_future()
        if transport.is_closing():
            self.end()
        else:
            transport.write_eof()
            transport.resume_reading()  # flow control may have stopped it within the body

    def take(self, data: bytes) -> None:
        """Throw away what has come."""
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            self.end()

    def end(self) -> None:
        """Note that the client is gone, or has had its chance."""
        if not self._ended.done():
            self._ended.set_result(None)

    async def wait(self) -> None:
        """Wait until the client has closed its end, or too much came, or it took too long."""
        await asyncio.wait((self._ended,), timeout=_LONGEST_SECONDS)
