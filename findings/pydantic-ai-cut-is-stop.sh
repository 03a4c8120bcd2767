#!/bin/sh
# pydantic-ai calls an answer that broke off in the middle `complete`, with the finish reason `stop`,
# which the server never sent.
#
# Versions: pydantic-ai-slim 2.68.0, openai 3.54.0; Python 3.11.
# Needs: sh, python3 (3.11 or newer), a Python package index.
#
# A good guess:
#   A chat completion's stream that ends without a finish reason and without `[DONE]` is a cut one.
#   The framework has a state `interrupted` and a finish reason that may be None, so it says one of
#   the two, or raises.
#
# What happens:
#   The missing finish reason is filled in as `stop`, and the state is `complete`: to the caller a
#   cut answer looks like a whole one. Only `provider_details` lacks a key. A setting of the model's
#   profile, off unless one knows of it, makes the same stream an error.
#
# Output seen on 2026-11-28:
#   whole: 'Do not press.' stop complete, the server said stop
#   cut:   'Do not' stop complete, the server said nothing
#   cut, finish reason required: ModelAPIError
#
# Why it matters:
#   Proxies and servers that are stopped often end a body cleanly, so that no network error tells the
#   client. A server that fails in mid-stream has to send an error event, which this client raises;
#   a client that keeps or acts on answers should turn that setting on.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    'pydantic-ai-slim[openai]==2.68.0' openai==3.54.0 httpx2==2.16.2
"$folder/venv/bin/python" - >"$folder/output" <<'END'
import asyncio
import json

import httpx2
import openai
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.openai import OpenAIProvider


def event(delta, finish_reason=None):
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
    return f"data: {json.dumps(chunk)}\n\n"


CUT = event({"role": "assistant", "content": ""}) + event({"content": "Do not"})
WHOLE = CUT + event({"content": " press."}) + event({}, "stop") + "data: [DONE]\n\n"


async def ask(body, profile=None):
    def answer(_request):
        return httpx2.Response(200, text=body, headers={"Content-Type": "text/event-stream"})

    network = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    client = openai.AsyncOpenAI(
        api_key="none", base_url="http://localhost/v1", http_client=network, max_retries=0
    )
    model = OpenAIChatModel("m", provider=OpenAIProvider(openai_client=client), profile=profile)
    async with Agent(model).run_stream("What shall I do?") as result:
        text = "".join([part async for part in result.stream_text(delta=True)])
    response = result.response
    said = (response.provider_details or {}).get("finish_reason", "nothing")
    return f"{text!r} {response.finish_reason} {response.state}, the server said {said}"


async def main():
    print("whole:", await ask(WHOLE))
    print("cut:  ", await ask(CUT))
    try:
        words = await ask(CUT, OpenAIModelProfile(openai_chat_streaming_requires_finish_reason=True))
    except ModelAPIError as error:
        words = type(error).__name__
    print("cut, finish reason required:", words)


asyncio.run(main())
END
cat "$folder/output"
sed -n '/^# Output seen on/,/^#$/s/^#   //p' "$0" | diff - "$folder/output" ||
    { echo "This is no longer what happens." >&2; exit 1; }
