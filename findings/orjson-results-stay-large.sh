#!/bin/sh
# Each result of `orjson.dumps` keeps the whole buffer it was written in: at least 4 KiB, for two
# bytes of JSON too, and `sys.getsizeof` says nothing of it.
#
# Versions: orjson 3.13.0; CPython 3.11.
# Needs: sh, python3 (CPython 3.11 or newer), a Python package index.
#
# A good guess:
#   `orjson.dumps` returns bytes, and bytes of length n take n bytes and some thirty more, which is
#   also what `sys.getsizeof` says.
#
# What happens:
#   The buffer is not cut to size at the end, only its length is noted. It starts at 4 KiB and
#   doubles long before it is full. While one only writes the result to a socket, nobody notices;
#   kept results take many times their length. A copy by `b"%b" % result` takes what it should
#   (`bytes(result)` makes none).
#
# Output seen on 2026-11-28:
#   JSON of 12 bytes: getsizeof 45, really 4 KiB, its copy 0 KiB
#   JSON of 1002 bytes: getsizeof 1035, really 8 KiB, its copy 1 KiB
#   JSON of 4002 bytes: getsizeof 4035, really 32 KiB, its copy 4 KiB
#   20,000 copies of 12 bytes, kept: below 10 MiB
#   20,000 results of 12 bytes, kept: over 70 MiB
#
# Why it matters:
#   Caches, queues, journals and dictionaries that hold JSON as orjson made it, say one id or one
#   small event for each of many streams, take a hundred times the memory that one computes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check orjson==3.13.0
"$folder/venv/bin/python" - >"$folder/output" <<'END'
import resource
import sys
import tracemalloc

import orjson

COUNT = 20_000


def allocated(make):
    """The bytes that Python's allocators gave for one more object, and the object."""
    make()
    before = tracemalloc.get_traced_memory()[0]
    made = make()
    return tracemalloc.get_traced_memory()[0] - before, made


def peak_mib():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def grows_by(make):
    before = peak_mib()
    kept = [make() for _ in range(COUNT)]
    assert len(kept) == COUNT
    return peak_mib() - before


tracemalloc.start()
for length in (10, 1000, 4000):
    text = "x" * length
    size, result = allocated(lambda: orjson.dumps(text))
    copied, _ = allocated(lambda: b"%b" % result)
    print(
        f"JSON of {len(result)} bytes: getsizeof {sys.getsizeof(result)}, "
        f"really {round(size / 1024)} KiB, its copy {round(copied / 1024)} KiB"
    )
tracemalloc.stop()
mib = grows_by(lambda: b"%b" % orjson.dumps("0123456789"))
print(f"20,000 copies of 12 bytes, kept: {'below 10' if mib < 10 else round(mib)} MiB")
mib = grows_by(lambda: orjson.dumps("0123456789"))
print(f"20,000 results of 12 bytes, kept: {'over 70' if mib > 70 else round(mib)} MiB")
END
cat "$folder/output"
sed -n '/^# Output seen on/,/^#$/s/^#   //p' "$0" | diff - "$folder/output" ||
    { echo "This is no longer what happens." >&2; exit 1; }
