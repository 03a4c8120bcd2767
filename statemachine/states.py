"""The states of a completion, and what it may mean that nobody reads it any more."""

import enum


class State(enum.StrEnum):
    """Where a completion is in its life. The values are column, log field and metric label."""

    PENDING = "pending"
    """Asked for; no chunk yet."""
    STREAMING = "streaming"
    """At least one chunk arrived."""
    COMPLETED = "completed"
    """The upstream ended well; the full text is kept."""
    FAILED = "failed"
    """The upstream, a deadline or a drain ended it; the partial text is kept."""
    CLIENT_GONE = "client_gone"
    """The client left or asked to stop; the partial text is kept."""

    is_final: bool

    def __init__(self, value: str) -> None:
        # Asked for every chunk: an attribute, where a property would compare texts each time.
        self.is_final = value not in ("pending", "streaming")


class ClientGone(enum.StrEnum):
    """What the last reader's leaving means (`client_gone` in the configuration). In the order of
    patience: each waits longer than the one before."""

    CANCEL = "cancel"
    """Stop the upstream at once and keep the partial text."""
    WAIT = "wait"
    """The answer goes on for `client_gone_wait_seconds` after the last reader left; whoever comes back
    in time finds it running."""
    FINISH = "finish"
    """Let the upstream end and keep the full text."""
