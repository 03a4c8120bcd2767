"""A PostgreSQL of our own, and everything that can happen to one.

An embedded server that is stopped, killed, frozen, restarted, set read-only or kept busy. Every
method blocks; `end` undoes whatever is still wrong and stops it.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psutil
import psycopg2

from db.embedded import EmbeddedPostgres
from db.migrate import migrate

SETTINGS = {
    "fsync": "off",  # processes die here, the machine doesn't
    "full_page_writes": "off",
    "max_connections": "30",
    "max_wal_size": "2GB",
}
_PATIENCE_SECONDS = 20.0


class Database:
    """The server. `dsn` is how the service reaches it; it stays the same over restarts."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._frozen: list[psutil.Process] = []
        self._server = self._start()
        self.dsn = self._server.dsn
        migrate(self.dsn)

    def _start(self) -> EmbeddedPostgres:
        return EmbeddedPostgres.start(self._directory, settings=SETTINGS)

    @property
    def cluster(self) -> Path:
        return self._directory / "cluster"

    @property
    def sockets(self) -> Path:
        """The directory of its Unix socket."""
        (host,) = parse_qs(urlsplit(self.dsn).query)["host"]
        return Path(host)

    def execute(self, statement: str, parameters: tuple[object, ...] = ()) -> list[tuple]:
        """Run one statement; its rows, if it has any."""
        with closing(psycopg2.connect(self.dsn)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SET default_transaction_read_only = off")
                cursor.execute(statement, parameters or None)
                return cursor.fetchall() if cursor.description else []

    # --- stopped ----------------------------------------------------------------------------

    def stop(self) -> None:
        """As an operator would (`pg_ctl stop -m fast`): connections are cut."""
        self._server.stop()

    def start(self) -> None:
        self._server = self._start()

    def restart(self) -> None:
        self.stop()
        self.start()

    def crash(self) -> None:
        """SIGKILL to the postmaster and all its children; `start` recovers from the log."""
        processes = self._processes()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, _PATIENCE_SECONDS)
        self._server.stop()  # nothing runs any more; this gives up our share of it

    # --- frozen -----------------------------------------------------------------------------

    def freeze(self) -> None:
        """Connections are taken by the kernel and nothing is ever answered."""
        self._frozen = self._processes()
        for process in self._frozen:
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def thaw(self) -> None:
        for process in self._frozen:
            with suppress(psutil.NoSuchProcess):
                process.resume()
        self._frozen = []

    def _processes(self) -> list[psutil.Process]:
        """The postmaster first, so that it makes no more children."""
        pid = int((self.cluster / "postmaster.pid").read_text().split("\n", 1)[0])
        postmaster = psutil.Process(pid)
        return [postmaster, *postmaster.children()]

    # --- unwilling --------------------------------------------------------------------------

    def set_read_only(self, on: bool) -> None:
        """For every transaction that begins from now on."""
        self.execute(f"ALTER SYSTEM SET default_transaction_read_only = {'on' if on else 'off'}")
        self._reload()

    def terminate_backends(self) -> None:
        """Cut the service's connections, whatever they are doing."""
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'verbatim-chat'"
        )

    @contextmanager
    def crowded(self) -> Iterator[None]:
        """Every connection taken by somebody else."""
        held: list[psycopg2.extensions.connection] = []
        try:
            deadline = time.monotonic() + _PATIENCE_SECONDS
            self.terminate_backends()
            while time.monotonic() < deadline:
                try:
                    held.append(psycopg2.connect(self.dsn))
                except psycopg2.OperationalError:
                    break
            yield
        finally:
            for connection in held:
                connection.close()

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """Completions and messages on a disk of their own without any room (SQLSTATE 53100).
        Needs root, to mount it."""
        place = self._directory / "small"
        place.mkdir()
        size = self.execute(
            "SELECT pg_relation_size('messages') + pg_relation_size('completions')"
        )[0][0]
        options = f"size={size + 2**20},uid={self.cluster.stat().st_uid},mode=700"
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        subprocess.run(mount, check=True, timeout=10)
        try:
            self.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
            # Else a few rows would still find room in pages that are there.
            self._move("small", "SET (fillfactor = 10)")
            filler = place / "filler"
            try:
                with suppress(OSError), filler.open("wb", buffering=0) as file:
                    while file.write(bytes(4096)):
                        pass
                yield
            finally:
                # Also where the scenario gave up: a server whose tables vanish never comes back.
                filler.unlink()
                self._move("pg_default", "RESET (fillfactor)")
                self.execute("DROP TABLESPACE small")
        finally:
            subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=10)
            place.rmdir()

    def _move(self, tablespace: str, settings: str) -> None:
        for table in ("completions", "messages"):
            self.execute(f"ALTER TABLE {table} SET TABLESPACE {tablespace}")
            self.execute(f"ALTER TABLE {table} {settings}")

    def make_user(self, name: str, password: str) -> str:
        """A user who must give a password; the address to connect with, without it."""
        self.execute(f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD '{password}'")
        path = self.cluster / "pg_hba.conf"
        rules = path.read_text()
        if name not in rules:
            path.write_text(f"local all {name} scram-sha-256\n{rules}")
        self._reload()
        return self.dsn.replace("//postgres@", f"//{name}@")

    def _reload(self) -> None:
        self.execute("SELECT pg_reload_conf()")
        time.sleep(0.1)  # backends read it when they next have nothing to do

    def end(self) -> None:
        """Undo and stop. Safe after anything."""
        self.thaw()
        with suppress(OSError, ValueError, psutil.NoSuchProcess):
            pid = int((self.cluster / "postmaster.pid").read_text().split("\n", 1)[0])
            if psutil.pid_exists(pid) and "postgres" in psutil.Process(pid).name():
                os.kill(pid, signal.SIGCONT)
        self._server.stop()
