"""The benchmarks measure what they say: nothing here is timed.

The real backend runs as its own process; between it and the client stands a proxy that a test
makes honest or lossy, or our service.
"""

import asyncio
import re
import sys
from array import array
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks.comparison.compare import DIRECT, Bench, Results, note_added
from benchmarks.comparison.holding import Held, hold
from benchmarks.comparison.loads import at_once, spread
from benchmarks.comparison.report import write_markdown
from benchmarks.comparison.targets import targets
from benchmarks.contenders import CONTENDERS, Missing, Place, Target, our_config
from benchmarks.instructions.__main__ import main, report
from benchmarks.instructions.costs import FIGURES
from benchmarks.instructions.counting import NotCounted, total
from benchmarks.instructions.lockstep import Kind, backend_and_client, next_chunk
from benchmarks.instructions.recorded import record, recorded, verdicts
from benchmarks.instructions.saving import module_of
from benchmarks.questions.gateway import is_good, turn
from benchmarks.stand import lines
from benchmarks.stand.client import Answer, Connection, connect, steer, wait_all
from benchmarks.stand.plan import Plan, is_streamed
from benchmarks.stand.running import service, upstream
from db.embedded import EmbeddedPostgres
from service.agents.openai.decoder import SseDecoder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="they read Linux's /proc")

ROOT = Path(__file__).resolve().parent.parent

Change = Callable[[list[bytes]], list[bytes]]
"""What a proxy makes of an answer's events."""


# A contender's program runs in an environment of its own.
PROGRAMS = [path for path in (ROOT / "benchmarks").rglob("*.py") if "contenders" not in path.parts]


@pytest.mark.parametrize("path", sorted(PROGRAMS), ids=lambda it: f"{it.parent.name}/{it.stem}")
def test_every_measurement_can_be_started(path: Path) -> None:
    """No program that the docs name has lost what it imports."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    assert import_module(".".join(parts)).__doc__


@pytest.fixture(scope="module")
def backend() -> Iterator[int]:
    """The stand-in backend's port."""
    with upstream() as port:
        yield port


@asynccontextmanager
async def proxy(backend: int, change: Change, piece: int = 65536) -> AsyncIterator[int]:
    """The port of a server that passes changed events on, in pieces of so many bytes."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, request = await asyncio.open_connection("127.0.0.1", backend)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.findall(rb"Content-Length: (\d+)", head)[0])
        request.write(head + await reader.readexactly(length))
        answer = await behind.readuntil(b"\r\n\r\n")
        events = []
        while size := int(await behind.readuntil(b"\r\n"), 16):
            events.append((await behind.readexactly(size + 2))[:-2])
        for event in change(events):
            answer += b"%x\r\n%b\r\n" % (len(event), event)
        answer += b"0\r\n\r\n"
        for start in range(0, len(answer), piece):
            writer.write(answer[start : start + piece])
            await writer.drain()
            await asyncio.sleep(0)
        request.close()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def ask(port: int, plan: Plan) -> tuple[Answer, "array[int]"]:
    """One answer to its end, and its chunks' delays."""
    delays = array("q")
    connections = await connect(port, 1, delays)
    answer = connections[0].ask(plan)
    assert await wait_all([answer], 20)
    await close(connections)
    return answer, delays


async def close(connections: list[Connection]) -> None:
    for connection in connections:
        connection.close()
    await asyncio.sleep(0)  # the event loop closes the sockets


def unchanged(events: list[bytes]) -> list[bytes]:
    return events


LOSSY: dict[str, Change] = {
    "a chunk lost": lambda events: events[:3] + events[4:],
    "the first lost": lambda events: events[1:],
    "the last lost": lambda events: events[:9] + events[10:],
    "a chunk doubled": lambda events: [*events[:3], events[3], *events[3:]],
    "two swapped": lambda events: [*events[:3], events[4], events[3], *events[5:]],
    "no finish reason": lambda events: [*events[:10], events[-1]],
    "no [DONE]": lambda events: events[:-1],
    "[DONE] before the last": lambda events: [*events[:9], events[-1], events[9]],
    "cut in the middle": lambda events: events[:5],
    "an error instead": lambda events: [b'data: {"error": {"message": "no"}}\n\n'],
}


@pytest.mark.parametrize("change", LOSSY.values(), ids=LOSSY.keys())
async def test_a_lossy_server_is_caught(backend: int, change: Change) -> None:
    """An answer from which anything is missing, or in which anything moved, isn't complete."""
    async with proxy(backend, change) as port:
        answer, _ = await ask(port, Plan(10, 1_000))
    assert not answer.is_complete


@pytest.mark.parametrize("piece", [1, 7, 100, 65536])
async def test_an_honest_server_is_complete(backend: int, piece: int) -> None:
    """However the bytes are cut on their way, every chunk is found."""
    async with proxy(backend, unchanged, piece) as port:
        answer, delays = await ask(port, Plan(10, 1_000))
    assert (10, True, 10) == (answer.chunks, answer.is_complete, len(delays))
    assert min(delays) > 0


async def test_pings_are_counted(backend: int) -> None:
    """Comment lines between events are pings, and spoil nothing."""

    def pinging(events: list[bytes]) -> list[bytes]:
        return [*events[:2], b": keep-alive\n", *events[2:]]

    async with proxy(backend, pinging, piece=1) as port:
        answer, _ = await ask(port, Plan(5, 1_000))
    assert (1, True) == (answer.pings, answer.is_complete)


@pytest.mark.parametrize("shape", ["paced", "unlike", "big", "small"])
async def test_the_backend_says_what_was_planned(backend: int, shape: Any) -> None:
    """Every shape of answer has exactly the chunks that were asked for."""
    for chunks in (1, 2, 3, 299, 300, 301, 302, 1_000):
        answer, _ = await ask(backend, Plan(chunks, 1_000, shape))
        assert (answer.chunks, answer.is_complete) == (chunks, True)


async def test_the_backend_keeps_its_pace(backend: int) -> None:
    """A paced answer takes its chunks times its interval, but for the place in the first one."""
    answer, _ = await ask(backend, Plan(11, 20_000))
    assert answer.whole_ms is not None
    assert 170 < answer.whole_ms < 2_000


@pytest.mark.parametrize("kind", ["plain", "streamed"])
async def test_a_gateway_is_asked_so_often(backend: int, kind: str) -> None:
    """A turn has as many requests as were asked for, whole objects or streams, all of them good."""
    load = await turn(Target(DIRECT, backend, None), kind, 25, 4)
    assert (25, True) == (len(load.answers), all(is_good(each, kind) for each in load.answers))
    assert not is_good(Answer(), kind)
    await asyncio.sleep(0)


def test_who_asks_for_no_stream_gets_none() -> None:
    """A request that doesn't say, or says no, is for one object, however its JSON is spaced."""
    plan = Plan(1)
    assert is_streamed(plan.request()) and not is_streamed(plan.request(is_streamed=False))
    assert [True, False] == [is_streamed(b'{"stream":true}'), is_streamed(b"{}")]


def test_stores_are_given_the_same_conversations() -> None:
    """A question says which it is, so the backend knows the answer to the last one; all of them
    are the same each time, and differ."""
    asked = " ".join((lines.question(7, 0), lines.answer(7, 0), lines.question(7, 1)))
    assert (7, 1) == lines.asked_last(asked.encode())
    makers = (lines.question, lines.answer)
    texts = [make(talk, number) for make in makers for talk in (0, 1) for number in (0, 1)]
    assert len({*texts}) == 8 and lines.answer(1, 1) == texts[-1]


async def test_held_streams_end_when_told(backend: int) -> None:
    """A held answer says a word, then nothing until the backend is told to end it."""
    connections = await connect(backend, 3, array("q"))
    answers = [connection.ask(Plan(2, shape="held")) for connection in connections]
    for answer in answers:
        await answer.started.wait()
    assert [1, 1, 1] == [answer.chunks for answer in answers]
    await steer(backend, "/end?within_ms=10")
    assert await wait_all(answers, 20)
    assert all(answer.is_complete for answer in answers)
    await close(connections)


async def test_a_server_that_hangs_does_not_hang_the_benchmark(backend: int) -> None:
    """A turn ends at its limit, and says what was delivered until then."""
    load = await spread(Target("direct", backend, None), Plan(2, shape="held"), 2, 0.0, 0.3)
    assert (50.0, 0) == (load.figures()["delivered_percent"], load.complete)
    await asyncio.sleep(0)


def test_our_service_is_measured(backend: int, postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    """Our service, with everything on, delivers every chunk, and its CPU time is seen."""
    place = Place(tmp_path / "ours", backend, postgres.dsn, 15.0, print)
    with service(place.directory, our_config(place)) as (port, pid):
        target = Target("ours", port, pid)
        load = asyncio.run(at_once(target, Plan(20, 2_000), 10, 20.0))
        bench = Bench(tmp_path, backend, postgres.dsn, print)
        held = asyncio.run(hold(bench, target, Held("idle", "", 10, ()), 10))
    figures = load.figures()
    assert (10, 200, 100.0) == (load.complete, load.chunks, figures["delivered_percent"])
    assert figures["cpu_us_per_chunk"] and figures["ttft_p50_ms"] and figures["delay_p99_ms"]
    assert (10, 100.0) == (held["streams"], held["complete_percent"])


def some_results(ours: float, nginx: float) -> Results:
    results = Results()
    results.describe("paced-100", "streams", ("cpu_us_per_chunk",))
    for name, values in (("ours", (ours - 5, ours, ours + 50)), ("nginx", (nginx,))):
        for value in values:
            results.add("paced-100", name, {"cpu_us_per_chunk": value, "delivered_percent": 100.0})
    return results


def test_targets_are_judged() -> None:
    """The medians are compared with the limits; what wasn't measured is said to be so."""
    verdicts = {target.what: target.verdict for target in targets(some_results(59.0, 20.0))}
    assert "ok" == verdicts["paced: CPU per chunk ≤ 3 × nginx's"]
    assert "not measured" == verdicts["paced: CPU per chunk ≤ 1/15 of LiteLLM's"]
    assert "missed" == targets(some_results(61.0, 20.0))[0].verdict
    assert "missed" == targets(some_results(61.0, -0.1))[0].verdict


@pytest.mark.parametrize("name", ["nginx", "rust"])
def test_who_lacks_a_tool_is_left_out(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A contender whose program or compiler isn't here is missing, with a word on what to install."""
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(Missing, match="not installed"):
        CONTENDERS[name].version()


def test_what_is_added_is_added_to_the_backends_median() -> None:
    """Not to its time in the same round; a round without an answer adds nothing."""
    results = Results()
    times = {DIRECT: (1.0, 2.0, 30.0, None), "ours": (5.0, 31.0, None)}
    for name, of_each_round in times.items():
        for time in of_each_round:
            results.add("arrival-100", name, {"ttft_p50_ms": time, "ttft_p99_ms": None})
    note_added(results, "arrival-100")
    rounds = results.rounds["arrival-100"]
    assert [3.0, 29.0, None] == [it.get("added_ttft_p50_ms") for it in rounds["ours"]]
    assert [-1.0, 0.0, 28.0, None] == [it.get("added_ttft_p50_ms") for it in rounds[DIRECT]]
    assert not any("added_ttft_p99_ms" in it for it in rounds["ours"])


def test_results_survive_their_file() -> None:
    """What is read back from JSON is what was written."""
    results = some_results(60.0, 20.0)
    assert Results.from_json(results.as_json()) == results


def test_tables_go_between_the_markers(tmp_path: Path) -> None:
    """Writing the tables again changes nothing but them."""
    path = tmp_path / "doc.md"
    path.write_text("before\n<!-- benchmarks: begin -->\nold\n<!-- benchmarks: end -->\nafter\n")
    for _ in range(2):
        write_markdown(path, some_results(60.0, 20.0), {"cpu": "some"}, "a command")
    text = path.read_text()
    assert text.startswith("before\n<!--") and text.endswith("-->\nafter\n")
    assert "old" not in text
    assert "| ours | 60.0 |" in text


# --- instructions -----------------------------------------------------------------------------

PROFILE = """\
# callgrind format
version: 1
events: Ir

fn=(1) main
16 400
totals: 12345678
"""


def test_instructions_are_read_from_a_profile() -> None:
    """A callgrind file's count is its total, whatever its lines say."""
    assert 12_345_678 == total(PROFILE)


@pytest.mark.parametrize(
    "profile", ["", PROFILE.replace("totals", "summary"), PROFILE.replace("Ir", "Ir Dr")]
)
def test_a_file_without_a_count_is_no_count(profile: str) -> None:
    """A file that is cut short, or that counts something else too, gives no figure."""
    with pytest.raises(NotCounted):
        total(profile)


@pytest.mark.parametrize(
    ("counted", "word", "is_over"),
    [
        (1000, "ok", False),
        (1020, "ok", False),
        (1021, "OVER", True),
        (980, "ok", False),
        (979, "below: record it", False),
    ],
)
def test_a_figure_may_be_two_percent_over(counted: int, word: str, is_over: bool) -> None:
    """A figure is over when it is more than two percent above the recorded one, and not before."""
    (verdict,) = verdicts({"chunk": counted}, {"chunk": 1000, "save": 1})
    assert (verdict.word, verdict.is_over) == (word, is_over)


def test_environments_have_figures_of_their_own(tmp_path: Path) -> None:
    """What is recorded for one environment changes another's in nothing, and figures that weren't
    counted stay."""
    file, here, there = tmp_path / "figures.json", {"python": "3.11"}, {"python": "3.12"}
    record(here, {"chunk": 1, "save": 2}, file)
    record(there, {"chunk": 3}, file)
    record(here, {"chunk": 4}, file)
    assert {"chunk": 4, "save": 2} == recorded(here, file)
    assert {"chunk": 3} == recorded(there, file)
    assert recorded({"python": "3.13"}, file) is None


def test_what_is_over_fails_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The status is 1 if one figure is over, by the median of its windows, and it is named."""
    file, where = tmp_path / "figures.json", {"python": "3.11"}
    record(where, {"chunk": 1000, "save": 1000}, file)
    assert 0 == report({"chunk": [9.0, 1000.0, 1e6], "save": [1010.0]}, {}, where, file, False)
    assert 1 == report({"chunk": [1000.0], "save": [1030.0]}, {}, where, file, False)
    assert capsys.readouterr().out.endswith("save: 1.030 of what is recorded; 1.02 is allowed\n")


def test_an_unknown_environment_is_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nothing is recorded the status is 0, with a word on how to record; then it is known."""
    file, where = tmp_path / "figures.json", {"python": "4.0"}
    assert 0 == report({"chunk": [1000.0]}, {}, where, file, False)
    said = capsys.readouterr().out
    assert "Nothing to compare with" in said and "--save" in said and "4.0" in said
    assert 0 == report({"chunk": [1000.0]}, {}, where, file, True)
    assert 1 == report({"chunk": [1030.0]}, {}, where, file, False)


def test_another_tree_is_only_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The other tree's figures give ratios, also where one is missing, and change no status."""
    here, there = {"chunk": [1100.0], "save": [5.0]}, {"chunk": [1000.0]}
    assert 0 == report(here, there, {"python": "4.0"}, tmp_path / "none.json", False)
    assert "1.1000" in capsys.readouterr().out


def test_valgrind_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without valgrind the command says in one line what to install, with status 2."""
    monkeypatch.setenv("PATH", "")
    assert 2 == main([])
    said = capsys.readouterr().err
    assert "apt install valgrind" in said and 1 == said.count("\n")


async def test_chunks_come_one_by_one() -> None:
    """The next chunk is sent when the client has the one before, so that however slow a service
    is, it reads no two together."""
    reads: list[int] = []
    ended = asyncio.Event()

    async with backend_and_client() as (backend_port, turns):

        async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            behind, request = await asyncio.open_connection("127.0.0.1", backend_port)
            request.write(await reader.read(65536))
            while data := await behind.read(65536):
                reads.append(data.count(b"data: {"))
                await asyncio.sleep(0.01)
                writer.write(data)
            request.close()
            writer.close()
            ended.set()

        async with await asyncio.start_server(pass_on, "127.0.0.1", 0) as server:
            await turns.connect(server.sockets[0].getsockname()[1])
            await turns.begin()
            await turns.say(3, "alike")
            await turns.say(3, "parsed")
            await turns.end()
            await turns.close()
            await ended.wait()
    assert [1] * 8 == reads


@pytest.mark.parametrize(("kind", "is_quick"), [("alike", True), ("parsed", False)])
def test_chunks_take_the_way_that_is_counted(kind: Kind, is_quick: bool) -> None:
    """Chunks that are alike aren't parsed once two have come; the others all are."""
    decoder = SseDecoder(10_000)
    chunks = [next_chunk(number, kind).split(b"\r\n")[1] for number in range(300)]
    taken = []
    for chunk in chunks:
        taken.append(decoder.take(chunk) is not None)
        if not taken[-1]:
            decoder.feed(chunk)
    assert taken == [False] * 2 + [is_quick] * 298
    assert 1 == len({*map(len, chunks)})


def test_modules_are_found_wherever_they_are(tmp_path: Path) -> None:
    """A name is looked for in all of a tree's packages, so a module that moved is found."""
    for path, text in {
        "db/saver.py": "from db.postgres.store import PostgresStore\n\n\nclass Saver:\n",
        "db/postgres/__init__.py": "def migrate(dsn):\n",
        "db/postgres/store.py": "class PostgresStore:\n",
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / path).write_text(text)
    names = {name: module_of(tmp_path, name) for name in ("Saver", "PostgresStore", "migrate")}
    assert {
        "Saver": "db.saver",
        "PostgresStore": "db.postgres.store",
        "migrate": "db.postgres",
    } == names
    with pytest.raises(LookupError):
        module_of(tmp_path, "Journal")


def test_the_document_names_everything() -> None:
    """docs/benchmarks.md has a row for each contender, each workload and each count."""
    text = (ROOT / "docs/benchmarks.md").read_text("utf-8")
    named = set(re.findall(r"^\| `(\w[\w-]*)` \|", text, re.MULTILINE))
    assert named == {*CONTENDERS, *command.WORKLOADS, *FIGURES, "growth", "direct"}
