"""An MCP server that does what a test wants: raw HTTP on loopback, both revisions of the protocol."""

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from aiohttp import web

MODERN, LEGACY = "2026-07-28", "2025-11-25"


def tool(name: str, **fields: Any) -> dict[str, Any]:
    """A tool as a list has it."""
    return {
        "name": name,
        "description": f"Does {name}.",
        "inputSchema": {"type": "object"},
        **fields,
    }


def text(*parts: str, **fields: Any) -> dict[str, Any]:
    """A result of these texts."""
    return {"content": [{"type": "text", "text": part} for part in parts], **fields}


class Call:
    """One `tools/call`, to be answered."""

    def __init__(self, server: "ToolServer", request: web.Request, message: dict[str, Any]) -> None:
        self.arguments: dict[str, Any] = message["params"].get("arguments") or {}
        self.request = request
        self._server = server
        self._id = message["id"]

    def _answer(self, result: Mapping[str, Any]) -> dict[str, Any]:
        return {"jsonrpc": "2.0", "id": self._id, "result": {"resultType": "complete", **result}}

    def json(self, result: Mapping[str, Any]) -> web.StreamResponse:
        return web.json_response(self._answer(result))

    def error(self, code: int, message: str, status: int = 200) -> web.StreamResponse:
        error = {"code": code, "message": message}
        return web.json_response({"jsonrpc": "2.0", "id": self._id, "error": error}, status=status)

    async def begin_stream(self) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(self.request)
        return response

    async def stream(self, result: Mapping[str, Any]) -> web.StreamResponse:
        response = await self.begin_stream()
        await response.write(event(self._answer(result)))
        return response

    async def stream_half(self) -> web.StreamResponse:
        """Begin to answer, and cut the connection."""
        response = await self.begin_stream()
        await response.write(b": working\n\n")
        self.cut()
        return response

    def cut(self) -> web.StreamResponse:
        assert self.request.transport is not None
        self.request.transport.abort()
        return web.Response()


def event(message: Any) -> bytes:
    return b"event: message\ndata: " + json.dumps(message).encode() + b"\n\n"


Handler = Callable[[Call], Awaitable[web.StreamResponse] | web.StreamResponse]


class ToolServer:
    """The server: what it lists, what its tools do, and what it was asked.

    Attributes:
        pages: its tools, page by page.
        handlers: by tool's name; one that isn't there answers with its name.
        version: of the protocol. With `LEGACY` it has sessions.
        ttl_ms: of its list; only `MODERN` says it.
        refusals: statuses to answer the next requests with.
        calls: names of the tools that were called, in order.
        asked: methods, in order.
        headers: of the last request.
        is_like_examples: to a session that isn't there it answers 400, as the TypeScript SDK's examples do.
    """

    def __init__(self) -> None:
        self.pages: list[list[dict[str, Any]]] = [[tool("one"), tool("two")]]
        self.handlers: dict[str, Handler] = {}
        self.version = MODERN
        self.ttl_ms = 60_000
        self.refusals: list[int] = []
        self.calls: list[str] = []
        self.asked: list[str] = []
        self.headers: Mapping[str, str] = {}
        self.sessions = set[str]()
        self.is_like_examples = False
        self.port = 0
        self._listeners = list[web.StreamResponse]()
        self._numbers = itertools.count(1)
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    async def start(self) -> "ToolServer":
        """Listen; again on the same port after a stop."""
        app = web.Application(client_max_size=2**25)
        app.router.add_route("*", "/mcp", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self.sessions.clear()
        self._listeners.clear()

    @property
    def has_listener(self) -> bool:
        return bool(self._listeners)

    async def tell_of_change(self) -> None:
        """Notify all who listen that the tools changed."""
        for listener in self._listeners:
            method = "notifications/tools/list_changed"
            with suppress(ConnectionError):  # of who left
                await listener.write(event({"jsonrpc": "2.0", "method": method}))

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.headers = request.headers
        if request.method == "GET":
            return await self._listen(request)
        session = request.headers.get("mcp-session-id")
        if request.method == "DELETE":
            self.sessions.discard(str(session))
            return web.Response()
        message = await request.json()
        self.asked.append(message["method"])
        if self.refusals:
            return web.Response(status=self.refusals.pop(0))
        if session is not None and session not in self.sessions and self.is_like_examples:
            return web.json_response({"error": "Bad Request: No valid session ID"}, status=400)
        if session is not None and session not in self.sessions:
            error = {
                "code": -32001,
                "message": "Session not found",
            }  # as the TypeScript SDK words it
            body = {"jsonrpc": "2.0", "id": message.get("id"), "error": error}
            return web.json_response(body, status=404)
        if "id" not in message:
            return web.Response(status=202)
        if message["method"] == "tools/call":
            return await self._call(Call(self, request, message))
        return self._answer(message)

    async def _listen(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("mcp-session-id") not in self.sessions:
            return web.Response(status=405)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self._listeners.append(response)
        await asyncio.Event().wait()
        return response

    async def _call(self, call: Call) -> web.StreamResponse:
        name = (await call.request.json())["params"]["name"]
        self.calls.append(name)
        answer = self.handlers[name](call) if name in self.handlers else call.json(text(name))
        return answer if isinstance(answer, web.StreamResponse) else await answer

    def _answer(self, message: dict[str, Any]) -> web.StreamResponse:
        headers: dict[str, str] = {}
        body: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
        is_modern = self.version == MODERN
        cached = {"resultType": "complete", "ttlMs": self.ttl_ms, "cacheScope": "private"}
        match message["method"]:
            case "server/discover" if is_modern:
                has = {"supportedVersions": [MODERN], "capabilities": {"tools": {}}}
                body["result"] = {**has, **cached}
            case "initialize":
                session = f"session-{next(self._numbers)}"
                self.sessions.add(session)
                headers["Mcp-Session-Id"] = session
                info = {"name": "scripted", "version": "1"}
                can = {"tools": {"listChanged": True}}
                body["result"] = {
                    "protocolVersion": LEGACY,
                    "capabilities": can,
                    "serverInfo": info,
                }
            case "tools/list":
                at = int((message.get("params") or {}).get("cursor") or 0)
                result = {"tools": self.pages[at], **(cached if is_modern else {})}
                if at + 1 < len(self.pages):
                    result["nextCursor"] = str(at + 1)
                body["result"] = result
            case _:
                body["error"] = {"code": -32601, "message": "Method not found"}
        return web.json_response(body, headers=headers)
