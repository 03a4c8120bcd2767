"""What readers of a completion see, in one shape for all of them, so that they can be compared.

A streaming client (from the bytes, and through the official SDK), a plain client, and whoever reads
the row back. Never here: what is right; that is `expected.py`'s part.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import openai
from attrs import evolve, field, frozen
from openai.lib.streaming.chat import ChatCompletionStreamState

from db.rows.history import rows_of
from statemachine import SessionRecord
from tests.corpus.fold import Folded

_ROW_ONLY = (
    *("request_id", "tool_choice", "seed", "top_p", "temperature", "presence_penalty"),
    *("frequency_penalty", "response_format", "input_user", "tools", "metadata", "state", "error"),
)
_ENVELOPE = ("id", "object", "created", "model", "choices", "usage")


@frozen
class Seen:
    """A completion as somebody saw it.

    Attributes:
        status: of the response; 200 for a row.
        choices: each with `index`, `message` (without its role and without nulls),
            `finish_reason`, and what else its choice has.
        extra: the top-level fields that OpenAI doesn't define, without nulls.
        usage: as it was shown.
        error: as it was told.
        is_whole: it was called whole: `[DONE]`, a completion object, the state `completed`.
        names: the envelope, which is the same for all: `id`, `model`, `created`.
    """

    status: int
    choices: list[dict[str, Any]] = field(factory=list)
    extra: dict[str, Any] = field(factory=dict)
    usage: Any = None
    error: dict[str, Any] | None = None
    is_whole: bool = False
    names: dict[str, Any] = field(factory=dict)


def from_stream(status: int, body: bytes) -> Seen:
    """What the bytes of a stream, or of the error instead of one, say.

    Raises AssertionError: they aren't what a stream of ours consists of.
    """
    if status != 200:
        return Seen(status, error=json.loads(body)["error"])
    *events, rest = body.decode().split("\n\n")
    assert "" == rest, f"ends within an event: {rest!r}"
    data = [event.split("\n")[-1] for event in events]
    assert all(line.startswith("data: ") for line in data), body
    is_done = bool(data) and data[-1] == "data: [DONE]"
    payloads = [json.loads(line[6:]) for line in (data[:-1] if is_done else data)]
    error = payloads.pop()["error"] if payloads and "error" in payloads[-1] else None
    return evolve(from_chunks(payloads), status=status, error=error, is_whole=is_done)


def from_chunks(payloads: Iterable[Mapping[str, Any]]) -> Seen:
    """What chunks say, folded as a careful client would."""
    folded, usage, names = Folded(), None, dict[str, Any]()
    for payload in payloads:
        assert "error" not in payload, payload
        folded.add(payload)
        usage = payload.get("usage") or usage
        here = {key: payload[key] for key in ("id", "model", "created")}
        assert names in ({}, here), "the envelope is the same in every chunk"
        names = here
    return Seen(200, folded.choices(), folded.extra, usage, names=names)


async def through_sdk(client: openai.AsyncOpenAI, **request: Any) -> tuple[Seen, Any]:
    """The same as the official SDK reads it, and what its own helper folds: a completion, or the
    error that it raised."""
    payloads: list[Any] = []
    state: Any = ChatCompletionStreamState()
    helper: Any = None
    try:
        stream = await client.chat.completions.create(stream=True, **request)
        async for chunk in stream:
            payloads.append(chunk.model_dump(mode="json", exclude_unset=True))
            if not isinstance(helper, Exception):
                helper = _fold_with_helper(state, chunk)
    except openai.APIStatusError as error:
        return Seen(error.status_code, error=_told(error)), None
    except openai.APIError as error:
        return evolve(from_chunks(payloads), error=_told(error)), helper
    return from_chunks(payloads), helper


def _fold_with_helper(state: Any, chunk: Any) -> Any:
    try:
        list(state.handle_chunk(chunk))
    except Exception as error:  # whatever it is that this shape breaks in it
        return error
    return state.current_completion_snapshot


def _told(error: openai.APIError) -> dict[str, Any]:
    assert isinstance(error.body, dict), error.body
    return error.body


def from_plain(status: int, body: bytes) -> Seen:
    """What a plain client got."""
    value = json.loads(body)
    if status != 200:
        return Seen(status, error=value["error"])
    return evolve(_from_object(value), is_whole=True)


def from_row(value: Mapping[str, Any]) -> Seen:
    """What `GET /v1/chat/completions/ID` shows of the row."""
    rest = {key: item for key, item in value.items() if key not in _ROW_ONLY}
    seen = _from_object(rest)
    return evolve(seen, error=value["error"], is_whole=value["state"] == "completed")


def from_record(record: SessionRecord) -> Seen:
    """What the record says from which rows are made."""
    choices = [
        _choice(
            {
                **choice.extra,
                "index": choice.index,
                "message": json.loads(json.dumps(choice.message)),  # half characters meet
                "finish_reason": choice.finish_reason if record.whole else None,
                "logprobs": choice.logprobs,
            }
        )
        for choice in record.choices
    ]
    error = rows_of(record).completion.error
    return Seen(200, choices, dict(record.extra), record.usage, error, is_whole=error is None)


def _from_object(value: Mapping[str, Any]) -> Seen:
    assert "chat.completion" == value["object"]
    extra = {key: item for key, item in value.items() if key not in _ENVELOPE and item is not None}
    choices = [_choice(choice) for choice in value["choices"]]
    names = {key: value[key] for key in ("id", "model", "created")}
    return Seen(200, choices, extra, value["usage"], names=names)


def _choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    message = dict(choice["message"])
    assert "assistant" == message.pop("role")
    shown = {key: item for key, item in message.items() if item is not None}
    rest = {key: item for key, item in choice.items() if item is not None}
    if "logprobs" in rest:
        rest["logprobs"] = {key: item for key, item in rest["logprobs"].items() if item is not None}
    return {**rest, "message": shown}


def text_of(choices: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """All words of these choices, by index: text, thinking and calls' arguments, in this order."""
    return {choice["index"]: "".join(_texts(choice["message"])) for choice in choices}


def _texts(message: Mapping[str, Any]) -> Iterator[str]:
    content = message.get("content") or ""
    parts = [{"text": content}] if isinstance(content, str) else content
    for key in ("text", "thinking"):
        for part in parts:
            yield from _part_texts(part.get(key))
    for key in ("reasoning", "reasoning_content", "refusal"):
        yield message.get(key) or ""
    for call in message.get("tool_calls") or ():
        yield call["function"]["arguments"]


def _part_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inner in value if isinstance(value, list) else ():
        yield inner["text"]
