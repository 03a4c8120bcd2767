"""A chunk as it travels from upstream to client: parsed, or as a repeat of an earlier one.

`ParsedChunk` is all that a first reading needs. The door to the shortcut is `RepeatedChunks`: most
chunks of an answer are identical to the one before except for their text, so they are recognised,
folded, journaled and sent by their texts alone. Skip it on a first reading: a session does the
same with either, and so what is stored and sent is the same. It is worth its price because nearly every chunk
takes it, and one that is parsed and written anew costs almost three times the instructions
(`make instructions`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

from attrs import define, field, frozen

JsonObject = Mapping[str, Any]

PADDING = "obfuscation"
"""OpenAI's random letters, which hide the length of a text from whoever counts bytes. They mean
nothing and differ in each chunk."""

_NO_REASONS = frozenset(("", "null", "none"))
"""Texts by which some upstreams say that there is no finish reason yet."""

NEW_LINE = 10
"""Parts the `literals` of repeated chunks. As a number: CPython looks for one in bytes ten times as
quickly as for `b"\n"`."""

ENVELOPE = frozenset(("id", "object", "created", "model", "choices", "usage", PADDING))
"""A chunk's top-level fields that OpenAI defines and that are interpreted."""


@final
@define
class ParsedChunk:
    """One chunk: the JSON object of one SSE data event.

    `source` is its JSON as it came, on one line, for those who write it down; None if nobody has it.
    """

    pattern: ClassVar[None] = None

    payload: JsonObject
    source: bytes | None = field(default=None, eq=False, repr=False)


@frozen(eq=False)
class ChunkPattern:
    """What chunks have in common that differ in one text alone, or in that and their padding.

    `payload` is such a chunk, and its text is `choices[0].delta[key]` in it. `before` and `after`
    are the JSON around what differs, the same bytes in all of them. Where each has a `PADDING`,
    `between` is the JSON from the text's literal to the padding's; else it is empty. Whoever makes
    one vouches for it.
    """

    payload: JsonObject
    key: str
    before: bytes
    after: bytes
    between: bytes = b""

    def chunk(self, text: str) -> JsonObject:
        """The chunk of this pattern with this text; its padding is any."""
        (choice,) = self.payload["choices"]
        changed = {**choice, "delta": {**choice["delta"], self.key: text}}
        return {**self.payload, "choices": [changed]}


@final
@define
class RepeatedChunks:
    """One or more chunks that are identical to an earlier one except for their text (and padding).

    Equivalent to one `ParsedChunk` per text, only cheaper. `texts` are the new texts; `literals`
    what differs, as it came, a line each: a text's literal, and where the pattern has paddings,
    `between` and the padding's literal.
    """

    pattern: ChunkPattern
    texts: Sequence[str]
    literals: bytes = field(repr=False)


ChunkRun = ParsedChunk | RepeatedChunks


def bears_token(key: str, value: Any) -> bool:
    """True if a delta's field is part of the answer: any that isn't empty, besides `role`."""
    return key != "role" and value not in (None, "", [], {})


def finish_reason_of(value: Any) -> str | None:
    """The reason that a choice's `finish_reason` names; None if it names none, as `null`, `""`,
    `false` and `{}` do. Of an object it is the `type` (SGLang)."""
    if value is None:
        return None
    if type(value) is not str and isinstance(value, Mapping):
        value = value.get("type")
    if isinstance(value, str):
        return None if value.strip().lower() in _NO_REASONS else value
    return str(value) if type(value) is int and value else None


def begins_answer(run: ChunkRun) -> bool:
    """True if this ends the wait for the first token: any token, or a finish reason."""
    if isinstance(run, RepeatedChunks):
        return any(run.texts)
    for choice in run.payload.get("choices") or ():
        if finish_reason_of(choice.get("finish_reason")) is not None:
            return True
        if any(bears_token(key, value) for key, value in (choice.get("delta") or {}).items()):
            return True
    return False


def find_usage(payload: JsonObject) -> JsonObject | None:
    """The usage object of a chunk: `usage`, or `x_groq.usage` from Groq's older frames. None if
    nothing is in it."""
    usage = payload.get("usage")
    if usage is None and "x_groq" in payload:
        vendor = payload["x_groq"]
        usage = vendor.get("usage") if isinstance(vendor, Mapping) else None
    return usage if usage and (type(usage) is dict or isinstance(usage, Mapping)) else None


def own_fields(payload: JsonObject) -> dict[str, Any]:
    """A chunk's top-level fields that OpenAI doesn't define and that aren't null."""
    return {
        key: value for key, value in payload.items() if key not in ENVELOPE and value is not None
    }


def is_for_clients(payload: JsonObject) -> bool:
    """False for what is held back: a chunk that brings usage alone, and an upstream's heartbeat
    (no choices and no field of its own)."""
    if payload.get("choices"):
        return True
    return find_usage(payload) is None and bool(own_fields(payload))


def text_field(payload: JsonObject) -> str | None:
    """The key of a chunk's only text, if folding it again with another text changes nothing else.

    So it has one choice, whose delta holds one string, which goes on, and which brings neither log
    probabilities nor usage. None for any other chunk, also for one that says a role: that is said
    once.
    """
    choices = payload.get("choices")
    if not choices or len(choices) != 1 or find_usage(payload) is not None:
        return None
    (choice,) = choices
    if choice.get("finish_reason") is not None or choice.get("logprobs") is not None:
        return None
    delta = choice.get("delta") or {}
    texts = [key for key, value in delta.items() if value is not None]
    if texts == ["role"] or len(texts) != 1 or not isinstance(delta[texts[0]], str):
        return None
    return str(texts[0])
