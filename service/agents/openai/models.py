"""Keeps the list of a backend's models: what is known at once, asked anew behind it.

Chat pages ask for it on every load. Never here: which of them an agent serves.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

_CACHED_SECONDS = 60.0
_RETRIED_SECONDS = 5.0
_PATIENCE_SECONDS = 1.0
"""How long a caller waits for a list where none is known yet."""
_MOST_MODELS = 5_000

Models = list[dict[str, Any]]


class ModelList:
    """One backend's models.

    Args:
        ask: asks the backend; None if it gave no list. Must not raise.
    """

    def __init__(self, ask: Callable[[], Awaitable[Models | None]]) -> None:
        self._ask = ask
        self._known: Models | None = None
        self._names = frozenset[str]()
        self._fresh_until = 0.0
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = 0.0
        self._is_slow = False

    async def known(self) -> Models:
        """The latest list, at once; where there was none yet, what comes within a second of asking.

        A backend that took longer the last time isn't waited for. Cancelled, it leaves the asking to
        the others who wait for it.
        """
        if self._asking is None and time.monotonic() >= self._fresh_until:
            self._asking = asyncio.create_task(self._refresh(), name="list models")
            self._asked_at = asyncio.get_running_loop().time()
        if self._asking is not None and self._known is None and not self._is_slow:
            left = self._asked_at + _PATIENCE_SECONDS - asyncio.get_running_loop().time()
            await asyncio.wait((self._asking,), timeout=max(left, 0.0))
        return self._known or []

    def has(self, model: str) -> bool:
        """True if the latest list has a model of this name. Asks nobody."""
        return model in self._names

    async def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait((self._asking,))

    async def _refresh(self) -> None:
        found: Models | None = None
        try:
            found = await self._ask()
        finally:
            took = asyncio.get_running_loop().time() - self._asked_at
            self._is_slow = took > _PATIENCE_SECONDS
            good_for = _RETRIED_SECONDS if found is None else _CACHED_SECONDS
            self._fresh_until = time.monotonic() + good_for
            if found is not None:
                self._known = found
                self._names = frozenset(model["id"] for model in found)
            self._asking = None


def models_in(body: Any) -> Models | None:
    """The models that a backend's answer lists, as objects with an `id`; None if it is no list.

    Taken are OpenAI's object, a bare list, and Ollama's and Gemini's `models`; entries may be names
    alone. What is no model in it is left out.
    """
    if isinstance(body, dict):
        body = next(
            (body[key] for key in ("data", "models") if isinstance(body.get(key), list)), None
        )
    if not isinstance(body, list):
        return None
    return [model for entry in body[:_MOST_MODELS] if (model := _model(entry)) is not None]


def _model(entry: Any) -> dict[str, Any] | None:
    if isinstance(entry, str) and entry:
        return {"id": entry}
    if not isinstance(entry, dict):
        return None
    names = (entry.get(key) for key in ("id", "name", "model"))
    name = next((name for name in names if isinstance(name, str) and name), None)
    return None if name is None else {**entry, "id": name}
