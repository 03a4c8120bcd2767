"""Defines the keys of an agent's `tools` and `context`: which tools it may call, and which files it is told.

Headers and environments hold secrets: they name variables of the environment (`${NAME}`), and no problem,
`repr` or print shows what else stands in them; see `SECRET`. Never here: what calls tools.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from attrs import field, frozen

from service.settings.checking import Allowed, Made, Problem, Unfit
from service.settings.kinds import Count, Name, Seconds, header_name, http_url

SECRET = (("agents", "tools", "servers", "headers"), ("agents", "tools", "servers", "env"))
"""Paths of keys at which and below which values are described and never shown."""

LONGEST_SERVER_NAME = 32
"""In characters: of the 64 that a function's name may have, a tool's own is left 30 at least."""

MOST_CONTEXT_BYTES = 1024 * 1024
"""Of an agent's files together. They are sent with each of its requests."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SHOWABLE = re.compile(r"(?:[A-Za-z]+ )?\$\{[A-Za-z_][A-Za-z0-9_]*\}")
"""A variable, at most with an authentication scheme's name before it."""

_server_name = Allowed(
    f"1 to {LONGEST_SERVER_NAME} letters, digits, - and single _ between them",
    lambda value: (
        len(value) <= LONGEST_SERVER_NAME
        and re.fullmatch(r"[A-Za-z0-9-]+(?:_[A-Za-z0-9-]+)*", value) is not None
    ),
)
_headers = Allowed(
    "a mapping of headers' names to texts of visible characters; ${NAME} takes one from the environment",
    lambda value: all(map(_is_header, value.items())),
)
_env = Allowed(
    "a mapping of variables' names to texts; ${NAME} takes one from the environment",
    lambda value: all(map(_is_variable, value.items())),
)
_context = Allowed(
    f"files of {MOST_CONTEXT_BYTES} bytes together, as they are sent with each request",
    lambda files: sum(len(file.text.encode()) for file in files) <= MOST_CONTEXT_BYTES,
)


def _is_header(item: tuple[Any, Any]) -> bool:
    name, value = item
    if not isinstance(name, str) or not isinstance(value, str):
        return False
    return header_name.rule(name) and re.fullmatch(r"[\x20-\x7e]+", value) is not None


def _is_variable(item: tuple[Any, Any]) -> bool:
    name, value = item
    if not isinstance(name, str) or not isinstance(value, str):
        return False
    return re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is not None and "\0" not in value


@frozen
class ToolServerConfig:
    """One MCP server, by its address or by the command that runs it.

    Attributes:
        headers: sent with each request; `env`: the variables of the command's process. `${NAME}` in their
            values stands for a variable of ours.
    """

    name: Annotated[str, _server_name]
    url: Annotated[Name, http_url] | None = field(default=None, repr=False)
    headers: Annotated[dict[str, Any], _headers] = field(factory=dict, repr=False)
    command: Name | None = None
    args: tuple[str, ...] = field(default=(), repr=False)
    env: Annotated[dict[str, Any], _env] = field(factory=dict, repr=False)
    allow: tuple[Name, ...] = ("*",)
    deny: tuple[Name, ...] = ()
    timeout_seconds: Seconds = 30.0
    max_result_bytes: Count = 256 * 1024


@frozen
class ToolsConfig:
    """Which tools an agent may call, and how; see `docs/configuration.md`."""

    builtin: tuple[Literal["clock", "dice"], ...] = ()
    servers: tuple[ToolServerConfig, ...] = ()
    allow_commands: bool = False
    max_turns: Count = 8
    concurrency: Count = 4
    on_error: Literal["tell_model", "stop"] = "tell_model"
    show: Literal["none", "field", "openwebui", "auto"] = "auto"
    show_detail: bool = False


@frozen
class ContextFile:
    """A file that an agent is told, as it was when the configuration was read."""

    path: str
    text: str = field(repr=False)


def _read_file(given: Any) -> ContextFile:
    allowed = "the path of a file that can be read, in UTF-8"
    if not isinstance(given, str) or not given:
        raise Unfit(given, allowed)
    try:
        with Path(given).open("rb") as file:
            data = file.read(MOST_CONTEXT_BYTES + 1)
        if len(data) > MOST_CONTEXT_BYTES:
            raise Unfit(given, f"a file of {MOST_CONTEXT_BYTES} bytes at most")
        return ContextFile(given, data.decode())
    except OSError as error:
        raise Unfit(given, f"{allowed} ({error.strerror})") from None
    except ValueError as error:  # not UTF-8, or no path
        raise Unfit(given, f"{allowed} ({type(error).__name__})") from None


Context = Annotated[tuple[Annotated[ContextFile, Made(_read_file)], ...], _context]
"""Paths in the file; here also what stands in them, so that a reload sees a file that changed."""


def instructions(preamble: str | None, context: Sequence[ContextFile]) -> str | None:
    """What an agent is told before all: its preamble, then its files in their order, a blank line between.
    None if there is neither."""
    texts = [] if preamble is None else [preamble]
    texts += [file.text for file in context]
    return "\n\n".join(texts) if texts else None


def variables(values: Mapping[str, str]) -> Iterator[str]:
    """The variables of the environment that headers, or those of a process, name, each as often as it is
    named."""
    for value in values.values():
        yield from _VARIABLE.findall(value)


def filled_in(values: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """The values with their variables filled in. Raises KeyError if one isn't set."""
    return {
        name: _VARIABLE.sub(lambda found: environ[found[1]], value)
        for name, value in values.items()
    }


def hidden(values: Mapping[str, str]) -> dict[str, str]:
    """The values as they may be printed: what isn't the name of a variable is masked."""
    return {name: value if _SHOWABLE.fullmatch(value) else "***" for name, value in values.items()}


def tools_problems(tools: ToolsConfig, path: str, source: str) -> list[Problem]:
    """What is wrong among the keys of an agent's tools.

    Args:
        path: of the agent's `tools`.
        source: the name of the place that they came from.
    """
    problems: list[Problem] = []
    names: list[str] = [*tools.builtin]
    for position, server in enumerate(tools.servers):
        one = f"{path}.servers[{position}]"
        if server.name in names:
            allowed = "a name used once, by no built-in tools either"
            problems.append(Problem(source, f"{one}.name", repr(server.name), allowed))
        names.append(server.name)
        if (server.url is None) == (server.command is None):
            found = "neither" if server.url is None else "both"
            problems.append(Problem(source, one, found, "either a url or a command"))
        if server.command is not None and not tools.allow_commands:
            allowed = f"no command, unless {path}.allow_commands is true"
            problems.append(Problem(source, f"{one}.command", "a command", allowed))
        problems += _misplaced(server, one, source)
    return problems


def _misplaced(server: ToolServerConfig, path: str, source: str) -> Iterator[Problem]:
    """Keys of the one way to reach a server, of one that is reached the other way."""
    if server.command is not None and server.headers:
        yield Problem(source, f"{path}.headers", "headers of a command", "env, for a command")
    if server.url is not None and (server.args or server.env):
        key = "args" if server.args else "env"
        yield Problem(source, f"{path}.{key}", f"{key} of a url", "headers, for a url")
