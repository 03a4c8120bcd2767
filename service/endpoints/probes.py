"""`/healthz` (the process lives) and `/readyz` (it can take traffic, and why not)."""

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from service.stream.running import RunningStreams


async def healthz(_request: web.Request) -> web.Response:
    """The process lives."""
    return web.json_response({"status": "ok"})


class Readiness:
    """`GET /readyz`: whether the service can take traffic, and why not.

    Args:
        streams: the running streams.
        checks: name → returns None, or why that part can't do its work now.
        unsaved: how many ended completions wait for the database.
    """

    def __init__(
        self,
        streams: RunningStreams,
        checks: Mapping[str, Callable[[], Awaitable[str | None]]],
        unsaved: Callable[[], int],
    ) -> None:
        self._streams = streams
        self._checks = checks
        self._unsaved = unsaved

    async def readyz(self, _request: web.Request) -> web.Response:
        reasons: list[str] = []
        if self._streams.is_draining:
            reasons.append("draining: the service is stopping")
        for name, check in self._checks.items():
            if (why := await check()) is not None:
                reasons.append(f"{name}: {why}")
        return web.json_response(
            {
                "ready": not reasons,
                "reasons": reasons,
                "streams": len(self._streams),
                "unsaved": self._unsaved(),
            },
            status=503 if reasons else 200,
        )
