"""Starts the service as if it were of the next version of what replicas share, for a test of both beside
each other. The same flags as `run.py`."""

import sys

from db.fleet import contract


def main() -> int:
    # Before anything else reads it.
    contract.VERSION += 1
    sys.modules["db.fleet"].VERSION = contract.VERSION  # type: ignore[attr-defined]  # a module's
    from service.__main__ import main as serve

    return serve()


if __name__ == "__main__":
    sys.exit(main())
