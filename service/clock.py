"""Makes the service's one clock: POSIX seconds that never jump or run backwards.

`time.time()` follows corrections of the system's clock, which would fire or skip keep-alives; so
wall time is read once and the monotonic clock carries it on. freezegun's ticks move it.
"""

import time
from collections.abc import Callable

Clock = Callable[[], float]


def steady_clock() -> Clock:
    """A clock anchored at the wall time of this call. Returns POSIX seconds."""
    offset = time.time() - time.monotonic()

    def now() -> float:
        return offset + time.monotonic()

    return now
