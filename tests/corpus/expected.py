"""What each reader of a case is to see, worked out from what its file expects."""

from typing import Any

from attrs import evolve

from tests.corpus.cases import Case, Expected
from tests.corpus.seen import Seen

ESTIMATED = "estimated"


def in_stream(case: Case) -> Seen:
    """For a streaming client."""
    expect = evolve(case.expect, **case.expect.stream)
    asked = case.request.get("stream_options", {}).get("include_usage", False)
    if expect.error is not None and not _choices(expect):
        return Seen(expect.status, error=_told(expect.error))
    return Seen(
        200,
        _choices(expect),
        expect.extra,
        expect.usage if asked and expect.error is None else None,
        None if expect.error is None else _told(expect.error),
        is_whole=expect.error is None,
    )


def in_plain(case: Case) -> Seen:
    """For a plain client."""
    expect = case.expect
    if expect.error is not None:
        return Seen(expect.status, error=_told(expect.error))
    return Seen(200, _choices(expect), expect.extra, expect.usage, is_whole=True)


def in_row(case: Case) -> Seen:
    """For whoever reads the row."""
    expect = case.expect
    is_whole = expect.error is None
    return Seen(200, _choices(expect), expect.extra, expect.usage, expect.error, is_whole)


def through_sdk(case: Case) -> Seen:
    """For the SDK's iterator, which hides `[DONE]`."""
    return evolve(in_stream(case), is_whole=False)


def usage_source(case: Case) -> str:
    """Where the row says that its token counts are from."""
    usage = case.expect.usage
    return "unknown" if usage is None else usage if isinstance(usage, str) else "provider"


def without_names(seen: Seen) -> Seen:
    """A view that can be compared with an expected one: without its envelope, and an estimated
    usage as a word."""
    is_estimated = isinstance(seen.usage, dict) and seen.usage.get("estimated") is True
    return evolve(seen, names={}, usage=ESTIMATED if is_estimated else seen.usage)


def _choices(expect: Expected) -> list[dict[str, Any]]:
    choices = expect.choices
    if not choices and expect.message is not None:
        choices = [{"message": expect.message, **expect.choice}]
        if expect.finish_reason is not None:
            choices[0]["finish_reason"] = expect.finish_reason
    return [{"index": index, **choice} for index, choice in enumerate(choices)]


def _told(error: dict[str, Any]) -> dict[str, Any]:
    """The error as a client is told it."""
    return {key: value for key, value in error.items() if key != "kind"}
