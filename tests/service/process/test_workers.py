"""Several processes on one port: real processes, real signals, real kills."""

import http.client
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.process.board import Board
from service.process.slot import WorkerSlot
from service.settings.config import Config, ServerConfig
from tests.postgres import execute
from tests.service.stage.process import (
    PATIENCE_SECONDS,
    Process,
    answers,
    ask,
    config,
    connect,
    text_of,
)

WORDS = "word " * 30


def settings(database_url: str, **fields: Any) -> dict[str, Any]:
    return {**config(database_url, **fields), "server": {"workers": 2}}


def pids(process: Process, count: int = 2) -> list[int]:
    """The workers' process ids, in the order of their starts."""
    process.line("worker started", count)
    return [line["pid"] for line in process.lines_of("worker started")]


def until(holds: Callable[[], Any], process: Process) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := holds()):
        assert time.monotonic() < deadline, process.log.read_text()
        time.sleep(0.02)
    return found


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_two_workers_are_one_service(spawn: Any, database_url: str) -> None:
    """Two workers are one service: one banner, one exit status, nothing left behind."""
    process = spawn(settings(database_url, reply="Hello there.", tokens_per_second=200))
    for _ in range(6):
        assert process.ask().read().endswith(b"data: [DONE]\n\n")
    workers = pids(process)
    assert 0 == process.stop()
    assert [("completed", None, "Hello there.", "complete")] * 6 == answers(database_url)
    (serving,) = process.lines_of("serving")
    assert (serving["workers"], serving["pid"]) == (2, process.popen.pid)
    assert not any(map(is_alive, workers))
    assert [] == process.lines_of("worker died")


def test_workers_share_one_embedded_database(spawn: Any, tmp_path: Path) -> None:
    """Workers that start at once share one embedded server, which the last of them stops."""
    first = settings("embedded", reply="Hello.", tokens_per_second=100)
    first["database"]["data_dir"] = str(tmp_path / "data")
    first["server"]["workers"] = 3
    process = spawn(first)
    assert process.ask().read().endswith(b"data: [DONE]\n\n")
    assert 1 == sum(len(line["migrations_applied"]) > 0 for line in ready_databases(process))
    assert 0 == process.stop()
    assert not (tmp_path / "data/cluster/postmaster.pid").exists()


def ready_databases(process: Process) -> list[dict[str, Any]]:
    return until(lambda: (found := process.lines_of("database ready"))[2:] and found, process)


@pytest.mark.parametrize("second_signal", [False, True])
def test_a_drain_reaches_every_worker(spawn: Any, database_url: str, second_signal: bool) -> None:
    """Streams on all workers may end; a second signal ends their grace; every word is kept."""
    process = spawn(settings(database_url, reply=WORDS, tokens_per_second=15))
    running = [process.ask() for _ in range(8)]
    first = [response.read1() for response in running]
    process.popen.send_signal(signal.SIGTERM)
    until(lambda: len(process.lines_of("stopping")) == 2, process)
    if second_signal:
        process.popen.send_signal(signal.SIGTERM)
    texts = [
        text_of(begun + response.read()) for begun, response in zip(first, running, strict=True)
    ]
    assert 0 == process.popen.wait(PATIENCE_SECONDS)
    end = ("failed", "draining", "partial") if second_signal else ("completed", None, "complete")
    assert sorted(answers(database_url)) == sorted((*end[:2], text, end[2]) for text in texts)
    assert second_signal or {WORDS} == set(texts)


def test_a_killed_workers_words_are_saved_by_its_successor(spawn: Any, database_url: str) -> None:
    """One worker is killed under load: the other's streams go on, what the dead one's clients were
    shown is saved by its successor, exactly once, and new requests are answered."""
    process = spawn(settings(database_url, reply=WORDS, tokens_per_second=10))
    running = [process.ask() for _ in range(16)]
    seen = [response.read1() for response in running]
    os.kill(pids(process)[0], signal.SIGKILL)
    broken = 0
    for number, response in enumerate(running):
        try:
            while data := response.read1():
                seen[number] += data
            assert WORDS == text_of(seen[number])
        except (OSError, http.client.HTTPException):
            broken += 1
    assert 0 < broken < 16
    successor = pids(process, 3)[2]
    died = process.line("worker died")
    assert (died["worker"], died["status"], died["next_in_seconds"]) == (0, -signal.SIGKILL, 0.0)
    rows = until(lambda: (found := answers(database_url))[15:] and found, process)
    whole = [row for row in rows if row == ("completed", None, WORDS, "complete")]
    assert 16 == len(rows)
    assert len(whole) == 16 - broken
    kept = sorted(row[2] for row in rows if row[:2] == ("failed", "process_died"))
    assert len(kept) == broken
    shown = sorted(text_of(body) for body in seen if b"[DONE]" not in body)
    assert all(word.startswith(text) for word, text in zip(kept, shown, strict=True))
    until(lambda: is_alive(successor), process)
    assert all(process.get("/readyz")[0] == 200 for _ in range(8))
    assert 0 == process.stop()
    assert 16 == len(answers(database_url))


def test_a_dead_workers_queue_is_answered_by_its_successor(spawn: Any, database_url: str) -> None:
    """Connections that a worker had not accepted when it died are answered by its successor."""
    process = spawn(settings(database_url, reply="Hello.", tokens_per_second=200))
    process.line("serving")
    worker = pids(process)[0]
    os.kill(worker, signal.SIGSTOP)
    connections = [ask(process.port) for _ in range(16)]
    os.kill(worker, signal.SIGKILL)
    for connection in connections:
        response = connection.getresponse()
        assert "Hello." == text_of(response.read())
        connection.close()
    assert 0 == process.stop()


def test_a_worker_that_keeps_dying_waits_ever_longer(spawn: Any, database_url: str) -> None:
    """Each try waits longer than the last, and meanwhile the others take all connections."""
    process = spawn(settings(database_url, reply="Hello.", tokens_per_second=200))
    process.line("serving")
    for count in (2, 3, 4, 5):
        os.kill(pids(process, count)[-1 if count > 2 else 0], signal.SIGKILL)
        process.line("worker died", count - 1)
    waits = [line["next_in_seconds"] for line in process.lines_of("worker died")]
    assert [0.0, 0.5, 1.0, 2.0] == waits
    for _ in range(8):
        assert process.ask().read().endswith(b"data: [DONE]\n\n")
    assert 5 == len(process.lines_of("worker started"))  # so its place was empty all the while
    pids(process, 6)
    assert 0 == process.stop()


def test_workers_that_cannot_start_end_the_start(spawn: Any, database_url: str) -> None:
    """Workers that can't even start are not started again: the reason, exit status 1, no orphans."""
    process = spawn(settings(database_url), JOURNAL_DIR="/proc/nowhere")
    assert 1 == process.popen.wait(PATIENCE_SECONDS)
    message = process.log.read_text()
    assert "/proc/nowhere" in message
    assert "before the service was up" in message
    assert "Traceback" not in message
    started = [json.loads(line) for line in message.splitlines() if "worker started" in line]
    assert 2 == len(started)
    assert not any(is_alive(line["pid"]) for line in started)


def test_workers_drain_when_their_supervisor_is_killed(spawn: Any, database_url: str) -> None:
    """If the supervisor is killed its workers let their streams end, and go."""
    process = spawn(settings(database_url, reply=WORDS, tokens_per_second=30))
    running = [process.ask() for _ in range(6)]
    first = [response.read1() for response in running]
    workers = pids(process)
    process.popen.kill()
    process.popen.wait()
    for begun, response in zip(first, running, strict=True):
        assert WORDS == text_of(begun + response.read())
    until(lambda: not any(map(is_alive, workers)), process)
    assert [("completed", None, WORDS, "complete")] * 6 == answers(database_url)
    assert 2 == len(process.lines_of("supervisor gone"))


def test_a_worker_that_is_stopped_is_replaced(spawn: Any, database_url: str) -> None:
    """A worker that is told to stop drains and is followed by another; the service goes on."""
    process = spawn(settings(database_url, reply="Hello.", tokens_per_second=200))
    process.line("serving")
    os.kill(pids(process)[1], signal.SIGTERM)
    assert 0 == process.line("worker died")["status"]
    pids(process, 3)
    for _ in range(8):
        assert process.ask().read().endswith(b"data: [DONE]\n\n")
    assert 0 == process.stop()


def test_a_reload_reaches_every_worker_and_its_successors(spawn: Any, database_url: str) -> None:
    """Every worker goes by the new file, also one that starts later; a bad one is refused once."""
    process = spawn(settings(database_url, reply="old", tokens_per_second=200))
    process.line("serving")
    bad = settings(database_url, reply="bad", tokens_per_second=-1)
    process.write(bad)
    process.popen.send_signal(signal.SIGHUP)
    process.line("configuration not reloaded")
    process.write(settings(database_url, reply="new", tokens_per_second=200))
    process.popen.send_signal(signal.SIGHUP)
    process.line("configuration reloaded", 2)
    process.write(bad)  # a successor must not read this
    os.kill(pids(process)[0], signal.SIGKILL)
    pids(process, 3)
    assert {"new"} == {text_of(process.ask().read()) for _ in range(12)}
    assert 0 == process.stop()
    assert 1 == len(process.lines_of("configuration not reloaded"))
    assert 2 == len(process.lines_of("configuration reloaded"))


def test_cancel_reaches_the_right_worker(spawn: Any, database_url: str) -> None:
    """A completion is stopped by its id whichever worker runs it and whichever is asked."""
    process = spawn(settings(database_url, reply="word " * 1000, tokens_per_second=20))
    running = [process.ask() for _ in range(12)]
    for response in running:
        first = response.read1()
        completion_id = json.loads(first.partition(b"\n")[0].removeprefix(b"data: "))["id"]
        assert 200 == cancel(process, completion_id)[0]
        rest = response.read()
        assert b"[DONE]" not in rest
        assert b"error" not in rest
        assert 404 == cancel(process, completion_id)[0]
    status, body = cancel(process, "chatcmpl-unknown")
    assert (404, "not_found") == (status, body["error"]["code"])
    assert 0 == process.stop()
    states = execute(database_url, "SELECT DISTINCT state, error->>'code' FROM completions")
    assert [("client_gone", "stopped")] == states


def cancel(process: Process, completion_id: str) -> tuple[int, Any]:
    connection = connect(process.port)
    connection.request("POST", f"/v1/chat/completions/{completion_id}/cancel")
    response = connection.getresponse()
    body = json.loads(response.read())
    connection.close()
    return response.status, body


def test_a_port_shared_by_workers_is_busy_for_a_second_service(
    spawn: Any, database_url: str
) -> None:
    """A second service is told that the port is taken, although workers share theirs."""
    first = spawn(settings(database_url))
    process = spawn(settings(database_url), "--port", str(first.port))
    assert 1 == process.popen.wait(PATIENCE_SECONDS)
    assert f"127.0.0.1:{first.port}" in process.log.read_text()


@pytest.mark.parametrize(
    ("whole", "count", "parts"), [(2000, 2, [1000, 1000]), (5, 3, [2, 2, 1]), (1, 3, [1, 1, 1])]
)
def test_the_workers_limits_add_up_to_the_services(
    whole: int, count: int, parts: list[int]
) -> None:
    """Workers' parts make up the service's limit, and nobody is left without."""
    config = Config(server=ServerConfig(max_concurrent_streams=whole))
    board = Board(count)
    slots = [
        WorkerSlot(number, count, 1, Path("/nowhere"), -1, -1, board) for number in range(count)
    ]
    assert [slot.share(config).server.max_concurrent_streams for slot in slots] == parts


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
