"""The composition root: the only file that knows everybody.

`build_app` wires the parts and says in which order they start; they stop in the opposite order:
streams are drained first, then records are flushed, then the database closes.
"""

import os
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial

import structlog
from aiohttp import web

from db.journal import NoJournal
from db.store import Store
from service.agents.directory import AgentDirectory
from service.callers.auth import Keyring, require_key
from service.callers.charging import Charging
from service.callers.limits import Admission
from service.clock import Clock, steady_clock
from service.edge.connections import continue_later
from service.edge.cors import cors
from service.edge.errors import errors_middleware
from service.endpoints.completions import Completions
from service.endpoints.conversations import Conversations
from service.endpoints.openapi import OpenApi
from service.endpoints.probes import Readiness, healthz
from service.endpoints.stored import StoredCompletions
from service.persistence import (
    JOURNAL,
    SAVER,
    STORE,
    CleanupContext,
    database,
    database_check,
    given_store,
    journal,
    journal_check,
    saver,
)
from service.settings.config import RELOADABLE, Config, is_loopback
from service.settings.live import Live
from service.settings.reload import Reloader
from service.stream.moments import Watchers
from service.stream.running import RunningStreams
from service.telemetry import (
    CompletionLog,
    add_id_headers,
    configure_logging,
    telemetry_middleware,
)

log = structlog.get_logger(__name__)

CONFIG: web.AppKey[Live[Config]] = web.AppKey("config")
DIRECTORY = web.AppKey("directory", AgentDirectory)
KEYRING = web.AppKey("keyring", Keyring)
ADMISSION = web.AppKey("admission", Admission)
STREAMS = web.AppKey("streams", RunningStreams)
COMPLETIONS = web.AppKey("completions", Completions)
STORED = web.AppKey("stored", StoredCompletions)
CONVERSATIONS = web.AppKey("conversations", Conversations)
READINESS = web.AppKey("readiness", Readiness)
RELOADER = web.AppKey("reloader", Reloader)


def build_app(
    config: Config,
    *,
    environ: Mapping[str, str] | None = None,
    store: Store | None = None,
    directory: AgentDirectory | None = None,
    clock: Clock | None = None,
) -> web.Application:
    """The application, ready for a `service.edge.connections.Runner`.

    Args:
        config: what operators set.
        environ: where agents' keys are; the process's environment if not given.
        store, directory, clock: parts to use instead of those that `config` describes.

    Starting it raises `db.embedded.EmbeddedUnavailable` if the embedded PostgreSQL is asked for
    and can't be had. A database that can't be reached doesn't stop it: the service streams, says
    in `/readyz` that it isn't ready, and saves what waits once the database is there.
    """
    app = _with_middlewares(config)
    changes = {key: partial(change, app) for key, change in RELOADS.items()}
    app[RELOADER] = Reloader(app[CONFIG], RELOADABLE, changes)
    environ = os.environ if environ is None else environ
    app.cleanup_ctx.extend(
        (
            given_store(store) if store is not None else database(config.database),
            journal(config.journal),
            saver(config.journal),
            _given_directory(directory) if directory is not None else _configured_agents(environ),
            _endpoints(clock or steady_clock()),
        )
    )
    app.on_shutdown.append(_drain)
    _add_routes(app)
    return app


def _with_middlewares(config: Config) -> web.Application:
    """An application that has what every request passes, and nothing else."""
    keys = Keyring(config.auth.api_keys, is_required=not is_loopback(config.server.host))
    admission = Admission(config.limits, config.auth.api_keys)
    middlewares = [telemetry_middleware, errors_middleware, require_key(keys)]
    answer_preflight, mark_origin = cors(config.server.cors_origins)
    if config.server.cors_origins:
        middlewares.insert(1, answer_preflight)
    app = web.Application(middlewares=middlewares, client_max_size=config.server.max_body_bytes)
    app.on_response_prepare.extend((add_id_headers, admission.add_headers))
    if config.server.cors_origins:
        app.on_response_prepare.append(mark_origin)
    app[CONFIG] = Live(config)
    app[KEYRING] = keys
    app[ADMISSION] = admission
    app[STREAMS] = RunningStreams(config.server.max_concurrent_streams)
    return app


# --- the parts, in the order in which they start ----------------------------------------------


def _given_directory(directory: AgentDirectory) -> CleanupContext:
    async def give(app: web.Application) -> AsyncIterator[None]:
        app[DIRECTORY] = directory
        yield

    return give


def _configured_agents(environ: Mapping[str, str] | None) -> CleanupContext:
    async def make(app: web.Application) -> AsyncIterator[None]:
        keys = os.environ if environ is None else environ
        directory = app[DIRECTORY] = AgentDirectory.from_config(app[CONFIG].value.agents, keys)
        yield
        await directory.close()

    return make


async def _drain(app: web.Application) -> None:
    await app[STREAMS].drain(app[CONFIG].value.server.drain_timeout_seconds)


# --- what a reload changes --------------------------------------------------------------------


def _set_limit(app: web.Application, config: Config) -> None:
    app[STREAMS].limit = config.server.max_concurrent_streams


def _reconfigure_access(app: web.Application, config: Config) -> None:
    app[KEYRING].replace(config.auth.api_keys)
    app[ADMISSION].replace(config.limits, config.auth.api_keys)


RELOADS: Mapping[str, Callable[[web.Application, Config], object]] = {
    # key or section → what to do; whoever can fail comes first (see `service.settings.reload`)
    "agents": lambda app, config: app[DIRECTORY].replace(config.agents),
    "auth": _reconfigure_access,
    "limits": _reconfigure_access,
    "logging": lambda _, config: configure_logging(config.logging),
    "server.max_concurrent_streams": _set_limit,
}
"""The keys whose change asks for more than reading the configuration in force."""


# --- the endpoints ----------------------------------------------------------------------------


def _endpoints(clock: Clock) -> CleanupContext:
    async def make(app: web.Application) -> AsyncIterator[None]:
        kept, writer, charging = app[JOURNAL], app[SAVER], Charging()
        app[COMPLETIONS] = Completions(
            app[CONFIG],
            app[DIRECTORY],
            app[STREAMS],
            app[ADMISSION],
            writer,
            NoJournal() if kept is None else kept,
            clock,
            Watchers((CompletionLog(), charging)),
            charging,
        )
        app[STORED] = StoredCompletions(app[STORE], app[CONFIG])
        app[CONVERSATIONS] = Conversations(app[STORE])
        checks = {"database": database_check(app[STORE])}
        if kept is not None:
            checks["journal"] = journal_check(kept)
        app[READINESS] = Readiness(app[STREAMS], checks, lambda: writer.unsaved)
        yield

    return make


def _add_routes(app: web.Application) -> None:
    async def create_completion(request: web.Request) -> web.StreamResponse:
        return await request.app[COMPLETIONS].create(request)

    async def cancel_completion(request: web.Request) -> web.Response:
        return await request.app[COMPLETIONS].cancel(request)

    async def list_models(request: web.Request) -> web.Response:
        models = await request.app[DIRECTORY].models()
        return web.json_response({"object": "list", "data": models})

    async def stored(request: web.Request) -> web.Response:
        return await request.app[STORED].answer(request)

    async def conversations(request: web.Request) -> web.Response:
        return await request.app[CONVERSATIONS].answer(request)

    async def readyz(request: web.Request) -> web.Response:
        return await request.app[READINESS].readyz(request)

    app.add_routes(
        [
            web.post("/v1/chat/completions", create_completion, expect_handler=continue_later),
            web.post("/v1/chat/completions/{completion_id}/cancel", cancel_completion),
            web.get("/v1/chat/completions", stored),
            web.get("/v1/chat/completions/{completion_id}", stored),
            web.post("/v1/chat/completions/{completion_id}", stored, expect_handler=continue_later),
            web.delete("/v1/chat/completions/{completion_id}", stored),
            web.get("/v1/chat/completions/{completion_id}/messages", stored),
            web.get("/v1/conversations", conversations),
            web.get("/v1/conversations/{conversation_id}", conversations),
            web.get("/v1/models", list_models),
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/openapi.json", OpenApi().answer),
        ]
    )
