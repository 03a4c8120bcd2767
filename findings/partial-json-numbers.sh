#!/bin/sh
# While structured output streams, the openai SDK shows half a number as if it were the whole one,
# and then takes it away for a moment; half a text it never shows.
#
# Versions: openai 3.54.0, jiter 0.19.0, pydantic 2.14.3; Python 3.11.
# Needs: sh, python3 (3.11 or newer), a Python package index.
#
# A good guess:
#   A value shows up in `event.parsed` once it is complete; until then its key is missing, as it is
#   with texts. Or, if halves are shown, then values only ever grow.
#
# What happens:
#   The SDK parses what it has so far by jiter's partial mode. That leaves out a text whose quote
#   isn't closed and a word like `tru`, but a number has no closing mark: digits at the end of the
#   input count as all of it. So 1250.75 is 1, 12, 125 and 1250 on its way; at `1250.` the key is
#   gone, as a number can't end in a point; then it is back. Each of them is a valid number of the
#   right type, and nothing in the event tells them from the last.
#
# Output seen on 2026-11-28:
#   {"note": "n -> None
#   et", "total": -> {'note': 'net'}
#   1 -> {'note': 'net', 'total': 1}
#   2 -> {'note': 'net', 'total': 12}
#   5 -> {'note': 'net', 'total': 125}
#   0 -> {'note': 'net', 'total': 1250}
#   . -> {'note': 'net'}
#   75 -> {'note': 'net', 'total': 1250.75}
#   } -> {'note': 'net', 'total': 1250.75}
#
# Why it matters:
#   Whoever acts on a partial object (shows a price, checks a limit, starts a tool) acts on numbers
#   that the model never said, and an answer that breaks off leaves one behind. A number may be
#   believed once something stands after it.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    openai==3.54.0 jiter==0.19.0 pydantic==2.14.3 httpx2==2.16.2
"$folder/venv/bin/python" - >"$folder/output" <<'END'
import json

import httpx2
import openai
import pydantic

PIECES = ['{"note": "n', 'et", "total":', "1", "2", "5", "0", ".", "75", "}"]


class Bill(pydantic.BaseModel):
    note: str
    total: float


def chunk(text, finish_reason=None):
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    return {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}


def answer(_request):
    events = [json.dumps(chunk(piece)) for piece in PIECES]
    events += [json.dumps(chunk(None, "stop")), "[DONE]"]
    body = "".join(f"data: {event}\n\n" for event in events)
    return httpx2.Response(200, text=body, headers={"Content-Type": "text/event-stream"})


network = httpx2.Client(transport=httpx2.MockTransport(answer))
client = openai.OpenAI(api_key="none", base_url="http://localhost/v1", http_client=network)
asked = [{"role": "user", "content": "the bill, please"}]
with client.chat.completions.stream(model="m", messages=asked, response_format=Bill) as stream:
    for event in stream:
        if event.type == "content.delta":
            print(event.delta, "->", event.parsed)
END
cat "$folder/output"
sed -n '/^# Output seen on/,/^#$/s/^#   //p' "$0" | diff - "$folder/output" ||
    { echo "This is no longer what happens." >&2; exit 1; }
