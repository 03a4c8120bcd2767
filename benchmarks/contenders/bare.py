"""Runs our service without persistence: the same program, whose store throws records away.

`python benchmarks/contenders/bare.py --config PATH --port 0`; with `journal.directory: null` it is
what persistence is compared with. Requests, the state machine and the queue of records stay.
"""

import sys
from collections.abc import Sequence

from db.postgres.store import PostgresStore
from service.process import command
from statemachine import SessionRecord


async def _save_nothing(self: PostgresStore, records: Sequence[SessionRecord]) -> None:
    pass


PostgresStore.save = _save_nothing  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(command.main(sys.argv[1:]))
