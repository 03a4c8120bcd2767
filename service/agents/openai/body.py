"""Reads the bodies of a backend's answers, whatever their encoding, a bearable piece at a time.

Every request asks for plain bodies. Some backends, and proxies before them, compress all the same:
gzip and deflate are unpacked, a small piece at a time, so that neither the event loop nor memory
depends on what they unpack to. Any other encoding is refused before its body is read.
"""

import asyncio
import zlib
from typing import Protocol

import aiohttp
from aiohttp import hdrs

from service.agents.openai.response import Response
from service.wire.codings import codings_in

_PIECE_BYTES = 8192
_GZIP, _ZLIB, _RAW_DEFLATE = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS
_GZIP_MAGIC = b"\x1f\x8b"
_READABLE = ("gzip", "x-gzip", "deflate")


class Body(Protocol):
    """A body being read."""

    async def readany(self) -> bytes:
        """The next bytes; none at the end. Raises aiohttp.ClientError and OSError, and Undecodable."""


class Undecodable(Exception):
    """A body isn't what its `Content-Encoding` says."""


def encoding_of(response: Response) -> str:
    """The encoding that a response names; empty for a plain one."""
    if hdrs.CONTENT_ENCODING not in response.headers:
        return ""
    return ", ".join(codings_in(response.headers.getall(hdrs.CONTENT_ENCODING))).lower()


def is_readable(encoding: str) -> bool:
    """True if `body_of` reads it."""
    return not encoding or encoding in _READABLE


def body_of(response: Response, encoding: str) -> Body:
    """The body of a response with a readable encoding."""
    return Unpacked(response.content, encoding) if encoding else response.content


class Unpacked:
    """A compressed body as what it unpacks to. Whatever comes behind its end is left out."""

    def __init__(self, packed: Body, encoding: str) -> None:
        self._body = packed
        self._is_gzip = encoding != "deflate"
        self._packed = b""
        self._unpacker = zlib.decompressobj(_GZIP) if self._is_gzip else None
        self._may_have_more = False

    async def readany(self) -> bytes:
        """At most 8 KB; other tasks have their turn before each piece."""
        while True:
            if self._may_have_more:
                await asyncio.sleep(0)
                if data := self._unpack():
                    return data
            packed = await self._body.readany()
            if not packed:
                return b""
            self._packed += packed
            self._may_have_more = True

    def _unpack(self) -> bytes:
        """The next piece of what is here; none if more must come first."""
        unpacker = self._unpacker
        if unpacker is None:
            if len(self._packed) < 2:
                self._may_have_more = False
                return b""
            unpacker = self._unpacker = zlib.decompressobj(_deflate_kind(self._packed))
        try:
            data = unpacker.decompress(self._packed, _PIECE_BYTES)
        except zlib.error as error:
            raise Undecodable(str(error)) from None
        self._packed = unpacker.unconsumed_tail
        if unpacker.eof:
            rest = unpacker.unused_data
            is_member = self._is_gzip and rest.startswith(_GZIP_MAGIC)
            self._packed = rest if is_member else b""
            self._unpacker = zlib.decompressobj(_GZIP) if is_member else unpacker
            self._may_have_more = is_member
        else:
            # A full piece may have left something within the unpacker.
            self._may_have_more = bool(self._packed) or len(data) == _PIECE_BYTES
        return data


def _deflate_kind(packed: bytes) -> int:
    """HTTP's deflate is zlib's format (RFC 9110, section 8.4.1.2), and often raw deflate."""
    is_zlib = packed[0] & 0x0F == 8 and int.from_bytes(packed[:2], "big") % 31 == 0
    return _ZLIB if is_zlib else _RAW_DEFLATE


async def read_at_most(body: Body, limit: int, seconds: float) -> tuple[bytes, bool]:
    """The beginning of a body that is not to be trusted, and whether that is all of it.

    Args:
        limit: in bytes; one piece more may be read.
        seconds: how long it may take; what came by then is returned.
    """
    data = b""
    try:
        async with asyncio.timeout(seconds):
            while piece := await body.readany():
                data += piece
                if len(data) > limit:
                    return data[:limit], False
    except (TimeoutError, Undecodable, aiohttp.ClientError, OSError):
        return data, False
    return data, True
