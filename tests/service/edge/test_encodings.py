"""Packed bodies: refused before a byte of them is read or unpacked."""

import asyncio
import gzip
import json
import zlib

import pytest

from service.settings.access import AuthConfig
from tests.holdup import measured_loop
from tests.service.callers.test_auth import ANNE, api_key
from tests.service.conftest import QUESTION, ServiceMaker
from tests.service.edge.test_connections import POST, connect

BODY = json.dumps({"model": "m", "messages": QUESTION}).encode()
BOMB = gzip.compress(b"0" * 100_000_000)
"""A hundred kilobytes that unpack to a hundred megabytes."""


@pytest.mark.parametrize(
    "coding",
    ["gzip", "deflate", "br", "zstd", "compress", "x-gzip", "GZIP", "identity, gzip", "gzip, gzip"],
)
@pytest.mark.parametrize("length", [0, len(BODY)])
async def test_an_encoding_is_refused_and_named(
    make_service: ServiceMaker, coding: str, length: int
) -> None:
    """Whatever the coding, even one that nobody knows, the client learns which one isn't taken and
    what is; whether the body comes or not."""
    service = await make_service()
    async with connect(service) as client:
        client.send(f"{POST}Content-Encoding: {coding}\r\nContent-Length: {len(BODY)}\r\n\r\n")
        client.writer.write(BODY[:length])
        status, headers, body = await client.answer()
    error = json.loads(body)["error"]
    assert (415, "unsupported_encoding") == (status, error["code"])
    assert "identity" == headers["accept-encoding"]
    assert f"Content-Encoding {coding.split(', ')[-1]!r}" in error["message"]
    assert [] == service.relays


async def test_several_headers_are_one_list(make_service: ServiceMaker) -> None:
    """A coding may stand in any of several headers."""
    service = await make_service()
    async with connect(service) as client:
        client.send(POST + "Content-Encoding: identity\r\nContent-Encoding: br\r\n\r\n")
        assert 415 == (await client.answer())[0]


@pytest.mark.parametrize("coding", ["gzip, chunked", "zstd, chunked", "GZIP,chunked"])
async def test_a_packed_transfer_is_refused_too(make_service: ServiceMaker, coding: str) -> None:
    """Bodies may be packed for the transfer alone; that isn't taken either."""
    service = await make_service()
    async with connect(service) as client:
        client.send(f"{POST}Transfer-Encoding: {coding}\r\n\r\n")
        status, _, body = await client.answer()
        assert await client.closed_after() < 1
    assert (415, "unsupported_encoding") == (status, json.loads(body)["error"]["code"])


@pytest.mark.parametrize("header", ["Content-Encoding: identity", "Content-Encoding: ", "X-A: b"])
@pytest.mark.parametrize("transfer", ["chunked", "Chunked", " chunked "])
async def test_what_is_not_packed_is_taken(
    make_service: ServiceMaker, header: str, transfer: str
) -> None:
    """`identity` says that nothing is packed, and chunks pack nothing."""
    service = await make_service()
    async with connect(service) as client:
        client.send(f"{POST}{header}\r\nTransfer-Encoding: {transfer}\r\n\r\n")
        client.writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))
        assert 200 == (await client.answer())[0]


@pytest.mark.parametrize("first_line", ["GET /v1/models", "POST /nowhere", "PUT /v1/models"])
async def test_every_path_and_method_refuses_them(
    make_service: ServiceMaker, first_line: str
) -> None:
    """What isn't there, and what takes no body, unpacks none either."""
    service = await make_service()
    async with connect(service) as client:
        client.send(f"{first_line} HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\n")
        client.send(f"Content-Length: {len(BOMB)}\r\n\r\n")
        client.writer.write(BOMB)
        assert 415 == (await client.answer())[0]


@pytest.mark.parametrize("has_keys", [False, True])
@pytest.mark.parametrize("packed", [BOMB, zlib.compress(b"0" * 100_000_000)])
async def test_a_bomb_holds_nobody_up(
    make_service: ServiceMaker, has_keys: bool, packed: bytes
) -> None:
    """Nothing is unpacked, neither to be read nor to be thrown away after the refusal, with a key
    missing or not."""
    keys = AuthConfig((api_key("anne", ANNE),)) if has_keys else AuthConfig()
    service = await make_service(auth=keys)
    async with measured_loop() as loop_time:
        for coding in ("gzip", "deflate", "Gzip"):
            async with connect(service) as client:
                client.send(
                    f"{POST}Content-Encoding: {coding}\r\nTransfer-Encoding: chunked\r\n\r\n"
                )
                client.writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(packed), packed))
                assert (await client.answer())[0] in (401, 415)
                await asyncio.sleep(0.1)
    assert loop_time.longest_ms < loop_time.bound_ms
