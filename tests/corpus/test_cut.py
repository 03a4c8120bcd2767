"""Every case, cut after each of its events: the ending is truthful, and no word is lost or made up."""

import pytest

from tests.corpus.cases import Case
from tests.corpus.marks import streams
from tests.corpus.playing import cut
from tests.corpus.said import said_in
from tests.corpus.seen import text_of
from tests.corpus.stage import Reading, Stage

pytestmark = pytest.mark.asyncio(loop_scope="session")

CLOSINGS = ("end", "close", "reset")


@pytest.mark.parametrize("case", streams())
async def test_an_answer_that_is_cut_is_told_truthfully(stage: Stage, case: Case) -> None:
    """After each event the body ends, or its connection is closed or reset, one after the other."""
    for events in range(len(case.events) + 1):
        closing = CLOSINGS[events % len(CLOSINGS)]
        check(case, events, await stage.stream(case, cut(events, closing)))


@pytest.mark.corpus
@pytest.mark.parametrize("closing", CLOSINGS)
@pytest.mark.parametrize("case", streams())
async def test_however_it_is_cut(either: Stage, case: Case, closing: str) -> None:
    """The same with each way to end after each event."""
    for events in range(len(case.events) + 1):
        check(case, events, await either.stream(case, cut(events, closing)))


def check(case: Case, events: int, reading: Reading) -> None:
    """A cut answer is called complete only if all finish reasons had come, and in any case client
    and row have the same words, which are all that had been said."""
    said, client, row = said_in(case.events[:events]), reading.client, reading.row
    here = f"{case} after {events} events"
    assert row.is_whole == client.is_whole, here
    assert row.is_whole == (said.is_finished and not said.has_failed), here
    if client.status == 200:
        assert said.text == text_of(client.choices), here
        assert said.text == text_of(row.choices), here
    else:
        assert "" == "".join(said.text.values()), here
    if row.is_whole:
        assert (None, None) == (client.error, row.error), here
        return
    assert client.error is not None and row.error is not None, here
    assert client.error["code"] == row.error["code"], here
    reasons = {one["index"]: one.get("finish_reason") for one in row.choices}
    assert all(reason in (None, said.reasons.get(index)) for index, reason in reasons.items()), here
