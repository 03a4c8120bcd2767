"""One worker's place among several: its number, its share of the limits, its siblings.

A service of one process has none. Starts and ends no process.
"""

import json
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import hdrs, web
from attrs import evolve, frozen

from service.edge.siblings import SiblingAway
from service.settings.config import Config
from service.telemetry import COMPLETION_ID, REPLAYED

_SIBLING_TIMEOUT_SECONDS = 30.0
"""For a sibling's answer; to stop a completion it waits for the commit."""
_LONGEST_DIRECTORY = 80
"""A Unix socket's name has at most 103 bytes on every system."""
_PASSED_ON = (
    hdrs.AUTHORIZATION,
    hdrs.CONTENT_TYPE,
    "Idempotency-Key",
    "Last-Event-ID",
    "X-Keep-Alive-Interval",
    "X-Request-Id",
    "traceparent",
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
    """

    number: int
    count: int
    supervisor: int
    socket_dir: Path
    supervisor_pipe: int
    report: int

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
        if is_from_sibling(request):
            return None
        is_one_away = False
        for number in self._others():
            try:
                async with self._asked(number, request, body) as theirs:
                    if theirs.status != web.HTTPNotFound.status_code:
                        return await _relayed(theirs, request)
            except aiohttp.ClientConnectorError:
                is_one_away = True
        if is_one_away:
            raise SiblingAway
        return None

    async def gather(self, request: web.Request) -> list[Any]:
        """See `Siblings`."""
        found: list[Any] = []
        if is_from_sibling(request):
            return found
        for number in self._others():
            with suppress(aiohttp.ClientConnectorError):
                async with self._asked(number, request, None) as theirs:
                    if theirs.status == web.HTTPOk.status_code:
                        found.append(await theirs.json())
        return found

    def _others(self) -> Iterator[int]:
        return (number for number in range(self.count) if number != self.number)

    @asynccontextmanager
    async def _asked(
        self, number: int, request: web.Request, body: bytes | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A sibling's response to the request. Raises TimeoutError if it doesn't begin in time: a plain
        answer begins at its end."""
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        is_answer = body is not None or request.query.get("stream", "").lower() == "true"
        timeout = aiohttp.ClientTimeout(
            total=None if is_answer else _SIBLING_TIMEOUT_SECONDS,
            sock_connect=_SIBLING_TIMEOUT_SECONDS,
        )
        async with aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(self.socket_of(number))),
            timeout=timeout,
            auto_decompress=False,
        ) as http:
            url = f"http://sibling{request.rel_url}"
            async with http.request(request.method, url, headers=headers, data=body) as response:
                yield response


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


def is_from_sibling(request: web.Request) -> bool:
    """True if the request came over a worker's Unix socket. No header can pretend that."""
    name = request.transport.get_extra_info("sockname") if request.transport else None
    return isinstance(name, (str, bytes))
