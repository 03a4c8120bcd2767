"""Adds up what several choices used, for upstreams that count each choice apart. Pure."""

from collections.abc import Mapping
from typing import Any

from statemachine.chunks import JsonObject

SUMMED = "summed"
"""The field of a usage object that says: added up here, from the provider's figures."""


def added_up(total: JsonObject, more: JsonObject) -> dict[str, Any]:
    """The usage of two choices of one answer, or of several and one more.

    They share their prompt, which counts once: the larger figure. What was completed is added.
    """
    prompt = max(_count(total, "prompt_tokens"), _count(more, "prompt_tokens"))
    completion = _count(total, "completion_tokens") + _count(more, "completion_tokens")
    summed = {
        **total,
        **more,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        SUMMED: True,
    }
    found = [each.get("completion_tokens_details") for each in (total, more)]
    details = [each for each in found if isinstance(each, Mapping)]
    if len(details) == len(found):
        names = {name: None for each in details for name in each}
        summed["completion_tokens_details"] = {
            name: _sum([each.get(name) for each in details]) for name in names
        }
    return summed


def _count(usage: JsonObject, key: str) -> int:
    value = usage.get(key)
    return value if type(value) is int else 0


def _sum(values: list[Any]) -> Any:
    numbers = [value for value in values if type(value) in (int, float)]
    return sum(numbers) if numbers else values[-1]
