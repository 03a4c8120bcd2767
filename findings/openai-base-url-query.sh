#!/bin/sh
# With a query in its `base_url`, the Python openai SDK asks for the base alone, and the path of the
# call ends up inside the query.
#
# Versions: openai 3.54.0, httpx2 2.16.2; Python 3.11.
# Needs: sh, python3 (3.11 or newer), a Python package index.
#
# A good guess:
#   The path of a call is joined to the path of `base_url`, and a query there stays behind it, as
#   with any URL library; or the SDK refuses such an address.
#
# What happens:
#   The SDK joins texts, not parts: the base with its query, a slash, the call's path. A server sees
#   a request for the base whose last parameter has a longer value, and nothing is raised on the
#   client's side. `default_query` is the way that works.
#
# Output seen on 2026-11-28:
#   base_url with a query: POST /v1/?api-version=2026-01-01chat/completions
#   default_query:         POST /v1/chat/completions?api-version=2026-01-01
#
# Why it matters:
#   Some gateways want a version or a tenant in the query of every request, and a base URL is the one
#   thing that every tool lets its users set. They may get a 404, or the answer of another endpoint, and
#   the cause is in no message. Refuse a `base_url` with a query in a configuration, or take it apart.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    openai==3.54.0 httpx2==2.16.2
"$folder/venv/bin/python" - >"$folder/output" <<'END'
import httpx2
import openai

COMPLETION = {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": []}
BASE = "http://localhost/v1"


def asked(base_url, **options):
    """The request line that reaches the network."""
    lines = []

    def answer(request):
        lines.append(f"{request.method} {request.url.raw_path.decode()}")
        return httpx2.Response(200, json=COMPLETION)

    network = httpx2.Client(transport=httpx2.MockTransport(answer))
    client = openai.OpenAI(api_key="none", base_url=base_url, http_client=network, **options)
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])
    return lines[0]


print("base_url with a query:", asked(f"{BASE}?api-version=2026-01-01"))
print("default_query:        ", asked(BASE, default_query={"api-version": "2026-01-01"}))
END
cat "$folder/output"
sed -n '/^# Output seen on/,/^#$/s/^#   //p' "$0" | diff - "$folder/output" ||
    { echo "This is no longer what happens." >&2; exit 1; }
