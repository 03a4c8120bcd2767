#!/bin/sh
# Told by `Retry-After` when to come again, OpenAI's two SDKs do opposite things: asked to wait long,
# Python waits or gives up where Node comes back within a second; asked to come at once, Node does
# and Python waits.
#
# Versions: openai (Python) 3.54.0, openai (npm) 7.55.0; Python 3.11, Node.js 20.
# Needs: sh, python3 (3.11 or newer), node and npm, a Python and an npm package index.
#
# A good guess:
#   Both are made from one description by one vendor, and both obey `Retry-After` on a 429. One that
#   doesn't want to wait so long gives up, as coming early can only bring the next 429.
#
# What happens:
#   Python obeys up to two minutes; above that it raises at once, without a second try. `0` counts as
#   if there were no header, so that its own back-off of half a second and more applies. Node obeys
#   up to one minute, `0` included; above that it is Node that acts as if there were no header: it
#   uses up its retries within two seconds against a server that asked for minutes of peace.
#
# Output seen on 2026-11-28:
#   Retry-After: 0 (Python): comes after a back-off of its own
#   Retry-After: 0 (Node): comes at once
#   Retry-After: 30 (Python): waits
#   Retry-After: 30 (Node): waits
#   Retry-After: 90 (Python): waits
#   Retry-After: 90 (Node): comes after a back-off of its own
#   Retry-After: 200 (Python): gives up
#   Retry-After: 200 (Node): comes after a back-off of its own
#   Retry-After: 200, x-should-retry: false (Python): gives up
#   Retry-After: 200, x-should-retry: false (Node): gives up
#
# Why it matters:
#   A rate limiter or an overloaded server can't steer both by one header. Where waits are longer
#   than a minute, `x-should-retry: false` keeps both away; where `0` is meant, Node users hammer.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    openai==3.54.0 httpx2==2.16.2
npm install --silent --no-audit --no-fund --prefix "$folder" openai@7.55.0
cat >"$folder/client.py" <<'END'
import asyncio
import sys

import openai


async def ask(base, case):
    client = openai.AsyncOpenAI(api_key="none", base_url=f"{base}/{case}")
    try:
        asked = [{"role": "user", "content": "hello"}]
        await client.chat.completions.create(model="m", messages=asked)
    except openai.RateLimitError:
        print(case, flush=True)


async def main(base, *cases):
    await asyncio.gather(*(ask(base, case) for case in cases))


asyncio.run(main(*sys.argv[1:]))
END
cat >"$folder/client.mjs" <<'END'
import OpenAI from "openai";

async function ask(base, it) {
  const client = new OpenAI({ apiKey: "none", baseURL: `${base}/${it}` });
  try {
    const messages = [{ role: "user", content: "hello" }];
    await client.chat.completions.create({ model: "m", messages });
  } catch (error) {
    if (!(error instanceof OpenAI.RateLimitError)) throw error;
    console.log(it);
  }
}

const [base, ...cases] = process.argv.slice(2);
await Promise.all(cases.map((it) => ask(base, it)));
END
"$folder/venv/bin/python" - "$folder" >"$folder/output" <<'END'
import json
import subprocess
import sys
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER = Path(sys.argv[1])
CLIENTS = {
    "Python": [FOLDER / "venv/bin/python", FOLDER / "client.py"],
    "Node": ["node", FOLDER / "client.mjs"],
}
CASES = {
    "0": "Retry-After: 0",
    "30": "Retry-After: 30",
    "90": "Retry-After: 90",
    "200": "Retry-After: 200",
    "200-no": "Retry-After: 200, x-should-retry: false",
}
BODY = json.dumps(
    {"error": {"message": "busy", "type": "rate_limit_error", "param": None, "code": "busy"}}
).encode()
asked_at = defaultdict(list)


class Server(BaseHTTPRequestHandler):
    def do_POST(self):
        _, name, case, *_ = self.path.split("/")
        asked_at[name, case].append(time.monotonic())
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(429)
        for header in CASES[case].split(", "):
            self.send_header(*header.split(": "))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_):
        pass


def what_it_did(times, has_ended):
    match len(times):
        case 1:
            return "gives up" if has_ended else "waits"
        case 3 if times[2] - times[0] < 0.9:  # a back-off is 0.5 s and then 1 s, less up to a quarter
            return "comes at once"
        case 3:
            return "comes after a back-off of its own"
        case other:
            return f"asks {other} times"


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
base = f"http://127.0.0.1:{server.server_port}"
ended = {}
for name, command in CLIENTS.items():
    with open(FOLDER / name, "w+") as said:
        process = subprocess.Popen([*command, f"{base}/{name}", *CASES], stdout=said)
        try:
            patience_ends = time.monotonic() + 30
            while not all(asked_at[name, case] for case in CASES):
                assert time.monotonic() < patience_ends, "not all was asked"
                time.sleep(0.01)
            time.sleep(5)
        finally:
            process.kill()
            process.wait()
        said.seek(0)
        ended[name] = said.read().split()
for case, headers in CASES.items():
    for name in CLIENTS:
        print(f"{headers} ({name}): {what_it_did(asked_at[name, case], case in ended[name])}")
server.shutdown()
END
cat "$folder/output"
sed -n '/^# Output seen on/,/^#$/s/^#   //p' "$0" | diff - "$folder/output" ||
    { echo "This is no longer what happens." >&2; exit 1; }
