"""`GET /v1/chat/completions/{id}`: an answer as it is stored, or as far as it has come; and with
`stream=true` its chunks from any position, then whatever comes, then its end.

An answer is looked for where it runs, among those that wait for the database, in the database, and
at the other workers. Never here: what a chunk looks like, and who may ask how much.
"""

import re
import time
from collections.abc import Awaitable, Callable
from functools import partial

import structlog
from aiohttp import hdrs, web
from attrs import Factory, frozen

from db.store import Readable
from service.callers.auth import owner_of
from service.clock import Clock
from service.edge.connections import ClientConnection
from service.edge.errors import ApiError, invalid_request
from service.edge.siblings import SiblingAway, Siblings, answer_unavailable
from service.endpoints.asking import UNAVAILABLE, ask
from service.endpoints.keep_alive import keep_alive_interval
from service.endpoints.lists import json_response, not_found
from service.endpoints.showing import ended_completion, running_completion, stored_completion
from service.endpoints.stored_answers import stored_answer
from service.fleet.elsewhere import FLEET_UNAVAILABLE, Elsewhere
from service.fleet.mirrors import Mirror
from service.fleet.searching import reach
from service.settings.config import Config
from service.settings.live import Live
from service.stream.answers import Answer, answer_of_record
from service.stream.audience import Audience
from service.stream.follower import EXPIRED, Follower
from service.stream.moments import Watchers, tell
from service.stream.relay import Relay
from service.stream.running import RunningStreams
from service.stream.shared import SharedAnswers, TooManyReaders
from service.stream.writers import SseWriter
from service.telemetry import COMPLETION_ID, FIRST_TRACE_ID
from service.wire import ChunkEncoder
from statemachine import Failure, SessionRecord, StreamSession
from statemachine.tape import Expired

log = structlog.get_logger(__name__)

LAST_EVENT_ID = "Last-Event-ID"
_POSITION = re.compile(r"[0-9]{1,15}", re.ASCII)
AHEAD = Failure(
    "position_ahead",
    "The answer hasn't come so far: its position is behind 'starting_after'. Read it from 0.",
    type="invalid_request_error",
    param="starting_after",
)


@frozen
class Wanted:
    """What a reader asks for.

    Attributes:
        position: how many chunks it has had.
        include_usage: it wants the usage in a chunk of its own, last.
        has_ids: it wants an `id:` with each event.
    """

    position: int = 0
    include_usage: bool = False
    has_ids: bool = False

    @classmethod
    def of(cls, request: web.Request) -> "Wanted":
        """What a GET asks for. Raises ApiError (400)."""
        given = request.query.get("starting_after")
        position = 0 if given is None else _position(given, "starting_after")
        last_id = last_event_id(request)
        if last_id is not None and given is None:
            position = last_id
        elif last_id is not None and position != last_id:
            message = f"'starting_after' and the header {LAST_EVENT_ID} name different positions."
            raise invalid_request(message, "starting_after")
        return cls(position, flag(request, "include_usage"), last_id is not None)


def last_event_id(request: web.Request) -> int | None:
    """The position that the header `Last-Event-ID` names; None without it. Raises ApiError (400)."""
    given = request.headers.get(LAST_EVENT_ID)
    return None if given is None else _position(given.strip() or "0", LAST_EVENT_ID)


def _position(text: str, param: str) -> int:
    if not _POSITION.fullmatch(text):
        message = f"'{param}' must be a whole number from 0 on, not {text[:100]!r}."
        raise invalid_request(message, param)
    return int(text)


def flag(request: web.Request, name: str) -> bool:
    """A parameter that is true or false; false if it isn't given. Raises ApiError (400)."""
    given = request.query.get(name, "false")
    if given.lower() not in ("true", "false"):
        raise invalid_request(f"'{name}' must be true or false, not {given[:100]!r}.", name)
    return given.lower() == "true"


@frozen
class Reading:
    """The endpoint, and all that reads an answer for a client.

    Args:
        is_recovering: whether answers are still being brought back that earlier processes left.
    """

    config: Live[Config]
    store: Readable
    streams: RunningStreams
    clock: Clock
    is_recovering: Callable[[], bool]
    siblings: Siblings | None = None
    elsewhere: Elsewhere | None = None
    shared: SharedAnswers = Factory(SharedAnswers)
    watchers: Watchers = Factory(Watchers)

    def routes(self) -> list[web.RouteDef]:
        """The call and its handler."""
        return [web.get("/v1/chat/completions/{completion_id}", self.get)]

    async def get(self, request: web.Request) -> web.StreamResponse:
        """One completion, or its stream."""
        if flag(request, "stream") and request.method != hdrs.METH_HEAD:
            return await self._stream(request, Wanted.of(request))
        for name in ("starting_after", "include_usage"):
            if name in request.query:
                raise invalid_request(f"'{name}' goes with stream=true.", name)
        return await self._show(request)

    # --- as an object -----------------------------------------------------------------------

    async def _show(self, request: web.Request) -> web.StreamResponse:
        owner, completion_id = owner_of(request), request.match_info["completion_id"]
        relay = self.streams.find(owner, completion_id)
        if relay is not None and relay.record is None:
            return json_response(running_completion(relay.prompt.request, relay.session))
        record = self.record_here(owner, completion_id)
        if record is not None and not record.request.is_hidden:
            return json_response(ended_completion(record))

        async def show_stored() -> web.StreamResponse | None:
            view = await ask(self.store.view(owner, completion_id))
            return None if view is None else json_response(stored_completion(view))

        async def show_elsewhere(elsewhere: Elsewhere) -> web.StreamResponse | None:
            async with elsewhere.reading(owner, completion_id) as mirror:
                if mirror is None:
                    return None
                if mirror.record is None:
                    return json_response(running_completion(mirror.request, mirror.session))
                if mirror.record.request.is_hidden:
                    return None
                return json_response(ended_completion(mirror.record))

        return await self._wherever(request, show_stored, show_elsewhere)

    def record_here(self, owner: str, completion_id: str) -> SessionRecord | None:
        """The record of an answer that is over and not committed yet, if it is in this process."""
        relay = self.streams.find(owner, completion_id)
        if relay is not None and relay.save is not None and not relay.save.done():
            return relay.record
        return self.streams.unsaved.find(owner, completion_id)

    async def _wherever(
        self,
        request: web.Request,
        find_stored: Callable[[], Awaitable[web.StreamResponse | None]],
        find_elsewhere: Callable[[Elsewhere], Awaitable[web.StreamResponse | None]],
    ) -> web.StreamResponse:
        """What isn't in this process, from the database, a sibling or another replica. Raises ApiError:
        `not_found` only if nobody has it; `database_unavailable`, `answer_unavailable` or
        `fleet_unavailable` if that can't be told."""
        # Asked first: what recovery finds is stored before it is over.
        unsure = answer_unavailable() if self.is_recovering() else None
        away: ApiError | None = None
        try:
            if (stored := await find_stored()) is not None:
                return stored
        except ApiError as error:
            if error.failure.code != UNAVAILABLE.code:
                raise
            away = error
        if self.siblings is not None or self.elsewhere is not None:
            answer, doubt = await self._beyond(request, find_elsewhere)
            if answer is not None:
                return answer
            unsure = unsure or doubt
            # One may have ended it, and saved it, between the two questions.
            if away is None and (stored := await find_stored()) is not None:
                return stored
        owner, completion_id = owner_of(request), request.match_info["completion_id"]
        if away is None and self.streams.unsaved.is_known(owner, completion_id):
            away = ApiError(UNAVAILABLE)
        raise away or unsure or not_found("completion", completion_id, "completion_id")

    async def _beyond(
        self,
        request: web.Request,
        find_elsewhere: Callable[[Elsewhere], Awaitable[web.StreamResponse | None]],
    ) -> tuple[web.StreamResponse | None, ApiError | None]:
        """What a sibling or another replica has; and why that can't be told, if one can't be asked."""
        doubt: ApiError | None = None
        if self.siblings is not None:
            try:
                if (answer := await self.siblings.pass_on(request)) is not None:
                    return answer, None
            except (SiblingAway, TimeoutError):
                doubt = answer_unavailable()
        if self.elsewhere is not None:
            try:
                return await find_elsewhere(self.elsewhere), doubt
            except ApiError as error:
                if error.failure.code != FLEET_UNAVAILABLE.code:
                    raise
                doubt = error
        return None, doubt

    # --- as a stream ------------------------------------------------------------------------

    async def _stream(self, request: web.Request, wanted: Wanted) -> web.StreamResponse:
        owner, completion_id = owner_of(request), request.match_info["completion_id"]
        if (here := await self.read_here(request, owner, completion_id, wanted)) is not None:
            return here
        since = time.time() - self.config.value.readers.hidden_seconds
        return await self._wherever(
            request,
            lambda: self.read_stored(request, owner, completion_id, wanted, since),
            lambda elsewhere: self._read_elsewhere(elsewhere, request, wanted),
        )

    async def _read_elsewhere(
        self, elsewhere: Elsewhere, request: web.Request, wanted: Wanted
    ) -> web.StreamResponse | None:
        """Stream an answer that runs at another replica, or ended there a moment ago; None if none does.
        Raises ApiError as `follow` does."""
        owner, completion_id = owner_of(request), request.match_info["completion_id"]
        async with elsewhere.reading(owner, completion_id) as mirror:
            return None if mirror is None else await self.read_along(request, mirror, wanted)

    async def read_along(
        self, request: web.Request, mirror: Mirror, wanted: Wanted
    ) -> web.StreamResponse:
        """The same as `follow`, of one that runs elsewhere and is joined already."""
        await reach(mirror, wanted.position)
        _check_position(mirror.session, wanted)
        self.check_mirror(mirror)
        return await self._read(request, mirror.audience, wanted)

    def check_mirror(self, mirror: Mirror) -> None:
        """Raises ApiError `too_many_readers` (429)."""
        if mirror.count > (most := self._most_readers):
            raise _too_many(most)

    async def read_here(
        self, request: web.Request, owner: str, completion_id: str, wanted: Wanted
    ) -> web.StreamResponse | None:
        """Stream an answer that runs in this process, or waits here for its commit; None if none
        does."""
        relay = self.streams.find(owner, completion_id)
        if relay is not None:
            return await self.follow(request, relay, wanted)
        record = self.streams.unsaved.find(owner, completion_id)
        return None if record is None else await self.read_record(request, record, wanted)

    async def follow(
        self, request: web.Request, relay: Relay, wanted: Wanted
    ) -> web.StreamResponse:
        """Stream an answer that runs. Raises ApiError for a position that it hasn't, or that isn't
        kept, and `too_many_readers` (429)."""
        _check_position(relay.session, wanted)
        self.check_room(relay)
        request[FIRST_TRACE_ID] = relay.session.request.trace_id
        audience = relay.readers.join()
        try:
            return await self._read(request, audience, wanted)
        finally:
            relay.readers.leave()

    def check_room(self, relay: Relay) -> None:
        """Raises ApiError `too_many_readers` (429)."""
        if relay.readers.count >= (most := self._most_readers):
            raise _too_many(most)

    @property
    def _most_readers(self) -> int:
        return self.config.value.readers.max_per_completion

    async def read_record(
        self, request: web.Request, record: SessionRecord, wanted: Wanted
    ) -> web.StreamResponse:
        """Stream an answer that is over and not committed yet."""
        try:
            answer = answer_of_record(record, wanted.position)
        except Expired:
            raise ApiError(EXPIRED) from None
        request[FIRST_TRACE_ID] = record.request.trace_id
        return await self._read_ended(request, answer, wanted)

    async def read_stored(
        self,
        request: web.Request,
        owner: str,
        completion_id: str,
        wanted: Wanted,
        hidden_since: float | None,
    ) -> web.StreamResponse | None:
        """Stream an answer from the database; None if it isn't there, or hidden and ended before
        that moment. Raises ApiError as `follow` does."""
        try:
            with self.shared.one_more(completion_id, self._most_readers) as share:
                call = self.store.replayable(owner, completion_id, hidden_since=hidden_since)
                if (found := await ask(call)) is None:
                    return None
                request[FIRST_TRACE_ID] = found.view.completion.trace_id
                answer = share(stored_answer(found, wanted.position))
                del found  # the answer alone is held while it is read
                return await self._read_ended(request, answer, wanted)
        except TooManyReaders:
            raise _too_many(self._most_readers) from None
        except Expired:
            raise ApiError(EXPIRED) from None

    async def _read_ended(
        self, request: web.Request, answer: Answer, wanted: Wanted
    ) -> web.StreamResponse:
        assert answer.ending is not None
        _check_end(answer.tape.count, wanted, is_whole=answer.ending.failure is None)
        return await self._read(request, answer, wanted)

    async def _read(
        self, request: web.Request, answer: Answer, wanted: Wanted
    ) -> web.StreamResponse:
        config = self.config.value
        request[COMPLETION_ID] = answer.completion_id
        if isinstance(request.protocol, ClientConnection):
            about = {"completion_id": answer.completion_id}
            request.protocol.limit_waiting(config.sse.send_timeout_seconds, about)
        encoder = ChunkEncoder(answer.completion_id, answer.model, answer.created, False)
        follower = Follower(
            answer,
            SseWriter(request, encoder),
            wanted.position,
            (wanted.include_usage, wanted.has_ids),
            keep_alive_interval(request, config),
            self.clock,
            partial(tell, self.watchers.pinged),
        )
        kind = "running" if isinstance(answer, Audience) else "ended"
        tell(self.watchers.resumed, kind)
        log.info("reader came", completion_id=answer.completion_id, position=wanted.position)
        return await follower.run()


def _too_many(most: int) -> ApiError:
    message = f"The answer has {most} readers already, the most that it may have."
    return ApiError(
        Failure("too_many_readers", message, type="rate_limit_error", retry_after_seconds=1)
    )


def _check_position(session: StreamSession, wanted: Wanted) -> None:
    """Raises ApiError for a position that an answer hasn't, or that isn't kept."""
    tape = session.transcript.tape
    if session.state.is_final:
        _check_end(tape.count, wanted, is_whole=session.state.value == "completed")
    elif wanted.position > tape.count:
        raise ApiError(AHEAD)
    if wanted.position < tape.first:
        raise ApiError(EXPIRED)


def _check_end(count: int, wanted: Wanted, *, is_whole: bool) -> None:
    """Raises ApiError for a position behind the end of an answer that is over."""
    end = count + (is_whole and wanted.include_usage)
    if wanted.position > end:
        message = f"The answer has {count} chunks; there is nothing after {wanted.position}."
        raise invalid_request(message, "starting_after")
