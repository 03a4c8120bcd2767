"""The fake store, and waits that no test has to sit through."""

import pytest

from db import saver as saver_module
from tests.db.saver.fakes import FakeStore


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver_module, "_FIRST_WAIT_SECONDS", 0.002)
    monkeypatch.setattr(saver_module, "_LONGEST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(saver_module, "_READ_AGAIN_SECONDS", 0.01)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()
