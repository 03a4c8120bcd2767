"""Keeps records that the database refuses as files, for people to read and to try again.

    python -m db.dead_letters DIRECTORY list
    python -m db.dead_letters DIRECTORY retry [--database URL]

One JSON file per completion under `dead-letters/` in the journal's directory: the reason, the
whole record, and its tape as the columns would hold it (`db.rows.tapes`). Behind each is a mistake of
the service's or an odd limit of the database's; once that is mended, `retry` saves the record and
deletes the file. Never decides what is refused.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import Any

from attrs import evolve

from db.journal.format import converter, dump_json, load_json
from db.journal.segments import sync_all
from db.postgres.store import PostgresStore
from db.rows.columns import from_jsonb, to_jsonb
from db.rows.tapes import TapeDamaged, columns_of, tape_of
from db.store import RecordRejected, StoreUnavailable
from statemachine import SessionRecord

FOLDER = "dead-letters"


class DeadLetters:
    """The folder in the journal's `directory`. It is made with the first letter."""

    def __init__(self, directory: Path) -> None:
        self._folder = directory / FOLDER

    def add(self, record: SessionRecord, reason: str) -> None:
        """Keep a record, whole or not at all, on the disk itself: the journal forgets it next.

        Raises OSError.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._folder / f"{record.completion_id}.json"
        letter = _written(record, reason)
        making = path.with_suffix(".new")
        descriptor = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(letter)
            file.flush()
            os.fsync(file.fileno())
        making.replace(path)
        sync_all([], [self._folder, self._folder.parent])

    def paths(self) -> list[Path]:
        """The letters, oldest first. One that goes meanwhile is left out."""
        found = list[tuple[float, Path]]()
        for path in self._folder.glob("*.json"):
            with suppress(FileNotFoundError):
                found.append((path.stat().st_mtime, path))
        return [path for _, path in sorted(found, key=itemgetter(0))]

    def count(self) -> int:
        """How many there are."""
        try:
            return sum(name.endswith(".json") for name in os.listdir(self._folder))
        except FileNotFoundError:
            return 0

    def read(self, path: Path) -> tuple[SessionRecord, str]:
        """Return a letter's record and reason. Raises ValueError or OSError."""
        data = path.read_bytes()
        try:
            letter = load_json(data)
            if letter.get("escaped"):
                letter = from_jsonb(data.decode())
            return _record_in(letter), letter["reason"]
        except Exception as error:  # cattrs has its own family
            raise ValueError(f"{path} is no dead letter") from error


def _written(record: SessionRecord, reason: str) -> bytes:
    letter = {"reason": reason, "record": converter.unstructure(evolve(record, tape=None))}
    if (columns := columns_of(record)) is not None:
        letter["tape"], letter["tape_lengths"] = columns.tape.decode(), columns.lengths
    written = dump_json(letter)
    if b"\\ud" in written:
        # JSON would make one character of two halves that came in two chunks.
        written = to_jsonb({"escaped": True, **letter}).encode()
    return written


def _record_in(letter: dict[str, Any]) -> SessionRecord:
    """The record of a letter; without a tape, if it has none or somebody edited it."""
    record = converter.structure(letter["record"], SessionRecord)
    if "tape" in letter:
        with suppress(TapeDamaged):
            lengths = bytes.fromhex(letter["tape_lengths"])
            kept = tape_of(letter["tape"], lengths, record.choices)
            return evolve(record, tape=kept.tape)
    return record


async def _retry(letters: DeadLetters, database_url: str) -> int:
    """Save what can be saved now. Returns how many are left. Raises StoreUnavailable."""
    store = await PostgresStore.open(database_url)
    left = 0
    try:
        for path in letters.paths():
            try:
                record, _ = letters.read(path)
                await store.save([record])
            except (RecordRejected, ValueError, OSError) as error:
                left += 1
                print(f"{path.stem}: {error}")
            else:
                path.unlink()
                print(f"{path.stem}: saved")
    finally:
        await store.close()
    return left


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m db.dead_letters", description=__doc__)
    parser.add_argument("directory", type=Path, help="the journal's directory, e.g. var/journal")
    parser.add_argument("command", choices=("list", "retry"))
    parser.add_argument("--database", default=os.environ.get("DATABASE_URL"), help="URL for retry")
    options = parser.parse_args(arguments)
    letters = DeadLetters(options.directory)
    if options.command == "list":
        for path in letters.paths():
            try:
                record, reason = letters.read(path)
            except (ValueError, OSError) as error:
                print(f"{path.stem}  unreadable  {error}")
            else:
                print(f"{path.stem}  {record.state}  {reason}")
        return 0
    if not options.database:
        parser.error("retry needs --database or DATABASE_URL")
    try:
        return 1 if asyncio.run(_retry(letters, options.database)) else 0
    except StoreUnavailable as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
