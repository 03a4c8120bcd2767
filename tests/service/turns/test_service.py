"""Answers with tools through the service's front door: what curl, the SDK, a reader and the page see."""

from typing import Any

import openai
import pytest

from service.settings.config import OpenAIAgentConfig, ScriptedAgentConfig
from service.settings.tools import ToolsConfig, ToolServerConfig
from tests.service.conftest import Service, ServiceMaker

TOOLS = ToolsConfig(builtin=("clock", "dice"))
DEMO = ScriptedAgentConfig(
    name="demo", kind="scripted", models=("*",), reply="Hello.", tools=TOOLS, tokens_per_second=1e6
)
ROLL: Any = [{"role": "user", "content": "Roll the dice, and tell the time"}]


@pytest.fixture
async def demo(make_service: ServiceMaker) -> Service:
    return await make_service(DEMO)


async def test_a_stream_tells_of_its_calls(demo: Service) -> None:
    """In chunks of their own between the words; one finish reason, at the end; each call kept."""
    seen = await demo.stream(model="demo", messages=ROLL)
    told = [each["activity"] for each in seen.chunks if "activity" in each]
    assert ["started", "started", "finished", "finished"] == [
        each["type"].partition(".")[2] for each in told
    ]
    assert {"arguments", "result"}.isdisjoint({key for each in told for key in each})
    assert not any("event" in each for each in seen.chunks)
    assert seen.text.startswith("Let me look.\n\nThis is what I was told:")
    reasons = [each["choices"][0]["finish_reason"] for each in seen.chunks]
    assert ["stop"] == [reason for reason in reasons if reason]
    assert "stop" == reasons[-1]
    record = await demo.kept.one()
    assert ["clock", "dice"] == [call.server for call in record.tool_calls]
    assert seen.text == record.choices[0].message["content"]


@pytest.mark.parametrize(
    ("fields", "headers", "shown"),
    [
        ({"show": "none"}, {}, set()),
        ({"show": "auto"}, {}, {"activity"}),
        ({"show": "auto"}, {"X-OpenWebUI-Chat-Id": "7"}, {"activity", "event"}),
        ({"show": "openwebui", "show_detail": True}, {}, {"activity", "event"}),
    ],
)
async def test_how_a_client_is_told_is_configured(
    make_service: ServiceMaker, fields: dict[str, Any], headers: dict[str, str], shown: set[str]
) -> None:
    """Open WebUI gets its status lines, by its headers or by order."""
    tools = ToolsConfig(builtin=("dice",), **fields)
    agent = ScriptedAgentConfig(name="demo", kind="scripted", tools=tools, tokens_per_second=1e6)
    service = await make_service(agent)
    body = {"model": "demo", "stream": True, "messages": ROLL}
    url = f"{service.url}/v1/chat/completions"
    async with service.http.post(url, json=body, headers=headers) as response:
        text = await response.text()
    for key in ("activity", "event"):
        assert (key in shown) is (f'"{key}":' in text)
    assert ("show_detail" in fields) is ('"result":' in text)


async def test_the_official_sdk_keeps_and_ignores_them(demo: Service) -> None:
    """Each chunk is one of the SDK's own kind, the field is in `model_extra`."""
    client = openai.AsyncOpenAI(base_url=f"{demo.url}/v1", api_key="unused")
    text, told = "", []
    stream = await client.chat.completions.create(model="demo", messages=ROLL, stream=True)
    async for each in stream:
        text += each.choices[0].delta.content or ""
        assert each.choices[0].delta.tool_calls is None
        told += [(each.model_extra or {}).get("activity")]
    assert ["tool_call.started"] * 2 + ["tool_call.finished"] * 2 == [
        each["type"] for each in told if each
    ]
    plain = await client.chat.completions.create(model="demo", messages=ROLL)
    assert plain.choices[0].message.content is not None
    assert plain.choices[0].message.content.startswith("Let me look.")
    assert (None, "stop") == (plain.choices[0].message.tool_calls, plain.choices[0].finish_reason)
    assert plain.usage is not None
    assert 2 == len((plain.usage.model_extra or {})["turns"])
    await client.close()


async def test_the_sdks_own_folding_makes_one_answer_of_them(demo: Service) -> None:
    """As `chat.completions.stream` and whatever is built on it does: text, one finish reason, no calls."""
    client = openai.AsyncOpenAI(base_url=f"{demo.url}/v1", api_key="unused")
    async with client.chat.completions.stream(model="demo", messages=ROLL) as stream:
        kinds = {event.type async for event in stream}
        (choice,) = (await stream.get_final_completion()).choices
    assert {"chunk", "content.delta", "content.done"} == kinds
    assert (await demo.kept.one()).choices[0].message["content"] == choice.message.content
    assert (None, "stop") == (choice.message.tool_calls, choice.finish_reason)
    await client.close()


async def test_a_reader_resumes_in_the_middle_of_a_tools_work(demo: Service) -> None:
    """From any position, also from one between two calls: the same bytes."""
    seen = await demo.stream(model="demo", messages=ROLL)
    (record,) = demo.kept.records
    url = f"{demo.url}/v1/chat/completions/{record.completion_id}"
    whole = [line for line in seen.data if line != "[DONE]"]
    for position in range(len(whole)):
        query = {"stream": "true", "starting_after": str(position)}
        async with demo.http.get(url, params=query) as response:
            rest = [
                line[6:] for line in (await response.text()).split("\n") if line[:7] == "data: {"
            ]
        assert whole[position:] == rest


async def test_what_is_kept_can_be_looked_at(demo: Service) -> None:
    """The completion has its calls, the conversation its turns, the page both; deleted, all go."""
    await demo.stream(model="demo", messages=ROLL)
    (record,) = demo.kept.records
    one = f"{demo.url}/v1/chat/completions/{record.completion_id}"
    async with demo.http.get(one) as response:
        shown = await response.json()
    assert ["ok", "ok"] == [call["outcome"] for call in shown["tool_calls"]]
    async with demo.http.get(f"{demo.url}/v1/conversations") as response:
        (conversation,) = (await response.json())["data"]
    async with demo.http.get(f"{demo.url}/v1/conversations/{conversation['id']}") as response:
        nodes = (await response.json())["nodes"]["data"]
    assert ["assistant", "tool", "tool", "assistant"] == [
        message["role"] for message in nodes[-1]["messages"]
    ]
    async with demo.http.get(f"{demo.url}/page/completions/{record.completion_id}") as response:
        page = await response.text()
    assert "dice: roll" in page and "<span>Tools</span>" in page
    async with demo.http.delete(one) as response:
        assert 200 == response.status
    async with demo.http.get(one) as response:
        assert 404 == response.status


async def test_several_choices_and_tools_do_not_go_together(demo: Service) -> None:
    """Whose would a call be?"""
    async with demo.post(model="demo", messages=ROLL, n=2) as response:
        assert 400 == response.status
        assert "n" == (await response.json())["error"]["param"]


async def test_an_agent_whose_secret_is_not_set_is_off(make_service: ServiceMaker) -> None:
    """It is named, and its value is nowhere."""
    server = ToolServerConfig(
        name="docs",
        url="http://127.0.0.1:9/mcp",
        headers={"Authorization": "Bearer ${NO_SUCH_TOKEN}"},
    )
    agent = OpenAIAgentConfig(
        name="librarian",
        kind="openai",
        base_url="http://127.0.0.1:9/v1",
        api_key_env=None,
        tools=ToolsConfig(servers=(server,)),
    )
    service = await make_service(agent, DEMO)
    async with service.http.get(f"{service.url}/v1/models") as response:
        names = [model["id"] for model in (await response.json())["data"]]
    assert "librarian" not in names


async def test_an_agent_whose_server_is_away_says_so(make_service: ServiceMaker) -> None:
    """503 before anything is said: what it offers was never known."""
    server = ToolServerConfig(name="docs", url="http://127.0.0.1:9/mcp", timeout_seconds=2.0)
    agent = ScriptedAgentConfig(name="demo", kind="scripted", tools=ToolsConfig(servers=(server,)))
    service = await make_service(agent)
    async with service.post(model="demo", messages=ROLL) as response:
        assert 503 == response.status
        assert "tools_unavailable" == (await response.json())["error"]["code"]
