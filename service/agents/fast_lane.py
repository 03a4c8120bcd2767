"""The short way of an answer's bytes: whole HTTP chunks go to a listener before aiohttp parses them.

aiohttp takes a chunk through its parser, a stream reader, a future and a task's waking; that costs
more than all we do with it. While whoever reads the body waits, the reader is empty and the parser
stands between two HTTP chunks. Whole chunks that come then may be lifted out: to the parser the
body looks as if they hadn't been in it, and all else (heads, the end, errors, pooled connections,
back-pressure) stays aiohttp's.

The rules:

1. Only `Transfer-Encoding: chunked` bodies of a 200 without a content encoding; any other response
   goes aiohttp's way from its first byte.
2. The parser is always given whole HTTP chunks, and the last one in any case. The beginning of one
   is held until the rest comes; one that could already be read in part isn't held.
3. What isn't plain (an extension, a bare CRLF in the data, an odd size) ends the short way for this
   response: aiohttp gets every byte from there on, and judges them.

Called by `service.agents.connection`, which makes the connector, and `service.agents.openai`, which
listens.
"""

import re
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

from service.agents.protocol import Listener

_SIZES = re.compile(rb"[1-9a-f][0-9a-f]{,7}(?: [1-9a-f][0-9a-f]{,7})*", re.IGNORECASE)
_MOST_HELD_BYTES = 1 << 18
_PLAIN_HEAD = re.compile(
    rb"HTTP/1\.1 200 (?s:(?!.*\r\ncontent-encoding:).*)\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n",
    re.IGNORECASE,
)


class FastLaneProtocol(ResponseHandler):
    """aiohttp's protocol of a client's connection, with the short way.

    Attributes:
        listener: see `service.agents.protocol`. If it leaves some, they go to the reader, and it
            is asked no more until it is set anew. It may only be set while the reader is empty and
            somebody waits for it.
    """

    # Ten thousand of them may be open, and aiohttp's attributes fill their dictionary to the brim.
    __slots__ = ("_held", "_is_before_head", "_is_between_chunks", "listener")

    def __init__(self, loop: Any) -> None:
        super().__init__(loop)
        self.listener: Listener | None = None
        self._is_before_head = False
        self._is_between_chunks = False
        self._held = b""

    def set_response_params(self, **params: Any) -> None:
        """A request is about to be sent; what comes next is its response."""
        self.listener = None
        self._is_before_head = True
        self._is_between_chunks = False
        self._held = b""
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        if self._is_between_chunks and data:
            raw = self._held + data if self._held else data
            parts = raw.split(b"\r\n")
            if len(parts) == 3 and not parts[2] and _fits(parts[0], parts[1]):  # the usual: one
                self._held = b""
                if self.listener is None or not self.listener(parts[1:2]):
                    self._pass(raw)
            else:
                self._receive_several(raw, parts)
        elif self._is_before_head and data:
            self._receive_head(data)
        else:
            super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._held:
            self._pass_all(self._held)
        super().connection_lost(exc)

    def _receive_head(self, data: bytes) -> None:
        self._is_before_head = False
        end = data.find(b"\r\n\r\n") + 4
        if end < 4 or not _PLAIN_HEAD.match(data[: end - 2]):
            super().data_received(data)
            return
        self._is_between_chunks = True
        super().data_received(data[:end])
        if end < len(data):
            self.data_received(data[end:])

    def _receive_several(self, raw: bytes, parts: list[bytes]) -> None:
        """More than one chunk, or less: those that are whole, and the beginning of the next."""
        count = (len(parts) - 1) // 2
        sizes, bodies = parts[: 2 * count : 2], parts[1 : 2 * count : 2]
        is_last = sizes[-1:] == [b"0"]
        if is_last:
            count -= 1
            del sizes[-1], bodies[-1]
        rest = b"\r\n".join(parts[2 * count :])
        if not (_all_fit(sizes, bodies) and (is_last or _may_wait(rest))):
            self._pass_all(raw)
            return
        self._held = b"" if is_last else rest
        taken = self.listener(bodies) if count and self.listener is not None else 0
        if taken < count:
            start = sum(map(len, sizes[:taken])) + sum(map(len, bodies[:taken])) + 4 * taken
            self._pass(raw[start : len(raw) - len(rest)])
        if is_last:
            self._pass_all(rest)

    def _pass(self, data: bytes) -> None:
        self.listener = None
        super().data_received(data)

    def _pass_all(self, data: bytes) -> None:
        """From here on everything goes to aiohttp. The last chunk, of size 0, comes this way."""
        self._is_between_chunks = False
        self._held = b""
        self._pass(data)


class FastLaneConnector(aiohttp.TCPConnector):
    """aiohttp's connector, whose connections have the short way."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # aiohttp has no public way to name the protocol; a test notices if this one goes away.
        self._factory = partial(FastLaneProtocol, loop=self._loop)  # type: ignore[assignment]


def _may_wait(rest: bytes) -> bool:
    """True if nobody could read anything of this beginning of a chunk, or only its end is missing."""
    size, _, body = rest.partition(b"\r\n")
    if b"\n\n" not in body:
        return len(rest) < _MOST_HELD_BYTES
    return size.isalnum() and _fits(size, body.removesuffix(b"\r"))


def _all_fit(sizes: list[bytes], bodies: list[bytes]) -> bool:
    """`_fits` for each."""
    if not sizes:
        return True
    if not _SIZES.fullmatch(b" ".join(sizes)):
        return False
    return [int(size, 16) for size in sizes] == list(map(len, bodies))


def _fits(size: bytes, body: bytes) -> bool:
    """True if this is a chunk's size line, without anything else in it, and that is its size."""
    if not size.isalnum() or size[0] == 48:  # "0": the last chunk
        return False
    try:
        return int(size, 16) == len(body)
    except ValueError:
        return False
