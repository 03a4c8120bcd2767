"""Time to first token when many streams start at once: straight from the backend, and through us.

    make bench                              # 100 streams, 5 rounds
    make bench ARGS="--streams 200 --json"

Backend, service (with PostgreSQL on) and client are three processes on this machine. The client
opens all connections first, then sends all requests at once, and notes for each when the first
content chunk came. What is added is the difference of the percentiles. The first round warms
connections up and isn't counted.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import quantiles

ROOT = Path(__file__).parents[1]


@contextmanager
def upstream(words: int, interval: float) -> Iterator[int]:
    """The stand-in backend's port."""
    command = [sys.executable, "-m", "benchmarks.upstream"]
    flags = ["--words", str(words), "--interval", str(interval)]
    with subprocess.Popen([*command, *flags], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


@contextmanager
def service(upstream_port: int, directory: Path) -> Iterator[tuple[int, int]]:
    """The service's port and process id; everything on, an embedded database of its own."""
    config = {
        "database": {"url": "embedded", "data_dir": str(directory / "postgres")},
        "agents": [
            {
                "name": "bench",
                "kind": "openai",
                "base_url": f"http://127.0.0.1:{upstream_port}/v1",
                "api_key_env": None,
            }
        ],
    }
    path = directory / "config.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    log = directory / "log"
    command = [sys.executable, "run.py", "--config", str(path), "--port", "0"]
    environ = {**os.environ, "LOG_FORMAT": "json"}
    environ.pop("DATABASE_URL", None)
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env=environ)
    try:
        while not (found := re.search(r'"url": "http://127.0.0.1:(\d+)"', log.read_text())):
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.05)
        yield int(found[1]), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


async def first_token_ms(port: int, streams: int) -> list[float]:
    """Milliseconds from request to first content, of streams that start at once, sorted."""
    body = json.dumps(
        {
            "model": "bench",
            "stream": True,
            "messages": [{"role": "user", "content": "Say twenty words."}],
        }
    ).encode()
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    opening = (asyncio.open_connection("127.0.0.1", port) for _ in range(streams))
    connections = await asyncio.gather(*opening)

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
        start = time.perf_counter()
        writer.write(request)
        seen = b""
        while b'"content":"word ' not in seen:
            data = await reader.read(65536)
            if not data:
                raise SystemExit(f"a stream ended without a token: {seen[:500]!r}")
            seen += data
        elapsed = (time.perf_counter() - start) * 1000
        while b"[DONE]" not in seen:
            data = await reader.read(65536)
            if not data:
                raise SystemExit(f"a stream broke off: {seen[-500:]!r}")
            seen = seen[-16:] + data
        writer.close()
        return elapsed

    return sorted(await asyncio.gather(*(one(*connection) for connection in connections)))


def summary(rounds: list[list[float]]) -> dict[str, float]:
    """Percentiles over all rounds, in milliseconds."""
    values = [value for values in rounds for value in values]
    cuts = quantiles(values, n=100, method="inclusive")
    return {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=100, help="streams that start at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--words", type=int, default=20, help="chunks per answer")
    parser.add_argument("--interval", type=float, default=0.02, help="seconds between chunks")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        backend_port = stack.enter_context(upstream(options.words, options.interval))
        service_port, _ = stack.enter_context(service(backend_port, directory))
        found: dict[str, list[list[float]]] = {"direct": [], "through": []}
        for number in range(options.rounds + 1):
            for name, port in (("direct", backend_port), ("through", service_port)):
                values = asyncio.run(first_token_ms(port, options.streams))
                if number:
                    found[name].append(values)
    table = {name: summary(rounds) for name, rounds in found.items()}
    table["added"] = {key: table["through"][key] - table["direct"][key] for key in table["direct"]}
    if options.json:
        print(json.dumps({"streams": options.streams, "ttft_ms": table}, indent=2))
        return
    print(f"time to first token, {options.streams} streams at once, {options.rounds} rounds, ms")
    print(f"{'':10}" + "".join(f"{key:>9}" for key in table["added"]))
    for name, row in table.items():
        print(f"{name:10}" + "".join(f"{value:9.1f}" for value in row.values()))


if __name__ == "__main__":
    main()
