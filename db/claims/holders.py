"""Tells what became of the process that held a claim, by the journal that it kept.

Never adopts a journal, and never reads one.
"""

import enum
from pathlib import Path

from db.journal.lives import is_held


class Holder(enum.Enum):
    """What the journal of a claim's process says about that process."""

    ALIVE = "alive"
    """Somebody has it: the process, or one that brings its completions back since it died. These
    two can't be told apart here, but for asking the processes that are there: where none runs the
    completion, it is being brought back, and the journal will be `GONE` once all is committed."""
    ORPHANED = "orphaned"
    """The process died, and nobody has seen to what it left: a process that starts will."""
    GONE = "gone"
    """There is no such journal, or no more: each completion in it is committed, or was set aside for
    a person, as far as it could be read. Or the process kept no journal."""


def holder_is_alive(directory: Path, holder: str) -> Holder:
    """What became of a process.

    Args:
        directory: where journals lie.
        holder: the name of the process's own in it, as in its claims; "" is always `GONE`.

    Blocks for a few system calls. Raises OSError if it can't be told.
    """
    if not holder:
        return Holder.GONE
    match is_held(directory / holder):
        case None:
            return Holder.GONE
        case True:
            return Holder.ALIVE
        case False:
            return Holder.ORPHANED
