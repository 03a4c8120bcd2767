"""The screen of one completion: its life as a picture, its question and answer as they are stored or as
far as they have come. One that runs grows by the endpoint by which clients resume.

Never here: how it is drawn (`service.page.timeline`), what is hidden (`service.page.texts`).
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog
from aiohttp import web
from attrs import astuple

from db.store import CompletionView, Page, Paging, StoredCompletion, StoredMessage
from service.callers.auth import OWNER
from service.edge.siblings import asked_elsewhere
from service.endpoints.reading import Wanted
from service.endpoints.showing import running_completion, stored_completion
from service.page.called import called, stretches
from service.page.doorway import Visitor
from service.page.running import row_of
from service.page.screens import Screens, look, nothing
from service.page.texts import (
    HIDDEN,
    calls_of,
    code_of,
    name_shown,
    parameters_shown,
    reasoning_of,
    role_of,
    said,
    without_texts,
)
from service.page.timeline import Asked, timeline_of
from service.page.watched import Watched
from service.page.writing import command, compact_text, completion_text, cut
from service.stream.relay import Relay
from statemachine import SessionRequest, StreamSession

log = structlog.get_logger(__name__)

_PROMPT = 100
_ENDED = "It has ended, and what was said waits for the database. Look again in a moment."


class OneCompletion:
    """The screen, and the stream of one that runs."""

    def __init__(self, screens: Screens) -> None:
        self._screens = screens
        self._watched = screens.watched

    def routes(self) -> list[web.RouteDef]:
        """The calls and their handlers."""
        path, shown = "/page/completions/{completion_id}", self._screens.shown
        return [web.get(path, shown(self.show)), web.get(f"{path}/stream", shown(self.stream))]

    async def show(self, request: web.Request, visitor: Visitor) -> web.StreamResponse:
        """The page; to a sibling, what is known of it here."""
        watched, name = self._watched, request.match_info["completion_id"]
        relay = watched.streams.find_any(name)
        if watched.siblings is not None and watched.siblings.is_from_sibling(request):
            told = {"life": watched.lives.of(name), "running": self._seen(relay)}
            return web.json_response(text=await asyncio.to_thread(compact_text, told))
        life, running = watched.lives.of(name), self._seen(relay)
        if running is None:
            view = await look(watched.store.view_any(name))
            if life is None or view is None:
                life, running = await self._ask_others(request, life)
            if view is not None:
                return await self._stored(request, visitor, view, life)
            if running is None and not watched.streams.unsaved.has(name):
                running = await self._seen_elsewhere(name)
        if running is None and watched.streams.unsaved.has(name):
            return self._screens.message(visitor, 409, _ENDED)
        if running is None:
            raise nothing("completion with the id", name)
        self._note_opened(visitor, name)
        return await self._running(visitor, running, life)

    async def stream(self, request: web.Request, visitor: Visitor) -> web.StreamResponse:
        """What comes of one that runs, from a position on: `GET /v1/chat/completions/{id}`, whoever's
        it is. The worker that the visitor asked writes the line in the log."""
        watched, name = self._watched, request.match_info["completion_id"]
        if not watched.shows_texts:
            raise web.HTTPForbidden(reason="Texts aren't shown here (admin.texts).")
        siblings, relay = watched.siblings, watched.streams.find_any(name)
        is_from_sibling = siblings is not None and siblings.is_from_sibling(request)
        if relay is None or relay.session.request.is_hidden:
            answer = None
            if relay is None:
                if siblings is not None and not is_from_sibling:
                    self._note_opened(visitor, name)
                answer = await asked_elsewhere(siblings, request)
                if answer is None and not is_from_sibling:
                    answer = await self._stream_elsewhere(request, visitor, name)
            if answer is None:
                raise nothing("running completion with the id", name)
            return answer
        if not is_from_sibling:
            self._note_opened(visitor, name)
        request[OWNER] = relay.session.request.owner
        return await watched.reading.follow(request, relay, Wanted.of(request))

    async def _stream_elsewhere(
        self, request: web.Request, visitor: Visitor, name: str
    ) -> web.StreamResponse | None:
        """The same of one that runs at another replica; None if none does."""
        reading = self._watched.reading
        if reading.elsewhere is None:
            return None
        async with reading.elsewhere.reading(None, name) as mirror:
            if mirror is None or mirror.request.is_hidden:
                return None
            self._note_opened(visitor, name)
            request[OWNER] = mirror.request.owner
            return await reading.read_along(request, mirror, Wanted.of(request))

    # --- one that runs ----------------------------------------------------------------------

    def _seen(self, relay: Relay | None) -> dict[str, Any] | None:
        """What the page shows of one that runs here, as JSON; None if it doesn't."""
        if relay is None:
            return None
        replica, count = self._watched.replica, relay.readers.count
        return self._seen_of(relay.session, relay.prompt.request, count, replica)

    async def _seen_elsewhere(self, name: str) -> dict[str, Any] | None:
        """The same of one that runs at another replica, as its log has it. Its readers are those of
        this replica."""
        elsewhere = self._watched.reading.elsewhere
        if elsewhere is None:
            return None
        async with elsewhere.reading(None, name) as mirror:
            if mirror is None:
                return None
            if mirror.record is not None:
                raise web.HTTPConflict(reason=_ENDED)
            count = mirror.count - 1  # this look isn't one of them
            return self._seen_of(mirror.session, mirror.request, count, mirror.run.replica)

    def _seen_of(
        self, session: StreamSession, asked_with: SessionRequest, readers: int, replica: str
    ) -> dict[str, Any] | None:
        if session.request.is_hidden:
            return None
        now = self._watched.clock()
        asked = Asked(
            session.request.created_at,
            session.first_token_at,
            None,
            session.client_left_at,
            session.state.value,
            None,
            session.agent,
        )
        shown = running_completion(asked_with, session)
        texts = self._watched.shows_texts
        return {
            "row": row_of(session, readers, now, replica),
            "asked": list(astuple(asked)),
            "now": now,
            "request_id": session.request.request_id,
            "trace_id": session.request.trace_id,
            "position": session.transcript.tape.count,
            "object": shown if texts else without_texts(shown),
            "prompt": list(asked_with.messages)[-_PROMPT:] if texts else None,
        }

    async def _running(
        self, visitor: Visitor, running: dict[str, Any], life: dict[str, Any] | None
    ) -> web.Response:
        prompt = running["prompt"]
        row, shown = running["row"], running["object"]
        choices = [self._message(choice["message"]) for choice in shown["choices"]]
        return self._screens.page(
            "running.html",
            visitor,
            here="Completions",
            running=running,
            row=row,
            line=timeline_of(Asked(*running["asked"]), life, running["now"], stretches(shown)),
            calls=called(shown, shows_texts=self._watched.shows_texts),
            prompt=None if prompt is None else [self._message(message) for message in prompt],
            answers=choices or [self._message({"role": "assistant", "content": ""})],
            raw=await asyncio.to_thread(completion_text, shown),
        )

    async def _ask_others(self, request: web.Request, life: Any) -> tuple[Any, Any]:
        """What siblings know: the life, and how it runs."""
        running = None
        for other in await self._watched.ask_others(request):
            life, running = life or other["life"], running or other["running"]
        return life, running

    # --- one that is stored -----------------------------------------------------------------

    async def _stored(
        self, request: web.Request, visitor: Visitor, view: CompletionView, life: Any
    ) -> web.Response:
        watched, row, texts = self._watched, view.completion, self._watched.shows_texts
        prompt: Page[StoredMessage] | None = None
        if texts:
            paging = Paging(_PROMPT, descending=True)
            prompt = await look(watched.store.list_any_prompt(row.completion_id, paging))
            self._note_opened(visitor, row.completion_id)
        shown = stored_completion(view)
        messages = [] if prompt is None else [one.message for one in reversed(prompt.items)]
        is_whole, again = prompt is not None and not prompt.has_more, None
        raw = await asyncio.to_thread(completion_text, shown if texts else without_texts(shown))
        if is_whole:
            url = _url(watched, request)
            again = await asyncio.to_thread(command, url, row, messages, view.tools)
        return self._screens.page(
            "completion.html",
            visitor,
            here="Completions",
            row=row,
            error=_error(row, shows_texts=texts),
            finish_reason=row.finish_reason if texts else name_shown(row.finish_reason),
            line=timeline_of(_asked(row), life, row.finished_at, stretches(shown)),
            calls=called(shown, shows_texts=texts),
            remembers=life is not None,
            prompt=[self._message(message) for message in messages],
            prompt_is_whole=is_whole,
            answers=[self._message(choice.message) for choice in view.choices],
            parameters=parameters_shown(row, shows_texts=texts),
            raw=raw,
            command=again,
        )

    def _note_opened(self, visitor: Visitor, completion_id: str) -> None:
        if self._watched.shows_texts:
            log.info("text opened", completion_id=completion_id, admin=visitor.name)

    def _message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message as it is shown."""
        if not self._watched.shows_texts:
            return {"role": role_of(message), "text": HIDDEN, "calls": [], "reasoning": ""}
        return {
            "role": role_of(message),
            "text": cut(said(message.get("content"))),
            "calls": [cut(call) for call in calls_of(message)],
            "reasoning": cut(reasoning_of(message)),
        }


def _asked(row: StoredCompletion) -> Asked:
    first = None if row.ttft_ms is None else row.created_at + row.ttft_ms / 1000
    error = None if row.error is None else code_of(row.error)
    ended = row.created_at + row.duration_ms / 1000
    state = row.state.value
    return Asked(row.created_at, first, ended, row.client_left_at, state, error, row.agent)


def _error(row: StoredCompletion, *, shows_texts: bool) -> dict[str, Any] | None:
    """Why it failed. A backend's own message may quote what was asked."""
    if row.error is None:
        return None
    code = code_of(row.error)
    is_ours = not (code.startswith("upstream_") or "kind" in row.error)
    message = row.error.get("message") if shows_texts or is_ours else HIDDEN
    reported = row.error.get("code")
    return {
        "code": code,
        "reported": reported if shows_texts else name_shown(reported),
        "message": message,
    }


def _url(watched: Watched, request: web.Request) -> str:
    """Where the same is asked again. At operators' own address nobody knows the API's."""
    host = "HOST" if watched.addresses.is_operators(request) else request.host
    return f"{request.scheme}://{host}/v1/chat/completions"
