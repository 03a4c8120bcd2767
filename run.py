#!/usr/bin/env python3
"""Start the service. `python run.py --help` says how; `make run` prepares everything first."""

import sys
from pathlib import Path

from service.__main__ import main

if __name__ == "__main__":
    sys.exit(main(default_config=Path(__file__).with_name("config.yaml")))
