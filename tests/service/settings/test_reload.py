"""SIGHUP rereads the configuration: what takes effect when, and what goes on undisturbed."""

import asyncio
import contextlib
import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from service.app import CONFIG, DIRECTORY, RELOADER, RELOADS, STREAMS
from service.settings.checking import ConfigError, Problem
from service.settings.config import (
    RELOADABLE,
    Config,
    DatabaseConfig,
    JournalConfig,
    OpenAIAgentConfig,
    ScriptedAgentConfig,
    ServerConfig,
    SseConfig,
)
from service.settings.live import Live
from service.settings.reload import Reloader, changed_keys, in_force, read_again
from service.settings.tools import ToolsConfig
from statemachine import ClientGone, SessionRecord, State
from tests.service.conftest import Kept, Service, ServiceMaker, agent_for
from tests.service.stage.backend import Backend, Exchange
from tests.service.stage.process import (
    PATIENCE_SECONDS,
    ROOT,
    Process,
    answers,
    ask,
    config,
    text_of,
)
from tests.service.stream.test_client_gone import talk_until_closed

RELOADED = "configuration reloaded"
NOT_RELOADED = "configuration not reloaded"
ON_A_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)
DEMO = ScriptedAgentConfig(
    name="demo", kind="scripted", tools=ToolsConfig(builtin=("clock", "dice"))
)


def hang_up(process: Process) -> None:
    process.popen.send_signal(signal.SIGHUP)


def wait_until_heeded(process: Process) -> None:
    """Until a SIGHUP would no longer end it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        status = Path(f"/proc/{process.popen.pid}/status").read_text()
        fields = dict(line.split(":\t") for line in status.splitlines())
        heeded = int(fields["SigIgn"], 16) | int(fields["SigCgt"], 16)
        if heeded >> (signal.SIGHUP - 1) & 1:
            return
    raise AssertionError("SIGHUP is not heeded")


# --- as a process -----------------------------------------------------------------------------


def test_running_streams_keep_the_agents_they_began_with(spawn: Any, database_url: str) -> None:
    """A running stream goes on with the old agent, a new one gets the new, and each row is right."""
    old, new = "old " * 40, "new " * 5
    process = spawn(config(database_url, reply=old, tokens_per_second=20))
    running = [process.ask() for _ in range(5)]
    first = [response.read1() for response in running]
    process.write(config(database_url, reply=new, tokens_per_second=200))
    hang_up(process)
    line = process.line(RELOADED)
    assert ["agents[demo].reply", "agents[demo].tokens_per_second"] == line["changed"]
    assert [] == line["needs_restart"]
    assert text_of(process.ask().read()) == new
    for begun, response in zip(first, running, strict=True):
        whole = begun + response.read()
        assert text_of(whole) == old
        assert whole.endswith(b"data: [DONE]\n\n")
    assert 0 == process.stop()
    saved = [("completed", None, text, "complete") for text in (new, *[old] * 5)]
    assert sorted(answers(database_url)) == sorted(saved)


def test_the_last_of_many_reloads_is_in_force(spawn: Any, database_url: str) -> None:
    """However many signals come at once, the last file is in force and no stream is lost."""
    process = spawn(config(database_url, reply="word " * 30, tokens_per_second=15))
    running = [process.ask() for _ in range(3)]
    for number in range(10):
        process.write(config(database_url, reply=f"version {number}", tokens_per_second=200))
        hang_up(process)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while text_of(process.ask().read()) != "version 9":
        assert time.monotonic() < deadline, process.log.read_text()
    for response in running:
        assert "word " * 30 == text_of(response.read())
    assert 0 == process.stop()
    assert [] == process.lines_of(NOT_RELOADED)


def test_an_invalid_file_changes_nothing(spawn: Any, database_url: str) -> None:
    """Every problem is logged with file, key, found and allowed, secrets are not; nothing changes."""
    process = spawn(config(database_url, reply="As before.", tokens_per_second=200))
    process.line("serving")
    bad = config("postgresql://me:very-secret@h/d", reply="No.", tokens_per_second=-1)
    bad["sse"] = {"keep_alive": 1}
    bad["database"]["pool_max_size"] = "postgresql://me:very-secret@h/d"
    process.write(bad)
    hang_up(process)
    problems = process.line(NOT_RELOADED)["problems"]
    path = process.path
    assert f"{path}: agents[0].tokens_per_second: found -1, allowed: a number above 0" in problems
    assert any(
        text.startswith(f"{path}: sse.keep_alive: found an unknown key") for text in problems
    )
    assert 3 == len(problems)
    assert "very-secret" not in process.log.read_text()
    assert "As before." == text_of(process.ask().read())
    process.path.unlink()
    hang_up(process)
    assert "no such file" in process.line(NOT_RELOADED, 2)["problems"][0]
    assert "As before." == text_of(process.ask().read())
    assert 0 == process.stop()


def test_flags_and_environment_still_precede_the_file(spawn: Any, database_url: str) -> None:
    """Flags and environment still win over the file; what needs a restart is said, each time."""
    settings = config("postgresql://ignored/", reply="Hi.")
    process = spawn(settings, DATABASE_URL=database_url, SSE_KEEP_ALIVE_INTERVAL="7")
    process.line("serving")
    settings["server"] = {"port": 9999, "max_body_bytes": 5}
    settings["sse"] = {"keep_alive_interval_seconds": 1, "send_timeout_seconds": 9}
    settings["database"] = {"url": "postgresql://also-ignored/"}
    for count in (1, 2):
        process.write(settings)
        hang_up(process)
        line = process.line(RELOADED, count)
        assert line["changed"] == (["sse.send_timeout_seconds"] if count == 1 else [])
        assert ["server.max_body_bytes"] == line["needs_restart"]
        assert "warning" == line["level"]
    assert 0 == process.stop()


def test_keys_and_limits_change_for_the_next_request(spawn: Any, database_url: str) -> None:
    """A key that is taken out stops working, one that is put in works, and limits tighten, while
    the stream of the key that is gone goes on to its end; nothing of a key is logged."""

    def with_keys(*names: str, **limits: int) -> dict[str, Any]:
        keys = [
            {"name": name, "sha256": hashlib.sha256(f"key of {name}".encode()).hexdigest()}
            for name in names
        ]
        demo = config(database_url, reply="word " * 40, tokens_per_second=20)
        return {**demo, "auth": {"api_keys": keys}, "limits": limits}

    def status_for(name: str, method: str = "GET", path: str = "/v1/models") -> int:
        connection = process.connect()
        body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "?"}]})
        headers = {"Authorization": f"Bearer key of {name}", "Content-Type": "application/json"}
        connection.request(method, path, body if method == "POST" else None, headers)
        response = connection.getresponse()
        response.read()
        return response.status

    process = spawn(with_keys("ann", "bob"))
    assert [200, 200, 401] == [status_for(name) for name in ("ann", "bob", "eve")]
    running = ask(process.port, key="key of ann")
    response = running.getresponse()
    first = response.read1()
    process.write(with_keys("bob", "eve", requests_per_minute=1))
    hang_up(process)
    assert ["auth.api_keys", "limits.requests_per_minute"] == process.line(RELOADED)["changed"]
    assert [401, 200, 200] == [status_for(name) for name in ("ann", "bob", "eve")]
    completions = "/v1/chat/completions"
    assert [200, 429] == [status_for("eve", "POST", completions) for _ in range(2)]
    assert "word " * 40 == text_of(first + response.read())
    running.close()
    assert 0 == process.stop()
    assert "key of" not in process.log.read_text()
    assert hashlib.sha256(b"key of eve").hexdigest() not in process.log.read_text()


def test_a_new_log_level_holds_at_once(spawn: Any, database_url: str) -> None:
    """The new level holds from the reload on."""
    settings = config(database_url, reply="Hi.", tokens_per_second=200)
    process = spawn(settings)
    process.ask().read()
    process.line("completion finished")
    process.write({**settings, "logging": {"level": "warning"}})
    hang_up(process)
    process.write({**settings, "logging": {"level": "warning"}, "server": {"max_body_bytes": 5000}})
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not process.lines_of(RELOADED):  # a warning, since that key needs a restart
        assert time.monotonic() < deadline
        hang_up(process)
        time.sleep(0.05)
    process.ask().read()
    assert 0 == process.stop()
    assert 1 == len(process.lines_of("completion finished"))


def test_a_reload_during_the_start_is_not_lost(spawn: Any, database_url: str) -> None:
    """A signal while the service starts kills nothing, and what the file then says is in force."""
    process = spawn(config(database_url, reply="old"))
    wait_until_heeded(process)
    process.write(config(database_url, reply="new", tokens_per_second=200))
    while not process.lines_of("serving"):
        assert process.popen.poll() is None, process.log.read_text()
        hang_up(process)
        time.sleep(0.01)
    assert "new" == text_of(process.ask().read())
    assert 0 == process.stop()


def test_a_reload_neither_shortens_nor_prolongs_a_drain(spawn: Any, database_url: str) -> None:
    """A SIGHUP neither shortens a drain nor keeps it from ending."""
    process = spawn(config(database_url, reply="word " * 20, tokens_per_second=20))
    response = process.ask()
    first = response.read1()
    process.popen.send_signal(signal.SIGTERM)
    process.line("draining")
    hang_up(process)
    assert ["the service is stopping"] == process.line(NOT_RELOADED)["problems"]
    assert "word " * 20 == text_of(first + response.read())
    assert 0 == process.popen.wait(PATIENCE_SECONDS)


def test_a_closing_terminal_stops_the_service(tmp_path: Path, database_url: str) -> None:
    """On a terminal SIGHUP rereads like anywhere; the terminal's closing drains and exits with 0."""
    path = tmp_path / "config.yaml"
    settings = config(database_url, reply="word " * 1000, tokens_per_second=50)
    settings["server"] = {"drain_timeout_seconds": 0.5}
    path.write_text(json.dumps(settings))
    terminal, other_end = pty.openpty()
    flags = ["--config", str(path), "--port", "0"]
    popen = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL, str(ROOT / "run.py"), *flags],
        stdin=other_end,
        stdout=other_end,
        stderr=other_end,
        env={"PATH": os.environ["PATH"], "TERM": "dumb"},
        start_new_session=True,
    )
    os.close(other_end)
    try:
        seen = read_until(terminal, "messages")
        port = int(seen.partition("serves http://127.0.0.1:")[2].partition("/")[0])
        with contextlib.closing(ask(port)) as connection:
            response = connection.getresponse()
            first = response.read1()
            popen.send_signal(signal.SIGHUP)
            read_until(terminal, RELOADED)
            os.close(terminal)
            whole = first + response.read()
        assert 0 == popen.wait(PATIENCE_SECONDS)
    finally:
        popen.kill()
        popen.wait()
    assert answers(database_url) == [("failed", "draining", text_of(whole), "partial")]


def read_until(terminal: int, word: str) -> str:
    seen = ""
    while word not in seen:
        seen += os.read(terminal, 4096).decode()
    return seen


# --- inside -----------------------------------------------------------------------------------


async def reload(service: Service, **fields: Any) -> bool:
    """Reload with these sections changed."""
    current = service.app[CONFIG].value
    return await service.app[RELOADER].reload(lambda: evolve(current, **fields))


async def test_an_old_agent_is_closed_after_its_last_stream(
    service: Service, backend: Backend
) -> None:
    """A stream's connection is not closed under it; once the stream ended its agent is closed."""
    (agent,) = service.app[DIRECTORY].agents
    backend.script = talk_until_closed
    async with service.post() as response:
        await response.content.readuntil(b"\n")
        assert await reload(service, agents=(DEMO,))
        assert service.app[DIRECTORY].agents != (agent,)
        await response.content.readuntil(b"data: ")
        assert not agent.is_closed  # type: ignore[attr-defined]
    async with asyncio.timeout(5):
        while not agent.is_closed:  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)


async def test_an_idle_old_agent_is_closed_at_once(service: Service) -> None:
    """An agent that no completion holds is closed as soon as it is replaced."""
    (agent,) = service.app[DIRECTORY].agents
    assert await reload(service, agents=(DEMO,))
    await asyncio.sleep(0)
    assert agent.is_closed  # type: ignore[attr-defined]


async def test_attempts_go_on_with_the_old_agents(
    make_service: ServiceMaker, backend: Backend
) -> None:
    """Retries and fallbacks that a request began with are asked although a reload removed them."""
    reached, go = asyncio.Event(), asyncio.Event()

    async def refuse_then_answer(exchange: Exchange) -> None:
        if len(backend.exchanges) == 1:
            reached.set()
            await go.wait()
        if len(backend.exchanges) < 3:
            await exchange.json(503, {"error": {"message": "busy"}})
        else:
            await exchange.start()
            await exchange.words("At", " last")
            await exchange.finish()

    backend.script = refuse_then_answer
    service = await make_service(
        agent_for(backend, retries=1, fallbacks=("second",)), agent_for(backend, name="second")
    )
    asking = asyncio.create_task(service.stream())
    await reached.wait()
    assert await reload(service, agents=(DEMO,))
    go.set()
    streamed = await asking
    assert ("At last", True) == (streamed.text, streamed.is_done)


async def test_an_unchanged_agent_keeps_its_connections(service: Service, backend: Backend) -> None:
    """An agent whose configuration is the same keeps its connections."""
    (agent,) = service.app[DIRECTORY].agents
    assert await reload(service, agents=(DEMO, agent_for(backend)))
    assert service.app[DIRECTORY].agents[1] is agent
    assert (await service.stream()).is_done


async def test_a_model_list_outlives_its_agent(service: Service, backend: Backend) -> None:
    """A list of models that is being asked for comes although its agent is replaced meanwhile."""
    reached, go = asyncio.Event(), asyncio.Event()

    async def list_slowly(exchange: Exchange) -> None:
        reached.set()
        await go.wait()
        await exchange.json(200, {"data": [{"id": "slow"}]})

    backend.script = list_slowly
    asking = asyncio.create_task(service.http.get(f"{service.url}/v1/models"))
    await reached.wait()
    assert await reload(service, agents=(DEMO,))
    go.set()
    async with await asking as response:
        assert ["slow"] == [model["id"] for model in (await response.json())["data"]]


async def test_an_agent_that_cannot_be_made_changes_nothing(
    service: Service, log_lines: Any
) -> None:
    """A configuration that only turns out to be useless when it is used changes nothing either."""
    before = service.app[CONFIG].value
    broken = OpenAIAgentConfig("x", "openai", base_url="http://u:secret@h:port", api_key_env=None)
    assert not await reload(service, agents=(DEMO, broken), sse=SseConfig(1.0))
    assert service.app[CONFIG].value is before
    assert (await service.stream()).is_done
    (line,) = [line for line in log_lines if line["event"] == NOT_RELOADED]
    assert "port" in line["problems"][0]
    assert "secret" not in str(line)


async def test_new_requests_go_by_the_new_limit_and_interval(make_service: ServiceMaker) -> None:
    """New requests go by the new limit and the new interval."""
    slow = evolve(DEMO, first_token_delay_seconds=0.5, tokens_per_second=1000)
    service = await make_service(slow)
    assert b": keep-alive" not in (await service.stream(model="demo")).body
    server = evolve(service.app[CONFIG].value.server, max_concurrent_streams=1)
    assert await reload(service, sse=SseConfig(keep_alive_interval_seconds=0.1), server=server)
    async with service.post(model="demo") as response:
        assert "too_many_streams" == (await service.stream(model="demo")).error["code"]
        assert b": keep-alive" in await response.read()
    assert 1 == service.app[STREAMS].limit


async def test_new_completions_go_by_the_new_policy(make_service: ServiceMaker) -> None:
    """A client that leaves no longer stops its answer, once `client_gone` says so."""
    service = await make_service(evolve(DEMO, reply="word " * 20, tokens_per_second=100))
    assert await reload(service, client_gone=ClientGone.FINISH)
    async with service.post(model="demo") as response:
        await response.content.readuntil(b"\n")
        response.close()
    record = await service.kept.one()
    assert (State.COMPLETED, "word " * 20) == (record.state, record.choices[0].message["content"])


class Held(Kept):
    """A store that commits nothing until it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_commit = asyncio.Event()

    async def save(self, records: Sequence[SessionRecord]) -> None:
        await self.may_commit.wait()
        await super().save(records)


async def test_new_completions_wait_as_long_as_now_configured(make_service: ServiceMaker) -> None:
    """The end of an answer waits for its commit no longer than the newest configuration says."""
    store = Held()
    quick = evolve(DEMO, tokens_per_second=1000)
    service = await make_service(quick, store=store, database=DatabaseConfig())
    assert await reload(service, database=DatabaseConfig(commit_timeout_seconds=0.05))
    async with asyncio.timeout(DatabaseConfig().commit_timeout_seconds):
        assert (await service.stream(model="demo")).is_done
    assert [] == store.records
    store.may_commit.set()


async def test_a_drain_has_the_newest_grace(make_service: ServiceMaker) -> None:
    """A stop gives running streams the time that the last reload set."""
    service = await make_service(evolve(DEMO, reply="word " * 1000, tokens_per_second=20))
    assert await reload(service, server=ServerConfig(drain_timeout_seconds=0.05))
    async with asyncio.timeout(4), service.post(model="demo") as response:
        await response.content.readuntil(b"\n")
        await service.runner.cleanup()
    failure = (await service.kept.one()).failure
    assert failure is not None and "draining" == failure.code


async def test_a_stop_closes_old_agents_that_are_still_held(
    service: Service, backend: Backend
) -> None:
    """When the service stops, replaced agents that are still held are closed too."""
    (agent,) = service.app[DIRECTORY].agents
    task: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    service.app[DIRECTORY].hold((agent,), task)
    assert await reload(service, agents=(DEMO,))
    await service.app[DIRECTORY].close()
    assert agent.is_closed  # type: ignore[attr-defined]


# --- what changed -----------------------------------------------------------------------------

OLD = Config()


@pytest.mark.parametrize(
    ("new", "keys"),
    [
        (OLD, []),
        (evolve(OLD, sse=SseConfig(1.0)), ["sse.keep_alive_interval_seconds"]),
        (evolve(OLD, agents=OLD.agents[:1]), ["agents[openai]"]),
        (evolve(OLD, agents=(*OLD.agents, evolve(DEMO, name="b"))), ["agents[b]"]),
        (evolve(OLD, agents=OLD.agents[::-1]), ["agents"]),
        (evolve(OLD, agents=(DEMO, evolve(DEMO, name="openai"))), ["agents[openai]"]),
        (
            evolve(OLD, agents=(evolve(DEMO, timeouts=evolve(DEMO.timeouts, idle_seconds=1.0)),)),
            ["agents[demo].timeouts.idle_seconds", "agents[openai]"],
        ),
    ],
)
def test_changes_are_named_by_key_path(new: Config, keys: list[str]) -> None:
    """Changes are named by key path, an agent by its name; one that came or went as a whole."""
    assert changed_keys(OLD, new) == keys


def test_what_is_done_at_a_reload_is_about_reloadable_keys() -> None:
    """Nothing would ever be done about any other key: it keeps its value."""
    assert set(RELOADS) <= set(RELOADABLE)


def test_only_reloadable_keys_change() -> None:
    """A section that is reloadable in part changes in that part."""
    wanted = Config(
        server=ServerConfig(port=1, max_concurrent_streams=3), journal=JournalConfig(max_bytes=1)
    )
    merged = in_force(OLD, wanted, RELOADABLE)
    assert merged == evolve(OLD, server=ServerConfig(max_concurrent_streams=3))
    assert ["server.port", "journal.max_bytes"] == changed_keys(merged, wanted)


def test_what_would_be_in_force_is_checked(log_lines: Any) -> None:
    """A good file is refused if it is good only with a key that needs a restart: here nothing
    would keep strangers off the address that is still listened on."""
    current = evolve(OLD, server=ServerConfig(host="0.0.0.0"))
    assert read_again(current, lambda: OLD, RELOADABLE) is None
    (line,) = log_lines
    assert "server.host" in line["problems"][0]


async def test_a_request_during_a_reload_causes_another() -> None:
    """One that comes while a reload reads the file has it read once more."""
    loads = 0

    def load() -> Config:
        nonlocal loads
        loads += 1
        if loads == 1:
            loop.call_soon_threadsafe(reloader.ask)
            time.sleep(0.1)
        raise ConfigError([Problem("a", "b", "c", "d")])

    loop = asyncio.get_running_loop()
    reloader = Reloader(Live(OLD), (), {})
    running = asyncio.create_task(reloader.run(load))
    reloader.ask()
    reloader.ask()
    async with asyncio.timeout(5):
        while loads < 2:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert 2 == loads
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_reload_disturbs_no_reader(service: Service, backend: Backend) -> None:
    """Connections that wait for their next token stay open through any number of reloads."""
    go = asyncio.Event()

    async def halves(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("one")
        await go.wait()
        await exchange.words(" two")
        await exchange.finish()

    backend.script = halves
    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(service.stream()) for _ in range(20)]
        async with asyncio.timeout(5):
            while sum(relay.session.transcript.chunk_count for relay in service.relays) < 20:
                await asyncio.sleep(0.01)
        for number in range(10):
            assert await reload(service, agents=(evolve(DEMO, reply=str(number)),))
        go.set()
    assert {"one two"} == {task.result().text for task in asking}
    assert all(task.result().is_done for task in asking)
