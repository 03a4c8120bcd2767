"""What a client may ask (`parse_request`) and how an upstream is asked (`upstream_body`).

Only the fields that this service uses are checked; all others pass untouched, whatever they are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from service.wire.jsontext import TooManyValues, decode_json

JsonObject = dict[str, Any]

MAX_CHOICES = 128
"""OpenAI's own limit for `n`."""
MAX_MESSAGES = 10_000
"""Far beyond any conversation (OpenAI takes 2,048). Half a million tiny ones fit into a body, and
would hold up the saving of everybody else's answers for minutes."""
MAX_MODEL = 512
"""Characters of a model's name, which is in each chunk of an answer."""
MAX_VALUES = 100_000
"""Keys and values of a body, unless `server.max_body_values` says otherwise."""
MAX_METADATA_PAIRS, MAX_METADATA_KEY, MAX_METADATA_VALUE = 16, 64, 512
"""OpenAI's limits for `metadata`: pairs, characters per key, characters per value."""

_NOT_PARAMETERS = frozenset(("messages", "tools", "metadata"))


class InvalidRequest(Exception):
    """The request itself is at fault. `param` names the field, in OpenAI's notation, or is None."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


@frozen
class ChatRequest:
    """A request for a chat completion.

    `body` is the JSON object as it came. `include_usage` is None where the client didn't say.
    """

    body: JsonObject
    model: str
    messages: Sequence[JsonObject]
    stream: bool
    choices_expected: int
    include_usage: bool | None
    tools: Sequence[Any] | None
    metadata: Mapping[str, str] | None

    @property
    def parameters(self) -> JsonObject:
        """The body without messages, tools and metadata."""
        return {key: value for key, value in self.body.items() if key not in _NOT_PARAMETERS}


def parse_request(data: bytes, most_values: int = MAX_VALUES) -> ChatRequest:
    """Check the body of `POST /v1/chat/completions`.

    Args:
        most_values: how many keys and values it may have, on all levels together.

    Raises:
        InvalidRequest: with the sentence for the client and the field's name.
    """
    body = _object(data, most_values)
    stream_options = _optional(body, "stream_options", dict) or {}
    include_usage = _optional(
        stream_options, "include_usage", bool, param="stream_options.include_usage"
    )
    _optional(body, "store", bool)
    tools = body.get("tools")
    return ChatRequest(
        body=body,
        model=_model(body),
        messages=_messages(body),
        stream=_optional(body, "stream", bool) or False,
        choices_expected=_choices_expected(body),
        include_usage=include_usage,
        tools=tools if isinstance(tools, list) and tools else None,
        metadata=parse_metadata(body),
    )


def parse_metadata(body: JsonObject) -> Mapping[str, str] | None:
    """The `metadata` of a request's body, within OpenAI's limits.

    Raises:
        InvalidRequest: not an object of strings, or too large.
    """
    metadata: Mapping[str, str] | None = _optional(body, "metadata", dict)
    if metadata is None:
        return None
    if len(metadata) > MAX_METADATA_PAIRS:
        raise InvalidRequest(
            f"'metadata' holds {len(metadata)} pairs; at most {MAX_METADATA_PAIRS} are allowed.",
            "metadata",
        )
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise InvalidRequest(
                f"The values of 'metadata' must be strings, not {_kind(value)}.",
                f"metadata.{key[:MAX_METADATA_KEY]}",
            )
        if len(key) > MAX_METADATA_KEY or len(value) > MAX_METADATA_VALUE:
            raise InvalidRequest(
                f"A pair of 'metadata' is too long: keys may have {MAX_METADATA_KEY} characters, "
                f"values {MAX_METADATA_VALUE}.",
                f"metadata.{key[:MAX_METADATA_KEY]}",
            )
    return metadata


def parse_metadata_update(data: bytes) -> Mapping[str, str] | None:
    """Check the body of `POST /v1/chat/completions/{id}`: the new metadata, or None for none.

    Raises:
        InvalidRequest: not `{"metadata": …}` and nothing else, or over the limits.
    """
    body = _object(data, MAX_VALUES)
    if "metadata" not in body:
        raise InvalidRequest("'metadata' is missing; null removes it.", "metadata")
    for key in body:
        if key != "metadata":
            raise InvalidRequest("Only 'metadata' can be changed on a stored completion.", key[:64])
    return parse_metadata(body)


def upstream_body(
    request: ChatRequest,
    *,
    model: str,
    parameters: Mapping[str, Any],
    preamble: str | None,
) -> JsonObject:
    """The body to send upstream: the client's, on top of the agent's defaults.

    Always asks for a stream, and for usage unless the client or the agent's own
    `stream_options` say no. `preamble` goes first as a system message if the client sent none.
    """
    options: JsonObject = {"include_usage": True}
    for source in (parameters, request.body):
        for key, value in (source.get("stream_options") or {}).items():
            if key != "include_usage" or value is not None:  # null is no answer, so it isn't a no
                options[key] = value
    messages = list(request.messages)
    instructed = any(message["role"] in ("system", "developer") for message in messages)
    if preamble is not None and not instructed:
        messages.insert(0, {"role": "system", "content": preamble})
    return {
        **parameters,
        **request.body,
        "model": model,
        "messages": messages,
        "stream": True,
        "stream_options": options,
    }


def _object(data: bytes, most_values: int) -> JsonObject:
    try:
        body = decode_json(data, most_values)
    except TooManyValues:
        raise InvalidRequest(
            f"The body has more than {most_values:,} keys and values, the most that this service "
            "takes (server.max_body_values)."
        ) from None
    except ValueError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise InvalidRequest(f"The body must be a JSON object, not {_kind(body)}.")
    return body


def _model(body: JsonObject) -> str:
    model = body.get("model")
    if model is None or model == "":
        raise InvalidRequest("You must name a model: 'model' is missing.", "model")
    if not isinstance(model, str):
        raise InvalidRequest(f"'model' must be a string, not {_kind(model)}.", "model")
    if len(model) > MAX_MODEL:
        raise InvalidRequest(f"'model' may have {MAX_MODEL} characters at most.", "model")
    return model


def _messages(body: JsonObject) -> list[JsonObject]:
    messages = body.get("messages")
    if messages is None:
        raise InvalidRequest("'messages' is missing.", "messages")
    if not isinstance(messages, list):
        raise InvalidRequest(f"'messages' must be an array, not {_kind(messages)}.", "messages")
    if not messages:
        raise InvalidRequest("'messages' must hold at least one message.", "messages")
    if len(messages) > MAX_MESSAGES:
        raise InvalidRequest(
            f"'messages' holds {len(messages)} messages; at most {MAX_MESSAGES} are allowed.",
            "messages",
        )
    for position, message in enumerate(messages):
        param = f"messages[{position}]"
        if not isinstance(message, dict):
            raise InvalidRequest(f"'{param}' must be an object, not {_kind(message)}.", param)
        if not isinstance(message.get("role"), str) or not message["role"]:
            raise InvalidRequest(f"'{param}.role' must be a string.", f"{param}.role")
    return messages


def _choices_expected(body: JsonObject) -> int:
    count = body.get("n")
    if count is None:
        return 1
    if isinstance(count, float) and count.is_integer():
        count = int(count)  # to JSON, 1.0 is an integer
    if isinstance(count, bool) or not isinstance(count, int):
        raise InvalidRequest(f"'n' must be an integer, not {_kind(count)}.", "n")
    if not 1 <= count <= MAX_CHOICES:
        raise InvalidRequest(f"'n' must be between 1 and {MAX_CHOICES}, not {count}.", "n")
    return count


def _optional(body: JsonObject, key: str, kind: type, *, param: str | None = None) -> Any:
    value = body.get(key)
    if value is not None and not isinstance(value, kind):
        names = {bool: "a boolean", dict: "an object"}
        name = param or key
        raise InvalidRequest(f"'{name}' must be {names[kind]}, not {_kind(value)}.", name)
    return value


def _kind(value: Any) -> str:
    """JSON's name for a value's type, for messages."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case str():
            return "a string"
        case int() | float():
            return "a number"
        case list():
            return "an array"
        case _:
            return "an object"
