"""The text: what the library itself would write, line by line, though it writes each line once."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from service.metrics.counts import Counts, Figures
from service.metrics.families import families
from service.metrics.text import Exposition, _add_samples, _metric, _values

FAMILIES = families()
OPENMETRICS = "application/openmetrics-text;version=1.0.0"
SAVE, SAVES = "verbatim_save_seconds", "verbatim_saves_total"
NUMBERS = st.floats(0, 1e12) | st.integers(0, 10**12).map(float)


class Plainly(Collector):
    """The same figures, each as a sample of the library's own."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        for name, family in FAMILIES.items():
            metric = _metric(family)
            for labels, value in self._figures[name].items():
                begin = len(metric.samples)
                _add_samples(metric, family, dict(zip(family.labels, labels, strict=True)))
                added = zip(metric.samples[begin:], _values(family, value), strict=True)
                metric.samples[begin:] = [sample._replace(value=each) for sample, each in added]
            yield metric


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
@given(NUMBERS, NUMBERS, st.text(max_size=20))
def test_lines_are_the_librarys(accept: str, number: float, seconds: float, label: str) -> None:
    """Whatever the numbers and labels are, in both formats, at the first writing and at a later one."""
    counts = Counts(FAMILIES)
    exposition = Exposition(FAMILIES)
    exposition.write(counts.figures, accept)
    for _ in range(2):
        counts.counter(SAVES).add((label,), number)
        counts.histogram(SAVE).observe(seconds)
        encode, content_type = choose_encoder(accept)
        expected = encode(Plainly(counts.figures)), content_type
        assert expected == exposition.write(counts.figures, accept)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "text/plain; version=0.0.4"),
        ("*/*", "text/plain; version=0.0.4"),
        ("text/plain;version=1.0.0;escaping=allow-utf-8", "text/plain; version=0.0.4"),
        ("application/openmetrics-text; version=0.0.1,text/plain", "text/plain; version=0.0.4"),
        ("application/openmetrics-text; version=abc", "text/plain; version=0.0.4"),
        ("application/openmetrics-text; version=1..x", "text/plain; version=0.0.4"),
        (OPENMETRICS, "application/openmetrics-text; version=1.0.0"),
        (
            "application/openmetrics-text;version=7.0.0",
            "application/openmetrics-text; version=1.0.0",
        ),
    ],
)
def test_one_of_two_formats_is_chosen(accept: str | None, expected: str) -> None:
    """No more than two, whatever versions somebody thinks up: each has its own memory of lines."""
    _, content_type = Exposition(FAMILIES).write({}, accept)
    assert content_type.startswith(expected)
