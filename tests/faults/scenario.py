"""What a scenario is, and the list of them. `tests.faults.scenarios` fills it."""

from collections.abc import Awaitable, Callable

from attrs import frozen

from tests.faults.stage import Stage

Play = Callable[[Stage], Awaitable[None]]


@frozen
class Scenario:
    """One story, played on a stage of its own.

    Attributes:
        name: `family/what`; `--only` looks for a part of it.
        rounds: how often it is played in a full run.
    """

    name: str
    play: Play
    rounds: int


SCENARIOS: list[Scenario] = []


def scenario(name: str, *, rounds: int = 1) -> Callable[[Play], Play]:
    """Put a story on the list."""

    def note(play: Play) -> Play:
        SCENARIOS.append(Scenario(name, play, rounds))
        return play

    return note
