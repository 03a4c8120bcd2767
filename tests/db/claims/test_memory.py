"""Claims in memory, beyond what every place promises."""

from db.claims import MemoryClaims
from tests.db.claims.claiming import DAY, Clock, make_claim


async def test_what_expired_is_let_go_of() -> None:
    """Claims that nobody asks for again don't pile up, replaced ones included."""
    clock = Clock()
    claims = MemoryClaims(keep_seconds=lambda: DAY, clock=clock)
    for number in range(1000):
        clock.now += DAY / 100
        await claims.take(make_claim(f"chatcmpl-{number}", f"{number}", claimed_at=clock.now))
        again = make_claim("chatcmpl-again", f"{number}", claimed_at=clock.now)
        await claims.take(again, instead_of=f"chatcmpl-{number}")
    assert "<MemoryClaims, 100 kept>" == repr(claims)


async def test_a_key_that_was_taken_anew_keeps_no_older_one() -> None:
    """What is replaced is as young as its new claim, and not in the way of what has expired."""
    clock = Clock()
    claims = MemoryClaims(keep_seconds=lambda: DAY, clock=clock)
    for key in ("first", "second"):
        await claims.take(make_claim("chatcmpl-1", key))
    later = make_claim("chatcmpl-2", "first", claimed_at=clock.now + DAY / 2)
    await claims.take(later, instead_of="chatcmpl-1")
    clock.now += DAY
    await claims.take(make_claim("chatcmpl-3", "third", claimed_at=clock.now))
    assert "<MemoryClaims, 2 kept>" == repr(claims)
    assert later == await claims.find(later.key)
