"""Passes bytes on, the least that a service on aiohttp does.

Nothing is read, checked, kept or logged: what it costs is the framework's part in our figures.

`python benchmarks/contenders/passthrough.py http://127.0.0.1:PORT` prints the port it listens on.
"""

import asyncio
import sys

import aiohttp
import uvloop
from aiohttp import web

_BACKLOG = 4096


class Passthrough:
    """A server in front of one other."""

    def __init__(self, base_url: str, session: aiohttp.ClientSession) -> None:
        self._base_url = base_url
        self._session = session

    async def answer(self, request: web.Request) -> web.StreamResponse:
        url = f"{self._base_url}{request.path}"
        data, headers = await request.read(), {"Content-Type": "application/json"}
        async with self._session.request(
            request.method, url, data=data, headers=headers
        ) as response:
            answer = web.StreamResponse(headers={"Content-Type": response.content_type})
            await answer.prepare(request)
            async for piece in response.content.iter_any():
                await answer.write(piece)
            await answer.write_eof()
            return answer


async def main(base_url: str) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", Passthrough(base_url, session).answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=_BACKLOG).start()
        print(f"port {runner.addresses[0][1]}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
