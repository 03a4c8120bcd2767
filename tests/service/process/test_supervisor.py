"""The supervisor's bookkeeping, without any worker: what stays open, and when a successor starts."""

import errno
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from service.process.workers import Supervisor
from service.settings.config import Config, ServerConfig

NOBODY: Any = None


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    """One that has started nothing yet."""
    made = Supervisor(Config(server=ServerConfig(port=0, workers=2)), NOBODY, NOBODY, NOBODY)
    yield made
    for worker in made._workers:
        worker.close_listeners()
    made._wakeups.close()
    made._wakeup_end.close()
    os.close(made._supervisor_pipe)
    os.close(made._supervisor_end)
    made._socket_dir.rmdir()


def open_files() -> set[str]:
    return {name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")}


def test_a_worker_that_never_serves_is_replaced_for_ever(supervisor: Supervisor) -> None:
    """However often it has died, there is a time for the next try, and half a minute at most away."""
    worker = supervisor._workers[0]
    waits = [worker.plan_successor() for _ in range(1100)]
    assert [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0] == waits[:8]
    assert {30.0} == set(waits[8:])


def test_a_fork_that_fails_leaves_nothing_open(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that can't be had is tried again later, without its socket meanwhile: whoever
    connected there would wait in vain."""

    def fail() -> int:
        raise OSError(errno.EAGAIN, "no process is left")

    before = open_files()
    monkeypatch.setattr(os, "fork", fail)
    supervisor._start(supervisor._workers[0])
    assert supervisor._workers[0].listeners is None
    assert len(before) - 1 == len(open_files())


def test_a_worker_that_dies_unheard_leaves_nothing_open(supervisor: Supervisor) -> None:
    """A worker's exit may be noticed before the end of its report; the pipe is closed all the same."""
    before = open_files()
    worker = supervisor._workers[0]
    worker.report, report_end = os.pipe()
    os.close(report_end)
    supervisor._has_served = True
    supervisor._handle_exit(worker, 1)
    assert before == open_files()


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
