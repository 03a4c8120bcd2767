#!/bin/sh
# A socket that listens already, with a backlog of its own, has another one once aiohttp's `SockSite`
# serves it.
#
# Versions: aiohttp 3.14.5; Python 3.11, Linux.
# Needs: sh, python3 (3.11 or newer), a Python package index.
#
# A good guess:
#   Whoever makes the socket and calls `listen(1024)` has chosen; a server that is given it accepts.
#
# What happens:
#   `SockSite` has a `backlog` parameter, 128 by default, and the event loop calls `listen` with it again
#   on the socket that it is given, which replaces the first figure. Nothing says so.
#
# Output seen on 2026-11-28:
#   made: room for 1024 connections
#   SockSite(runner, sock): room for 128 connections
#   SockSite(runner, sock, backlog=1024): room for 1024 connections
#
# Why it matters:
#   When a thousand clients come back within a second, after a network cut or a deploy, those past the
#   backlog are dropped by the kernel and try again after 1, 3, 7 and 15 seconds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check aiohttp==3.14.5
"$folder/venv/bin/python" - >"$folder/output" <<'END'
import asyncio
import socket
import struct

from aiohttp import web


def tell(what, sock):
    # struct tcp_info: 8 single bytes, then 32-bit numbers; of a listener the fifth is its connections
    # that wait (tcpi_unacked), the sixth how many may (tcpi_sacked).
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    print(f"{what}: room for {struct.unpack_from('8B6I', info)[13]} connections")


async def main():
    sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
    tell("made", sock)
    runner = web.AppRunner(web.Application())
    await runner.setup()
    await web.SockSite(runner, sock).start()
    tell("SockSite(runner, sock)", sock)
    await runner.cleanup()

    sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
    runner = web.AppRunner(web.Application())
    await runner.setup()
    await web.SockSite(runner, sock, backlog=1024).start()
    tell("SockSite(runner, sock, backlog=1024)", sock)
    await runner.cleanup()


asyncio.run(main())
END
cat "$folder/output"
sed -n '/^# Output seen on/,/^#$/s/^#   //p' "$0" | diff - "$folder/output" ||
    { echo "This is no longer what happens." >&2; exit 1; }
