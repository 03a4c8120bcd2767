"""Turns an upstream's error, within a stream or instead of one, into a failure in its own words.

Backends agree on no shape: OpenAI's object, a list of them, FastAPI's `detail`, RFC 9457's
`title`, a web page, a text. The sentence that is there is found in any of them. All foreign words
that leave this service in an error come through here, and through a `Redactor`.
"""

import html
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import evolve

from service.agents.openai.redacting import NOTHING_SECRET, Redactor
from service.agents.openai.response import Found
from service.wire import encode_json
from statemachine import Failure

NO_MESSAGE = "The model's backend reported an error without a message."
_LONGEST_QUOTE = 200
"""Characters of a text without a shape that go into a message of ours."""
_LONGEST_MESSAGE = 4_000
_LONGEST_WORD = 200
_LARGEST_EXTRA_BYTES = 16_384
"""As much of an error's further fields is kept."""
_DEEPEST = 8
_MOST_SENTENCES = 5
_ENVELOPES = ("error", "errors", "detail", "fault", "response")
_SENTENCES = (
    "message",
    "error_description",
    "error_message",
    "errorMessage",
    "msg",
    "detail",
    "error",
    "errors",
    "reason",
    "faultstring",
    "description",
    "title",
)
"""Where an object says what went wrong, the best first."""
_STATUSES = ("code", "status", "status_code", "statusCode", "http_status", "http_status_code")
_RETRY_AFTER = ("retry_after", "retry_after_seconds", "retryAfter")
_OPENAIS = frozenset(("message", "type", "param", "code", "object"))


def upstream_failure(
    said: Any, status: int | None = None, redactor: Redactor = NOTHING_SECRET
) -> Failure:
    """Make a failure of what an upstream said of its error.

    Args:
        said: a JSON value, with the error in it or being it, or a text.
        status: the HTTP status it came with, if it came instead of a stream; else it is the one
            that the error names, if it names one.
        redactor: what is secret.
    """
    if isinstance(said, str):
        message = _quoted(said, redactor)
        return Failure("upstream_error", message or NO_MESSAGE, "upstream_error", status=status)
    error, place = _error_object(said)
    message = _message(said, error, place, redactor)
    kind, param, code = (_word(error.get(key), redactor) for key in ("type", "param", "code"))
    if code is None and error.get("error") != message:
        code = _word(error.get("error"), redactor)
    return Failure(
        "upstream_error",
        message,
        type=kind if kind and isinstance(error["type"], str) else "upstream_error",
        param=param if isinstance(error.get("param"), str) else _location(said, redactor),
        upstream_code=code,
        status=status or _status(error) or (_status(said) if isinstance(said, Mapping) else None),
        retry_after_seconds=_retry_after(error),
        extra=_extra(error, message, redactor),
    )


def says_error(payload: Mapping[str, Any]) -> bool:
    """True if a JSON object within a stream is an error, and no chunk.

    An `error` that says nothing is a trifle beside anything of a chunk. Without choices, OpenAI's
    object without its envelope is one as well, and so are FastAPI's and RFC 9457's.
    """
    error = payload.get("error")
    if error or _groqs_error(payload):
        return True
    if "choices" in payload or payload.get("object") == "chat.completion.chunk":
        return False
    if payload.get("object") == "error" or payload.get("type") == "error":
        return True
    if error is not None and not payload.get("usage"):
        return True
    if isinstance(payload.get("message"), str) and payload["message"]:
        return any(payload.get(key) for key in ("code", "status", "status_code", "param"))
    return bool(payload.get("errors") or payload.get("detail"))


def error_of(payload: Mapping[str, Any]) -> Any:
    """What of such an object is the error: all of it, unless there is a chunk around it."""
    if "choices" not in payload:
        return payload
    return payload.get("error") or _groqs_error(payload)


def _groqs_error(payload: Mapping[str, Any]) -> Any:
    vendor = payload.get("x_groq")
    return vendor.get("error") if isinstance(vendor, Mapping) else None


def seconds_of(value: Any) -> float | None:
    """A time to wait, in seconds, as a number or as a text such as "7" or "7s"; a date, the other
    form of `Retry-After`, is rare here and not worth trusting."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        seconds = float(value.removesuffix("s") if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return None
    return seconds if 0 <= seconds < math.inf else None


ABOUT_WAITING = ("retry-after-ms", "retry-after", "x-should-retry")
"""The headers that `with_headers` looks at."""


def with_headers(failure: Failure, headers: Found) -> Failure:
    """The failure, with what its response's headers say about asking again."""
    milliseconds = seconds_of(headers.get("retry-after-ms"))
    seconds = (
        seconds_of(headers.get("retry-after")) if milliseconds is None else milliseconds / 1000
    )
    return evolve(
        failure,
        retry_after_seconds=failure.retry_after_seconds if seconds is None else seconds,
        should_retry={"true": True, "false": False}.get(headers.get("x-should-retry", "")),
    )


# --- finding what is there --------------------------------------------------------------------


def _error_object(said: Any) -> tuple[Mapping[str, Any], Any]:
    """The object that says what went wrong, within the envelopes around it; and where its sentences
    are: in it, or in the list that it is the first of."""
    place = said
    for _ in range(_DEEPEST):
        if isinstance(said, list) and said:
            said = said[0]
        elif isinstance(said, Mapping):
            inner = next((said[key] for key in _ENVELOPES if _is_error_object(said.get(key))), None)
            if inner is None:
                return said, place
            said = place = inner
    return said if isinstance(said, Mapping) else {}, place


def _is_error_object(value: Any) -> bool:
    """True for an object, and for a list of them that aren't FastAPI's, of which each says a part."""
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return "msg" not in value[0]
    return isinstance(value, Mapping) and bool(value)


def _message(said: Any, error: Mapping[str, Any], place: Any, redactor: Redactor) -> str:
    for source in (place, said):
        sentence = "; ".join(dict.fromkeys(_sentences(source)))
        if sentence:
            is_bare = sentence == error.get("error")
            return _quoted(sentence, redactor, _LONGEST_QUOTE if is_bare else _LONGEST_MESSAGE)
    if _is_empty(said):
        return NO_MESSAGE
    text = encode_json(said)[: 4 * _LONGEST_MESSAGE].decode("utf-8", "ignore")
    return _quoted(text, redactor)


def _sentences(value: Any, depth: int = 0) -> Iterator[str]:
    """What an error says for people: mostly one sentence; several where it is a list."""
    if isinstance(value, str) and value.strip():
        yield value.strip()
    elif isinstance(value, list) and depth < _DEEPEST:
        for item in value[:_MOST_SENTENCES]:
            yield from _sentences(item, depth + 1)
    elif isinstance(value, Mapping) and depth < _DEEPEST:
        for key in _SENTENCES:
            found = list(_sentences(value.get(key), depth + 1))
            if found:
                yield from found
                return


def _quoted(text: str, redactor: Redactor, longest: int = _LONGEST_QUOTE) -> str:
    text = text[: 2 * _LONGEST_MESSAGE].strip()
    if text[:1] == "<":
        text = _page_text(text)
    return redactor.text(text)[:longest].strip()


def _page_text(page: str) -> str:
    """What a web page says: its title, else its text."""
    lowered = page.lower()
    start = lowered.find("<title")
    if start >= 0:
        start = lowered.find(">", start) + 1
        title = html.unescape(page[start : max(lowered.find("</title", start), start)])
        if title.strip():
            return " ".join(title.split())
    body = page[max(lowered.find("<body"), 0) :]
    return " ".join(html.unescape(re.sub(r"<[^<>]*>", " ", body)).split())


def _word(value: Any, redactor: Redactor) -> str | None:
    """A type, param or code, as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)) or value == "":
        return None
    return redactor.text(str(value)[:_LONGEST_WORD])


def _status(error: Mapping[str, Any]) -> int | None:
    """The HTTP status that an error names."""
    for key in _STATUSES:
        seconds = seconds_of(error.get(key))
        if seconds is not None and seconds in range(400, 600):
            return int(seconds)
    return None


def _location(said: Any, redactor: Redactor) -> str | None:
    """The field that FastAPI's first detail is about, in OpenAI's notation."""
    detail = said.get("detail", said.get("message")) if isinstance(said, Mapping) else None
    if isinstance(detail, Mapping):
        detail = detail.get("detail")
    first = detail[0] if isinstance(detail, list) and detail else None
    place = first.get("loc") if isinstance(first, Mapping) else None
    if not isinstance(place, list):
        return None
    names = [str(name) for name in place[:_DEEPEST] if name != "body"]
    return _word(".".join(names), redactor)


def _retry_after(error: Mapping[str, Any]) -> float | None:
    metadata = error.get("metadata")
    for place in (error, metadata if isinstance(metadata, Mapping) else {}):
        for key in _RETRY_AFTER:
            if (seconds := seconds_of(place.get(key))) is not None:
                return seconds
    return None


def _extra(error: Mapping[str, Any], message: str, redactor: Redactor) -> dict[str, Any]:
    """The error's fields that OpenAI doesn't define, as far as they are of a bearable size."""
    extra: dict[str, Any] = {}
    room = _LARGEST_EXTRA_BYTES
    for key, value in error.items():
        if key in _OPENAIS or value is None or value == message:
            continue
        room -= len(encode_json({key: value}))
        if room < 0:
            break
        extra[redactor.text(key)] = redactor.value(value)
    return extra


def _is_empty(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_empty, value.values()))
    return value in (None, "", [], 0, False)
