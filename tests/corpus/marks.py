"""Cases as parameters of tests."""

from collections.abc import Iterable
from typing import Any

import pytest

from tests.corpus.cases import Case, load_all


def every_case() -> list[Any]:
    """Each case; one that waits for the service to be mended has to fail."""
    return [_parameter(case) for case in load_all()]


def streams() -> list[Any]:
    """Those that answer with a stream, and wait for nothing."""
    return _named(case for case in load_all() if case.is_stream and case.waits_for is None)


def steady() -> list[Any]:
    """All that wait for nothing."""
    return _named(case for case in load_all() if case.waits_for is None)


def _named(cases: Iterable[Case]) -> list[Any]:
    return [pytest.param(case, id=case.name) for case in cases]


def _parameter(case: Case) -> Any:
    waiting = [pytest.mark.xfail(strict=True, reason=case.waits_for)] if case.waits_for else []
    return pytest.param(case, id=case.name, marks=waiting)
