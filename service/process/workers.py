"""Several processes on one port: starts the workers, keeps them alive, passes signals on.

The supervisor serves nothing; it has no event loop and one thread, so that forking is safe.
docs/rooms/process.md gives the reasons for having one of our own.

1. Each worker is a whole service: event loop, database pool, journal. Workers share the port, the
   embedded PostgreSQL and the terminal's output; they reach each other by `service.process.slot`.
2. On Linux each worker has a listening socket of its own (SO_REUSEPORT); the kernel deals out
   connections among the sockets by hash. The supervisor keeps all of them open, so a connection in
   a dead worker's queue is answered by its successor. The socket of a worker that can't come back
   soon is closed, so that new connections go to the others.
3. A worker that dies is replaced: at once if it had served well, else after a wait that doubles.
   The successor finds the dead one's journal (`db.journal.recovery`). A worker that dies before
   any has served ends the start.
4. A reload is checked here once. A successor gets the configuration that is in force.
5. Workers are in sessions of their own, so that Ctrl-C reaches them only through the supervisor.
   If the supervisor is killed, a pipe ends and they drain (`WorkerSlot.supervisor_pipe`).
"""

import json
import os
import secrets
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

from service.process.board import Board
from service.process.hangup import Hangups
from service.process.listening import CannotServe, Listeners, Places, bind_apiece
from service.process.serving import announce
from service.process.slot import WorkerSlot, make_socket_dir
from service.process.worker import LONGEST_WAIT_SECONDS, Worker
from service.settings.config import RELOADABLE, Config
from service.settings.reload import Load, in_force, read_again
from service.telemetry import configure_logging

log = structlog.get_logger(__name__)

RunWorker = Callable[[Config, Load, Hangups, Listeners, WorkerSlot], int]
"""A worker's whole life, in its own process; its exit status."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class Supervisor:
    """Runs a service of several processes.

    Args:
        config: what the service is started with, `server.workers` among it.
        load: reads the configuration again.
        hangups: knows what a SIGHUP means.
        run_worker: see `RunWorker`.

    Raises:
        service.process.listening.CannotServe: a port is taken.
    """

    def __init__(self, config: Config, load: Load, hangups: Hangups, run_worker: RunWorker) -> None:
        self._config = config
        self._load = load
        self._hangups = hangups
        self._run_worker = run_worker
        bound = bind_apiece(config, config.server.workers)
        self._workers = [Worker(number, listeners) for number, listeners in enumerate(bound)]
        self._places = Places.of(bound[0])
        self._supervisor_pipe, self._supervisor_end = os.pipe()
        self._wakeups, self._wakeup_end = socket.socketpair()
        self._socket_dir = make_socket_dir()
        self._secret = secrets.token_bytes(32)
        self._board = Board(len(bound))
        self._has_served = False
        self._is_stopping = False
        self._status = 0

    def run(self) -> int:
        """Run until a stop is asked for and every worker has drained. The exit status: 0 if all
        went well."""
        self._wakeups.setblocking(False)
        self._wakeup_end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup_end.fileno(), warn_on_full_buffer=False)
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
            shutil.rmtree(self._socket_dir, ignore_errors=True)
        log.info("all workers stopped")
        return self._status

    # --- starting ---------------------------------------------------------------------------

    def _start_due(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if worker.starts_at is not None and worker.starts_at <= now and not self._is_stopping:
                self._start(worker)

    def _start(self, worker: Worker) -> None:
        try:
            self._fork(worker)
        except (CannotServe, OSError) as error:  # the port was taken; no memory is left
            log.error("worker not started", worker=worker.number, reason=str(error))
            worker.wait(LONGEST_WAIT_SECONDS)

    def _fork(self, worker: Worker) -> None:
        if worker.listeners is None:
            worker.listeners = self._places.bind()
        report, report_end = os.pipe()
        sys.stdout.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # the child has no handlers yet
        try:
            pid = os.fork()
            if pid == 0:
                os.close(report)
                self._run_forked(worker, report_end)
        except OSError:
            os.close(report)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            os.close(report_end)
        worker.begin(pid, report)
        log.info("worker started", worker=worker.number, pid=pid)

    def _run_forked(self, worker: Worker, report: int) -> None:
        """The life of a worker, in the forked process. Never returns."""
        status = 1
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            hangups = Hangups()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            listeners = self._keep_only(worker)
            slot = WorkerSlot(
                worker.number,
                len(self._workers),
                os.getppid(),
                self._socket_dir,
                self._supervisor_pipe,
                report,
                self._board,
                self._secret,
            )
            config = slot.share(self._config)
            status = self._run_worker(
                config, lambda: slot.share(self._load()), hangups, listeners, slot
            )
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(OSError):
                sys.stdout.flush()
            os._exit(status)

    def _keep_only(self, worker: Worker) -> Listeners:
        """Close the copies of what the supervisor and other workers own; the worker's listeners."""
        os.close(self._supervisor_end)
        self._wakeups.close()
        self._wakeup_end.close()
        for other in self._workers:
            if other.report is not None:
                os.close(other.report)
            if other is not worker:
                other.close_listeners()  # a copy would keep a queue open that nobody accepts from
        assert worker.listeners is not None
        return worker.listeners

    # --- what happens -----------------------------------------------------------------------

    def _wait(self) -> None:
        """Wait for a signal, a report, or the time to start a worker."""
        due = [worker.starts_at for worker in self._workers if worker.starts_at is not None]
        timeout = None if self._is_stopping or not due else max(0, min(due) - time.monotonic())
        reports = [worker.report for worker in self._workers if worker.report is not None]
        readable, _, _ = select.select([self._wakeups.fileno(), *reports], (), (), timeout)
        for worker in self._workers:
            if worker.report in readable:
                self._take_report(worker)
        if self._wakeups.fileno() in readable:
            for number in self._wakeups.recv(4096):
                self._handle(number)

    def _handle(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stop()
        elif number == signal.SIGHUP:
            self._hang_up()

    def _take_report(self, worker: Worker) -> None:
        worker.read_report()
        if not self._has_served and all(each.is_ready for each in self._workers):
            self._has_served = True
            announce(self._config, self._places, **json.loads(worker.reported))

    def _reap(self) -> None:
        for worker in self._workers:
            if worker.pid is not None:
                pid, status = os.waitpid(worker.pid, os.WNOHANG)
                if pid:
                    self._handle_exit(worker, os.waitstatus_to_exitcode(status))

    def _handle_exit(self, worker: Worker, status: int) -> None:
        """Decide what a worker's exit means. A negative status is a signal's number."""
        died = {"worker": worker.number, "pid": worker.pid, "status": status}
        worker.pid = None
        worker.close_report()  # its end may not have been read yet
        if self._is_stopping:
            if status not in (0, -signal.SIGTERM):  # by SIGTERM: it had not begun to serve
                log.error("worker died", **died)
                self._status = 1
            worker.close_listeners()  # a new connection is better refused than left to wait
        elif self._has_served:
            log.error("worker died", **died, next_in_seconds=worker.plan_successor())
        else:
            message = "before the service was up, so it stops; what the worker said is above."
            print(f"A worker ended (status {status}) {message}", file=sys.stderr, flush=True)
            self._status = 1
            self._stop()

    # --- signals passed on ------------------------------------------------------------------

    def _stop(self) -> None:
        """Have the workers drain; called again, end their grace."""
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
