"""What becomes of calls, over real sockets: each way to end has its outcome, and nothing is called twice."""

import asyncio
from typing import Any

import pytest
from aiohttp import web

from service.tools import mcp
from service.tools.contract import Calls, Toolbox
from statemachine import Outcome
from tests.service.tools.conftest import MakeBox, named
from tests.service.tools.server import LEGACY, MODERN, Call, Handler, ToolServer, text

MIB = 1024 * 1024

pytestmark = pytest.mark.parametrize("version", [MODERN, LEGACY])


@pytest.fixture(autouse=True)
def _version(server: ToolServer, version: str) -> None:
    server.version = version


async def hang(_: Call) -> web.StreamResponse:
    await asyncio.sleep(30)
    raise AssertionError("nobody waits so long")


def answering(result: dict[str, Any]) -> Handler:
    return lambda call: call.json(result)


async def test_a_tool_answers(server: ToolServer, calls: Calls) -> None:
    """A call brings the tool's text, with its size; the arguments arrive as they are."""
    server.handlers["one"] = lambda call: call.json(text(call.arguments["q"], "\0 NUL"))
    result = await calls.call(named("one"), {"q": "Käse 🧀"})
    assert (Outcome.OK, "Käse 🧀\n\0 NUL", 16, False) == (
        result.outcome,
        result.text,
        result.size,
        result.is_truncated,
    )


async def test_one_client_serves_an_answer(server: ToolServer, box: Toolbox) -> None:
    """Nothing is connected before the first call; the calls of one answer share a client, which lists all
    tools right after connecting. The next answer has that client too, if the protocol has no sessions in
    which it could find what this one left; else its own."""
    for answer in (1, 2):
        async with box.open() as calls:
            assert answer - 1 == server.asked.count("tools/list") or server.version == MODERN
            for _ in range(3):
                assert Outcome.OK is (await calls.call(named("one"), {})).outcome
        assert (1 if server.version == MODERN else answer) == server.asked.count("tools/list")
    await box.close()
    assert set() == server.sessions


async def test_a_client_is_one_answers_at_a_time(server: ToolServer, box: Toolbox) -> None:
    """Two answers at once have one each; one whose call was given up goes with its answer."""
    server.version = MODERN
    hold = asyncio.Event()

    async def hang(call: Call) -> web.StreamResponse:
        await hold.wait()
        return call.json(text("late"))

    server.handlers["two"] = hang
    async with box.open() as first, box.open() as second:
        for calls in (first, second):
            assert Outcome.OK is (await calls.call(named("one"), {})).outcome
        assert 2 == server.asked.count("tools/list")
        hanging = asyncio.create_task(second.call(named("two"), {}))
        while "two" not in server.calls:
            await asyncio.sleep(0.01)
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)
    await asyncio.sleep(0)
    async with box.open() as first, box.open() as second:
        for calls in (first, second):
            assert Outcome.OK is (await calls.call(named("one"), {})).outcome
    assert 3 == server.asked.count("tools/list")
    hold.set()


async def test_a_hundred_calls_at_once(server: ToolServer, make_box: MakeBox) -> None:
    """More calls at once than a client's usual connections, over one answer's client, are all answered."""
    box = make_box(timeout_seconds=60.0)
    waiting = asyncio.Barrier(100)

    async def wait_for_all(call: Call) -> web.StreamResponse:
        await waiting.wait()
        return call.json(text(str(call.arguments["n"])))

    server.handlers["one"] = wait_for_all
    async with box.open() as calls:
        results = await asyncio.gather(*(calls.call(named("one"), {"n": n}) for n in range(100)))
    assert [str(n) for n in range(100)] == [result.text for result in results]
    assert 1 == server.asked.count("tools/list")


async def test_a_tools_error_is_an_error(server: ToolServer, calls: Calls) -> None:
    """`isError` is a result whose text the model is told."""
    server.handlers["one"] = answering(text("No such page.", isError=True))
    result = await calls.call(named("one"), {})
    assert (Outcome.ERROR, "No such page.") == (result.outcome, result.text)


async def test_a_refused_call_is_an_error(server: ToolServer, calls: Calls) -> None:
    """A protocol error, such as for a tool that isn't there, is an error with the server's words."""
    server.handlers["one"] = lambda call: call.error(-32602, "Unknown tool: one")
    result = await calls.call(named("one"), {})
    expected = "The tool's server refused the call: Unknown tool: one"
    assert (Outcome.ERROR, expected) == (result.outcome, result.text)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (401, Outcome.ERROR),
        (400, Outcome.ERROR),
        (404, Outcome.ERROR),
        (500, Outcome.ERROR),
        (503, Outcome.ERROR),
        (502, Outcome.UNKNOWN),
        (504, Outcome.UNKNOWN),
    ],
)
async def test_a_status_is_told(
    server: ToolServer, calls: Calls, status: int, outcome: Outcome, version: str
) -> None:
    """A status is an error, unless it comes from between and the end wasn't heard there; none is a reason
    to call again, but a lost session's 404."""
    server.handlers["one"] = lambda call: web.Response(status=status)
    result = await calls.call(named("one"), {})
    assert outcome is result.outcome
    times = 2 if (status, version) == (404, LEGACY) else 1
    assert ["one"] * times == server.calls
    assert str(status) in result.text or times == 2


async def test_a_hanging_tool_times_out(server: ToolServer, make_box: MakeBox) -> None:
    """After its server's `timeout_seconds` a call is given up; the client goes on."""
    server.handlers["one"] = hang
    async with make_box(timeout_seconds=0.4).open() as calls:
        before = asyncio.get_running_loop().time()
        result = await calls.call(named("one"), {})
        assert 0.3 < asyncio.get_running_loop().time() - before < 4
        assert Outcome.TIMEOUT is result.outcome
        assert "two" == (await calls.call(named("two"), {})).text
    assert ["one", "two"] == server.calls
    assert 1 == server.asked.count("tools/list")


async def test_cut_before_the_response_it_is_not_known(server: ToolServer, calls: Calls) -> None:
    """A connection that breaks once a call was sent leaves its outcome unknown, and that of calls beside it;
    later calls go over a new client; nothing is called twice, and no cancellation leaks."""
    is_cut = asyncio.Event()

    async def cut_once_two_hangs(call: Call) -> web.StreamResponse:
        while "two" not in server.calls:
            await asyncio.sleep(0.01)
        is_cut.set()
        return call.cut()

    server.handlers.update(one=cut_once_two_hangs, two=hang)
    results = await asyncio.gather(*(calls.call(named(name), {}) for name in ("one", "two")))
    assert [Outcome.UNKNOWN, Outcome.UNKNOWN] == [result.outcome for result in results]
    task = asyncio.current_task()
    assert task is not None
    assert 0 == task.cancelling()
    await asyncio.sleep(0)
    assert "three" == (await calls.call(named("three"), {})).text
    assert ["one", "three", "two"] == sorted(server.calls)
    assert 2 == server.asked.count("tools/list")


async def test_cut_within_the_response_it_is_not_known(server: ToolServer, calls: Calls) -> None:
    """The same after the response's head; the client lives on."""
    server.handlers["one"] = lambda call: call.stream_half()
    result = await calls.call(named("one"), {})
    assert Outcome.UNKNOWN is result.outcome
    assert "is not known" in result.text
    assert "two" == (await calls.call(named("two"), {})).text
    assert ["one", "two"] == server.calls
    assert 1 == server.asked.count("tools/list")


async def test_a_server_that_is_not_there_was_not_called(server: ToolServer, calls: Calls) -> None:
    """A refused connection is an error, which says that nothing was called."""
    await server.stop()
    result = await calls.call(named("one"), {})
    assert Outcome.ERROR is result.outcome
    assert result.text.endswith("The tool was not called.")


async def test_a_server_that_goes_was_not_called(server: ToolServer, calls: Calls) -> None:
    """So it is with one that went after it had been connected; when it is back it is called again."""
    assert Outcome.OK is (await calls.call(named("one"), {})).outcome
    await server.stop()
    results = await asyncio.gather(*(calls.call(named("one"), {}) for _ in range(3)))
    assert [Outcome.ERROR] * 3 == [result.outcome for result in results]
    assert all(result.text.endswith("The tool was not called.") for result in results)
    await server.start()
    assert Outcome.OK is (await calls.call(named("two"), {})).outcome
    assert ["one", "two"] == server.calls


@pytest.mark.parametrize("is_like_examples", [False, True])
async def test_a_lost_session_is_begun_anew(
    server: ToolServer, calls: Calls, version: str, is_like_examples: bool
) -> None:
    """A server that has forgotten its sessions didn't carry the call out: it is sent again, once."""
    assert Outcome.OK is (await calls.call(named("one"), {})).outcome
    server.sessions.clear()
    server.is_like_examples = is_like_examples
    results = await asyncio.gather(*(calls.call(named("two"), {}) for _ in range(3)))
    assert ["two"] * 3 == [result.text for result in results]
    assert ["one", "two", "two", "two"] == server.calls
    assert (2 if version == LEGACY else 1) == server.asked.count("tools/list")


async def test_a_large_result_is_cut(server: ToolServer, calls: Calls, version: str) -> None:
    """As JSON and by SSE, what is over `max_result_bytes` is cut at a character, the model is told so, and
    the record has the size of all."""
    way = "json" if version == MODERN else "stream"
    server.handlers["one"] = lambda call: getattr(call, way)(text("🧀" * (10 * MIB // 4)))
    result = await calls.call(named("one"), {})
    assert (Outcome.OK, 10 * MIB, True) == (result.outcome, result.size, result.is_truncated)
    note = "\n[cut: these are the first 262144 of 10485760 bytes]"
    assert "🧀" * (262144 // 4) + note == result.text


@pytest.mark.parametrize("way", ["json", "stream"])
async def test_a_result_past_all_bounds_is_not_read(
    server: ToolServer, make_box: MakeBox, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tool ran, but nobody knows what it answered; the client lives on."""
    monkeypatch.setattr(mcp, "MOST_BYTES", MIB)
    server.handlers["one"] = lambda call: getattr(call, way)(text("x" * call.arguments["size"]))
    async with make_box(max_result_bytes=99).open() as calls:
        assert Outcome.OK is (await calls.call(named("one"), {"size": MIB - 999})).outcome
        assert Outcome.UNKNOWN is (await calls.call(named("one"), {"size": MIB + 9})).outcome
        assert "two" == (await calls.call(named("two"), {})).text
    assert 1 == server.asked.count("tools/list")


@pytest.mark.parametrize("way", ["json", "stream"])
async def test_a_bound_leaves_room_for_the_results(
    server: ToolServer, make_box: MakeBox, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result within `max_result_bytes` is read, however JSON may write it."""
    monkeypatch.setattr(mcp, "MOST_BYTES", 1000)
    server.handlers["one"] = lambda call: getattr(call, way)(text("\0" * 99_000))
    async with make_box(max_result_bytes=100_000).open() as calls:
        assert "\0" * 99_000 == (await calls.call(named("one"), {})).text


async def test_a_packed_result_is_not_unpacked(server: ToolServer, calls: Calls) -> None:
    """A megabyte may become a gigabyte; packed answers, which nobody asked for, aren't read."""

    def packed(call: Call) -> web.StreamResponse:
        response = call.json(text("x" * MIB))
        response.enable_compression(web.ContentCoding.gzip)
        return response

    server.handlers["one"] = packed
    assert Outcome.UNKNOWN is (await calls.call(named("one"), {})).outcome
    assert "two" == (await calls.call(named("two"), {})).text


@pytest.mark.parametrize("way", ["json", "stream"])
async def test_parts_that_are_no_text_are_described(
    server: ToolServer, calls: Calls, way: str
) -> None:
    """Images, audio and resources are told in words with type and size; texts among them stay."""
    blob = {"uri": "file:///b", "mimeType": "application/pdf", "blob": "AAAA"}
    parts = [
        {"type": "text", "text": "See:"},
        {"type": "image", "mimeType": "image/png", "data": "AAAAAA=="},
        {"type": "audio", "mimeType": "audio/wav", "data": "AAA="},
        {"type": "resource", "resource": blob},
        {"type": "resource", "resource": {"uri": "file:///t", "text": "Open at nine."}},
        {"type": "resource_link", "name": "n", "uri": "file:///l", "mimeType": "text/x", "size": 7},
    ]
    server.handlers["one"] = lambda call: getattr(call, way)({"content": parts})
    assert [
        "See:",
        "[an image, image/png, 4 bytes]",
        "[audio, audio/wav, 2 bytes]",
        "[a resource, file:///b, application/pdf, 3 bytes]",
        "Open at nine.",
        "[a resource, n, file:///l, text/x, 7 bytes]",
    ] == (await calls.call(named("one"), {})).text.split("\n")


async def test_a_structured_result_is_json(server: ToolServer, calls: Calls) -> None:
    """Without text, a structured value is told as JSON; with text, the text says it already. A value that
    doesn't fit the tool's schema is told all the same."""
    server.pages = [[{"name": "one", "inputSchema": {"type": "object"}, "outputSchema": OUTPUT}]]
    value = {"n": "ä", "list": [1, None]}
    server.handlers["one"] = answering({"content": [], "structuredContent": value})
    assert '{"n": "ä", "list": [1, null]}' == (await calls.call(named("one"), {})).text
    server.handlers["one"] = answering(text("n is ä", structuredContent=value))
    assert "n is ä" == (await calls.call(named("one"), {})).text


OUTPUT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    "odd",
    [
        lambda call: web.Response(text="<html>", content_type="text/html"),
        lambda call: web.Response(text="{", content_type="application/json"),
        lambda call: web.Response(status=202),
        lambda call: call.json({"content": "no list"}),
    ],
)
async def test_an_odd_answer_is_not_known(server: ToolServer, calls: Calls, odd: Handler) -> None:
    """A good status with something else than an answer: the tool may have run."""
    server.handlers["one"] = odd
    assert Outcome.UNKNOWN is (await calls.call(named("one"), {})).outcome
    assert ["one"] == server.calls
    assert "two" == (await calls.call(named("two"), {})).text


async def test_redirects_elsewhere_are_not_followed(server: ToolServer, calls: Calls) -> None:
    """Within its origin a server may move; what a call and its headers hold goes nowhere else."""
    other = await ToolServer().start()
    try:
        server.handlers["one"] = lambda call: web.Response(
            status=307, headers={"Location": other.url}
        )
        result = await calls.call(named("one"), {})
        assert Outcome.ERROR is result.outcome
        assert "HTTP 307" in result.text
        assert [] == other.asked
    finally:
        await other.stop()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"q": "\ud800"}, "half a character"),
        ({"q": float("nan")}, "not what JSON can say"),
        ({"q": "x" * 4 * MIB}, "the most is"),
    ],
)
async def test_arguments_are_checked_before(
    server: ToolServer, calls: Calls, arguments: dict[str, Any], words: str
) -> None:
    """What can't be sent isn't: an error, and nothing was called."""
    result = await calls.call(named("one"), arguments)
    assert Outcome.ERROR is result.outcome
    assert words in result.text
    assert result.text.endswith("The tool was not called.")
    assert [] == server.asked


async def test_a_cancelled_call_is_given_up(server: ToolServer, calls: Calls) -> None:
    """Our own cancellation passes at once, and other calls go on."""
    server.handlers["one"] = hang
    task = asyncio.create_task(calls.call(named("one"), {}))
    while "one" not in server.calls:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "two" == (await calls.call(named("two"), {})).text


async def test_leaving_waits_for_no_server(server: ToolServer, box: Toolbox) -> None:
    """An answer that ends gives up its calls at once, however long the tools would take."""
    server.handlers["one"] = hang
    async with box.open() as calls:
        task = asyncio.create_task(calls.call(named("one"), {}))
        while "one" not in server.calls:
            await asyncio.sleep(0.01)
        before = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - before < 0.2
    async with asyncio.timeout(3):
        assert Outcome.UNKNOWN is (await task).outcome
