"""Labels: nobody outside makes series, however many names it thinks up."""

import pytest

from service.edge.errors import ERROR_CODES
from service.metrics.counts import Counts
from service.metrics.families import families
from service.metrics.labels import ModelLabels, code_label
from service.metrics.watching import Counting
from statemachine import Failure
from tests.db.records import make_record


def test_a_million_made_up_models_make_no_series() -> None:
    """All of them are `other`, and nothing is remembered of them."""
    labels = ModelLabels({"gpt": 1}.__contains__)
    assert {"other"} == {labels.label(f"model-{number}") for number in range(1_000_000)}
    assert "gpt" == labels.label("gpt")
    assert {"gpt": "gpt"} == labels._known


def test_a_backend_that_lists_ever_other_models_makes_no_series_for_ever() -> None:
    """Of those that are listed, a thousand are labels."""
    labels = ModelLabels(lambda _: True)
    assert 1_001 == len({labels.label(f"model-{number}") for number in range(5_000)})
    assert "model-7" == labels.label("model-7")


@pytest.mark.parametrize("model", ["half \ud800", "a\nline", "x" * 201])
def test_what_can_not_be_written_is_no_label(model: str) -> None:
    """A backend may list what it likes; one such name must not end all scrapes."""
    assert "other" == ModelLabels(lambda _: True).label(model)


def test_a_backends_own_code_makes_no_series() -> None:
    """What is shown to clients as the backend's code is ours to the metrics."""
    theirs = Failure("upstream_error", "It said no.", upstream_code="quota_of_anne_exceeded")
    assert "upstream_error" == code_label(theirs)
    assert "upstream_error" == code_label(Failure("made_up_by_a_backend", "It said no."))
    assert "none" == code_label(None)
    assert set(ERROR_CODES) == {code_label(Failure(code, "No.")) for code in ERROR_CODES}


@pytest.mark.parametrize("per_owner", [False, True])
def test_owners_are_labels_only_where_that_is_asked_for(*, per_owner: bool) -> None:
    """Tokens alone are counted by caller, and only with `metrics.per_owner`."""
    counts = Counts(families(per_owner=per_owner))
    counting = Counting(counts, ModelLabels(lambda _: True), per_owner=per_owner)
    ended = make_record(request={"owner": "anne"})
    counting.ended(ended)
    found = {label for values in counts.figures.values() for labels in values for label in labels}
    assert per_owner is ("anne" in found)
    tokens = counts.figures["verbatim_tokens_total"]
    assert {4 + per_owner} == {len(labels) for labels in tokens}
