"""Answers a request that was sent before, as its `Idempotency-Key` says, without asking a model again.

A key is claimed on disk before any model is asked. What its completion is found to be decides:

1. It runs: the repeat reads along, from the first chunk; a plain one waits for the end.
2. It has ended, after its first token: the repeat gets what is stored, its true end included.
3. It has ended before: the key is free. So the SDKs' own repeats of a 5xx are real ones.
4. It can't be told now (its process died and is being seen to, or the database is away): a 409 or a
   503, and never a second answer.
5. Its request said something else: a 422; or, with `on_mismatch: run`, a completion of its own, which
   its own repeats find.

Never here: where claims are kept, and how an answer is read.
"""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
from aiohttp import web
from attrs import define, evolve, field, frozen

from db.claims import (
    Claim,
    Claims,
    ClaimsElsewhere,
    ClaimsUnavailable,
    Holder,
    holder_is_alive,
)
from db.store import Readable
from service.callers.auth import owner_of
from service.edge.errors import ApiError, error_response, invalid_request
from service.edge.siblings import SiblingAway, answer_unavailable
from service.endpoints.asking import UNAVAILABLE, ask
from service.endpoints.bodies import LONG_BODY_BYTES
from service.endpoints.lists import json_response
from service.endpoints.reading import Reading, Wanted
from service.endpoints.showing import ended_completion, plain_completion, stored_completion
from service.endpoints.stored_answers import failure_of_row
from service.fleet.elsewhere import FLEET_UNAVAILABLE, RUNS_ELSEWHERE, Elsewhere
from service.settings.config import Config
from service.settings.live import Live
from service.stream.moments import tell
from service.stream.relay import Relay
from service.telemetry import COMPLETION_ID, FIRST_TRACE_ID, REPLAYED
from service.wire import ChatRequest, completion_object, encode_json, error_body
from service.wire.repeats import body_digest, claim_key, is_claimable
from statemachine import Failure, SessionRecord

log = structlog.get_logger(__name__)

KEY = "Idempotency-Key"
_MISMATCH = Failure(
    "idempotency_mismatch",
    "This Idempotency-Key belongs to a request that said something else.",
    type="invalid_request_error",
    param=KEY,
)
_PENDING = Failure(
    "idempotency_pending",
    "The answer to the first request with this Idempotency-Key can't be told yet; please try again.",
    param=KEY,
    retry_after_seconds=1,
)
_CANT_CLAIM = Failure(
    "journal_full",
    "The service can't write down now whose Idempotency-Key this is; please try again.",
    retry_after_seconds=5,
)
_PATIENCE_SECONDS = 3.0
"""How long a repeat waits for a completion that is neither here nor gone."""
_LOOK_SECONDS = 0.05


class _Free(Exception):
    """The completion that holds a key has said nothing: whoever repeats it asks anew."""


class _Unknown(Exception):
    """Nobody can tell now what became of it. Its cause, if any, is what whoever has waited is told."""


def key_of(request: web.Request) -> str | None:
    """A request's `Idempotency-Key`; None without one. Raises ApiError (400)."""
    key = request.headers.get(KEY)
    if key is not None and not is_claimable(key):
        message = f"The header {KEY} is to be 1 to 255 visible ASCII characters."
        raise invalid_request(message, KEY)
    return key


@frozen
class Repeat:
    """A request with a key, and what it asks for."""

    request: web.Request
    chat: ChatRequest
    body: bytes
    wanted: Wanted


@define
class Repeats:
    """Finds out whether a request is a repeat, and answers it if so.

    Args:
        journal: where this process keeps its own; None: it keeps none.
    """

    config: Live[Config]
    claims: Claims
    store: Readable
    reading: Reading
    journal: Path | None
    _starting: set[str] = field(factory=set, init=False)
    """Completions that have claimed their key, or are about to, and aren't found by their id yet."""

    @property
    def _holder(self) -> str:
        return "" if self.journal is None else self.journal.name

    @property
    def _told(self) -> Sequence[Callable[..., None]]:
        return self.reading.watchers.repeated

    async def claim(
        self, repeat: Repeat, key: str, completion_id: str
    ) -> Claim | web.StreamResponse:
        """Claim the key for a new completion; or the answer, if there has been one.

        Raises:
            ApiError: see the module.
        """
        claim = await self._claim(repeat, key, completion_id)
        self._starting.add(completion_id)
        is_ours = False
        try:
            held = await self.claims.take(claim)
            patience_ends = time.monotonic() + _PATIENCE_SECONDS
            while held.completion_id != completion_id:
                try:
                    return await self._answer(repeat, held, claim)
                except _Free:
                    held = await self.claims.take(claim, instead_of=held.completion_id)
                except _Unknown as unknown:
                    if time.monotonic() > patience_ends:
                        tell(self._told, "pending")
                        cause = unknown.__cause__
                        raise cause if cause is not None else ApiError(_PENDING) from None
                    await asyncio.sleep(_LOOK_SECONDS)
            is_ours = True
            tell(self._told, "new")
        except ClaimsUnavailable as error:
            raise _not_reached(error) from None
        finally:
            if not is_ours:
                self._starting.discard(completion_id)
        return claim

    def knows(self, owner: str, completion_id: str) -> bool:
        """True if an owner's completion runs here, is about to, or waits here for its commit."""
        streams = self.reading.streams
        return (
            completion_id in self._starting
            or streams.find(owner, completion_id) is not None
            or streams.unsaved.is_known(owner, completion_id)
        )

    def note_begun(self, claim: Claim) -> None:
        """Its completion is about to be found by its id, in this very turn of the loop."""
        self._starting.discard(claim.completion_id)

    async def release(self, claim: Claim) -> None:
        """Free the key of a request that was refused before any model was asked."""
        try:
            await self.claims.release(claim)
        except ClaimsUnavailable as error:
            log.error("claims not reached", reason=str(error))
        finally:
            self._starting.discard(claim.completion_id)

    async def answer_here(self, repeat: Repeat, key: str) -> web.StreamResponse:
        """Answer a sibling's repeat if its completion runs here, or waits here for its commit.

        Raises ApiError `not_found` if it doesn't."""
        claim = await self._claim(repeat, key, "")
        try:
            held = await self.claims.find(claim.key)
        except ClaimsUnavailable as error:
            raise _not_reached(error) from None
        for _ in range(int(_PATIENCE_SECONDS / _LOOK_SECONDS)):
            if held is None or held.completion_id not in self._starting:
                break
            await asyncio.sleep(_LOOK_SECONDS)
        try:
            if held is not None and (answer := await self._answer_here(repeat, held, claim)):
                return answer
        except _Free:
            pass  # whoever asks looks at it again, and finds its row
        except _Unknown:
            raise ApiError(_PENDING) from None
        raise ApiError(Failure("not_found", "It isn't here.", type="invalid_request_error"))

    async def _claim(self, repeat: Repeat, key: str, completion_id: str) -> Claim:
        request, said = repeat.request, repeat.chat.body
        if len(repeat.body) < LONG_BODY_BYTES:
            body = body_digest(said)
        else:
            body = await asyncio.to_thread(body_digest, said)
        if self.config.value.idempotency.on_mismatch == "run":
            key += f" {body.hex()}"  # no client's key has a space
        digest = claim_key(owner_of(request), request.path, key)
        return Claim(digest, body, completion_id, self._holder, time.time())

    # --- where its completion is ------------------------------------------------------------

    async def _answer(self, repeat: Repeat, held: Claim, claim: Claim) -> web.StreamResponse:
        """Answer a repeat of the completion that holds the key. Raises _Free or _Unknown."""
        if held.completion_id in self._starting:
            raise _Unknown
        if answer := await self._answer_here(repeat, held, claim):
            return answer
        try:
            answer = await self._answer_stored(repeat, held, claim)
            away = None
        except ApiError as error:
            if error.failure.code != UNAVAILABLE.code:
                raise
            away = error
        is_one_away = False
        if answer is None and self.reading.siblings is not None:
            try:
                answer = await self.reading.siblings.pass_on(repeat.request, repeat.body)
            except SiblingAway:
                is_one_away = True
            except TimeoutError:
                raise answer_unavailable() from None
        elsewhere = self.reading.elsewhere if held.token else None
        if answer is None and elsewhere is not None:
            answer = await self._answer_elsewhere(repeat, held, claim, elsewhere)
        if answer is not None:
            return answer
        if away is not None:
            raise away
        if elsewhere is not None:
            owner = owner_of(repeat.request)
            is_lost = await elsewhere.is_lost(owner, held.completion_id, held.token)
        else:
            is_lost = await self._is_lost(held, is_one_away=is_one_away)
        if not is_lost:
            raise _Unknown
        # It may have ended and been saved, or been brought back, between these questions.
        answer = await self._answer_stored(repeat, held, claim)
        if answer is None:
            raise _Free
        return answer

    async def _answer_here(
        self, repeat: Repeat, held: Claim, claim: Claim
    ) -> web.StreamResponse | None:
        owner, reading = owner_of(repeat.request), self.reading
        relay = reading.streams.find(owner, held.completion_id)
        if relay is not None and (relay.record is None or relay.record.ttft_ms is not None):
            self._check_body(held, claim)
            self._note(repeat, held, relay.session.request.trace_id)
            return await self._join(repeat, relay)
        record = reading.record_here(owner, held.completion_id)
        if record is None:
            if reading.streams.unsaved.is_known(owner, held.completion_id):
                raise _Unknown  # it waits for its commit, and is too much to be held here
            return None
        if record.ttft_ms is None:
            raise _Free
        self._check_body(held, claim)
        self._note(repeat, held, record.request.trace_id)
        if repeat.chat.stream:
            return await reading.read_record(repeat.request, record, repeat.wanted)
        return _object_of(record)

    async def _join(self, repeat: Repeat, relay: Relay) -> web.StreamResponse:
        reading = self.reading
        if repeat.chat.stream:
            return await reading.follow(repeat.request, relay, repeat.wanted)
        reading.check_room(relay)
        audience = relay.readers.join()
        try:
            await audience.wait_for_end()
        finally:
            relay.readers.leave()
        if relay.record is None:
            raise ApiError(Failure("internal_error", "The service made a mistake."))
        return _object_of(relay.record)

    async def _answer_elsewhere(
        self, repeat: Repeat, held: Claim, claim: Claim, elsewhere: Elsewhere
    ) -> web.StreamResponse | None:
        """Answer a repeat of what runs at another replica; None if none runs it. Raises _Free, _Unknown or
        ApiError."""
        owner = owner_of(repeat.request)
        try:
            async with elsewhere.reading(owner, held.completion_id) as mirror:
                if mirror is None:
                    return None
                if mirror.record is not None and mirror.record.ttft_ms is None:
                    raise _Free
                self._check_body(held, claim)
                self._note(repeat, held, mirror.request.trace_id)
                if repeat.chat.stream:
                    return await self.reading.read_along(repeat.request, mirror, repeat.wanted)
                self.reading.check_mirror(mirror)
                await mirror.audience.wait_for_end()
                if mirror.record is None:
                    raise answer_unavailable()
                return _object_of(mirror.record)
        except ApiError as error:
            if error.failure.code == RUNS_ELSEWHERE:
                raise _Unknown from error  # or its first line is on its way
            raise

    async def _answer_stored(
        self, repeat: Repeat, held: Claim, claim: Claim
    ) -> web.StreamResponse | None:
        owner = owner_of(repeat.request)
        since = float("-inf")  # whoever has the key gets its answer, also with `store: false`
        found = await ask(self.store.replayable(owner, held.completion_id, hidden_since=since))
        if found is None:
            return None
        row = found.view.completion
        if row.ttft_ms is None:
            raise _Free
        self._check_body(held, claim)
        self._note(repeat, held, row.trace_id)
        if repeat.chat.stream:
            reading = self.reading
            return await reading.read_stored(
                repeat.request, owner, held.completion_id, repeat.wanted, since
            )
        failure = failure_of_row(row, found.tape.status if found.tape else None)
        if failure is None:
            return json_response(plain_completion(found.view))
        return _failed(failure, stored_completion(found.view))

    async def _is_lost(self, held: Claim, *, is_one_away: bool) -> bool:
        """True if nothing of a completion is left, and nothing will come: it was deleted, or its process
        died before it began. It runs nowhere and isn't stored."""
        if self.journal is None or held.holder == self._holder:
            return True
        holder = await asyncio.to_thread(holder_is_alive, self.journal.parent, held.holder)
        if holder is Holder.ALIVE:
            # Either the process itself has it, then it knows of no such completion any more; or
            # whoever brings back what it left.
            return _is_running(held.holder) and not is_one_away
        return holder is Holder.GONE

    def _check_body(self, held: Claim, claim: Claim) -> None:
        if held.body != claim.body:
            tell(self._told, "mismatch")
            raise ApiError(_MISMATCH)

    def _note(self, repeat: Repeat, held: Claim, first_trace_id: str) -> None:
        repeat.request[FIRST_TRACE_ID] = first_trace_id
        repeat.request[COMPLETION_ID] = held.completion_id
        repeat.request[REPLAYED] = True
        tell(self._told, "replayed")


def _not_reached(error: ClaimsUnavailable) -> ApiError:
    log.error("claims not reached", reason=str(error))
    return ApiError(FLEET_UNAVAILABLE if isinstance(error, ClaimsElsewhere) else _CANT_CLAIM)


def _is_running(journal: str) -> bool:
    """True if the process runs whose journal has this name (`db.journal.writing`)."""
    try:
        os.kill(int(journal.split("-")[1]), 0)
    except PermissionError:
        return True
    except (ProcessLookupError, ValueError, IndexError, OverflowError):
        return False
    return True


def _object_of(record: SessionRecord) -> web.Response:
    """A plain repeat's answer, of a record."""
    if record.failure is None:
        return json_response(completion_object(record))
    if record.ttft_ms is None:
        return error_response(record.failure)  # the key is free: the next repeat is a real one
    return _failed(evolve(record.failure, should_retry=False), ended_completion(record))


def _failed(failure: Failure, partial: object) -> web.Response:
    """The error of an answer that broke off, with what there is of it."""
    response = error_response(failure)
    response.body = encode_json({**error_body(failure), "completion": partial})
    return response
