"""Defines the keys that say for how long an answer is there for those who come back or ask twice:
`readers` and `idempotency`.

Never here: what a client's leaving means otherwise (`client_gone`, `service.settings.config`).
"""

from typing import Literal

from attrs import frozen

from service.settings.kinds import Count, Seconds
from statemachine import ClientGone


@frozen
class ReadersConfig:
    """How many may read one completion, and for how long; see `docs/configuration.md`."""

    max_per_completion: Count = 32
    hidden_seconds: Seconds = 600.0
    max_tape_bytes: Count = 16 * 1024 * 1024


@frozen
class IdempotencyConfig:
    """What an `Idempotency-Key` means; see `docs/configuration.md`."""

    client_gone: ClientGone = ClientGone.WAIT
    keep_seconds: Seconds = 86400.0
    on_mismatch: Literal["refuse", "run"] = "refuse"
