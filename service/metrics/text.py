"""Writes figures as Prometheus reads them, in the format that is asked for. The door of prometheus-client."""

from collections.abc import Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from service.metrics.counts import BOUNDS, Figures
from service.metrics.families import Family

_SUFFIX = {"counter": "_total", "info": "_info"}
_BOUNDS = (*(str(round(bound, 3)) for bound in BOUNDS), "+Inf")


class _Figures(Collector):
    def __init__(self, families: Mapping[str, Family], figures: Figures) -> None:
        self._families = families
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        for name, family in self._families.items():
            metric = Metric(
                name.removesuffix(_SUFFIX.get(family.kind, "")), family.question, family.kind
            )
            for labels, value in self._figures.get(name, {}).items():
                named = dict(zip(family.labels, labels, strict=True))
                if family.kind == "histogram":
                    _add_buckets(metric, named, value)
                else:
                    metric.add_sample(name, named, value)
            yield metric


def _add_buckets(metric: Metric, labels: dict[str, str], cells: list[float]) -> None:
    *buckets, total = cells
    count = 0.0
    for bound, here in zip(_BOUNDS, buckets, strict=True):
        count += here
        metric.add_sample(f"{metric.name}_bucket", {**labels, "le": bound}, count)
    metric.add_sample(f"{metric.name}_count", labels, count)
    metric.add_sample(f"{metric.name}_sum", labels, total)


def exposed(
    families: Mapping[str, Family], figures: Figures, accept: str | None
) -> tuple[bytes, str]:
    """The text and its content type.

    Args:
        families: what is exposed, in this order.
        figures: their numbers; a metric that has none is named all the same.
        accept: the request's `Accept`: OpenMetrics for who asks for it, else Prometheus's text.
    """
    encode, content_type = choose_encoder(accept or "")
    return encode(_Figures(families, figures)), content_type
