"""What every engine promises, held against each of them."""

import asyncio
import time

import pytest

from db.fleet import CLOSED, Engine, Entry, FleetUnavailable, Run
from tests.db.fleet.conftest import MakeEngine

ONE, TWO = "chatcmpl-1", "chatcmpl-2"


def entry(number: int, completion_id: str = ONE, count: int = 1, text: str = "") -> Entry:
    return Entry(completion_id, number, count, (text or f"line {number}\n").encode())


def run_of(engine: Engine, completion_id: str = ONE, owner: str = "anne") -> Run:
    return Run(completion_id, owner, "a", engine.token)


# --- who is there -------------------------------------------------------------------------------


async def test_a_free_name_is_taken_and_renewed(make_engine: MakeEngine) -> None:
    """Who joins holds the name, and holds it again by joining again."""
    engine = make_engine()
    assert engine.token == await engine.join("a", 30)
    assert engine.token == await engine.join("a", 30)
    (replica,) = await engine.replicas()
    assert ("a", engine.token, True) == (replica.name, replica.token, replica.is_alive)


async def test_a_held_name_is_not_given_to_another(make_engine: MakeEngine) -> None:
    """Of two processes with one name the second is told whose it is."""
    first, second = make_engine(), make_engine()
    await first.join("a", 30)
    assert first.token == await second.join("a", 30)


async def test_a_name_is_free_once_its_lease_ran_out_or_was_given_back(
    make_engine: MakeEngine,
) -> None:
    """A successor gets the name, and the one before is known to be dead."""
    first, second, third = make_engine(), make_engine(), make_engine()
    await first.join("a", 0.05)
    await first.append([entry(0)], [run_of(first)])
    await asyncio.sleep(0.1)
    assert second.token == await second.join("a", 30)
    alive = {each.token: each.is_alive for each in await second.replicas()}
    assert {first.token: False, second.token: True} == alive
    await second.leave("a")
    assert third.token == await third.join("a", 30)


async def test_only_one_adopts_and_never_the_living(make_engine: MakeEngine) -> None:
    """What the dead leave is one replica's to end; what the living run is nobody else's."""
    first, second, third = make_engine(), make_engine(), make_engine()
    await first.join("a", 30)
    (known,) = await first.replicas()
    assert not await second.take_over(known, 30)
    await first.append([entry(0)], [run_of(first)])
    await first.join("a", 0.05)
    await asyncio.sleep(0.2)
    assert await second.take_over(known, 30)
    assert await second.take_over(known, 30)
    assert not await third.take_over(known, 30)
    await second.bury(known)
    assert [] == list(await second.replicas())


async def test_who_shares_a_name_is_alive_all_the_same(make_engine: MakeEngine) -> None:
    """A lease is a process's own: of two of one name neither may be taken for dead."""
    first, second = make_engine(), make_engine()
    await first.join("a", 30)
    await second.join("a", 30)
    assert [True, True] == [each.is_alive for each in await first.replicas()]
    await first.append([entry(0)], [run_of(first)])
    await first.leave("a")
    alive = {each.token: each.is_alive for each in await second.replicas()}
    assert {first.token: False, second.token: True} == alive


async def test_who_comes_back_is_not_adopted_any_further(make_engine: MakeEngine) -> None:
    """By whoever has begun to, as well."""
    first, second = make_engine(), make_engine()
    await first.join("a", 0.05)
    await asyncio.sleep(0.2)
    (known,) = await second.replicas()
    assert await second.take_over(known, 30)
    await first.join("a", 30)
    assert not await second.take_over(known, 30)


# --- closed logs --------------------------------------------------------------------------------


async def test_nothing_is_added_to_a_closed_log(make_engine: MakeEngine) -> None:
    """Its owner is told so, of every completion apart, and what came before it stands."""
    owner, adopter = make_engine(), make_engine()
    await owner.append([entry(0), entry(1), entry(0, TWO)], [run_of(owner), run_of(owner, TWO)])
    for _ in range(2):
        await adopter.fence([ONE])
    appended = await owner.append([entry(2), entry(1, TWO), entry(3)])
    assert ({ONE}, set()) == (set(appended.fenced), set(appended.lost))
    closing = Entry(ONE, CLOSED, 0, b"")
    assert [entry(0), entry(1), closing] == list(await adopter.read(ONE))
    assert [closing] == list(await adopter.read(ONE, 1))
    assert [] == list(await adopter.read(ONE, CLOSED))
    assert [entry(0, TWO), entry(1, TWO)] == list(await adopter.read(TWO))
    assert 2 == await owner.length(ONE)


async def test_what_was_there_before_the_closing_is_there(make_engine: MakeEngine) -> None:
    """An entry whose answer was lost is passed over when it is sent again."""
    owner, adopter = make_engine(), make_engine()
    await owner.append([entry(0), entry(1)])
    await adopter.fence([ONE])
    appended = await owner.append([entry(1)])
    assert ([], []) == (list(appended.fenced), list(appended.lost))


async def test_a_log_is_closed_before_it_has_begun(make_engine: MakeEngine) -> None:
    """Nor can it be begun afterwards."""
    owner, adopter = make_engine(), make_engine()
    await adopter.fence([ONE])
    assert 0 == await owner.length(ONE)
    appended = await owner.append([entry(0), entry(1)], [run_of(owner)])
    assert ({ONE}, set()) == (set(appended.fenced), set(appended.lost))


async def test_a_log_that_is_gone_is_told_apart(make_engine: MakeEngine) -> None:
    """The engine has lost it; nobody has taken it over."""
    owner = make_engine()
    appended = await owner.append([entry(1), entry(0, TWO)])
    assert ({ONE}, set()) == (set(appended.lost), set(appended.fenced))


async def test_waiting_ends_with_the_closing(make_engine: MakeEngine) -> None:
    """So that readers are told at once; and it comes once."""
    owner, adopter = make_engine(), make_engine()
    await owner.append([entry(0)])
    waiting = asyncio.create_task(owner.wait({ONE: 0}, 10))
    await asyncio.sleep(0.05)
    await adopter.fence([ONE])
    (closing,) = await asyncio.wait_for(waiting, 5)
    assert (CLOSED, True, b"") == (closing.number, closing.is_closing, closing.lines)
    assert [] == list(await owner.wait({ONE: CLOSED}, 0.05))


# --- what runs ----------------------------------------------------------------------------------


async def test_a_log_is_read_from_anywhere(make_engine: MakeEngine) -> None:
    """Entries come in their order, to the byte, from whatever number."""
    writer, reader = make_engine(), make_engine()
    entries = [entry(0), entry(1, count=2, text="a\nb\n"), entry(3)]
    await writer.append(entries[:2], [run_of(writer)])
    await writer.append(entries[2:])
    assert entries == list(await reader.read(ONE))
    assert entries[2:] == list(await reader.read(ONE, 1))
    assert [] == list(await reader.read(ONE, 3))
    assert 4 == await reader.length(ONE)
    assert 0 == await reader.length(TWO)


async def test_appending_twice_is_appending_once(make_engine: MakeEngine) -> None:
    """What is sent again, because its answer was lost, is there once."""
    engine = make_engine()
    await engine.append([entry(0), entry(1)])
    await engine.append([entry(0), entry(1), entry(2)])
    assert [entry(0), entry(1), entry(2)] == list(await engine.read(ONE))


async def test_a_log_with_a_gap_is_deleted_and_a_whole_one_stays(make_engine: MakeEngine) -> None:
    """So that it can be sent again; whoever had read it as far as the gap goes on there."""
    engine, reader = make_engine(), make_engine()
    await engine.append([entry(0), entry(1, count=2, text="a\nb\n"), entry(3)])
    assert [4, 4, 0] == [await engine.mend(each) for each in (ONE, ONE, TWO)]
    await engine.append([entry(9)])
    assert 0 == await engine.mend(ONE)
    assert [] == list(await reader.read(ONE))
    again = [entry(number) for number in range(10)]
    await engine.append(again)
    assert again[4:] == list(await reader.read(ONE, 3))
    assert 10 == await engine.mend(ONE)


async def test_a_log_without_its_beginning_has_nothing(make_engine: MakeEngine) -> None:
    """Lines that nothing comes before are no use to anybody."""
    engine = make_engine()
    await engine.append([entry(0, text="x"), entry(1)])
    await engine.forget(ONE)
    assert [ONE] == list((await engine.append([entry(2)])).lost)
    assert 0 == await engine.mend(ONE)


async def test_an_engine_that_goes_on_has_lost_nothing(make_engine: MakeEngine) -> None:
    """However often that is asked, and whatever is written meanwhile."""
    engine = make_engine()
    for number in range(3):
        assert float("-inf") == await engine.lost_at()
        await engine.append([entry(number)])


async def test_a_log_that_is_missed_is_a_loss(make_engine: MakeEngine) -> None:
    """Everybody who asks is told when, also a second time."""
    engine = make_engine()
    await engine.append([entry(0)])
    await engine.forget(ONE)
    await engine.append([entry(1)])
    lost_at = await engine.lost_at()
    assert 0 <= time.monotonic() - lost_at < 5
    assert lost_at == await engine.lost_at()


async def test_it_is_told_how_long_a_lease_holds_yet(make_engine: MakeEngine) -> None:
    """To others, and by the engine's clock."""
    engine, other = make_engine(), make_engine()
    await engine.join("a", 30)
    (seen,) = await other.replicas()
    assert seen.is_alive
    assert 25 < seen.lease_seconds <= 30


async def test_what_too_few_have_is_not_taken_for_appended(make_engine: MakeEngine) -> None:
    """Where replicas of the engine are to have it; it is there all the same."""
    engine = make_engine(wait_replicas=2)
    with pytest.raises(FleetUnavailable, match="replicas of the engine have it"):
        await engine.append([entry(0)], [run_of(engine)])
    assert 1 == await engine.mend(ONE)


async def test_it_is_known_who_runs_what(make_engine: MakeEngine) -> None:
    """By its id, and by whose it is."""
    engine, other = make_engine(), make_engine()
    await engine.append([entry(0), entry(0, TWO)], [run_of(engine), run_of(engine, TWO, "bob")])
    assert run_of(engine, TWO, "bob") == await other.find(TWO)
    assert await other.find("chatcmpl-3") is None
    left = {each.completion_id: each.owner for each in await other.left_by(engine.token)}
    assert {ONE: "anne", TWO: "bob"} == left


async def test_it_is_known_what_an_owner_has_under_way(make_engine: MakeEngine) -> None:
    """At whichever replica, whatever the owner is called, and no longer than it runs."""
    one, two, three = make_engine(), make_engine(), make_engine()
    owner = "a{b}ü"
    await one.append([entry(0)], [run_of(one, ONE, owner)])
    await two.append([entry(0, TWO)], [run_of(two, TWO, owner), run_of(two, "chatcmpl-3", "bob")])
    found = sorted(await three.runs_of(owner), key=lambda run: run.completion_id)
    assert [run_of(one, ONE, owner), run_of(two, TWO, owner)] == found
    await two.finish(two.token, [TWO], 30)
    assert [run_of(one, ONE, owner)] == list(await three.runs_of(owner))
    await two.finish(two.token, [TWO, "chatcmpl-3"], 30)
    assert [] == list(await three.runs_of("bob"))
    assert [] == list(await three.runs_of("nobody"))


async def test_what_has_ended_is_gone_after_a_while(make_engine: MakeEngine) -> None:
    """It isn't under way any more at once, and its log can be read for as long as was said."""
    engine = make_engine()
    await engine.append([entry(0)], [run_of(engine)])
    await engine.finish(engine.token, [ONE], 0.2)
    assert [] == list(await engine.left_by(engine.token))
    assert [entry(0)] == list(await engine.read(ONE))
    await asyncio.sleep(0.4)
    assert [] == list(await engine.read(ONE))
    assert await engine.find(ONE) is None


async def test_waiting_ends_with_what_comes(make_engine: MakeEngine) -> None:
    """One call waits for many logs, misses nothing, and ends at once when something is there."""
    writer, reader = make_engine(), make_engine()
    await writer.append([entry(0), entry(0, TWO)])
    waiting = asyncio.create_task(reader.wait({ONE: 0, TWO: 0}, 10))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await writer.append([entry(1, TWO)])
    assert [entry(1, TWO)] == list(await asyncio.wait_for(waiting, 5))
    assert [entry(0), entry(0, TWO), entry(1, TWO)] == list(
        await reader.wait({ONE: -1, TWO: -1}, 10)
    )
    assert [] == list(await reader.wait({ONE: 0}, 0.05))


async def test_a_nudge_ends_the_waiting(make_engine: MakeEngine) -> None:
    """So that there can be one more log to wait for at once, and it is waited again after that."""
    engine, other = make_engine(), make_engine()
    await engine.append([entry(0)])
    for _ in range(2):
        waiting = asyncio.create_task(engine.wait({ONE: 0}, 10))
        await asyncio.sleep(0.1)
        await other.nudge()
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await engine.nudge()
        assert [] == list(await asyncio.wait_for(waiting, 1.5))


# --- asking each other --------------------------------------------------------------------------


async def listen(engine: Engine, answer: str) -> None:
    while True:
        if command := await engine.asked(1):
            await engine.answer(command, f"{answer} {command.what}")


async def test_what_is_asked_is_answered(make_engine: MakeEngine) -> None:
    """Each question gets its own answer, also when many ask at once."""
    asker, owner = make_engine(), make_engine()
    listening = [asyncio.create_task(listen(engine, "did")) for engine in (asker, owner)]
    try:
        answers = await asyncio.gather(
            *(asker.ask(owner.token, f"cancel {number}", 5) for number in range(20))
        )
    finally:
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
    assert [f"did cancel {number}" for number in range(20)] == answers


async def test_silence_is_no_answer(make_engine: MakeEngine) -> None:
    """Nobody who isn't there has said yes."""
    asker = make_engine()
    assert await asker.ask("0123456789abcdef", "cancel", 0.1) is None
