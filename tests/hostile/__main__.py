"""Plays every attack and prints how long others waited meanwhile.

python -m tests.hostile
python -m tests.hostile --only packed
"""

import argparse
import asyncio
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from service.settings.config import LoggingConfig
from service.telemetry import configure_logging
from tests.hostile.attacks import ATTACKS, MEGABYTE
from tests.hostile.stage import attacked_service
from tests.postgres import migrated, running_server


async def play_all(directory: Path, database_url: str, only: str) -> bool:
    """Print a row for each; true if nobody had to wait."""
    is_good = True
    async with attacked_service(directory, database_url) as stage:
        for attack in ATTACKS:
            if only not in attack.name:
                continue
            outcome = await stage.play(attack)
            time, grown = outcome.loop_time, outcome.grown_bytes / MEGABYTE
            is_good = is_good and time.longest_ms < time.bound_ms
            cells = (
                attack.name,
                str(outcome.status),
                outcome.code,
                f"{time.longest_ms:.0f} ms",
                f"{time.bound_ms:.0f} ms",
                f"{grown:.0f} MB",
            )
            print(f"| {' | '.join(cells)} |", flush=True)
    return is_good


def main(arguments: list[str]) -> int:
    """Print the table; 1 if somebody waited too long."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="attacks with this in their name"
    )
    options = parser.parse_args(arguments)
    configure_logging(LoggingConfig(level="error", format="console"))
    print("| attack | status | told | others waited | at most | memory grew by |")
    print("| --- | --- | --- | --- | --- | --- |")
    with TemporaryDirectory(prefix="verbatim-chat-") as name, running_server() as server:
        playing = play_all(Path(name), migrated(server.dsn), options.only)
        return 0 if asyncio.run(playing) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
