"""The command `verbatim`: brings the service up. The same as `python -m service`.

Nothing is imported up here that takes time, see below.
"""

import signal
import sys
from pathlib import Path


def main(default_config: Path = Path("config.yaml")) -> int:
    """Do what the command line says; returns the exit status.

    `default_config` is read if it is there and no flag names another file.
    """
    # Unheeded, a SIGHUP would end the process while it imports what it needs. The configuration
    # is read later, so what the signal asks for happens anyway.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from service.process import command

    return command.main(sys.argv[1:], default_config)


if __name__ == "__main__":
    sys.exit(main())
