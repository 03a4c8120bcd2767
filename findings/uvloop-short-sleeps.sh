#!/bin/sh
# On uvloop `asyncio.sleep` returns before its time is over, and one of less than half a millisecond
# doesn't sleep at all.
#
# Versions: uvloop 0.23.0; Python 3.11.
# Needs: sh, python3 (3.11 or newer), a Python package index.
#
# A good guess:
#   A sleep takes at least as long as it says, as with asyncio's own loop; uvloop only has less
#   overhead, so that short sleeps are more exact.
#
# What happens:
#   uvloop rounds each delay to whole milliseconds, and its clock counts whole milliseconds too. Below
#   half a millisecond the delay becomes none: a loop of such sleeps runs as fast as it can. Others
#   end up to a millisecond early (10.4 ms become 10, counted from the last full one).
#
# Output seen on 2026-11-28:
#   asyncio: of 100 sleeps of 10.4 ms, ended early: none
#   asyncio: 500 sleeps of 0.4 ms: no less than 200 ms
#   uvloop: of 100 sleeps of 10.4 ms, ended early: many
#   uvloop: 500 sleeps of 0.4 ms: less than 100 ms
#
# Why it matters:
#   A stand-in backend that paces 2,500 tokens a second by sleeping floods whoever it tests, and a
#   rate limiter that sleeps until a slot is free wakes up before it is. Pace by a schedule: keep the
#   time at which the next one is due, and look at the clock after waking.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check uvloop==0.23.0
"$folder/venv/bin/python" - >"$folder/output" <<'END'
import asyncio
import time

import uvloop


async def main(name):
    early = 0
    for _ in range(100):
        begun = time.monotonic()
        await asyncio.sleep(0.0104)
        early += time.monotonic() - begun < 0.0104
    words = "none" if not early else "many" if early > 10 else early
    print(f"{name}: of 100 sleeps of 10.4 ms, ended early: {words}")
    begun = time.monotonic()
    for _ in range(500):
        await asyncio.sleep(0.0004)
    ms = 1000 * (time.monotonic() - begun)
    words = "no less than 200" if ms >= 200 else "less than 100" if ms < 100 else round(ms)
    print(f"{name}: 500 sleeps of 0.4 ms: {words} ms")


asyncio.run(main("asyncio"))
uvloop.run(main("uvloop"))
END
cat "$folder/output"
sed -n '/^# Output seen on/,/^#$/s/^#   //p' "$0" | diff - "$folder/output" ||
    { echo "This is no longer what happens." >&2; exit 1; }
