"""Turns an upstream's error, within a stream or instead of one, into a failure in its own words."""

from collections.abc import Mapping
from typing import Any

from statemachine import Failure

_LONGEST_QUOTE = 200
"""Characters of an upstream's own words that go into a message of ours."""


def upstream_failure(error: Any, status: int | None = None) -> Failure:
    """Make a failure of an upstream's error object.

    Args:
        error: the value of its `error` key: OpenAI's object, or a string, or anything.
        status: the HTTP status it came with, if it came before the stream.
    """
    fields = error if isinstance(error, Mapping) else {"message": error}
    message, kind, param, code = (fields.get(key) for key in ("message", "type", "param", "code"))
    if not isinstance(message, str) or not message:
        message = "The model's backend reported an error without a message."
    numeric = isinstance(code, (int, float)) and not isinstance(code, bool)
    return Failure(
        "upstream_error",
        message if isinstance(error, Mapping) else message[:_LONGEST_QUOTE],
        type=kind if isinstance(kind, str) and kind else "upstream_error",
        param=param if isinstance(param, str) else None,
        upstream_code=str(code) if numeric or (isinstance(code, str) and code) else None,
        status=status,
    )
