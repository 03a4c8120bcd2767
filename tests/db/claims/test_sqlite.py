"""Claims on disk: many processes, killed ones, full disks, locks that nobody lets go of, damage."""

import asyncio
import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from db.claims import ClaimsUnavailable
from db.claims import sqlite as sqlite_module
from db.claims.file import ClaimsFile
from db.journal.recovery import Recovery
from tests.architecture import ROOT
from tests.db.claims.claiming import DAY, NOON, Clock, make_claim, number_in, sqlite_claims
from tests.db.claims.claiming import take_and_close as take
from tests.db.journal.journals import limited, open_files
from tests.db.journal.test_disk import tiny_disk

PLENTY = 20
"""Processes that ask at once."""


def file_in(directory: Path) -> Path:
    return directory / "claims.sqlite3"


def damaged_in(directory: Path) -> list[str]:
    """What follows the name of each file that was set aside."""
    return [path.name.partition(".")[2] for path in sorted(directory.glob("damaged-claims-*"))]


def run(*arguments: object) -> str:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def given_to_many(directory: Path, *instead_of: str) -> list[str]:
    """Who holds the key after many processes took it at once, as each of them was told."""
    printed = run("-m", "tests.db.claims.claiming", directory, PLENTY, *instead_of)
    return [line.split()[1] for line in printed.splitlines()]


# --- processes ----------------------------------------------------------------------------------


def test_of_many_processes_one_wins(tmp_path: Path) -> None:
    """Of twenty that take the same key at the same moment exactly one gets it, and the file is
    made once, by whoever comes first."""
    given = given_to_many(tmp_path)
    assert PLENTY == len(given)
    assert 1 == len(set(given))
    assert ["claims.lock", "claims.sqlite3"] == sorted(path.name for path in tmp_path.iterdir())
    held = asyncio.run(take(tmp_path, make_claim("chatcmpl-late")))
    assert {held.completion_id} == set(given)


def test_of_many_processes_one_replaces(tmp_path: Path) -> None:
    """Of twenty that replace the same completion at the same moment exactly one does."""
    asyncio.run(take(tmp_path, make_claim("chatcmpl-old")))
    given = given_to_many(tmp_path, "chatcmpl-old")
    assert PLENTY == len(given)
    assert 1 == len(set(given))
    assert "chatcmpl-old" not in given


def test_a_claim_outlives_a_kill(tmp_path: Path) -> None:
    """A process that is killed as soon as it was given a claim has left it for the next one."""
    code = "import sys, pathlib; from tests.db.claims.claiming import take_and_die as take;"
    code += "take(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (-signal.SIGKILL, "chatcmpl-killed") == (killed.returncode, killed.stdout)
    held = asyncio.run(take(tmp_path, make_claim("chatcmpl-next")))
    assert make_claim("chatcmpl-killed") == held


async def test_a_claim_outlives_its_process(tmp_path: Path) -> None:
    """What was claimed before a stop is there after the start."""
    first = await take(tmp_path, make_claim("chatcmpl-1"))
    assert first == await take(tmp_path, make_claim("chatcmpl-2"))


async def test_a_process_killed_while_making_the_file_is_in_nobodys_way(tmp_path: Path) -> None:
    """Whatever it left half made is cleared away, SQLite's own files included."""
    for end in (".new", ".new-journal", ".new-wal", ".new-shm"):
        (tmp_path / f".claims.sqlite3{end}").write_bytes(b"half")
    (tmp_path / "claims.sqlite3-wal").write_bytes(b"another's")
    claim = make_claim()
    assert claim == await take(tmp_path, claim)
    assert ["claims.lock", "claims.sqlite3"] == sorted(path.name for path in tmp_path.iterdir())


# --- the files ----------------------------------------------------------------------------------


async def test_nobody_else_reads_claims(tmp_path: Path) -> None:
    """All files are the service's own."""
    directory = tmp_path / "new" / "journal"
    claims = sqlite_claims(directory)
    await claims.take(make_claim())
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    names = ("claims.lock", "claims.sqlite3", "claims.sqlite3-shm", "claims.sqlite3-wal")
    assert dict.fromkeys(names, 0o600) == modes
    await claims.close()


async def test_without_a_claim_there_is_no_file(tmp_path: Path) -> None:
    """A service that nobody asks with a key writes nothing."""
    claims = sqlite_claims(tmp_path / "journal")
    claims.start()
    await claims.close()
    assert [] == list(tmp_path.iterdir())


async def test_closing_leaves_nothing_open(tmp_path: Path) -> None:
    """No descriptor and no thread stays, and SQLite's log is folded into the file."""
    before = set(open_files().values())
    await take(tmp_path, make_claim())
    assert set() == set(open_files().values()) - before
    assert not file_in(tmp_path).with_name("claims.sqlite3-wal").exists()


async def test_recovery_passes_claims_over(tmp_path: Path) -> None:
    """Neither the files in use nor one that was set aside are taken for a journal."""
    file_in(tmp_path).write_bytes(b"no database, but long enough to look like one" * 100)
    claims = sqlite_claims(tmp_path)
    await claims.take(make_claim())
    names = sorted(path.name for path in tmp_path.iterdir())
    assert 5 == len(names)
    with capture_logs() as logs:
        assert 0 == await Recovery(tmp_path, None, lambda _: asyncio.Future()).run()
    assert [] == logs
    assert names == sorted(path.name for path in tmp_path.iterdir())
    await claims.close()


async def test_each_take_waits_for_the_disk_if_it_should(tmp_path: Path) -> None:
    """Against a power loss, a commit is synced; without, only what SQLite copies into its file."""
    for is_synced, expected in ((True, 2), (False, 1)):
        file = ClaimsFile(tmp_path, is_synced=is_synced)
        connection = file.connect(time.monotonic())
        assert (expected,) == connection.execute("PRAGMA synchronous").fetchone()
        assert ("wal",) == connection.execute("PRAGMA journal_mode").fetchone()
        file.disconnect()


async def test_what_expired_is_deleted(tmp_path: Path) -> None:
    """Claims that nobody asks for again don't pile up."""
    clock = Clock()
    claims = sqlite_claims(tmp_path, clock=clock)
    for number in range(400):
        clock.now += DAY / 100
        await claims.take(make_claim(key=f"key {number}", claimed_at=clock.now))
    await claims.close()
    assert 100 <= number_in(file_in(tmp_path)) <= 100 + sqlite_module._SWEEP_EVERY


async def test_a_start_deletes_what_has_expired(tmp_path: Path) -> None:
    """A service that was away for long clears away what is of no use, and nothing else."""
    claims = sqlite_claims(tmp_path)
    for number in range(10):
        await claims.take(make_claim(key=f"key {number}", claimed_at=NOON + number))
    await claims.close()
    claims = sqlite_claims(tmp_path, clock=lambda: NOON + DAY + 4)
    claims.start()
    await claims.find(b"whatever")
    await claims.close()
    assert 5 == number_in(file_in(tmp_path))


# --- waiting ------------------------------------------------------------------------------------


async def test_a_lock_that_nobody_lets_go_of_holds_up_nobody_for_long(tmp_path: Path) -> None:
    """Any number of calls wait together and not one after the other, the event loop doesn't, finding
    needs no lock, and once it is free all is well."""
    claims = sqlite_claims(tmp_path, busy_seconds=0.3)
    first = await claims.take(make_claim())
    with closing(sqlite3.connect(file_in(tmp_path), isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        takes = [claims.take(make_claim("chatcmpl-2")) for _ in range(20)]
        waiting = asyncio.gather(*takes, return_exceptions=True)
        late = 0.0
        while not waiting.done():
            asked = time.monotonic()
            await asyncio.sleep(0.01)
            late = max(late, time.monotonic() - asked)
        assert {ClaimsUnavailable} == {type(error) for error in await waiting}
        assert 0.3 <= time.monotonic() - started < 2
        assert late < 0.2
        assert first == await claims.find(first.key)
        with pytest.raises(ClaimsUnavailable, match="another program has had it locked"):
            await claims.release(first)
        with capture_logs() as logs:
            claims.start()
            await claims.find(first.key)
        assert [] == logs  # what isn't cleared away now is later
    await claims.release(first)
    await claims.close()


async def test_a_file_that_is_being_made_is_waited_for_and_not_for_ever(tmp_path: Path) -> None:
    """Who makes the file and stops has it for so long, and no longer."""
    maker = ClaimsFile(tmp_path, is_synced=False)
    claims = sqlite_claims(tmp_path, busy_seconds=0.1)
    with maker._locked(time.monotonic()):
        with pytest.raises(ClaimsUnavailable, match="another program has had it locked"):
            await claims.take(make_claim())
    claim = make_claim()
    assert claim == await claims.take(claim)
    await claims.close()


async def test_closing_waits_for_no_lock(tmp_path: Path) -> None:
    """Calls that wait end with an error, begun or not; what is on disk is as it was."""
    claims = sqlite_claims(tmp_path)
    first = await claims.take(make_claim())
    with closing(sqlite3.connect(file_in(tmp_path), isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        takes = [asyncio.create_task(claims.take(make_claim("chatcmpl-2"))) for _ in range(20)]
        await asyncio.sleep(0.05)
        started = time.monotonic()
        await claims.close()
        assert time.monotonic() - started < 2
        errors = await asyncio.gather(*takes, return_exceptions=True)
    reasons = [str(error).partition(": ")[2] for error in errors]
    assert ["the service is stopping. Ask again once it is back."] * 20 == reasons
    assert first == await take(tmp_path, make_claim("chatcmpl-3"))


# --- the disk -----------------------------------------------------------------------------------


async def _fill_and_free(directory: Path, make_room: Callable[[], None], reason: str) -> None:
    """The life of claims whose disk fills up and is given room again."""
    claims = sqlite_claims(directory)
    first = await claims.take(make_claim())
    with pytest.raises(ClaimsUnavailable, match=reason):
        for number in range(10_000):
            last = await claims.take(make_claim(f"chatcmpl-{number}", f"key {number}"))
    assert [first, last] == [await claims.find(first.key), await claims.find(last.key)]
    assert first == await claims.take(make_claim("chatcmpl-2"))
    make_room()
    refused = make_claim("chatcmpl-again", f"key {number}")
    assert refused == await claims.take(refused)
    assert last == await claims.find(last.key)
    await claims.close()
    assert [] == damaged_in(directory)
    assert number + 2 == number_in(file_in(directory))


async def test_a_full_disk_refuses_claims_and_loses_none() -> None:
    """What was given stays, what wasn't can be asked for again, and later it is given."""
    with tiny_disk(256 * 1024) as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(64 * 1024))
        await _fill_and_free(disk / "journal", ballast.unlink, "the disk is full. Make room on it.")


async def test_a_limit_on_the_file_refuses_claims_and_loses_none(tmp_path: Path) -> None:
    """Any other refusal of the kernel costs as little as a full disk, here EFBIG."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    with limited(resource.RLIMIT_FSIZE, 100_000):
        await _fill_and_free(
            tmp_path,
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (old, old)),
            "See whether the disk has room",
        )


async def test_a_disk_that_is_full_from_the_start_keeps_nothing_half_made() -> None:
    """A file that can't be made is none, and is made once there is room."""
    with tiny_disk(256 * 1024) as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(240 * 1024))
        claims = sqlite_claims(disk)
        for _ in range(3):
            with pytest.raises(ClaimsUnavailable, match="See whether the disk has room"):
                await claims.take(make_claim())
        assert not file_in(disk).exists()
        ballast.unlink()
        assert make_claim() == await claims.take(make_claim())
        await claims.close()
        assert [] == damaged_in(disk)


async def test_a_place_that_is_none_says_what_to_do(tmp_path: Path) -> None:
    """Where nothing can be written, each call says so, and the service goes on without."""
    (tmp_path / "file").touch()
    claims = sqlite_claims(tmp_path / "file")
    for call in (claims.take(make_claim()), claims.find(b"key"), claims.release(make_claim())):
        with pytest.raises(
            ClaimsUnavailable, match=r"choose another place with journal\.directory"
        ):
            await call
    await claims.close()


async def test_no_free_descriptor_is_no_damage(tmp_path: Path) -> None:
    """A process that has used up its descriptors refuses claims until it has one again."""
    first = await take(tmp_path, make_claim())
    claims = sqlite_claims(tmp_path)
    with pytest.raises(ClaimsUnavailable), limited(resource.RLIMIT_NOFILE, 3):
        await claims.find(first.key)
    assert first == await claims.find(first.key)
    await claims.close()
    assert [] == damaged_in(tmp_path)


# --- damage -------------------------------------------------------------------------------------


def _overwrite(file: Path, start: int, data: bytes) -> None:
    with open(file, "r+b") as opened:
        opened.seek(start)
        opened.write(data)


def _truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2 // 4096 * 4096 - 100)


def _of_another_version(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version=9")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda file: file.write_bytes(b""), id="empty"),
        pytest.param(lambda file: file.write_bytes(b"\0" * 8192), id="zeros"),
        pytest.param(lambda file: _overwrite(file, 0, b"\xff" * 100), id="header"),
        pytest.param(lambda file: _overwrite(file, 4096, b"\xff" * 8192), id="pages"),
        pytest.param(_truncate, id="truncated"),
        pytest.param(_of_another_version, id="version"),
    ],
)
async def test_a_damaged_file_is_set_aside(
    damage: Callable[[Path], object], tmp_path: Path
) -> None:
    """What a power loss left of it is kept for a person; claims are taken anew, and stay."""
    claims = sqlite_claims(tmp_path)
    for number in range(100):
        await claims.take(make_claim(key=f"key {number}"))
    await claims.close()
    damage(file_in(tmp_path))
    claim = make_claim("chatcmpl-new", "key new")
    with capture_logs() as logs:
        assert claim == await take(tmp_path, claim)
    assert ["damaged claims set aside"] == [entry["event"] for entry in logs]
    assert "sqlite3" in damaged_in(tmp_path)
    assert claim == await take(tmp_path, make_claim("chatcmpl-2", "key new"))
    assert 1 == damaged_in(tmp_path).count("sqlite3")


def test_of_two_that_find_the_same_damage_one_sets_it_aside(tmp_path: Path) -> None:
    """The other one leaves the new file where it is, and goes on in it."""
    file_in(tmp_path).write_bytes(b"\xff" * 8192)
    one, other = (ClaimsFile(tmp_path, is_synced=False) for _ in range(2))
    for file in (one, other):
        with pytest.raises(sqlite3.DatabaseError, match="not a database"):
            file.connect(time.monotonic())
    one.set_aside("damaged", time.monotonic())
    one.connect(time.monotonic())
    other.set_aside("damaged", time.monotonic())
    other.connect(time.monotonic())
    assert ["sqlite3"] == damaged_in(tmp_path)
    assert one.is_current() and other.is_current()
    one.disconnect()
    other.disconnect()


def test_what_another_process_has_open_goes_with_its_file(tmp_path: Path) -> None:
    """SQLite's log is moved along, with what isn't copied into the file yet; the other process
    notices."""
    one, other = (ClaimsFile(tmp_path, is_synced=False) for _ in range(2))
    for file in (one, other):
        file.connect(time.monotonic()).execute("SELECT * FROM claims")
    one.set_aside("damaged", time.monotonic())
    assert ["sqlite3", "sqlite3-shm", "sqlite3-wal"] == damaged_in(tmp_path)
    assert not other.is_current()
    other.disconnect()


async def test_a_file_that_is_damaged_each_time_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where something else spoils each new file, the call ends, and says so."""
    monkeypatch.setattr("db.claims.file._VERSION", 2)
    monkeypatch.setattr(ClaimsFile, "_make", lambda self: self.path.write_bytes(b""))
    claims = sqlite_claims(tmp_path)
    with pytest.raises(
        ClaimsUnavailable, match=r"it is of version 0, not 2\. See what else writes"
    ):
        await claims.take(make_claim())
    await claims.close()


async def test_a_sweep_that_fails_is_said(tmp_path: Path) -> None:
    """Nobody waits for it, so the log tells."""
    await take(tmp_path, make_claim())
    claims = sqlite_claims(tmp_path)
    with capture_logs() as logs, limited(resource.RLIMIT_NOFILE, 3):
        claims.start()
        with pytest.raises(ClaimsUnavailable):
            await claims.find(b"key")
    assert ["expired claims not deleted"] == [entry["event"] for entry in logs]
    await claims.close()


async def test_who_has_the_file_open_follows_to_the_new_one(tmp_path: Path) -> None:
    """A claim that went into a file that another process has set aside, or somebody deleted, is
    taken again in the one that counts."""
    one, other = sqlite_claims(tmp_path), sqlite_claims(tmp_path)
    for number, replace in enumerate((_set_aside, _delete, _delete_all)):
        await one.take(make_claim(key="before"))
        await other.take(make_claim(key="before"))
        replace(tmp_path)
        claim = make_claim(f"chatcmpl-{number}")
        assert claim == await one.take(claim)
        assert claim == await other.take(make_claim("chatcmpl-other"))
        assert claim == await one.find(claim.key) == await other.find(claim.key)
    await one.close()
    await other.close()


def _set_aside(directory: Path) -> None:
    for path in directory.glob("claims.sqlite3*"):
        path.rename(directory / f"damaged-{path.name}")


def _delete(directory: Path) -> None:
    file_in(directory).unlink()


def _delete_all(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
