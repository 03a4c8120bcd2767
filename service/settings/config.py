"""Defines every key of the configuration, and reads it from YAML, the environment and flags.

Precedence: flags, environment, file, defaults. A value that doesn't fit is refused with its source,
its key path, what was found and what is allowed. `docs/configuration.md` describes every key; a
test compares. Never here: where a value is used.
"""

import ipaddress
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from attrs import Factory, asdict, evolve, field, frozen

from service.settings.access import (
    API_KEYS,
    SECRET,
    AuthConfig,
    LimitsConfig,
    key_problems,
    keys_from_environment,
)
from service.settings.admin import AdminConfig, MetricsConfig
from service.settings.checking import Allowed, ConfigError, Problem, Source, structure
from service.settings.checking import mask_password as mask_password  # for those who print one
from service.settings.file import dump_yaml, read_yaml
from service.settings.fleet import FleetConfig
from service.settings.kinds import (
    Count,
    HeaderName,
    Name,
    Port,
    Seconds,
    above_0,
    from_0,
    http_url,
)
from service.settings.readers import IdempotencyConfig, ReadersConfig
from service.settings.tools import SECRET as TOOLS_SECRET
from service.settings.tools import Context, ContextFile, ToolsConfig, hidden, tools_problems
from statemachine import ClientGone
from statemachine.endings import CUT_OFF_REASONS


@frozen
class ServerConfig:
    host: Name = "127.0.0.1"
    port: Port = 8000
    workers: Count = 1
    max_body_bytes: Count = 10 * 1024 * 1024
    max_body_values: Count = 100_000
    max_concurrent_streams: Count = 2000
    request_timeout_seconds: Seconds = 60.0
    idle_timeout_seconds: Seconds = 75.0
    drain_timeout_seconds: Annotated[float, from_0] = 30.0
    cors_origins: tuple[Name, ...] = ()
    allowed_hosts: tuple[Name, ...] = ()
    conversation_headers: tuple[HeaderName, ...] = (
        "X-OpenWebUI-Chat-Id",
        "X-Conversation-Id",
        "X-Session-Id",
    )


@frozen
class SseConfig:
    keep_alive_interval_seconds: Seconds = 15.0
    send_timeout_seconds: Seconds = 60.0


@frozen
class DatabaseConfig:
    url: Annotated[
        Name,
        Allowed(
            "'embedded' or a postgresql:// URL",
            lambda value: value == "embedded" or value.startswith(("postgresql://", "postgres://")),
        ),
    ] = "embedded"
    data_dir: Name = "var/postgres"
    pool_max_size: Count = 10
    commit_timeout_seconds: Seconds = 2.0


@frozen
class JournalConfig:
    directory: Name | None = "var/journal"
    fsync: Literal["never", "terminal", "always"] = "never"
    max_bytes: Count = 1024 * 1024 * 1024


@frozen
class Timeouts:
    """Deadlines of one agent, in seconds; see `docs/configuration.md`."""

    connect_seconds: Seconds = 5.0
    first_token_seconds: Seconds = 60.0
    idle_seconds: Seconds = 60.0
    total_seconds: Seconds = 600.0


@frozen
class CircuitConfig:
    """When an agent that is down isn't asked for a while; see `docs/configuration.md`."""

    failures: Count = 5
    pause_seconds: Seconds = 1.0
    longest_pause_seconds: Seconds = 30.0


@frozen
class ScriptedAgentConfig:
    """The built-in agent: answers with `reply`, or with an introduction, word by word."""

    name: Name
    kind: Literal["scripted"]
    models: tuple[Name, ...] = ()
    reply: str | None = None
    tokens_per_second: Annotated[float, above_0] = 30.0
    first_token_delay_seconds: Annotated[float, from_0] = 0.0
    fail_after_tokens: Annotated[int, from_0] | None = None
    fail_with: Literal["reset", "stall", "error", "truncate", "malformed"] = "error"
    tools: ToolsConfig | None = None
    timeouts: Timeouts = Timeouts()
    retries: Annotated[int, from_0] = 0
    fallbacks: tuple[Name, ...] = ()
    client_gone: ClientGone | None = None
    max_event_bytes: Count = 8 * 1024 * 1024


@frozen
class OpenAIAgentConfig:
    """Any OpenAI-compatible backend."""

    name: Name
    kind: Literal["openai"]
    base_url: Annotated[Name, http_url] = "https://api.openai.com/v1"
    api_key_env: Name | None = "OPENAI_API_KEY"
    models: tuple[Name, ...] = ("*",)
    preamble: str | None = None
    context: Context = ()
    parameters: dict[str, Any] = field(factory=dict)
    tools: ToolsConfig | None = None
    timeouts: Timeouts = Timeouts()
    retries: Annotated[int, from_0] = 2
    circuit: CircuitConfig | None = CircuitConfig()
    fallbacks: tuple[Name, ...] = ()
    client_gone: ClientGone | None = None
    max_event_bytes: Count = 8 * 1024 * 1024
    cut_off_reasons: tuple[Name, ...] = CUT_OFF_REASONS


AgentConfig = ScriptedAgentConfig | OpenAIAgentConfig


def _default_agents() -> tuple[AgentConfig, ...]:
    return (
        ScriptedAgentConfig(
            name="demo", kind="scripted", tools=ToolsConfig(builtin=("clock", "dice"))
        ),
        OpenAIAgentConfig(name="openai", kind="openai"),
    )


@frozen
class LoggingConfig:
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


@frozen
class Config:
    """Everything that an operator may set, checked. It holds no API key: backends' keys stay in the
    environment, and callers' keys are hashed."""

    server: ServerConfig = ServerConfig()
    sse: SseConfig = SseConfig()
    client_gone: ClientGone = ClientGone.CANCEL
    client_gone_wait_seconds: Seconds = 30.0
    client_gone_header: Literal["allow", "ignore"] = "allow"
    readers: ReadersConfig = Factory(ReadersConfig)
    idempotency: IdempotencyConfig = Factory(IdempotencyConfig)
    database: DatabaseConfig = DatabaseConfig()
    journal: JournalConfig = JournalConfig()
    agents: tuple[AgentConfig, ...] = Factory(_default_agents)
    auth: AuthConfig = Factory(AuthConfig)
    limits: LimitsConfig = Factory(LimitsConfig)
    admin: AdminConfig = Factory(AdminConfig)
    metrics: MetricsConfig = Factory(MetricsConfig)
    fleet: FleetConfig = Factory(FleetConfig)
    logging: LoggingConfig = LoggingConfig()


RELOADABLE = (
    "admin.api_keys",
    "agents",
    "auth",
    "client_gone",
    "client_gone_header",
    "client_gone_wait_seconds",
    "database.commit_timeout_seconds",
    "idempotency",
    "limits",
    "logging",
    "readers",
    "server.conversation_headers",
    "server.drain_timeout_seconds",
    "server.max_body_values",
    "server.max_concurrent_streams",
    "sse",
)
"""Keys, and whole sections, that take effect without a restart: a part either reads the key each
time it needs it (`service.settings.live`) or is told when it changes (`service.app.RELOADS`)."""

_ENVIRONMENT: Mapping[str, tuple[str, ...]] = {
    "DATABASE_URL": ("database", "url"),
    "JOURNAL_DIR": ("journal", "directory"),
    "SSE_KEEP_ALIVE_INTERVAL": ("sse", "keep_alive_interval_seconds"),
    "FLEET_URL": ("fleet", "url"),
    "LOG_FORMAT": ("logging", "format"),
}
"""Environment variable → key. Two are handled apart: `OPENAI_BASE_URL` belongs to agents, and the
keys of `API_KEYS` are hashed."""
_NUMBERS = frozenset(("SSE_KEEP_ALIVE_INTERVAL",))


def load_config(
    path: Path | None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[tuple[str, ...], Any] | None = None,
) -> Config:
    """Read and check the configuration.

    Args:
        path: the YAML file; None: defaults alone.
        environ: the environment; the process's if not given. Empty values count as unset.
        flags: key path → value, from the command line.

    Raises:
        ConfigError: with every problem found, one per line.
    """
    environ = os.environ if environ is None else environ
    tree = {} if path is None else read_yaml(path)
    sources: dict[tuple[str, ...], Source] = {}
    for name, keys in _ENVIRONMENT.items():
        if environ.get(name):
            _set(tree, keys, environ[name])
            is_number = name in _NUMBERS
            sources[keys] = Source(f"environment variable {name}", is_number=is_number)
    if environ.get("API_KEYS"):
        _set(tree, ("auth", "api_keys"), keys_from_environment(environ["API_KEYS"]))
        sources["auth", "api_keys"] = Source(API_KEYS)
    for keys, value in (flags or {}).items():
        _set(tree, keys, value)
        sources[keys] = Source("command line")
    file = str(path or "defaults")
    config = structure(tree, Config, file=file, sources=sources, secret=SECRET + TOOLS_SECRET)
    if environ.get("OPENAI_BASE_URL"):
        config = _with_base_url(config, environ["OPENAI_BASE_URL"])
    check_together(config, file, sources)
    return config


def dump_config(config: Config) -> str:
    """The configuration in force as YAML, for `--print-config`.

    Passwords and tokens in URLs are masked, and so are the hashes of keys: a key that a person made up can be
    guessed from its hash.
    """
    tree = asdict(config, value_serializer=lambda _instance, _attribute, value: _plain(value))
    tree["database"]["url"] = mask_password(tree["database"]["url"])
    if tree["fleet"]["url"]:
        tree["fleet"]["url"] = mask_password(tree["fleet"]["url"])
    for agent in tree["agents"]:
        if "base_url" in agent:
            agent["base_url"] = mask_password(agent["base_url"])
        for server in (agent["tools"] or {}).get("servers", ()):
            server.update(headers=hidden(server["headers"]), env=hidden(server["env"]))
            server["url"] = server["url"] and mask_password(server["url"])
    for key in (*tree["auth"]["api_keys"], *tree["admin"]["api_keys"]):
        key.update({name: "***" for name in ("sha256", "old_sha256") if key[name]})
    return dump_yaml(tree)


def is_loopback(host: str) -> bool:
    """True if a listener on `host` can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _set(tree: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    *parents, last = keys
    for key in parents:
        below = tree.get(key)
        if below is None:
            below = tree[key] = {}
        if not isinstance(below, dict):
            return  # an error of the file, reported when the tree is structured
        tree = below
    tree[last] = value


def _with_base_url(config: Config, base_url: str) -> Config:
    """Give the agents whose key is `OPENAI_API_KEY` this address, as users of the SDK expect."""
    if not http_url.rule(base_url):
        source, found = "environment variable OPENAI_BASE_URL", repr(mask_password(base_url))
        raise ConfigError([Problem(source, "", found, http_url.words)])
    agents = tuple(
        evolve(agent, base_url=base_url)
        if isinstance(agent, OpenAIAgentConfig) and agent.api_key_env == "OPENAI_API_KEY"
        else agent
        for agent in config.agents
    )
    return evolve(config, agents=agents)


def check_together(config: Config, file: str, sources: Mapping[tuple[str, ...], Source]) -> None:
    """Check what concerns several keys together. Raises ConfigError."""
    problems: list[Problem] = []
    names = [agent.name for agent in config.agents]
    for position, agent in enumerate(config.agents):
        path = f"agents[{position}]"
        if names.index(agent.name) != position:
            problems.append(Problem(file, f"{path}.name", repr(agent.name), "a name used once"))
        if isinstance(agent, OpenAIAgentConfig) and (why := _unusable(agent.parameters)):
            problems.append(Problem(file, f"{path}.parameters", why[0], why[1]))
        if agent.tools is not None:
            problems += tools_problems(agent.tools, f"{path}.tools", file)
        for fallback in agent.fallbacks:
            if fallback not in names or fallback == agent.name:
                others = ", ".join(name for name in names if name != agent.name) or "nothing"
                problems.append(Problem(file, f"{path}.fallbacks", repr(fallback), others))
    if not config.agents:
        problems.append(Problem(file, "agents", "no agent", "at least one agent"))
    keys = config.auth.api_keys
    owners: dict[bytes, str] = {}
    source = sources.get(("auth", "api_keys"), Source(file)).name
    problems += key_problems(keys, "auth.api_keys", source, owners)
    problems += key_problems(config.admin.api_keys, "admin.api_keys", file, owners)
    if config.fleet.url and config.journal.directory is None:
        allowed = "a directory, as what other replicas are told is the journal's"
        problems.append(Problem(file, "journal.directory", "null", allowed))
    if not is_loopback(config.server.host) and not keys:
        problems.append(
            Problem(
                sources.get(("server", "host"), Source(file)).name,
                "server.host",
                repr(config.server.host),
                "a loopback address such as 127.0.0.1, as no caller is asked for a key; for any "
                "other, make one (make key NAME=somebody) and list it in auth.api_keys",
            )
        )
    if problems:
        raise ConfigError(problems)


def _unusable(parameters: Mapping[str, Any]) -> tuple[str, str] | None:
    """Why no request could carry these parameters, as found and allowed; or None."""
    if not isinstance(parameters.get("stream_options"), (dict, type(None))):
        return "stream_options that are no mapping", "stream_options: {include_usage: false}"
    try:
        json.dumps(parameters)
    except (TypeError, ValueError) as error:
        return str(error), "what JSON can say"
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, ContextFile):
        return value.path
    return str(value) if isinstance(value, ClientGone) else value
