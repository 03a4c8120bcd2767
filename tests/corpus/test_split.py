"""Every case, its bytes arriving in other pieces: nobody sees a difference."""

import random
from collections.abc import Mapping
from typing import Any

import pytest

from tests.corpus import expected
from tests.corpus.cases import Case
from tests.corpus.marks import steady
from tests.corpus.playing import dripped, response_bytes, split
from tests.corpus.stage import Stage

pytestmark = pytest.mark.asyncio(loop_scope="session")

TIMES = 4
SHORT_BYTES = 500


@pytest.mark.parametrize("case", steady())
async def test_pieces_make_no_difference(stage: Stage, case: Case) -> None:
    """Split at a few places, dripping in small pieces, and byte by byte if it is short."""
    length = len(response_bytes(case))
    chance = random.Random(case.name)
    for _ in range(TIMES):
        await check(stage, case, split([chance.randrange(1, length)]))
    await check(stage, case, dripped(chance.randrange(1000), longest=40))
    if length < SHORT_BYTES:
        await check(stage, case, dripped(0, longest=1))


@pytest.mark.corpus
@pytest.mark.parametrize("case", steady())
async def test_no_place_makes_a_difference(either: Stage, case: Case) -> None:
    """Split at every byte, and byte by byte."""
    for place in range(1, len(response_bytes(case))):
        await check(either, case, split([place]))
    await check(either, case, dripped(0, longest=1))


async def check(stage: Stage, case: Case, play: Mapping[str, Any]) -> None:
    """Played like this, client and row are what they are to be."""
    reading = await stage.stream(case, play)
    assert expected.in_stream(case) == expected.without_names(reading.client), play
    assert expected.in_row(case) == expected.without_names(reading.row), play
