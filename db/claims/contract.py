"""Defines what claims are, what may be asked of the place where they are kept, and who gets a key.

No files and no SQL here. `SqliteClaims` is the real place, `MemoryClaims` keeps the same promises for
one process; the tests of the contract (`tests/db/claims`) run over both.
"""

from typing import Protocol

from attrs import frozen


class ClaimsUnavailable(Exception):
    """Claims can't be kept or read now; the same call may succeed later. The message says why and
    what to do.

    Nothing of the call was kept, or all of it. Calling again is always safe.
    """


class ClaimsElsewhere(ClaimsUnavailable):
    """What other machines have claimed can't be told now. As for any other key, nothing can be kept."""


@frozen
class Claim:
    """A request's `Idempotency-Key`, held by one completion.

    Attributes:
        key: SHA-256 of the key with its owner and path.
        body: SHA-256 of what the request said.
        completion_id: who holds it.
        holder: the name of the directory in which that completion's process keeps its journal;
            "" without a journal.
        claimed_at: POSIX seconds.
        token: of the replica that runs it, as long as it is not known on this machine; "" where it is, and
            without a fleet.
    """

    key: bytes
    body: bytes
    completion_id: str
    holder: str
    claimed_at: float
    token: str = ""

    def is_expired(self, since: float) -> bool:
        """True if it was claimed at this time or before."""
        return self.claimed_at <= since


def gives_way(held: Claim | None, since: float, instead_of: str | None) -> bool:
    """True if a key can be taken that is held by this claim, or by none.

    Args:
        since: claims of this time, in POSIX seconds, or before have expired.
        instead_of: the completion whose claim is to be replaced.
    """
    return held is None or held.is_expired(since) or held.completion_id == instead_of


class Claims(Protocol):
    """The calls are coroutines and may raise `ClaimsUnavailable`, also after `close`.

    Cancelling one leaves it to end by itself: it was made or not, and repeating it is safe. Calls
    of one process are made in the order in which they were asked for, so that a `release` undoes
    the cancelled `take` before it.
    """

    def start(self) -> None:
        """Clear away what has expired, without waiting for it. Never raises."""

    async def take(self, claim: Claim, *, instead_of: str | None = None) -> Claim:
        """Keep this claim if its key is free, and return the one that holds the key afterwards:
        this one, or another completion's.

        A key is free if nobody holds it, if the claim on it has expired, or if the completion
        `instead_of` holds it: of two that replace the same one at once, one does. What is
        returned outlives this process, kill -9 included; a completion that holds the key already
        gets the claim that it has.
        """

    async def find(self, key: bytes) -> Claim | None:
        """The claim that holds the key; None if there is none, or it has expired."""

    async def release(self, claim: Claim) -> None:
        """Free the key, if this claim's completion still holds it."""

    async def close(self) -> None:
        """Release every resource. Calls that still wait end with `ClaimsUnavailable`. Never raises."""
