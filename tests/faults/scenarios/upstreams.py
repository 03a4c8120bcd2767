"""Upstreams that break in every way we know, at every moment of a stream."""

from collections.abc import Sequence

from tests.faults import upstream
from tests.faults.plans import COMPLETED, Outcome, Plan, failed
from tests.faults.scenario import scenario
from tests.faults.stage import Stage
from tests.faults.upstream import MOMENTS, Misdeed

_LOST = failed("upstream_unreachable", "upstream_incomplete")
_CUT = failed("upstream_incomplete")
_SLOW = failed("first_token_timeout")
_ENDED = frozenset((COMPLETED,))
_JUNK = failed("upstream_malformed")
_GARBLED = failed("upstream_unreachable", "upstream_incomplete", "upstream_malformed")

# misdeed, name, its truth before headers, before the first token, mid-stream, after the finish
# reason: what breaks off, or brings junk, once everything was said has ended well.
BREAKS: tuple[tuple[Misdeed, str, Sequence[frozenset[Outcome]]], ...] = (
    (upstream.reset, "RST", (_LOST, _CUT, _CUT, _ENDED)),
    (upstream.fin, "FIN", (_LOST, _CUT, _CUT, _ENDED)),
    (upstream.truncated, "truncated", (_LOST, _CUT, _CUT, _ENDED)),
    (upstream.malformed, "malformed JSON", (_GARBLED, _JUNK, _JUNK, _ENDED)),
    (upstream.bad_utf8, "bad UTF-8", (_JUNK, _JUNK, _JUNK, _ENDED)),
    (upstream.error_event, "error event", [failed("overloaded")] * 4),
    (upstream.stall, "stall", (_SLOW, _SLOW, failed("idle_timeout"), _ENDED)),
    (upstream.dribble, "byte by byte", [_ENDED] * 4),
)
_TRUTH_AT = dict(zip(MOMENTS, (0, 1, 1, 2, 3), strict=True))


@scenario("upstream", rounds=4)
async def break_everywhere(stage: Stage) -> None:
    """Every misdeed at every moment, all at once, streaming and plain, one choice or two."""
    service = await stage.serve()
    plans: list[Plan] = []
    for misdeed, name, truths in BREAKS:
        for moment in MOMENTS:
            truth = truths[_TRUTH_AT[moment]]
            plans.append(_plan(stage, misdeed, f"upstream: {name}", moment, truth))
    for number in (400, 429, 500):
        fault, truth = f"upstream: status {number}", failed(f"no_{number}")
        plans.append(_plan(stage, upstream.status(number), fault, MOMENTS[0], truth))
    await stage.play(service, plans)
    await stage.finish(service, plans)


def _plan(stage: Stage, misdeed: Misdeed, fault: str, moment: str, truth: frozenset) -> Plan:
    chance = stage.chance
    words = 6 if misdeed is upstream.dribble else chance.randint(5, 30)
    return stage.plan(
        fault,
        moment,
        misdeed=misdeed,
        expected=truth,
        words=words,
        breaks_at=chance.randint(1, words - 1),
        interval_seconds=chance.choice((0.0, 0.01, 0.03)),
        choices=chance.choice((1, 1, 2)),
        stream=chance.random() < 0.85,
        model=chance.choice(("cancel", "finish")),
    )
