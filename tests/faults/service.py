"""The service as a process, as `python run.py` starts it, with a configuration of ours."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
START_PATIENCE_SECONDS = 30.0
_COMPLAINTS = frozenset(
    (
        "relay failed",
        "effect failed",
        "relay died",
        "request failed",
        "record not readable in the journal",
    )
)
"""Log lines that tell of mistakes of the service's own."""


class Service:
    """One process. Made by `start`; ended by `kill` or `stop`, and by `end` whatever happened."""

    def __init__(self, popen: "subprocess.Popen[bytes]", log: Path) -> None:
        self.popen = popen
        self.host, self.port = "127.0.0.1", 0
        self._log = log

    @classmethod
    def launch(
        cls,
        directory: Path,
        number: int,
        config: dict[str, Any],
        *,
        command: Sequence[str] = (sys.executable, str(ROOT / "run.py")),
        port: int = 0,
    ) -> "Service":
        """Start the process and return at once; `ready` waits for it.

        Args:
            command: what takes `run.py`'s flags.
            port: where it listens; 0: anywhere.
        """
        path = directory / f"config-{number}.yaml"
        path.write_text(json.dumps(config))  # JSON is YAML
        log = directory / f"service-{number}.log"
        kept = ("PATH", "HOME", "COVERAGE_PROCESS_CONFIG")
        environ = {key: os.environ[key] for key in kept if key in os.environ}
        with log.open("wb") as output:
            popen = subprocess.Popen(
                [*command, "--config", str(path), "--port", str(port)],
                cwd=directory,
                env={**environ, "LOG_FORMAT": "json"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the matrix, which then ends us
            )
        return cls(popen, log)

    async def ready(self) -> "Service":
        """Return once it serves."""
        async with asyncio.timeout(START_PATIENCE_SECONDS):
            while not (line := self.find("serving")):
                assert self.popen.poll() is None, self._log.read_text()
                await asyncio.sleep(0.01)
        self.host, _, port = line["url"].rpartition("/")[2].rpartition(":")
        self.port = int(port)
        return self

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What it has logged so far."""
        whole = self._log.read_bytes().rpartition(b"\n")[0]
        return [json.loads(line) for line in whole.splitlines() if line.startswith(b"{")]

    def find(self, event: str) -> dict[str, Any] | None:
        """The first log line of this event."""
        if event.encode() not in self._log.read_bytes():
            return None
        return next((line for line in self.lines if line.get("event") == event), None)

    @property
    def complaints(self) -> list[str]:
        """Its own mistakes, by its own words: bugs, tracebacks, warnings of Python's."""
        said = [
            f"logged {line['event']!r}: {str(line.get('exception', ''))[-200:]}"
            for line in self.lines
            if line.get("event") in _COMPLAINTS
        ]
        text = self._log.read_text(errors="replace")
        strange = [line for line in text.splitlines() if line and not line.startswith("{")]
        return said + [f"printed {line[:200]!r}" for line in strange[-3:]]

    async def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """A GET's status and JSON; (0, {}) if it doesn't answer."""
        try:
            async with asyncio.timeout(15):
                reader, writer = await asyncio.open_connection(self.host, self.port)
                try:
                    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                    writer.write(request.encode())
                    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
                finally:
                    writer.transport.abort()
                return int(head.split(b" ", 2)[1]), json.loads(body)
        except (OSError, TimeoutError, IndexError):
            return 0, {}

    def kill(self) -> None:
        """SIGKILL."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGKILL)
        self.popen.wait()

    async def stop(self, patience_seconds: float = 40.0) -> int:
        """SIGTERM; the exit status."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        return await self.exited(patience_seconds)

    async def exited(self, patience_seconds: float = 40.0) -> int:
        async with asyncio.timeout(patience_seconds):
            while (status := self.popen.poll()) is None:
                await asyncio.sleep(0.02)
        return status

    def end(self) -> None:
        """Leave nothing behind."""
        if self.popen.poll() is None:
            os.kill(self.popen.pid, signal.SIGCONT)
        self.kill()
