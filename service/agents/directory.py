"""Which agents are on, and who answers for a model. The one place that knows every kind."""

import asyncio
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import structlog

from service.agents.openai.agent import OpenAIAgent
from service.agents.protocol import Agent, AgentTools
from service.agents.scripted import ScriptedAgent
from service.edge.errors import ApiError
from service.settings.config import AgentConfig, OpenAIAgentConfig, ScriptedAgentConfig
from service.settings.tools import ToolsConfig
from service.tools.contract import ToolsUnavailable
from service.tools.making import load_for as load_tools_for
from service.tools.making import make_toolbox, why_off
from statemachine import Failure

log = structlog.get_logger(__name__)

_MOST_NAMES_SHOWN = 10
_WILDCARDS = frozenset("*?[")
_OPENAI_HOST = "api.openai.com"


def _make(config: AgentConfig, environ: Mapping[str, str]) -> Agent | str:
    """The agent, or why it is off."""
    if (why := why_off(config.tools, environ)) is not None:
        return why
    tools = None if config.tools is None else _tools(config.tools, environ)
    match config:
        case ScriptedAgentConfig():
            return ScriptedAgent(config, tools)
        case OpenAIAgentConfig(api_key_env=None):
            return OpenAIAgent(config, None, tools)
        case OpenAIAgentConfig(api_key_env=name) if name and environ.get(name):
            if environ[name].isascii() and environ[name].isprintable():
                return OpenAIAgent(config, environ[name], tools)
            return f"{name} holds characters that no HTTP header can"
        case OpenAIAgentConfig(api_key_env="OPENAI_API_KEY") if _is_moved(config, environ):
            return OpenAIAgent(config, None, tools)
        case OpenAIAgentConfig(api_key_env=name):
            return f"{name} is not set"


def _tools(config: ToolsConfig, environ: Mapping[str, str]) -> AgentTools | None:
    """The agent's tools; None if it has none."""
    if not (config.builtin or config.servers):
        return None
    return AgentTools(
        toolbox=make_toolbox(config, environ),
        max_turns=config.max_turns,
        concurrency=config.concurrency,
        stops_on_error=config.on_error == "stop",
        show=config.show,
        shows_detail=config.show_detail,
    )


def _is_moved(config: OpenAIAgentConfig, environ: Mapping[str, str]) -> bool:
    """True if `OPENAI_BASE_URL` points to a server of the user's own, which may want no key."""
    return bool(environ.get("OPENAI_BASE_URL")) and _OPENAI_HOST not in config.base_url


class AgentDirectory:
    """The agents in the order of the configuration.

    Args:
        agents: those that are on.
        off: name → why, for those that are not.
        environ: where `replace` finds agents' keys.

    Attributes:
        agents: those that are on.
        off: name → why, for those that are not.
    """

    def __init__(
        self,
        agents: Iterable[Agent] = (),
        off: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._environ = environ or {}
        self._made: list[tuple[AgentConfig, Agent]] = []
        self._uses: Counter[Agent] = Counter()
        self._retired: set[Agent] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._preparing: asyncio.Task[None] | None = None
        self._list(agents, off or {})

    @classmethod
    def from_config(
        cls, configs: Iterable[AgentConfig], environ: Mapping[str, str]
    ) -> "AgentDirectory":
        """Make every agent whose key is there."""
        directory = cls(environ=environ)
        directory.replace(configs)
        return directory

    def replace(self, configs: Iterable[AgentConfig]) -> None:
        """Have these agents from now on.

        One whose configuration is the same stays as it is, connections included. One that is
        not among them any more is closed once the last completion that holds it has ended.
        Raises whatever making an agent raises, and changes nothing then.
        """
        made: list[tuple[AgentConfig, Agent]] = []
        off: dict[str, str] = {}
        for config in configs:
            agent = self._existing(config) or _make(config, self._environ)
            if isinstance(agent, str):
                off[config.name] = agent
            else:
                made.append((config, agent))
        old, self._made = self._made, made
        self._list((agent for _, agent in made), off)
        for _, agent in old:
            if agent not in self.agents:
                self._retired.add(agent)
                self._close_if_unused(agent)

    def prepare_soon(self) -> None:
        """Have each agent do what can wait until the service serves."""
        previous = self._preparing
        self._preparing = asyncio.create_task(self._prepare(previous), name="prepare agents")

    async def _prepare(self, previous: "asyncio.Task[None] | None") -> None:
        if previous is not None:
            await asyncio.wait((previous,))
        for agent in self.agents:
            try:
                await agent.prepare()
                if agent.tools is not None:
                    await agent.tools.toolbox.tools()
            except ToolsUnavailable as error:
                log.warning("tools not known yet", agent=agent.name, reason=str(error))
            except Exception as error:  # its requests will say so, too
                log.warning("agent not prepared", agent=agent.name, reason=repr(error)[:200])

    def hold(self, agents: Sequence[Agent], task: "asyncio.Future[Any]") -> None:
        """Keep these open, replaced or not, until the task is done."""
        for agent in agents:
            self._uses[agent] += 1
        task.add_done_callback(lambda _: self._release(agents))

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
        agents = self.agents
        self._uses.update(agents)
        try:
            for models in await asyncio.gather(*[agent.models() for agent in agents]):
                for model in models:
                    listed.setdefault(model["id"], model)
        finally:
            self._release(agents)
        return list(listed.values())

    def is_known(self, model: str) -> bool:
        """True of a model that the configuration names, or that a backend has listed: nobody made it up."""
        return model in self._named or any(
            isinstance(agent, OpenAIAgent) and agent.has_listed(model) for agent in self.agents
        )

    def circuits(self) -> list[dict[str, object]]:
        """The state of each agent's circuits, in the agents' order."""
        return [agent.circuits.state() for agent in self.agents]

    async def close(self) -> None:
        """Give back every connection, whoever may still hold it."""
        if self._preparing is not None:
            self._preparing.cancel()
            await asyncio.wait((self._preparing,))
        for agent in (*self.agents, *self._retired):
            await agent.close()
        await asyncio.gather(*self._closing)

    def _list(self, agents: Iterable[Agent], off: Mapping[str, str]) -> None:
        self.agents = tuple(agents)
        self.off = dict(off)
        self._named = {name for config, _ in self._made for name in _names_in(config)}
        self._by_name = {agent.name: agent for agent in self.agents}

    def _existing(self, config: AgentConfig) -> Agent | None:
        return next((agent for made, agent in self._made if made == config), None)

    def _release(self, agents: Iterable[Agent]) -> None:
        for agent in agents:
            self._uses[agent] -= 1
            if self._uses[agent] <= 0:
                del self._uses[agent]
            self._close_if_unused(agent)

    def _close_if_unused(self, agent: Agent) -> None:
        if agent in self._retired and agent not in self._uses:
            self._retired.discard(agent)
            closing = asyncio.create_task(_close(agent), name=f"close agent {agent.name}")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

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


def _names_in(config: AgentConfig) -> set[str]:
    """The models that an agent's configuration names, its own name among them; no patterns."""
    names = {config.name, *(name for name in config.models if not set(name) & _WILDCARDS)}
    if isinstance(config, OpenAIAgentConfig):
        model = config.parameters.get("model")
        names |= {model} if isinstance(model, str) else set()
    return names


def load_for(configs: Iterable[AgentConfig]) -> None:
    """Import what these agents import late, so that processes that are forked hereafter share its
    memory."""
    configs = tuple(configs)
    load_tools_for(config.tools for config in configs)
    if any(isinstance(config, OpenAIAgentConfig) for config in configs):
        from service.agents.openai.specimen import load

        load()


def askable(agents: tuple[Agent, ...], model: str) -> tuple[Agent, ...]:
    """Those from the first on that may be asked now: who is known to be down is spared.

    Raises:
        ApiError: `upstream_unavailable`, none may; it says when to come back.
    """
    waits = [agent.circuits.wait_seconds(model) for agent in agents]
    if not waits[0]:
        return agents
    if 0.0 in waits:
        return agents[waits.index(0.0) :]
    seconds = math.ceil(min(waits))
    message = f"The model's backend is down; it will be asked again in {seconds} s."
    failure = Failure(
        "upstream_unavailable", message, retry_after_seconds=seconds, should_retry=True
    )
    raise ApiError(failure)


async def _close(agent: Agent) -> None:
    try:
        await agent.close()
    except Exception as error:  # its connections are broken; nobody uses them any more
        log.warning("agent not closed", agent=agent.name, reason=type(error).__name__)
