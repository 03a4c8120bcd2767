"""Cases as parameters of tests."""

from collections.abc import Iterable
from typing import Any

import pytest

from tests.corpus.cases import Case, load_all


def every_case() -> list[Any]:
    """Each case."""
    return _named(load_all())


def streams() -> list[Any]:
    """Those that answer with a stream."""
    return _named(case for case in load_all() if case.is_stream)


def _named(cases: Iterable[Case]) -> list[Any]:
    return [pytest.param(case, id=case.name) for case in cases]
