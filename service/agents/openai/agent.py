"""Asks an OpenAI-compatible backend. Only this file and `connection` see `openai`.

The SDK finds the backend, builds and signs the request, and lists the models. The answer is read as
raw bytes, because the SDK's parsed chunks cost three times as much as everything else together
(docs/architecture.md). The body goes in as bytes too: the SDK's own JSON refuses lone surrogates.
"""

import asyncio
import math
import time
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import Any

import aiohttp
import httpx2
import openai
import structlog
from aiohttp.http_exceptions import ContentEncodingError
from attrs import evolve

from service.agents.openai.answer import OpenAIAnswer
from service.agents.openai.connection import Connection
from service.agents.openai.failures import upstream_failure
from service.agents.openai.reads import EventReader
from service.agents.protocol import AgentCall, AgentError
from service.settings.config import OpenAIAgentConfig
from service.wire import decode_json, encode_json, upstream_body
from statemachine import Failure
from statemachine.endings import BROKEN_OFF

log = structlog.get_logger(__name__)

_MODELS_CACHED_SECONDS = 60.0
_MODELS_RETRIED_SECONDS = 5.0
_MODELS_TIMEOUT_SECONDS = 5.0
_IDLE_CONNECTION_SECONDS = 30.0
_LONGEST_ERROR_BODY = 200
_NO_KEY = "no-key-needed"
_HEADERS = {
    "Accept": "text/event-stream",
    "Accept-Encoding": "identity",  # compressed streams arrive in lumps
}
_RETRYABLE_STATUSES = frozenset((408, 409, 429))
_FINAL_STATUSES = frozenset((400, 413, 422))
"""The request itself is at fault; another agent would say the same."""


class OpenAIAgent:
    """One backend, with a connection pool of its own.

    Args:
        config: its part of the configuration.
        api_key: the backend's key; None for a backend that asks for none.
        uses_shortcut: take repeated chunks by the shortcut (`statemachine.chunks`). Without it each
            is parsed and wakes its stream's task, which is the same, slower, and easier to follow.
    """

    def __init__(
        self, config: OpenAIAgentConfig, api_key: str | None, *, uses_shortcut: bool = True
    ) -> None:
        self.name = config.name
        self.timeouts = config.timeouts
        self.retries = config.retries
        self.fallbacks = config.fallbacks
        self.client_gone = config.client_gone
        self._config = config
        self._key = api_key
        self._uses_shortcut = uses_shortcut
        self._cut_off_reasons = frozenset(
            reason.strip().lower() for reason in config.cut_off_reasons
        )
        self._models: list[dict[str, Any]] = []
        self._models_until = 0.0
        self._asking_for_models = asyncio.Lock()
        tls = httpx2.create_ssl_context()  # reads the trusted authorities, which takes a while
        self._client = openai.AsyncOpenAI(
            api_key=api_key or _NO_KEY,
            base_url=config.base_url,
            max_retries=0,  # `service.stream.attempts` retries, and knows about fallbacks
            http_client=openai.DefaultAioHttpClient(verify=tls),
        )
        self._connection = Connection(
            self._client,
            "/chat/completions",
            _HEADERS,
            tls,
            config.timeouts.connect_seconds,
            _IDLE_CONNECTION_SECONDS,
            uses_shortcut,
        )

    def serves(self, model: str) -> bool:
        return model == self.name or any(
            fnmatchcase(model, pattern) for pattern in self._config.models
        )

    def open(self, call: AgentCall) -> OpenAIAnswer:
        reader = EventReader(
            self._config.max_event_bytes,
            self._cut_off_reasons,
            uses_shortcut=self._uses_shortcut,
        )
        return OpenAIAnswer(self, call, reader)

    async def ask(self, call: AgentCall) -> aiohttp.ClientResponse:
        """Send one request. Raises AgentError, also for any status but 200."""
        body = upstream_body(
            call.request,
            model=self._upstream_model(call),
            parameters=self._config.parameters,
            preamble=self._config.preamble,
        )
        try:
            response = await self._connection.post(
                encode_json(body), {"traceparent": call.traceparent}
            )
        except (aiohttp.ClientError, OSError) as error:
            raise self._connection_error(error) from error
        if response.status != HTTPStatus.OK:
            async with response:
                raise self._status_error(response, await _error_body(response))
        return response

    async def models(self) -> list[dict[str, Any]]:
        named = self._named_models()
        async with self._asking_for_models:  # callers who come meanwhile get the same list
            if time.monotonic() >= self._models_until:
                found = await self._ask_for_models()
                good_for = _MODELS_RETRIED_SECONDS if found is None else _MODELS_CACHED_SECONDS
                self._models_until = time.monotonic() + good_for
                self._models = self._models if found is None else found
        listed = {model["id"] for model in named}
        return named + [model for model in self._models if model["id"] not in listed]

    async def close(self) -> None:
        await self._connection.close()
        await self._client.close()

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
            response = await self._client.get(
                "/models",
                cast_to=httpx2.Response,
                options={"timeout": _MODELS_TIMEOUT_SECONDS},
            )
            entries = decode_json(response.content)["data"]
            found = [entry for entry in entries if isinstance(entry.get("id"), str)]
        except (openai.OpenAIError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("models not listed", agent=self.name, reason=type(error).__name__)
            return None
        return [
            {"object": "model", "created": 0, "owned_by": self.name, **entry}
            for entry in found
            if self.serves(entry["id"])
        ]

    # --- the one door for foreign errors ----------------------------------------------------

    def _status_error(self, response: aiohttp.ClientResponse, body: Any) -> AgentError:
        status = response.status
        if isinstance(body, str):
            text = self._redacted(body).strip()[:_LONGEST_ERROR_BODY]
            body = {"message": text or f"The backend of agent {self.name!r} answered {status}."}
        failure = evolve(
            upstream_failure(body, status),
            retry_after_seconds=_seconds(response.headers.get("retry-after")),
        )
        return AgentError(
            evolve(failure, message=self._redacted(failure.message)),
            is_retryable=status in _RETRYABLE_STATUSES or status >= 500,
            is_final=status in _FINAL_STATUSES,
        )

    def _redacted(self, text: str) -> str:
        """Some backends quote the key they refuse."""
        return text.replace(self._key, "***") if self._key else text

    def _connection_error(self, error: Exception) -> AgentError:
        if isinstance(error, aiohttp.ServerTimeoutError):
            seconds = self.timeouts.connect_seconds
            message = f"Connecting to the backend of agent {self.name!r} took over {seconds:g} s."
            failure = Failure("connect_timeout", message, type="timeout_error")
        else:
            message = f"The backend of agent {self.name!r} could not be reached."
            failure = Failure("upstream_unreachable", message)
        return AgentError(failure, is_retryable=True)

    def body_failure(self, error: Exception) -> Failure:
        """What became of a body that was being read."""
        if isinstance(error.__cause__, ContentEncodingError):
            message = f"The backend of agent {self.name!r} sent a body that cannot be decoded."
            return Failure("upstream_malformed", message)
        message = f"The connection to the backend of agent {self.name!r} broke."
        return Failure(BROKEN_OFF, message)


async def _error_body(response: aiohttp.ClientResponse) -> Any:
    """What an answer other than 200 says: its `error`, or its JSON, or its text."""
    try:
        data = await response.read()
    except (aiohttp.ClientError, OSError):
        return ""
    try:
        body = decode_json(data)
    except ValueError:
        return data.decode("utf-8", "replace")
    body = body.get("error", body) if isinstance(body, dict) else body
    return "" if body is None else body


def _seconds(text: str | None) -> float | None:
    """A `Retry-After` in seconds; its other form, a date, is rare here and not worth trusting."""
    try:
        seconds = float(text) if text else -1.0
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None
