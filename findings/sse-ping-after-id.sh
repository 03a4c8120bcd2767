#!/bin/sh
# A keep-alive comment is harmless to the openai SDK until some event had an `id:`; then the comment
# is taken for an event without data, and the stream ends in a JSONDecodeError.
#
# Versions: openai 3.54.0 (on httpx2 2.16.2), httpx-sse 0.4.3 (on httpx 0.28.1), aiohttp-sse 3.0,
#   aiohttp 3.14.5; Python 3.11.
# Needs: sh, python3 (3.11 or newer), a Python package index.
#
# A good guess:
#   Lines that begin with a colon are comments, and every reader of server-sent events skips them.
#   So numbering one's events, to let clients resume, changes nothing for a client that ignores
#   the numbers.
#
# What happens:
#   aiohttp-sse sends `: ping` and a blank line whenever its interval has passed. A blank line ends
#   an event, and these readers only ignore an empty event as long as they remember no `id`.
#   Numbered events make them remember one for good, so that each ping comes out as an event: with
#   empty data from httpx-sse, and as empty text given to the JSON parser in the openai SDK.
#
# Output seen on 2026-11-28:
#   events without id, openai:   one two three
#   events with id, openai:      one, JSONDecodeError
#   events without id, httpx-sse: one two three
#   events with id, httpx-sse:    one two three, and events without data
#
# Why it matters:
#   A server that adds `id:` for resumable streams breaks unchanged clients in the middle of answers,
#   but only in answers that pause for longer than the ping interval: not in a quick test. A comment
#   that ends with ONE line end, written between two events, is safe for all of them.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    openai==3.54.0 httpx2==2.16.2 httpx-sse==0.4.3 httpx==0.28.1 aiohttp-sse==3.0 aiohttp==3.14.5
"$folder/venv/bin/python" - >"$folder/output" <<'END'
import asyncio
import json
import logging

import httpx
import httpx_sse
import openai
from aiohttp import web
from aiohttp_sse import sse_response


logging.disable()  # aiohttp's server tells of the client that left


def chunk(word):
    choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
    return json.dumps(
        {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
    )


async def answer(request):
    has_ids = request.match_info["kind"] == "numbered"
    async with sse_response(request, allow_all_methods=True, ping_interval=0.3) as response:
        for number, word in enumerate(["one", "two", "three"]):
            await response.send(chunk(word), id=str(number) if has_ids else None)
            await asyncio.sleep(0.5)
        await response.send("[DONE]")
    return response


async def with_openai(url):
    words = []
    async with openai.AsyncOpenAI(api_key="none", base_url=url, max_retries=0) as client:
        try:
            stream = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "count"}], stream=True
            )
            async for part in stream:
                words.append(part.choices[0].delta.content)
        except json.JSONDecodeError as error:
            return f"{' '.join(words)}, {type(error).__name__}"
    return " ".join(words)


async def with_httpx_sse(url):
    words, empty = [], False
    async with httpx.AsyncClient() as client:
        path = f"{url}/chat/completions"
        async with httpx_sse.aconnect_sse(client, "POST", path) as source:
            async for event in source.aiter_sse():
                if not event.data:
                    empty = True
                elif event.data != "[DONE]":
                    words.append(event.json()["choices"][0]["delta"]["content"])
    return " ".join(words) + (", and events without data" if empty else "")


async def main():
    app = web.Application()
    app.router.add_post("/{kind}/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with asyncio.timeout(60):
        print("events without id, openai:  ", await with_openai(f"{base}/plain"))
        print("events with id, openai:     ", await with_openai(f"{base}/numbered"))
        print("events without id, httpx-sse:", await with_httpx_sse(f"{base}/plain"))
        print("events with id, httpx-sse:   ", await with_httpx_sse(f"{base}/numbered"))
    await runner.cleanup()


asyncio.run(main())
END
cat "$folder/output"
sed -n '/^# Output seen on/,/^#$/s/^#   //p' "$0" | diff - "$folder/output" ||
    { echo "This is no longer what happens." >&2; exit 1; }
