#!/bin/sh
# Two Python clients for server-sent events take away all spaces before a text and all line ends
# behind it, where the format takes away one space and nothing else.
#
# Versions: requests-sse 0.5.3, aiohttp-sse-client2 0.3.0; beside them httpx-sse 0.4.3 and
#   sseclient-py 1.9.0, which get it right; Python 3.11.
# Needs: sh, python3 (3.11 or newer), a Python package index.
#
# A good guess:
#   What an event carries arrives as it was sent, whichever library reads it: the format lets a
#   reader drop a single space after `data:`, and joins several `data:` lines by line ends.
#
# What happens:
#   requests-sse and aiohttp-sse-client2 strip every leading space from each line of data, and every
#   line end from the end of an event. A line of code loses its indentation; a token that begins with
#   a space sticks to the word before it when the server sends one space after the colon; a token of
#   line ends alone arrives as an empty text. Nothing is raised, and JSON doesn't show it, since its
#   spaces stand inside quotes.
#
# Output seen on 2026-11-28:
#   sent:                ['if x:', '    return', ' and', 'end\n\n']
#   httpx-sse:           ['if x:', '    return', ' and', 'end\n\n']
#   sseclient-py:        ['if x:', '    return', ' and', 'end\n\n']
#   requests-sse:        ['if x:', 'return', 'and', 'end']
#   aiohttp-sse-client2: ['if x:', 'return', 'and', 'end']
#
# Why it matters:
#   Servers that stream a model's words as plain text in `data:`, without JSON around each, look
#   right with one client and glue words together with another. Put text into JSON.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    requests-sse==0.5.3 aiohttp-sse-client2==0.3.0 httpx-sse==0.4.3 sseclient-py==1.9.0 \
    requests==2.34.2 aiohttp==3.14.5 httpx==0.28.1
"$folder/venv/bin/python" - >"$folder/output" <<'END'
import asyncio
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import aiohttp_sse_client2.client
import httpx
import httpx_sse
import requests
import requests_sse
import sseclient

SENT = ["if x:", "    return", " and", "end\n\n"]


class Server(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.end_headers()
        for text in SENT:
            for line in text.split("\n"):
                self.wfile.write(f"data: {line}\n".encode())
            self.wfile.write(b"\n")

    def log_message(self, *_):
        pass


def with_httpx_sse(url):
    with httpx.Client() as client, httpx_sse.connect_sse(client, "GET", url) as source:
        return [event.data for event in source.iter_sse()]


def with_sseclient_py(url):
    response = requests.get(url, stream=True, timeout=20)
    return [event.data for event in sseclient.SSEClient(response).events()]


def with_requests_sse(url):
    with requests_sse.EventSource(url, timeout=20) as source:
        return [next(source).data for _ in SENT]


async def with_aiohttp_sse_client2(url):
    async with asyncio.timeout(20):
        async with aiohttp_sse_client2.client.EventSource(url) as source:
            return [(await anext(source)).data for _ in SENT]


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/"
print("sent:               ", SENT)
print("httpx-sse:          ", with_httpx_sse(url))
print("sseclient-py:       ", with_sseclient_py(url))
print("requests-sse:       ", with_requests_sse(url))
print("aiohttp-sse-client2:", asyncio.run(with_aiohttp_sse_client2(url)))
server.shutdown()
END
cat "$folder/output"
sed -n '/^# Output seen on/,/^#$/s/^#   //p' "$0" | diff - "$folder/output" ||
    { echo "This is no longer what happens." >&2; exit 1; }
