"""What a client's script is asked by the test, and how it tells what its client made of the answer.

python -m tests.clients.scripts.NAME URL stream|plain
"""

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from typing import Any

URL, KEY, MODEL = sys.argv[1], "unused", "demo"
IS_STREAMED = sys.argv[2] == "stream"
QUESTION = "Roll the dice, and tell the time"
MESSAGES: Any = [{"role": "user", "content": QUESTION}]


class Told:
    """What the client has shown so far."""

    def __init__(self) -> None:
        self.text = ""
        self.finish: list[str] = []
        self.tool_calls = 0
        """Calls that the client showed, and runs of its own tools."""

    def add(self, text: str | None, finish: str | None = None, tool_calls: Any = None) -> None:
        self.text += text or ""
        self.finish += [str(finish)] if finish else []
        self.tool_calls += len(tool_calls or ())

    def tool(self) -> str:
        """A tool of the client's own, which nobody has reason to call."""
        self.tool_calls += 1
        return "It rains."


def tell(ask: Callable[[Told], Coroutine[Any, Any, None]]) -> None:
    """Ask, and print one line of JSON, errors too."""
    told, error = Told(), None
    try:
        asyncio.run(ask(told))
    except Exception as failed:
        error = f"{type(failed).__name__}: {failed}"
    shown = {"text": told.text, "finish": told.finish, "tool_calls": told.tool_calls}
    print(json.dumps({**shown, "error": error}))
