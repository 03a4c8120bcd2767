"""Plays a journal's lines to sessions of the same state machine, and yields the records they end in.

Pure but for reading files; whose journal it is makes no difference here.

1. A session whose end was never journaled died with its process: it fails with `process_died`, and
   its record has every word that was shown. If its journal could not be written at the last, nobody
   knows what is missing behind its last line: it fails with `journal_damaged`.
2. A session with a gap in its lines' numbers lost some to a damaged disk: the words that are left
   are kept, but never called complete.
3. A session named by a `saved` line is left out: the store has it, or somebody has deleted it since.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
from attrs import evolve

from db.journal.format import VERSION, events_of, request_of
from db.journal.reading import FEW, PAUSE, Damage, name_of, names_of, read_in_turns, read_saved
from db.journal.repeats import pattern_of, run_of
from db.journal.survey import Extent, note_damage
from db.journal.texts import TextReader, Texts
from statemachine import (
    ChunkPattern,
    ChunkReceived,
    Event,
    Failure,
    IllegalTransition,
    Save,
    SessionPolicy,
    SessionRecord,
    SessionRequest,
    State,
    StreamSession,
    UpstreamFailed,
)

log = structlog.get_logger(__name__)

PROCESS_DIED = Failure(
    "process_died", "The service was killed before the answer was complete; the rest is lost."
)
JOURNAL_DAMAGED = Failure(
    "journal_damaged", "Part of the answer was lost to a damaged disk before it was stored."
)
JOURNAL_INCOMPLETE = Failure(
    "journal_damaged",
    "The service was killed while its journal could not be written: the last words of the answer "
    "may be lost.",
)
_TURN_SECONDS = 0.002
"""The longest stretch of reading before other tasks get their turn."""


class _Life:
    """A session that is being played again, and the number that its next line should have.

    `is_exact`: its lines tell what each chunk was, and not only what it said.
    """

    __slots__ = ("expected", "is_damaged", "is_exact", "last_at", "patterns", "session", "texts")

    def __init__(self, session: StreamSession, at: float) -> None:
        self.session = session
        self.expected = 0
        self.last_at = at
        self.is_damaged = False
        self.is_exact = False
        self.patterns: dict[int, ChunkPattern] = {}
        self.texts = Texts()

    def tell_texts(self) -> None:
        """Tell the session of the texts that were put aside."""
        self.texts.tell(self.session, self.last_at)

    def events_of(self, line: Mapping[str, Any]) -> Sequence[Event]:
        """What happened by a line, of whatever kind."""
        if "request" in line:
            return ()
        if "pattern" in line:
            self.patterns[line["n"]] = pattern_of(line)
        if "pattern" in line or "like" in line:
            number = line.get("like", line["n"])
            if (pattern := self.patterns.get(number)) is not None:
                run = run_of(line, line["source"], pattern)
                if type(number) is int:
                    self.texts.follow(pattern, number)
                return (ChunkReceived(run),)
            self.is_damaged = True
        return events_of(line)


class Replay:
    """One reading of some segments. Iterate over `records` once.

    Args:
        segments: the files, or what is to be read of them, oldest first.
        only: the completions wanted; None: all that no `saved` line names.
        is_incomplete: the journal was refusing lines when its process died.
        shortcut: read lines of repeated chunks past JSON (`db.journal.texts`).

    Attributes:
        damages: stretches that were no lines, torn ends aside, and lines that were not understood.
    """

    def __init__(
        self,
        segments: Iterable[Path | Extent],
        only: Collection[str] | None = None,
        *,
        is_incomplete: bool = False,
        shortcut: bool = True,
    ) -> None:
        self._death = JOURNAL_INCOMPLETE if is_incomplete else PROCESS_DIED
        self._segments = [each if isinstance(each, Extent) else Extent(each) for each in segments]
        self._only = only
        self._lives: dict[str, _Life] = {}
        # The lines of a few are looked for, and nothing else is looked at.
        passing = None if only is None or len(only) <= FEW else names_of(only)
        self._texts = TextReader(passing) if shortcut else None
        self._done: set[str] = set()
        self.damages = 0

    async def records(self) -> AsyncIterator[SessionRecord]:
        """The records, in the order in which their sessions ended; last, those that never did.

        Raises OSError: a segment can't be read.
        """
        if self._only is None:
            self._done |= await asyncio.to_thread(_saved, self._segments)
        turn_ends = time.monotonic() + _TURN_SECONDS
        for extent in self._segments:
            data = await asyncio.to_thread(extent.read)
            put_aside = None if self._texts is None else self._texts.read
            for line in read_in_turns(data, self._only, put_aside):
                if time.monotonic() >= turn_ends:
                    await asyncio.sleep(0)
                    turn_ends = time.monotonic() + _TURN_SECONDS
                if line is PAUSE:
                    continue
                if isinstance(line, Damage):
                    if self._only is None:  # else whoever chose them has looked for damage
                        self.damages += note_damage(extent.path, line)
                elif (record := self.take(line)) is not None:
                    yield record
        for completion_id in list(self._lives):
            if (record := self._end(completion_id)) is not None:
                yield record
            await asyncio.sleep(0)

    @property
    def is_damaged(self) -> bool:
        """True if a line was missing, or not understood."""
        return self.damages > 0 or any(life.is_damaged for life in self._lives.values())

    def session_of_one(self) -> StreamSession | None:
        """Where all lines are of one completion: its session, until it has ended."""
        return next((life.session for life in self._lives.values()), None)

    def end_of_one(self) -> SessionRecord | None:
        """The same: no more lines of it come, since its process died; its record. None if it had ended."""
        return next((self._end(completion_id) for completion_id in list(self._lives)), None)

    def take(self, line: Mapping[str, Any]) -> SessionRecord | None:
        """One line in; the completion's record, if this was its end."""
        if "saved" in line:
            return None  # known from the start
        completion_id: Any = line.get("id")
        try:
            if completion_id in self._done or (
                self._only is not None and completion_id not in self._only
            ):
                return None
            life = self._lives.get(completion_id) or self._begin(line)
            return self._play(completion_id, life, line)
        except Exception as error:
            # A whole line that isn't ours, such as one from another version of the format.
            log.error(
                "journal record not understood", id=str(completion_id), reason=repr(error)[:200]
            )
            self.damages += 1
            if isinstance(completion_id, str) and completion_id in self._lives:
                self._lives[completion_id].is_damaged = True
            return None

    def _begin(self, line: Mapping[str, Any]) -> _Life:
        if not isinstance(line["id"], str):
            raise TypeError("an id that is no text")
        if "request" in line:
            session = StreamSession(*request_of(line))
        else:
            session = StreamSession(_forgotten_request(line), SessionPolicy())
        life = self._lives[line["id"]] = _Life(session, float(line["at"]))
        if self._texts is not None:
            self._texts.lives[name_of(line["id"])] = life
        life.is_exact = line.get("version", 1) >= VERSION
        return life

    def _play(
        self, completion_id: str, life: _Life, line: Mapping[str, Any]
    ) -> SessionRecord | None:
        life.tell_texts()
        if line["n"] != life.expected:
            life.is_damaged = True
        life.expected = line["n"] + 1
        life.last_at = max(life.last_at, line["at"])
        for event in life.events_of(line):
            try:
                effects = life.session.handle(event, life.last_at)
            except IllegalTransition:
                life.is_damaged = True  # what came before it is missing
                continue
            for effect in effects:
                if isinstance(effect, Save):
                    self._forget(completion_id)
                    self._done.add(completion_id)
                    return _marked_if_damaged(effect.record, life)
        life.texts.look_at(life.session)
        return None

    def _forget(self, completion_id: str) -> _Life:
        if self._texts is not None:
            self._texts.lives.pop(name_of(completion_id), None)
        return self._lives.pop(completion_id)

    def _end(self, completion_id: str) -> SessionRecord | None:
        life = self._forget(completion_id)
        death = JOURNAL_DAMAGED if life.is_damaged else self._death
        try:
            life.tell_texts()
            effects = life.session.handle(UpstreamFailed(death), life.last_at)
            (save,) = (effect for effect in effects if isinstance(effect, Save))
        except Exception as error:  # what an odd line left behind must not hold up the others
            log.error("session not brought back", id=completion_id, reason=repr(error)[:200])
            self.damages += 1
            return None
        return _marked_if_damaged(save.record, life)


def _marked_if_damaged(record: SessionRecord, life: _Life) -> SessionRecord:
    """The record; if any of its lines is missing, not called complete, whatever its end was."""
    if not life.is_damaged:
        return record if life.is_exact else evolve(record, tape=None)
    return evolve(
        record,
        tape=None,
        state=State.FAILED if record.state is State.COMPLETED else record.state,
        failure=JOURNAL_DAMAGED if record.state is State.COMPLETED else record.failure,
        finish_reason=None,
        whole=False,
    )


def _forgotten_request(line: Mapping[str, Any]) -> SessionRequest:
    """A request for a session whose beginning was lost, of which only its id is known."""
    return SessionRequest(
        completion_id=line["id"],
        created_at=line["at"],
        trace_id="",
        owner="anonymous",
        agent="",
        model="",
        messages=[],
    )


def _saved(segments: Iterable[Extent]) -> set[str]:
    """The completions that `saved` lines name, in whichever segment."""
    return {completion_id for each in segments for completion_id in read_saved(each.read())}
