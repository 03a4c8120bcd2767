"""What became of a claim's process, as its journal tells it, with processes that really die."""

import asyncio
import subprocess
import sys
from pathlib import Path

from db.claims import Holder, holder_is_alive
from db.journal.recovery import Recovery
from statemachine import SessionRecord
from tests.architecture import ROOT
from tests.db.journal.journals import begin, dead_journal, open_journal

KEEPS_A_JOURNAL = """
import pathlib, sys
from tests.db.journal.journals import begin, open_journal, say
journal = open_journal(pathlib.Path(sys.argv[1]))
if sys.argv[2:]:
    begin(journal, sys.argv[2])
    say(journal, sys.argv[2], "words")
print(journal.directory.name, flush=True)
sys.stdin.read()
journal.close()
"""


def start(directory: Path, *completions: str) -> tuple[str, "subprocess.Popen[str]"]:
    """A process that keeps a journal until its input ends, and its name."""
    process = subprocess.Popen(
        [sys.executable, "-c", KEEPS_A_JOURNAL, directory, *completions],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process.stdout.readline().strip(), process


async def test_a_killed_process_is_orphaned_until_its_answers_are_committed(tmp_path: Path) -> None:
    """While it lives it is alive; killed it is orphaned, until somebody brings its completions
    back, which looks as if it were alive; and once they are committed it is gone."""
    holder, process = await asyncio.to_thread(start, tmp_path, "chatcmpl-1")
    with process:
        assert Holder.ALIVE == holder_is_alive(tmp_path, holder)
        process.kill()
    assert Holder.ORPHANED == holder_is_alive(tmp_path, holder)
    assert Holder.ORPHANED == holder_is_alive(tmp_path, holder)  # looking changes nothing

    saving, committed = asyncio.Event(), asyncio.get_running_loop().create_future()

    def save(_: SessionRecord) -> "asyncio.Future[None]":
        saving.set()
        return committed

    recovering = asyncio.create_task(Recovery(tmp_path, None, save).run())
    await saving.wait()
    assert Holder.ALIVE == holder_is_alive(tmp_path, holder)
    committed.set_result(None)
    assert 1 == await recovering
    assert Holder.GONE == holder_is_alive(tmp_path, holder)


def test_a_process_that_stopped_with_nothing_left_is_gone(tmp_path: Path) -> None:
    """Who has saved everything takes its journal along; who hasn't leaves an orphan."""
    for completions, expected in (((), Holder.GONE), (("chatcmpl-1",), Holder.ORPHANED)):
        holder, process = start(tmp_path, *completions)
        with process:
            process.communicate()
        assert expected == holder_is_alive(tmp_path, holder)


def test_this_process_is_alive(tmp_path: Path) -> None:
    """A process can ask about itself, and has its lock afterwards as before."""
    journal = open_journal(tmp_path)
    begin(journal, "chatcmpl-1")
    for _ in range(2):
        assert Holder.ALIVE == holder_is_alive(tmp_path, journal.directory.name)
    journal.close()
    assert Holder.ORPHANED == holder_is_alive(tmp_path, journal.directory.name)


def test_names_of_no_journal_are_gone(tmp_path: Path) -> None:
    """No name, an unknown one, a file's, or a folder's without a lock: nothing will come of these."""
    (tmp_path / "lock").touch()  # no journal's
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for name in ("", "unknown", "file", "folder"):
        assert Holder.GONE == holder_is_alive(tmp_path, name)


def test_a_damaged_journal_that_was_kept_is_gone(tmp_path: Path) -> None:
    """Under its other name it is for people: what could be read of it is committed."""
    journal = dead_journal(tmp_path, ["chatcmpl-1"])
    journal.rename(journal.with_name(f"damaged-{journal.name}"))
    assert Holder.GONE == holder_is_alive(tmp_path, journal.name)
