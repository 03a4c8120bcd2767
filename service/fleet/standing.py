"""Says how one replica stands in its fleet: `Standing`, for probes, metrics and the page.

Values only. Never here: deciding anything by them.
"""

from collections.abc import Sequence
from typing import Protocol

from attrs import define, frozen

from db.fleet import VERSION, Replica

TOKEN_LETTERS = 6
"""Of a token's: enough to tell two apart."""


class Adoptions(Protocol):
    """As much as is shown of who brings dead replicas' completions to an end.

    Attributes:
        adopted: how many were, here, since the start.
        adopting: how many are being adopted here.
    """

    adopted: int
    adopting: int


class Fallbacks(Protocol):
    """As much as is shown of limits that several machines share.

    Attributes:
        fallbacks: how often, since the start, each machine began to limit by its share alone.
    """

    fallbacks: int


@define
class Nothing:
    """Of a part that isn't there: nothing ever happens."""

    adopted: int = 0
    adopting: int = 0
    fallbacks: int = 0


@frozen
class Standing:
    """How one replica stands. Counts are since its start.

    Attributes:
        replica, token: its name; and the first letters of its token.
        version: of what it writes to the engine.
        journal: `fleet.journal`.
        failure: why the engine doesn't answer it, or takes nothing; None: all is well.
        is_held: its lease holds.
        has_rival: another process has its name.
        lag_lines: lines that the engine doesn't have yet; `lag_seconds`: the age of the oldest.
        mirrors, mirror_readers: completions of others that are followed here, and who reads them.
        answered, unanswered: what others asked of it.
        silent_seconds: since it last heard whether others ask something.
        calls_failed: calls to the engine.
        adopted, adopting, fallbacks: see `Adoptions` and `Fallbacks`.
        fenced: how many of its completions others brought to an end while it lived.
    """

    replica: str
    token: str
    version: int
    journal: str
    failure: str | None
    is_held: bool
    has_rival: bool
    lag_lines: int
    lag_seconds: float
    mirrors: int
    mirror_readers: int
    answered: int
    unanswered: int
    silent_seconds: float
    calls_failed: int
    adopted: int
    adopting: int
    fenced: int
    fallbacks: int


def degraded(standing: Standing, replicas: Sequence[Replica]) -> list[str]:
    """What doesn't work as it should, a sentence each; nothing of it keeps a replica from serving.

    Args:
        replicas: who was in the fleet when it was last seen.
    """
    found: list[str] = []
    if standing.failure is not None:
        found.append(f"the engine is away: {standing.failure}")
        if standing.journal == "before_send":
            found.append("no new streams until it is back (fleet.journal: before_send)")
    if standing.has_rival:
        found.append("another process is this replica")
    elif not standing.is_held:
        found.append("lease not held")
    for each in replicas:
        if each.is_alive and each.version != VERSION:
            about = f"{each.name!r}, {each.version} where this one has {VERSION}"
            found.append(f"a replica of another version: {about}")
    return [f"fleet: {each}" for each in found]
