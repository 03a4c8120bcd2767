"""Claims for tests, and processes that take them.

    python -m tests.db.claims.claiming DIRECTORY NUMBER [INSTEAD_OF]

forks so many processes, has all of them take the same key at once, each for a completion of its own,
and prints what each was given.
"""

import asyncio
import hashlib
import os
import signal
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from attrs import define

from db.claims import Claim, SqliteClaims

DAY = 86_400.0
NOON = 1_750_000_000.0


@define
class Clock:
    """POSIX seconds that pass when a test says so."""

    now: float = NOON

    def __call__(self) -> float:
        return self.now


def make_claim(completion_id: str = "chatcmpl-1", key: str = "key", **fields: Any) -> Claim:
    values = {
        "key": hashlib.sha256(key.encode()).digest(),
        "body": hashlib.sha256(b"body").digest(),
        "completion_id": completion_id,
        "holder": "1767264752-4711-9f3c01ab",
        "claimed_at": NOON,
        **fields,
    }
    return Claim(**values)


def sqlite_claims(directory: Path, **options: Any) -> SqliteClaims:
    given = {"keep_seconds": lambda: DAY, "clock": lambda: NOON, "is_synced": False, **options}
    return SqliteClaims(directory, **given)


def number_in(file: Path) -> int:
    """How many claims a file holds."""
    with closing(sqlite3.connect(file)) as connection:
        ((number,),) = connection.execute("SELECT count(*) FROM claims")
        return int(number)


async def take_and_close(directory: Path, claim: Claim, instead_of: str | None = None) -> Claim:
    claims = sqlite_claims(directory)
    try:
        return await claims.take(claim, instead_of=instead_of)
    finally:
        await claims.close()


def main(directory: Path, number: int, instead_of: str | None) -> None:
    wait, go = os.pipe()
    for each in range(number):
        if os.fork() == 0:
            os.close(go)
            os.read(wait, 1)  # until nobody holds the other end
            claim = make_claim(f"chatcmpl-{each}")
            held = asyncio.run(take_and_close(directory, claim, instead_of))
            os.write(1, f"{each} {held.completion_id}\n".encode())
            os._exit(0)
    time.sleep(0.2)  # all of them wait by now
    os.close(go)
    for _ in range(number):
        os.wait()


def take_and_die(directory: Path) -> None:
    """Take a claim, and be killed as soon as it was given."""

    async def take() -> None:
        held = await sqlite_claims(directory).take(make_claim("chatcmpl-killed"))
        os.write(1, held.completion_id.encode())
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(take())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if sys.argv[3:] else None)
