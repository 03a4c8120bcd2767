"""Compares what a stream's readers saw with each other, chunk by chunk, and with its row. Pure.

The truth is what can be read from the start after the fault, else what the first client saw, and
whatever a reader saw behind that. For each reader:

1. Its chunks are the truth's from its position on, byte for byte: none is missing, none is there twice.
2. If it saw the end, it saw all, and the end is the row's.
3. It is cut off only where the first client was, or could be: the service was killed. It reaches nobody
   only where new requests are refused: the service ends.
4. After the fault every stored completion can be read, with its end.
"""

from attrs import Factory, define

from tests.faults.plans import Outcome, Plan, Reader
from tests.faults.seen import Seen

_AGAIN = frozenset(("answer_unavailable", "database_unavailable", "draining"))
"""Codes with which a reader may be told to come again while the fault lasts."""


@define
class Comparison:
    """What is wrong with one stream's readers; nothing if all is zero and empty."""

    readers: int = 0
    lost: int = 0
    doubled: int = 0
    different: int = 0
    wrong_ends: int = 0
    hung: int = 0
    said: list[str] = Factory(list)

    @property
    def numbers(self) -> tuple[int, ...]:
        return (
            self.readers,
            self.lost,
            self.doubled,
            self.different,
            self.wrong_ends,
            self.hung,
        )

    @property
    def is_clean(self) -> bool:
        return not any(self.numbers[1:])


def compare(plan: Plan, outcome: Outcome | None) -> Comparison:
    """Judge a plan's readers. `outcome` is its row's; None: it has none."""
    found = Comparison(readers=len(plan.readers))
    for reader in plan.readers:
        reader.seen.read()
        found.hung += reader.hung
    if plan.loses is not None:
        return found  # what a damaged disk took is gone for readers, too
    truth = list(plan.seen.chunks)
    if plan.whole is not None and plan.whole.seen.status == 200:
        truth = list(plan.whole.seen.chunks)
        _align(plan.seen.chunks, 0, truth, found, "the first client", may_go_on=False)
    may_go_on, places = plan.whole is None, list[int]()
    for reader in plan.readers:
        chunks, position, kind = reader.seen.chunks, reader.position, reader.kind
        places.append(_align(chunks, position, truth, found, kind, may_go_on=may_go_on))
    for reader, place in zip(plan.readers, places, strict=True):
        _judge_end(plan, reader, outcome, len(truth) - place, found)
    return found


def _align(
    chunks: list[bytes],
    position: int,
    truth: list[bytes],
    found: Comparison,
    kind: str,
    *,
    may_go_on: bool,
) -> int:
    """Find each chunk's place in the truth, which goes on with what a reader saw behind its end. The
    place after the last."""
    place = position
    for chunk in chunks:
        if place < len(truth) and truth[place] == chunk:
            place += 1
        elif chunk in truth[place + 1 :]:
            later = truth.index(chunk, place + 1)
            found.lost += later - place
            found.said.append(f"{kind}: {later - place} chunks skipped at {place}")
            place = later + 1
        elif chunk in truth[:place]:
            found.doubled += 1
            found.said.append(f"{kind}: one twice at {place}: {chunk[-80:]!r}")
        elif place < len(truth):
            found.different += 1
            found.said.append(f"{kind}: {chunk!r} instead of {truth[place]!r}")
            place += 1
        elif may_go_on:
            truth.append(chunk)
            place += 1
        else:
            found.lost += 1
            found.said.append(f"{kind}: not kept: {chunk[-80:]!r}")
    return place


def _judge_end(
    plan: Plan, reader: Reader, outcome: Outcome | None, left: int, found: Comparison
) -> None:
    seen = reader.seen
    is_end = seen.done or seen.error is not None
    if seen.status == 200 and is_end and left > 0:
        found.lost += left
        found.said.append(f"{reader.kind}: an end, and {left} chunks were left")
    if why := _wrong_end(plan, reader, outcome):
        found.wrong_ends += 1
        found.said.append(f"{reader.kind}: {why}")
    found.said += [f"{reader.kind}: {what}" for what in seen.broken]
    found.different += len(seen.broken)


def _wrong_end(plan: Plan, reader: Reader, outcome: Outcome | None) -> str:
    seen, is_last = reader.seen, reader.is_last
    if reader.hung or reader.has_left:
        return ""
    if seen.done:
        is_true = outcome is not None and outcome.state == "completed"
        return "" if is_true else f"[DONE] of what is {outcome}"
    if seen.error is not None:
        if not is_last and seen.status != 200 and seen.code in _AGAIN:
            return ""
        if outcome is None:
            return "" if seen.code == "not_found" else f"told {seen.code} of what is nowhere"
        return "" if seen.code == outcome.code else f"told {seen.code} of what is {outcome}"
    if seen.whole and seen.status == 200:
        is_true = outcome is not None and outcome.code == "stopped"
        return "" if is_true else f"a bare end of what is {outcome}"
    may_be_cut = plan.may_vanish or not plan.seen.whole or _may_reach_nobody(plan, seen)
    return "" if may_be_cut and not is_last else f"cut off, with status {seen.status}"


def _may_reach_nobody(plan: Plan, seen: Seen) -> bool:
    return "draining" in plan.refusals and not seen.raw
