#!/bin/sh
# The MCP client asks for the list of tools, unasked, after the first call of a tool; if that fails,
# the call fails too, although the tool has run and its result has arrived.
#
# Versions: mcp 2.3.0 as client and server, uvicorn 0.54.0, starlette 1.10.0; Python 3.11.
# Needs: sh, python3 (3.11 or newer), a Python package index.
#
# A good guess:
#   `call_tool` makes one request, `tools/call`, and an error means that this request failed: the tool
#   didn't run, or nobody can tell.
#
# What happens:
#   The client wants the tool's output schema, to check the result against it, and for a tool that it
#   hasn't listed yet it asks for the list right after the result has come. When the server refuses
#   that second request, with a 503 for being busy, `call_tool` raises the list's error and drops the
#   result. It looks the same as a call that never reached the tool. Listing the tools first avoids
#   it.
#
# Output seen on 2026-11-28:
#   lists refused: MCPError, the tool ran 1 times, asked: server/discover tools/call tools/list
#   listed before: sent 1, the tool ran 1 times, asked: server/discover tools/list tools/call
#
# Why it matters:
#   An agent that tries again after an error sends the mail, books the room or writes the row twice.
#   List all tools right after connecting, and take an error of a call for "not known", never for
#   "did not run".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    mcp==2.3.0 uvicorn==0.54.0 starlette==1.10.0
"$folder/venv/bin/python" - >"$folder/output" <<'END'
import asyncio
import json
import logging
import socket

import uvicorn
from mcp import Client
from mcp.server import MCPServer

logging.disable()
tools = MCPServer("post")
asked, sent = [], []
is_busy = False


@tools.tool()
def send(text: str) -> str:
    sent.append(text)
    return f"sent {len(sent)}"


class Gate:
    """Notes what is asked, and answers lists with a 503 while the server is busy."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, respond):
        if scope["type"] != "http":
            return await self.app(scope, receive, respond)
        first = await receive()
        method = json.loads(first["body"] or b"{}").get("method")
        asked.append(method)
        if is_busy and method == "tools/list":
            await respond({"type": "http.response.start", "status": 503, "headers": []})
            return await respond({"type": "http.response.body", "body": b""})
        waiting = [first]

        async def again():
            return waiting.pop() if waiting else await receive()

        await self.app(scope, again, respond)


async def call(url, lists_first):
    asked.clear()
    sent.clear()
    async with Client(url) as client:
        if lists_first:
            await client.list_tools()
        try:
            result = await client.call_tool("send", {"text": "hello"})
            how = result.structured_content["result"]
        except Exception as error:
            how = type(error).__name__
    return f"{how}, the tool ran {len(sent)} times, asked: {' '.join(asked)}"


async def main():
    global is_busy
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"
    server = uvicorn.Server(uvicorn.Config(Gate(tools.streamable_http_app()), log_level="error"))
    serving = asyncio.create_task(server.serve([listening]))
    while not server.started:
        await asyncio.sleep(0.05)
    async with asyncio.timeout(60):
        is_busy = True
        print("lists refused:", await call(url, lists_first=False))
        is_busy = False
        print("listed before:", await call(url, lists_first=True))
    server.should_exit = True
    await serving


asyncio.run(main())
END
cat "$folder/output"
sed -n '/^# Output seen on/,/^#$/s/^#   //p' "$0" | diff - "$folder/output" ||
    { echo "This is no longer what happens." >&2; exit 1; }
