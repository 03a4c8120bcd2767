"""`POST /v1/chat/completions`: parse, pick the agent, make the session, hand it to the relay;
and `…/{id}/cancel`, which stops one that runs."""

import asyncio
from collections.abc import Sequence
from functools import partial

from aiohttp import web
from attrs import define

from db.claims import Claim
from service.agents.directory import AgentDirectory, askable
from service.agents.protocol import Agent, AgentCall
from service.callers.auth import owner_of
from service.callers.charging import Charging
from service.callers.limits import Admission, Ticket
from service.callers.sharing import SharedAdmission
from service.clock import Clock
from service.edge.connections import ClientConnection, continue_later
from service.edge.errors import ApiError
from service.edge.siblings import Siblings, asked_elsewhere
from service.endpoints.bodies import parsed_body
from service.endpoints.client_gone import client_gone_policy
from service.endpoints.keep_alive import keep_alive_interval
from service.endpoints.reading import AHEAD, LAST_EVENT_ID, Wanted, last_event_id
from service.endpoints.repeats import KEY, Repeat, Repeats, key_of
from service.fleet.elsewhere import Elsewhere
from service.ids import random_hex
from service.settings.config import Config
from service.settings.live import Live
from service.stream.client import ClientSide
from service.stream.moments import Moments, Watchers
from service.stream.ports import Journal, RelayLimits, Saver
from service.stream.relay import Relay
from service.stream.running import RunningStreams
from service.stream.writers import JsonWriter, SseWriter, Writer
from service.telemetry import ARRIVED_AT, COMPLETION_ID, REQUEST_ID, TRACE, Trace
from service.turns.making import check_choices, upstream_of
from service.turns.showing import telling
from service.wire import ChatRequest, ChunkEncoder, NumberingEncoder, parse_request
from statemachine import (
    Failure,
    SessionPolicy,
    SessionRequest,
    StreamSession,
)

_JOURNAL_FULL = Failure(
    "journal_full",
    "The service can't write answers down safely now and takes no new requests.",
    retry_after_seconds=5,
)


@define
class Completions:
    """The endpoint, with what it needs of the service. A completion goes on with the configuration
    that it began with."""

    config: Live[Config]
    directory: AgentDirectory
    streams: RunningStreams
    admission: Admission
    saver: Saver
    journal: Journal
    clock: Clock
    watchers: Watchers
    charging: Charging
    repeats: Repeats
    siblings: Siblings | None = None
    """The other workers; None: there are none."""
    elsewhere: Elsewhere | None = None
    """The other replicas; None: there is no fleet."""
    shared: SharedAdmission | None = None
    """Admits by what all replicas count; None: there is no fleet."""

    def routes(self) -> list[web.RouteDef]:
        """The calls and their handlers."""
        every = "/v1/chat/completions"
        return [
            web.post(every, self.create, expect_handler=continue_later),
            web.post(f"{every}/{{completion_id}}/cancel", self.cancel),
        ]

    async def create(self, request: web.Request) -> web.StreamResponse:
        """Answer one request. Cancelled by aiohttp when the client leaves."""
        if KEY in request.headers:
            return await self._create_once(request)
        self.streams.check_room()
        if self.shared is None:
            ticket = self.admission.admit(request)
        else:
            ticket = await self.shared.admit(request)
        try:
            request[COMPLETION_ID] = completion_id = new_completion_id()
            chat, body = await self._parsed(request)
            relay, agents = self._relay(request, chat, ticket, completion_id)
            del chat, body  # they may be large, and the answer long
        except BaseException:
            ticket.close()
            raise
        return await self._run(relay, agents)

    async def _create_once(self, request: web.Request) -> web.StreamResponse:
        """The same for a request with an `Idempotency-Key`, which may be a repeat."""
        is_from_sibling = self.siblings is not None and self.siblings.is_from_sibling(request)
        self.streams.check_open()
        if not is_from_sibling:
            if self.shared is None:
                self.admission.admit_repeat(request)
            else:
                await self.shared.admit_repeat(request)
            request[COMPLETION_ID] = new_completion_id()
        key = key_of(request)
        assert key is not None
        client_gone_policy(request, self.config.value, None, has_key=True)  # junk is a 400, always
        chat, body = await self._parsed(request)
        include_usage, last_id = chat.include_usage is True, last_event_id(request)
        wanted = Wanted(last_id or 0, include_usage, last_id is not None)
        repeat = Repeat(request, chat, body, wanted)
        if is_from_sibling:
            return await self.repeats.answer_here(repeat, key)
        completion_id = request[COMPLETION_ID]
        claim = await self.repeats.claim(repeat, key, completion_id)
        if not isinstance(claim, Claim):
            return claim
        request[COMPLETION_ID] = completion_id
        try:
            if self.shared is None:
                ticket = self.admission.begin(request)
            else:
                ticket = await self.shared.begin(request)
            try:
                relay, agents = self._relay(request, chat, ticket, completion_id)
            except BaseException:
                ticket.close()
                raise
        except BaseException:
            await self.repeats.release(claim)
            raise
        self.repeats.note_begun(claim)
        del chat, body, repeat  # they may be large, and the answer long
        return await self._run(relay, agents)  # which is found by its id before anybody asks

    async def _parsed(self, request: web.Request) -> tuple[ChatRequest, bytes]:
        """What the body asks for, and the body. Raises what reading and parsing raise."""
        server = self.config.value.server
        parse = partial(parse_request, most_values=server.max_body_values)
        return await parsed_body(request, server.request_timeout_seconds, parse)

    async def _run(self, relay: Relay, agents: Sequence[Agent]) -> web.StreamResponse:
        task = relay.start()  # which closes the ticket
        self.streams.add(relay, task)
        self.directory.hold(agents, task)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            relay.readers.lose_client()
            raise

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """Stop a running completion by its id; answers once its partial text is handed over.

        Also one whose client left under `client_gone: finish`. 404 for one that doesn't run, and
        for somebody else's.
        """
        owner, completion_id = owner_of(request), request.match_info["completion_id"]
        stopped = await self.streams.cancel(owner, completion_id)
        if stopped is None and (answer := await asked_elsewhere(self.siblings, request)):
            return answer
        if stopped is None and self.elsewhere is not None:
            stopped = await self.elsewhere.cancel(owner, completion_id)
        if stopped is None:
            message = f"No completion with the id {completion_id[:100]!r} is running."
            raise ApiError(
                Failure("not_found", message, type="invalid_request_error", param="completion_id")
            )
        return web.json_response(
            {"id": completion_id, "object": "chat.completion.cancelled", "cancelled": stopped}
        )

    def _relay(
        self, request: web.Request, chat: ChatRequest, ticket: Ticket, completion_id: str
    ) -> tuple[Relay, Sequence[Agent]]:
        """The completion, about to begin, and whom it may ask.

        Raises:
            ApiError: no agent may be asked, all places are taken, or nothing can be written down.
        """
        picked = self.directory.pick(chat.model)
        self.streams.check_room()  # the body may have taken its time
        agents = askable(picked, chat.model)
        check_choices(agents[0], chat)
        trace = request[TRACE]
        asked = self._session_request(request, chat, agents[0], trace, completion_id)
        session = StreamSession(asked, self._policy(request, chat, agents[0], ticket))
        writer = self._writer(request, chat, asked)
        if not self.journal.begin(asked, session.policy):
            raise ApiError(_JOURNAL_FULL)
        limits = RelayLimits(self.config.value.database.commit_timeout_seconds)
        if isinstance(request.protocol, ClientConnection):
            about = {"completion_id": asked.completion_id, "trace_id": asked.trace_id}
            request.protocol.limit_waiting(self.config.value.sse.send_timeout_seconds, about)
        client = ClientSide(writer, self.clock)
        self.charging.expect(asked.completion_id, ticket)
        moments = Moments(session, self.watchers, request[ARRIVED_AT])
        call = AgentCall(chat, asked.completion_id, trace.traceparent, agents != picked)
        name_attempt = trace.name_attempt if trace.is_recorded else None
        upstream = upstream_of(
            agents, call, moments, name_attempt, session.transcript, ticket.take_tool_call
        )
        relay = Relay(
            session, self.journal, client, upstream, self.saver, limits, self.clock, moments
        )
        return relay, agents

    def _session_request(
        self,
        request: web.Request,
        chat: ChatRequest,
        agent: Agent,
        trace: Trace,
        completion_id: str,
    ) -> SessionRequest:
        return SessionRequest(
            completion_id=completion_id,
            created_at=self.clock(),
            trace_id=trace.trace_id,
            owner=owner_of(request),
            agent=agent.name,
            model=chat.model,
            messages=chat.messages,
            conversation_key=self._conversation_key(request, chat),
            tools=chat.tools,
            parameters=chat.parameters,
            metadata=chat.metadata,
            choices_expected=chat.choices_expected,
            include_usage=chat.include_usage is True and chat.stream,
            stream=chat.stream,
            request_id=request[REQUEST_ID],
        )

    def _conversation_key(self, request: web.Request, chat: ChatRequest) -> str | None:
        """The client's own name for the conversation: a header, else `metadata.conversation_id`."""
        for name in self.config.value.server.conversation_headers:
            if key := request.headers.get(name):
                return key
        key = (chat.metadata or {}).get("conversation_id")
        return key or None

    def _policy(
        self, request: web.Request, chat: ChatRequest, agent: Agent, ticket: Ticket
    ) -> SessionPolicy:
        config = self.config.value
        interval = keep_alive_interval(request, config)
        policy = SessionPolicy(
            client_gone=client_gone_policy(
                request, config, agent.client_gone, has_key=KEY in request.headers
            ),
            client_gone_wait_seconds=config.client_gone_wait_seconds,
            keep_alive_interval_seconds=interval if chat.stream else None,
            idle_seconds=agent.timeouts.idle_seconds,
            total_seconds=agent.timeouts.total_seconds,
            max_answer_bytes=ticket.max_answer_bytes,
            max_tape_bytes=config.readers.max_tape_bytes,
        )
        return policy if agent.tools is None else telling(policy, agent.tools, request.headers)

    def _writer(self, request: web.Request, chat: ChatRequest, asked: SessionRequest) -> Writer:
        if not chat.stream:
            return JsonWriter(request)
        kind = ChunkEncoder
        if LAST_EVENT_ID in request.headers:
            if last_event_id(request):
                raise ApiError(AHEAD)  # of an answer that hasn't begun
            kind = NumberingEncoder
        created = int(asked.created_at)
        encoder = kind(asked.completion_id, asked.model, created, asked.include_usage)
        return SseWriter(request, encoder)


def new_completion_id() -> str:
    """A completion's id."""
    return f"chatcmpl-{random_hex(24)}"
