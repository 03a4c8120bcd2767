"""Opens the embedded database to operators: `python -m db.embedded psql`, or `url`."""

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from db.embedded.cluster import Cluster, EmbeddedUnavailable
from db.embedded.server import EmbeddedPostgres


def main(arguments: Sequence[str]) -> int:
    """`python -m db.embedded [--data-dir DIR] psql [ARGUMENT…]`, or `url` for the address."""
    parser = argparse.ArgumentParser(prog="python -m db.embedded")
    parser.add_argument("--data-dir", type=Path, default=Path("var/postgres"))
    parser.add_argument("command", choices=("url", "psql"))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="for psql")
    options = parser.parse_args(arguments)
    try:
        if options.command == "url":
            print(Cluster(options.data_dir.expanduser().resolve()).dsn)
            return 0
        server = EmbeddedPostgres.start(
            options.data_dir, on_progress=lambda said: print(said, file=sys.stderr)
        )
        interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for psql
        try:
            psql = str(server._cluster.programs / "psql")
            extra = [argument for argument in options.arguments if argument != "--"]
            return subprocess.call([psql, server.dsn, *extra])
        finally:
            signal.signal(signal.SIGINT, interrupted)
            server.stop()
    except (EmbeddedUnavailable, OSError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
