"""The composition root: makes every part, connects them, and orders their start and stop.

Parts start in the order of `build_app` and stop in the opposite one: streams are drained first,
then records are flushed, then the database closes. Never here: the handlers' logic.
"""

import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial

from aiohttp import web
from aiohttp.typedefs import Middleware
from attrs import evolve

from db.journal import Journal
from db.overview import WholeStore
from service.agents.directory import AgentDirectory, load_for
from service.callers.admin import Admins, guard_operators, may_scrape, own_names_alone
from service.callers.auth import PROBES, Keyring, needs_caller, require_key
from service.callers.charging import Charging
from service.callers.limits import Admission
from service.callers.sharing import SharedAdmission
from service.clock import steady_clock
from service.completion_log import CompletionLog
from service.edge.addresses import Addresses, apart
from service.edge.cors import cors
from service.edge.encodings import refuse_packed
from service.edge.errors import refusing, rendering
from service.edge.other_sites import refuse_other_sites
from service.edge.siblings import Siblings
from service.endpoints.completions import Completions
from service.endpoints.conversations import Conversations
from service.endpoints.listing import Listing
from service.endpoints.models import Models
from service.endpoints.openapi import OpenApi
from service.endpoints.probes import Probes
from service.endpoints.reading import Reading
from service.endpoints.repeats import Repeats
from service.endpoints.stored import StoredCompletions
from service.fleet.elsewhere import Elsewhere
from service.fleet.others import Others
from service.fleet.parts import Fleet
from service.metrics.gauges import Sources
from service.metrics.scraping import Metrics
from service.page.lives import Lives, looking_on
from service.page.routes import page_routes
from service.page.watched import Watched
from service.persistence import CleanupContext, Persistence
from service.settings.config import RELOADABLE, Config, is_loopback
from service.settings.live import Live
from service.settings.reload import Reloader
from service.stream.moments import Watcher, Watchers, tell
from service.stream.running import RunningStreams
from service.telemetry import add_id_headers, configure_logging, telemetry_middleware
from service.tracing.switch import load_for as load_tracing_for
from service.tracing.switch import tracing_for

CONFIG: web.AppKey[Live[Config]] = web.AppKey("config")
DIRECTORY = web.AppKey("directory", AgentDirectory)
KEYRING = web.AppKey("keyring", Keyring)
ADMINS = web.AppKey("admins", Admins)
ADDRESSES = web.AppKey("addresses", Addresses)
ADMISSION = web.AppKey("admission", Admission)
STREAMS = web.AppKey("streams", RunningStreams)
RELOADER = web.AppKey("reloader", Reloader)
FLEET = web.AppKey("fleet", Fleet)
SHARED = web.AppKey("shared", SharedAdmission)


def build_app(
    config: Config,
    *,
    environ: Mapping[str, str] | None = None,
    store: WholeStore | None = None,
    siblings: Siblings | None = None,
) -> web.Application:
    """The application, ready for a `service.edge.connections.Runner`. Nothing is started yet:
    no file, connection or task is made.

    Args:
        config: what operators set.
        environ: where agents' keys are; the process's environment if not given.
        store: one to use, already open, instead of the database that `config` describes.
        siblings: the other workers, if there are any.

    Starting it raises `db.embedded.EmbeddedUnavailable` if the embedded PostgreSQL is asked for
    and can't be had, `db.journal.JournalUnavailable` if the journal's directory can't be written,
    and `db.store.StoreUnavailable` if the database's address can't be read. A database that can't
    be reached doesn't stop it: the service streams, says in `/readyz` that it isn't ready, and
    saves what waits once the database is there.
    """
    environ = os.environ if environ is None else environ
    directory, charging = AgentDirectory.from_config(config.agents, environ), Charging()
    metrics, lives = _metrics(config, directory, siblings), Lives(steady_clock())
    tracing = tracing_for(environ, siblings.is_from_sibling if siblings else None)
    watchers = _watchers(charging, lives, metrics, tracing.watchers if tracing else ())
    app = _with_middlewares(config, watchers, tracing.middlewares if tracing else ())
    app[CONFIG], app[DIRECTORY] = Live(config), directory
    app[STREAMS] = streams = RunningStreams(config.server.max_concurrent_streams)
    app[RELOADER] = Reloader(app[CONFIG], RELOADABLE, _changes(app))
    keeping = _keeping(app, config, store, metrics, _fleet(app, config, siblings))
    answering = _answering(app, keeping, siblings, watchers, charging)
    app.add_routes(_routes(app, keeping, siblings, answering, lives))
    _add_metrics(app, metrics, keeping)
    if tracing:
        app.cleanup_ctx.append(tracing.exporting)  # first, so that it stops when all have ended
    app.cleanup_ctx.extend((*keeping.contexts, _closing(directory), looking_on(lives, streams)))
    app.on_shutdown.append(_drain)
    return app


def _keeping(
    app: web.Application,
    config: Config,
    store: WholeStore | None,
    metrics: Metrics | None,
    fleet: Fleet | None,
) -> Persistence:
    """The parts that keep answers. Those of a fleet start before them and stop after them."""
    if fleet is not None:
        app.cleanup_ctx.extend((fleet.keep, app[SHARED].keep))
    keeping = Persistence.from_config(
        config,
        store,
        lambda: app[CONFIG].value.idempotency.keep_seconds,
        metrics.saves if metrics else None,
        Journal if fleet is None else fleet.journal,
        None if fleet is None else fleet.claims,
    )
    if fleet is None:
        return keeping
    fleet.adopt(keeping.saver.save, keeping.has_row)
    return evolve(keeping, contexts=(*keeping.contexts, fleet.keep_adopting))


def load_for_workers(config: Config) -> None:
    """Import what the application imports late, so that workers that are forked from this process share
    its memory."""
    load_for(config.agents)
    load_tracing_for(os.environ)


def _watchers(
    charging: Charging, lives: Lives, metrics: Metrics | None, tracing: Sequence[Watcher]
) -> Watchers:
    """Everybody who is told what becomes of completions."""
    counting = [metrics.counting] if metrics else []
    return Watchers((CompletionLog(), charging, lives, *counting, *tracing))


def _with_middlewares(
    config: Config, watchers: Watchers, inside_errors: Sequence[Middleware]
) -> web.Application:
    """An application with the middlewares and signals that every request passes, and no routes."""
    admin, server, addresses = config.admin, config.server, Addresses()
    has_two_addresses = admin.port is not None
    keys = Keyring(config.auth.api_keys, is_required=not is_loopback(config.server.host))
    admission = Admission(config.limits, config.auth.api_keys)
    is_local = is_loopback(admin.host if has_two_addresses else server.host)
    admins = Admins(admin.api_keys, keys, is_local=is_local)
    refuse_foreign = refuse_other_sites(
        lambda: keys.is_open,
        server.allowed_hosts,
        server.cors_origins,
        lambda path: not needs_caller(path),
    )
    checks = (
        *((apart(addresses, PROBES),) if has_two_addresses else ()),
        refuse_foreign,
        guard_operators(admins, own_names_alone(server.allowed_hosts)),
        refuse_packed,
    )
    middlewares = [
        telemetry_middleware,
        rendering(partial(tell, watchers.refused)),
        *inside_errors,
        refusing(*checks),
        require_key(keys),
    ]
    answer_preflight, mark_origin = cors(config.server.cors_origins)
    if config.server.cors_origins:
        middlewares.insert(1, answer_preflight)
    app = web.Application(middlewares=middlewares, client_max_size=config.server.max_body_bytes)
    app.on_response_prepare.extend((add_id_headers, admission.add_headers))
    if config.server.cors_origins:
        app.on_response_prepare.append(mark_origin)
    app[KEYRING], app[ADMINS], app[ADDRESSES] = keys, admins, addresses
    app[ADMISSION] = admission
    return app


def _fleet(app: web.Application, config: Config, siblings: Siblings | None) -> Fleet | None:
    """This replica's part in a fleet, if there is one."""
    if config.fleet.url is None:
        return None
    fleet = Fleet(config.fleet, siblings.number if siblings else None)
    fleet.listen(app[STREAMS].cancel)
    fleet.yield_by(app[STREAMS].cut_off)
    app[FLEET] = fleet
    shared = SharedAdmission(app[ADMISSION], fleet.engine, config.fleet.lease_seconds)
    app[SHARED] = fleet.fallbacks = shared
    return fleet


def _metrics(
    config: Config, directory: AgentDirectory, siblings: Siblings | None
) -> Metrics | None:
    if not config.metrics.enabled:
        return None
    return Metrics(
        directory.is_known,
        per_owner=config.metrics.per_owner,
        siblings=siblings,
        has_fleet=config.fleet.url is not None,
    )


def _add_metrics(app: web.Application, metrics: Metrics | None, keeping: Persistence) -> None:
    """Add the endpoint, and what runs beside it: first of all, so that it ends last and has seen all."""
    if metrics is None:
        return
    server, journal = app[CONFIG].value.server, app[CONFIG].value.journal
    streams: RunningStreams = app[STREAMS]
    sources = Sources(
        streams,
        keeping.saver,
        lambda: keeping.journal.size,
        journal.max_bytes if journal.directory else 0,
        keeping.dead_letters,
        keeping.checks["database"],
    )
    if metrics.fleet is not None:
        metrics.fleet.watch(app[FLEET])
        app[FLEET].outbox.note_append = metrics.fleet.appended
    own_names = own_names_alone(server.allowed_hosts)
    check = may_scrape(app[ADMINS], app[ADDRESSES], own_names)
    app.add_routes([metrics.endpoint(sources, check, app[DIRECTORY].models)])
    app.cleanup_ctx.append(metrics.run)


def _routes(
    app: web.Application,
    keeping: Persistence,
    siblings: Siblings | None,
    answering: tuple[Reading, Completions],
    lives: Lives,
) -> list[web.RouteDef]:
    live, directory, streams = app[CONFIG], app[DIRECTORY], app[STREAMS]
    reading, completions = answering
    return [
        *completions.routes(),
        *reading.routes(),
        *Listing(keeping.store, streams, siblings, _others(app)).routes(),
        *StoredCompletions(keeping.store, live, reading.elsewhere).routes(),
        *Conversations(keeping.store).routes(),
        *Models(directory).routes(),
        *Probes(
            streams,
            keeping.checks,
            lambda: keeping.saver.unsaved,
            directory.circuits,
            app[FLEET].degraded if FLEET in app else None,
        ).routes(),
        *OpenApi().routes(),
        *page_routes(_watched(app, keeping, siblings, reading, lives)),
    ]


def _answering(
    app: web.Application,
    keeping: Persistence,
    siblings: Siblings | None,
    watchers: Watchers,
    charging: Charging,
) -> tuple[Reading, Completions]:
    """What answers, and what reads answers again."""
    live, streams, clock = app[CONFIG], app[STREAMS], steady_clock()
    store, recovering = keeping.store, keeping.is_recovering
    elsewhere = Elsewhere(app[FLEET]) if FLEET in app else None
    reading = Reading(
        live, store, streams, clock, recovering, siblings, elsewhere, watchers=watchers
    )
    completions = Completions(
        live,
        app[DIRECTORY],
        streams,
        app[ADMISSION],
        keeping.saver,
        keeping.journal,
        clock,
        watchers,
        charging,
        Repeats(live, keeping.claims, store, reading, keeping.journal.directory),
        siblings,
        elsewhere,
        app.get(SHARED),
    )
    if FLEET in app and (listener := app[FLEET].listener) is not None:
        listener.knows = completions.repeats.knows
    return reading, completions


def _watched(
    app: web.Application,
    keeping: Persistence,
    siblings: Siblings | None,
    reading: Reading,
    lives: Lives,
) -> Watched:
    """What the page looks at."""
    return Watched(
        app[CONFIG],
        keeping.store,
        app[STREAMS],
        app[DIRECTORY],
        app[ADMISSION],
        app[ADMINS],
        app[ADDRESSES],
        reading,
        steady_clock(),
        keeping.checks,
        lambda: keeping.saver.unsaved,
        keeping.journal,
        keeping.letters,
        lives,
        siblings,
        _others(app),
    )


def _others(app: web.Application) -> Others | None:
    return Others(app[FLEET]) if FLEET in app else None


def _closing(directory: AgentDirectory) -> CleanupContext:
    async def close_at_the_end(_: web.Application) -> AsyncIterator[None]:
        yield
        await directory.close()

    return close_at_the_end


async def _drain(app: web.Application) -> None:
    await app[STREAMS].drain(app[CONFIG].value.server.drain_timeout_seconds)
    if (fleet := app.get(FLEET)) is not None:
        await fleet.mirrors.stop()


# --- what a reload changes --------------------------------------------------------------------


def _set_limit(app: web.Application, config: Config) -> None:
    app[STREAMS].limit = config.server.max_concurrent_streams


def _reconfigure_access(app: web.Application, config: Config) -> None:
    app[KEYRING].replace(config.auth.api_keys)
    app[ADMISSION].replace(config.limits, config.auth.api_keys)


def _replace_agents(app: web.Application, config: Config) -> None:
    app[DIRECTORY].replace(config.agents)
    app[DIRECTORY].prepare_soon()


def _changes(app: web.Application) -> Mapping[str, Callable[[Config], object]]:
    return {key: partial(change, app) for key, change in RELOADS.items()}


RELOADS: Mapping[str, Callable[[web.Application, Config], object]] = {
    # key or section → action; one that can fail comes first (see `service.settings.reload`)
    "admin.api_keys": lambda app, config: app[ADMINS].replace(config.admin.api_keys),
    "agents": _replace_agents,
    "auth": _reconfigure_access,
    "limits": _reconfigure_access,
    "logging": lambda _, config: configure_logging(config.logging),
    "server.max_concurrent_streams": _set_limit,
}
"""The keys whose change needs an action; the other reloadable keys are read when needed."""
