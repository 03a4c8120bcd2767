"""Plays scenarios and fills the table."""

import asyncio
import random
import time
import traceback
from collections.abc import Callable, Sequence

from tests.faults.scenario import Scenario
from tests.faults.stage import Ground, stage

PATIENCE_SECONDS = 240.0
"""For one round of one scenario; none takes a quarter of it."""


async def play(
    ground: Ground,
    scenario: Scenario,
    *,
    seed: int,
    number: int = 0,
    scale: float = 1.0,
) -> None:
    """One round. What goes wrong is in the ground's table afterwards; nothing is raised but an
    interruption."""
    chance = random.Random(f"{seed}/{scenario.name}/{number}")
    try:
        async with asyncio.timeout(PATIENCE_SECONDS), stage(ground, chance, scale) as made:
            await scenario.play(made)
    except Exception:
        lines = traceback.format_exc().strip()
        ground.table.complaints.append(f"{scenario.name}, round {number}: {lines}")


def play_all(
    ground: Ground,
    scenarios: Sequence[Scenario],
    *,
    seed: int,
    runs: float,
    tell: Callable[[str], None],
) -> None:
    """Every scenario, in as many rounds as it wants, times `runs`."""
    for scenario in scenarios:
        for number in range(max(1, round(scenario.rounds * runs))):
            table = ground.table
            streams, wrong = table.total[0], len(table.failures) + len(table.complaints)
            started = time.monotonic()
            asyncio.run(play(ground, scenario, seed=seed, number=number))
            bad = len(table.failures) + len(table.complaints) - wrong
            tell(
                f"{scenario.name:34} round {number + 1}  {table.total[0] - streams:4} streams  "
                f"{time.monotonic() - started:5.1f} s  {'ok' if not bad else f'{bad} WRONG'}"
            )
