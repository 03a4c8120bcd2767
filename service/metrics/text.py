"""Writes figures as Prometheus reads them, in the format that is asked for. The door of prometheus-client.

The library writes each series once, as 0; from then on its line is known up to the number. To have all
of them written anew takes 15 microseconds a line, and a scrape has thousands.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import accumulate
from typing import Any

from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from service.metrics.counts import BOUNDS, Figures, Labels
from service.metrics.families import Family

_SUFFIX = {"counter": "_total", "info": "_info"}
_BOUNDS = (*(str(round(bound, 3)) for bound in BOUNDS), "+Inf")
_OPENMETRICS = "application/openmetrics-text"
_ACCEPTS = ("", f"{_OPENMETRICS};version=1.0.0")
"""What is spoken: Prometheus's text 0.0.4, and OpenMetrics 1.0.0."""
_END = "# EOF\n"

_number: Callable[[float], str] = lru_cache(maxsize=4096)(floatToGoString)


class _One(Collector):
    """One metric, for the library to write."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        yield self._metric


class _Format:
    """One of the formats, with the lines that are known."""

    def __init__(self, accept: str) -> None:
        self._encode, self.content_type = choose_encoder(accept)
        self._heads: dict[str, str] = {}
        self._lines: dict[tuple[str, Labels], list[str]] = {}

    def write(self, families: Iterable[Family], figures: Figures) -> bytes:
        pieces: list[str] = []
        for family in families:
            pieces.append(self._head(family))
            for labels, value in figures.get(family.name, {}).items():
                numbers = map(_number, _values(family, value))
                for line, number in zip(self._known(family, labels), numbers, strict=True):
                    pieces += (line, number, "\n")
        pieces.append(_END if self.content_type.startswith(_OPENMETRICS) else "")
        return "".join(pieces).encode()

    def _head(self, family: Family) -> str:
        """What says the metric's type and question."""
        head = self._heads.get(family.name)
        if head is None:
            head = self._heads[family.name] = self._written(_metric(family)).removesuffix(_END)
        return head

    def _known(self, family: Family, labels: Labels) -> list[str]:
        """A series' lines, each up to its number."""
        lines = self._lines.get((family.name, labels))
        if lines is None:
            metric = _metric(family)
            _add_samples(metric, family, dict(zip(family.labels, labels, strict=True)))
            text = self._written(metric).split("\n")  # a label may hold other ends of lines
            lines = [line.rpartition(" ")[0] + " " for line in text if line and line[0] != "#"]
            self._lines[family.name, labels] = lines
        return lines

    def _written(self, metric: Metric) -> str:
        return self._encode(_One(metric)).decode()


def _metric(family: Family) -> Metric:
    name = family.name.removesuffix(_SUFFIX.get(family.kind, ""))
    return Metric(name, family.question, family.kind)


def _add_samples(metric: Metric, family: Family, labels: dict[str, str]) -> None:
    """Its samples, all 0, in the order of `_values`."""
    if family.kind != "histogram":
        metric.add_sample(family.name, labels, 0)
        return
    for bound in _BOUNDS:
        metric.add_sample(f"{family.name}_bucket", {**labels, "le": bound}, 0)
    metric.add_sample(f"{family.name}_count", labels, 0)
    metric.add_sample(f"{family.name}_sum", labels, 0)


def _values(family: Family, value: Any) -> Iterable[float]:
    if family.kind != "histogram":
        return (value,)
    *buckets, total = value
    cumulative = list(accumulate(buckets))
    return (*cumulative, cumulative[-1], total)


class Exposition:
    """The text of some metrics. It remembers every series that it has written: there must be a bound to
    them.

    Args:
        families: what is exposed, in this order.
    """

    def __init__(self, families: Mapping[str, Family]) -> None:
        self._families = tuple(families.values())
        self._plain, self._openmetrics = map(_Format, _ACCEPTS)

    def write(self, figures: Figures, accept: str | None) -> tuple[bytes, str]:
        """The text and its content type.

        Args:
            figures: the numbers; a metric that has none is named all the same.
            accept: the request's `Accept`: OpenMetrics for who asks for it, else Prometheus's text.
        """
        try:
            _, wanted = choose_encoder(accept or "")
        except (TypeError, ValueError):  # a version that is no version
            wanted = ""
        chosen = self._openmetrics if wanted.startswith(_OPENMETRICS) else self._plain
        return chosen.write(self._families, figures), chosen.content_type
