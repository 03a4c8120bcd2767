"""Every case, its bytes arriving in other pieces: nobody sees a difference."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tests.corpus import expected
from tests.corpus.cases import Case
from tests.corpus.marks import every_case
from tests.corpus.playing import dripped, response_bytes, split
from tests.corpus.stage import Stage

pytestmark = pytest.mark.asyncio(loop_scope="session")

TIMES = 4
AT_ONCE = 4
SHORT_BYTES = 500


@pytest.mark.parametrize("case", every_case())
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
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", every_case())
async def test_no_place_makes_a_difference(stage: Stage, case: Case) -> None:
    """Split at every byte, and byte by byte."""
    await check_all(stage, case, [split([place]) for place in places_of(case)])
    await check(stage, case, dripped(0, longest=1))


@pytest.mark.corpus
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", every_case())
async def test_nor_does_it_without_the_shortcut(stage_without_shortcut: Stage, case: Case) -> None:
    """The same at some of the places."""
    plays = [split([place]) for place in places_of(case)[:: len(case.name)]]
    await check_all(stage_without_shortcut, case, [*plays, dripped(0, longest=1)])


def places_of(case: Case) -> range:
    """Where its bytes can be split."""
    return range(1, len(response_bytes(case)))


async def check_all(stage: Stage, case: Case, plays: Sequence[Mapping[str, Any]]) -> None:
    """Check several, a few at a time."""
    waiting = list(reversed(plays))

    async def one_after_the_other() -> None:
        while waiting:
            await check(stage, case, waiting.pop())

    await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))
    stage.forget()


async def check(stage: Stage, case: Case, play: Mapping[str, Any]) -> None:
    """Played like this, client and record are what they are to be."""
    client, record = await stage.stream_and_record(case, play)
    assert expected.in_stream(case) == expected.without_names(client), play
    assert expected.in_row(case) == expected.without_names(record), play
