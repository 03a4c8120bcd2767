"""Random names that nobody can guess: for requests, traces, spans and completions.

Each request needs four, and asking the kernel for each costs more than all else about them. So its
randomness is fetched for many at a time. For one thread; a process that is forked off fetches its own.
"""

import os
import secrets

_POOL_BYTES = 1024

_pool = ""
_used = 0


def random_hex(digits: int) -> str:
    """So many hex digits, at most 2,048, each worth four bits of the kernel's randomness."""
    global _pool, _used
    start, end = _used, _used + digits
    if end > len(_pool):
        _pool = secrets.token_hex(_POOL_BYTES)
        start, end = 0, digits
    _used = end
    return _pool[start:end]


def _forget() -> None:
    global _pool, _used
    _pool, _used = "", 0


os.register_at_fork(after_in_child=_forget)
