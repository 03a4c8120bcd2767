#!/bin/sh
# A stream that runs when aiohttp's server stops is cancelled after twice `shutdown_timeout`, and then
# gets no time: `on_cleanup` runs before the handler's own clean-up.
#
# Versions: aiohttp 3.14.5; Python 3.11.
# Needs: sh, python3 (3.11 or newer), a Python package index.
#
# A good guess:
#   Handlers have `shutdown_timeout` to end by themselves, are cancelled then, and are waited for,
#   for another `shutdown_timeout` at most, before `on_cleanup` closes what they use. aiohttp's page on
#   graceful shutdown describes it like this.
#
# What happens:
#   What is cancelled after the first timeout is only the reading of the request's body. A handler that
#   writes a stream goes on through the second timeout as if nothing had happened, is cancelled at the
#   end of it, and isn't waited for. With a timeout of 1 s it hears of the end after 2 s, and
#   `on_cleanup` has run by the time it has done the first thing that needs waiting.
#
# Output seen on 2026-11-28:
#   after 0 s: on_shutdown
#   after 2 s: the handler is cancelled
#   after 2 s: on_cleanup
#   after 2 s: the handler has saved
#
# Why it matters:
#   With the default of 60 s a server with an open stream takes two minutes to stop, longer than most
#   supervisors wait before they kill it; and a handler that saves when it is cancelled finds the
#   database's pool closed. End streams in `on_shutdown`, by an event that each of them watches, and
#   save in tasks of your own that `on_cleanup` waits for.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check aiohttp==3.14.5
"$folder/venv/bin/python" - >"$folder/output" <<'END'
import asyncio
import time

from aiohttp import web

begun = 0.0


def note(words):
    print(f"after {time.monotonic() - begun:.0f} s: {words}")


async def stream(request):
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    try:
        while True:
            await response.write(b"data: word\n\n")
            await asyncio.sleep(0.05)
    finally:
        note("the handler is cancelled")
        await asyncio.sleep(0.1)  # stands for a save
        note("the handler has saved")


async def on_shutdown(_app):
    note("on_shutdown")


async def on_cleanup(_app):
    note("on_cleanup")


async def main():
    global begun
    app = web.Application()
    app.router.add_get("/", stream)
    app.on_shutdown.append(on_shutdown)
    app.on_cleanup.append(on_cleanup)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    reader, writer = await asyncio.open_connection(*runner.addresses[0])
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    reading = asyncio.create_task(reader.read())  # to the end: a client that takes what comes
    await asyncio.sleep(0.2)
    begun = time.monotonic()
    await runner.cleanup()
    await asyncio.sleep(0.3)
    writer.close()
    await asyncio.wait([reading], timeout=5)


asyncio.run(main())
END
cat "$folder/output"
sed -n '/^# Output seen on/,/^#$/s/^#   //p' "$0" | diff - "$folder/output" ||
    { echo "This is no longer what happens." >&2; exit 1; }
