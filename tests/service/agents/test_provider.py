"""Who runs a backend, by its host; and whom an agent says that it asks."""

import pytest
from attrs import evolve

from service.agents.openai.agent import OpenAIAgent
from service.agents.openai.provider import provider_of
from service.agents.protocol import AgentCall, Target
from service.agents.scripted import ScriptedAgent
from service.settings.config import OpenAIAgentConfig, ScriptedAgentConfig
from tests.service.stream.conftest import CALL


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("api.openai.com", "openai"),
        ("API.Mistral.AI.", "mistral_ai"),
        ("us.openai.azure.com", "azure.ai.openai"),
        ("generativelanguage.googleapis.com", "gcp.gemini"),
        ("x.ai", "x_ai"),
        ("notx.ai", "openai"),
        ("127.0.0.1", "openai"),
        ("", "openai"),
    ],
)
def test_a_host_tells_who_runs_it(host: str, expected: str) -> None:
    """By its domain; an unknown one is called as the conventions call all that speak this API."""
    assert expected == provider_of(host)


def config(base_url: str, **fields: object) -> OpenAIAgentConfig:
    return OpenAIAgentConfig(
        name="a",
        kind="openai",
        base_url=base_url,
        api_key_env=None,
        **fields,  # type: ignore[arg-type]  # as the test gives them
    )


@pytest.mark.parametrize(
    ("base_url", "host", "port"),
    [
        ("https://user:pw@api.example/v1", "api.example", 443),
        ("http://api.example/v1", "api.example", 80),
        ("http://[::1]:8080/v1", "::1", 8080),
    ],
)
def test_an_agent_says_where_its_backend_is(base_url: str, host: str, port: int) -> None:
    """Without user and password; the scheme's port where none is named."""
    agent = OpenAIAgent(config(base_url), None)
    assert Target("openai", CALL.request.model, host, port) == agent.target(CALL)


def test_an_agent_says_which_model_it_asks_for() -> None:
    """As a fallback it is its own, else the client's."""
    agent = OpenAIAgent(config("http://b/v1", parameters={"model": "own"}), None)
    call: AgentCall = evolve(CALL, is_fallback=True)
    assert (CALL.request.model, "own") == (agent.target(CALL).model, agent.target(call).model)


def test_the_built_in_agent_asks_nobody() -> None:
    """It is in this process."""
    agent = ScriptedAgent(ScriptedAgentConfig(name="demo", kind="scripted"))
    assert Target("verbatim", CALL.request.model) == agent.target(CALL)
