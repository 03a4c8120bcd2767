"""Open WebUI as a process: its slim form, on loopback, with data of its own, and without a model hub."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.trace_demo import free_port, get

PATIENCE_SECONDS = 180.0
"""Its first start writes a database, which takes half a minute on a busy machine."""

TASK_MODEL = "plain"
"""The model that it asks for what isn't an answer."""

_SETTINGS = {
    "USE_SLIM_DOCKER": "true",  # nothing that runs a model itself is imported
    "WEBUI_AUTH": "false",
    "WEBUI_SECRET_KEY": "only for this test",
    "OFFLINE_MODE": "true",
    "ENABLE_VERSION_UPDATE_CHECK": "false",
    "ENABLE_OLLAMA_API": "false",
    "ENABLE_FORWARD_USER_INFO_HEADERS": "true",
    # Titles, tags and follow-ups: an agent with tools would call them for these too.
    "TASK_MODEL_EXTERNAL": TASK_MODEL,
}


_LINE = ".status-description"


def installed() -> Path | None:
    """Its command, if `make open-webui` has set it up."""
    named = os.environ.get("OPEN_WEBUI")
    return Path(named).resolve() if named else None


@contextmanager
def running(command: Path, directory: Path, service_url: str) -> Iterator[str]:
    """Serves, with this service as its only source of models; yields where.

    Raises AssertionError, with what it printed, if it doesn't come up.
    """
    directory.mkdir()
    port = free_port()
    places = {"DATA_DIR": str(directory), "HOME": str(directory), "PATH": os.environ["PATH"]}
    source = {"OPENAI_API_BASE_URL": f"{service_url}/v1", "OPENAI_API_KEY": "none"}
    log = directory / "output"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [command, "serve", "--host", "127.0.0.1", "--port", f"{port}"],
            cwd=directory,
            env={**places, **_SETTINGS, **source},
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while get(port, "/health")[0] != 200:
            is_there = process.poll() is None and time.monotonic() < deadline
            assert is_there, log.read_text("utf-8")[-4000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


class Chat:
    """A tab with one chat in it, used as a person would."""

    def __init__(self, page: Any) -> None:
        self.page = page

    async def begin(self, url: str, model: str) -> None:
        """A new chat with this model; the news of the release are clicked away for good."""
        await self.page.goto(f"{url}/?model={model}")
        await self.page.get_by_role("button", name="Okay, Let's Go!").click()
        await self.page.get_by_label(f"Selected model: {model}").wait_for()

    async def ask(self, question: str) -> None:
        await self.page.click("#chat-input")
        await self.page.keyboard.type(question)
        await self.page.keyboard.press("Enter")

    async def wait_for_status(self, text: str) -> None:
        """Until this is the line that stands above the answer."""
        line = self.page.locator(_LINE).filter(has_text=re.compile(f"^{re.escape(text)}$"))
        await line.first.wait_for()

    async def wait_for_end(self) -> None:
        """Until the answer has the buttons of one that is over."""
        await self.page.locator(".copy-response-button").wait_for()

    async def statuses(self) -> list[str]:
        """The lines as a click on the first of them unfolds them; it shows the last one again."""
        history = self.page.get_by_label("Toggle status history")
        if "true" != await history.get_attribute("aria-expanded"):
            await history.click()
        newest, *lines = await self.page.locator(_LINE).all_inner_texts()
        assert lines[-1] == newest, lines
        return lines

    async def paragraphs(self) -> list[str]:
        """Of the answer."""
        found = self.page.locator("#response-content-container p")
        return [text.strip() for text in await found.all_inner_texts()]
