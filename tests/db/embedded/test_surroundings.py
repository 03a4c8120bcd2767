"""What surrounds the embedded server: the shell's variables, the temporary directory, odd files."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from db.embedded import EmbeddedPostgres, EmbeddedUnavailable
from db.embedded.__main__ import main
from db.embedded.cluster import Cluster
from db.embedded.environment import LIBPQ
from db.postgres.store import PostgresStore
from db.store import StoreUnavailable
from tests.postgres import UNSAFE_BUT_FAST, temporary_data_dir

SHELL = {
    "PGAPPNAME": "shell",
    "PGCHANNELBINDING": "require",
    "PGCLIENTENCODING": "NONSENSE",
    "PGDATA": "/nowhere",
    "PGDATABASE": "nowhere",
    "PGDATESTYLE": "nonsense",
    "PGHOST": "192.0.2.1",
    "PGHOSTADDR": "192.0.2.1",
    "PGOPTIONS": "-c default_transaction_read_only=on",
    "PGPASSWORD": "wrong",
    "PGPORT": "1",
    "PGREQUIREAUTH": "scram-sha-256",
    "PGSERVICE": "nowhere",
    "PGSSLMODE": "nonsense",
    "PGTARGETSESSIONATTRS": "standby",
    "PGTZ": "nonsense",
    "PGUSER": "nobody",
}

USE = """
import asyncio, sys
from pathlib import Path
from db.embedded import EmbeddedPostgres
from db.migrate import migrate
from db.postgres.store import PostgresStore

async def check(dsn):
    store = await PostgresStore.open(dsn)
    await store.check()
    await store.close()

server = EmbeddedPostgres.start(Path(sys.argv[1]), settings={"fsync": "off"})
try:
    migrate(server.dsn)
    asyncio.run(check(server.dsn))
    print("saves")
finally:
    server.stop()
"""


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A data directory whose cluster is made."""
    with temporary_data_dir() as path:
        EmbeddedPostgres.start(path, settings=UNSAFE_BUT_FAST).stop()
        yield path


def test_the_shells_variables_do_not_reach_it(made: Path) -> None:
    """Whatever the shell says of another PostgreSQL, the embedded one starts, is reached and takes
    saves."""
    assert SHELL.keys() <= LIBPQ
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", USE, str(made)],
        env={**os.environ, **SHELL},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ("saves\n", "") == (ended.stdout, ended.stderr)


def test_its_address_says_all_that_a_shell_could(made: Path) -> None:
    """Also another program, started by a shell that has a port of its own, reaches the server."""
    assert Cluster(made).dsn.endswith("&port=5432")


def test_psql_is_not_misled(
    made: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m db.embedded psql` leads to the embedded server and to no other."""
    for name, value in SHELL.items():
        monkeypatch.setenv(name, value)
    assert 0 == main(["--data-dir", str(made), "psql", "--", "-Atc", "SELECT 'found'"])
    assert "found\n" == capfd.readouterr().out


# --- odd files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [b"", b"\n", b"eighteen\n", b"\xff\xfe\x00", b"18.1\n", b"-18"])
def test_a_garbled_version_is_said(data_dir: Path, held: bytes) -> None:
    """A version file that holds no version is a damaged cluster: a sentence, and nothing is made
    over it."""
    (data_dir / "cluster").mkdir()
    (data_dir / "cluster" / "PG_VERSION").write_bytes(held)
    with pytest.raises(EmbeddedUnavailable, match="PG_VERSION should hold"):
        EmbeddedPostgres.start(data_dir)
    assert 1 == main(["--data-dir", str(data_dir), "url"])


def test_a_half_initialised_cluster_is_said(data_dir: Path) -> None:
    """A cluster with a version and little else doesn't start, and says so in PostgreSQL's words."""
    (data_dir / "cluster").mkdir(mode=0o700)
    (data_dir / "cluster" / "PG_VERSION").write_text("18\n")
    with pytest.raises(EmbeddedUnavailable, match="failed at pg_ctl start"):
        EmbeddedPostgres.start(data_dir)


@pytest.mark.parametrize("held", [b"", b"\xff\xfe", b"99999999999999999999\n", b"-1\n", b"\xb2\n"])
def test_a_garbled_process_id_means_nothing(made: Path, held: bytes) -> None:
    """A pid file that names no process is one that was left behind."""
    (made / "cluster" / "postmaster.pid").write_bytes(held)
    assert EmbeddedPostgres.start(made, settings=UNSAFE_BUT_FAST).stop()


# --- the socket's directory ---------------------------------------------------------------------


@pytest.fixture
def far_away(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A made cluster whose path is too long for a socket, and a temporary directory of its own."""
    temporary = data_dir / "tmp"
    temporary.mkdir(mode=0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    cluster = Cluster(data_dir / ("long " * 20))
    cluster.path.mkdir(parents=True)
    (cluster.path / "PG_VERSION").write_text("18\n")
    assert temporary == cluster.sockets.parent
    return cluster


def test_the_sockets_directory_is_its_users_alone(far_away: Cluster) -> None:
    """It is made for PostgreSQL's user, and found again."""
    for _ in range(2):
        far_away._ensure_sockets()
    found = far_away.sockets.stat()
    assert (0o40700, far_away.path.stat().st_uid) == (found.st_mode, found.st_uid)


def test_a_link_in_the_sockets_place_is_refused(far_away: Cluster, data_dir: Path) -> None:
    """Somebody else's link would lead our clients to somebody else's server."""
    (data_dir / "trap").mkdir(mode=0o700)
    far_away.sockets.symlink_to(data_dir / "trap")
    with pytest.raises(EmbeddedUnavailable, match=r"no directory of PostgreSQL's user alone"):
        far_away._ensure_sockets()


@pytest.mark.parametrize("mode", [0o777, 0o755, 0o710])
def test_a_sockets_directory_that_others_may_enter_is_refused(far_away: Cluster, mode: int) -> None:
    """Whoever may write there may listen there."""
    far_away.sockets.mkdir()
    far_away.sockets.chmod(mode)
    with pytest.raises(EmbeddedUnavailable, match="choose a shorter"):
        far_away._ensure_sockets()


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a directory away needs root")
def test_somebody_elses_sockets_directory_is_refused(far_away: Cluster) -> None:
    """Private, but another user's."""
    far_away.sockets.mkdir(mode=0o700)
    os.chown(far_away.sockets, 12345, 12345)
    with pytest.raises(EmbeddedUnavailable, match="is there already"):
        far_away._ensure_sockets()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root opens directories for another user")
def test_directories_that_are_opened_are_said(data_dir: Path) -> None:
    """Run as root, PostgreSQL's user needs a way through private directories: each that is opened
    is named, with its mode before and after."""
    private = data_dir / "private"
    private.mkdir(mode=0o700)
    said: list[str] = []
    cluster = Cluster(private / "data")
    cluster.data_dir.mkdir()
    said.append(cluster._open_ways())
    assert f"{private} (mode 700, now 701)" in said[0]
    assert "" == cluster._open_ways()


async def test_a_store_says_what_an_unreachable_socket_means(data_dir: Path) -> None:
    """Where no server listens, the address's variables aside, it is said that nothing does."""
    store = await PostgresStore.open(f"postgresql://postgres@/postgres?host={data_dir}&port=5432")
    with pytest.raises(StoreUnavailable, match="nothing listens there"):
        await store.check()
    await store.close()
