#!/bin/sh
# openai-python's `.stream()` helper raises an AttributeError on a chunk whose choice has no `delta`,
# as Azure sends for its content filter; the plain iterator of the same client reads it.
#
# Versions: openai 3.54.0, aiohttp 3.14.5 (as the server); Python 3.11.
# Needs: sh, python3 (3.11 or newer), a Python package index.
#
# A good guess:
#   Both ways read the same stream. A choice without a delta adds nothing to the answer.
#
# What happens:
#   Azure's asynchronous filter reports in chunks of their own, between those of the text, whose choices
#   have `content_filter_results` and no `delta`. The helper's accumulator takes the delta of every
#   choice but a message's first for granted, and the rest of the answer is lost.
#
# Output seen on 2026-11-28:
#   iterator: 4 chunks, "Hello there"
#   helper: "Hello", then AttributeError
#
# Why it matters:
#   A program that works with OpenAI, and with Azure's filter in its usual mode, loses every answer
#   once that mode is changed in Azure's settings. Whoever stands between can put an empty `delta`
#   into such choices.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check openai==3.54.0 aiohttp==3.14.5
"$folder/venv/bin/python" -W ignore - >"$folder/output" <<'END'
import asyncio
import json

from aiohttp import web
from openai import AsyncOpenAI

FILTER = {"content_filter_results": {"hate": {"filtered": False, "severity": "safe"}}}
CHOICES = [
    {"index": 0, "delta": {"role": "assistant", "content": "Hello"}, "finish_reason": None},
    {"index": 0, "finish_reason": None, **FILTER},
    {"index": 0, "delta": {"content": " there"}, "finish_reason": None},
    {"index": 0, "delta": {}, "finish_reason": "stop"},
]
ASKED = {"model": "gpt", "messages": [{"role": "user", "content": "Say hello."}]}


async def answer(request):
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for choice in CHOICES:
        chunk = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt"}
        await response.write(f"data: {json.dumps({**chunk, 'choices': [choice]})}\n\n".encode())
    await response.write(b"data: [DONE]\n\n")
    return response


async def main():
    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    client = AsyncOpenAI(base_url=f"http://{host}:{port}/v1", api_key="none", max_retries=0)

    chunks = [chunk async for chunk in await client.chat.completions.create(**ASKED, stream=True)]
    deltas = [chunk.choices[0].delta for chunk in chunks]
    text = "".join(delta.content or "" for delta in deltas if delta is not None)
    print(f'iterator: {len(chunks)} chunks, "{text}"')

    text = ""
    try:
        async with client.chat.completions.stream(**ASKED) as stream:
            async for event in stream:
                if event.type == "content.delta":
                    text += event.delta
    except AttributeError as error:
        print(f'helper: "{text}", then {type(error).__name__}')
    else:
        print(f'helper: "{text}"')
    await client.close()
    await runner.cleanup()


asyncio.run(main())
END
cat "$folder/output"
sed -n '/^# Output seen on/,/^#$/s/^#   //p' "$0" | diff - "$folder/output" ||
    { echo "This is no longer what happens." >&2; exit 1; }
