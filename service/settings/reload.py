"""Rereads the configuration while streams run: what changed, what takes effect, what can't.

Knows no key by name: `service.settings.config` lists those that can change in a running service
(`RELOADABLE`), `service.app` those that ask for more than being read anew (`RELOADS`).

1. The file is read and checked in full first. If anything is wrong nothing changes.
2. Only keys are logged, never values: some values are secrets.
3. Keys that need a restart keep their old values; every reload lists them again.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import structlog
from attrs import evolve, fields, has

from service.settings.checking import ConfigError
from service.settings.config import Config, check_together, mask_password
from service.settings.live import Live

log = structlog.get_logger(__name__)

Load = Callable[[], Config]
"""Reads the configuration again, with the same flags and environment. Raises ConfigError."""
Apply = Callable[[Config], object]
"""Applies a configuration to one part of the service. If it fails it changes nothing."""

_NOT_RELOADED = "configuration not reloaded"
_NONE = object()


class Reloader:
    """Replaces the configuration in force, and acts on changed keys.

    Args:
        live: the configuration in force. Keys that need a restart keep their old values in it.
        reloadable: the keys, and whole sections, that take effect without a restart.
        changes: key, or section → the action when it has changed, in this order; one that can fail
            comes before those that can't. A key that is read each time it is needed has none.
    """

    def __init__(
        self, live: Live[Config], reloadable: Sequence[str], changes: Mapping[str, Apply]
    ) -> None:
        self._live = live
        self._reloadable = reloadable
        self._changes = changes
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Reload soon. Calls before the reload begins count as one; later ones cause another."""
        self._asked.set()

    async def run(self, load: Load) -> None:
        """Reload at each `ask`, one at a time, until cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            await self.reload(load)

    async def reload(self, load: Load) -> bool:
        """Read the configuration and put it in force. False, and a log line, if it can't be used."""
        current = self._live.value
        wanted = await asyncio.to_thread(read_again, current, load, self._reloadable)
        if wanted is None:
            return False
        merged = in_force(current, wanted, self._reloadable)
        changed = changed_keys(current, merged)
        try:
            for key, apply in self._changes.items():
                if _concerns(key, changed):
                    apply(merged)
        except Exception as error:
            reason = mask_password(f"{type(error).__name__}: {error}")
            log.error(_NOT_RELOADED, problems=[reason])
            return False
        self._live.publish(merged)
        report(changed, changed_keys(merged, wanted))
        return True


def read_again(current: Config, load: Load, reloadable: Iterable[str]) -> Config | None:
    """The configuration as it is written now, or None and a log line with every problem.

    Also checks the configuration that would be in force: a good file may not go together with keys
    that need a restart. Blocks; may run in a thread.
    """
    try:
        wanted = load()
        check_together(in_force(current, wanted, reloadable), "until the next restart", {})
    except ConfigError as error:
        log.error(_NOT_RELOADED, problems=[str(problem) for problem in error.problems])
        return None
    return wanted


def in_force(current: Config, wanted: Config, reloadable: Iterable[str]) -> Config:
    """`current`, with the reloadable keys of `wanted`."""
    for key in reloadable:
        section, _, name = key.partition(".")
        value = getattr(wanted, section)
        if name:
            value = evolve(getattr(current, section), **{name: getattr(value, name)})
        current = evolve(current, **{section: value})
    return current


def changed_keys(old: Config, new: Config) -> list[str]:
    """The paths of the keys that differ, in the order of the classes: `sse.send_timeout_seconds`,
    `agents[demo].reply`; `agents[demo]` for an agent that came or went, `agents` for a new order."""
    before, after = dict(_keys(old)), dict(_keys(new))
    every = {**before, **after}
    differing = [path for path in every if before.get(path, _NONE) != after.get(path, _NONE)]
    changed = [
        path for path in differing if not any(path.startswith(f"{above}.") for above in differing)
    ]
    if _order(old, new) != _order(new, old):
        changed.append("agents")
    return changed


def report(changed: list[str], needs_restart: list[str]) -> None:
    """Log what a reload changed, and which keys wait for a restart."""
    write = log.warning if needs_restart else log.info
    write("configuration reloaded", changed=changed, needs_restart=needs_restart)


def _keys(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The path and value of every key below; also a path for each agent as a whole."""
    for field in fields(type(node)):
        path, value = f"{prefix}{field.name}", getattr(node, field.name)
        if has(type(value)):
            yield from _keys(value, f"{path}.")
        elif path == "agents":
            for agent in value:
                yield f"agents[{agent.name}]", type(agent)
                yield from _keys(agent, f"agents[{agent.name}].")
        else:
            yield path, value


def _order(one: Config, other: Config) -> list[str]:
    """The names of the agents that both have, in the first one's order."""
    shared = {agent.name for agent in other.agents}
    return [agent.name for agent in one.agents if agent.name in shared]


def _concerns(key: str, changed: Iterable[str]) -> bool:
    return any(path == key or path.startswith((f"{key}.", f"{key}[")) for path in changed)
