"""One worker's place among several: its number, its share of the limits, its siblings.

A service of one process has none. Starts and ends no process.
"""

import asyncio
import json
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import structlog
from aiohttp import hdrs, web
from attrs import evolve, field, frozen

from service.edge.other_sites import is_from_sibling
from service.edge.siblings import SiblingAway
from service.process.board import Board
from service.settings.config import Config
from service.telemetry import COMPLETION_ID, REPLAYED, TRACE

log = structlog.get_logger(__name__)

_LOOK_AFTER_SECONDS = 5.0
"""So long a sibling may take over an answer; from then on it is looked at whether it lives."""
_PATIENCE_SECONDS = 10.0
"""For its sign of life: its event loop may be busy, the machine too."""
_GONE = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)
"""What is raised of a sibling that has died, is starting or stopping."""
_LONGEST_DIRECTORY = 80
"""A Unix socket's name has at most 103 bytes on every system."""
_PASSED_ON = (
    hdrs.AUTHORIZATION,
    hdrs.CONTENT_TYPE,
    "Idempotency-Key",
    "Last-Event-ID",
    "X-Keep-Alive-Interval",
    "X-Request-Id",
)
_PASSED_BACK = (
    hdrs.CACHE_CONTROL,
    hdrs.CONTENT_TYPE,
    hdrs.RETRY_AFTER,
    "X-Accel-Buffering",
    "x-should-retry",
)


@frozen
class WorkerSlot:
    """A worker's place.

    Attributes:
        number: this worker's, from 0.
        count: how many workers there are.
        supervisor: the process id of the supervisor.
        socket_dir: the directory of the workers' Unix sockets, which only our user can enter.
        supervisor_pipe: the reading end of a pipe that nobody writes to; it ends when the
            supervisor is gone.
        report: the writing end of a pipe on which this worker reports that it serves.
        secret: see `Siblings`.
        board: what workers leave to be read.
    """

    number: int
    count: int
    supervisor: int
    socket_dir: Path
    supervisor_pipe: int
    report: int
    board: Board
    secret: bytes = field(factory=lambda: secrets.token_bytes(32), repr=False)

    def share(self, config: Config) -> Config:
        """The configuration with this worker's part of `server.max_concurrent_streams`. The parts
        of all workers add up to the whole, unless it is too small to give each worker one."""
        whole = config.server.max_concurrent_streams
        part = whole // self.count + (self.number < whole % self.count)
        return evolve(config, server=evolve(config.server, max_concurrent_streams=max(part, 1)))

    def socket_of(self, number: int) -> Path:
        """The Unix socket on which a worker listens for its siblings."""
        return self.socket_dir / f"{number}.sock"

    def report_ready(self, agents_on: Sequence[str], agents_off: Mapping[str, str]) -> None:
        """Report to the supervisor that requests are answered, and by which agents."""
        message = json.dumps({"agents_on": list(agents_on), "agents_off": dict(agents_off)})
        with suppress(BrokenPipeError):  # supervisor gone; its pipe stops this worker
            os.write(self.report, message.encode() + b"\n")
        os.close(self.report)

    def leave(self) -> None:
        """Remove the socket; without a supervisor, the last worker removes the directory too."""
        with suppress(OSError):
            self.socket_of(self.number).unlink()
        if os.getppid() != self.supervisor:
            with suppress(OSError):
                self.socket_dir.rmdir()

    # --- what endpoints ask of the siblings (`service.edge.siblings.Siblings`) -----------

    def is_from_sibling(self, request: web.Request) -> bool:
        """See `Siblings`."""
        return is_from_sibling(request)

    async def pass_on(
        self, request: web.Request, body: bytes | None = None
    ) -> web.StreamResponse | None:
        """See `Siblings`."""
        unsure: web.StreamResponse | None = None
        away: Exception | None = None
        for number in [] if is_from_sibling(request) else self.others:
            try:
                async with self._asked(number, request, body) as theirs:
                    if theirs.status == web.HTTPNotFound.status_code:
                        continue
                    answer = await _relayed(theirs, request)
                    if answer.status != web.HTTPServiceUnavailable.status_code:
                        return answer
                    unsure = answer
            except TimeoutError as error:
                away = error
            except _GONE:
                away = away or SiblingAway()
        if unsure is None and away is not None:
            raise away
        return unsure

    async def gather(self, request: web.Request) -> list[Any]:
        """See `Siblings`."""
        found: list[Any] = []
        if is_from_sibling(request):
            return found
        for number in self.others:
            with suppress(*_GONE):
                async with self._asked(number, request, None) as theirs:
                    if theirs.status == web.HTTPOk.status_code:
                        found.append(await theirs.json())
        return found

    @property
    def others(self) -> Sequence[int]:
        """See `Siblings`."""
        return [number for number in range(self.count) if number != self.number]

    async def ask_each(self, request: web.Request, seconds: float) -> Mapping[int, Any]:
        """See `Siblings`."""
        answers = await asyncio.gather(
            *(self._ask_shortly(number, request, seconds) for number in self.others)
        )
        pairs = zip(self.others, answers, strict=True)
        return {number: answer for number, answer in pairs if answer is not None}

    async def _ask_shortly(self, number: int, request: web.Request, seconds: float) -> Any:
        """The JSON of one; None if it has none in time."""
        url = f"http://sibling{request.rel_url}"
        try:
            async with self._connected(number, seconds) as http, http.get(url) as response:
                return await response.json() if response.status == web.HTTPOk.status_code else None
        except (aiohttp.ClientError, TimeoutError):
            return None

    def keep(self, data: bytes) -> None:
        """See `Siblings`."""
        self.board.write(self.number, data)

    def kept(self, number: int) -> bytes | None:
        """See `Siblings`."""
        return self.board.read(number)

    @asynccontextmanager
    async def _asked(
        self, number: int, request: web.Request, body: bytes | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A sibling's response to the request, which may take its time while the sibling lives. Raises
        TimeoutError if it hangs, and `_GONE`."""
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        headers["traceparent"] = request[TRACE].traceparent
        async with self._connected(number, None) as http:
            begun = list[aiohttp.ClientResponse]()
            watching = asyncio.create_task(self._watch(number, http, begun), name="watch a sibling")
            url = f"http://sibling{request.rel_url}"
            try:
                async with http.request(
                    request.method, url, headers=headers, data=body
                ) as response:
                    begun.append(response)
                    yield response
            except aiohttp.ClientError as error:
                if http.closed:
                    raise TimeoutError("a worker hangs") from error
                raise
            finally:
                watching.cancel()

    def _connected(self, number: int, seconds: float | None) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(self.socket_of(number))),
            timeout=aiohttp.ClientTimeout(total=seconds),
            auto_decompress=False,
        )

    async def _watch(
        self, number: int, http: aiohttp.ClientSession, begun: Sequence[aiohttp.ClientResponse]
    ) -> None:
        """Cut off whoever waits for a response, or for more of one that has begun, once the sibling
        gives no sign of life."""
        while not http.closed:
            await asyncio.sleep(_LOOK_AFTER_SECONDS)
            try:
                async with self._connected(number, _PATIENCE_SECONDS) as look:
                    await look.get("http://sibling/healthz")
            except TimeoutError:
                log.error("worker hangs", worker=number)
                for response in begun:
                    response.close()  # aiohttp 3.14 tells those who read it only here
                await http.close()
            except aiohttp.ClientError:
                pass  # gone; whoever waits is told by the connection


async def _relayed(theirs: aiohttp.ClientResponse, request: web.Request) -> web.StreamResponse:
    """A sibling's response, written to the client as it comes. If the sibling dies meanwhile, so does
    the client's connection: nobody takes what there is for the whole."""
    if completion_id := theirs.headers.get("x-completion-id"):
        request[COMPLETION_ID] = completion_id
        if "Idempotency-Replayed" in theirs.headers:
            request[REPLAYED] = True
    headers = {name: theirs.headers[name] for name in _PASSED_BACK if name in theirs.headers}
    if theirs.content_type != "text/event-stream":
        return web.Response(status=theirs.status, body=await theirs.read(), headers=headers)
    ours = web.StreamResponse(status=theirs.status, headers=headers)
    await ours.prepare(request)
    try:
        async for data in theirs.content.iter_any():
            await ours.write(data)
    except aiohttp.ClientError:
        if request.transport is not None:
            request.transport.abort()
    return ours


def make_socket_dir() -> Path:
    """Make a directory for the workers' sockets, which only our user can enter."""
    directory = Path(tempfile.mkdtemp(prefix="verbatim-"))
    if len(os.fsencode(directory)) > _LONGEST_DIRECTORY:
        directory.rmdir()
        directory = Path(tempfile.mkdtemp(prefix="verbatim-", dir="/tmp"))
    return directory
