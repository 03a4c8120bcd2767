"""The service as a process: start, signals, exit codes, what it prints. Nothing is faked."""

import contextlib
import hashlib
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.service.stage.process import PATIENCE_SECONDS, ROOT, answers, config, text_of


def test_a_service_starts_answers_and_stops(spawn: Any, database_url: str) -> None:
    """A start, an answer, a row, a clean stop with exit status 0."""
    process = spawn(config(database_url, reply="Hello there.", tokens_per_second=200))
    body = process.ask().read()
    assert body.endswith(b"data: [DONE]\n\n")
    assert (200, {"status": "ok"}) == process.get("/healthz")
    status, ready = process.get("/readyz")
    assert (200, True) == (status, ready["ready"])
    assert 0 == process.stop()
    assert [("completed", None, "Hello there.", "complete")] == answers(database_url)
    finished = process.line("completion finished")
    assert ("completed", 2) == (finished["state"], finished["token_count"])
    assert finished["ttft_ms"] < 800
    assert "Hello" not in process.log.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="others answer when the queue is full")
def test_hundreds_may_come_while_the_service_is_busy(spawn: Any, database_url: str) -> None:
    """They wait in the kernel, which would make later ones wait for seconds if there were no room."""
    process = spawn(config(database_url))
    address = "127.0.0.1", process.port
    process.popen.send_signal(signal.SIGSTOP)
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(300):
                stack.enter_context(socket.create_connection(address, timeout=0.9))
    finally:
        process.popen.send_signal(signal.SIGCONT)
    assert (200, {"status": "ok"}) == process.get("/healthz")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_refuses_new_completions_and_lets_running_ones_end(
    spawn: Any, database_url: str, number: int
) -> None:
    """A stream that runs when the signal comes may end; nobody new is taken meanwhile."""
    process = spawn(config(database_url, reply="a b c d e f g h i j", tokens_per_second=10))
    response = process.ask()
    first = response.read1()
    process.popen.send_signal(number)
    process.line("draining")
    status, body = process.get("/readyz")
    assert (503, False) == (status, body["ready"])
    refused = process.ask()
    assert 503 == refused.status
    assert "draining" == json.loads(refused.read())["error"]["code"]
    whole = first + response.read()
    assert whole.endswith(b"data: [DONE]\n\n")
    assert 0 == process.popen.wait(PATIENCE_SECONDS)
    assert [("completed", None, "a b c d e f g h i j", "complete")] == answers(database_url)


@pytest.mark.parametrize("second_signal", [False, True])
def test_a_stream_that_outlasts_the_grace_is_told_why_and_kept(
    spawn: Any, database_url: str, second_signal: bool
) -> None:
    """After the grace, or at a second signal, a stream is told why and its words are kept."""
    settings = config(database_url, reply="word " * 1000, tokens_per_second=50)
    settings["server"] = {"drain_timeout_seconds": 60 if second_signal else 0.5}
    process = spawn(settings)
    response = process.ask()
    first = response.read1()
    process.popen.send_signal(signal.SIGTERM)
    process.line("draining")
    if second_signal:
        process.popen.send_signal(signal.SIGTERM)
    whole = first + response.read()
    assert "draining" == json.loads(whole.decode().rsplit("data: ", 1)[1])["error"]["code"]
    assert 0 == process.popen.wait(PATIENCE_SECONDS)
    assert answers(database_url) == [("failed", "draining", text_of(whole), "partial")]


def test_the_embedded_database_starts_and_stops_with_the_service(
    spawn: Any, tmp_path: Path
) -> None:
    """With no database at all: the embedded one is made, keeps its data, and stops with us."""
    settings = config("embedded", reply="Hello.", tokens_per_second=100)
    settings["database"]["data_dir"] = str(tmp_path / "data")
    for _ in range(2):
        process = spawn(settings)
        assert process.ask().read().endswith(b"data: [DONE]\n\n")
        assert 0 == process.stop()
    look = [sys.executable, "-m", "db.embedded", "--data-dir", str(tmp_path / "data"), "psql"]
    found = subprocess.run(
        [*look, "-Atc", "SELECT count(*) FROM completions"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "2" == found.stdout.strip()
    servers = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(tmp_path / "data") not in servers.stdout


def test_an_unreachable_database_does_not_stop_the_start(spawn: Any) -> None:
    """An unreachable database doesn't keep us from serving; `/readyz` and the log say what to do.
    What is asked for waits, and no attempt to connect leaves anything behind."""
    with socket.socket() as nobody:  # bound and not listening: every connection is refused
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        process = spawn(config(f"postgresql://me:secret@127.0.0.1:{port}/none", reply="Hi."))
        assert process.ask().read().endswith(b"data: [DONE]\n\n")
        status, body = process.get("/readyz")
        assert (503, False) == (status, body["ready"])
        assert "DATABASE_URL" in body["reasons"][0]
        assert 0 == process.stop()
    log = process.log.read_text()
    assert "secret" not in log
    assert "Unclosed connection" not in log
    assert 1 == process.line("records not saved yet")["count"]


def test_the_service_runs_without_uvloop(spawn: Any, tmp_path: Path, database_url: str) -> None:
    """Where uvloop can't be had the service runs on asyncio's own loop."""
    (tmp_path / "uvloop.py").write_text("raise ImportError")
    settings = config(database_url, reply="Hello.", tokens_per_second=200)
    process = spawn(settings, PYTHONPATH=str(tmp_path))
    assert process.ask().read().endswith(b"data: [DONE]\n\n")
    assert 0 == process.stop()


def test_a_busy_port_ends_the_start(spawn: Any, database_url: str) -> None:
    """A taken port is said, with what to do; exit status 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = spawn(config(database_url), "--port", str(port))
        assert 1 == process.popen.wait(PATIENCE_SECONDS)
    message = process.log.read_text()
    assert f"127.0.0.1:{port}" in message
    assert "--port" in message


def test_an_unreadable_database_address_ends_the_start(spawn: Any) -> None:
    """An address that no driver understands is said at once, without its password; exit status 1."""
    process = spawn({}, DATABASE_URL="postgresql://me:secret@[::1/chat")
    assert 1 == process.popen.wait(PATIENCE_SECONDS)
    message = process.log.read_text()
    assert "DATABASE_URL" in message
    assert "Traceback" not in message
    assert "secret" not in message


def test_an_unwritable_journal_ends_the_start(spawn: Any, database_url: str) -> None:
    """A journal that can't be written is said at once, with what to do; exit status 1."""
    process = spawn(config(database_url), JOURNAL_DIR="/proc/nowhere")
    assert 1 == process.popen.wait(PATIENCE_SECONDS)
    message = process.log.read_text()
    assert "/proc/nowhere" in message
    assert "JOURNAL_DIR" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("settings", "environ", "message"),
    [
        ({"sse": {"keep_alive": 1}}, {}, "sse.keep_alive: found an unknown key"),
        ({"server": {"host": 7}}, {}, "server.host: found 7, allowed: a non-empty text"),
        ({}, {"SSE_KEEP_ALIVE_INTERVAL": "soon"}, "SSE_KEEP_ALIVE_INTERVAL"),
        ({}, {"DATABASE_URL": "mysql://x"}, "postgresql://"),
        ({"server": {"host": "0.0.0.0"}}, {}, "loopback"),
        ({}, {"API_KEYS": "me-and-no-key"}, "API_KEYS"),
    ],
)
def test_a_bad_configuration_ends_the_start_with_status_2(
    spawn: Any, settings: dict[str, Any], environ: dict[str, str], message: str
) -> None:
    """A bad configuration is refused with the key and what is allowed; exit status 2."""
    process = spawn(settings, **environ)
    assert 2 == process.popen.wait(PATIENCE_SECONDS)
    assert message in process.log.read_text()


def test_check_and_print_config_start_nothing(spawn: Any) -> None:
    """`--check` and `--print-config` start nothing; the printed configuration hides passwords."""
    assert 0 == spawn({}, "--check").popen.wait(PATIENCE_SECONDS)
    printed = spawn({}, "--print-config", DATABASE_URL="postgresql://me:secret@h/d")
    assert 0 == printed.popen.wait(PATIENCE_SECONDS)
    assert "postgresql://me:***@h/d" in printed.log.read_text()


def test_backends_keys_stay_secret(spawn: Any, database_url: str) -> None:
    """No key is printed or logged."""
    settings = {"database": {"url": database_url}, "logging": {"level": "debug"}}
    process = spawn(
        settings, OPENAI_API_KEY="sk-very-secret", OPENAI_BASE_URL="http://127.0.0.1:9/v1"
    )
    process.get("/v1/models")
    assert 0 == process.stop()
    assert "sk-very-secret" not in process.log.read_text()


def test_callers_keys_stay_secret(spawn: Any, database_url: str) -> None:
    """A process that has its keys from the environment asks for them, and prints and logs none,
    good or bad, not even one in a header that is too long."""
    good, bad = "sk-good-0123456789", "sk-bad-0123456789"
    settings = {"database": {"url": database_url}, "logging": {"level": "debug"}}
    process = spawn(settings, API_KEYS=f"me:{good}")
    for key, status in ((good, 200), (bad, 401), (good + "x" * 9000, 431), ("", 401)):
        connection = process.connect()
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        response = connection.getresponse()
        assert (response.status, b"0123456789" in response.read()) == (status, False)
    assert 0 == process.stop()
    assert 1 == process.line("serving")["api_keys"]
    assert "0123456789" not in process.log.read_text()
    printed = spawn({}, "--print-config", API_KEYS=f"me:{good}")
    assert 0 == printed.popen.wait(PATIENCE_SECONDS)
    assert "name: me" in printed.log.read_text()
    assert good not in printed.log.read_text()
    assert hashlib.sha256(good.encode()).hexdigest() not in printed.log.read_text()


@pytest.mark.parametrize("key", [None, "sk-ann-0123456789"])
def test_a_start_on_a_terminal_prints_lines_to_paste(
    tmp_path: Path, database_url: str, key: str | None
) -> None:
    """On a terminal the start says where, which agents, where data lies, and lines to paste: one that
    asks, and two that are cut off and read on. They work as they are, but for the caller's key."""
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({"database": {"url": database_url}}))
    main, sub = pty.openpty()
    clean = {"PATH": os.environ["PATH"], "TERM": "dumb"}
    if key is not None:
        clean["API_KEYS"] = f"ann:{key}"
    popen = subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), "--config", str(path), "--port", "0"],
        stdout=sub,
        stderr=sub,
        env=clean,
        cwd=tmp_path,
    )
    os.close(sub)
    seen = ""
    try:
        while 'part.txt)"' not in seen:
            seen += os.read(main, 4096).decode()
        asking, cutting, reading = re.findall(r"^curl .*$", seen.replace("\r", ""), re.MULTILINE)
        if shutil.which("curl") is not None:
            assert ("YOUR-KEY" in seen) == (key is not None)
            first = pasted(f"{cutting}\n", tmp_path, key)
            rest = pasted(reading, tmp_path, key)
            whole = pasted(asking, tmp_path, key)
            assert first
            assert rest.endswith("data: [DONE]\n\n")
            assert text_of(whole.encode()) == text_of((first + rest).encode())
        popen.send_signal(signal.SIGINT)
        assert 0 == popen.wait(PATIENCE_SECONDS)
    finally:
        with contextlib.suppress(OSError):
            os.close(main)
        if popen.poll() is None:
            popen.kill()
            popen.wait()
    assert re.search(r"serves http://127\.0\.0\.1:\d+/v1", seen)
    assert "demo" in seen
    assert "OPENAI_API_KEY is not set" in seen
    assert re.search(r"curl -N http://127\.0\.0\.1:\d+/v1/chat/completions", seen)


def pasted(line: str, directory: Path, key: str | None) -> str:
    """What a line prints that somebody pastes into a shell."""
    line = line.replace("YOUR-KEY", key or "YOUR-KEY")
    done = subprocess.run(
        ["sh", "-c", line], cwd=directory, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout
