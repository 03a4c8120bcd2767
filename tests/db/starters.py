"""Processes that start together and find tables that aren't up to date. Blocks."""

import subprocess
import sys

_PATIENCE_SECONDS = 60


def migrated_by_four(dsn: str) -> list[str]:
    """What each of four `python -m db.migrate` says that run at once; none fails or warns."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "db.migrate", dsn],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    said = [process.communicate(timeout=_PATIENCE_SECONDS) for process in processes]
    assert [0] * 4 == [process.returncode for process in processes], said
    return [out.strip() for out, _ in said]
