"""Keeps which completion answers which `Idempotency-Key`, so that asking twice asks a model once.

Skip this room on a first reading: to the service it is `take`, `find` and `release`. It is worth its
price: a client that asks again, because its network broke, pays for one answer and not for two.

A claim is a request's key, held by one completion. With a journal it is in a file that all processes
of the machine share (`SqliteClaims`); without one, in memory (`MemoryClaims`). Never knows requests,
answers or HTTP, and never whether a completion runs: it knows what became of its process.
"""

from db.claims.contract import Claim, Claims, ClaimsElsewhere, ClaimsUnavailable
from db.claims.holders import Holder, holder_is_alive
from db.claims.memory import MemoryClaims
from db.claims.sqlite import SqliteClaims

__all__ = [
    "Claim",
    "Claims",
    "ClaimsElsewhere",
    "ClaimsUnavailable",
    "Holder",
    "MemoryClaims",
    "SqliteClaims",
    "holder_is_alive",
]
