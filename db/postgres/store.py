"""Runs the store's calls on a pool of connections, whatever becomes of them: `PostgresStore`.

The only file that sees aiopg, and with `db.migrate` the only one that sees psycopg2. Never decides
when to retry a save, or for how long: that is `db.saver`'s part.

1. No call takes longer than `timeout_seconds`, whatever the server does. Only a save gets a tenth
   more for each record, a thousandth for each message, and all of it again for each eight million
   characters, so that a large one on a slow line ends.
2. A connection returns to the pool idle, or closed, which rolls its transaction back. So a call
   that is cancelled leaves neither half a save nor a lost connection.
3. After a server's restart the pool is full of dead connections: a call tries as many as there can
   be, and one more. If the answer to a commit was lost, it commits twice; saves are idempotent.
4. After a failover it may be full of connections to a server that takes no writes any more: the
   first call that is told so closes them all, and tries once on a new one.
5. Nothing outlives its transaction on a connection (no `SET` without `LOCAL`, no prepared
   statement, no lock of the session's), so that a pooler may deal transactions out.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import aiopg
import psycopg2
from attrs import fields_dict
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, make_dsn, parse_dsn

from db.cancelling import cancelled_if_told
from db.postgres import changing, extending, readiness, reading, saving, sql
from db.postgres.address import Current, Route, Way, shown
from db.postgres.connecting import Connector
from db.postgres.faults import store_error
from db.postgres.overview import Overseeing
from db.postgres.sending import Sender
from db.postgres.spare import Spare
from db.rows.columns import readable
from db.store import (
    CompletionFilter,
    CompletionView,
    ConversationView,
    Page,
    Paging,
    RecordRejected,
    Replayable,
    StoredCompletion,
    StoredConversation,
    StoredMessage,
    StoreError,
    StoreUnavailable,
)
from statemachine import SessionRecord

CONNECT_TIMEOUT_SECONDS = 5
_CHARACTERS_IN_TIME = 8_000_000
"""For so much text a save gets its timeout once more."""

_NOBODYS_SECONDS = 86_400.0
"""aiopg's own deadline for each statement, which would end a large save early: ours is the call's."""

_T = TypeVar("_T")


_NO_WAY = (psycopg2.Error, OSError)
"""What comes of trying to connect where nobody answers."""


def parsed(dsn: str) -> dict[str, str]:
    """The parts of a libpq URL or key=value string. Raises `StoreUnavailable` if it is neither."""
    try:
        parts: dict[str, str] = parse_dsn(dsn)
    except psycopg2.ProgrammingError:
        # Not chained: libpq's message quotes the address, password included.
        raise StoreUnavailable(
            "The database's address can't be read; "
            "DATABASE_URL looks like postgresql://user:password@host:5432/database"
        ) from None
    return parts


def translated(error: psycopg2.Error, where: str) -> StoreError:
    """The store's error for one of psycopg2's."""
    return store_error(error.pgcode, str(error), where=where, constraint=error.diag.constraint_name)


class _Connection(psycopg2.extensions.connection):
    """A connection that the event loop watches no longer than it is open.

    libpq closes the descriptor of one that fails, and aiopg 1.4.0 leaves its writing watched. On uvloop
    the next thing with the same number then fails, be it a connection or the loop's own pair of
    sockets (findings/aiopg-uvloop-refused.sh).
    """

    def poll(self) -> int:
        descriptor = self.fileno()
        try:
            return super().poll()
        except psycopg2.Error:
            # asyncio's own loop complains of a closed one, forgets it, and calls once more, with none.
            with suppress(OSError, ValueError):
                asyncio.get_running_loop().remove_writer(descriptor)
            raise


class PostgresStore(Overseeing):
    """A `db.overview.WholeStore`, for any number of tasks of one event loop. `start` it, or `open` one.

    Args:
        pool_max_size: most connections open at once.
        timeout_seconds: longest that a call takes, its wait for a connection included.
    """

    def __init__(self, pool_max_size: int = 10, *, timeout_seconds: float = 10.0) -> None:
        super().__init__(max(1, pool_max_size // 4))
        self._pool: aiopg.Pool | None = None
        self._spare = Spare()
        self._is_closed = False
        self._max_size = pool_max_size
        self._connector = Connector(Route({}), pool_max_size, _NO_WAY)
        self._where = "no address yet"
        self._timeout_seconds = timeout_seconds
        # Half of the connections, so that a crowd of readers never keeps an answer waiting.
        self._readers = asyncio.Semaphore(max(1, self._max_size // 2))

    def __repr__(self) -> str:
        pool = self._pool
        free = "not started" if pool is None else f"{pool.size} of {self._max_size} connections"
        return f"<PostgresStore {self._where}, {free}>"

    @classmethod
    async def open(
        cls, dsn: str, pool_max_size: int = 10, *, timeout_seconds: float = 10.0
    ) -> "PostgresStore":
        """A store that is started at once. Raises what `start` raises."""
        store = cls(pool_max_size, timeout_seconds=timeout_seconds)
        await store.start(dsn)
        return store

    async def start(self, dsn: str) -> None:
        """Take calls for the database at `dsn`, a libpq URL or key=value string; before this they
        raise `StoreUnavailable`, and so does this if `dsn` can't be read. Connects to nothing yet,
        so that the service can start while its database is down; `check` tells whether it is there.
        """
        parts = {"application_name": "verbatim-chat", **parsed(dsn), "client_encoding": "UTF8"}
        self._where = shown(parts)
        route = Route(parts)
        self._connector = Connector(route, self._max_size, _NO_WAY)
        names = () if route.is_fixed else fields_dict(Way)
        chosen: dict[str, Any] = {name: Current(name) for name in names}
        self._pool = await aiopg.create_pool(
            make_dsn(**parts),
            minsize=0,
            maxsize=self._max_size,
            timeout=_NOBODYS_SECONDS,
            enable_json=False,
            enable_hstore=False,
            enable_uuid=False,
            connection_factory=_Connection,
            **chosen,
        )

    async def close(self) -> None:
        """See `db.store.Store.close`."""
        if self._pool is not None:
            self._is_closed = True
            self._pool.terminate()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timeout_seconds):
                    await self._pool.wait_closed()

    async def save(self, records: Sequence[SessionRecord]) -> None:
        """See `db.store.Store.save`."""
        batch = await saving.rows_of_all(records)
        if batch:
            messages = sum(len(rows.sent) for rows in batch)
            long = [rows for rows in batch if rows.is_long]
            size = saving.characters_of(long) / _CHARACTERS_IN_TIME
            statement_seconds = self._timeout_seconds * (1 + size)
            patience_seconds = statement_seconds + self._timeout_seconds * (
                len(batch) / 10 + messages / 1000
            )
            await self._run(
                lambda cursor: extending.save(
                    Sender(cursor) if long else cursor, batch, statement_seconds
                ),
                patience_seconds,
            )

    async def find(self, completion_id: str) -> StoredCompletion | None:
        """See `db.store.Store.find`."""
        rows = await self._select(sql.FIND_COMPLETION, completion_id=readable(completion_id))
        return sql.completion_from(rows[0]) if rows else None

    async def answer(self, completion_id: str) -> list[StoredMessage]:
        """See `db.store.Store.answer`."""
        rows = await self._select(sql.ANSWER, completion_id=readable(completion_id))
        return [sql.message_from(row) for row in rows]

    async def thread(self, digest: str) -> list[StoredMessage]:
        """See `db.store.Store.thread`."""
        rows = await self._select(sql.THREAD, digest=readable(digest))
        return [sql.message_from(row) for row in rows]

    async def list_completions(
        self, owner: str, wanted: CompletionFilter, paging: Paging
    ) -> Page[CompletionView]:
        """See `db.store.Readable.list_completions`."""
        return await self._read(lambda c: reading.completions(c, owner, wanted, paging))

    async def view(self, owner: str, completion_id: str) -> CompletionView | None:
        """See `db.store.Readable.view`."""
        return await self._read(lambda c: reading.view(c, owner, completion_id))

    async def replayable(
        self, owner: str, completion_id: str, *, hidden_since: float | None = None
    ) -> Replayable | None:
        """See `db.store.Readable.replayable`."""
        found = await self._read(lambda c: reading.taped(c, owner, completion_id, hidden_since))
        return None if found is None else await reading.replayable_of(found)

    async def list_prompt(
        self, owner: str, completion_id: str, paging: Paging
    ) -> Page[StoredMessage] | None:
        """See `db.store.Readable.list_prompt`."""
        return await self._read(lambda c: reading.prompt(c, owner, completion_id, paging))

    async def list_conversations(self, owner: str, paging: Paging) -> Page[StoredConversation]:
        """See `db.store.Readable.list_conversations`."""
        return await self._read(lambda c: reading.conversations(c, owner, paging))

    async def view_conversation(
        self, owner: str, conversation_id: str, paging: Paging
    ) -> ConversationView | None:
        """See `db.store.Readable.view_conversation`."""
        return await self._read(lambda c: reading.conversation(c, owner, conversation_id, paging))

    async def set_metadata(
        self, owner: str, completion_id: str, metadata: Mapping[str, str] | None
    ) -> CompletionView | None:
        """See `db.store.Readable.set_metadata`."""
        seconds = self._timeout_seconds
        return await self._run(
            lambda c: changing.set_metadata(c, owner, completion_id, metadata, seconds)
        )

    async def delete(self, owner: str, completion_id: str) -> bool:
        """See `db.store.Readable.delete`."""
        seconds = self._timeout_seconds
        return await self._run(lambda c: changing.delete(c, owner, completion_id, seconds))

    async def check(self) -> None:
        """See `db.store.Store.check`. Tries a save, without keeping anything of it."""
        try:
            await self._run(
                lambda c: readiness.check(
                    c, self._where, self._timeout_seconds, c.raw.connection.cancel
                ),
                if_cancelled="a save would wait too long; look for locks on its tables",
            )
        except RecordRejected as error:
            raise StoreUnavailable(
                f"PostgreSQL at {self._where} refuses even the simplest record: {error}; "
                "look for constraints and triggers that aren't Verbatim's"
            ) from None

    async def _read(
        self, read: Callable[[aiopg.Cursor], Awaitable[_T]], seconds: float | None = None
    ) -> _T:
        seconds = seconds or self._timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                await self._readers.acquire()
        except TimeoutError:
            raise StoreUnavailable("Too many others are reading what is stored") from None
        try:
            return await self._run(lambda c: reading.at_one_moment(c, seconds, lambda: read(c)))
        finally:
            self._readers.release()

    async def _select(self, statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
        async def ask(cursor: aiopg.Cursor) -> list[tuple[Any, ...]]:
            await cursor.execute(statement, parameters)
            rows: list[tuple[Any, ...]] = await cursor.fetchall()
            return rows

        return await self._run(ask)

    # --- one call, whatever happens ---------------------------------------------------------

    async def _run(
        self,
        work: Callable[[aiopg.Cursor], Awaitable[_T]],
        patience_seconds: float | None = None,
        if_cancelled: str | None = None,
    ) -> _T:
        """Run a call; turn every foreign error into the store's, unchained: it may quote stored text."""
        seconds = patience_seconds or self._timeout_seconds
        try:
            with cancelled_if_told():
                async with asyncio.timeout(seconds):
                    return await self._try_connections(work)
        except TimeoutError:
            raise StoreUnavailable(
                f"PostgreSQL at {self._where} gave no answer within {seconds:.3g} s"
            ) from None
        except asyncio.CancelledError:
            # aiopg 1.4.0 raises this also when the server cancels a statement; the test that shows
            # the end of that is `test_a_statement_that_the_server_cancels_is_no_cancelled_task`.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            if if_cancelled is not None:
                raise StoreUnavailable(f"PostgreSQL at {self._where}: {if_cancelled}") from None
            raise store_error("57014", "", where=self._where) from None
        except psycopg2.Error as error:
            raise translated(error, self._where) from None
        except OSError as error:
            raise store_error(None, str(error), where=self._where) from None
        except RecursionError:
            raise
        except RuntimeError as error:
            raise self._unusable(error) from None
        except (ValueError, TypeError, OverflowError) as error:
            # psycopg2 refuses NUL itself; `db.rows.columns` refuses what isn't JSON.
            raise RecordRejected(
                f"The data can't be sent to PostgreSQL: {type(error).__name__}"
            ) from None

    def _unusable(self, error: RuntimeError) -> StoreUnavailable:
        """The pool's, once it is closed; else the event loop's, of a descriptor that a broken connection
        left behind. Neither is a record's fault."""
        if self._is_closed:
            return StoreUnavailable("The store is closed")
        where = f"The connection to PostgreSQL at {self._where}"
        return StoreUnavailable(f"{where} can't be used: {error}")

    async def _try_connections(self, work: Callable[[aiopg.Cursor], Awaitable[_T]]) -> _T:
        more, may_be_elsewhere = self._max_size, True
        while True:
            connection = await self._acquire()
            try:
                return await work(await connection.cursor())
            except (psycopg2.OperationalError, psycopg2.InterfaceError):
                if not connection.closed or not more:
                    raise
                more -= 1
            except (psycopg2.errors.ReadOnlySqlTransaction, readiness.ReadOnly):
                connection.close()
                await self._forget_idle()
                if not may_be_elsewhere:
                    raise
                may_be_elsewhere = False
            except psycopg2.errors.UntranslatableCharacter:
                encoding = connection.raw.get_parameter_status("server_encoding")
                if encoding == "UTF8":
                    raise
                raise StoreUnavailable(
                    f"The database at {self._where} is encoded in {encoding}, which can't hold "
                    "this text; create one with ENCODING 'UTF8'"
                ) from None
            finally:
                self._release(connection)

    async def _acquire(self) -> aiopg.Connection:
        if self._pool is None:
            raise StoreUnavailable("The store is not open yet")
        if self._is_closed:
            raise StoreUnavailable("The store is closed")
        spare: aiopg.Connection | None = self._spare.take(self._pool)
        if spare is not None:
            return spare
        with self._spare.asking_the_pool():
            connection: aiopg.Connection = await self._connector.acquire(self._pool)
            return connection

    def _release(self, connection: aiopg.Connection) -> None:
        raw = connection.raw
        if not raw.closed and raw.get_transaction_status() != TRANSACTION_STATUS_IDLE:
            connection.close()
        assert self._pool is not None  # it gave the connection
        if self._is_closed or not self._spare.keep(connection):
            self._pool.release(connection)

    async def _forget_idle(self) -> None:
        """Close every connection that nobody uses."""
        assert self._pool is not None  # it gave one
        if (spare := self._spare.take(self._pool)) is not None:
            spare.close()
            self._pool.release(spare)
        await self._pool.clear()
