"""Starts what a measurement needs, each as a process of its own: backend, services, PostgreSQL,
and virtual environments for programs that aren't ours. What was started is stopped at the end.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
from attrs import frozen

from benchmarks.stand.machine import to_server_core
from db.embedded import EmbeddedPostgres

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / "var" / "bench"
"""Where other programs' virtual environments are kept between runs."""

_START_SECONDS = 120.0
_DRAIN_SECONDS = 60.0
_KEPT_VARIABLES = ("PATH", "HOME", "SSL_CERT_FILE")


class DidNotStart(Exception):
    """A server ended, or took too long, before it was ready. The message has its last words."""


@contextmanager
def process(
    command: Sequence[str],
    directory: Path,
    find_port: Callable[[str], int | None],
    environ: Mapping[str, str] | None = None,
    is_pinned: bool = True,
    stop_seconds: float = 3.0,
) -> Iterator[tuple[int, int]]:
    """The port and process id of a server on the server's core.

    Args:
        command: what to run, in the directory, which is made if need be.
        find_port: called with what the process has printed until it gives a port: it is ready.
        environ: variables besides the few that every program needs.
        is_pinned: to the server's core; else it may use every core.
        stop_seconds: how long it may take to stop before it is killed.

    Raises `DidNotStart`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "log"
    started = _start(command, directory, log, environ or {}, is_pinned)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while (port := find_port(log.read_text(errors="replace"))) is None:
            if started.poll() is not None or time.monotonic() > deadline:
                raise DidNotStart(f"{command[0]} did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.05)
        yield port, started.pid
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(stop_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()


def _start(
    command: Sequence[str],
    directory: Path,
    log: Path,
    environ: Mapping[str, str],
    is_pinned: bool,
) -> "subprocess.Popen[bytes]":
    kept = {key: os.environ[key] for key in _KEPT_VARIABLES if key in os.environ}
    with log.open("wb") as output:
        return subprocess.Popen(
            [str(part) for part in command],
            cwd=directory,
            stdout=output,
            stderr=output,
            env={**kept, **environ},
            start_new_session=True,  # Ctrl-C is for the measurement, which then stops it
            preexec_fn=to_server_core if is_pinned else None,
        )


@contextmanager
def service(
    directory: Path,
    config: Mapping[str, Any],
    program: Sequence[str] = (str(ROOT / "run.py"),),
    environ: Mapping[str, str] | None = None,
    is_pinned: bool = True,
) -> Iterator[tuple[int, int]]:
    """The port and process id of our service with this configuration; drained at the end."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "config.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    command = [sys.executable, *program, "--config", str(path), "--port", "0"]
    variables = {"LOG_FORMAT": "json", "PYTHONPATH": str(ROOT), **(environ or {})}
    with process(command, directory, announced, variables, is_pinned, _DRAIN_SECONDS) as running:
        yield running


def announced(log: str) -> int | None:
    found = re.search(r'"url": ?"http://127.0.0.1:(\d+)"', log)
    return int(found[1]) if found else None


def agent(upstream_port: int) -> dict[str, Any]:
    """The configuration of an agent called `bench` that asks a backend on this machine."""
    base_url = f"http://127.0.0.1:{upstream_port}/v1"
    return {"name": "bench", "kind": "openai", "base_url": base_url, "api_key_env": None}


@contextmanager
def upstream(module: str = "benchmarks.stand.upstream") -> Iterator[int]:
    """The stand-in backend's port."""
    command = [sys.executable, "-m", module]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        try:
            yield int(running.stdout.readline())
        finally:
            running.terminate()


class Server:
    """A PostgreSQL of the measurement's own, which can be stopped and started again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.start()
        self.dsn = self._server.dsn

    def start(self) -> None:
        settings = {"track_commit_timestamp": "on"}
        self._server = EmbeddedPostgres.start(self._directory, settings=settings)

    def stop(self) -> None:
        self._server.stop()

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(psycopg2.connect(self.dsn)) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall()


def free_port() -> int:
    """One that nobody listens on, for programs that can't choose their own."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def answers(url: str) -> bool:
    """Whether a GET gets a 200 within a second."""
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@frozen
class Scene:
    """What a measurement of our service alone stands on.

    Attributes:
        directory: an empty one, gone at the end.
        config: of a service, so that it uses this PostgreSQL and this backend.
    """

    directory: Path
    server: Server
    backend_port: int

    @property
    def config(self) -> dict[str, Any]:
        return {"database": {"url": self.server.dsn}, "agents": [agent(self.backend_port)]}


@contextmanager
def scene() -> Iterator[Scene]:
    """A PostgreSQL and a backend, until the end."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o755)
        server = Server(directory / "postgres")
        stack.callback(server.stop)
        yield Scene(directory, server, stack.enter_context(upstream()))


def environment(
    name: str,
    requirements: Path,
    tell: Callable[[str], None],
    python: str = sys.executable,
    is_closed: bool = False,
) -> Path:
    """The programs of a virtual environment with these requirements; made when it is missing or was
    made with others.

    Args:
        python: the interpreter that it is made with.
        is_closed: the requirements name all that is to be installed, whatever else they ask for.

    Raises `subprocess.CalledProcessError` if they can't be installed.
    """
    directory = ENVIRONMENTS / name
    made = directory / "requirements.txt"
    wanted = f"# {_identity(python)}\n{requirements.read_text('utf-8')}"
    if not made.exists() or made.read_text("utf-8") != wanted:
        tell(f"installing {name} into {directory.relative_to(ROOT)} (once; this can take minutes)")
        started = time.monotonic()
        subprocess.run([python, "-m", "venv", "--clear", directory], check=True)
        pip = [str(directory / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        pip += ["--disable-pip-version-check", *(["--no-deps"] if is_closed else [])]
        subprocess.run([*pip, "--requirement", str(requirements)], check=True)
        made.write_text(wanted, "utf-8")
        tell(f"installed {name} in {time.monotonic() - started:.0f} s")
    return directory / "bin"


def _identity(python: str) -> str:
    shown = "import sys; print('Python', sys.version, 'of', sys.base_prefix)"
    return subprocess.run(
        [python, "-c", shown], check=True, capture_output=True, text=True
    ).stdout.strip()


def interpreter(*versions: str) -> str | None:
    """The first Python of one of these versions that really runs: this one, one on the path, or one
    that pyenv keeps; version managers leave shims that don't."""
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    if running in versions:
        return sys.executable
    kept = Path.home() / ".pyenv" / "versions"
    for version in versions:
        for python in (f"python{version}", *sorted(kept.glob(f"{version}.*/bin/python"))):
            try:
                _identity(str(python))
                return str(python)
            except (OSError, subprocess.CalledProcessError):
                continue
    return None
