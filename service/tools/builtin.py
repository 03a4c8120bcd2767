"""The tools that need no server: the time, and dice. No network, no MCP."""

import random
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from attrs import frozen

from service.tools.contract import Tool, ToolResult
from service.tools.results import bounded
from statemachine import Outcome

_MOST_SIDES, _MOST_DICE = 1000, 100
_MOST_BYTES = 4096

NOW = Tool(
    "clock",
    "now",
    "The date and time now, in UTC, and in another time zone if one is named.",
    {
        "type": "object",
        "properties": {
            "zone": {
                "type": "string",
                "description": "A time zone by its IANA name, such as Europe/Berlin.",
            }
        },
        "additionalProperties": False,
    },
)
ROLL = Tool(
    "dice",
    "roll",
    "Roll dice, and say what each shows and their sum.",
    {
        "type": "object",
        "properties": {
            "sides": {"type": "integer", "minimum": 2, "maximum": _MOST_SIDES, "default": 6},
            "count": {"type": "integer", "minimum": 1, "maximum": _MOST_DICE, "default": 1},
        },
        "additionalProperties": False,
    },
)


class _Wrong(Exception):
    """The arguments don't fit; the message says how, to the model."""


@frozen
class Builtin:
    """Some of these tools.

    Args:
        names: of the servers that they seem to have: `clock`, `dice`.
        now: POSIX seconds.
        chance: where dice get their luck.
    """

    names: Iterable[str]
    now: Callable[[], float]
    chance: random.Random

    @property
    def tools(self) -> list[Tool]:
        """Those that may be called."""
        return [tool for tool in (NOW, ROLL) if tool.server in self.names]

    def call(self, tool: Tool, arguments: Mapping[str, Any]) -> ToolResult:
        """Call one. Never raises; what doesn't fit is an error in words."""
        try:
            match tool.full_name if tool in self.tools else "":
                case "clock__now":
                    text = _tell_time(self.now(), arguments)
                case "dice__roll":
                    text = _roll(self.chance, arguments)
                case _:
                    raise _Wrong(f"There is no tool {tool.full_name[:64]!r}.")
        except _Wrong as wrong:
            return bounded(Outcome.ERROR, str(wrong), _MOST_BYTES)
        return bounded(Outcome.OK, text, _MOST_BYTES)


def _tell_time(now: float, arguments: Mapping[str, Any]) -> str:
    _refuse_others(arguments, {"zone"})
    moment = datetime.fromtimestamp(now, UTC)
    texts = [moment.strftime("%A, %Y-%m-%d %H:%M:%S UTC")]
    zone = arguments.get("zone")
    if zone is not None:
        try:
            there = moment.astimezone(ZoneInfo(zone))
        except (OSError, TypeError, ValueError, LookupError, AttributeError):
            raise _Wrong("zone: not the name of a time zone, such as Europe/Berlin.") from None
        texts.append(there.strftime(f"%A, %Y-%m-%d %H:%M:%S %z in {zone}"))
    return "\n".join(texts)


def _roll(chance: random.Random, arguments: Mapping[str, Any]) -> str:
    _refuse_others(arguments, {"sides", "count"})
    sides = _whole(arguments, "sides", 6, 2, _MOST_SIDES)
    count = _whole(arguments, "count", 1, 1, _MOST_DICE)
    shown = [chance.randint(1, sides) for _ in range(count)]
    if count == 1:
        return str(shown[0])
    return f"{' + '.join(map(str, shown))} = {sum(shown)}"


def _whole(arguments: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = arguments.get(name, default)
    if type(value) is not int or not least <= value <= most:
        raise _Wrong(f"{name}: not a whole number from {least} to {most}.")
    return value


def _refuse_others(arguments: Mapping[str, Any], known: set[str]) -> None:
    for name in arguments:
        if name not in known:
            raise _Wrong(f"{name[:64]}: no such argument; there are {', '.join(sorted(known))}.")
