"""Every case as it is: what a streaming client, the official SDK, a plain client and the row show."""

import asyncio

import pytest

from tests.corpus import expected
from tests.corpus.cases import Case, load_all
from tests.corpus.fold import whole_characters
from tests.corpus.marks import every_case
from tests.corpus.stage import Stage
from tests.holdup import measured_loop

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize("case", every_case())
async def test_everybody_sees_what_is_to_be_seen(stage: Stage, case: Case) -> None:
    """The client's answer, the plain answer and the row of each are what the case's file expects,
    field by field, and one envelope holds them together."""
    streamed, plain = await stage.stream(case), await stage.plain(case)
    assert expected.in_stream(case) == expected.without_names(streamed.client)
    assert expected.in_plain(case) == expected.without_names(plain.client)
    for reading in (streamed, plain):
        assert expected.in_row(case) == expected.without_names(reading.row)
        assert reading.client.names in ({}, reading.row.names)
        assert expected.usage_source(case) == reading.usage_source


@pytest.mark.parametrize("case", every_case())
async def test_the_official_sdk_sees_it_too(stage: Stage, case: Case) -> None:
    """Its iterator yields all of it and raises our error; where its helper can fold the chunks, its
    message says the same."""
    seen, completion = await stage.through_sdk(case)
    assert expected.through_sdk(case) == expected.without_names(seen)
    if isinstance(completion, Exception):
        assert (case.expect.sdk_helper or "no reason") in str(completion), repr(completion)
        return
    assert case.expect.sdk_helper is None
    for choice, wanted in zip(
        () if completion is None else completion.choices, seen.choices, strict=False
    ):
        content = choice.message.content
        assert wanted["message"].get("content") == (content and whole_characters(content))
        assert wanted.get("finish_reason") == choice.finish_reason


async def test_the_shortcut_makes_no_difference(stage_without_shortcut: Stage) -> None:
    """Without it, each case's client and row are the same."""
    for case in load_all():
        reading = await stage_without_shortcut.stream(case)
        assert expected.in_stream(case) == expected.without_names(reading.client), case
        assert expected.in_row(case) == expected.without_names(reading.row), case


async def test_no_case_holds_the_loop_up(stage: Stage) -> None:
    """All cases, a few at a time: nobody waits a tenth of a second for the loop."""
    room = asyncio.Semaphore(4)

    async def drain(case: Case) -> None:
        async with room:
            await stage.drain(case)

    async with measured_loop() as loop_time:
        await asyncio.gather(*map(drain, load_all()))
    assert loop_time.longest_ms < loop_time.bound_ms
