#!/bin/sh
# `await response.write(…)` in aiohttp's server returns as if all were well when the connection is lost
# while it waits; only the write after it raises.
#
# Versions: aiohttp 3.14.5; Python 3.11.
# Needs: sh, python3 (3.11 or newer), a Python package index.
#
# A good guess:
#   A write that waits for a slow client raises when that client is gone: what it was to send was not
#   sent, and the next one raises ClientConnectionResetError as well.
#
# What happens:
#   A connection that is lost without an error (an abort of ours, or a client that closes) wakes the
#   waiting write by a plain result. It returns, though its bytes were thrown away.
#
# Output seen on 2026-11-28:
#   the write that waits: returned
#   the next write: ClientConnectionResetError
#
# Why it matters:
#   A handler whose last write was the one that waited takes its answer for delivered: a log, a bill or
#   a row then says so. Look at `request.transport` after a write that took long; None means that
#   it is gone.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check aiohttp==3.14.5
"$folder/venv/bin/python" -W ignore - >"$folder/output" <<'END'
import asyncio

from aiohttp import web

PIECE = b"x" * 65536
over = asyncio.Event()


async def stream(request):
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        writing = asyncio.create_task(response.write(PIECE))
        await asyncio.wait([writing], timeout=0.5)
        if not writing.done():
            break
    request.transport.abort()  # as who gives a client up that takes nothing does
    await asyncio.wait([writing])
    print("the write that waits:", outcome(writing))
    last = asyncio.create_task(response.write(PIECE))
    await asyncio.wait([last])
    print("the next write:", outcome(last))
    over.set()
    return response


def outcome(task):
    return "returned" if task.exception() is None else type(task.exception()).__name__


async def main():
    app = web.Application()
    app.router.add_get("/", stream)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    _, writer = await asyncio.open_connection(*runner.addresses[0])
    writer.transport.pause_reading()
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await asyncio.wait_for(over.wait(), 30)
    writer.close()
    await runner.cleanup()


asyncio.run(main())
END
cat "$folder/output"
sed -n '/^# Output seen on/,/^#$/s/^#   //p' "$0" | diff - "$folder/output" ||
    { echo "This is no longer what happens." >&2; exit 1; }
