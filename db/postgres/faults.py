"""Sorts PostgreSQL's errors into those that pass and those that are the data's fault. Pure.

SQLSTATE and message in, one of the store's two errors out, with a sentence that says what to do
and never quotes a password or stored text. The classes are those of PostgreSQL's appendix A,
"Error Codes".
"""

import re

from db.store import RecordRejected, StoreError, StoreUnavailable, TooSlow

_REJECTED_CLASSES = frozenset(("22", "23", "54"))
"""Data exception, integrity constraint violation, program limit exceeded: the data's fault."""

_MISSING_SCHEMA = frozenset(("42P01", "42703", "3F000", "42704", "42883"))
"""Undefined table, column, schema, object, function: the tables aren't there or are too old."""

_STATES = {
    "25006": "it takes no writes: a standby, or set read-only; point DATABASE_URL at the primary",
    "25P02": "an earlier statement of the transaction failed",
    "28000": "it refuses this user; check user and pg_hba.conf",
    "28P01": "it refuses the password; check DATABASE_URL",
    "42P07": (
        "a table of the same name is there that is not Verbatim's; give Verbatim a database or a "
        "schema of its own, first in search_path"
    ),
    "3D000": "the database doesn't exist; create it, or correct the name in DATABASE_URL",
    "40001": "the transaction collided with another; trying again helps",
    "40P01": "the transaction collided with another; trying again helps",
    "42501": "the user lacks permission; GRANT it the tables, or CREATE on the schema to migrate",
    "53100": "its disk is full; make room",
    "53300": "it has no connection free; raise max_connections or lower database.pool_max_size",
    "55P03": "another process holds a lock for too long; look for a migration that hangs",
    "57014": "it cancelled the statement; check its statement_timeout",
}
_CANCELLED = "57014"
_POOLERS = (
    (
        re.compile(r"statement pooling"),
        "it is PgBouncer with pool_mode = statement, which takes no transactions; "
        "set pool_mode = transaction or session",
    ),
    (
        re.compile(r"unsupported startup parameter"),
        "it is PgBouncer, and refuses a parameter of DATABASE_URL; "
        "leave it out, or name it in ignore_startup_parameters",
    ),
    (
        re.compile(r"query_wait_timeout"),
        "it is PgBouncer, and has no server connection free; "
        "raise default_pool_size or look at the PostgreSQL behind it",
    ),
    (
        re.compile(r"server login has been failing|server_login_retry|cannot connect to server"),
        "it is PgBouncer, and can't reach the PostgreSQL behind it",
    ),
    (
        re.compile(r"no such database"),
        "it is PgBouncer, and doesn't know the database; correct its name, or name it in [databases]",
    ),
)
"""What PgBouncer says itself, with whichever SQLSTATE. Its messages hold no stored text."""
_TEXTS = (
    *_POOLERS,
    (re.compile(r"password authentication failed|no password supplied"), _STATES["28P01"]),
    (re.compile(r'database ".*" does not exist'), _STATES["3D000"]),
    (re.compile(r'role ".*" does not exist|no pg_hba\.conf entry'), _STATES["28000"]),
    (
        re.compile(
            r"too many (clients|connections)|remaining connection slots|no more connections allowed"
        ),
        _STATES["53300"],
    ),
    (
        re.compile(r"session is (not )?read-only|server is (not )?in hot standby mode"),
        "none of its hosts is what target_session_attrs asks for; check them, and DATABASE_URL",
    ),
    (
        re.compile(r"could not translate host name"),
        "the host name isn't known; check DATABASE_URL and the name server",
    ),
    (
        re.compile(r"Connection refused|No such file or directory"),
        "nothing listens there; check that PostgreSQL runs, and host and port in DATABASE_URL",
    ),
    (
        re.compile(r"timeout expired|timed out|No route to host|Network is unreachable"),
        "no answer came; check host, port and firewall",
    ),
    (re.compile(r"starting up|shutting down|recovery mode"), "it is starting or stopping; wait"),
    (re.compile(r"SSL|certificate"), "the TLS handshake failed; check sslmode in DATABASE_URL"),
)


_OTHERS_MAY_DO = re.compile(
    r"starting up|shutting down|recovery mode|not (yet )?accepting connections|session is"
    r"|hot standby|reserved for"
)


def is_of_this_host(message: str) -> bool:
    """True if a connection that failed so may be had at another of the database's hosts.

    As libpq has it: a server that answers and refuses (the password, the database's name) speaks
    for all of them, unless it says that it isn't ready, or isn't of the kind that is asked for.
    """
    return "FATAL:" not in message or bool(_OTHERS_MAY_DO.search(message))


def _pooler_advice(sqlstate: str, message: str) -> str | None:
    if sqlstate[:2] not in ("08", "57"):
        return None
    return next((advice for pattern, advice in _POOLERS if pattern.search(message)), None)


def store_error(
    sqlstate: str | None, message: str, *, where: str, constraint: str | None = None
) -> StoreError:
    """The store's error for one of PostgreSQL's.

    Args:
        sqlstate: the five-character code; None if the connection broke or was never made.
        message: libpq's or the server's message; quoted only of connection errors, since others
            may hold stored text.
        where: the database's address without its password.
        constraint: the violated constraint's name, if any.
    """
    if sqlstate and sqlstate[:2] in _REJECTED_CLASSES:
        named = f" ({constraint})" if constraint else ""
        return RecordRejected(f"PostgreSQL refuses the data: SQLSTATE {sqlstate}{named}")
    if sqlstate in _MISSING_SCHEMA:
        return StoreUnavailable(
            f"The tables in PostgreSQL at {where} are missing or too old (SQLSTATE {sqlstate}); "
            "run the migrations: python -m db.migrate"
        )
    if sqlstate and (advice := _STATES.get(sqlstate) or _pooler_advice(sqlstate, message)):
        kind = TooSlow if sqlstate == _CANCELLED else StoreUnavailable
        return kind(f"PostgreSQL at {where}: {advice} (SQLSTATE {sqlstate})")
    for pattern, advice in _TEXTS:
        if pattern.search(message):
            return StoreUnavailable(f"PostgreSQL at {where}: {advice}")
    if sqlstate:
        return StoreUnavailable(f"PostgreSQL at {where} failed with SQLSTATE {sqlstate}")
    lost = message.strip().partition("\n")[0] or "the connection was lost"
    return StoreUnavailable(f"PostgreSQL at {where} is out of reach: {lost}")
