"""The command line: flags, the configuration they lead to, and exit codes.

`service/__main__.py` brings it up, for `verbatim`, `python -m service` and `python run.py` alike.
No logic of the service here.
"""

import argparse
import asyncio
import gc
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from service import __version__
from service.app import load_for_workers
from service.fleet.parts import FleetUnusable
from service.persistence import CANNOT_KEEP
from service.process.hangup import Hangups
from service.process.listening import CannotServe, Listeners, bind
from service.process.serving import serve
from service.process.slot import WorkerSlot
from service.process.workers import Supervisor
from service.settings.checking import ConfigError
from service.settings.config import Config, dump_config, load_config
from service.settings.reload import Load
from service.telemetry import configure_logging

LOOP_FACTORY: Callable[[], asyncio.AbstractEventLoop] | None
try:
    from uvloop import new_event_loop as LOOP_FACTORY
except ImportError:  # it comes with the extra `fast`; asyncio's own loop does as well
    LOOP_FACTORY = None

EPILOG = """\
precedence: flags, environment, the file, defaults.

environment:
  DATABASE_URL             postgresql://user:password@host/name, or 'embedded'
  OPENAI_API_KEY           key of the backend; unset: the agent is off, if it is OpenAI's
  OPENAI_BASE_URL          where that backend is (Ollama: http://127.0.0.1:11434/v1)
  API_KEYS                 name:key,name:key: who may call, in place of auth.api_keys
  JOURNAL_DIR              where answers are kept until PostgreSQL has them
  SSE_KEEP_ALIVE_INTERVAL  seconds of silence before a keep-alive comment, e.g. 15 or 0.5
  FLEET_URL                redis://host:6379/0: the engine that several machines share
  LOG_FORMAT               auto, console or json

signals: SIGTERM and SIGINT stop: running streams get server.drain_timeout_seconds, then their
partial answers are saved; a second signal ends that grace at once. SIGHUP rereads the file; the
log says what changed, what is wrong, and what needs a restart. A terminal that closes stops.

exit status: 0 after a clean stop, 1 if the service could not start, 2 for a bad configuration.
"""


def parse_flags(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="verbatim",
        description="Streaming chat completions over OpenAI's API, every answer kept.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="PATH",
        help="default: config.yaml in the working directory (beside run.py, if that is started)",
    )
    parser.add_argument("--host", help="address to listen on (server.host)")
    parser.add_argument("--port", type=int, help="port to listen on, 0 for any (server.port)")
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    parser.add_argument(
        "--print-config", action="store_true", help="print the configuration in force and exit"
    )
    parser.add_argument("--version", action="version", version=f"verbatim {__version__}")
    return parser.parse_args(arguments)


def main(arguments: list[str], default_config: Path = Path("config.yaml")) -> int:
    """Check, print or serve; returns the exit status.

    `default_config` is read if it is there and no flag names another file.
    """
    flags = parse_flags(arguments)
    path = flags.config or (default_config if default_config.exists() else None)
    given = {("server", "host"): flags.host, ("server", "port"): flags.port}
    load = partial(load_config, path, flags={k: v for k, v in given.items() if v is not None})
    hangups = Hangups()
    try:
        config = load()
    except ConfigError as error:
        print(f"The configuration can't be used:\n{error}", file=sys.stderr)
        return 2
    if flags.print_config:
        print(dump_config(config), end="")
        return 0
    if flags.check:
        print(f"{path or 'The default configuration'} is fine.")
        return 0
    configure_logging(config.logging)
    try:
        if config.server.workers > 1:
            load_for_workers(config)
            gc.freeze()  # what is here by now is shared by all workers, as long as nobody touches it
            return Supervisor(config, load, hangups, run_alone).run()
        return run_alone(config, load, hangups, bind(config))
    except CannotServe as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        _drop_closed_output()


def run_alone(
    config: Config,
    load: Load,
    hangups: Hangups,
    listeners: Listeners,
    slot: WorkerSlot | None = None,
) -> int:
    """Serve in this process, which may be a worker's, until a signal stops it; the exit status."""
    try:
        with asyncio.Runner(loop_factory=LOOP_FACTORY) as runner:
            runner.run(serve(config, load, hangups, listeners, slot))
    except (*CANNOT_KEEP, FleetUnusable) as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    return 0


def _drop_closed_output() -> None:
    """If standard output is closed, replace it: a failing flush at exit would change the status."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
