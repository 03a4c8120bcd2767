"""One worker's place among several: its number, its share of the limits, its siblings.

A service of one process has none. Starts and ends no process.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import hdrs, web
from attrs import evolve, frozen

from service.settings.config import Config

_SIBLING_TIMEOUT_SECONDS = 30.0
"""For a sibling's answer; to stop a completion it waits for the commit."""
_LONGEST_DIRECTORY = 80
"""A Unix socket's name has at most 103 bytes on every system."""
_PASSED_ON = (hdrs.AUTHORIZATION, "X-Request-Id", "traceparent")


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

    async def ask_siblings(self, request: web.Request) -> web.Response | None:
        """Send the request to each sibling in turn; the first answer that isn't a 404, or None.

        A request that comes from a sibling is not sent on. A sibling that isn't there is passed
        over. Raises TimeoutError if one doesn't answer.
        """
        if is_from_sibling(request):
            return None
        for number in range(self.count):
            if number != self.number:
                with suppress(aiohttp.ClientConnectionError):  # it has died, or is starting
                    status, body = await self._ask(number, request)
                    if status != web.HTTPNotFound.status_code:
                        return web.json_response(body, status=status)
        return None

    async def _ask(self, number: int, request: web.Request) -> tuple[int, Any]:
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        async with aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(self.socket_of(number))),
            timeout=aiohttp.ClientTimeout(total=_SIBLING_TIMEOUT_SECONDS),
        ) as http:
            url = f"http://sibling{request.rel_url}"
            async with http.request(request.method, url, headers=headers) as response:
                return response.status, await response.json()


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
