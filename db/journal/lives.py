"""Tells whether anybody holds a journal's lock. Never reads a journal, and never keeps its lock."""

import fcntl
import os
from pathlib import Path


def is_held(journal: Path) -> bool | None:
    """Whether somebody holds this journal's lock: its process, this one included, or whoever brings
    its completions back after that one's death. None if there is no such journal, or no more.

    Blocks for two system calls. Raises OSError if it can't be told: no descriptor is free.
    """
    path = journal / "lock"
    while True:
        try:
            lock = os.open(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            # Shared, so that several who ask at once don't take each other for the holder.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            # It may have been renamed, deleted or made anew since it was opened.
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                return False
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return None
        finally:
            os.close(lock)
