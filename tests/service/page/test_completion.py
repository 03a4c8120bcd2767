"""One completion while it runs, its life, and texts that must not be read."""

import asyncio
import json
import re
from collections.abc import Sequence
from typing import Any

import pytest

from service.page.texts import HIDDEN
from service.settings.admin import AdminConfig
from service.settings.config import DatabaseConfig
from statemachine import Choice, SessionRecord
from tests.db.records import assistant, make_partial, make_record, user
from tests.service.conftest import QUESTION, Kept, Service, ServiceMaker, Streamed
from tests.service.page.conftest import ADMIN, CALLER, FAST, SLOW, VisitorMaker, keyed
from tests.service.page.test_now import ask_slowly

SECRET = "sesame"


async def test_one_that_runs_is_shown_as_far_as_it_has_come(
    open_service: Service, visit: VisitorMaker
) -> None:
    """With the question, the words so far, and from where to go on."""
    _, name = await ask_slowly(open_service)
    seen = await (await visit(open_service)).get(f"/page/completions/{name}")
    assert QUESTION[0]["content"] in seen.words
    assert "word" in seen.words and "streaming" in seen.words
    assert f'data-stream="/page/completions/{name}/stream"' in seen.text


async def test_one_that_runs_grows_by_the_stream_that_clients_resume(
    open_service: Service, visit: VisitorMaker, log_lines: Any
) -> None:
    """The same bytes from a position on, to the same end."""
    response, name = await ask_slowly(open_service)
    visitor = await visit(open_service)
    url = f"/page/completions/{name}/stream?starting_after=1"
    async with visitor.http.get(visitor.url + url) as stream:
        ours = Streamed(stream.status, stream.headers, await stream.read())
    assert [name] == [line["completion_id"] for line in log_lines if line["event"] == "text opened"]
    assert ours.is_done
    assert 150 == ours.text.count("word")  # the role came first
    path = f"{visitor.url}/v1/chat/completions/{name}?stream=true&starting_after=1"
    async with visitor.http.get(path) as again:
        assert ours.data == Streamed(again.status, again.headers, await again.read()).data
    response.close()


async def test_an_operator_reads_whoevers_it_is(
    make_service: ServiceMaker, visit: VisitorMaker
) -> None:
    """With an admin key and no caller's; a caller's key opens nothing here."""
    service = await make_service(SLOW, **keyed())
    service.key = CALLER
    _, name = await ask_slowly(service)
    visitor = await visit(service)
    path = f"/page/completions/{name}"
    assert 303 == (await visitor.get(path, Authorization=f"Bearer {CALLER}")).status
    await visitor.sign_in()
    assert 200 == (await visitor.get(path)).status
    async with visitor.http.get(f"{visitor.url}{path}/stream") as stream:
        assert b"chat.completion.chunk" in await stream.content.readany()
    assert 401 == (await visitor.get(f"/v1/chat/completions/{name}")).status
    bearer = {"Authorization": f"Bearer {ADMIN}"}
    assert 401 == (await visitor.get(f"/v1/chat/completions/{name}", **bearer)).status


async def test_what_ended_has_no_stream_here(open_service: Service, visit: VisitorMaker) -> None:
    """It is on its page as a whole."""
    await open_service.stream(model="demo")
    record = await open_service.kept.one()
    visitor = await visit(open_service)
    seen = await visitor.get(f"/page/completions/{record.completion_id}/stream")
    assert 404 == seen.status


async def test_attempts_are_remembered(open_service: Service, visit: VisitorMaker) -> None:
    """Who was asked, when it had its first token, when it was saved."""
    await open_service.stream(model="demo")
    record = await open_service.kept.one()
    seen = await (await visit(open_service)).get(f"/page/completions/{record.completion_id}")
    for part in ("attempt 1, demo", "first token", "saved", 'class="streaming"'):
        assert part in seen.text
    assert "are remembered for" not in seen.words


class Late(Kept):
    """A store that takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.may_save = asyncio.Event()

    async def save(self, records: Sequence[SessionRecord]) -> None:
        await self.may_save.wait()
        await super().save(records)


async def test_what_waits_for_the_database_is_said_to(
    make_service: ServiceMaker, visit: VisitorMaker
) -> None:
    """It is neither running nor stored, and not unknown."""
    store = Late()
    database = DatabaseConfig(commit_timeout_seconds=0.05)
    service = await make_service(FAST, store=store, database=database)
    stream = await service.stream(model="demo")
    path = f"/page/completions/{stream.headers['x-completion-id']}"
    visitor = await visit(service)
    seen = await visitor.get(path)
    assert 409 == seen.status
    assert "waits for the database" in seen.words
    store.may_save.set()
    await store.one()
    assert 200 == (await visitor.get(path)).status


# --- texts that must not be read ---------------------------------------------------------------


def secretive() -> Any:
    """A record that says the secret wherever one can."""
    tools = [{"type": "function", "function": {"name": "f", "description": SECRET}}]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": SECRET}}
    said = assistant(SECRET, reasoning_content=SECRET, tool_calls=[call], refusal=SECRET)
    failure = make_partial().failure
    assert failure is not None
    return make_partial(
        user(SECRET),
        {"role": f"x {SECRET}", "content": SECRET},
        request={
            "conversation_key": f"about {SECRET}",
            "tools": tools,
            "metadata": {"note": SECRET},
            "parameters": {"user": SECRET, "stop": [SECRET], "temperature": 0.5, "seed": 7},
        },
        choices=(
            Choice(0, said, f"as {SECRET} said", {"content": [{"token": SECRET}]}, {"x": SECRET}),
        ),
        extra={"citations": [SECRET], "system_fingerprint": SECRET, f"says {SECRET}": 1},
        finish_reason=f"as {SECRET} said",
        usage={"total_tokens": 7, "details": {f"of {SECRET}": 1, "note": SECRET}},
        failure=type(failure)(
            "upstream_error", f"Bad: {SECRET}", upstream_code=f"no {SECRET}", type=f"no {SECRET}"
        ),
    )


@pytest.mark.parametrize("texts", ["show", "hide"])
async def test_hidden_texts_are_nowhere(
    make_service: ServiceMaker, visit: VisitorMaker, texts: Any, log_lines: Any
) -> None:
    """Neither on the completion's page, nor in its JSON, nor in its conversation; figures are. Shown
    ones are, and each opening is a line in the log."""
    service = await make_service(SLOW, admin=AdminConfig(texts=texts))
    record = secretive()
    await service.store.save([record])
    row = await service.store.find(record.completion_id)
    assert row is not None
    visitor = await visit(service)
    paths = (
        f"/page/completions/{record.completion_id}",
        f"/page/conversations/{row.conversation_id}",
    )
    for path in paths:
        seen = await visitor.get(path)
        assert 200 == seen.status
        assert (texts == "show") == (SECRET in seen.text)
        assert (texts == "hide") == (HIDDEN in seen.text)
        assert texts == "hide" or 'class="said other' in seen.text
        assert f"x {SECRET}" not in re.sub("<pre class=.raw.*?</pre>", "", seen.text, flags=re.S)
    for path in ("/", "/page/completions", "/page/health"):
        assert SECRET not in (await visitor.get(path)).text
    shown = (await visitor.get(paths[0])).words
    assert "temperature 0.5" in shown and "seed 7" in shown and "upstream_error" in shown
    opened = [line for line in log_lines if line["event"] == "text opened"]
    assert (3 if texts == "show" else 0) == len(opened)
    assert SECRET not in str(log_lines)


async def test_hidden_texts_do_not_run_by_either(
    make_service: ServiceMaker, visit: VisitorMaker
) -> None:
    """One that runs is shown without its words, and its stream is closed to operators."""
    service = await make_service(SLOW, admin=AdminConfig(texts="hide"))
    _, name = await ask_slowly(service, messages=[{"role": "user", "content": SECRET}])
    visitor = await visit(service)
    seen = await visitor.get(f"/page/completions/{name}")
    assert 200 == seen.status
    assert SECRET not in seen.text and "word" not in seen.words
    assert 403 == (await visitor.get(f"/page/completions/{name}/stream")).status
    assert "word" not in json.dumps((await visitor.get("/")).words)


async def test_our_own_words_for_a_failure_are_no_text(
    make_service: ServiceMaker, visit: VisitorMaker
) -> None:
    """They never quote anybody, and say what to do."""
    service = await make_service(admin=AdminConfig(texts="hide"))
    failure = make_partial().failure
    assert failure is not None
    record = make_partial(failure=type(failure)("idle_timeout", "No token for 60 s."))
    await service.store.save([record, make_record()])
    seen = await (await visit(service)).get(f"/page/completions/{record.completion_id}")
    assert "No token for 60 s." in seen.words
