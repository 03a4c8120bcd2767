"""Measures what it takes to bring a dead process's journal back, in this tree and in another.

    python -m benchmarks.questions.recovery                     # this tree alone
    git worktree add --detach ../before 83e57f8
    python -m benchmarks.questions.recovery ../before
    python -m benchmarks.questions.recovery ../before --kind padded --megabytes 20 --json

A journal of answers of 200 chunks, 50 at a time, whose chunks came one by one, is played back by a
fresh process (`benchmarks/stand/recovering.py`), its records thrown away; and again, with every record
committed to a PostgreSQL, which is emptied before. The trees take turns, also at being the first.
CPU time is that process's, user and system, all its threads, without its start. `turn` is the longest
that a task of its loop had to wait for its turn: in CPU time of the loop's thread, and by the wall.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from random import Random
from statistics import median
from string import ascii_letters
from typing import Any

from benchmarks.questions.tapes import tokens
from benchmarks.stand.figures import print_table
from benchmarks.stand.machine import settle, to_server_core
from benchmarks.stand.running import ROOT, Server
from db.journal import Fsync, Journal
from service.agents.openai.pattern import learn
from statemachine import (
    ChunkPattern,
    ChunkReceived,
    Event,
    RepeatedChunks,
    SessionPolicy,
    SessionRequest,
    UpstreamFinished,
)

_CHUNKS = 200
_AT_ONCE = 50
_EMPTY = "TRUNCATE completions, messages, conversations, tool_sets CASCADE; COMMIT; SELECT 1"
_NOW = 1_767_264_752.25

KINDS = ("plain", "ascii", "padded")
"""How chunks are written: words as they are; a sixth of them with an umlaut, in ASCII; each with
OpenAI's `obfuscation`."""


def _payload(delta: dict[str, Any], end: str | None = None, **fields: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-CH3uWYzbmCjhuUbRMg5nVkPJWnGs6",
        "object": "chat.completion.chunk",
        "created": 1767264752,
        "model": "gpt-4o-2024-08-06",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": end}],
        **fields,
    }


def _pattern(kind: str) -> ChunkPattern:
    payload = _payload({"content": "word"}, **({"obfuscation": "x"} if kind == "padded" else {}))
    pattern = learn(json.dumps(payload, separators=(",", ":")).encode(), payload, "content")
    assert pattern is not None and bool(pattern.between) == (kind == "padded")
    return pattern


def _answer(kind: str, words: Iterator[str], chance: Random) -> Iterator[Event]:
    """What happens in one."""
    pattern = _pattern(kind)
    yield ChunkReceived(_payload({"role": "assistant", "content": ""}))
    for number, word in enumerate(islice(words, _CHUNKS)):
        text = f"{word}ä" if kind == "ascii" and number % 6 == 5 else word
        line = json.dumps(text).encode()
        if pattern.between:
            padding = "".join(chance.choices(ascii_letters, k=chance.randint(1, 16)))
            line += pattern.between + json.dumps(padding).encode()
        yield ChunkReceived(RepeatedChunks(pattern, (text,), line))
    yield ChunkReceived(_payload({}, "stop"))
    yield UpstreamFinished()


def write_journal(directory: Path, kind: str, size: int) -> Path:
    """A dead process's journal of about so many bytes."""
    journal = Journal.open(directory, Fsync.NEVER, 1 << 62)
    words, chance = cycle(tokens(100_000)), Random(1)
    running: dict[int, tuple[str, Iterator[Event]]] = {}
    number, now = 0, _NOW
    while running or journal.size < size:
        if len(running) < _AT_ONCE and journal.size < size:
            name = f"chatcmpl-{number:024}"
            messages = [{"role": "user", "content": f"Question {number}"}]
            request = SessionRequest(name, now, f"{number:032}", "alice", "bench", "m", messages)
            assert journal.begin(request, SessionPolicy())
            running[number] = name, _answer(kind, words, chance)
            number += 1
        for key, (name, events) in list(running.items()):
            now += 0.0004
            if (event := next(events, None)) is None:
                del running[key]
            else:
                journal.append(name, [event], now)
    journal.close()
    return journal.directory


def _recovered(tree: Path, journal: Path, dsn: str | None) -> dict[str, float]:
    """What one recovery took, of a copy: it deletes what it has recovered."""
    with tempfile.TemporaryDirectory(dir=journal.parent.parent) as name:
        copy = Path(name) / journal.name
        copy.mkdir()
        for path in journal.iterdir():
            os.link(path, copy / path.name)
        program = str(ROOT / "benchmarks" / "stand" / "recovering.py")
        command = [sys.executable, "-P", program, str(tree), name, *([dsn] if dsn else [])]
        done = subprocess.run(command, capture_output=True, preexec_fn=to_server_core)
    if done.returncode:
        raise SystemExit(done.stderr.decode()[-3000:])
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _measure(
    trees: dict[str, Path], journal: Path, server: Server | None, rounds: int
) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for number in range(rounds):
        for name, tree in list(trees.items())[:: 1 if number % 2 else -1]:
            if server is not None and any(found.values()):
                server.query(_EMPTY)
            dsn = None if server is None else server.dsn
            found[name].append(_recovered(tree, journal, dsn))
            print(name, found[name][-1], file=sys.stderr)
    results = {
        tuple(each[key] for key in ("records", "chunks", "characters")) for each in _all(found)
    }
    if len(results) > 1:
        raise SystemExit(f"not the same came back: {results}")
    return found


def _all(found: dict[str, list[dict[str, float]]]) -> Iterator[dict[str, float]]:
    for each in found.values():
        yield from each


def _row(rounds: list[dict[str, float]], size: int) -> dict[str, Any]:
    cpu = median(each["cpu_seconds"] for each in rounds)
    return {
        "CPU s": cpu,
        "min": min(each["cpu_seconds"] for each in rounds),
        "max": max(each["cpu_seconds"] for each in rounds),
        "ms/MB": cpu * 1e3 / (size / 1e6),
        "turn ms of CPU": max(each["turn_cpu_ms"] for each in rounds),
        "turn ms": max(each["turn_wall_ms"] for each in rounds),
        "peak MB": max(each["peak_mb"] for each in rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tree", type=Path, nargs="?", help="a checkout of another revision")
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--kind", choices=KINDS, default=KINDS[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    settle()
    trees = {"other": options.tree.resolve()} if options.tree else {}
    trees["this"] = ROOT
    with tempfile.TemporaryDirectory(prefix="verbatim-bench-") as name:
        Path(name).chmod(0o755)
        journal = write_journal(Path(name) / "made", options.kind, round(options.megabytes * 1e6))
        size = sum(path.stat().st_size for path in journal.glob("*.jsonl"))
        found = {"replay": _measure(trees, journal, None, options.rounds)}
        server = Server(Path(name) / "postgres")
        try:
            found["replay and saves"] = _measure(trees, journal, server, options.rounds)
        finally:
            server.stop()
    if options.json:
        print(json.dumps({"bytes": size, **found}, indent=2))
        return
    for title, each in found.items():
        rows = {tree: _row(rounds, size) for tree, rounds in each.items()}
        print_table(f"{title}: {size / 1e6:.0f} MB, {options.rounds} rounds", rows)
        if "other" in rows:
            print(f"this, of the other: {rows['this']['CPU s'] / rows['other']['CPU s']:.3f}\n")


if __name__ == "__main__":
    main()
