"""Asks an OpenAI-compatible backend.

The SDK words and signs the requests (`specimen`). The answer is read as raw bytes, because the SDK's
parsed chunks cost three times as much as everything else together (docs/architecture.md). The body
goes in as bytes too: the SDK's own JSON refuses lone surrogates.
"""

import asyncio
from base64 import b64encode
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import aiohttp
import structlog

from service.agents.circuit import Circuits
from service.agents.openai.answer import OpenAIAnswer
from service.agents.openai.body import (
    Undecodable,
    body_of,
    encoding_of,
    is_readable,
    read_at_most,
)
from service.agents.openai.connection import Connection
from service.agents.openai.failures import upstream_failure, with_headers
from service.agents.openai.models import ModelList, models_in
from service.agents.openai.provider import provider_of
from service.agents.openai.reads import EventReader
from service.agents.openai.redacting import Redactor, secrets_of
from service.agents.openai.response import Response
from service.agents.openai.unreachable import cause_of, connection_error
from service.agents.protocol import AgentCall, AgentError, AgentTools, Target, refusal
from service.settings.config import OpenAIAgentConfig
from service.settings.tools import instructions
from service.wire import decode_json, encode_json, upstream_body
from statemachine import Failure
from statemachine.endings import BROKEN_OFF

log = structlog.get_logger(__name__)

_COMPLETIONS, _MODELS = "/chat/completions", "/models"
_MODELS_TIMEOUT_SECONDS = 5.0
_LARGEST_MODELS_BYTES = 2 << 20
_LARGEST_ERROR_BYTES = 65_536
_ERROR_TIMEOUT_SECONDS = 5.0
_IDLE_CONNECTION_SECONDS = 30.0
_HEADERS = {
    "Accept": "text/event-stream",
    "Accept-Encoding": "identity",  # compressed streams arrive in lumps
}
_MODELS_HEADERS = {"Accept": "application/json"}
_SUCCESS = range(200, 300)
_REFUSED = range(400, 600)


class OpenAIAgent:
    """One backend, with a connection pool of its own.

    Args:
        config: its part of the configuration.
        api_key: the backend's key; None for a backend that asks for none.
        tools: see `Agent`.
        uses_shortcut: take repeated chunks by the shortcut (`statemachine.chunks`). Without it each
            is parsed and wakes its stream's task, which is the same, slower, and easier to follow.
    """

    def __init__(
        self,
        config: OpenAIAgentConfig,
        api_key: str | None,
        tools: AgentTools | None = None,
        *,
        uses_shortcut: bool = True,
    ) -> None:
        self.name = config.name
        self.timeouts = config.timeouts
        self.retries = config.retries
        self.fallbacks = config.fallbacks
        self.client_gone = config.client_gone
        self.tools = tools
        trial_seconds = config.timeouts.connect_seconds + config.timeouts.first_token_seconds
        self.circuits = Circuits(config.name, config.circuit, trial_seconds)
        self._config = config
        self._instructions = instructions(config.preamble, config.context)
        self._uses_shortcut = uses_shortcut
        self._cut_off_reasons = frozenset(
            reason.strip().lower() for reason in config.cut_off_reasons
        )
        self._redactor = Redactor(secrets_of(api_key, config.base_url, config.parameters))
        self._models = ModelList(self._ask_for_models)
        place = urlsplit(config.base_url)
        port = place.port  # raises ValueError for one that is none
        self._host = place.hostname or ""
        self._port = port or (443 if place.scheme == "https" else 80)
        self._provider = provider_of(self._host)
        user_and_password, _, host = place.netloc.rpartition("@")
        self._connection = Connection(
            urlunsplit((place.scheme, host, place.path.rstrip("/"), "", "")),
            api_key,
            place.query,
            {**_HEADERS, **_basic(user_and_password)},
            config.timeouts.connect_seconds,
            _IDLE_CONNECTION_SECONDS,
            uses_shortcut,
            may_repeat=config.retries > 0,
        )

    @property
    def is_closed(self) -> bool:
        """True once its connections are given back."""
        return self._connection.is_closed

    def serves(self, model: str) -> bool:
        return model == self.name or any(
            fnmatchcase(model, pattern) for pattern in self._config.models
        )

    def target(self, call: AgentCall) -> Target:
        return Target(self._provider, self._upstream_model(call), self._host, self._port)

    def open(self, call: AgentCall) -> OpenAIAnswer:
        reader = EventReader(
            self._config.max_event_bytes,
            self._cut_off_reasons,
            self._redactor,
            uses_shortcut=self._uses_shortcut,
        )
        return OpenAIAnswer(self, call, reader, self._config.max_event_bytes)

    async def ask(self, call: AgentCall) -> tuple[Response, str]:
        """See `Backend.ask`."""
        body = upstream_body(
            call.request,
            model=self._upstream_model(call),
            parameters=self._config.parameters,
            preamble=self._instructions,
        )
        try:
            response = await self._connection.post(
                _COMPLETIONS, encode_json(body), {"traceparent": call.traceparent}
            )
        except (aiohttp.ClientError, OSError) as error:
            seconds = self.timeouts.connect_seconds
            raise connection_error(error, seconds, self._redactor) from error
        encoding = encoding_of(response)
        if response.status in _SUCCESS and is_readable(encoding):
            return response, encoding
        try:
            raise await self._refusal(response, encoding)
        finally:
            response.close()

    async def prepare(self) -> None:
        await self._connection.prepare(_COMPLETIONS)

    async def models(self) -> list[dict[str, Any]]:
        named = self._named_models()
        listed = {model["id"] for model in named}
        found = await self._models.known()
        return named + [model for model in found if model["id"] not in listed]

    def has_listed(self, model: str) -> bool:
        """True if the backend's latest list of models has this one, and it may be asked for here."""
        return self._models.has(model)

    async def close(self) -> None:
        if self.tools is not None:
            await self.tools.toolbox.close()
        await self._models.close()
        await self._connection.close()

    def _upstream_model(self, call: AgentCall) -> str:
        """Asked for by its own name, or as a fallback, an agent uses the model of its
        `parameters`, if it has one; else the model that the client named."""
        default, asked = self._config.parameters.get("model"), call.request.model
        own = asked == self.name or call.is_fallback
        return default if own and isinstance(default, str) else asked

    def _named_models(self) -> list[dict[str, Any]]:
        names = [model for model in self._config.models if not set(model) & set("*?[")]
        if "model" in self._config.parameters:
            names.insert(0, self.name)
        return [
            {"id": name, "object": "model", "created": 0, "owned_by": self.name} for name in names
        ]

    async def _ask_for_models(self) -> list[dict[str, Any]] | None:
        """What the backend lists and we serve; None if it can't be asked."""
        try:
            async with asyncio.timeout(_MODELS_TIMEOUT_SECONDS):
                found = await self._listed_models()
        except TimeoutError:
            why = f"no answer within {_MODELS_TIMEOUT_SECONDS:g} s"
        except (aiohttp.ClientError, OSError) as error:
            why = cause_of(error, self._redactor)
        except AgentError as error:
            why = error.failure.message
        else:
            return [
                {"object": "model", "created": 0, "owned_by": self.name, **entry}
                for entry in found
                if self.serves(entry["id"])
            ]
        log.warning("models not listed", agent=self.name, reason=why)
        return None

    async def _listed_models(self) -> list[dict[str, Any]]:
        """What the backend lists. Raises AgentError if that is nothing, and what `get` raises."""
        response = await self._connection.get(_MODELS, _MODELS_HEADERS)
        try:
            encoding = encoding_of(response)
            if response.status not in _SUCCESS or not is_readable(encoding):
                raise await self._refusal(response, encoding)
            body = body_of(response, encoding)
            data, is_whole = await read_at_most(
                body, _LARGEST_MODELS_BYTES, _MODELS_TIMEOUT_SECONDS
            )
        finally:
            response.close()
        if not is_whole:
            message = f"The list broke off, or is over {_LARGEST_MODELS_BYTES} bytes long."
            raise refusal(Failure("upstream_malformed", message))
        try:
            found = models_in(decode_json(data))
        except ValueError:
            found = None
        if found is None:
            raise refusal(Failure("upstream_malformed", "The answer is no list of models."))
        return found

    # --- the one door for foreign errors ----------------------------------------------------

    async def _refusal(self, response: Response, encoding: str) -> AgentError:
        """Why a response isn't one to be read, by its status or else by its encoding."""
        if response.status not in _SUCCESS:
            return refusal(await self._status_failure(response))
        return refusal(_unreadable(self._redactor.text(encoding[:100])))

    async def _status_failure(self, response: Response) -> Failure:
        """What a response says that is no answer. Its connection is no good afterwards."""
        status, headers = response.status, response.headers
        said = await _error_body(response)
        if said == "":
            said = f"The model's backend answered {status}."
        own_status = status if status in _REFUSED else None  # a failure leaves as one
        return with_headers(upstream_failure(said, own_status, self._redactor), headers)

    def body_failure(self, error: Exception) -> Failure:
        """What became of a body that was being read."""
        if isinstance(error, Undecodable):
            message = "The model's backend sent a body that cannot be decoded."
            return Failure("upstream_malformed", message)
        return Failure(BROKEN_OFF, "The connection to the model's backend broke.")


def _basic(user_and_password: str) -> dict[str, str]:
    """The header for what stands before the host in an address (RFC 7617)."""
    if not user_and_password:
        return {}
    user, _, password = user_and_password.partition(":")
    pair = f"{unquote(user)}:{unquote(password)}".encode()
    return {"Authorization": f"Basic {b64encode(pair).decode()}"}


def _unreadable(encoding: str) -> Failure:
    message = (
        f"The model's backend sent its answer compressed as {encoding}, which wasn't asked for."
    )
    return Failure("upstream_malformed", message, should_retry=False)


async def _error_body(response: Response) -> Any:
    """What an answer other than 2xx says: JSON, or a text."""
    encoding = encoding_of(response)
    if not is_readable(encoding):
        return ""
    data, _ = await read_at_most(
        body_of(response, encoding), _LARGEST_ERROR_BYTES, _ERROR_TIMEOUT_SECONDS
    )
    try:
        said = decode_json(data)
    except ValueError:
        return data.decode("utf-8", "replace").strip()
    return "" if said is None else said
