"""One worker's place among several: its number, its share of the limits, its siblings.

A service of one process has none. Never starts or ends a process.
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

_PATIENCE_SECONDS = 30.0
"""For a sibling's answer; to stop a completion it waits for the commit."""
_LONGEST_DIRECTORY = 80
"""A Unix socket's name has at most 103 bytes on every system."""
_PASSED_ON = (hdrs.AUTHORIZATION, "X-Request-Id", "traceparent")


@frozen
class Seat:
    """A worker's place.

    Attributes:
        number: from 0.
        count: of all workers.
        supervisor: the process id of who started this worker.
        meeting_place: the directory of the workers' Unix sockets, which only our user can enter.
        lifeline: a pipe that nobody writes to; it ends when the supervisor is gone.
        report: a pipe to tell the supervisor on that this worker serves.
    """

    number: int
    count: int
    supervisor: int
    meeting_place: Path
    lifeline: int
    report: int

    def share(self, config: Config) -> Config:
        """The configuration with this worker's part of what is counted for the whole service. The
        parts of all make up the whole, but nobody gets less than one."""
        whole = config.server.max_concurrent_streams
        part = whole // self.count + (self.number < whole % self.count)
        return evolve(config, server=evolve(config.server, max_concurrent_streams=max(part, 1)))

    def socket_of(self, number: int) -> Path:
        """Where a worker listens for its siblings."""
        return self.meeting_place / f"{number}.sock"

    def say_ready(self, agents_on: Sequence[str], agents_off: Mapping[str, str]) -> None:
        """Tell the supervisor that requests are answered, and by which agents."""
        message = json.dumps({"agents_on": list(agents_on), "agents_off": dict(agents_off)})
        with suppress(BrokenPipeError):  # the lifeline tells, and the worker stops
            os.write(self.report, message.encode() + b"\n")
        os.close(self.report)

    def leave(self) -> None:
        """Take the socket away; the last worker of a supervisor that is gone, the directory too."""
        with suppress(OSError):
            self.socket_of(self.number).unlink()
        if os.getppid() != self.supervisor:
            with suppress(OSError):
                self.meeting_place.rmdir()

    async def ask_siblings(self, request: web.Request) -> web.Response | None:
        """The answer of the sibling that has what this request is about, None if none has: each is
        sent the same request, and says 404 if it hasn't.

        A request that comes from a sibling is not passed on. Raises TimeoutError if one doesn't
        answer; one that is not there has nothing.
        """
        if is_from_sibling(request):
            return None
        for number in range(self.count):
            if number != self.number:
                with suppress(aiohttp.ClientConnectionError):  # it died, or starts
                    status, body = await self._ask(number, request)
                    if status != web.HTTPNotFound.status_code:
                        return web.json_response(body, status=status)
        return None

    async def _ask(self, number: int, request: web.Request) -> tuple[int, Any]:
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        async with aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(self.socket_of(number))),
            timeout=aiohttp.ClientTimeout(total=_PATIENCE_SECONDS),
        ) as http:
            url = f"http://sibling{request.rel_url}"
            async with http.request(request.method, url, headers=headers) as response:
                return response.status, await response.json()


def make_meeting_place() -> Path:
    """A new directory for the workers' sockets, which only our user can enter."""
    directory = Path(tempfile.mkdtemp(prefix="verbatim-"))
    if len(os.fsencode(directory)) > _LONGEST_DIRECTORY:
        directory.rmdir()
        directory = Path(tempfile.mkdtemp(prefix="verbatim-", dir="/tmp"))
    return directory


def is_from_sibling(request: web.Request) -> bool:
    """True if it came over a worker's Unix socket. No header can say so."""
    name = request.transport.get_extra_info("sockname") if request.transport else None
    return isinstance(name, (str, bytes))
