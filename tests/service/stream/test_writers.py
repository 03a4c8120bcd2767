"""Writing to a client that has just gone."""

import asyncio

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from service.stream.writers import ClientConnectionLost, SseWriter
from service.wire import ChunkEncoder


async def test_a_client_that_left_before_the_headers_is_lost_not_a_mistake() -> None:
    """Its connection is closed and not yet lost when the 200 is to go out at once."""
    told: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    async def handle(request: web.Request) -> web.StreamResponse:
        writer = SseWriter(request, ChunkEncoder("chatcmpl-1", "m", 0, False))
        assert request.transport is not None
        request.transport.close()
        try:
            await writer.open_at_once()
        except BaseException as error:
            told.set_result(error)
        else:
            told.set_result(None)
        return writer.response()

    application = web.Application()
    application.router.add_get("/", handle)
    async with TestServer(application) as server, aiohttp.ClientSession() as http:
        with pytest.raises(aiohttp.ClientError):
            await http.get(server.make_url("/"))
        assert ClientConnectionLost is type(await told)
