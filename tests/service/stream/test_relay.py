"""The relay alone, between hand-written neighbours: order, moments, its own faults."""

import asyncio

import pytest

from db.saver import NotKept
from service.stream.ports import RelayLimits
from statemachine import (
    ChunkReceived,
    ClientLeft,
    Failure,
    SessionPolicy,
    State,
    StopRequested,
    UpstreamFailed,
    UpstreamFinished,
)
from tests.service.stream.neighbours import Broken, Stage, words
from tests.statemachine.conftest import finish_chunk


@pytest.mark.parametrize("fate", ["whole", "failed", "left", "cancelled", "not saved"])
async def test_moments_are_announced_once_and_in_order(fate: str) -> None:
    """Whatever becomes of a completion, its beginning is announced first and its closing last, and
    a watcher that raises holds up neither the others nor the answer."""
    stage = Stage(limits=RelayLimits(0.05), watchers=[Broken()])
    stage.saver.is_slow = fate == "not saved"
    stage.start().upstream.say(*words("a"), *words("b"))
    await stage.settle()
    assert ["began", "first token"] == stage.noted.moments
    assert stage.relay.task is not None
    match fate:
        case "left":
            stage.relay.post(ClientLeft())
        case "failed":
            stage.upstream.say(UpstreamFailed(Failure("upstream_error", "It broke.")))
        case "cancelled":
            stage.relay.task.cancel()
        case _:
            stage.upstream.say(UpstreamFinished())
    await asyncio.wait((stage.relay.task,))
    state = {"left": "client_gone", "failed": "failed"}.get(fate, "completed")
    ended = {
        "cancelled": [],
        "not saved": ["ended completed"],
    }.get(fate, [f"ended {state}", "saved chatcmpl-1"])
    assert stage.noted.moments[2:] == [*ended, "closed"]


async def test_a_save_that_comes_late_is_announced_late() -> None:
    """A commit after the client got its end is a moment like any other."""
    stage = Stage(limits=RelayLimits(0.05))
    stage.saver.is_slow = True
    stage.start().upstream.say(*words("a"), UpstreamFinished())
    await stage.end()
    assert "closed" == stage.noted.moments[-1]
    stage.saver.futures[0].set_result(None)
    await stage.settle()
    assert "saved chatcmpl-1" == stage.noted.moments[-1]


async def test_a_save_that_fails_is_announced() -> None:
    """A record that was neither committed nor set aside; who watches for a commit hears nothing."""
    stage = Stage(limits=RelayLimits(0.05))
    stage.saver.is_slow = True
    stage.start().upstream.say(*words("a"), UpstreamFinished())
    await stage.end()
    stage.saver.futures[0].set_exception(NotKept())
    await stage.settle()
    assert ["closed", "not saved chatcmpl-1"] == stage.noted.moments[-2:]


async def test_chunks_of_one_read_leave_together_and_done_comes_last() -> None:
    """The record is saved and the upstream closed."""
    stage = Stage().start()
    stage.upstream.say(*words("a", "b"))
    await stage.settle()
    assert ["open", "send a|b"] == stage.writer.calls
    stage.upstream.say(ChunkReceived(finish_chunk()), UpstreamFinished())
    record = await stage.end()
    assert ["send -", "done", "response"] == stage.writer.calls[2:]
    assert record.state is State.COMPLETED
    assert stage.upstream.closed


async def test_a_slow_commit_delays_done_only_so_long() -> None:
    """`[DONE]` waits for the commit at most `commit_timeout_seconds`."""
    stage = Stage(limits=RelayLimits(0.05))
    stage.saver.is_slow = True
    stage.start().upstream.say(*words("a"), UpstreamFinished())
    await stage.end()
    assert ["done", "response"] == stage.writer.calls[-2:]


async def test_an_upstream_that_breaks_after_its_reason_has_ended_well() -> None:
    """A connection that breaks after every finish reason has left nothing out."""
    broken = UpstreamFailed(Failure("upstream_incomplete", "It broke."))
    stage = Stage().start()
    stage.upstream.say(*words("a"), ChunkReceived(finish_chunk()), broken)
    assert (await stage.end()).state is State.COMPLETED


@pytest.mark.parametrize("breaks", ["read", "write", "ping"])
async def test_a_fault_of_our_own_keeps_the_text(breaks: str) -> None:
    """A mistake in our own code fails the completion, whose text is saved all the same."""
    stage = Stage(SessionPolicy(keep_alive_interval_seconds=0.05)).start()
    stage.upstream.say(*words("a"))
    await stage.settle()
    if breaks == "read":
        stage.upstream.events.put_nowait(ZeroDivisionError())
    else:
        stage.writer.fails = ZeroDivisionError()
    if breaks == "write":
        stage.upstream.say(*words("b"))
    record = await stage.end()
    assert record.failure is not None
    assert (State.FAILED, "internal_error") == (record.state, record.failure.code)
    assert record.choices[0].message["content"] in ("a", "ab")


async def test_the_record_is_saved_though_the_clients_side_breaks() -> None:
    """Even if the client's side breaks in an unforeseen way at the very end, the record is saved."""
    stage = Stage().start()
    stage.writer.fails = ZeroDivisionError()
    stage.upstream.say(UpstreamFailed(Failure("upstream_error", "It broke.")))
    record = await stage.end()
    assert record.state is State.FAILED


async def test_somebody_elses_cancellation_is_not_swallowed() -> None:
    """A relay cancelled by anybody but itself ends as cancelled and cuts its client off."""
    stage = Stage().start()
    await stage.settle()
    assert stage.relay.task is not None
    stage.relay.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stage.relay.task
    assert ["abort"] == stage.writer.calls
    assert stage.upstream.closed


async def test_somebody_elses_cancellation_after_an_end_is_not_swallowed_either() -> None:
    """The relay swallows the one interruption that it made, and no other."""
    stage = Stage(limits=RelayLimits(60.0))
    stage.saver.is_slow = True
    stage.start().upstream.say(*words("a"))
    await stage.settle()
    stage.relay.post(StopRequested())
    await stage.settle()
    assert 1 == len(stage.saver.records)
    assert stage.relay.task is not None
    stage.relay.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stage.relay.task
    assert "closed" == stage.noted.moments[-1]
