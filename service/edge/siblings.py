"""What endpoints ask of the other workers of this service. `service.process.slot` has the real thing."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from aiohttp import web

from service.edge.errors import ApiError
from statemachine import Failure


class SiblingAway(Exception):
    """Of the siblings that could be asked, none knows; one couldn't be asked."""


class Siblings(Protocol):
    """The other workers. A request that comes from one of them is sent on to nobody.

    Attributes:
        secret: random bytes that all workers of this start share, and nobody else knows.
    """

    @property
    def secret(self) -> bytes:
        """See the class."""

    async def pass_on(
        self, request: web.Request, body: bytes | None = None
    ) -> web.StreamResponse | None:
        """Send the request to each in turn; the first answer that is neither a 404 nor a 503, streams
        included; else a 503, if that came, or None. An answer is written to the client as it comes;
        cancelling it cuts it off there too.

        Args:
            body: the request's, if it has been read.

        Raises:
            SiblingAway: one can't be reached: it has died, is starting or stopping.
            TimeoutError: one hangs.
        """

    async def gather(self, request: web.Request) -> list[Any]:
        """The JSON that each answers to the request, those left out that aren't there. Raises
        TimeoutError: one hangs."""

    def is_from_sibling(self, request: web.Request) -> bool:
        """True if the request came from one of them. No header can pretend that."""

    @property
    def number(self) -> int:
        """This worker's, from 0."""

    @property
    def others(self) -> Iterable[int]:
        """The numbers of the others."""

    async def ask_each(self, request: web.Request, seconds: float) -> Mapping[int, Any]:
        """The JSON that each answers to the request, by its number; without those that aren't there, or
        say nothing for so long. Never raises for them."""

    def keep(self, data: bytes) -> None:
        """Write down what the others may read of this worker, also once it is dead."""

    def kept(self, number: int) -> bytes | None:
        """What a worker, or its predecessor of the same number, wrote last; None: nothing."""


_AWAY = Failure(
    "answer_unavailable",
    "A process that may have the answer can't be asked now; please try again.",
    retry_after_seconds=1,
)


def answer_unavailable() -> ApiError:
    """The 503 for what may be where nobody can ask now, or is being brought back."""
    return ApiError(_AWAY)


async def asked_elsewhere(
    siblings: Siblings | None, request: web.Request
) -> web.StreamResponse | None:
    """What a sibling answers; None if none knows, be there one that isn't there now. Raises ApiError
    `answer_unavailable` if one hangs."""
    if siblings is None:
        return None
    try:
        return await siblings.pass_on(request)
    except SiblingAway:
        return None
    except TimeoutError:
        raise answer_unavailable() from None
