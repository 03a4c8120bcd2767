"""Reads what `/metrics` says."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.service.conftest import Service

PATH = "/metrics"


class Scraped:
    """One scrape, parsed by the client library's own parser."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.metrics: Mapping[str, Metric] = {
            metric.name: metric for metric in text_string_to_metric_families(text)
        }

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name with these labels, and whatever others."""
        return sum(
            sample.value
            for metric in self.metrics.values()
            for sample in metric.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def labels(self, name: str, label: str) -> set[str]:
        """All values of a label."""
        return {
            sample.labels[label]
            for metric in self.metrics.values()
            for sample in metric.samples
            if sample.name == name
        }

    @property
    def series(self) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
        """Every series there is."""
        return {
            (sample.name, tuple(sorted(sample.labels.items())))
            for metric in self.metrics.values()
            for sample in metric.samples
        }


def parsed_openmetrics(text: str) -> Iterable[Metric]:
    """The metrics of a text in OpenMetrics, by the library's strict parser."""
    parse: Callable[[str], Iterable[Metric]] = openmetrics.text_string_to_metric_families
    return parse(text)


async def scraped(service: Service, **headers: str) -> Scraped:
    """What a service says."""
    async with service.http.get(service.url + PATH, headers=headers) as response:
        text = await response.text()
        assert 200 == response.status, text
        return Scraped(text)
