"""Keeps what the shell says of another PostgreSQL from the embedded one.

Variables such as `PGPORT` and `PGSERVICE` stand for what a libpq address leaves out, and the
server's programs read some too. Nobody who has them set means the embedded server by it.
"""

import os
from collections.abc import Mapping

LIBPQ = frozenset(
    (
        *("PGAPPNAME", "PGCHANNELBINDING", "PGCLIENTENCODING", "PGCONNECT_TIMEOUT", "PGDATABASE"),
        *("PGDATESTYLE", "PGGEQO", "PGGSSDELEGATION", "PGGSSENCMODE", "PGGSSLIB", "PGHOST"),
        *(
            "PGHOSTADDR",
            "PGKRBSRVNAME",
            "PGLOADBALANCEHOSTS",
            "PGLOCALEDIR",
            "PGMAXPROTOCOLVERSION",
        ),
        *("PGMINPROTOCOLVERSION", "PGOPTIONS", "PGPASSFILE", "PGPASSWORD", "PGPORT", "PGREALM"),
        *("PGREQUIREAUTH", "PGREQUIREPEER", "PGREQUIRESSL", "PGSERVICE", "PGSERVICEFILE"),
        *("PGSSLCERT", "PGSSLCERTMODE", "PGSSLCOMPRESSION", "PGSSLCRL", "PGSSLCRLDIR", "PGSSLKEY"),
        *("PGSSLMAXPROTOCOLVERSION", "PGSSLMINPROTOCOLVERSION", "PGSSLMODE", "PGSSLNEGOTIATION"),
        *("PGSSLROOTCERT", "PGSSLSNI", "PGSYSCONFDIR", "PGTARGETSESSIONATTRS", "PGTTY", "PGTZ"),
        *("PGUSER", "PGDATA", "PGOAUTHDEBUG", "PGOAUTHCAFILE"),
    )
)
"""libpq's (PostgreSQL's manual, "Environment Variables"), and `PGDATA` of the server's programs."""


def without_libpq(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for a program of the embedded PostgreSQL."""
    return {name: value for name, value in environ.items() if name not in LIBPQ}


def forget_libpq() -> None:
    """Take the variables out of this process's environment, where libpq reads them."""
    for name in LIBPQ & os.environ.keys():
        del os.environ[name]
