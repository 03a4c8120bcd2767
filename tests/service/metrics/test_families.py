"""The list of metrics, what is exposed, and the documents: all say the same."""

import re
from pathlib import Path

import pytest

from service.metrics.counts import Counts
from service.metrics.families import TOKENS, families
from service.metrics.text import Exposition
from tests.service.metrics.conftest import Scraped
from tests.test_docs import document, rows, same, section

FAMILIES = families()
CODE = re.compile(r"verbatim_\w+")
SUFFIXES = ("_bucket", "_count", "_sum")
ROOT = Path(__file__).parents[3]


def test_every_metric_is_documented_with_its_type_and_labels() -> None:
    """docs/operations.md has each metric, with its type, its labels and a question."""
    documented = rows(section(document("docs/operations.md"), "Metrics"))
    same(documented, FAMILIES)
    for name, family in families(per_owner=True).items():
        kind, labels, question, _ = documented[name]
        assert (family.kind, family.labels) == (kind, tuple(CODE_WORDS.findall(labels))), name
        assert "?" in question, name


CODE_WORDS = re.compile(r"`(?!metrics\.)(\w+)`")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_metric_is_exposed_as_what_it_is(name: str) -> None:
    """Each is in the text, with its type, and with its labels once there is a figure."""
    family = FAMILIES[name]
    counts = Counts(FAMILIES)
    value = [1.0] * 20 if family.kind == "histogram" else 1.0
    counts.figures[name][tuple(f"a {label}" for label in family.labels)] = value
    text, _ = Exposition(FAMILIES).write(counts.figures, None)
    found = Scraped(text.decode())
    kind = "gauge" if family.kind == "info" else family.kind
    assert f"# TYPE {name} {kind}\n" in found.text
    assert f"# HELP {name} {family.question}\n" in found.text
    sample = f"{name}_count" if family.kind == "histogram" else name
    labels = {label: f"a {label}" for label in family.labels}
    expected = 20.0 - 1 if family.kind == "histogram" else 1.0
    assert expected == found.value(sample, **labels)


def test_names_are_what_prometheus_expects() -> None:
    """Counters end in `_total`, durations in `_seconds`, and all begin alike."""
    for name, family in FAMILIES.items():
        assert name.startswith("verbatim_")
        assert (family.kind == "counter") is name.endswith("_total"), name
        assert (family.kind == "info") is name.endswith("_info"), name
        assert family.kind != "histogram" or name.endswith("_seconds"), name


def test_owners_are_no_labels_unless_asked_for() -> None:
    """`metrics.per_owner` adds one label to one metric."""
    more = families(per_owner=True)
    differing = [name for name in FAMILIES if more[name] != FAMILIES[name]]
    assert [TOKENS] == differing
    assert (*FAMILIES[TOKENS].labels, "owner") == more[TOKENS].labels


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("deploy/prometheus/*.yml")) + sorted(ROOT.glob("deploy/grafana/*"))
)
def test_alerts_and_dashboard_name_metrics_that_there_are(path: Path) -> None:
    """A query of a metric that isn't there shows nothing, for ever, and says so to nobody."""
    named = {
        name.removesuffix(suffix) for name in CODE.findall(path.read_text()) for suffix in ("",)
    }
    base = {next((n.removesuffix(s) for s in SUFFIXES if n.endswith(s)), n) for n in named}
    assert set() == {name for name in base if name not in FAMILIES}


def test_every_alert_is_documented() -> None:
    """The table names each alert of the file, and no other."""
    alerts = (ROOT / "deploy/prometheus/alerts.yml").read_text()
    in_file = set(re.findall(r"alert: (\w+)", alerts))
    table = rows(section(document("docs/operations.md"), "Metrics")).values()
    documented = {name for cells in table for name in re.findall(r"`(Verbatim\w+)`", cells[-1])}
    assert in_file == documented
