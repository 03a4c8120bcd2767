"""Reads past what is a little wrong with a chunk: JSON objects into the shape that everybody relies
on, or told to be no chunk. Pure."""

from typing import Any

JsonObject = dict[str, Any]


def as_chunk(payload: Any) -> JsonObject | None:
    """The chunk that a JSON value is: itself if nothing is wrong with it, a copy if a trifle is.

    None for what is no object, and for one whose `choices` hold what no choice can be. Trifles are
    empty values of the wrong type, an index that is a text, a null among the choices, and an `error`
    that says nothing, which JavaScript's clients take for one.
    """
    if not isinstance(payload, dict):
        return None
    chunk: JsonObject = payload
    choices = chunk.get("choices")
    if chunk.get("error") is not None:
        chunk = {key: value for key, value in chunk.items() if key != "error"}
    if not choices:
        return chunk if choices is None or choices == [] else {**chunk, "choices": []}
    if not isinstance(choices, list):
        return None
    if all(map(_is_choice, choices)):
        return chunk
    tidied = _tidied(choices)
    return None if tidied is None else {**chunk, "choices": tidied}


def is_completion(value: Any) -> bool:
    """True for a whole `chat.completion`, which mending makes one chunk of."""
    choices = value.get("choices") if isinstance(value, dict) else None
    return (
        isinstance(choices, list)
        and bool(choices)
        and all(_is_choice(choice) and type(choice.get("message")) is dict for choice in choices)
    )


def _is_choice(choice: Any) -> bool:
    if type(choice) is not dict:
        return False
    delta, index = choice.get("delta"), choice.get("index")
    return (type(delta) is dict or delta is None) and (isinstance(index, int) or index is None)


def _tidied(choices: list[Any]) -> list[Any] | None:
    tidied: list[Any] = []
    for choice in choices:
        if choice is None:
            continue
        if not isinstance(choice, dict):
            return None
        choice = dict(choice)
        if "delta" in choice and not choice["delta"]:
            choice["delta"] = {}
        if "index" in choice:
            choice["index"] = _number(choice["index"])
        if not _is_choice(choice):
            return None
        tidied.append(choice)
    return tidied


def _number(index: Any) -> Any:
    """An index, as a whole number if it can be read as one."""
    if isinstance(index, str) and index.isascii() and index.strip().isdigit() and len(index) < 10:
        return int(index)
    if isinstance(index, float) and index.is_integer() and abs(index) < 2**31:
        return int(index)
    return index
