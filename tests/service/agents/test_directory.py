"""Which agents are on, and who answers for a model."""

from typing import Any

import pytest

from service.agents.directory import AgentDirectory
from service.agents.openai.agent import OpenAIAgent
from service.edge.errors import ApiError
from service.settings.config import AgentConfig, ScriptedAgentConfig, load_config
from service.settings.tools import ToolsConfig, ToolServerConfig
from statemachine import (
    Failure,
)
from tests.service.agents.conftest import (
    openai_config,
    scripted,
    unused_port,
)


@pytest.mark.parametrize(
    ("models", "model", "serves"),
    [
        ((), "it", True),  # its own name
        ((), "gpt-4o", False),
        (("*",), "anything/at:all", True),
        (("gpt-*",), "gpt-4o", True),
        (("gpt-*",), "GPT-4o", False),
        (("gpt-*",), "my-gpt-4o", False),
        (("a", "b"), "b", True),
        (("gpt-[45]*",), "gpt-5", True),
        (("gpt-[45]*",), "gpt-3", False),
    ],
)
async def test_agents_serve_by_name_and_by_pattern(
    models: tuple[str, ...], model: str, serves: bool, closing_agents: Any
) -> None:
    """Both kinds go by their name and by patterns, in which case counts."""
    assert scripted(name="it", models=models).serves(model) is serves
    agent = closing_agents(OpenAIAgent(openai_config(name="it", models=models), None))
    assert agent.serves(model) is serves


async def test_a_model_is_known_if_it_is_named() -> None:
    """By an agent's name, among its models, or as its default; a pattern names none."""
    named = openai_config(
        name="agent", models=("exact", "gpt-*"), api_key_env=None, parameters={"model": "default"}
    )
    directory = AgentDirectory.from_config((named,), {})
    known = [
        name for name in ("agent", "exact", "default", "gpt-*", "gpt-5") if directory.is_known(name)
    ]
    assert ["agent", "exact", "default"] == known
    directory.replace((ScriptedAgentConfig(name="other", kind="scripted"),))
    assert (False, True) == (directory.is_known("exact"), directory.is_known("other"))
    await directory.close()


async def test_the_built_in_agent_lists_each_literal_name_once() -> None:
    """The agent's own name comes first, and patterns are no names."""
    agent = scripted(name="demo", models=("x", "y-*", "z?", "w[1]", "demo", "x"))
    expected = [
        {"id": name, "object": "model", "created": 0, "owned_by": "verbatim"}
        for name in ("demo", "x")
    ]
    assert expected == await agent.models()


async def test_an_agents_name_goes_before_anothers_pattern() -> None:
    """An agent asked for by its name answers, though another's pattern comes first."""
    first, second = scripted(name="a", models=("*",)), scripted(name="b")
    directory = AgentDirectory([first, second])
    assert directory.pick("b") == (second,)
    assert directory.pick("a") == (first,)


async def test_of_several_patterns_that_fit_the_first_agents_wins() -> None:
    """Of several agents whose patterns fit, the first in the configuration answers."""
    first, second = scripted(name="a", models=("gpt-4*",)), scripted(name="b", models=("gpt-*",))
    directory = AgentDirectory([first, second])
    assert directory.pick("gpt-4o") == (first,)
    assert directory.pick("gpt-5") == (second,)
    assert AgentDirectory([second, first]).pick("gpt-4o") == (second,)


async def test_fallbacks_come_in_order_without_those_that_are_off() -> None:
    """The agent itself comes first, and its fallbacks' own fallbacks don't count."""
    third = scripted(name="c", fallbacks=("a",))
    first = scripted(name="a", fallbacks=("off", "c", "b"))
    second = scripted(name="b")
    directory = AgentDirectory([first, second, third], {"off": "KEY is not set"})
    assert directory.pick("a") == (first, third, second)
    assert directory.pick("b") == (second,)
    assert directory.pick("c") == (third, first)


async def test_model_not_found_names_the_agents_that_are_on() -> None:
    """Of agents that are off, the error says why."""
    directory = AgentDirectory([scripted(name="a"), scripted(name="b")], {"o": "KEY is not set"})
    with pytest.raises(ApiError) as caught:
        directory.pick("gpt-4o")
    message = (
        "No agent serves the model 'gpt-4o'. Agents that are on: a, b. (o is off: KEY is not set)"
    )
    expected = Failure("model_not_found", message, type="invalid_request_error", param="model")
    assert expected == caught.value.failure


async def test_model_not_found_stays_brief() -> None:
    """Neither a long name nor many agents make a long message."""
    directory = AgentDirectory([scripted(name=f"agent-{number}") for number in range(30)])
    with pytest.raises(ApiError) as caught:
        directory.pick("x" * 10_000)
    assert len(caught.value.failure.message) < 400
    with pytest.raises(ApiError) as caught:
        AgentDirectory([]).pick("m")
    assert caught.value.failure.message.endswith("Agents that are on: none.")


@pytest.mark.parametrize("environ", [{}, {"OPENAI_API_KEY": ""}, {"OTHER": "x"}])
async def test_agents_without_their_key_are_off(environ: dict[str, str]) -> None:
    """A missing or empty key turns the agent off, and the directory says why."""
    configs: list[AgentConfig] = [
        ScriptedAgentConfig(name="demo", kind="scripted"),
        openai_config(name="openai"),
        openai_config(name="local", api_key_env=None),
    ]
    directory = AgentDirectory.from_config(configs, environ)
    assert ["demo", "local"] == [agent.name for agent in directory.agents]
    assert {"openai": "OPENAI_API_KEY is not set"} == directory.off
    await directory.close()


async def test_agents_with_their_key_are_on() -> None:
    """With its key in the environment an agent is on, under whatever name the key has."""
    configs = [openai_config(name="a"), openai_config(name="b", api_key_env="B_KEY")]
    directory = AgentDirectory.from_config(configs, {"OPENAI_API_KEY": "x", "B_KEY": "y"})
    assert ["a", "b"] == [agent.name for agent in directory.agents]
    assert {} == directory.off
    await directory.close()


async def test_directory_lists_each_model_once(closing_agents: Any) -> None:
    """Two agents may list a model; the one that answers for it is the one that describes it."""
    config = openai_config(base_url=f"http://127.0.0.1:{unused_port()}/v1", models=("x", "y"))
    first, second = scripted(name="a", models=("x",)), closing_agents(OpenAIAgent(config, None))
    listed = await AgentDirectory([first, second]).models()
    assert [
        ("a", "verbatim"),
        ("x", "verbatim"),
        ("y", "o"),
    ] == [(model["id"], model["owned_by"]) for model in listed]


@pytest.mark.parametrize("key", ["sk-schlüssel", "sk-1\n"])
async def test_a_key_that_no_header_can_carry_turns_its_agent_off(
    key: str, closing_agents: Any
) -> None:
    """A mangled key is noticed at start, with the reason, instead of failing requests."""
    directory = AgentDirectory.from_config([openai_config(api_key_env="KEY")], {"KEY": key})
    assert () == directory.agents
    assert ["KEY holds characters that no HTTP header can"] == list(directory.off.values())


@pytest.mark.parametrize(
    ("base_url", "is_on"),
    [("http://127.0.0.1:11434/v1", True), ("https://api.openai.com/v1", False), ("", False)],
)
async def test_a_server_of_ones_own_needs_no_key(
    base_url: str, is_on: bool, closing_agents: Any
) -> None:
    """`OPENAI_BASE_URL` alone turns the agent on, unless it points to OpenAI, which wants a key."""
    environ = {"OPENAI_BASE_URL": base_url}
    config = load_config(None, environ)
    directory = AgentDirectory.from_config(config.agents, environ)
    assert ("openai" in [agent.name for agent in directory.agents]) is is_on
    await directory.close()


@pytest.mark.parametrize(
    ("environ", "off"),
    [
        ({}, {"a": "DOCS_TOKEN is not set"}),
        ({"DOCS_TOKEN": ""}, {"a": "DOCS_TOKEN is not set"}),
        ({"DOCS_TOKEN": "a\nb"}, {"a": "DOCS_TOKEN holds characters that no HTTP header can"}),
        ({"DOCS_TOKEN": "secret"}, {}),
    ],
)
async def test_agents_without_their_tools_variables_are_off(
    environ: dict[str, str], off: dict[str, str]
) -> None:
    """A missing variable of a header turns the agent off, as a missing key does, and is named."""
    headers = {"Authorization": "Bearer ${DOCS_TOKEN}"}
    server = ToolServerConfig(name="docs", url="http://127.0.0.1:1/mcp", headers=headers)
    config = openai_config(name="a", api_key_env=None, tools=ToolsConfig(servers=(server,)))
    directory = AgentDirectory.from_config((config,), environ)
    assert off == directory.off
    await directory.close()
