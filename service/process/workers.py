"""Several processes on one port: starts the workers, keeps them alive, passes signals on.

Called by `run.py` when `server.workers` is above 1. The supervisor serves nothing, has no event
loop and one thread, so that forking is safe. `docs/architecture.md` says why it is our own.

1. Each worker is a whole service: event loop, database pool, journal. What they share is the port,
   the embedded PostgreSQL and the terminal's output; they reach each other by `service.process.slot`.
2. On Linux each worker's seat has a listening socket of its own (SO_REUSEPORT), among which the
   kernel deals out connections by hash. The supervisor keeps all of them open: what waits in a
   dead worker's queue is answered by its successor. One that can't come back soon has its socket
   closed, so that new connections go to the others.
3. A worker that dies is followed by another, at once if it had served well, else after a wait that
   doubles. The successor finds the dead one's journal (`db.journal.recovery`). A worker that dies before
   any has served ends the start.
4. A reload is checked here once. A successor gets the configuration that is in force.
5. Workers are in sessions of their own, so that Ctrl-C reaches them only through us. If we are
   killed, a pipe ends and they drain (`Seat.lifeline`).
"""

import json
import os
import select
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress

import structlog

from service.process.hangup import Hangups
from service.process.serving import HAS_SOCKETS_APIECE, CannotServe, announce, bind, bind_apiece
from service.process.slot import Seat, make_meeting_place
from service.settings.config import RELOADABLE, Config
from service.settings.reload import Load, in_force, read_again
from service.telemetry import configure_logging

log = structlog.get_logger(__name__)

RunWorker = Callable[[Config, Load, Hangups, socket.socket, Seat], int]
"""A worker's whole life, in its own process; its exit status."""

_GOOD_LIFE_SECONDS = 10.0
"""A worker that lived longer is followed at once."""
_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 30.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class _Worker:
    """A seat and who sits on it: no process while `pid` is None."""

    def __init__(self, number: int, listener: socket.socket) -> None:
        self.number = number
        self.listener: socket.socket | None = listener
        self.pid: int | None = None
        self.report: int | None = None
        self.said = b""
        self.is_ready = False
        self.started_at = 0.0
        self.starts_at: float | None = 0.0
        """When to start one, on the monotonic clock; None: not before the last one died."""
        self.failures = 0


class Supervisor:
    """Runs a service of several processes.

    Args:
        config: what it starts with; `server.workers` says how many.
        load: reads the configuration again.
        hangups: tells what a SIGHUP means.
        run_worker: see `RunWorker`.

    Raises:
        service.process.serving.CannotServe: the port is taken.
    """

    def __init__(self, config: Config, load: Load, hangups: Hangups, run_worker: RunWorker) -> None:
        self._config = config
        self._load = load
        self._hangups = hangups
        self._run_worker = run_worker
        server = config.server
        sockets = bind_apiece(server.host, server.port, server.workers)
        self._workers = [_Worker(number, listener) for number, listener in enumerate(sockets)]
        self._address: tuple[str, int] = sockets[0].getsockname()[:2]
        self._lifeline, self._life = os.pipe()
        self._woken, self._wakes = socket.socketpair()
        self._meeting_place = make_meeting_place()
        self._has_served = False
        self._is_stopping = False
        self._status = 0

    def run(self) -> int:
        """Until told to stop and every worker has drained. The exit status: 0 if all was well."""
        self._woken.setblocking(False)
        self._wakes.setblocking(False)
        signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)  # the number comes through the wakeup socket
        if self._hangups.take_early():
            self._hang_up()
        try:
            while not (self._is_stopping and not any(w.pid for w in self._workers)):
                self._start_due()
                self._wait()
                self._reap()
        finally:
            shutil.rmtree(self._meeting_place, ignore_errors=True)
        log.info("all workers stopped")
        return self._status

    # --- starting ---------------------------------------------------------------------------

    def _start_due(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if worker.starts_at is not None and worker.starts_at <= now and not self._is_stopping:
                self._start(worker)

    def _start(self, worker: _Worker) -> None:
        try:
            self._fork(worker)
        except (CannotServe, OSError) as error:  # somebody took the port; no memory is left
            log.error("worker not started", worker=worker.number, reason=str(error))
            worker.starts_at = time.monotonic() + _LONGEST_WAIT_SECONDS

    def _fork(self, worker: _Worker) -> None:
        if worker.listener is None:
            host, port = self._address
            worker.listener = bind(host, port, shared=True)
        report, to_us = os.pipe()
        sys.stdout.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # the child must not answer as if us
        try:
            pid = os.fork()
            if pid == 0:
                os.close(report)
                self._be(worker, to_us)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.close(to_us)
        worker.pid, worker.report, worker.said, worker.is_ready = pid, report, b"", False
        worker.started_at, worker.starts_at = time.monotonic(), None
        log.info("worker started", worker=worker.number, pid=pid)

    def _be(self, worker: _Worker, report: int) -> None:
        """The forked process: its life as a worker. Never returns."""
        status = 1
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            hangups = Hangups()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            listener = self._keep_only(worker)
            seat = Seat(
                worker.number,
                len(self._workers),
                os.getppid(),
                self._meeting_place,
                self._lifeline,
                report,
            )
            config = seat.share(self._config)
            status = self._run_worker(
                config, lambda: seat.share(self._load()), hangups, listener, seat
            )
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(OSError):
                sys.stdout.flush()
            os._exit(status)

    def _keep_only(self, worker: _Worker) -> socket.socket:
        """Close what belongs to the supervisor and to other workers; the worker's listener.

        A copy of another's listening socket would keep its queue open that nobody accepts from.
        """
        os.close(self._life)
        self._woken.close()
        self._wakes.close()
        for other in self._workers:
            if other.report is not None:
                os.close(other.report)
            if other.listener is not None and other.listener is not worker.listener:
                other.listener.close()
        assert worker.listener is not None
        return worker.listener

    # --- what happens -----------------------------------------------------------------------

    def _wait(self) -> None:
        """Until a signal, a report, or the time to start a worker."""
        due = [worker.starts_at for worker in self._workers if worker.starts_at is not None]
        patience = None if self._is_stopping or not due else max(0, min(due) - time.monotonic())
        reports = [worker.report for worker in self._workers if worker.report is not None]
        readable, _, _ = select.select([self._woken.fileno(), *reports], (), (), patience)
        for worker in self._workers:
            if worker.report in readable:
                self._take_report(worker)
        if self._woken.fileno() in readable:
            for number in self._woken.recv(4096):
                self._handle(number)

    def _handle(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stop()
        elif number == signal.SIGHUP:
            self._hang_up()

    def _take_report(self, worker: _Worker) -> None:
        """A worker serves; or has died before it did, and its report is not whole."""
        assert worker.report is not None
        if data := os.read(worker.report, select.PIPE_BUF):
            worker.said += data
            return
        os.close(worker.report)
        worker.report = None
        worker.is_ready = worker.said.endswith(b"\n")
        if not self._has_served and all(each.is_ready for each in self._workers):
            self._has_served = True
            announce(self._config, self._address, **json.loads(worker.said))

    def _reap(self) -> None:
        for worker in self._workers:
            if worker.pid is not None:
                pid, status = os.waitpid(worker.pid, os.WNOHANG)
                if pid:
                    self._bury(worker, os.waitstatus_to_exitcode(status))

    def _bury(self, worker: _Worker, status: int) -> None:
        """A worker is dead: decide who follows it, and when. A negative status is a signal's."""
        pid, worker.pid = worker.pid, None
        if self._is_stopping:
            if status not in (0, -signal.SIGTERM):  # by SIGTERM: it had not begun to serve
                log.error("worker died", worker=worker.number, pid=pid, status=status)
                self._status = 1
            self._close(worker)  # who still connects is better refused than left to wait
            return
        if not self._has_served:
            print(
                f"A worker ended (status {status}) before the service was up, so it stops; what "
                "the worker said is above.",
                file=sys.stderr,
                flush=True,
            )
            self._status = 1
            self._stop()
            return
        age = time.monotonic() - worker.started_at
        served_well = worker.is_ready and age >= _GOOD_LIFE_SECONDS
        worker.failures = 0 if served_well else worker.failures + 1
        wait = 0.0
        if worker.failures > 1:
            wait = min(_FIRST_WAIT_SECONDS * 2 ** (worker.failures - 2), _LONGEST_WAIT_SECONDS)
            self._close(worker)
        worker.starts_at = time.monotonic() + wait
        log.error("worker died", worker=worker.number, pid=pid, status=status, next_in_seconds=wait)

    def _close(self, worker: _Worker) -> None:
        """Give up a listening socket, unless it is everybody's."""
        if HAS_SOCKETS_APIECE and worker.listener is not None:
            worker.listener.close()
            worker.listener = None

    # --- signals passed on ------------------------------------------------------------------

    def _stop(self) -> None:
        """Have the workers drain; called again, have them hurry."""
        if not self._is_stopping:
            log.info("stopping workers")
        self._is_stopping = True
        self._signal(signal.SIGTERM)

    def _hang_up(self) -> None:
        if self._hangups.is_terminal_gone():
            self._stop()
        elif self._is_stopping:
            self._hangups.refuse()
        elif (wanted := read_again(self._config, self._load, RELOADABLE)) is not None:
            self._config = in_force(self._config, wanted, RELOADABLE)
            configure_logging(self._config.logging)
            self._signal(signal.SIGHUP)

    def _signal(self, number: int) -> None:
        for worker in self._workers:
            if worker.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, number)
