"""Logs for operators: structlog's set-up, the canonical line, request and trace ids.

Never here: message text, keys. Every line of a request carries its `request_id` and `trace_id`
through structlog's context variables, which the relay's task inherits.
"""

import io
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from attrs import frozen

from service.ids import random_hex
from service.settings.config import LoggingConfig

log = structlog.get_logger(__name__)

_TRACEPARENT = re.compile(r"^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$")
_PLAIN = structlog.dev.plain_traceback
"""Without local variables, which structlog's default shows where rich is installed: they hold
message text and keys."""
_REQUEST_ID = re.compile(r"^[A-Za-z0-9._:-]{1,128}$")


@frozen
class Trace:
    """A W3C trace context: the trace's 32 hex digits, this service's span's 16, two of flags.

    Attributes:
        parent_id: the caller's span, 16 hex digits; None for a trace that begins here.
        is_recorded: spans are made of the request, so each attempt has one of its own.
    """

    trace_id: str
    span_id: str
    flags: str = "01"
    parent_id: str | None = None
    is_recorded: bool = False

    @property
    def traceparent(self) -> str:
        """The header that makes an upstream's spans children of this service's."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"

    def name_attempt(self) -> str:
        """A `traceparent` that names a new span of this trace."""
        return f"00-{self.trace_id}-{random_hex(16)}-{self.flags}"


REQUEST_ID = web.RequestKey("request_id", str)
TRACE = web.RequestKey("trace", Trace)
ARRIVED_AT = web.RequestKey("arrived_at", float)
"""When its head had come, on the monotonic clock."""
COMPLETION_ID = web.RequestKey("completion_id", str)
"""Of the completion that a request is about, once that is known."""
REPLAYED = web.RequestKey("replayed", bool)
"""True of a request that gets the answer to an earlier one."""
FIRST_TRACE_ID = web.RequestKey("first_trace_id", str)
"""Of the request that asked for what this one reads."""


def adopt_trace(header: str | None) -> Trace:
    """Join the trace of a valid `traceparent` (W3C Trace Context, level 1), else begin a trace."""
    match = _TRACEPARENT.match(header.strip()) if header else None
    if match is not None:
        span_id = random_hex(16)
        version, trace_id, parent_id, flags, rest = match.groups()
        zeros = set(trace_id) == {"0"} or set(parent_id) == {"0"}
        if version != "ff" and not zeros and not (version == "00" and rest):
            sampled = int(flags, 16) & 1  # the only flag of version 00, which is sent on
            return Trace(trace_id, span_id, f"{sampled:02}", parent_id)
    new = random_hex(48)
    return Trace(new[:32], new[32:])


def configure_logging(config: LoggingConfig, stream: TextIO | None = None) -> None:
    """Send every log line, also those of libraries, to `stream` (standard output if None).

    `format: auto` means pretty on a terminal, one JSON object per line otherwise. A line that
    can't be written is lost; nothing is raised.
    """
    stream = stream or sys.stdout
    sink = _Sink(stream)
    writer = structlog.WriteLogger(sink)  # type: ignore[arg-type]  # it has write and flush
    pretty = config.format == "console" or (config.format == "auto" and stream.isatty())
    level = logging.getLevelName(config.level.upper())
    shared, renderer = _processors(stream, pretty)
    processors = [*shared, *renderer]
    global _json
    _json = None if pretty else _Json(sink, level, processors)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sink)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)


def _processors(
    stream: TextIO, pretty: bool
) -> tuple[list[structlog.typing.Processor], list[structlog.typing.Processor]]:
    """What each line passes: first what lines of libraries pass too, then what makes a text of it."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _begin_line_locally if pretty else _begin_line,
    ]
    if pretty:
        renderer: list[structlog.typing.Processor] = [
            _escape_unprintable,
            structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=_PLAIN),
        ]
    else:
        renderer = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_json_text, default=str),
        ]
    return shared, renderer


@frozen
class _Json:
    """Where lines of JSON go, as long as these processors are structlog's.

    Attributes:
        level: that of the least grave lines that are written.
    """

    sink: "_Sink"
    level: int
    processors: list[structlog.typing.Processor]


_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_json: _Json | None = None
"""None while lines are pretty."""


def write_line(method: str, event: str, fields: Mapping[str, Any]) -> None:
    """Log what `log.info(event, **fields)` logs, or another method. Where lines are JSON it does so past
    structlog's chain of calls, which takes a fortieth of a short request; that is for a line that
    every request has."""
    direct = _json
    if direct is None or structlog.get_config()["processors"] is not direct.processors:
        getattr(log, method)(event, **fields)
    elif _LEVELS[method] >= direct.level:
        line = _begin_line(None, method, {"event": event, **fields})
        for name, value in structlog.contextvars.get_contextvars().items():
            line.setdefault(name, value)
        direct.sink.write(_json_text(line, str) + "\n")
        direct.sink.flush()


class _Sink:
    """A stream that never raises. A full disk, a closed pipe or half a character in a client's
    model name must not stop the code that logs, least of all on the way to saving an answer."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except (OSError, ValueError):
            pass

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            pass


def _escape_unprintable(
    _logger: Any, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Escape control characters: on a console, a client's text must not begin a line or control the
    terminal."""
    return {
        key: "".join(map(_printable, value)) if isinstance(value, str) else value
        for key, value in event.items()
    }


def _printable(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


def _json_text(event: structlog.typing.EventDict, default: Callable[[Any], Any]) -> str:
    """One line of JSON in ASCII: some terminals and line readers stumble over other characters.

    The standard library escapes those; it takes five times as long as orjson, which does the rest.
    """
    try:
        line = orjson.dumps(event, default=default)
    except TypeError:  # half a character in a client's model name
        return json.dumps(event, default=default)
    return line.decode("ascii") if line.isascii() else json.dumps(event, default=default)


def _begin_line(
    _logger: Any, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Put time, level and event first, for people who read JSON. One processor instead of three of
    structlog's, since every request logs a line."""
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return {"timestamp": now, "level": method, "event": event.pop("event", None), **event}


def _begin_line_locally(
    logger: Any, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """The same, in local time."""
    return {**_begin_line(logger, method, event), "timestamp": datetime.now().isoformat()}


@web.middleware
async def telemetry_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request its ids, and bind them to every line that is logged for it."""
    given = request.headers.get("X-Request-Id", "")
    request_id = given if _REQUEST_ID.match(given) else f"req_{random_hex(24)}"
    trace = adopt_trace(request.headers.get("traceparent"))
    request[ARRIVED_AT] = time.monotonic()
    request[REQUEST_ID] = request_id
    request[TRACE] = trace
    # A connection's requests share a context; nobody binds more than this, which replaces the last's.
    structlog.contextvars.bind_contextvars(request_id=request_id, trace_id=trace.trace_id)
    return await handler(request)


async def add_id_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Put the ids on every response, streams and errors included."""
    if REQUEST_ID in request:
        response.headers["x-request-id"] = request[REQUEST_ID]
        response.headers["x-trace-id"] = request[TRACE].trace_id
    if COMPLETION_ID in request:
        response.headers["x-completion-id"] = request[COMPLETION_ID]
        if REPLAYED in request:
            response.headers["Idempotency-Replayed"] = "true"
