"""Puts together what makes spans and what sends them, for the composition root."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from aiohttp import web
from aiohttp.typedefs import Middleware

from service.stream.moments import Watcher
from service.tracing.completions import Completions
from service.tracing.otlp import Exporting
from service.tracing.requests import Requests

_NEWER_NAMES = "gen_ai_latest_experimental"


class Tracing:
    """Tracing as the environment asks for it. Nothing is started until `exporting` is entered.

    Args:
        environ: OpenTelemetry's variables; their SDK reads the process's own as well.
        is_from_sibling: whether another worker sent a request on.

    Attributes:
        middlewares: see requests, inside the one that renders errors.
        watchers: see completions.

    Raises ValueError for a variable that makes no sense, ModuleNotFoundError if what it names isn't
    installed.
    """

    def __init__(
        self, environ: Mapping[str, str], is_from_sibling: Callable[[web.Request], bool]
    ) -> None:
        self._sending = Exporting(environ)
        opted = environ.get("OTEL_SEMCONV_STABILITY_OPT_IN", "").replace(" ", "").split(",")
        self._completions = Completions(self._sending.send, has_newer_names=_NEWER_NAMES in opted)
        requests = Requests(self._sending.is_sampled, self._sending.send, is_from_sibling)
        self.middlewares: Sequence[Middleware] = (requests.middleware,)
        self.watchers: Sequence[Watcher] = (self._completions,)

    async def exporting(self, _: web.Application) -> AsyncIterator[None]:
        """Send spans while the application runs, in the process that runs it; at its end what is
        left, as long as that takes no more than a moment."""
        self._sending.start()
        try:
            yield
        finally:
            self._completions.stop()
            await self._sending.stop()
