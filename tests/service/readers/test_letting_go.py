"""Answers that are over are let go of, with all that they held."""

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from tests.service.conftest import Service
from tests.service.readers.conftest import Told, asked, reading, until


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Python's garbage collector is off."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("has_reader", [False, True])
async def test_nothing_of_an_answer_waits_for_the_garbage_collector(
    service: Service, told: Told, has_reader: bool
) -> None:
    """Once it is over it is gone: the collector would stop everybody to find what it holds."""
    told.say("a", "b")
    async with asked(service) as first:
        await first.until(2)
        relay = weakref.ref(service.relays[0])
        if has_reader:
            async with reading(service, first.completion_id) as second:
                told.do("finish")
                await asyncio.gather(first.whole(), second.whole())
        else:
            told.do("finish")
            await first.whole()
    await until(lambda: relay() is None)
