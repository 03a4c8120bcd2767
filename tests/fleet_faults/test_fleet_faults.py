"""The fleet's fault matrix in short: three replicas, one of them killed, with one seed; and that the
oracle can fail.

`make fleet-faults` plays all of it, larger; `make fleet` plays each scenario once, small.
"""

import asyncio
import json
from collections.abc import Iterator, Sequence

import pytest

from tests.faults.oracle import Message, Row
from tests.faults.plans import COMPLETED, DIED, Outcome, Plan
from tests.fleet_faults import scenarios as scenarios  # puts them on the list
from tests.fleet_faults.oracle import NUMBERS, Stream, judge
from tests.fleet_faults.run import SCENARIOS, Scenario, play
from tests.fleet_faults.scenarios.replicas import AFTER_A_DEATH, NAMES
from tests.fleet_faults.stage import Ground, Stage, ground
from tests.fleet_faults.trips import Trip
from tests.fleet_faults.wires import Link

SEED = 20260101
SCALE = 0.34


@pytest.fixture(scope="module")
def place() -> Iterator[Ground]:
    """One PostgreSQL for all."""
    with ground() as made:
        yield made


@pytest.fixture
def clean(place: Ground) -> Ground:
    """The ground, with nothing in its table."""
    table = place.table
    for held in (table.rows, table.failures, table.complaints, table.notes):
        held.clear()
    return place


async def _killed(stage: Stage) -> None:
    """A replica dies for good."""
    await stage.raise_replicas(*NAMES)
    victim = stage.chance.choice(NAMES)
    for name in NAMES:
        hit = name == victim
        also, due = ((DIED,), AFTER_A_DEATH) if hit else ((), ())
        for _ in range(2):
            stream = stage.stream("killed", name, also=also, due=due, dies=hit, words=60)
            stage.play(stream, within_seconds=0.3)
    await stage.begun(1.0)
    stage.replicas[victim].kill(for_good=True)
    await stage.finish()


@pytest.mark.faults
async def test_no_word_is_lost_when_a_machine_dies(clean: Ground) -> None:
    """Every word that a client was shown is in PostgreSQL and at every replica, once, with one owner and a
    truthful state."""
    short = Scenario("short", _killed, "redis", False, ("before_send",))
    await play(clean, short, mode="before_send", seed=SEED)
    assert [] == [*clean.table.failures, *clean.table.complaints]
    assert 6 == clean.table.total[1]
    assert clean.table.total[3] > 60


@pytest.mark.fleet
@pytest.mark.timeout(300)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=[each.name for each in SCENARIOS])
async def test_nothing_is_lost(clean: Ground, scenario: Scenario) -> None:
    """The same, whatever happens."""
    await play(clean, scenario, mode=scenario.modes[-1], seed=SEED, scale=SCALE)
    assert [] == [*clean.table.failures, *clean.table.complaints]
    assert clean.table.total[1] > 0


async def test_a_cut_link_passes_nothing_and_tells_nobody() -> None:
    """Until it is mended; then what waited comes, in order."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    link = await Link(server.sockets[0].getsockname()).start()
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    writer.write(b"one")
    assert b"one" == await reader.readexactly(3)
    link.passes.clear()
    writer.write(b"two")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await reader.read(1)
    link.passes.set()
    assert b"two" == await reader.readexactly(3)
    writer.close()
    await link.stop()
    server.close()
    await server.wait_closed()


# --- the oracle can fail -------------------------------------------------------------------------

WORDS = 4


def chunk(place: int, text: str | None = None, reason: str | None = None) -> bytes:
    """What stands at a position of the stream: first one without a word, then words, then the end."""
    content = text if text is not None else f"w1.{place - 1} " if 0 < place <= WORDS else ""
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": reason}
    return json.dumps({"id": "chatcmpl-1", "choices": [choice]}).encode()


WHOLE = [chunk(place) for place in range(WORDS + 2)]


def trip(
    plan: Plan,
    chunks: Sequence[bytes],
    *,
    start: int = 0,
    done: bool = True,
    code: str | None = None,
) -> Trip:
    made = Trip(plan, "reads", start=start, completion_id="chatcmpl-1", chunks=list(chunks))
    made.done, made.code = done and code is None, code
    return made


def row(words: int = WORDS, outcome: Outcome = COMPLETED, completion_id: str = "chatcmpl-1") -> Row:
    text = "".join(f"w1.{place} " for place in range(words))
    message = Message("m", 0, text, "complete", "assistant")
    return Row(completion_id, "stream-1", outcome, "stop", False, [message])


def verdict_of(stream: Stream, rows: Sequence[Row]) -> dict[str, int]:
    """What is wrong, by name."""
    (verdict,) = judge([stream], rows)
    numbers = dict(zip(NUMBERS, verdict.numbers, strict=True))
    assert (not verdict.is_clean) == any(
        value for name, value in numbers.items() if name != "shown"
    )
    return {name: value for name, value in numbers.items() if value and name != "shown"}


def stream_of(*chunks: Sequence[bytes], asks: int = 1, final: Sequence[bytes] = ()) -> Stream:
    plan = Plan(number=1, fault="", moment="", words=WORDS, asks=asks)
    return Stream(
        plan=plan,
        at="a",
        trips=[trip(plan, each) for each in chunks],
        finals=[trip(plan, final or WHOLE)],
    )


def test_a_good_stream_is_clean() -> None:
    """All saw the same, one joined in the middle, and it is stored."""
    stream = stream_of(WHOLE, WHOLE)
    stream.trips.append(trip(stream.plan, WHOLE[3:], start=3))
    assert {} == verdict_of(stream, [row()])


@pytest.mark.parametrize(
    ("stream", "rows", "wrong"),
    [
        (stream_of(WHOLE), [], {"lost": 4, "no row": 1, "states": 2}),
        (stream_of(WHOLE), [row(3)], {"lost": 1, "states": 1}),
        (stream_of(WHOLE, final=WHOLE[:3]), [row()], {"lost": 2}),
        (stream_of([*WHOLE[:2], *WHOLE[3:]]), [row()], {"lost": 1, "owners": 1}),
        (stream_of([*WHOLE[:3], *WHOLE[2:]]), [row()], {"doubled": 1, "owners": 1}),
        (stream_of([*WHOLE[:2], chunk(2, "else "), *WHOLE[3:]]), [row()], {}),
        (stream_of(WHOLE, asks=2), [row()], {"owners": 1}),
        (stream_of(WHOLE), [row(), row(completion_id="chatcmpl-2")], {"owners": 1}),
        (stream_of(WHOLE), [row(outcome=DIED)], {"states": 3}),
    ],
)
def test_what_is_wrong_would_be_seen(
    stream: Stream, rows: list[Row], wrong: dict[str, int]
) -> None:
    """Each in its own column."""
    found = verdict_of(stream, rows)
    assert wrong == found if wrong else {"doubled", "owners", "lost"} <= set(found)


def test_who_hangs_and_who_is_refused_would_be_seen() -> None:
    """A client without an end; one that had to come back, and nothing excuses it; one that was told an end
    that isn't the row's."""
    stream = stream_of(WHOLE)
    hangs, refused = trip(stream.plan, WHOLE[:2], done=False), trip(stream.plan, WHOLE)
    hangs.hung = True
    refused.told.append("answer_unavailable")
    stream.trips += [hangs, refused, trip(stream.plan, WHOLE[:2], code="process_died")]
    assert {"hung": 1, "errors": 2} == verdict_of(stream, [row()])
    stream.due = frozenset(("answer_unavailable",))
    assert {"hung": 1, "errors": 1} == verdict_of(stream, [row()])


def test_what_a_mode_allows_is_counted_and_no_fault() -> None:
    """Words that a machine took with it are in the table all the same."""
    stream = stream_of(WHOLE, final=WHOLE[:4])
    stream.finals[0].done, stream.finals[0].code = False, "process_died"
    stream.trips[0].done, stream.trips[0].code = False, "process_died"
    stream.plan.expected, stream.may_lose = frozenset((DIED,)), 1
    (verdict,) = judge([stream], [row(3, DIED)])
    assert (1, True) == (verdict.lost, verdict.is_clean)
    stream.may_lose = 0
    (verdict,) = judge([stream], [row(3, DIED)])
    assert not verdict.is_clean
