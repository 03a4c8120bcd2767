"""Runs the application in this process: serves, announces what is served, drains on a signal.

With several workers this is each worker's life. Checks no configuration, starts no process.
"""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

import structlog
from aiohttp import web

from service import __version__
from service.app import ADDRESSES, CONFIG, DIRECTORY, RELOADER, STREAMS, build_app
from service.edge.connections import Runner
from service.process.hangup import Hangups
from service.process.listening import BACKLOG, Listeners, Places
from service.process.slot import WorkerSlot
from service.settings.config import Config, is_loopback, mask_password
from service.settings.reload import Load

log = structlog.get_logger(__name__)

_STRAGGLER_SECONDS = 1.0
"""How long connections without a stream may take to close."""


async def serve(
    config: Config,
    load: Load,
    hangups: Hangups,
    listeners: Listeners,
    slot: WorkerSlot | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, drain, and return once every record is handed over.

    A second signal ends the drain's grace at once; it cuts no save short. SIGHUP has `load` read
    the configuration again, unless the terminal has closed. A worker has a `slot`: it reports to
    its supervisor instead of printing an announcement, and drains if the supervisor is gone.
    """
    app = build_app(config, siblings=slot)
    places = Places.of(listeners)
    app[ADDRESSES].operators_port = places.operators and places.operators[1]
    runner = _make_runner(app, config)
    stopping = asyncio.Event()
    _on_signals(stopping.set)
    hangups.obey(app[RELOADER].ask, stopping.set)
    try:
        await runner.setup()
        _collect_garbage_seldom()
        for listener in listeners.all:
            # Without the number aiohttp listens again, with a backlog of 128.
            await web.SockSite(runner, listener, backlog=BACKLOG).start()
        if slot is not None:
            await _join_siblings(slot, runner, stopping)
        _tell_ready(app, config, places, slot)
        reloading = asyncio.create_task(app[RELOADER].run(load), name="reload")
        await stopping.wait()
        reloading.cancel()  # no new request comes that could go by anything new
        hangups.ignore()
        await _drain(app)
    finally:
        await runner.cleanup()
        listeners.close()
        if slot is not None:
            slot.leave()
    log.info("stopped")


def _tell_ready(
    app: web.Application, config: Config, places: Places, slot: WorkerSlot | None
) -> None:
    agents = app[DIRECTORY]
    on = [agent.name for agent in agents.agents]
    if slot is None:
        announce(config, places, on, agents.off)
    else:
        slot.report_ready(on, agents.off)
    agents.prepare_soon()


def _make_runner(app: web.Application, config: Config) -> Runner:
    return Runner(
        app,
        config.server.idle_timeout_seconds,
        _STRAGGLER_SECONDS,
        lambda: app[CONFIG].value.sse.send_timeout_seconds,
    )


def _collect_garbage_seldom() -> None:
    """Streams leave few cycles behind, and looking for them at Python's usual pace takes 5 % of a
    request's CPU."""
    gc.collect()
    gc.freeze()  # objects that were made at the start are never looked at again
    gc.set_threshold(10_000, 2, 200)


async def _drain(app: web.Application) -> None:
    """Drain before aiohttp's own shutdown, so that probes and refused requests get answers."""
    log.info("stopping")
    drain = app[STREAMS].drain(app[CONFIG].value.server.drain_timeout_seconds)
    _on_signals(app[STREAMS].hurry)
    await drain


async def _join_siblings(slot: WorkerSlot, runner: web.AppRunner, stopping: asyncio.Event) -> None:
    """Listen for the siblings, and stop once the supervisor is gone."""
    loop = asyncio.get_running_loop()

    def stop_without_supervisor() -> None:
        log.error("supervisor gone")
        loop.remove_reader(slot.supervisor_pipe)
        stopping.set()

    path = str(slot.socket_of(slot.number))
    await web.UnixSite(runner, path, backlog=BACKLOG).start()
    loop.add_reader(slot.supervisor_pipe, stop_without_supervisor)


def _on_signals(act: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, act)


def announce(
    config: Config,
    places: Places,
    agents_on: Sequence[str],
    agents_off: Mapping[str, str],
) -> None:
    """Announce what is served where: in words on a terminal, as a log line otherwise."""
    base = _url(places.api)
    if not sys.stdout.isatty():
        log.info(
            "serving",
            url=base,
            admin_url=_url(places.operators or places.api),
            agents_on=list(agents_on),
            agents_off=dict(agents_off),
            pid=os.getpid(),
            api_keys=len(config.auth.api_keys),
            workers=config.server.workers,
        )
        return
    page = _page_url(config, _url(places.operators or places.api))
    print(_greeting(config, base, agents_on, agents_off, page), flush=True)


def _url(address: tuple[str, int]) -> str:
    host, port = address
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _page_url(config: Config, url: str) -> str | None:
    """Where the page is; None if nobody may look at it."""
    hosts = (config.server.host, *([config.admin.host] if config.admin.port is not None else ()))
    is_open = all(map(is_loopback, hosts)) and not config.auth.api_keys
    return f"{url}/" if config.admin.api_keys or is_open else None


def _greeting(
    config: Config,
    base: str,
    agents_on: Sequence[str],
    agents_off: Mapping[str, str],
    page: str | None = None,
) -> str:
    keys = config.auth.api_keys
    embedded = config.database.url == "embedded"
    where = (
        f"embedded PostgreSQL in {config.database.data_dir} (look inside: make psql)"
        if embedded
        else mask_password(config.database.url)
    )
    url = f"{base}/v1/chat/completions"
    model = agents_on[0] if agents_on else "none"
    key = " -H 'Authorization: Bearer YOUR-KEY'" if keys else ""
    body = (
        f"""-d '{{"model": "{model}", "stream": true, """
        """"messages": [{"role": "user", "content": "Hello!"}]}'"""
    )
    completion_id = "$(grep -om1 'chatcmpl-[0-9a-f]*' part.txt)"
    return "\n".join(
        (
            f"\nVerbatim {__version__} serves {base}/v1",
            f"  agents on   {', '.join(agents_on) or 'none'}",
            *(f"  agent off   {name}: {why}" for name, why in agents_off.items()),
            *([f"  callers     need a key: {', '.join(key.name for key in keys)}"] if keys else ()),
            f"  answers     are kept in {where}",
            *([f"  look at it  {page}"] if page else ()),
            "  try it      paste this into another terminal:\n",
            f"curl -N {url}{key} -H 'Content-Type: application/json' {body}\n",
            "  cut it      the first of these hangs up after a second, the other reads on from there:\n",
            f"curl -sNm1 {url}{key} -H 'X-Client-Gone: wait' {body} | tee part.txt",
            f'curl -N{key} "{url}/{completion_id}?stream=true'
            """&starting_after=$(grep -c '}$' part.txt)"\n""",
        )
    )
