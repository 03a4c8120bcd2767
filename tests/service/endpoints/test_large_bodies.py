"""The largest bodies: taken or refused, none of them holds up anybody else."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from db.postgres.store import PostgresStore
from service.endpoints import bodies
from service.settings.access import LimitsConfig
from service.settings.config import DatabaseConfig, ScriptedAgentConfig, ServerConfig
from service.wire import requests
from tests.holdup import measured_loop
from tests.service.conftest import QUESTION, Service, ServiceMaker

SIZE = 9_500_000
QUICK = ScriptedAgentConfig(name="demo", kind="scripted", reply="Yes.", tokens_per_second=1e4)


def body(*messages: Any, **fields: Any) -> bytes:
    return json.dumps({"model": "demo", "messages": messages or QUESTION, **fields}).encode()


def with_field(text: str) -> bytes:
    """A body with this JSON in a field that is passed on as it comes."""
    return body(x=0).replace(b'"x": 0', b'"x": ' + text.encode())


def user(content: Any) -> Any:
    return {"role": "user", "content": content}


def answer(**fields: Any) -> Any:
    return {"role": "assistant", "content": None, **fields}


def call(arguments: str) -> Any:
    return {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}


def listed(item: str, separator: str = ",") -> str:
    count = SIZE // (len(item) + len(separator))
    return "[" + separator.join([item] * count) + "]"


TAKEN: dict[str, Callable[[], bytes]] = {
    "one text": lambda: body(user("x" * SIZE)),
    "text in two-byte characters": lambda: with_field('"' + "ü" * (SIZE // 2) + '"'),
    "images": lambda: body(
        user([{"type": "image_url", "image_url": {"url": "data:," + "A" * 1_900_000}}] * 5)
    ),
    "ten thousand messages": lambda: body(*[user(f"{n} " + "x" * 900) for n in range(10_000)]),
    "ten thousand answers": lambda: body(*[answer(tool_calls=[call("{}")])] * 5_000),
    "many parts": lambda: body(user([{"type": "text", "text": "a"}] * 19_000)),
    "NUL": lambda: body(user("\0" * (SIZE // 6))),
    "escapes": lambda: with_field('"' + "\\u0041" * (SIZE // 6) + '"'),
    "backslashes": lambda: with_field('"' + "\\\\" * (SIZE // 2) + '"'),
    "brackets in a text": lambda: body(user("[{,:" * (SIZE // 4))),
    "half characters": lambda: body(user("\ud800" * 90_000)),
    "half characters in parts": lambda: body(user([{"type": "t", "x": "\ud800a" * 90_000}])),
    "white space": lambda: body() + b" " * SIZE,
    "digits": lambda: with_field("0." + "1" * SIZE),
    "arguments of many values": lambda: body(answer(tool_calls=[call(listed("{}"))])),
    "arguments of many digits": lambda: body(answer(tool_calls=[call(listed("1" * 4000))])),
    "reasoning tags": lambda: body(answer(content="<think>" * (SIZE // 7))),
    "white space of an answer": lambda: body(answer(content=" " * SIZE + "x")),
    "as many values as may be": lambda: with_field("[" + ",".join(["{}"] * 49_900) + "]"),
}
REFUSED: dict[str, Callable[[], bytes]] = {
    "arrays, 190 deep": lambda: with_field(listed("[" * 190 + "]" * 190)),
    "tools, 150 deep": lambda: body(tools=0).replace(
        b'"tools": 0', b'"tools": ' + listed("[" * 150 + "]" * 150).encode()
    ),
    "a deep one": lambda: with_field("[" * 4_000_000 + "]" * 4_000_000),
    "objects": lambda: with_field(listed("{}")),
    "numbers": lambda: with_field(listed("1")),
    "keys": lambda: with_field("{" + ",".join(f'"{n}":1' for n in range(800_000)) + "}"),
    "one key again and again": lambda: with_field("{" + ",".join(['"a":1'] * 1_500_000) + "}"),
    "texts": lambda: with_field(listed('""')),
    "messages": lambda: body().replace(b"[{", listed('{"role":"u"}').encode()[:-1] + b",{"),
    "half characters": lambda: body(user("\ud800" * (SIZE // 6))),
    "half characters and numbers": lambda: with_field('["\\ud800",' + listed("1" * 4000) + "]"),
    "digits": lambda: with_field("1" * SIZE),
    "nothing closed": lambda: b"[" * SIZE,
    "nothing opened": lambda: b"]" * SIZE,
    "quotes": lambda: b'"' * SIZE,
    "a model": lambda: body(model="x" * SIZE),
}

_SEND = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60)
connection.request("POST", sys.argv[2], sys.stdin.buffer.read())
response = connection.getresponse()
print(response.status, response.read().decode())
"""


async def sent(
    service: Service, data: bytes, path: str = "/v1/chat/completions"
) -> tuple[int, Any]:
    """Send a body from a process of its own, which holds up nobody here: status and answer."""
    port = service.url.rpartition(":")[2]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SEND, port, path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    for start in range(0, len(data), 65536):  # the test itself is to hold up nobody either
        process.stdin.write(data[start : start + 65536])
        await process.stdin.drain()
    process.stdin.close()
    assert process.stdout is not None
    status, _, text = (await process.stdout.read()).decode().partition(" ")
    await process.wait()
    return int(status), json.loads(text)


@pytest.mark.parametrize("kind", TAKEN)
async def test_what_is_taken_holds_up_nobody(
    make_service: ServiceMaker, database_url: str, kind: str
) -> None:
    """From its last byte until it is stored, a body of ten megabytes gives everybody else a turn
    within a tenth of a second, whatever it is made of."""
    store = await PostgresStore.open(database_url)
    limits = LimitsConfig(tokens_per_minute=10**9)  # the prompt's tokens are counted
    patient = DatabaseConfig(commit_timeout_seconds=30.0)  # the row is there once the answer is
    service = await make_service(QUICK, store=store, limits=limits, database=patient)
    assert 200 == (await sent(service, body()))[0]  # what a first request makes is made
    data = TAKEN[kind]()
    async with measured_loop() as loop_time:
        status, said = await sent(service, data)
        assert 200 == status, said
        assert await store.find(said["id"]) is not None
    assert loop_time.longest_ms < loop_time.bound_ms
    await store.close()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/chat/completions/chatcmpl-1"])
@pytest.mark.parametrize("kind", REFUSED)
async def test_what_is_refused_holds_up_nobody(
    make_service: ServiceMaker, kind: str, path: str
) -> None:
    """The same for bodies that are refused, which say why."""
    service = await make_service(QUICK)
    data = REFUSED[kind]()
    async with measured_loop() as loop_time:
        status, said = await sent(service, data, path)
    assert (400, "invalid_request") == (status, said["error"]["code"])
    assert len(said["error"]["message"]) < 500
    assert loop_time.longest_ms < loop_time.bound_ms


@pytest.mark.parametrize("length", [0, bodies.LONG_BODY_BYTES])
@pytest.mark.parametrize(("most", "status"), [(8, 200), (7, 400)])
async def test_the_most_values_are_configurable(
    make_service: ServiceMaker, length: int, most: int, status: int
) -> None:
    """A body may have exactly as many keys and values, long or short; the refusal names the key."""
    data = b'{"model":"demo","messages":[{"role":"u"}]}'  # three keys and five values
    service = await make_service(QUICK, server=ServerConfig(max_body_values=most))
    async with service.post(data + b" " * length) as response:
        text = await response.text()
    assert status == response.status, text
    assert (status == 400) == ("server.max_body_values" in text)


async def test_a_models_name_is_short(make_service: ServiceMaker) -> None:
    """It is in every chunk."""
    service = await make_service(ScriptedAgentConfig(name="demo", kind="scripted", models=("*",)))
    assert (await service.stream(model="é" * requests.MAX_MODEL)).is_done
    error = (await service.stream(model="é" * (requests.MAX_MODEL + 1))).error
    assert ("invalid_request", "model") == (error["code"], error["param"])
