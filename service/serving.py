"""Runs the application in this process: binds, serves, tells what is served, drains on a signal.

Called by `run.py` with a checked configuration.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable

import structlog
from aiohttp import web

from service import __version__
from service.app import DIRECTORY, RELOADER, STREAMS, build_app
from service.config import Config, mask_password
from service.hangup import Hangups
from service.reload import Load

log = structlog.get_logger(__name__)

_BACKLOG = 1024
"""Connections the kernel holds until we accept them; a page's users may all come at once."""
_STRAGGLER_SECONDS = 1.0
"""How long connections without a stream may take to close."""


class CannotServe(Exception):
    """The service can't start. The message says why and what to do."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one.

    Raises:
        CannotServe: the address is taken, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise CannotServe(
            f"Cannot listen on {host}:{port}: {error.strerror or error}. "
            "Choose another with --port, or server.port in the configuration."
        ) from None


async def serve(config: Config, load: Load, hangups: Hangups, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, drain, and return once every record is handed over.

    A second signal ends the drain's grace at once; it cuts no save short. SIGHUP has the
    configuration read again by `load`, unless it says that the terminal has closed.
    """
    app = build_app(config)
    runner = web.AppRunner(
        app,
        handler_cancellation=True,
        access_log=None,  # the canonical line is the log of a completion
        shutdown_timeout=_STRAGGLER_SECONDS,
    )
    stopping = asyncio.Event()
    _on_signals(stopping.set)
    hangups.obey(app[RELOADER].ask, stopping.set)
    try:
        await runner.setup()
        await web.SockSite(runner, listener).start()
        _announce(app, config, listener)
        reloading = asyncio.create_task(app[RELOADER].run(load), name="reload")
        await stopping.wait()
        log.info("stopping")
        reloading.cancel()  # no new request comes that could go by anything new
        hangups.ignore()
        drain = app[STREAMS].drain(app[RELOADER].config.server.drain_timeout_seconds)
        _on_signals(app[STREAMS].hurry)
        await drain
    finally:
        await runner.cleanup()
        listener.close()
    log.info("stopped")


def _on_signals(act: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, act)


def _announce(app: web.Application, config: Config, listener: socket.socket) -> None:
    """Say what is served where: in words on a terminal, as a log line otherwise."""
    host, port = listener.getsockname()[:2]
    base = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    directory = app[DIRECTORY]
    on = [agent.name for agent in directory.agents]
    if not sys.stdout.isatty():
        log.info("serving", url=base, agents_on=on, agents_off=directory.off, pid=os.getpid())
        return
    embedded = config.database.url == "embedded"
    where = (
        f"embedded PostgreSQL in {config.database.data_dir} (look inside: make psql)"
        if embedded
        else mask_password(config.database.url)
    )
    model = on[0] if on else "none"
    print(f"\nVerbatim {__version__} serves {base}/v1")
    print(f"  agents on   {', '.join(on) or 'none'}")
    for name, why in directory.off.items():
        print(f"  agent off   {name}: {why}")
    print(f"  answers     are kept in {where}")
    print("  try it      paste this into another terminal:\n")
    print(
        f"curl -N {base}/v1/chat/completions -H 'Content-Type: application/json' "
        f"""-d '{{"model": "{model}", "stream": true, """
        """"messages": [{"role": "user", "content": "Hello!"}]}'\n""",
        flush=True,
    )
