"""Measures how lists, completions and threads read when much is stored.

    python -m benchmarks.questions.history                       # at 1,000 and at 1,000,000 messages
    python -m benchmarks.questions.history --messages 1000 20000 --requests 100
    python -m benchmarks.questions.history --messages 2000000    # a million completions

Fills a PostgreSQL of its own with conversations of ten turns of five owners, asks for the plans
of the statements that read, and times each call of the API and each screen of the page against the
service. Ends with status 1 if a plan at the largest size reads a whole table, or if the slowest of a
hundred looks at a screen takes over 100 ms there.
"""

import argparse
import asyncio
import hashlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import psycopg2

from benchmarks.questions import screens
from benchmarks.questions.filling import OWNER, TURNS, fill
from benchmarks.questions.screens import MOST_MS
from benchmarks.stand.figures import percentiles, print_table
from benchmarks.stand.running import Server, service
from db.migrate import migrate
from db.overview import Place
from db.postgres import changing, overview_sql, reading_sql


class History:
    """The filled database, and what can be asked of it."""

    def __init__(self, server: Server, seed: int = 1) -> None:
        self._server = server
        self._chance = random.Random(seed)
        self.conversations = 0

    def fill(self, messages: int) -> float:
        """Fill it up to so many messages; returns the seconds that took."""
        first, self.conversations = self.conversations + 1, messages // (2 * TURNS)
        started = time.monotonic()
        fill(self._server.dsn, first, self.conversations)
        return time.monotonic() - started

    def count(self, table: str) -> int:
        return int(self._server.query(f"SELECT count(*) FROM {table}")[0][0])

    def talk(self) -> int:
        """The number of one of the caller's conversations that are not hidden."""
        while True:
            number = 2 * self._chance.randint(1, self.conversations // 2)
            if number % 50 != 4:
                return number

    def name(self) -> str:
        """The id of one of the caller's completions."""
        return f"chatcmpl-{self.talk() * 10 + self._chance.randrange(TURNS):010}"

    def plans(self) -> dict[str, dict[str, Any]]:
        """Question → which tables and indexes its statements read and how, time and pages."""
        found = {}
        with closing(psycopg2.connect(self._server.dsn)) as connection:
            for question, statement, parameters in self._statements():
                with connection.cursor() as cursor:
                    if question.startswith("page:"):
                        cursor.execute(overview_sql.PLANNER)
                    cursor.execute(
                        f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters
                    )
                    (([plan],),) = cursor.fetchall()
                connection.rollback()
                top = plan["Plan"]
                found[question] = {
                    "ms": round(top["Actual Total Time"], 2),
                    "pages": top["Shared Hit Blocks"] + top["Shared Read Blocks"],
                    "scans": sorted(set(_scans(top))),
                }
        return found

    def _statements(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        name, talk = self.name(), f"conv_{self.talk():09}"
        ((at, digest),) = self._server.query(
            f"SELECT created_at, prompt_digest FROM completions WHERE completion_id = '{name}'"
        )
        page: dict[str, Any] = {"owner": OWNER, "limit": 21, "at": at, "after": name}
        filters: dict[str, tuple[str | None, dict[str, str], str | None]] = {
            "list": (None, {}, None),
            "list, common model": ("model-1", {}, None),
            "list, rare model": ("rare", {}, None),
            "list, common metadata": (None, {"env": "prod"}, None),
            "list, rare metadata": (None, {"chat": str(self.talk())}, None),
            "list, metadata of the latest": (None, {"late": "yes"}, None),
            "list, no such metadata": (None, {"late": "no"}, None),
            "list, common and rare metadata": (
                None,
                {"env": "prod", "chat": str(self.talk())},
                None,
            ),
            "list, common state": (None, {}, "completed"),
            "list, rare state": (None, {}, "failed"),
            "list, common state and common model": ("model-1", {}, "completed"),
            "list, common state and rare model": ("rare", {}, "completed"),
            "list, rare state and common model": ("model-1", {}, "failed"),
            "list, rare state and rare model": ("rare", {}, "failed"),
            "list, rare state and common metadata": (None, {"env": "prod"}, "failed"),
            "list, rare state and rare metadata": (None, {"chat": str(self.talk())}, "failed"),
        }
        for question, (model, metadata, state) in filters.items():
            for after in (False, True):
                statement = reading_sql.completion_keys(
                    model=model,
                    pairs=len(metadata),
                    after=after,
                    descending=False,
                    state=state,
                )
                values = {**page, "model": model, "metadata": json.dumps(metadata), "state": state}
                yield question + (", next page" if after else ""), statement, values
        key = {"completion_id": name, "owner": OWNER, "after": name}
        yield "find the cursor", reading_sql.COMPLETION_PLACE, key
        yield "find a completion", reading_sql.FIND_SHOWN, key
        yield "find an answer's chunks", reading_sql.FIND_REPLAYABLE, {**key, "hidden_since": 0.0}
        yield "the completions of a page", reading_sql.COMPLETIONS, {"completion_ids": [name]}
        yield "the answers of a page", reading_sql.ANSWERS, {"completion_ids": [name]}
        yield "a prompt's messages", reading_sql.PROMPT, {"digest": digest}
        yield "list conversations", reading_sql.conversations(True, False), {**page, "after": talk}
        nodes = {"conversation_id": talk, "limit": 101}
        yield "a conversation's nodes", reading_sql.node_keys(False, False), nodes
        yield "the nodes' parents", reading_sql.PARENTS, {"digests": [digest]}
        yield "delete: followed answers", changing.FOLLOWED_ANSWERS, key
        yield "delete: unused messages", changing.DELETE_UNUSED, {"digest": digest}
        yield "delete: the completion", changing.DELETE_COMPLETION, key
        yield "delete: the tools", changing.DELETE_TOOLS, {"digest": "tools-7"}
        names = {"completion": name, "request": f"req_{name}", "trace": md5(talk), "thing": "none"}
        yield from screens.statements(Place(at.timestamp(), name), talk, names)

    def calls(self) -> dict[str, Callable[[], tuple[str, str, Any]]]:
        """Name → makes method, path and body of a call, another one each time."""
        completions, talks = "/v1/chat/completions", "/v1/conversations"

        def one(method: str, path: str, body: Any = None) -> Callable[[], tuple[str, str, Any]]:
            def make() -> tuple[str, str, Any]:
                names = {"name": self.name(), "talk": self.talk()}
                return method, path.format(**names), body

            return make

        return {
            "list": one("GET", completions),
            "list, newest first": one("GET", f"{completions}?order=desc"),
            "list, after any": one("GET", completions + "?after={name}"),
            "list, 100": one("GET", completions + "?limit=100&after={name}"),
            "list, rare model": one("GET", f"{completions}?model=rare"),
            "list, common metadata": one("GET", f"{completions}?metadata[env]=prod"),
            "list, rare metadata": one("GET", completions + "?metadata[chat]={talk}"),
            "list, metadata of the latest": one("GET", f"{completions}?metadata[late]=yes"),
            "list, two pairs": one(
                "GET", completions + "?metadata[env]=prod&metadata[chat]={talk}"
            ),
            "retrieve": one("GET", completions + "/{name}"),
            "messages": one("GET", completions + "/{name}/messages"),
            "update": one("POST", completions + "/{name}", {"metadata": {"env": "prod"}}),
            "conversations": one("GET", talks),
            "conversation": one("GET", talks + "/conv_{talk:09}"),
            **screens.screens(self.name, self.talk),
            "delete": one("DELETE", completions + "/{name}"),
        }


def md5(talk: str) -> str:
    """The trace of a conversation's completions, as they are filled in."""
    return hashlib.md5(str(int(talk[5:])).encode(), usedforsecurity=False).hexdigest()


def _scans(node: dict[str, Any]) -> Iterator[str]:
    """How a plan's nodes get at stored rows."""
    kind = node["Node Type"]
    where = node.get("Index Name") or node.get("Relation Name")
    if where and "Scan" in kind and node.get("Actual Loops"):
        yield f"{kind} {where}"
    for child in node.get("Plans", ()):
        yield from _scans(child)


async def _time(port: int, history: History, requests: int) -> dict[str, dict[str, Any]]:
    """Call → percentiles in milliseconds, one call at a time."""
    table = {}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        for name, make in history.calls().items():
            times: list[float | None] = []
            for number in range(requests + 5):
                method, path, body = make()
                began = time.perf_counter()
                async with http.request(method, path, json=body) as response:
                    await response.read()
                if response.status not in (200, 404) or (response.status, method) == (404, "GET"):
                    raise SystemExit(f"{method} {path}: {response.status}")
                if number >= 5:  # the first calls open connections
                    times.append((time.perf_counter() - began) * 1000)
            row = percentiles(times)
            table[name] = {"calls": row["streams"], **{k: row[k] for k in ("p50", "p99", "max")}}
    return table


def _print_plans(plans: dict[str, dict[str, Any]]) -> None:
    width = max(map(len, plans))
    print(f"{'plans':{width}} {'ms':>8} {'pages':>7}  read by")
    for question, plan in plans.items():
        scans = ", ".join(plan["scans"])
        print(f"{question:{width}} {plan['ms']:>8} {plan['pages']:>7}  {scans}")


def _measure(server: Server, port: int, options: argparse.Namespace) -> dict[str, Any]:
    """Size → plans and times, from small to large."""
    history, found = History(server), {}
    for messages in sorted(options.messages):
        seconds = history.fill(messages)
        size = {name: history.count(name) for name in ("messages", "completions")}
        plans = history.plans()
        times = asyncio.run(_time(port, history, options.requests))
        found[str(messages)] = {"rows": size, "plans": plans, "calls": times}
        if not options.json:
            title = f"{size['messages']:,} messages, {size['completions']:,} completions"
            print(f"\n{title} (filled in {seconds:.0f} s)\n")
            _print_plans(plans)
            print()
            print_table("calls, ms", times)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--messages", type=int, nargs="+", default=[1000, 1_000_000])
    parser.add_argument("--requests", type=int, default=300, help="of each call")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="verbatim-bench-") as name:
        server = Server(Path(name) / "postgres")
        try:
            migrate(server.dsn)
            config = {
                "database": {"url": server.dsn},
                "journal": {"directory": f"{name}/journal"},
                "agents": [{"name": "demo", "kind": "scripted"}],
            }
            with service(Path(name) / "service", config) as (port, _):
                found = _measure(server, port, options)
        finally:
            server.stop()
    if options.json:
        print(json.dumps(found, indent=1))
    largest = found[str(max(options.messages))]["plans"]
    whole = [question for question, plan in largest.items() if "Seq Scan" in str(plan["scans"])]
    if whole:
        print(f"These read whole tables: {'; '.join(whole)}", file=sys.stderr)
    times = found[str(max(options.messages))]["calls"]
    slow = [name for name, row in times.items() if name[:5] == "page:" and row["p99"] > MOST_MS]
    if slow:
        print(f"These screens take over {MOST_MS:.0f} ms: {'; '.join(slow)}", file=sys.stderr)
    return 1 if whole or slow else 0


if __name__ == "__main__":
    sys.exit(main())
