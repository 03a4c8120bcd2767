"""A shortcut for response bodies: complete HTTP frames reach a listener before aiohttp's parser.

A reader may skip this; without it every answer is the same, only dearer (`OpenAIAgent`,
`uses_shortcut`). It is worth its price because aiohttp takes each frame through its parser, a stream
reader, a future and a task's waking, which costs more than all that the service does with it.

A *frame* here is a chunk of HTTP's chunked transfer coding; it mostly holds one chunk of the answer.
While a reader waits, aiohttp's buffer is empty and its parser is between frames, so a complete frame
can be removed from the byte stream without the parser noticing. All else (heads, the end, errors,
pooled connections, back-pressure) stays aiohttp's.

The rules:

1. Only `Transfer-Encoding: chunked` bodies of a 200 without a content encoding; any other response
   goes aiohttp's way from its first byte.
2. What the listener doesn't take goes to aiohttp's reader past the parser, which is given the last
   frame in any case. The beginning of a frame is held until the rest comes; one that could already
   be read in part isn't held.
3. Anything unusual (an extension, a bare CRLF in the data, an odd size) ends the shortcut for this
   response: aiohttp gets every byte from there on, and judges them.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpVersion11, RawResponseMessage
from aiohttp.streams import StreamReader

Listener = Callable[[Sequence[bytes]], int]
"""Offered pieces of a body, in order, at least one; returns how many of them, from the first on, it
took. It must not raise."""

_SIZE = re.compile(rb"[1-9a-f][0-9a-f]{,7}", re.IGNORECASE)
_MOST_HELD_BYTES = 1 << 18
_TESTED_AIOHTTP = ("3.14.",)


class _Sizes(dict[bytes, int]):
    """Sizes by size line, in bytes; -1 for a line with anything else in it, and for the last frame's.

    Lines come again and again, so those of up to three digits are kept: 10,647 at most.
    """

    def __missing__(self, line: bytes) -> int:
        size = int(line, 16) if _SIZE.fullmatch(line) else -1
        if len(line) <= 3 and size > 0:
            self[line] = size
        return size


_size_in = _Sizes().__getitem__


class LaneProtocol(ResponseHandler):
    """aiohttp's protocol of a client connection, with the shortcut.

    Not for requests with a `sock_read` timeout: what a listener takes doesn't put it off.

    Attributes:
        listener: see `Listener`. If it leaves some, they go to the reader, and it
            is asked no more until it is set anew. It may only be set while the reader is empty and
            somebody waits for it.
    """

    # Ten thousand of them may be open, and aiohttp's attributes fill their dictionary to the brim.
    __slots__ = (
        "_held",
        "_is_before_head",
        "_is_between_frames",
        "_is_liftable",
        "_is_line_end_due",
        "_requests",
        "listener",
    )

    def __init__(self, loop: Any) -> None:
        super().__init__(loop)
        self.listener: Listener | None = None
        self._requests = 0
        self._is_before_head = False
        self._is_between_frames = False
        self._is_liftable = False
        self._is_line_end_due = False
        self._held = b""

    @property
    def went_stale(self) -> bool:
        """True if the last request wasn't the first here, and nothing has come since: a backend closes
        connections that nobody uses, and may do so while a request is on its way."""
        return self._requests > 1 and self._is_before_head

    def set_response_params(self, **params: Any) -> None:
        """A request is about to be sent; what comes next is its response."""
        self._requests += 1
        self.listener = None
        self._is_before_head = True
        self._is_between_frames = False
        self._is_liftable = False
        self._is_line_end_due = False
        self._held = b""
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        if self._is_between_frames and data:
            raw = self._held + data if self._held else data
            parts = raw.split(b"\r\n")
            # The usual: one.
            if len(parts) == 3 and not parts[2] and _size_in(parts[0]) == len(parts[1]):
                self._held = b""
                listener = self.listener
                if listener is None or not listener((parts[1],)):
                    self._read_later(parts[1])
            else:
                self._receive_several(raw, parts)
        elif self._is_before_head and data:
            self._receive_head(data)
        elif self._is_line_end_due and data:
            self._receive_line_end(data)
        else:
            super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._held:
            self._pass_all(self._held)
        super().connection_lost(exc)

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Also ends a body that is no proper HTTP any more, so that its reader gets what came
        before. aiohttp 3.14.5 doesn't, and the reader would wait for its deadline."""
        super().set_exception(exc, *cause)
        body = self._payload
        if body is not None and not body.is_eof() and body.exception() is None:
            body.feed_eof()

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """aiohttp has read a response's head."""
        message, _ = data
        self._is_liftable = (
            message.code == HTTPStatus.OK
            and message.version == HttpVersion11
            and bool(message.chunked)
            and not message.compression
        )
        super().feed_data(data, size)

    def _receive_head(self, data: bytes) -> None:
        self._is_before_head = False
        end = data.find(b"\r\n\r\n") + 4
        # With bare line feeds in it, the head may end somewhere else.
        if end < 4 or data.count(b"\n", 0, end) != data.count(b"\r\n", 0, end):
            super().data_received(data)
            return
        super().data_received(data[:end])
        self._is_between_frames = self._is_liftable
        if end < len(data):
            self.data_received(data[end:])

    def _receive_several(self, raw: bytes, parts: list[bytes]) -> None:
        """More than one frame, or less: those that are complete, and the beginning of the next."""
        count = (len(parts) - 1) // 2
        sizes, bodies = parts[: 2 * count : 2], parts[1 : 2 * count : 2]
        is_last = sizes[-1:] == [b"0"]
        if is_last:
            count -= 1
            del sizes[-1], bodies[-1]
        rest = b"\r\n".join(parts[2 * count :])
        if not _all_fit(sizes, bodies):
            self._pass_all(raw)
            return
        if not (is_last or _may_wait(rest)):
            self._pass_all(raw)
            self._is_line_end_due = _lacks_its_line_end(rest)
            return
        self._held = b"" if is_last else rest
        taken = self.listener(bodies) if count and self.listener is not None else 0
        if taken < count:
            self._read_later(b"".join(bodies[taken:]))
        if is_last:
            self._pass_all(rest)

    def _receive_line_end(self, data: bytes) -> None:
        """The parser has a frame except its line end, which may come with the next frame only."""
        self._is_line_end_due = False
        if not data.startswith(b"\r\n"):
            super().data_received(data)
            return
        self._is_between_frames = True
        super().data_received(b"\r\n")
        if len(data) > 2:
            self.data_received(data[2:])

    def _read_later(self, data: bytes) -> None:
        """Give the reader what the listener doesn't take, as one frame: quicker than the parser is
        with many small ones."""
        self.listener = None
        body = self._payload
        assert body is not None
        body.begin_http_chunk_receiving()  # else the parser may not feed it after us
        body.feed_data(data)

    def _pass_all(self, data: bytes) -> None:
        """Give everything from here on to aiohttp. The last frame, of size 0, comes this way."""
        self.listener = None
        self._is_between_frames = False
        self._held = b""
        super().data_received(data)


def is_tested() -> bool:
    """True if this aiohttp is one whose insides the lane was tested with. With any other the agents
    do without it: their answers are the same, only dearer."""
    return aiohttp.__version__.startswith(_TESTED_AIOHTTP)


class LaneConnector(aiohttp.TCPConnector):
    """aiohttp's connector, with the lane in its connections."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # aiohttp has no public way to name the protocol; a test notices if this one goes away.
        self._factory = partial(LaneProtocol, loop=self._loop)  # type: ignore[assignment]


def _may_wait(rest: bytes) -> bool:
    """True if this may become a frame, and nobody could read anything of it: no event ends in it."""
    size = rest.partition(b"\r")[0]
    ends_none = b"\n\n" not in rest and rest.count(b"\r") < 2  # one is the size's line end
    return ends_none and len(rest) < _MOST_HELD_BYTES and (not size or size.isalnum())


def _lacks_its_line_end(rest: bytes) -> bool:
    """True if this is a frame except for the line end behind its data."""
    size, _, body = rest.partition(b"\r\n")
    return _fits(size, body)


def _all_fit(sizes: list[bytes], bodies: list[bytes]) -> bool:
    """`_fits` for each."""
    return list(map(_size_in, sizes)) == list(map(len, bodies))


def _fits(size: bytes, body: bytes) -> bool:
    """True if this is a frame's size line, without anything else in it, and that is its size."""
    return _size_in(size) == len(body)
