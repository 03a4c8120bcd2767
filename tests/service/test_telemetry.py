"""What operators see: trace and request ids, log lines, the canonical line's fields."""

import io
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import TestClient
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from service.completion_log import CompletionLog, completion_fields
from service.edge.errors import errors_middleware
from service.settings.config import LoggingConfig
from service.telemetry import (
    REQUEST_ID,
    TRACE,
    Trace,
    add_id_headers,
    adopt_trace,
    configure_logging,
    telemetry_middleware,
    write_line,
)
from statemachine import (
    ChunkReceived,
    Event,
    Failure,
    Save,
    SessionPolicy,
    SessionRecord,
    StreamSession,
    UpstreamFailed,
    UpstreamFinished,
)
from tests.statemachine.conftest import asked, finish_chunk, text_chunk

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"


# --- traces ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "flags"),
    [
        (f"00-{TRACE_ID}-{PARENT_ID}-01", "01"),
        (f"00-{TRACE_ID}-{PARENT_ID}-00", "00"),
        (f"  00-{TRACE_ID}-{PARENT_ID}-01 ", "01"),
        (f"01-{TRACE_ID}-{PARENT_ID}-01", "01"),
        (f"cc-{TRACE_ID}-{PARENT_ID}-01-what-the-future-will-be-like", "01"),
        (f"cc-{TRACE_ID}-{PARENT_ID}-01-", "01"),
        (f"00-{TRACE_ID}-{PARENT_ID}-ff", "01"),
        (f"00-{TRACE_ID}-{PARENT_ID}-02", "00"),
    ],
)
def test_valid_traces_are_joined(header: str, flags: str) -> None:
    """The caller's trace id and its sampling flag go on, under a span of our own; flags that
    version 00 doesn't know are cleared, as W3C Trace Context 3.2.2.5.2 demands."""
    trace = adopt_trace(header)
    assert (trace.trace_id, trace.flags) == (TRACE_ID, flags)
    assert trace.span_id != PARENT_ID
    assert trace.traceparent == f"00-{TRACE_ID}-{trace.span_id}-{flags}"


def test_a_joined_trace_knows_its_parent_and_names_attempts() -> None:
    """Each attempt's `traceparent` is new, of the same trace, under the same flag; a trace that begins
    here has no parent."""
    trace = adopt_trace(f"00-{TRACE_ID}-{PARENT_ID}-00")
    assert PARENT_ID == trace.parent_id
    assert adopt_trace(None).parent_id is None
    first, second = trace.name_attempt(), trace.name_attempt()
    assert first != second
    for header in (first, second):
        named = adopt_trace(header)
        assert (TRACE_ID, "00") == (named.trace_id, named.flags)
        assert named.parent_id not in (None, trace.span_id, PARENT_ID)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "00",
        f"00-{TRACE_ID.upper()}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{PARENT_ID.upper()}-01",
        f"0A-{TRACE_ID}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{PARENT_ID}-0A",
        f"00-{'0' * 32}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"ff-{TRACE_ID}-{PARENT_ID}-01",
        f"ff-{TRACE_ID}-{PARENT_ID}-01-more",
        f"00-{TRACE_ID}-{PARENT_ID}-01-more",
        f"00-{TRACE_ID}-{PARENT_ID}-01-",
        f"01-{TRACE_ID}-{PARENT_ID}-01what",
        f"00-{TRACE_ID}-{PARENT_ID}",
        f"00-{TRACE_ID}-{PARENT_ID}-",
        f"00-{TRACE_ID}-{PARENT_ID}-1",
        f"0-{TRACE_ID}-{PARENT_ID}-01",
        f"00-{TRACE_ID[1:]}-{PARENT_ID}-01",
        f"00-{TRACE_ID}0-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{PARENT_ID[1:]}-01",
        f"00-g{TRACE_ID[1:]}-{PARENT_ID}-01",
        f"00_{TRACE_ID}_{PARENT_ID}_01",
        f"00-{TRACE_ID}-{PARENT_ID}-01\n00-{TRACE_ID}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{PARENT_ID}-01,00-{TRACE_ID}-{PARENT_ID}-01",
        f"00-{'٣' * 32}-{PARENT_ID}-01",
    ],
)
def test_invalid_traces_begin_a_new_one(header: str | None) -> None:
    """What isn't a `traceparent` to the letter begins a trace of our own, sampled."""
    trace = adopt_trace(header)
    assert trace.trace_id != TRACE_ID
    assert adopt_trace(trace.traceparent).trace_id == trace.trace_id
    assert "01" == trace.flags


@given(st.text(max_size=80))
def test_any_header_leads_to_a_valid_trace(header: str) -> None:
    """Whatever a caller sends, what we send on is valid."""
    trace = adopt_trace(header)
    assert adopt_trace(trace.traceparent).trace_id == trace.trace_id


def test_spans_and_traces_are_new_each_time() -> None:
    """Two requests of one trace have spans of their own; two without a trace, traces too."""
    header = f"00-{TRACE_ID}-{PARENT_ID}-01"
    assert adopt_trace(header).span_id != adopt_trace(header).span_id
    assert adopt_trace(None).trace_id != adopt_trace(None).trace_id


# --- requests -------------------------------------------------------------------------------------

GetIds = Callable[..., Any]


@pytest.fixture
async def client(aiohttp_client: Any) -> TestClient[web.Request, web.Application]:
    """A client of a service that answers with what its handlers can see of the ids."""

    async def show(request: web.Request) -> web.Response:
        bound = structlog.contextvars.get_contextvars()
        trace = request[TRACE]
        return web.json_response(
            {"request_id": request[REQUEST_ID], "traceparent": trace.traceparent, "bound": bound}
        )

    app = web.Application(middlewares=[telemetry_middleware, errors_middleware])
    app.on_response_prepare.append(add_id_headers)
    app.router.add_get("/", show)
    client: TestClient[web.Request, web.Application] = await aiohttp_client(app)
    return client


@pytest.mark.parametrize("request_id", ["a", "req_1", "2f:x.y-Z_9", "x" * 128])
async def test_loggable_request_ids_are_adopted(client: Any, request_id: str) -> None:
    """A caller's id that can stand in a log line is kept, and comes back."""
    response = await client.get("/", headers={"X-Request-Id": request_id})
    assert response.headers["x-request-id"] == request_id
    assert (await response.json())["request_id"] == request_id


@pytest.mark.parametrize(
    "request_id", ["", " ", "a b", 'a"b', "é", "x" * 129, "a,b", "<b>", "\ta;b"]
)
async def test_other_request_ids_are_replaced(client: Any, request_id: str) -> None:
    """An id that can't stand in a log line is replaced by a new one."""
    response = await client.get("/", headers={"X-Request-Id": request_id})
    ours = response.headers["x-request-id"]
    assert ours.startswith("req_")
    assert 28 == len(ours)
    assert (await response.json())["request_id"] == ours


async def test_request_ids_differ(client: Any) -> None:
    """Requests without an id get one each."""
    first, second = await client.get("/"), await client.get("/")
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


async def test_both_ids_are_in_every_line_and_response(client: Any) -> None:
    """Every line logged for a request carries both ids, and every response names them."""
    header = f"00-{TRACE_ID}-{PARENT_ID}-01"
    response = await client.get("/", headers={"traceparent": header, "X-Request-Id": "r"})
    body = await response.json()
    assert {"request_id": "r", "trace_id": TRACE_ID} == body["bound"]
    assert body["traceparent"].startswith(f"00-{TRACE_ID}-")
    assert TRACE_ID == response.headers["x-trace-id"]


async def test_errors_carry_the_ids(client: Any) -> None:
    """Answers that no handler made carry both ids, too."""
    response = await client.get("/nowhere", headers={"X-Request-Id": "r"})
    assert 404 == response.status
    assert "r" == response.headers["x-request-id"]
    assert 32 == len(response.headers["x-trace-id"])


# --- log lines ------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Leave structlog and the root logger as they were found."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # else they would be closed
    was_configured, before = structlog.is_configured(), structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()
    if was_configured:
        structlog.configure(**before)


def configured(
    stream: io.StringIO | None = None, level: str = "info", format: str = "json"
) -> io.StringIO:
    stream = io.StringIO() if stream is None else stream
    configure_logging(LoggingConfig(level=level, format=format), stream)  # type: ignore[arg-type]
    return stream


def json_lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


ODD_TEXTS = ["two\nlines", "\x1b[31mred", '"quoted"', "Grüße 🙂", "nul \x00", "a\u2028b", "\ud800"]


def test_a_json_line_begins_with_time_level_and_event() -> None:
    """An event is one JSON object that begins with when, how grave and what."""
    stream = configured()
    structlog.get_logger("x").warning("it happened", agent="demo", count=2, ratio=0.5, nothing=None)
    (line,) = json_lines(stream)
    assert ["timestamp", "level", "event", "agent", "count", "ratio", "nothing"] == list(line)
    assert line["timestamp"].endswith("Z")
    del line["timestamp"]
    assert {
        "level": "warning",
        "event": "it happened",
        "agent": "demo",
        "count": 2,
        "ratio": 0.5,
        "nothing": None,
    } == line


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_text_stays_on_its_json_line(text: str) -> None:
    """Whatever is in a value, the line is one line and the value comes back."""
    stream = configured()
    structlog.get_logger().info("it happened", model=text)
    assert 1 == stream.getvalue().count("\n")
    assert json_lines(stream)[0]["model"] == text


def test_a_value_that_is_no_json_is_logged_as_text() -> None:
    """A value that JSON doesn't know is shown as text."""
    stream = configured()
    structlog.get_logger().info("it happened", path=io.StringIO, error=ValueError("no"))
    (line,) = json_lines(stream)
    assert ("<class '_io.StringIO'>", "no") == (line["path"], line["error"])


def test_a_traceback_is_a_field_of_its_json_line() -> None:
    """A traceback is a field of its line."""
    stream = configured()
    try:
        raise ZeroDivisionError("of course")
    except ZeroDivisionError:
        structlog.get_logger().exception("it broke")
    (line,) = json_lines(stream)
    assert "error" == line["level"]
    assert line["exception"].endswith("ZeroDivisionError: of course")


def test_bound_ids_are_in_the_line() -> None:
    """What the request bound is in every line, the libraries' included."""
    stream = configured()
    structlog.contextvars.bind_contextvars(request_id="r")
    structlog.get_logger().info("ours")
    logging.getLogger("theirs").warning("theirs")
    assert ["r", "r"] == [line["request_id"] for line in json_lines(stream)]


@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
@pytest.mark.parametrize("text", ODD_TEXTS)
def test_the_quick_way_to_a_line_writes_the_same(text: str, level: str, format: str) -> None:
    """The line that every request has is what structlog would make of it, whatever is in it."""
    structlog.contextvars.bind_contextvars(request_id="r", model="bound")
    written = []
    for write in (_by_structlog, write_line):
        stream = configured(level=level, format=format)
        for method in ("info", "warning"):
            write(method, "it happened", {"model": text, "count": None, "ratio": 0.5})
        written.append(re.sub(r"20\d\d-\S+?(?=[\"\s])", "now", stream.getvalue()))
    assert written[0] == written[1]
    assert {"error": 0, "warning": 1}.get(level, 2) == written[0].count("it happened")


def _by_structlog(method: str, event: str, fields: Mapping[str, Any]) -> None:
    getattr(structlog.get_logger(), method)(event, **fields)


def test_the_quick_way_asks_who_has_taken_structlog_over(log_lines: list[dict[str, Any]]) -> None:
    """Whoever configures structlog otherwise gets this line too."""
    write_line("info", "it happened", {"count": 1})
    assert ("it happened", 1) == (log_lines[0]["event"], log_lines[0]["count"])


def test_foreign_lines_are_json_too() -> None:
    """Libraries log through the standard library; their lines look like ours."""
    stream = configured()
    logging.getLogger("asyncio").warning("took %s s", 5, extra={"task": "x"})
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        logging.getLogger("aiohttp").exception("it broke")
    warning, error = json_lines(stream)
    assert ["timestamp", "level", "event"] == list(warning)[:3]
    assert ("warning", "took 5 s", "x") == (warning["level"], warning["event"], warning["task"])
    assert ("error", "it broke") == (error["level"], error["event"])
    assert "ZeroDivisionError" in error["exception"]


@pytest.mark.parametrize(
    ("level", "ours", "theirs"),
    [
        ("debug", ["debug", "info", "warning", "error"], ["warning", "error"]),
        ("info", ["info", "warning", "error"], ["warning", "error"]),
        ("warning", ["warning", "error"], ["warning", "error"]),
        ("error", ["error"], ["error"]),
    ],
)
def test_the_level_is_for_the_services_own_lines(
    level: str, ours: list[str], theirs: list[str]
) -> None:
    """The level is for our lines; of the libraries', none below a warning is shown."""
    stream = configured(level=level)
    for name in ("debug", "info", "warning", "error"):
        getattr(structlog.get_logger(), name)("ours")
    assert [line["level"] for line in json_lines(stream)] == ours
    stream.truncate(0)
    stream.seek(0)
    for name in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger("theirs"), name)("theirs")
    assert [line["level"] for line in json_lines(stream)] == theirs


def test_a_console_line_is_for_people() -> None:
    """On a console an event is one line that people read: time, level, event, then the rest."""
    stream = configured(format="console")
    structlog.get_logger().info("it happened", agent="demo", count=2)
    (line,) = stream.getvalue().splitlines()
    assert "\x1b" not in line
    assert "[info" in line
    assert line.index("info") < line.index("it happened") < line.index("agent=demo")
    assert "count=2" in line


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_text_cannot_command_a_console(text: str) -> None:
    """A client's own words can neither begin a line of their own nor command the terminal."""
    stream = configured(format="console")
    structlog.get_logger().info("it happened", model=text)
    logging.getLogger("theirs").warning("it happened", extra={"model": text})
    lines = stream.getvalue().split("\n")
    assert 3 == len(lines)
    assert not any(set(line) & set("\x00\x1b\r\u2028") for line in lines)


def test_foreign_lines_are_console_lines_too() -> None:
    """Lines of libraries are a line each, too."""
    stream = configured(format="console")
    logging.getLogger("asyncio").warning("took %s s", 5)
    (line,) = stream.getvalue().splitlines()
    assert "warning" in line
    assert "took 5 s" in line


@pytest.mark.parametrize(
    ("format", "stream", "is_json", "is_colored"),
    [
        ("auto", io.StringIO, True, False),
        ("auto", Terminal, False, True),
        ("json", Terminal, True, False),
        ("console", io.StringIO, False, False),
    ],
)
def test_auto_is_pretty_on_a_terminal_only(
    format: str, stream: Any, is_json: bool, is_colored: bool
) -> None:
    """`auto` is pretty on a terminal and JSON elsewhere; the other two are what they say."""
    target = configured(stream(), format=format)
    structlog.get_logger().info("it happened")
    text = target.getvalue()
    assert text.startswith("{") is is_json
    assert ("\x1b" in text) is is_colored


@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize("text", ODD_TEXTS)
def test_no_text_breaks_the_log(format: str, encoding: str, text: str) -> None:
    """A model's name comes from the client: even half a character, or one that the terminal's
    encoding lacks, is written somehow. A line that raised would stop the save that follows it."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    configured(stream, format=format)  # type: ignore[arg-type]
    structlog.get_logger().info("it happened", model=text)
    logging.getLogger("theirs").warning("it happened: %s", text)
    stream.flush()
    lines = raw.getvalue().decode(encoding).splitlines()
    assert 2 == len(lines)
    if format == "json":
        assert json.loads(lines[0])["model"] == text


class Broken(io.StringIO):
    """A pipe that nobody reads any more, or a full disk."""

    def write(self, _text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


@pytest.mark.parametrize("format", ["json", "console"])
def test_a_log_that_cannot_be_written_stops_nobody(
    format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers are streamed and saved although no line about them can be written."""
    configured(Broken(), format=format)
    CompletionLog().ended(record_of(*WHOLE))
    logging.getLogger("theirs").warning("it happened")
    assert ("", "") == capsys.readouterr()


def test_a_second_configuration_replaces_the_first() -> None:
    """A second configuration replaces the first: no line comes twice."""
    first = configured()
    second = configured(level="warning")
    log = structlog.get_logger()
    log.info("quiet")
    log.warning("loud")
    logging.getLogger("theirs").warning("theirs")
    assert "" == first.getvalue()
    assert ["loud", "theirs"] == [line["event"] for line in json_lines(second)]


# --- the canonical line ---------------------------------------------------------------------------

FIELDS = [
    "completion_id",
    "trace_id",
    "owner",
    "agent",
    "model",
    "state",
    "finish_reason",
    "token_count",
    "usage_source",
    "chunk_count",
    "ttft_ms",
    "duration_ms",
    "error",
]
SECRET = "words that nobody but the client may see"


def record_of(*events: Event) -> SessionRecord:
    """What is kept of a session that was asked at 0 s and heard each of these a second later."""
    messages = [{"role": "user", "content": SECRET}]
    request = asked(messages=messages, parameters={"x": SECRET}, metadata={"y": SECRET})
    session = StreamSession(request, SessionPolicy())
    effects = [
        effect for now, event in enumerate(events, 1) for effect in session.handle(event, now / 3)
    ]
    (save,) = (effect for effect in effects if isinstance(effect, Save))
    return save.record


WHOLE = (ChunkReceived(text_chunk(SECRET)), ChunkReceived(finish_chunk()), UpstreamFinished())
FAILED = UpstreamFailed(Failure("upstream_error", SECRET, upstream_code="rate_limit"))


def test_the_canonical_line_has_exactly_its_fields() -> None:
    """One line per completion with exactly the contract's fields, in its order, and no text."""
    stream = configured()
    CompletionLog().ended(record_of(*WHOLE))
    (line,) = json_lines(stream)
    assert ["timestamp", "level", "event", *FIELDS] == list(line)
    del line["timestamp"]
    assert {
        "level": "info",
        "event": "completion finished",
        "completion_id": "chatcmpl-1",
        "trace_id": "0" * 31 + "1",
        "owner": "anonymous",
        "agent": "demo",
        "model": "demo",
        "state": "completed",
        "finish_reason": "stop",
        "token_count": 10,
        "usage_source": "estimated",
        "chunk_count": 2,
        "ttft_ms": 333.3,
        "duration_ms": 1000.0,
        "error": None,
    } == line
    assert SECRET not in stream.getvalue()


def test_a_failures_canonical_line_is_a_warning() -> None:
    """A failure is a warning; the upstream's own code is the error, and its words stay out."""
    stream = configured()
    CompletionLog().ended(record_of(FAILED))
    (line,) = json_lines(stream)
    assert ["timestamp", "level", "event", *FIELDS] == list(line)
    assert ("warning", "failed", "rate_limit") == (line["level"], line["state"], line["error"])
    assert (None, None, "unknown") == (line["ttft_ms"], line["finish_reason"], line["usage_source"])
    assert SECRET not in stream.getvalue()


def test_canonical_fields_are_plain_json() -> None:
    """The fields are JSON's own types, whatever the record holds, so that every log store takes them."""
    for record in (record_of(*WHOLE), record_of(FAILED)):
        fields = completion_fields(evolve(record, ttft_ms=1.25, duration_ms=2.349))
        assert FIELDS == list(fields)
        assert {type(value) for value in fields.values()} <= {str, int, float, type(None)}
        assert (1.2, 2.3) == (fields["ttft_ms"], fields["duration_ms"])


def test_a_traces_header_is_made_of_its_parts() -> None:
    """`traceparent` is made of the trace's parts."""
    assert Trace("a" * 32, "b" * 16, "00").traceparent == f"00-{'a' * 32}-{'b' * 16}-00"
