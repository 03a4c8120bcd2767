"""The service as a process: `python run.py`, its log, its answers. Nothing is faked."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.postgres import execute

ROOT = Path(__file__).parents[3]
PATIENCE_SECONDS = 30.0


class Process:
    """`python run.py` with a configuration of the test's own, on a free port."""

    def __init__(
        self, directory: Path, config: dict[str, Any], *flags: str, **environ: str
    ) -> None:
        self.path = directory / "config.yaml"
        self.write(config)
        kept = ("PATH", "HOME", "COVERAGE_PROCESS_CONFIG")
        clean = {key: os.environ[key] for key in kept if key in os.environ}
        self.log = directory / "log"
        with self.log.open("wb") as output:
            self.popen = subprocess.Popen(
                [
                    sys.executable,
                    str(ROOT / "run.py"),
                    "--config",
                    str(self.path),
                    "--port",
                    "0",
                    *flags,
                ],
                env={**clean, **environ},
                cwd=directory,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._port: int | None = None
        self._connections: list[http.client.HTTPConnection] = []

    def write(self, config: dict[str, Any]) -> None:
        """What the file is to say from now on."""
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(config))  # JSON is YAML
        new.replace(self.path)

    @property
    def lines(self) -> list[dict[str, Any]]:
        text = self.log.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def lines_of(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]

    def line(self, event: str, count: int = 1) -> dict[str, Any]:
        """The last log line of this event, once there are `count`."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            is_over = self.popen.poll() is not None
            if len(found := self.lines_of(event)) >= count:
                return found[-1]
            assert not is_over, self.log.read_text()
            time.sleep(0.02)
        raise AssertionError(self.log.read_text())

    @property
    def port(self) -> int:
        """Where it listens, once it does."""
        if self._port is None:
            self._port = int(self.line("serving")["url"].rpartition(":")[2])
        return self._port

    def connect(self) -> http.client.HTTPConnection:
        """A connection that is closed with the process."""
        self._connections.append(connection := connect(self.port))
        return connection

    def get(self, path: str) -> tuple[int, Any]:
        connection = self.connect()
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    def ask(self) -> http.client.HTTPResponse:
        """The response of a stream that has just been asked for."""
        self._connections.append(connection := ask(self.port))
        return connection.getresponse()

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.popen.send_signal(number)
        return self.popen.wait(PATIENCE_SECONDS)

    def end(self) -> None:
        """Kill what still runs, close what is open."""
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
        for connection in self._connections:
            connection.close()


def connect(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)


def ask(port: int, key: str | None = None) -> http.client.HTTPConnection:
    """A connection on which a stream of the agent `demo` has just been asked for."""
    connection = connect(port)
    question = [{"role": "user", "content": "Hello?"}]
    body = {"model": "demo", "stream": True, "messages": question}
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    return connection


def config(database_url: str, **fields: Any) -> dict[str, Any]:
    return {
        "database": {"url": database_url},
        "agents": [{"name": "demo", "kind": "scripted", **fields}],
    }


def answers(database_url: str) -> list[tuple[Any, ...]]:
    return execute(
        database_url,
        "SELECT c.state, c.error->>'code', m.content, m.state FROM completions c "
        "LEFT JOIN messages m USING (completion_id)",
    )


def text_of(body: bytes) -> str:
    data = [line[6:] for line in body.decode().split("\n") if line.startswith("data: {")]
    payloads = [json.loads(item) for item in data]
    return "".join(p["choices"][0]["delta"].get("content", "") for p in payloads if "choices" in p)
