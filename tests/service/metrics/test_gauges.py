"""What is read when somebody asks: here, whether the database takes answers."""

import asyncio
import gc

import pytest

from service.metrics import gauges


async def test_a_slow_check_goes_on_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is kept until then, and no longer: nothing else may hold what it waits for."""
    monkeypatch.setattr(gauges, "_PATIENCE_SECONDS", 0.01)
    ended = asyncio.Event()

    async def check() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    assert 0 == await gauges._is_up(check)
    gc.collect()
    (kept,) = gauges._asking
    assert not ended.is_set()
    kept.cancel()
    await ended.wait()
    await asyncio.sleep(0)
    assert set() == gauges._asking
