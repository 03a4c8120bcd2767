"""Keeps what several machines share about completions that are under way: `Engine`.

Skip this room on a first reading: a service without `fleet.url` never comes here. It is worth its price:
an answer can be read and stopped at every machine, and the engine may come and go. PostgreSQL stays the
truth for what has ended; here is what runs, as lines of the journal, and who runs it.
"""

from db.fleet.contract import (
    CLOSED,
    VERSION,
    Appended,
    Command,
    Engine,
    Entry,
    FleetUnavailable,
    Replica,
    Run,
)

__all__ = [
    "CLOSED",
    "VERSION",
    "Appended",
    "Command",
    "Engine",
    "Entry",
    "FleetUnavailable",
    "Replica",
    "Run",
]
