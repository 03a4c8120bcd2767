"""Which agents are on, and who answers for a model. The one place that knows every kind."""

from collections.abc import Iterable, Mapping
from typing import Any

from service.agents.openai import OpenAIAgent
from service.agents.protocol import Agent
from service.agents.scripted import ScriptedAgent
from service.config import AgentConfig, OpenAIAgentConfig, ScriptedAgentConfig
from service.errors import ApiError
from statemachine import Failure

_MOST_NAMES_SHOWN = 10
_OPENAI_HOST = "api.openai.com"


def _is_moved(config: OpenAIAgentConfig, environ: Mapping[str, str]) -> bool:
    """True if `OPENAI_BASE_URL` points to a server of the user's own, which may want no key."""
    return bool(environ.get("OPENAI_BASE_URL")) and _OPENAI_HOST not in config.base_url


class AgentDirectory:
    """The agents in the order of the configuration.

    Attributes:
        agents: those that are on.
        off: name → why, for those that are not.
    """

    def __init__(self, agents: Iterable[Agent], off: Mapping[str, str] | None = None) -> None:
        self.agents = tuple(agents)
        self.off = dict(off or {})
        self._by_name = {agent.name: agent for agent in self.agents}

    @classmethod
    def from_config(
        cls, configs: Iterable[AgentConfig], environ: Mapping[str, str]
    ) -> "AgentDirectory":
        """Make every agent whose key is there. Must be called with the event loop running."""
        agents: list[Agent] = []
        off: dict[str, str] = {}
        for config in configs:
            match config:
                case ScriptedAgentConfig():
                    agents.append(ScriptedAgent(config))
                case OpenAIAgentConfig(api_key_env=None):
                    agents.append(OpenAIAgent(config, None))
                case OpenAIAgentConfig(api_key_env=name) if name and environ.get(name):
                    if environ[name].isascii() and environ[name].isprintable():
                        agents.append(OpenAIAgent(config, environ[name]))
                    else:
                        off[config.name] = f"{name} holds characters that no HTTP header can"
                case OpenAIAgentConfig(api_key_env="OPENAI_API_KEY") if _is_moved(config, environ):
                    agents.append(OpenAIAgent(config, None))
                case OpenAIAgentConfig(name=agent_name, api_key_env=name):
                    off[agent_name] = f"{name} is not set"
        return cls(agents, off)

    def pick(self, model: str) -> tuple[Agent, ...]:
        """Who answers for this model: an agent of that name, else the first whose patterns fit;
        then its fallbacks, as far as they are on.

        Raises:
            ApiError: `model_not_found`, naming what could be asked for.
        """
        agent = self._by_name.get(model) or next(
            (agent for agent in self.agents if agent.serves(model)), None
        )
        if agent is None:
            raise ApiError(self._not_found(model))
        fallbacks = (self._by_name.get(name) for name in agent.fallbacks)
        return (agent, *(fallback for fallback in fallbacks if fallback is not None))

    async def models(self) -> list[dict[str, Any]]:
        """Every model that can be asked for, each once, in the agents' order."""
        listed: dict[str, dict[str, Any]] = {}
        for agent in self.agents:
            for model in await agent.models():
                listed.setdefault(model["id"], model)
        return list(listed.values())

    async def close(self) -> None:
        for agent in self.agents:
            await agent.close()

    def _not_found(self, model: str) -> Failure:
        names = ", ".join(agent.name for agent in self.agents[:_MOST_NAMES_SHOWN]) or "none"
        off = "; ".join(f"{name} is off: {why}" for name, why in self.off.items())
        message = f"No agent serves the model {model[:100]!r}. Agents that are on: {names}."
        return Failure(
            "model_not_found",
            f"{message} ({off})" if off else message,
            type="invalid_request_error",
            param="model",
        )
