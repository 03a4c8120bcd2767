"""`POST /v1/chat/completions`: parse, pick the agent, make the session, hand it to the relay;
and `…/{id}/cancel`, which stops one that runs."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from aiohttp import web
from attrs import define

from service.agents.directory import AgentDirectory, askable
from service.agents.protocol import Agent, AgentCall
from service.callers.auth import owner_of
from service.callers.charging import Charging
from service.callers.limits import Admission, Ticket
from service.clock import Clock
from service.edge.connections import ClientConnection, continue_later
from service.edge.errors import ApiError
from service.endpoints.bodies import parsed_body
from service.endpoints.keep_alive import keep_alive_interval
from service.ids import random_hex
from service.settings.config import Config
from service.settings.live import Live
from service.stream.attempts import Attempts
from service.stream.client import ClientSide
from service.stream.moments import Moments, Watchers
from service.stream.ports import Journal, RelayLimits, Saver
from service.stream.relay import Relay
from service.stream.running import RunningStreams
from service.stream.writers import JsonWriter, SseWriter, Writer
from service.telemetry import TRACE, Trace
from service.wire import ChatRequest, ChunkEncoder, parse_request
from statemachine import (
    ClientLeft,
    Failure,
    SessionPolicy,
    SessionRequest,
    State,
    StopRequested,
    StreamSession,
)

_JOURNAL_FULL = Failure(
    "journal_full",
    "The service can't write answers down safely now and takes no new requests.",
    retry_after_seconds=5,
)

AskSiblings = Callable[[web.Request], Awaitable[web.Response | None]]


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
    ask_siblings: AskSiblings | None = None
    """Asks the other workers for a completion that doesn't run here; None: there are none."""

    def routes(self) -> list[web.RouteDef]:
        """The calls and their handlers."""
        every = "/v1/chat/completions"
        return [
            web.post(every, self.create, expect_handler=continue_later),
            web.post(f"{every}/{{completion_id}}/cancel", self.cancel),
        ]

    async def create(self, request: web.Request) -> web.StreamResponse:
        """Answer one request. Cancelled by aiohttp when the client leaves."""
        self.streams.check_room()
        ticket = self.admission.admit(request)
        try:
            server = self.config.value.server
            parse = partial(parse_request, most_values=server.max_body_values)
            chat = await parsed_body(request, server.request_timeout_seconds, parse)
            picked = self.directory.pick(chat.model)
            self.streams.check_room()  # the body may have taken its time
            agents = askable(picked, chat.model)
            relay = self._relay(request, chat, agents, ticket, is_fallback=agents != picked)
        except BaseException:
            ticket.close()
            raise
        task = relay.start()  # which closes the ticket
        self.streams.add(relay, task)
        self.directory.hold(agents, task)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            relay.post(ClientLeft())
            raise

    async def cancel(self, request: web.Request) -> web.Response:
        """Stop a running completion by its id; answers once its partial text is handed over.

        Also one whose client left under `client_gone: finish`. 404 for one that doesn't run, and
        for somebody else's.
        """
        completion_id = request.match_info["completion_id"]
        relay = self.streams.get(completion_id)
        is_theirs = relay is not None and relay.session.request.owner == owner_of(request)
        if relay is None or relay.task is None or not is_theirs:
            if relay is None and self.ask_siblings and (answer := await self.ask_siblings(request)):
                return answer
            message = f"No completion with the id {completion_id[:100]!r} is running."
            raise ApiError(
                Failure("not_found", message, type="invalid_request_error", param="completion_id")
            )
        relay.post(StopRequested())
        await asyncio.wait((relay.task,))
        stopped = relay.session.state is State.CLIENT_GONE
        return web.json_response(
            {"id": completion_id, "object": "chat.completion.cancelled", "cancelled": stopped}
        )

    def _relay(
        self,
        request: web.Request,
        chat: ChatRequest,
        agents: tuple[Agent, ...],
        ticket: Ticket,
        *,
        is_fallback: bool,
    ) -> Relay:
        trace = request[TRACE]
        asked = self._session_request(request, chat, agents[0], trace)
        session = StreamSession(asked, self._policy(request, chat, agents[0], ticket))
        if not self.journal.begin(asked, session.policy):
            raise ApiError(_JOURNAL_FULL)
        limits = RelayLimits(self.config.value.database.commit_timeout_seconds)
        if isinstance(request.protocol, ClientConnection):
            about = {"completion_id": asked.completion_id, "trace_id": asked.trace_id}
            request.protocol.limit_waiting(self.config.value.sse.send_timeout_seconds, about)
        client = ClientSide(self._writer(request, chat, asked), self.clock)
        self.charging.expect(asked.completion_id, ticket)
        moments = Moments(asked, self.watchers)
        call = AgentCall(chat, asked.completion_id, trace.traceparent, is_fallback)
        upstream = Attempts(agents, call, moments)
        return Relay(
            session, self.journal, client, upstream, self.saver, limits, self.clock, moments
        )

    def _session_request(
        self, request: web.Request, chat: ChatRequest, agent: Agent, trace: Trace
    ) -> SessionRequest:
        return SessionRequest(
            completion_id=f"chatcmpl-{random_hex(24)}",
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
        return SessionPolicy(
            client_gone=agent.client_gone or config.client_gone,
            keep_alive_interval_seconds=interval if chat.stream else None,
            idle_seconds=agent.timeouts.idle_seconds,
            total_seconds=agent.timeouts.total_seconds,
            max_answer_bytes=ticket.max_answer_bytes,
        )

    def _writer(self, request: web.Request, chat: ChatRequest, asked: SessionRequest) -> Writer:
        if not chat.stream:
            return JsonWriter(request)
        encoder = ChunkEncoder(
            asked.completion_id, asked.model, int(asked.created_at), asked.include_usage
        )
        return SseWriter(request, encoder)
