"""Answers probes: `/healthz` (the process lives) and `/readyz` (it can take traffic, or why not)."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from aiohttp import web

from service.stream.running import RunningStreams


class Probes:
    """The endpoints.

    Args:
        streams: the running streams.
        checks: name of a part → returns None, or why the part can't do its work now.
        unsaved: returns how many ended completions wait for the database.
        circuits: returns which backends are being spared; see `service.agents.circuit`. They don't
            make the service unready: other agents answer, and refusals say when to come back.
        degraded: returns what doesn't work as it should, though the service can take traffic; None:
            there is no part of which that could be said.
    """

    def __init__(
        self,
        streams: RunningStreams,
        checks: Mapping[str, Callable[[], Awaitable[str | None]]],
        unsaved: Callable[[], int],
        circuits: Callable[[], Sequence[Mapping[str, object]]],
        degraded: Callable[[], Awaitable[Sequence[str]]] | None = None,
    ) -> None:
        self._streams = streams
        self._checks = checks
        self._unsaved = unsaved
        self._circuits = circuits
        self._degraded = degraded

    def routes(self) -> list[web.RouteDef]:
        """The calls and their handlers."""
        return [web.get("/healthz", self.healthz), web.get("/readyz", self.readyz)]

    async def healthz(self, _request: web.Request) -> web.Response:
        """The process lives."""
        return web.json_response({"status": "ok"})

    async def readyz(self, _request: web.Request) -> web.Response:
        """Whether the service can take traffic (200) or not (503), and why not."""
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
                "degraded": [] if self._degraded is None else await self._degraded(),
                "streams": self._streams.count,
                "unsaved": self._unsaved(),
                "agents": self._circuits(),
            },
            status=503 if reasons else 200,
        )
