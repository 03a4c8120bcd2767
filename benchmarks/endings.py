"""Many streams that end within a second: how they are committed, and how long `[DONE]` waits.

    python -m benchmarks.endings                       # 2,000 streams
    python -m benchmarks.endings --streams 500 --json

All streams are opened and have said a word when the backend, a process of its own, is told to end
them, evenly over `--within` seconds. Each finish chunk carries the moment at which the backend sent
it together with `[DONE]` (the system's monotonic clock, which all processes share); the delay is
from there to the moment at which the client has read `[DONE]`. Transactions are counted by the
rows' own transaction ids, the time until all are committed is PostgreSQL's own.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.running import ROOT, Server, Stream, agent, percentiles, print_table, service
from benchmarks.upstream import WORD

_OPEN_AT_ONCE = 50
_PATIENCE_SECONDS = 60.0
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
)


# --- the backend, in a process of its own ----------------------------------------------------


async def _backend(within_seconds: float) -> None:
    """Print a port; at a line on standard input, end every stream that is open."""
    waiting: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(_HEAD + WORD)
        waiting.append(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    started, count = time.monotonic(), len(waiting)
    for number, writer in enumerate(waiting):
        ahead = started + within_seconds * number / count - time.monotonic()
        if ahead > 0.001:
            await asyncio.sleep(ahead)
        writer.write(_end())
    await asyncio.to_thread(sys.stdin.readline)
    server.close()


def _end() -> bytes:
    payload = {
        "id": "up",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "bench",
        "choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}],
        "sent_at": time.monotonic(),
        "sent_at_time": time.time(),
    }
    data = b"data: %b\n\ndata: [DONE]\n\n" % json.dumps(payload).encode()
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)


@contextmanager
def _backend_process(within_seconds: float) -> Iterator["tuple[int, subprocess.Popen[bytes]]"]:
    command = [sys.executable, "-m", "benchmarks.endings", "--backend", str(within_seconds)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process
        finally:
            process.kill()


# --- the measurement --------------------------------------------------------------------------


async def _run(port: int, count: int, backend: "subprocess.Popen[bytes]") -> list[Stream]:
    streams: list[Stream] = []
    for start in range(0, count, _OPEN_AT_ONCE):
        opened = [
            Stream(f"end-{number}").start(port)
            for number in range(start, min(start + _OPEN_AT_ONCE, count))
        ]
        await asyncio.gather(*(stream.started.wait() for stream in opened))
        streams += opened
    assert backend.stdin is not None
    backend.stdin.write(b"end\n")
    backend.stdin.flush()
    tasks = [stream.task for stream in streams if stream.task is not None]
    await asyncio.wait(tasks, timeout=_PATIENCE_SECONDS)
    return streams


def _stamp(stream: Stream, name: bytes) -> float | None:
    found = re.search(rb'"%b":\s*([0-9.]+)' % name, stream.body)
    return float(found[1]) if found else None


def _result(streams: Sequence[Stream], server: Server) -> dict[str, Any]:
    delays = [
        None if stream.done_at is None or sent is None else (stream.done_at - sent) * 1000
        for stream in streams
        for sent in [_stamp(stream, b"sent_at")]
    ]
    sent = [stamp for stream in streams if (stamp := _stamp(stream, b"sent_at_time"))]
    batches = server.query(
        "SELECT count(*), extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8"
        " FROM completions GROUP BY xmin ORDER BY 2"
    )
    sizes = sorted(size for size, _ in batches)
    first, last = min(sent), max(sent)
    return {
        "streams": len(streams),
        "rows": sum(sizes),
        "ended_within_seconds": round(last - first, 2),
        "transactions": len(sizes),
        "records_per_transaction": {
            "mean": round(sum(sizes) / len(sizes), 1),
            "p50": sizes[len(sizes) // 2],
            "max": sizes[-1],
        },
        "all_committed_after_first_end_seconds": round(batches[-1][1] - first, 2),
        "all_committed_after_last_end_seconds": round(batches[-1][1] - last, 2),
        "done_delay_ms": percentiles(delays),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--within", type=float, default=1.0, help="seconds in which they end")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--backend", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.backend is not None:
        asyncio.run(_backend(options.backend))
        return
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o755)
        server = Server(directory / "postgres")
        stack.callback(server.stop)
        backend_port, backend = stack.enter_context(_backend_process(options.within))
        config = {
            "server": {"max_concurrent_streams": options.streams + 10},
            "database": {"url": server.dsn},
            "agents": [agent(backend_port)],
        }
        port, _ = stack.enter_context(service(directory / "service", config))
        streams = asyncio.run(_run(port, options.streams, backend))
        result = _result(streams, server)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    each = result["records_per_transaction"]
    print(
        f"{result['streams']} streams ended within {result['ended_within_seconds']} s: "
        f"{result['rows']} rows in {result['transactions']} transactions\n"
        f"records per transaction: mean {each['mean']}, p50 {each['p50']}, max {each['max']}\n"
        f"all committed {result['all_committed_after_last_end_seconds']} s after the last end, "
        f"{result['all_committed_after_first_end_seconds']} s after the first"
    )
    print_table("from the backend's [DONE] to the client's, ms", {"": result["done_delay_ms"]})


if __name__ == "__main__":
    main()
