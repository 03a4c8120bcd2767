"""Hands spans to OpenTelemetry's SDK: resource, sampler, queue and exporter are theirs.

The one file that sees their packages. They read their variables themselves; what they log passes
through here, so that a collector that is away makes one line and not thousands. Spans are sent from
a thread of theirs; nothing here waits for it but `stop`, and that no longer than
`LONGEST_STOP_SECONDS`.
"""

import asyncio
import logging
import sys
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from service import __version__
from service.telemetry import Trace
from service.tracing.encoding import encode_request
from service.tracing.spans import Kind, Span

log = structlog.get_logger(__name__)

LONGEST_STOP_SECONDS = 2.0
"""For the spans that are left when the service stops."""
_GRPC = "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_OF_EXPORTS = ("opentelemetry.exporter", "opentelemetry.sdk._shared_internal")
"""Loggers that speak of each failed export, and of each span that finds the queue full."""
_KINDS = {
    Kind.INTERNAL: SpanKind.INTERNAL,
    Kind.SERVER: SpanKind.SERVER,
    Kind.CLIENT: SpanKind.CLIENT,
}
_SCOPE = InstrumentationScope("verbatim", __version__)
_SAMPLED, _NOT_SAMPLED = TraceFlags(TraceFlags.SAMPLED), TraceFlags(TraceFlags.DEFAULT)
_ROOT = Context()


class Exporting:
    """Samples and sends spans.

    Args:
        environ: which exporters and protocol are wanted.

    Raises ValueError for a protocol that isn't known, or a variable that the SDK refuses;
    ModuleNotFoundError if the package for a protocol isn't installed.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._says = _Says()
        library = logging.getLogger("opentelemetry")
        library.handlers, library.propagate = [self._says], False
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        limit = SpanLimits().max_attribute_length
        self._shorten = None if limit is None else _shortener(limit)
        self._exporters = [
            _Watched(make(), self._provider.resource, self._says) for make in _makers(environ)
        ]
        # The usual one need not be asked, which takes as long as the rest of a span.
        both: tuple[Any, Any] = (self._provider.sampler, DEFAULT_ON)
        ours, usual = (sampler.get_description() for sampler in both)
        self._goes_by_parent = ours == usual
        self._processors: list[BatchSpanProcessor] = []
        self._handed_over = 0

    def start(self) -> None:
        """Begin to send, from a thread of this process; not if the queue's variables make no sense."""
        try:
            self._processors = [BatchSpanProcessor(exporter) for exporter in self._exporters]
        except ValueError as error:
            log.warning("traces off", reason=str(error))
            self._exporters = []
        self._says.has_begun = True

    def is_sampled(self, trace: Trace, name: str) -> bool:
        """What the sampler says of a request's trace. Its own spans all get that answer: every sampler
        that a variable can name says the same of a child as of its parent."""
        if self._goes_by_parent:
            return trace.parent_id is None or trace.flags == "01"
        trace_id, context = int(trace.trace_id, 16), _ROOT
        if trace.parent_id is not None:
            flags = _SAMPLED if trace.flags == "01" else _NOT_SAMPLED
            parent = SpanContext(trace_id, int(trace.parent_id, 16), True, flags)
            context = set_span_in_context(NonRecordingSpan(parent), _ROOT)
        sampler = self._provider.sampler
        decision = sampler.should_sample(context, trace_id, name, SpanKind.SERVER).decision
        return decision is Decision.RECORD_AND_SAMPLE

    def send(self, span: Span) -> None:
        """Queue a span. Returns at once; of more than the queue holds the oldest are lost."""
        if self._shorten is not None:
            self._shorten(span)
        self._handed_over += 1
        queued = _Queued(span)
        for processor in self._processors:
            processor.on_end(queued)

    async def stop(self) -> None:
        """Send what is left, and say how many spans were never sent. Returns within
        `LONGEST_STOP_SECONDS`, whatever the collector does; cancelled, it leaves its threads to the
        process's end."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def finish() -> None:
            for processor in self._processors:
                processor.shutdown()  # type: ignore[no-untyped-call]  # it has no annotations
            try:
                loop.call_soon_threadsafe(done.set)
            except RuntimeError:
                pass  # the loop has closed meanwhile

        # No thread of a pool: the interpreter would wait for one at its end.
        threading.Thread(target=finish, name="last spans", daemon=True).start()
        try:
            async with asyncio.timeout(LONGEST_STOP_SECONDS):
                await done.wait()
        except TimeoutError:
            for exporter in self._exporters:
                exporter.give_up()
        lost = max((self._handed_over - each.sent for each in self._exporters), default=0)
        if lost:
            log.warning("spans lost", count=lost, reason=self._says.reason or None)


class _Queued(ReadableSpan):
    """What a queue of the SDK holds: of a span it looks at the context alone, to see that it is
    sampled. The SDK's own takes as many instructions to make as all else about a span."""

    _CONTEXT = SpanContext(1, 1, False, _SAMPLED)

    def __init__(self, span: Span) -> None:
        self.span = span

    @property
    def context(self) -> SpanContext:
        return self._CONTEXT


class _Says(logging.Handler):
    """Keeps what the SDK last said of an export, and logs its other warnings, each once.

    Attributes:
        has_begun: spans are being sent.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.reason = ""
        self.has_begun = False
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()[:300]
        if self.has_begun and record.name.startswith(_OF_EXPORTS):
            self.reason = text
        elif record.msg not in self._said:
            self._said.add(record.msg)
            log.warning("tracing", said=text)


class _Watched(SpanExporter):
    """An exporter whose trouble is told once, and whose end once.

    Attributes:
        sent: how many spans it has sent.
    """

    def __init__(self, exporter: SpanExporter, resource: Resource, says: _Says) -> None:
        self._exporter = exporter
        self._resource = resource
        self._says = says
        self._post = _poster(exporter, resource)
        self._is_away = self._is_over = False
        self.sent = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See `SpanExporter`. Called in the queue's thread."""
        plain = [queued.span for queued in spans if isinstance(queued, _Queued)]
        try:
            if self._post is not None:
                is_sent = self._post(plain)
            else:
                readable = [to_readable(span, self._resource) for span in plain]
                is_sent = self._exporter.export(readable) is SpanExportResult.SUCCESS
        except Exception as error:
            is_sent, self._says.reason = False, repr(error)[:300]
        if is_sent:
            self.sent += len(plain)
            if self._is_away:
                log.info("spans sent again")
        elif not (self._is_away or self._is_over):
            log.warning("spans not sent", reason=self._says.reason)
        self._is_away = not is_sent
        return SpanExportResult.SUCCESS if is_sent else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """See `SpanExporter`."""
        if not self._is_over:
            self._is_over = True
            self._exporter.shutdown()

    def give_up(self) -> None:
        """Try nothing again."""
        threading.Thread(target=self.shutdown, daemon=True).start()


def _poster(exporter: SpanExporter, resource: Resource) -> Callable[[Sequence[Span]], bool] | None:
    """Sends spans in our own encoding by the exporter's own client; None for an exporter that has no
    such client, which gets the SDK's spans. `test_spans_go_the_short_way` notices its end."""
    send = getattr(getattr(exporter, "_client", None), "export", None)
    if not isinstance(exporter, OTLPSpanExporter) or send is None:
        return None
    template = to_readable(Span("1" * 32, "1" * 16, None, "", Kind.SERVER, 0, 0, {}), resource)
    (group,) = encode_spans([template]).resource_spans
    encoded = group.resource.SerializeToString(), group.scope_spans[0].scope.SerializeToString()
    return lambda spans: bool(send(encode_request(*encoded, spans)).success)


def to_readable(span: Span, resource: Resource) -> ReadableSpan:
    """The SDK's own form of a span, for exporters that take no other."""
    trace_id = int(span.trace_id, 16)
    parent = None
    if span.parent_id is not None:
        parent = SpanContext(trace_id, int(span.parent_id, 16), span.has_remote_parent, _SAMPLED)
    return ReadableSpan(
        name=_whole(span.name),
        context=SpanContext(trace_id, int(span.span_id, 16), False, _SAMPLED),
        parent=parent,
        resource=resource,
        attributes={
            key: _whole(value) if isinstance(value, str) else value
            for key, value in span.attributes.items()
        },
        events=[Event(name, timestamp=at_ns) for name, at_ns in span.events],
        links=[
            Link(SpanContext(int(trace, 16), int(linked, 16), True, _SAMPLED))
            for trace, linked in span.links
        ],
        kind=_KINDS[span.kind],
        status=Status(StatusCode.ERROR if span.is_error else StatusCode.UNSET),
        start_time=span.started_ns,
        end_time=span.ended_ns,
        instrumentation_scope=_SCOPE,
    )


def _whole(text: str) -> str:
    """Without half characters, which protobuf refuses."""
    return text.encode("utf-8", "replace").decode()


def _shortener(limit: int) -> Callable[[Span], None]:
    def shorten(span: Span) -> None:
        span.attributes = {
            key: value[:limit] if isinstance(value, str) else value
            for key, value in span.attributes.items()
        }

    return shorten


def _resource() -> Resource:
    """Who we are, as far as the environment says nothing else."""
    ours = {"service.version": __version__}
    ours["service.name"] = "verbatim"
    ours["service.instance.id"] = str(uuid.uuid4())  # of a worker, as of a process
    given = OTELResourceDetector().detect().attributes
    return Resource.create({key: value for key, value in ours.items() if key not in given})


def _makers(environ: Mapping[str, str]) -> list[Callable[[], SpanExporter]]:
    """What makes the exporters that are wanted."""
    named = environ.get("OTEL_TRACES_EXPORTER", "").replace(" ", "").lower().split(",")
    makers: list[Callable[[], SpanExporter]] = []
    if "console" in named:
        makers.append(lambda: ConsoleSpanExporter(out=sys.stdout))
    if "otlp" in named or named == [""]:
        protocol = next(
            (environ[name] for name in _PROTOCOLS if environ.get(name)), "http/protobuf"
        )
        match protocol.strip().lower():
            case "http/protobuf":
                makers.append(OTLPSpanExporter)
            case "grpc":
                makers.append(import_module(_GRPC).OTLPSpanExporter)
            case _:
                raise ValueError(f"OTLP is spoken as http/protobuf or grpc, not as {protocol!r}")
    return makers
