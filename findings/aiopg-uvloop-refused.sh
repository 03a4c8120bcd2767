#!/bin/sh
# On uvloop, after a connection that was refused, aiopg's next one fails too, with a RuntimeError of
# uvloop's, whether or not a server is there by then.
#
# Versions: aiopg 1.4.0, psycopg2-binary 2.9.13, uvloop 0.23.0; Python 3.11.
# Needs: sh, python3 (3.11 or newer), a Python package index.
#
# A good guess:
#   A refused connection is an OperationalError, on any event loop, as often as one tries.
#
# What happens:
#   aiopg watches the connection's file descriptor and leaves it watched when libpq has closed it. The
#   next connection gets the same number; uvloop, which keeps an object for each number, then has a
#   closed one. asyncio's own loop forgets it in silence. The attempt after that goes well again.
#
# Output seen on 2026-11-28:
#   asyncio: OperationalError, OperationalError, OperationalError, OperationalError
#   uvloop: OperationalError, RuntimeError, OperationalError, RuntimeError
#
# Why it matters:
#   A pool over uvloop that finds its server away raises an error that no `except psycopg2.Error`
#   catches, and that sounds as if the pool had been closed. Trying once more doesn't do: whatever gets
#   the number next may fail, at a loop's end its own sockets too. Give aiopg a `connection_factory`
#   whose `poll` calls the loop's `remove_writer` before it raises.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check aiopg==1.4.0 psycopg2-binary==2.9.13 uvloop==0.23.0
"$folder/venv/bin/python" -W ignore - >"$folder/output" 2>"$folder/noise" <<'END'
import asyncio
import socket

import aiopg
import uvloop


async def attempts(port):
    for _ in range(4):
        try:
            await aiopg.connect(f"host=127.0.0.1 port={port} dbname=shop user=shop")
        except Exception as error:
            yield type(error).__name__


async def main(name):
    with socket.socket() as nobody:  # bound and not listening: every connection is refused
        nobody.bind(("127.0.0.1", 0))
        errors = [error async for error in attempts(nobody.getsockname()[1])]
    print(f"{name}: {', '.join(errors)}")


asyncio.run(main("asyncio"))
uvloop.run(main("uvloop"))
END
cat "$folder/output"
sed -n '/^# Output seen on/,/^#$/s/^#   //p' "$0" | diff - "$folder/output" ||
    { echo "This is no longer what happens." >&2; exit 1; }
