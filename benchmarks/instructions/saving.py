"""The service's own saver and store on a PostgreSQL, in a process whose instructions are counted.

    python -P benchmarks/instructions/saving.py TREE DSN

Prints its port. Whoever connects sends lines, `make N` and then `save N`, and gets each back when so
many transactions of `RECORDS` records each are made up, or committed. The project's modules are
those of the tree, wherever in it they stand: each name is looked for in the source, so an earlier or
later revision is driven by the same program. Imports nothing of
`benchmarks`.
"""

import asyncio
import gc
import json
import re
import sys
from collections.abc import Mapping
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import attrs

RECORDS = 16
"""In a transaction, as some hundred requests a second would have it."""

_PACKAGES = ("statemachine", "db")
_PAUSE_SECONDS = 0.03
"""Between transactions: longer than one keeps the next waiting."""
_NOW = 1_750_000_000.25


def module_of(tree: Path, name: str) -> str:
    """The module of the tree that defines a class or function of that name. Imports nothing.

    Raises `LookupError` if none does.
    """
    definition = re.compile(rf"^(?:class|def) {name}\b", re.MULTILINE)
    for package in _PACKAGES:
        for path in sorted((tree / package).rglob("*.py")):
            if definition.search(path.read_text("utf-8")):
                parts = path.relative_to(tree).with_suffix("").parts
                return ".".join(parts).removesuffix(".__init__")
    raise LookupError(f"no {name} in {tree}")


def defined(tree: Path, name: str) -> Any:
    """That class or function. Raises `LookupError` if there is none, and what its import raises."""
    return getattr(import_module(module_of(tree, name)), name)


def _made(cls: type, values: Mapping[str, Any]) -> Any:
    """An object of an attrs class, with the values that it has fields for."""
    names = {field.name for field in attrs.fields(cls)}
    return cls(**{name: value for name, value in values.items() if name in names})


class Maker:
    """Makes records of a question and an answer of a word each, all of them alike but for a
    number."""

    def __init__(self, tree: Path) -> None:
        self._numbers = count(1_000_000)
        self._request, self._record, self._choice, states, sources = (
            defined(tree, name)
            for name in ("SessionRequest", "SessionRecord", "Choice", "State", "UsageSource")
        )
        try:
            self._make_tape, self._chunk = defined(tree, "Tape"), defined(tree, "ParsedChunk")
        except LookupError:
            self._make_tape = None
        self._values = {
            "created_at": _NOW,
            "trace_id": "0af7651916cd43dd8448eb211c80319c",
            "owner": "alice",
            "agent": "bench",
            "model": "bench",
            "state": states.COMPLETED,
            "finish_reason": "stop",
            "failure": None,
            "whole": True,
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
            "usage_source": sources.PROVIDER,
            "token_count": 2,
            "chunk_count": 2,
            "ttft_ms": 120.5,
            "duration_ms": 800.25,
            "finished_at": _NOW + 0.8,
            "client_left_at": None,
            "upstream_id": "up",
            "upstream_model": "bench",
            "upstream_created": 1_750_000_001,
            "extra": {},
        }

    def record(self) -> Any:
        number = next(self._numbers)
        message = {"role": "assistant", "content": f"Answer {number}"}
        values = {
            **self._values,
            "completion_id": f"chatcmpl-{number:024}",
            "messages": [{"role": "user", "content": f"Question {number}"}],
            "index": 0,
            "message": message,
        }
        choices = (_made(self._choice, values),)
        return _made(
            self._record,
            {
                **values,
                "request": _made(self._request, values),
                "choices": choices,
                "tape": self._tape(message["content"]),
            },
        )

    def _tape(self, content: str) -> Any:
        """The chunks of such an answer, in revisions that keep them: its role, its word, its end."""
        if self._make_tape is None:
            return None
        tape = self._make_tape()
        for delta, reason in (
            ({"role": "assistant"}, None),
            ({"content": content}, None),
            ({}, "stop"),
        ):
            payload = {
                "id": "up",
                "object": "chat.completion.chunk",
                "created": 1_750_000_001,
                "model": "bench",
                "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
            }
            tape.add(self._chunk(payload, json.dumps(payload).encode()))
        return tape


def _saver(tree: Path, store: Any) -> Any:
    """The tree's saver, without a journal; earlier revisions needn't be told that there is none."""
    try:
        return defined(tree, "Saver")(store, defined(tree, "NoJournal")())
    except LookupError:
        return defined(tree, "Saver")(store)


async def _serve(tree: Path, dsn: str) -> None:
    await asyncio.to_thread(defined(tree, "migrate"), dsn)
    store = await defined(tree, "PostgresStore").open(dsn)
    saver = _saver(tree, store)
    saver.start()
    maker = Maker(tree)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made: list[list[Any]] = []
        while line := await reader.readline():
            for _ in range(int(line.split()[1])):
                if line.startswith(b"make"):
                    made.append([maker.record() for _ in range(RECORDS)])
                else:
                    saved = [saver.save(record) for record in made.pop()]
                    await asyncio.gather(*saved)
                    await asyncio.sleep(_PAUSE_SECONDS)
            writer.write(line)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    gc.collect()  # from here on as the service does
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    print(f"port {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    tree, dsn = Path(sys.argv[1]), sys.argv[2]
    sys.path.insert(0, str(tree))
    try:
        make_loop = import_module("uvloop").new_event_loop
    except ImportError:
        make_loop = None  # asyncio's own, as the service has it then
    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(_serve(tree, dsn))


if __name__ == "__main__":
    main()
