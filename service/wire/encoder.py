"""Writes what clients read: SSE events, error bodies, the completion object. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from service.wire.jsontext import decode_json, encode_json
from statemachine import (
    Choice,
    ChunkPattern,
    ChunkRun,
    Failure,
    ParsedChunk,
    SessionRecord,
)
from statemachine.chunks import NEW_LINE, PADDING
from statemachine.tape import Written, WrittenChunk

DONE = b"data: [DONE]\n\n"
PING = b": keep-alive\n"
"""ONE newline: a comment and a blank line crash openai-python (1.99 to 3.54) once events carry
`id:`. `tests/service/endpoints/test_openai_client.py` streams pings through the real SDK."""


class ChunkEncoder:
    """Chunks to SSE events, with what must be ours put in.

    Args:
        completion_id: the `id` in every chunk.
        model: the name the client asked for.
        created: POSIX seconds, used if the upstream's first chunk names none.
        include_usage: the client asked for usage, so every chunk has a `usage` key.
    """

    __slots__ = (
        "_after",
        "_before",
        "_between",
        "_created",
        "_fallback_created",
        "_id",
        "_include_usage",
        "_model",
        "_pattern",
    )

    def __init__(self, completion_id: str, model: str, created: int, include_usage: bool) -> None:
        self._id = completion_id
        self._model = model
        self._fallback_created = created
        self._created: int | None = None
        self._include_usage = include_usage
        self._pattern: ChunkPattern | None = None

    def go_on_after(self, created: Any) -> None:
        """Go on where others have encoded the first chunk, in which `created` was this."""
        known = type(created) is int and created > 0  # Azure's first chunk says 0
        self._created = created if known else self._fallback_created

    def encode_all(self, runs: Sequence[ChunkRun]) -> bytes:
        """Chunks that leave together. Raises ValueError as `encode` does."""
        if len(runs) == 1:
            return self.encode_run(runs[0])
        return b"".join([self.encode_run(run) for run in runs])

    def done(self) -> bytes:
        """The event that ends a whole answer."""
        return DONE

    def error(self, failure: Failure) -> bytes:
        """The event that ends a failed one."""
        return error_event(failure)

    def usage(self, frame: Mapping[str, Any] | None, usage: Any) -> bytes:
        """The chunk with the usage, which comes last.

        Args:
            frame: the upstream's own such chunk, if it sent one.
        """
        return self.encode({**(frame or {}), "choices": [], "usage": usage})

    def encode_written(self, written: Sequence[Written]) -> bytes:
        """Chunks that are read from a tape, as they were sent. Raises ValueError as `encode` does."""
        return b"".join(
            [
                self.encode(decode_json(one.source))
                if isinstance(one, WrittenChunk)
                else self.encode_run(one)
                for one in written
            ]
        )

    def encode_run(self, run: ChunkRun) -> bytes:
        """The events of a run, one for each of its chunks. Raises ValueError as `encode` does."""
        if type(run) is ParsedChunk:
            return self.encode(run.payload)
        pattern, literals = run.pattern, run.literals
        if pattern is not self._pattern:
            self._adopt(pattern)
        if pattern.between:
            literals = literals.replace(pattern.between, self._between)
        if NEW_LINE in literals:
            literals = literals.replace(b"\n", self._after + self._before)
        return b"%b%b%b" % (self._before, literals, self._after)

    def _adopt(self, pattern: ChunkPattern) -> None:
        """Find out once what of ours goes around a text, by encoding a chunk with a text that
        stands nowhere else in it."""
        probe, event, literals = "", b"", [b'""']
        while not all(event.count(literal) == 1 for literal in literals):
            probe += "\0"
            literals = [encode_json(probe)]
            chunk = dict(pattern.chunk(probe))
            if pattern.between:
                chunk[PADDING] = probe + "\1"
                literals.append(encode_json(chunk[PADDING]))
            event = self.encode(chunk)
        self._before, _, self._after = event.partition(literals[0])
        if pattern.between:
            self._between, _, self._after = self._after.partition(literals[1])
        self._pattern = pattern

    def encode(self, payload: Mapping[str, Any]) -> bytes:
        """One chunk as one event: `data: {…}` and a blank line.

        Raises ValueError if it is nested too deeply.
        """
        if self._created is None:
            self.go_on_after(payload.get("created"))
        chunk = {
            **payload,
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
        }
        if chunk.get("choices") is None:
            chunk["choices"] = []
        if not self._include_usage:
            chunk.pop("usage", None)
        elif chunk["choices"] or "usage" not in chunk:
            chunk["usage"] = None  # it comes once, in a chunk without choices
        return b"data: " + encode_json(chunk) + b"\n\n"


class NumberingEncoder(ChunkEncoder):
    """Gives each event an `id:`, the position after it, for clients that resume by `Last-Event-ID`.

    Args:
        position: how many chunks its client has had.
    """

    __slots__ = ("position",)

    def __init__(
        self, completion_id: str, model: str, created: int, include_usage: bool, position: int = 0
    ) -> None:
        super().__init__(completion_id, model, created, include_usage)
        self.position = position

    def encode_all(self, runs: Sequence[ChunkRun]) -> bytes:
        return self._number(super().encode_all(runs))

    def encode_written(self, written: Sequence[Written]) -> bytes:
        return self._number(super().encode_written(written))

    def usage(self, frame: Mapping[str, Any] | None, usage: Any) -> bytes:
        return self._number(super().usage(frame, usage))

    def done(self) -> bytes:
        return b"id: %d\n%b" % (self.position, super().done())

    def error(self, failure: Failure) -> bytes:
        return b"id: %d\n%b" % (self.position, super().error(failure))

    def _number(self, data: bytes) -> bytes:
        numbered = numbered_events(data, self.position + 1)
        self.position += data.count(b"\n\n")
        return numbered


def numbered_events(data: bytes, first: int) -> bytes:
    """Events with an `id:` each, counted from `first`."""
    events = data.split(b"\n\n")[:-1]
    return b"".join([b"id: %d\n%b\n\n" % pair for pair in enumerate(events, first)])


def error_body(failure: Failure) -> dict[str, Any]:
    """OpenAI's error object, with whatever else the upstream's own holds."""
    return {
        "error": {
            **failure.extra,
            "message": failure.message,
            "type": failure.type,
            "param": failure.param,
            "code": failure.reported_code,
        }
    }


def error_event(failure: Failure) -> bytes:
    """The SSE event that ends a failed stream; no `choices`, or Open WebUI would ignore it."""
    return b"data: " + encode_json(error_body(failure)) + b"\n\n"


def completion_object(record: SessionRecord) -> dict[str, Any]:
    """The `chat.completion` object for a record, as a plain request gets it."""
    request = record.request
    created = record.upstream_created
    return {
        **record.extra,
        **answer_object(
            record.completion_id,
            request.model,
            int(request.created_at) if created is None else created,
            record.choices,
            record.usage,
        ),
    }


def answer_object(
    completion_id: str,
    model: str,
    created: int,
    choices: Iterable[Choice],
    usage: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """A `chat.completion` object, without an upstream's own fields."""
    return {
        "id": completion_id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [_choice_object(choice) for choice in choices],
        "usage": usage,
    }


def _choice_object(choice: Choice) -> dict[str, Any]:
    return {
        **choice.extra,
        "index": choice.index,
        "message": {"refusal": None, **choice.message},
        "logprobs": choice.logprobs,
        "finish_reason": choice.finish_reason,
    }
