"""Our encoding of spans beside the SDK's, on made-up spans; and that it is the one that is used."""

import math
import string
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import ConsoleSpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import (
    error_attributes,
    http_attributes,
    server_attributes,
    url_attributes,
    user_agent_attributes,
)

from service.tracing.completions import Completions
from service.tracing.encoding import encode_request
from service.tracing.otlp import _poster, to_readable
from service.tracing.requests import READING_ROUTE, span_id_of
from service.tracing.spans import Kind, Span
from tests.service.conftest import agent_for
from tests.service.stage.backend import Backend
from tests.service.tracing.conftest import Collector, TracedMaker

RESOURCE = Resource({"service.name": "verbatim", "number": 1})


def hex_ids(digits: int) -> st.SearchStrategy[str]:
    return st.text("0123456789abcdef", min_size=digits, max_size=digits).filter(
        lambda text: set(text) != {"0"}
    )


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
VALUES = st.one_of(
    TEXTS,
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.lists(TEXTS, max_size=3),
)
TIMES = st.integers(0, 2**64 - 1)
SPANS = st.builds(
    Span,
    trace_id=hex_ids(32),
    span_id=hex_ids(16),
    parent_id=st.none() | hex_ids(16),
    name=TEXTS,
    kind=st.sampled_from(Kind),
    started_ns=TIMES,
    ended_ns=TIMES,
    attributes=st.dictionaries(
        st.text(string.ascii_lowercase + ".", min_size=1), VALUES, max_size=6
    ),
    is_error=st.booleans(),
    events=st.lists(st.tuples(TEXTS, TIMES), max_size=3),
    links=st.lists(st.tuples(hex_ids(32), hex_ids(16)), max_size=3),
    has_remote_parent=st.booleans(),
).map(lambda span: span if span.parent_id else _without_parent(span))


def _without_parent(span: Span) -> Span:
    span.has_remote_parent = False
    return span


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(SPANS, min_size=1, max_size=3))
def test_spans_are_encoded_as_the_sdk_does(spans: list[Span]) -> None:
    """Whatever is in them, a collector reads the same message."""
    theirs = encode_spans([to_readable(span, RESOURCE) for span in spans])
    (group,) = theirs.resource_spans
    scope = group.scope_spans[0].scope.SerializeToString()
    ours = encode_request(group.resource.SerializeToString(), scope, spans)
    assert theirs == ExportTraceServiceRequest.FromString(ours)


def test_spans_go_the_short_way() -> None:
    """The exporter's own client still takes encoded requests; another exporter gets the SDK's spans."""
    exporter = OTLPSpanExporter(endpoint="http://127.0.0.1:9/v1/traces")
    assert _poster(exporter, RESOURCE) is not None
    assert _poster(ConsoleSpanExporter(), RESOURCE) is None
    exporter.shutdown()  # type: ignore[no-untyped-call]  # it has no annotations


@pytest.mark.parametrize(
    ("completion_id", "expected"),
    [
        ("chatcmpl-0123456700000000000000ab", "00000000000000ab"),
        ("chatcmpl-012345670000000000000000", None),
        ("chatcmpl-1", None),
        ("resp-0123456700000000000000ab", None),
    ],
)
def test_a_completions_id_tells_its_span(completion_id: str, expected: str | None) -> None:
    """So that any process can link to it; ids of another kind are linked to nothing."""
    assert expected == span_id_of(completion_id)


async def test_names_are_those_of_the_conventions(
    make_traced: TracedMaker, backend: Backend, collector: Collector
) -> None:
    """Each attribute is one that the installed conventions know, or ours by its prefix."""
    modules: list[Any] = [
        gen_ai_attributes,
        error_attributes,
        http_attributes,
        server_attributes,
        url_attributes,
        user_agent_attributes,
    ]
    known = {value for module in modules for name, value in vars(module).items() if name.isupper()}
    service = await make_traced(agent_for(backend))
    answer = await service.stream(temperature=1, max_tokens=9, top_p=0.5, seed=1, n=2)
    url = f"{service.url}{READING_ROUTE}".format(completion_id=answer.headers["x-completion-id"])
    async with service.http.get(url, params={"stream": "true"}) as response:
        await response.read()
    spans = await collector.count(4)
    used = {name for span in spans for name in span.attributes}
    assert len(used) > 20
    assert set() == {name for name in used - known if not name.startswith("verbatim.")}


@pytest.mark.parametrize("value", [math.nan, math.inf, 10**400, True, "1", None, {}])
def test_parameters_that_are_no_numbers_are_left_out(value: object) -> None:
    """A client may send anything; what can't be sent on as a number isn't."""
    from service.tracing.completions import _number

    number = _number("temperature", value)
    assert number is None or isinstance(number, float)
    assert _number("seed", value) is None
    assert 7 == _number("seed", 7)


def test_a_watcher_knows_nothing_of_requests_that_arent_traced() -> None:
    """Moments of an untraced completion leave nothing behind."""
    sent: list[Span] = []
    watcher = Completions(sent.append, has_newer_names=False)
    watcher.saved("chatcmpl-1")
    watcher.stop()
    assert [] == sent
