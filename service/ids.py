"""Makes random ids that nobody can guess, for requests, traces, spans and completions.

Each request needs four, and a system call for each costs more than everything else about them, so
the kernel's randomness is fetched for many ids at a time. For one thread.
"""

import os
import secrets

_POOL_BYTES = 1024

_pool = ""
_used = 0


def random_hex(digits: int) -> str:
    """That many hex digits, at most 2,048; each is four bits of the kernel's randomness."""
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


os.register_at_fork(after_in_child=_forget)  # or a worker would repeat its parent's ids
