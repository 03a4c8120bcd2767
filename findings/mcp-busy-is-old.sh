#!/bin/sh
# One 503 or 429 while it connects, and the MCP client takes a new server for one of the old protocol,
# and speaks that to it for as long as it lives.
#
# Versions: mcp 2.3.0 as client and server, uvicorn 0.54.0, starlette 1.10.0; Python 3.11.
# Needs: sh, python3 (3.11 or newer), a Python package index.
#
# A good guess:
#   By its status a 503 or 429 says "come again later", and nothing of what the server speaks: the
#   client tries again, or raises. Only an answer that belongs to the old protocol brings the old one.
#
# What happens:
#   Connecting begins with `server/discover`, which old servers don't know. Whatever status refuses it
#   counts as an old server's answer: the client goes on with the handshake of 2025, which new servers
#   still understand, and raises nothing. A client made a moment later speaks the new protocol.
#
# Output seen on 2026-11-28:
#   nothing refused: 2026-07-28
#   first request refused with 503: 2025-11-25, the next client: 2026-07-28
#   first request refused with 429: 2025-11-25, the next client: 2026-07-28
#
# Why it matters:
#   During a deployment, or under a rate limit, part of the long-lived clients silently get the
#   protocol with sessions, each of which one replica alone knows, and without what is new. Look at
#   `protocol_version` after connecting, and connect anew if it is older than expected.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    mcp==2.3.0 uvicorn==0.54.0 starlette==1.10.0
"$folder/venv/bin/python" - >"$folder/output" <<'END'
import asyncio
import logging
import socket

import uvicorn
from mcp import Client
from mcp.server import MCPServer

logging.disable()
tools = MCPServer("dice")
refusals = []


@tools.tool()
def roll(sides: int) -> int:
    return sides


class Gate:
    """Answers a request with each status of `refusals`, and lets all others pass."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, respond):
        if scope["type"] == "http" and refusals:
            status = refusals.pop()
            await respond({"type": "http.response.start", "status": status, "headers": []})
            await respond({"type": "http.response.body", "body": b""})
        else:
            await self.app(scope, receive, respond)


async def version(url):
    async with Client(url) as client:
        result = await client.call_tool("roll", {"sides": 6})
        assert result.structured_content == {"result": 6}
        return client.protocol_version


async def main():
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"
    server = uvicorn.Server(uvicorn.Config(Gate(tools.streamable_http_app()), log_level="error"))
    serving = asyncio.create_task(server.serve([listening]))
    while not server.started:
        await asyncio.sleep(0.05)
    async with asyncio.timeout(60):
        print("nothing refused:", await version(url))
        for status in (503, 429):
            refusals.append(status)
            print(
                f"first request refused with {status}: {await version(url)},",
                f"the next client: {await version(url)}",
            )
    server.should_exit = True
    await serving


asyncio.run(main())
END
cat "$folder/output"
sed -n '/^# Output seen on/,/^#$/s/^#   //p' "$0" | diff - "$folder/output" ||
    { echo "This is no longer what happens." >&2; exit 1; }
