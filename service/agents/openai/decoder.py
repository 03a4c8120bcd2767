"""Reads an upstream's SSE body: bytes, cut anywhere, into chunks and a truthful ending.

Accepted, because real upstreams send it: LF, CRLF and CR line ends, no space after `data:`,
comments, `retry:` and `id:` lines, data over several lines, characters cut in two, many events in
one packet, one event in many, a last event without its blank line, `[DONE]` or none, an error as a
JSON object, as a string, under `event: error`, or as a plain JSON body without any SSE around it.

Refused, as a failure that keeps everything before it: bad UTF-8, bad JSON, an event
past the size limit, JSON that is no chunk, any `error`. Chunks of odd shapes are mended
(`service.agents.openai.mending`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from service.agents.openai.failures import upstream_failure
from service.agents.openai.mending import ChunkMender, TooManyItems
from service.agents.openai.pattern import PatternReader
from service.wire import decode_json
from service.wire.measuring import has_more_values
from statemachine import Failure, RepeatedChunks, UpstreamFailed, UpstreamFinished
from statemachine.endings import BODY_ENDED, BROKEN_OFF

JsonObject = dict[str, Any]
Ending = UpstreamFinished | UpstreamFailed

_BOM = b"\xef\xbb\xbf"
INCOMPLETE = BODY_ENDED
"""The ending of a body that just stops. Only the session knows if its finish reasons make that a
good end after all."""
MOST_VALUES = 30_000
"""Keys and values of one event. Whatever goes through more of them would hold up everybody else. A chunk
of a hundred tokens, each with the probabilities of twenty others, has some 25,000."""
_NO_STREAM = "The model's backend did not answer with a stream."
_TOO_MUCH = "The model's backend sent more than a chunk can hold."
_DICT_OR_NONE = (dict, type(None))
_INT_OR_NONE = (int, type(None))


class SseDecoder:
    """One upstream body. Feed it bytes until `ending` is set or the body ends, then `close` it.

    `ending` is None while more may come. Afterwards it is `UpstreamFinished` (a `[DONE]` was
    read) or `UpstreamFailed`, and further bytes are ignored. A body that ends with neither is
    `INCOMPLETE`.

    `feed` accepts any bytes. `take` is faster but accepts only repeated chunks: given anything
    else it consumes nothing and returns None.

    `sources` holds the JSON of the last call's chunks, one each, as it came; None for one that lay
    on several lines.
    """

    __slots__ = (
        "_buffer",
        "_ended_in_cr",
        "_events",
        "_is_foreign",
        "_max_event_bytes",
        "_mender",
        "_patterns",
        "_started",
        "ending",
        "sources",
    )

    def __init__(self, max_event_bytes: int, cut_off_reasons: frozenset[str] = frozenset()) -> None:
        self.ending: Ending | None = None
        self.sources: list[bytes | None] = []
        self._max_event_bytes = max_event_bytes
        self._buffer = bytearray()
        self._ended_in_cr = False
        self._started = False
        self._events = 0
        self._is_foreign = False
        self._mender = ChunkMender(cut_off_reasons)
        self._patterns = PatternReader()

    def take(self, data: bytes) -> RepeatedChunks | None:
        """Read whole chunks that repeat an earlier one: nearly all of an answer.

        Returns None if the next bytes are anything else; then nothing was taken, and `feed` is to be
        given them. Never raises.
        """
        if self._ended_in_cr or b"\r" in data or self.ending is not None:
            return None
        if self._buffer and b"\n" not in data:
            return None  # no event ends here
        if self._buffer or data[-2:] != b"\n\n":
            return self._take_with_rest(bytes(self._buffer) + data)
        return self._patterns.read(data) if len(data) <= self._max_event_bytes else None

    def take_events(self, pieces: Sequence[bytes]) -> RepeatedChunks | None:
        """Do the same for pieces that were sent apart, and so may well be an event each: quicker."""
        if self._buffer or self._ended_in_cr or self.ending is not None:
            return None
        if sum(map(len, pieces)) > self._max_event_bytes:
            return None
        return self._patterns.read_events(pieces)

    def _take_with_rest(self, data: bytes) -> RepeatedChunks | None:
        """Do the same where an event was cut in two."""
        end = data.rfind(b"\n\n") + 2
        if max(end, len(data) - end) > self._max_event_bytes:
            return None
        received = self._patterns.read(data[:end])
        if received is not None:
            self._buffer[:] = data[end:]
        return received

    def feed(self, data: bytes) -> list[JsonObject]:
        """Take in the next bytes; return the chunks that they complete, in order. Never raises."""
        self.sources = []
        if self.ending is not None or not data:
            return []
        if (
            self._started
            and not (self._buffer or self._ended_in_cr or b"\r" in data)
            and data.startswith(b"data: {")
            and data.find(b"\n") == len(data) - 2
            and data.endswith(b"\n\n")
            and len(data) <= self._max_event_bytes
        ):  # one whole event: the most usual case
            payload = self._decode_data(data[6:-2], b"")
            return [] if payload is None else [payload]
        data = self._unify_line_ends(data)
        if not self._started:
            data = self._drop_byte_order_mark(data)
        if not self._buffer and data.endswith(b"\n\n"):
            return self._decode(data.split(b"\n\n"))  # whole events only
        searched = max(len(self._buffer) - 1, 0)
        self._buffer += data
        end = self._buffer.rfind(b"\n\n", searched)
        if end < 0:
            self._check_size(self._buffer)
            return []
        blocks = bytes(self._buffer[:end]).split(b"\n\n")
        del self._buffer[: end + 2]
        payloads = self._decode(blocks)
        self._check_size(self._buffer)
        return payloads

    def close(self) -> list[JsonObject]:
        """Note the body's end, which sets `ending`; return the last chunk, if the buffer held one."""
        self.sources = []
        payloads: list[JsonObject] = []
        if self.ending is None:
            rest = bytes(self._buffer).strip(b"\n")
            if rest:
                payloads = self._decode_rest(rest)
        if self.ending is None and self._is_foreign and not self._events:
            self._fail("upstream_malformed", _NO_STREAM)
        elif self.ending is None:
            self.ending = self._cut_off() or UpstreamFailed(INCOMPLETE)
        return payloads

    # --- bytes to events --------------------------------------------------------------------

    def _unify_line_ends(self, data: bytes) -> bytes:
        """Make every line end a `\\n`. JSON holds no raw CR, so no text is touched."""
        if self._ended_in_cr and data.startswith(b"\n"):
            data = data[1:]
            self._ended_in_cr = False
            if not data:
                return data
        if b"\r" in data:
            self._ended_in_cr = data.endswith(b"\r")
            return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._ended_in_cr = False
        return data

    def _drop_byte_order_mark(self, data: bytes) -> bytes:
        """SSE allows one U+FEFF at the very start."""
        if self._buffer:
            data = bytes(self._buffer) + data
            self._buffer.clear()
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._buffer += data
            return b""
        self._started = True
        return data.removeprefix(_BOM)

    def _check_size(self, block: bytes | bytearray) -> None:
        """The limit is on an event's lines, not on the line ends around them: how many of those
        are here depends on how the body was cut."""
        limit = self._max_event_bytes
        if len(block) > limit and self.ending is None and len(block.strip(b"\n")) > limit:
            self._fail(
                "upstream_malformed",
                f"The model's backend sent an event of more than {limit} bytes.",
            )
            self._buffer.clear()

    def _decode(self, blocks: list[bytes]) -> list[JsonObject]:
        payloads: list[JsonObject] = []
        for block in blocks:
            if len(block) > self._max_event_bytes:
                self._check_size(block)
            if self.ending is not None:
                break
            if block.startswith(b"data: {") and b"\n" not in block:
                payload = self._decode_data(block[6:], b"")
            else:
                payload = self._decode_block(block)
            if payload is not None:
                payloads.append(payload)
        return payloads

    def _decode_block(self, block: bytes) -> JsonObject | None:
        name = b""
        data: list[bytes] = []
        for line in block.split(b"\n"):
            key, _, value = line.partition(b":")
            if key == b"data":
                data.append(value.removeprefix(b" "))
            elif key == b"event":
                name = value.strip()
            elif key and not key.isalpha():  # SSE ignores fields it doesn't know; this is none
                self._is_foreign = True
        if not data and name != b"error":
            if self._events == 0 and block.lstrip().startswith(b"{"):
                self._decode_plain_body(block)
            return None
        return self._decode_data(b"\n".join(data), name)

    def _decode_rest(self, rest: bytes) -> list[JsonObject]:
        """A last event without its blank line, or a body that never was SSE."""
        if self._events == 0 and rest.lstrip().startswith(b"{"):
            self._decode_plain_body(rest)
            return []
        payload = self._decode_block(rest)
        if isinstance(self.ending, UpstreamFailed):
            if self.ending.failure.code == "upstream_malformed":
                self.ending = None  # cut in the middle of an event: incomplete, not malformed
        return [] if payload is None else [payload]

    def _decode_plain_body(self, body: bytes) -> None:
        try:
            value = decode_json(body)
        except ValueError:
            value = None
        if isinstance(value, Mapping) and value.get("error") is not None:
            self._fail_upstream(value["error"])
        else:
            self._fail("upstream_malformed", _NO_STREAM)

    # --- events to chunks -------------------------------------------------------------------

    def _decode_data(self, data: bytes, name: bytes) -> JsonObject | None:
        """One event's data: the chunk in it, or None with `ending` set or nothing to say."""
        self._events += 1
        if not data.startswith(b"{"):
            text = data.strip()
            if text == b"[DONE]":
                self.ending = self._cut_off() or UpstreamFinished()
                return None
            if not text and name != b"error":
                return None
        if len(data) > MOST_VALUES and has_more_values(data, MOST_VALUES):
            self._fail("upstream_malformed", _TOO_MUCH)
            return None
        try:
            payload = decode_json(data)
        except ValueError:
            if name == b"error":
                self._fail_upstream(data.strip().decode("utf-8", "replace"))
            else:
                self._fail(
                    "upstream_malformed", "The model's backend sent an event that is not JSON."
                )
            return None
        if isinstance(payload, dict) and payload.get("error") is not None:
            self._fail_upstream(payload["error"])
        elif name == b"error":
            self._fail_upstream(payload)
        elif not _is_chunk(payload):
            self._fail("upstream_malformed", "The model's backend sent JSON that is not a chunk.")
        else:
            return self._mended(data, payload)
        return None

    def _mended(self, data: bytes, payload: JsonObject) -> JsonObject | None:
        """The chunk as it goes on, which is mostly the one that came."""
        mended = payload
        if _is_plain(payload):
            self._mender.has_spoken = True
        else:
            try:
                mended = self._mender.mend(payload)
            except TooManyItems:
                self._fail("upstream_malformed", _TOO_MUCH)
                return None
        is_one_line = b"\n" not in data
        self.sources.append(data if is_one_line and mended is payload else None)
        if is_one_line:
            self._patterns.learn_from(data, payload, mended)
        return mended

    def _cut_off(self) -> UpstreamFailed | None:
        """The ending of an answer whose finish reason says that it was cut off."""
        reason = self._mender.cut_off
        if reason is None:
            return None
        message = f"The model's backend cut the answer off; its reason: {reason!r}."
        return UpstreamFailed(Failure(BROKEN_OFF, message))

    def _fail(self, code: str, message: str) -> None:
        self.ending = UpstreamFailed(Failure(code, message))

    def _fail_upstream(self, error: Any) -> None:
        self.ending = UpstreamFailed(upstream_failure(error))


def _is_chunk(payload: Any) -> bool:
    """True for an object whose `choices`, if any, have the shape that everybody relies on."""
    if not isinstance(payload, dict):
        return False
    choices = payload.get("choices")
    if choices is None:
        return True
    if not isinstance(choices, list):
        return False
    for choice in choices:
        if not isinstance(choice, dict):
            return False
        if not isinstance(choice.get("delta"), _DICT_OR_NONE):
            return False
        if not isinstance(choice.get("index"), _INT_OR_NONE):
            return False
    return True


def _is_plain(payload: JsonObject) -> bool:
    """True of nearly every chunk: one choice that goes on, with one text."""
    choices = payload.get("choices")
    if not choices or len(choices) != 1:
        return False
    (choice,) = choices
    delta = choice.get("delta")
    if not delta or len(delta) != 1 or choice.get("finish_reason") is not None:
        return False
    ((key, value),) = delta.items()
    return type(value) is str and key != "role"
