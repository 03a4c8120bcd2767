"""What a scenario is, the list of them, and how one is played. `tests.fleet_faults.scenarios` fills the
list."""

import asyncio
import random
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence

from attrs import frozen

from tests.fleet_faults.servers import Kind
from tests.fleet_faults.stage import Ground, Stage, stage

PATIENCE_SECONDS = 240.0
"""For one round of one scenario; none takes half of it."""
MODES = ("follow", "before_send")

Play = Callable[[Stage], Awaitable[None]]


@frozen
class Scenario:
    """One story, played on a stage of its own.

    Attributes:
        name: `family/what`; `--only` looks for a part of it.
        engine: what the replicas share.
        cuts: their wires can be cut.
        modes: those of `fleet.journal` that it is played in.
    """

    name: str
    play: Play
    engine: Kind
    cuts: bool
    modes: Sequence[str]


SCENARIOS: list[Scenario] = []


def scenario(
    name: str, *, engine: Kind = "redis", cuts: bool = False, modes: Sequence[str] = MODES
) -> Callable[[Play], Play]:
    """Put a story on the list."""

    def note(play: Play) -> Play:
        SCENARIOS.append(Scenario(name, play, engine, cuts, modes))
        return play

    return note


async def play(
    ground: Ground,
    scenario: Scenario,
    *,
    mode: str,
    seed: int,
    number: int = 0,
    scale: float = 1.0,
) -> None:
    """One round. What goes wrong is in the ground's table afterwards; nothing is raised but an
    interruption."""
    chance = random.Random(f"{seed}/{scenario.name}/{mode}/{number}")
    run = f"seed {seed}, round {number + 1}"
    made = stage(
        ground,
        chance,
        mode=mode,
        run=run,
        engine=scenario.engine,
        scale=scale,
        cuts=scenario.cuts,
    )
    try:
        async with asyncio.timeout(PATIENCE_SECONDS), made as on_it:
            await scenario.play(on_it)
    except Exception:
        lines = traceback.format_exc().strip()
        ground.table.complaints.append(f"[{mode}, {run}] {scenario.name}: {lines}")


def play_all(
    ground: Ground,
    scenarios: Sequence[Scenario],
    *,
    modes: Sequence[str],
    seed: int,
    runs: int,
    scale: float,
    tell: Callable[[str], None],
) -> None:
    """Every scenario in each mode, so many rounds."""
    for each in scenarios:
        for mode in [mode for mode in each.modes if mode in modes] or modes:
            for number in range(runs):
                table, started = ground.table, time.monotonic()
                streams, wrong = table.total[1], table.wrong
                asyncio.run(play(ground, each, mode=mode, seed=seed, number=number, scale=scale))
                bad = table.wrong - wrong
                tell(
                    f"{each.name:32} {mode:11} round {number + 1}  "
                    f"{table.total[1] - streams:4} streams  {time.monotonic() - started:5.1f} s  "
                    f"{'ok' if not bad else f'{bad} WRONG'}"
                )
