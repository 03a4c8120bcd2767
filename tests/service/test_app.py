"""The composition root: what is there before anything is started."""

from pathlib import Path

import pytest

from service.app import DIRECTORY, build_app
from service.settings.config import Config


def test_everything_is_made_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An application is put together without an event loop, agents of every kind included, and
    leaves no file behind until it is started."""
    monkeypatch.chdir(tmp_path)
    app = build_app(Config(), environ={"OPENAI_API_KEY": "sk-1"})
    assert ["demo", "openai"] == [agent.name for agent in app[DIRECTORY].agents]
    assert [] == [*tmp_path.iterdir()]
