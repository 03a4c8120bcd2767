"""Starts the embedded PostgreSQL for its first user, and stops it after its last.

Never runs PostgreSQL's own commands (`db.embedded.cluster` does), and never logs: steps that take
seconds are reported through a callback.

1. Everything lies under the data directory: `cluster/` is PostgreSQL's own, `lock` is held while
   a process starts or stops it, `users` is held (shared) by every process that uses it. The kernel
   releases both when a process dies, so a kill leaves nothing to clean up.
2. Several processes may share one data directory. The last to stop stops the server. A killed one
   leaves it running, and the next to start takes it over.
3. A cluster is made under another name and renamed once it is whole, so that an interrupted first
   start leaves nothing that looks like one.
4. The server listens on a Unix socket only.
5. Who uses it takes libpq's variables (`PGPORT`, `PGSERVICE`, …) out of its own environment: they
   speak of another server, and libpq would obey them on the way to this one.
"""

import fcntl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from db.embedded.cluster import START_TIMEOUT_SECONDS, Cluster, EmbeddedUnavailable
from db.embedded.environment import forget_libpq


class EmbeddedPostgres:
    """A running embedded server that this process uses. Made by `start`, given back by `stop`."""

    def __init__(
        self, cluster: Cluster, users: IO[bytes], settings: Mapping[str, str] | None = None
    ) -> None:
        self._cluster = cluster
        self._users: IO[bytes] | None = users
        self._settings = settings or {}
        self.dsn = cluster.dsn
        """Its libpq URL, for the user and the database called `postgres`."""
        self.data_dir = cluster.data_dir

    @classmethod
    def start(
        cls,
        data_dir: Path,
        *,
        on_progress: Callable[[str], None] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> "EmbeddedPostgres":
        """Use the server of this data directory; make it and start it if necessary.

        Blocks, for about three seconds the first time; call it in a thread.

        Args:
            data_dir: made if missing; it keeps its contents between runs.
            on_progress: called with a few words before each step that takes long.
            settings: PostgreSQL's configuration parameters, for a server not yet running.

        Raises:
            EmbeddedUnavailable: the extra isn't installed, or the server can't run here.
        """
        report = on_progress or (lambda _: None)
        forget_libpq()
        try:
            data_dir = data_dir.expanduser().resolve()
            data_dir.mkdir(parents=True, exist_ok=True)
            cluster = Cluster(data_dir)
            with _locked(data_dir):
                users = open(data_dir / "users", "ab")
                fcntl.flock(users, fcntl.LOCK_SH)
                try:
                    cluster.ensure_made(report)
                    cluster.ensure_running(report, settings or {})
                except BaseException:
                    users.close()
                    raise
        except OSError as error:
            raise EmbeddedUnavailable(
                f"The embedded PostgreSQL can't use {data_dir}: {error}; "
                "choose another database.data_dir or set DATABASE_URL"
            ) from error
        return cls(cluster, users, settings)

    def is_running(self) -> bool:
        """True unless the server has died. Looks at no more than one process; doesn't wait."""
        return self._cluster.is_running()

    def revive(self) -> bool:
        """Start the server again if it died. Blocks. False if it runs, or isn't used any more.

        Never makes a cluster: one that vanished is to be restored, not replaced by an empty one.

        Raises:
            EmbeddedUnavailable: it can't be started; the message says why.
        """
        try:
            with _locked(self.data_dir):
                if self._users is None or self._cluster.is_running():
                    return False
                self._cluster.ensure_there()
                self._cluster.ensure_running(lambda _: None, self._settings)
                return True
        except OSError as error:
            raise EmbeddedUnavailable(
                f"The embedded PostgreSQL in {self.data_dir} can't be started again: {error}; "
                "restore the directory from a backup, or restart with another database.data_dir"
            ) from error

    def stop(self) -> bool:
        """Stop using the server; stop the server too if nobody else uses it. Blocks.

        Returns true if the server was stopped. Safe to call again.

        Raises:
            EmbeddedUnavailable: it would not stop; it may still be running.
        """
        if self._users is None:
            return False
        try:
            with _locked(self.data_dir), self._users as users:
                self._users = None
                try:
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
                return self._cluster.ensure_stopped()
        except OSError as error:
            raise EmbeddedUnavailable(
                f"The embedded PostgreSQL in {self.data_dir} can't be stopped: {error}"
            ) from error


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """Keep every other process from starting or stopping this server meanwhile."""
    patience_ends = time.monotonic() + START_TIMEOUT_SECONDS
    with open(data_dir / "lock", "ab") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > patience_ends:
                    raise EmbeddedUnavailable(
                        f"Another process has been starting or stopping the embedded PostgreSQL "
                        f"in {data_dir} for {START_TIMEOUT_SECONDS} s; look for it and end it"
                    ) from None
            time.sleep(0.05)
        yield
