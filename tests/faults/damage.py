"""Damages journals on disk, and knows exactly which words each damage may cost. Blocks."""

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import define

from tests.faults.plans import Outcome, Plan

DAMAGED = frozenset((Outcome("failed", "process_died"), Outcome("failed", "journal_damaged")))


@define
class Line:
    """One record as it lies in a segment."""

    path: Path
    start: int
    length: int
    record: dict[str, Any]

    @property
    def words(self) -> set[str]:
        """The words that it alone holds."""
        found: set[str] = set()
        for event in self.record.get("events", ()):
            for choice in event.get("chunk", {}).get("choices", ()):
                found.add(choice["delta"].get("content") or "")
        return found - {""}


def lines_of(journal: Path) -> list[Line]:
    """Every whole record of every segment of every process, in order."""
    lines: list[Line] = []
    for path in sorted(journal.glob("*/*.jsonl")):
        start = 0
        for text in path.read_bytes().splitlines(keepends=True):
            if text.endswith(b"\n"):
                record = json.loads(text.split(b" ", 2)[2])
                lines.append(Line(path, start, len(text), record))
            start += len(text)
    return lines


def flip(journal: Path, plans: Sequence[Plan], chance: random.Random, times: int) -> None:
    """Turn single bits over, anywhere; note what each completion may lose."""
    lines = lines_of(journal)
    owners = _owners(lines, plans)
    for line in chance.sample(lines, min(times, len(lines))):
        offset, bit = chance.randrange(line.length), chance.randrange(8)
        byte = _flip_bit(line.path, line.start + offset, bit)
        if not _says_the_same(offset, byte, bit) and offset < line.length - 1:
            _note_loss(line, owners)  # the line's end holds nothing


def tear(journal: Path, chance: random.Random) -> None:
    """Let the last segment end in a record that was never whole: a write cut short by the kill.
    Nobody was shown what it holds, so nothing may be lost."""
    line = chance.choice(lines_of(journal))
    last = sorted(journal.glob("*/*.jsonl"))[-1]
    whole = line.path.read_bytes()[line.start : line.start + line.length]
    with last.open("ab") as file:
        file.write(whole[: chance.randint(1, len(whole) - 2)])


def truncate(journal: Path, plans: Sequence[Plan], chance: random.Random) -> None:
    """Cut into the last record, as a machine does that lost power."""
    lines = lines_of(journal)
    line = lines[-1]
    _note_loss(line, _owners(lines, plans))
    os.truncate(line.path, line.start + chance.randrange(line.length - 1))


def _owners(lines: Sequence[Line], plans: Sequence[Plan]) -> dict[str, Plan]:
    """Completion id → plan, from the records that begin a session."""
    by_key = {plan.key: plan for plan in plans}
    owners: dict[str, Plan] = {}
    for line in lines:
        if "request" in line.record:
            plan = by_key[line.record["request"]["conversation_key"]]
            plan.completion_id = line.record["id"]
            owners[line.record["id"]] = plan
    return owners


def _note_loss(line: Line, owners: dict[str, Plan]) -> None:
    if "saved" in line.record:
        return
    plan = owners[line.record["id"]]
    plan.loses = (plan.loses or set()) | line.words
    plan.expected = DAMAGED


def _says_the_same(offset: int, byte: bytes, bit: int) -> bool:
    """A checksum's hexadecimal letter that only changed its case is still the checksum."""
    return offset < 8 and byte.isalpha() and 1 << bit == 0x20


def _flip_bit(path: Path, position: int, bit: int) -> bytes:
    """Turn one bit over; the byte that was there."""
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes((byte[0] ^ 1 << bit,)))
    return byte
