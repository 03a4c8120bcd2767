"""Every case, after a kill: what the journal says of it is what the live session said."""

import asyncio
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from service.ids import random_hex
from statemachine import State, StreamSession
from tests.corpus.cases import Case, load_all
from tests.corpus.playing import cut, held
from tests.corpus.said import said_in
from tests.corpus.seen import text_of
from tests.corpus.stage import PATIENCE_SECONDS, Noting, Stage, replayed

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_an_ended_answer_is_recovered_as_it_was(stage: Stage) -> None:
    """Whole, and cut somewhere: the record made of the journal equals the one that was saved."""
    chance = random.Random(1)
    names = {}
    for case in load_all():
        for play in ({}, cut(chance.randint(0, len(case.events)), "end")):
            reading = await stage.stream(case, play)
            names[reading.completion_id] = f"{case} {play}"
    assert isinstance(stage.store, Noting)
    live = {key: stage.store.records[key] for key in names}
    again = await replayed(stage.journal, names.keys())
    assert names.keys() == again.keys()
    assert {} == {names[key]: (live[key], again[key]) for key in live if live[key] != again[key]}


async def test_a_running_answer_is_recovered_as_far_as_it_came(
    stage: Stage, tmp_path: Path
) -> None:
    """All cases run at once, each in the middle of its answer, when the journal is left as a kill
    leaves it: recovered, each has every word that its client was shown, and says how it ended."""
    runs = [Run(case, place) for case in load_all() if (place := middle_of(case)) is not None]
    try:
        await asyncio.gather(*(run.begin(stage) for run in runs))
        shutil.copytree(stage.journal, tmp_path / "journal")
        live = {run.session.request.completion_id: run for run in runs}
        again = await replayed(tmp_path / "journal", live.keys())
        assert live.keys() == again.keys()
        for key, record in again.items():
            transcript = live[key].session.transcript
            assert transcript.choices() == record.choices, live[key]
            assert (State.FAILED, "process_died") == (record.state, record.failure.code)  # type: ignore[union-attr]
            assert transcript.is_whole == record.whole, live[key]
            assert transcript.extra == record.extra, live[key]
            assert (transcript.usage is None) or transcript.usage == record.usage, live[key]
    finally:
        for run in runs:
            run.leave()


def middle_of(case: Case) -> int | None:
    """After how many events an answer of this case is on its way; None if it never is."""
    if not case.is_stream:
        return None
    places = [
        count
        for count in range(len(case.events))
        if "".join(said_in(case.events[:count]).text.values())
        and not said_in(case.events[:count]).is_finished
        and not said_in(case.events[:count]).has_failed
    ]
    return random.Random(case.name).choice(places) if places else None


class Run:
    """A stream that comes so far, and whose backend is silent then.

    Attributes:
        session: the service's own, which lives on while it is looked at.
    """

    def __init__(self, case: Case, events: int) -> None:
        self.session: StreamSession
        self._case = case
        self._events = events
        self._response: Any = None

    def __repr__(self) -> str:
        return f"{self._case} after {self._events} events"

    async def begin(self, stage: Stage) -> None:
        """Ask, and wait until the session has all that was said."""
        trace = random_hex(32)
        play = held(self._events)
        self._response = await stage.ask(self._case, trace, stream=True, play=play)
        said = said_in(self._case.events[: self._events]).text
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (session := stage.session(trace)) is None or words_of(session) != said:
                await asyncio.sleep(0.002)
        self.session = session

    def leave(self) -> None:
        """Hang up."""
        if self._response is not None:
            self._response.close()


def words_of(session: StreamSession) -> dict[int, str]:
    """What a session has been told so far."""
    choices = session.transcript.choices()
    return text_of({"index": choice.index, "message": choice.message} for choice in choices)
