"""Defines a span as it is handed over once it has ended: values, and nothing that acts.

Never here: OpenTelemetry's classes, which cost a request several times as much.
"""

import enum
from collections.abc import Mapping, Sequence

from attrs import define

Value = str | int | float | bool | Sequence[str]
"""What an attribute may hold."""
LONGEST_TEXT = 256
"""Characters of a text that came from outside, such as a model's name."""


class Kind(enum.IntEnum):
    """A span's kind; the numbers are OTLP's."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3


@define
class Span:
    """One span that has ended. Ids are hex digits, times nanoseconds since 1970.

    Attributes:
        parent_id: None for the first span of a trace.
        events: name and time of each.
        links: trace id and span id of each.
        has_remote_parent: the parent is another program's.
    """

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    kind: Kind
    started_ns: int
    ended_ns: int
    attributes: Mapping[str, Value]
    is_error: bool = False
    events: Sequence[tuple[str, int]] = ()
    links: Sequence[tuple[str, str]] = ()
    has_remote_parent: bool = False


def cut(text: str) -> str:
    """A text from outside, no longer than a span may carry."""
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT]
