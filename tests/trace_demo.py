"""Shows a trace in a real back end: Phoenix, from PyPI, with a page of its own to look at.

    python -m tests.trace_demo path/to/phoenix [--stay]

Starts Phoenix and the service, which sends its spans there; asks an agent whose backend isn't there,
so that another answers, and reads the answer again. Then asks Phoenix for the spans and prints them
as it has them, each below its parent. Raises if one is missing or lies elsewhere.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.architecture import ROOT

PATIENCE_SECONDS = 120.0
PROJECT = "/v1/projects/default/spans/otlpv1?limit=100"
QUESTION = {
    "model": "first",
    "stream": True,
    "messages": [{"role": "user", "content": "Hello!"}],
}
CONFIG: dict[str, Any] = {
    "agents": [
        {
            "name": "first",
            "kind": "openai",
            "base_url": "http://127.0.0.1:9/v1",
            "api_key_env": None,
            "retries": 1,
            "fallbacks": ["demo"],
        },
        {"name": "demo", "kind": "scripted", "reply": "Here is another agent.", "models": ["*"]},
    ]
}
Span = dict[str, Any]


def main(arguments: Sequence[str]) -> int:
    """Start both, ask, look; the exit status."""
    phoenix = Path(arguments[0]).resolve()
    with TemporaryDirectory(prefix="verbatim-traces-") as name:
        place = Path(name)
        place.chmod(0o755)  # the embedded PostgreSQL may run as another user than root
        port, grpc = free_port(), free_port()
        where = {"PHOENIX_HOST": "127.0.0.1", "PHOENIX_PORT": f"{port}"}
        where |= {"PHOENIX_GRPC_PORT": f"{grpc}", "PHOENIX_WORKING_DIR": str(place / "phoenix")}
        (place / "phoenix").mkdir()
        with running([str(phoenix), "serve"], place / "phoenix", where):
            until(lambda: get(port, "/healthz")[0] == 200, "Phoenix doesn't answer")
            trace_id = ask(place, f"http://127.0.0.1:{port}")
            spans = until(lambda: complete(spans_of(port)), "the spans don't come")
            print("\n".join(json.dumps(plain(span)) for span in spans))
            check(spans, trace_id)
            print("\n".join(tree(spans)))
            if "--stay" in arguments:
                print(f"look at http://127.0.0.1:{port} ; Ctrl-C ends it", flush=True)
                try:
                    signal.pause()
                except KeyboardInterrupt:
                    pass
    return 0


def ask(place: Path, endpoint: str) -> str:
    """Ask the service once, and read the answer again; the trace's id, as the client was told it."""
    (directory := place / "service").mkdir(mode=0o755)
    (directory / "config.yaml").write_text(json.dumps(CONFIG))
    port = free_port()
    command = [sys.executable, str(ROOT / "run.py"), "--port", f"{port}"]
    command += ["--config", str(directory / "config.yaml")]
    with running(command, directory, {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}):
        until(lambda: get(port, "/healthz")[0] == 200, "the service doesn't answer")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(QUESTION), headers)
        response = connection.getresponse()
        assert b"[DONE]" in response.read()
        completion_id = response.headers["x-completion-id"]
        path = f"/v1/chat/completions/{completion_id}?stream=true&starting_after=2"
        until(lambda: get(port, path)[0] == 200, "the answer can't be read again")
        connection.close()
        return str(response.headers["x-trace-id"])


@contextmanager
def running(command: Sequence[str], directory: Path, more: dict[str, str]) -> Iterator[None]:
    """A process, ended in order."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    with (directory / "output").open("wb") as output:
        process = subprocess.Popen(
            command, cwd=directory, env={**environ, **more}, stdout=output, stderr=output
        )
    try:
        yield
    except BaseException:
        print((directory / "output").read_text(), file=sys.stderr)
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def get(port: int, path: str) -> tuple[int, bytes]:
    """Status and body; status 0 while nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


def until(look: Callable[[], Any], complaint: str) -> Any:
    """What it returns, once that is true. Raises AssertionError."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := look()):
        assert time.monotonic() < deadline, complaint
        time.sleep(0.2)
    return found


def spans_of(port: int) -> list[Span]:
    status, body = get(port, PROJECT)
    return json.loads(body)["data"] if status == 200 else []


def complete(spans: list[Span]) -> list[Span] | None:
    return sorted(spans, key=_start) if len(spans) >= 6 else None


def _start(span: Span) -> int:
    return int(span["start_time_unix_nano"])


def plain(span: Span) -> Span:
    """The same without what is empty, attributes as an object."""
    said = {key: value for key, value in span.items() if value}
    return {**said, "attributes": {each["key"]: _value(each) for each in span["attributes"]}}


def _value(attribute: Span) -> Any:
    return next((value for value in attribute["value"].values() if value is not None), None)


def check(spans: list[Span], trace_id: str) -> None:
    """Two attempts that failed, the fallback's and a save below the request; the reading beside it, in
    a trace of its own."""
    asked = [span for span in spans if span["trace_id"] == trace_id]
    (root,) = (span for span in asked if not span.get("parent_span_id"))
    children = [span["name"] for span in asked if span.get("parent_span_id") == root["span_id"]]
    assert ["chat first", "chat first", "chat first", "save"] == sorted(children), children
    (read,) = (span for span in spans if span["trace_id"] != trace_id)
    assert read["name"].startswith("GET /v1/chat/completions/"), read["name"]


def tree(spans: list[Span], parent: str | None = None, depth: int = 0) -> Iterator[str]:
    """One line a span, each below its parent."""
    for span in spans:
        if (span.get("parent_span_id") or None) == parent:
            milliseconds = (int(span["end_time_unix_nano"]) - _start(span)) / 1e6
            yield f"{'  ' * depth}{span['name']}  {milliseconds:.1f} ms"
            yield from tree(spans, span["span_id"], depth + 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
