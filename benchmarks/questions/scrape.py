"""Measures what a scrape of `/metrics` costs: the service's CPU while 2,000 streams are open, and how
long it takes.

    python -m benchmarks.questions.scrape
    python -m benchmarks.questions.scrape --streams 500 --agents 20 --json

First each of some agents answers for each of some models, whole and streamed, so that there are as many
series as a large service has. Then streams are opened that say a word a minute. The CPU is that of the
scrapes, less what the service uses in the same time without any.
"""

import argparse
import asyncio
import json
import resource
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.stand.figures import percentiles, print_table
from benchmarks.stand.machine import cpu_seconds, settle
from benchmarks.stand.running import Server, service

_SCRAPES = 40
_LIMIT_MS = 20.0
_QUIET = "quiet"
_MODELS = 4
"""For each agent, its own name among them."""


def _config(agents: int, streams: int, dsn: str, directory: Path) -> dict[str, Any]:
    models = [
        [f"model-{agent}-{number}" for number in range(1, _MODELS)] for agent in range(agents)
    ]
    quick = [
        {
            "name": f"agent-{agent}",
            "kind": "scripted",
            "models": models[agent],
            "reply": "Hello there",
        }
        for agent in range(agents)
    ]
    slow = {"name": _QUIET, "kind": "scripted", "reply": "word " * 60, "tokens_per_second": 1 / 60}
    return {
        "database": {"url": dsn},
        "journal": {"directory": str(directory / "journal")},
        "server": {"max_concurrent_streams": streams + 10},
        "client_gone": "cancel",
        "agents": [*quick, slow],
    }


class _Client:
    """Asks one service."""

    def __init__(self, port: int, http: aiohttp.ClientSession) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._http = http

    def ask(self, model: str, *, stream: bool) -> Any:
        """The response, when its head is there."""
        question = [{"role": "user", "content": "Hi"}]
        body = {"model": model, "stream": stream, "messages": question}
        return self._http.post(f"{self._url}/v1/chat/completions", json=body)

    async def answered(self, model: str, *, stream: bool) -> None:
        async with self.ask(model, stream=stream) as response:
            await response.read()

    async def scrape(self) -> tuple[float, bytes]:
        """The seconds that it took, and the text."""
        begun = time.perf_counter()
        async with self._http.get(f"{self._url}/metrics") as response:
            text = await response.read()
        return time.perf_counter() - begun, text


async def _measure(port: int, pid: int, agents: int, streams: int) -> dict[str, Any]:
    connector = aiohttp.TCPConnector(limit=0)
    no_limit = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=no_limit) as http:
        client = _Client(port, http)
        for agent in range(agents):
            names = [f"agent-{agent}", *(f"model-{agent}-{n}" for n in range(1, _MODELS))]
            for name in names:
                await client.answered(name, stream=True)
                await client.answered(name, stream=False)
        opened = []
        for _ in range(streams):
            opened.append(await client.ask(_QUIET, stream=True))
        await client.scrape()
        begun, before = time.perf_counter(), cpu_seconds(pid)
        scrapes = [await client.scrape() for _ in range(_SCRAPES)]
        used, took = cpu_seconds(pid) - before, time.perf_counter() - begun
        before = cpu_seconds(pid)
        await asyncio.sleep(took)
        idle = cpu_seconds(pid) - before
        running = f'verbatim_streams{{phase="answering"}} {float(streams)}'.encode()
        if running not in scrapes[-1][1]:
            raise SystemExit("not all streams were open")
        for response in opened:
            response.close()
    return {
        "cpu_ms": (used - idle) / _SCRAPES * 1000,
        "ms": percentiles([seconds * 1000 for seconds, _ in scrapes]),
        "bytes": len(scrapes[-1][1]),
        "series": sum(not line.startswith(b"#") for line in scrapes[-1][1].splitlines()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--agents", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    settle()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o755)
        server = Server(directory / "postgres")
        stack.callback(server.stop)
        config = _config(options.agents, options.streams, server.dsn, directory)
        port, pid = stack.enter_context(service(directory / "service", config))
        found = asyncio.run(_measure(port, pid, options.agents, options.streams))
    if options.json:
        print(json.dumps(found, indent=2))
        return
    took = {f"{name}, ms": found["ms"][name] for name in ("p50", "p99", "max")}
    size = {"series": found["series"], "KB": found["bytes"] / 1000}
    row = {"CPU, ms": found["cpu_ms"], **took, **size}
    print_table(f"A scrape, {options.streams:,} streams open", {"/metrics": row})
    print(f"at most {_LIMIT_MS:g} ms of CPU: {'ok' if found['cpu_ms'] <= _LIMIT_MS else 'missed'}")


if __name__ == "__main__":
    main()
