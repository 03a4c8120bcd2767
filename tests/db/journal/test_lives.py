"""Who holds a journal's lock, asked without being in anybody's way; `tests/db/claims` has processes."""

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest

from db.journal.lives import is_held
from tests.db.journal.journals import dead_journal


def test_many_can_ask_at_once(tmp_path: Path) -> None:
    """Who asks is never taken for the holder by another who asks."""
    journal = dead_journal(tmp_path, ["chatcmpl-1"])
    with open(journal / "lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert is_held(journal) is False


def _finish(journal: Path) -> None:
    journal.rename(journal.with_name(f".{journal.name}.done"))


def _make_anew(journal: Path) -> None:
    (journal / "lock").rename(journal / "deleted")
    (journal / "lock").touch()


@pytest.mark.parametrize(("change", "expected"), [(_finish, None), (_make_anew, False)])
def test_a_journal_that_changes_while_it_is_asked_about(
    change: Callable[[Path], None],
    expected: bool | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where another file is in the lock's place by the time it is locked, or none, that counts."""
    journal = dead_journal(tmp_path, ["chatcmpl-1"])
    flock, asked = fcntl.flock, list[int]()

    def meanwhile(lock: int, how: int) -> None:
        flock(lock, how)
        if not asked:
            change(journal)
        asked.append(lock)

    monkeypatch.setattr(fcntl, "flock", meanwhile)
    assert expected is is_held(journal)
    assert asked
