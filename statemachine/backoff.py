"""How long to wait before what failed is tried again: exponential back-off with jitter. Pure."""

from collections.abc import Callable, Iterator
from itertools import count


def backoff(
    first_seconds: float, longest_seconds: float, chance: Callable[[], float]
) -> Iterator[float]:
    """The waits before the second try, the third and so on, without end, in seconds.

    Each is twice the one before it, plus up to `first_seconds` more so that those who failed
    together don't all come back together, and at most `longest_seconds`.

    Args:
        chance: gives a number from 0 to 1 each time it is called, such as `random.random`.
    """
    for doublings in count():
        wait = first_seconds * 2.0 ** min(doublings, 62)
        yield min(longest_seconds, wait + first_seconds * chance())
