"""Charges callers for what their answers used, and gives their streams back."""

from service.callers.limits import Ticket
from service.stream.moments import Watcher
from statemachine import SessionRecord, SessionRequest

_MOST_TOKENS = 10**9
"""No answer has more; a backend that reports more is not believed."""


class Charging(Watcher):
    """Closes each completion's ticket when its answer ends, and charges it."""

    def __init__(self) -> None:
        self._tickets: dict[str, Ticket] = {}

    def expect(self, completion_id: str, ticket: Ticket) -> None:
        """Take over the ticket that a completion is about to run on."""
        self._tickets[completion_id] = ticket

    def ended(self, record: SessionRecord) -> None:
        """Charge before the client is told the end, so that nobody can ask again in between."""
        if (ticket := self._tickets.get(record.completion_id)) is not None:
            ticket.close(tokens_of(record))

    def closed(self, request: SessionRequest) -> None:
        """Give the stream back even of a completion that died without its record."""
        if (ticket := self._tickets.pop(request.completion_id, None)) is not None:
            ticket.close()


def tokens_of(record: SessionRecord) -> int:
    """The tokens of a completion, prompt included; 0 if nothing is known of it."""
    usage = record.usage or {}
    counts = [usage.get(name) for name in ("total_tokens", "prompt_tokens", "completion_tokens")]
    total, prompt, answer = (count if type(count) is int and count > 0 else 0 for count in counts)
    return min(total or prompt + answer, _MOST_TOKENS)
