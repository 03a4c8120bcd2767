"""Measures how long an event loop was held up: the longest time in which nobody else got a turn.

    async with measured_loop() as loop_time:
        ...
    assert loop_time.longest_ms < loop_time.bound_ms

A heartbeat runs in the loop every millisecond. What counts between two beats is the CPU time that
this process used, at most the time on the clock: so other programs on a busy machine don't count,
but a C call in another thread that keeps the interpreter to itself does. What waits without
computing (`time.sleep`, a blocking read) shows in `longest_wall_ms` alone, which a busy machine
shows in too.

The bound is `BOUND_MS` on a usual machine. A slower one gets more, by the time that it takes for the
same small computation in the same run.

`watched_process` does the same from outside, for a service in a process of its own. What that
computes while the asking thread waits for its turn counts too, so it suits a service that is idle
but for what is measured.
"""

import asyncio
import gc
import http.client
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager

BOUND_MS = 100.0
_BEAT_SECONDS = 0.001
_REFERENCE_ROUNDS = 60_000
_USUAL_REFERENCE_MS = 6.0
"""What the reference computation takes on a machine that is neither fast nor slow."""
_PATIENCE_SECONDS = 60.0

Clock = Callable[[], float]


class LoopTime:
    """What was measured. Figures are in milliseconds.

    Attributes:
        longest_ms: the longest hold-up by computing.
        longest_wall_ms: the longest hold-up by anything, other programs included.
        bound_ms: what `longest_ms` may be at most on this machine at this time; final once the
            measuring is over.
        beats: how often was measured.
    """

    def __init__(self) -> None:
        self.longest_ms = 0.0
        self.longest_wall_ms = 0.0
        self.beats = 0
        self._reference_ms = reference_ms()

    @property
    def bound_ms(self) -> float:
        return BOUND_MS * max(1.0, self._reference_ms / _USUAL_REFERENCE_MS)

    def note(self, wall_seconds: float, cpu_seconds: float) -> None:
        """Take in one hold-up: how long it was by the clock, and the CPU time used in it."""
        self.beats += 1
        self.longest_wall_ms = max(self.longest_wall_ms, wall_seconds * 1000)
        self.longest_ms = max(self.longest_ms, min(wall_seconds, cpu_seconds) * 1000)

    def close(self) -> None:
        """The measuring is over: see whether the machine has become slower."""
        self._reference_ms = max(self._reference_ms, reference_ms())


def reference_ms() -> float:
    """The CPU time of a small computation that is always the same: the best of a few runs."""
    return min(_reference_run() for _ in range(3)) * 1000


def _reference_run() -> float:
    began = time.thread_time()
    total = 0
    for number in range(_REFERENCE_ROUNDS):
        total += number & 7
    return time.thread_time() - began


@asynccontextmanager
async def measured_loop() -> AsyncIterator[LoopTime]:
    """Measure the running loop meanwhile: a service in it, and whatever else the test runs there.

    The loop's debug mode is off meanwhile, and objects that were there before are left out of
    garbage collection: no service has either.
    """
    loop = asyncio.get_running_loop()
    loop_time = LoopTime()
    with _as_in_service(loop):
        heart = _Heart(loop, loop_time)
        try:
            yield loop_time
        finally:
            heart.stop()
            loop_time.close()


@contextmanager
def _as_in_service(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    was_debugged = loop.get_debug()
    loop.set_debug(False)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        loop.set_debug(was_debugged)


class _Heart:
    """Beats in a loop until it is stopped."""

    def __init__(self, loop: asyncio.AbstractEventLoop, loop_time: LoopTime) -> None:
        self._loop = loop
        self._loop_time = loop_time
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        self._timer = loop.call_later(_BEAT_SECONDS, self._beat)

    def _beat(self) -> None:
        self._measure()
        self._timer = self._loop.call_later(_BEAT_SECONDS, self._beat)

    def _measure(self) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self._loop_time.note(wall - self._wall, cpu - self._cpu)
        self._wall, self._cpu = wall, cpu

    def stop(self) -> None:
        self._timer.cancel()
        self._measure()


@contextmanager
def watched_process(pid: int, port: int) -> Iterator[LoopTime]:
    """Measure a service process on this machine meanwhile, by how long `/healthz` waits.

    Raises whatever goes wrong with asking, once the measuring is over.
    """
    loop_time = LoopTime()
    watch = _Watch(pid, port, loop_time)
    thread = threading.Thread(target=watch.run, name="watched process", daemon=True)
    thread.start()
    try:
        yield loop_time
    finally:
        watch.is_over.set()
        thread.join(_PATIENCE_SECONDS)
        loop_time.close()
    if watch.broken is not None:
        raise watch.broken


class _Watch:
    """Asks for `/healthz` over and over, on one connection."""

    def __init__(self, pid: int, port: int, loop_time: LoopTime) -> None:
        self.is_over = threading.Event()
        self.broken: Exception | None = None
        self._port = port
        self._loop_time = loop_time
        self._cpu = cpu_clock(pid)

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE_SECONDS)
        try:
            with closing(connection):
                while not self.is_over.wait(_BEAT_SECONDS):
                    self._ask(connection)
        except Exception as error:
            self.broken = error

    def _ask(self, connection: http.client.HTTPConnection) -> None:
        wall, cpu = time.perf_counter(), self._cpu()
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        self._loop_time.note(time.perf_counter() - wall, self._cpu() - cpu)


def cpu_clock(pid: int) -> Clock:
    """The CPU time that a process has used, in seconds; time itself where no such clock is."""
    number = (~pid << 3) | 2  # as clock_getcpuclockid(3) makes it
    try:
        time.clock_gettime(number)
    except OSError:
        return time.perf_counter
    return lambda: time.clock_gettime(number)
