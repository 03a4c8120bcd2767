"""Stands in for a model that knows its lines (`benchmarks.stand.lines`), for what is stored.

Run as its own process, `python -m benchmarks.stand.reciting` prints its port. It answers at once,
with a chunk for each word or with one object, each answer under an id of its own, as models do.
"""

import asyncio
import json
import time
from typing import Any
from uuid import uuid4

from aiohttp import web

from benchmarks.stand.lines import answer, asked_last
from benchmarks.stand.plan import is_streamed


def _event(common: dict[str, Any], delta: dict[str, str], reason: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    return f"data: {json.dumps({**common, 'choices': [choice]}, separators=(',', ':'))}\n\n"


def _stream(common: dict[str, Any], text: str, usage: dict[str, int]) -> str:
    first, *others = text.split(" ")
    events = [_event(common, {"role": "assistant", "content": first})]
    events += [_event(common, {"content": f" {word}"}) for word in others]
    events.append(_event(common, {}, "stop"))
    events.append(f"data: {json.dumps({**common, 'choices': [], 'usage': usage})}\n\n")
    return "".join([*events, "data: [DONE]\n\n"])


async def _answer(request: web.Request) -> web.Response:
    body = await request.read()
    text = answer(*asked_last(body))
    words = len(text.split())
    usage = {"prompt_tokens": len(body) // 6, "completion_tokens": words}
    usage["total_tokens"] = sum(usage.values())
    common: dict[str, Any] = {"id": f"chatcmpl-{uuid4().hex}", "created": int(time.time())}
    common["model"] = "bench"
    if is_streamed(body):
        common["object"] = "chat.completion.chunk"
        return web.Response(text=_stream(common, text, usage), content_type="text/event-stream")
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    common["object"] = "chat.completion"
    return web.json_response({**common, "choices": [choice], "usage": usage})


async def _models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "bench", "object": "model"}]})


async def _serve() -> None:
    app = web.Application(client_max_size=1 << 30)
    app.router.add_post("/v1/chat/completions", _answer)
    app.router.add_get("/v1/models", _models)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve())
