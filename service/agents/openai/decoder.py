"""Reads an upstream's SSE body: bytes, cut anywhere, into chunks and a truthful ending.

Accepted, because real upstreams send it: LF, CRLF and CR line ends, no space after `data:`,
comments, `retry:` and `id:` lines, data over several lines, events parted by one line end,
characters cut in two, many events in one packet, one event in many, a last event without its blank
line, `[DONE]` or none, events of other names, which are left out unless there is a chunk in them, a
whole completion as a plain JSON body. An error may be a JSON object, a list of them, a string, under
`event: error`, a field of its own, or JSON without any SSE around it, in the middle of a stream or
instead of one.

Refused, as a failure that keeps everything before it: bad UTF-8, bad JSON, an event
past the size limit, JSON that is no chunk, any error. Chunks of odd shapes are mended
(`service.agents.openai.mending`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from service.agents.openai.failures import error_of, says_error, upstream_failure
from service.agents.openai.framing import DONE, begins_line_parted, read_block, take_lines
from service.agents.openai.mending import ChunkMender, TooManyItems
from service.agents.openai.pattern import PatternReader
from service.agents.openai.redacting import NOTHING_SECRET, Redactor
from service.agents.openai.shapes import as_chunk, is_completion
from service.wire import decode_json
from service.wire.measuring import MOST_VALUES, has_more_values
from statemachine import Failure, RepeatedChunks, UpstreamFailed, UpstreamFinished
from statemachine.chunks import NEW_LINE
from statemachine.endings import BODY_ENDED, BROKEN_OFF

JsonObject = dict[str, Any]
Ending = UpstreamFinished | UpstreamFailed

_BOM = b"\xef\xbb\xbf"
_CR, _LF = 13, NEW_LINE
INCOMPLETE = BODY_ENDED
"""The ending of a body that just stops. Only the session knows if its finish reasons make that a
good end after all."""
NO_STREAM = Failure("upstream_malformed", "The model's backend did not answer with a stream.")
"""The ending of a body that is something else."""
_TOO_MUCH = "The model's backend sent more than a chunk can hold."
_PINGS = frozenset((b"ping", b"heartbeat", b"keep-alive", b"keepalive", b"keep_alive"))
_PING_TYPES = [name.decode() for name in _PINGS]
_PLAIN_NAMES = frozenset((b"", b"message"))


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
        "_is_line_parted",
        "_max_event_bytes",
        "_mender",
        "_patterns",
        "_redactor",
        "_started",
        "ending",
        "sources",
    )

    def __init__(
        self,
        max_event_bytes: int,
        cut_off_reasons: frozenset[str] = frozenset(),
        redactor: Redactor = NOTHING_SECRET,
    ) -> None:
        self.ending: Ending | None = None
        self.sources: list[bytes | None] = []
        self._max_event_bytes = max_event_bytes
        self._buffer = bytearray()
        self._ended_in_cr = False
        self._started = False
        self._events = 0
        self._is_foreign = False
        self._is_line_parted = False
        self._redactor = redactor
        self._mender = ChunkMender(cut_off_reasons)
        self._patterns = PatternReader()

    def take(self, data: bytes) -> RepeatedChunks | None:
        """Read whole chunks that repeat an earlier one: nearly all of an answer.

        Returns None if the next bytes are anything else; then nothing was taken, and `feed` is to be
        given them. Never raises.
        """
        if self._ended_in_cr or _CR in data or self.ending is not None:
            return None
        if self._buffer and _LF not in data:
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
            and not (self._buffer or self._ended_in_cr or _CR in data)
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
        blocks: list[bytes] = []
        if end >= 0:
            blocks = bytes(self._buffer[:end]).split(b"\n\n")
            del self._buffer[: end + 2]
        if self._is_line_parted or (end < 0 and _LF in data and begins_line_parted(self._buffer)):
            self._is_line_parted = True
            blocks += take_lines(self._buffer)
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
            self.ending = UpstreamFailed(NO_STREAM)
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
        if _CR in data:
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
                f"The model's backend sent an event of more than {limit} byte{'' if limit == 1 else 's'}.",
            )
            self._buffer.clear()

    def _decode(self, blocks: list[bytes]) -> list[JsonObject]:
        payloads: list[JsonObject] = []
        for block in filter(None, blocks):
            if len(block) > self._max_event_bytes:
                self._check_size(block)
            if self.ending is not None:
                break
            if block.startswith(b"data: {") and _LF not in block:
                payload = self._decode_data(block[6:], b"")
                if payload is not None:
                    payloads.append(payload)
            elif not block.startswith(b":") or _LF in block:  # else a comment
                payloads += self._decode_block(block)
        return payloads

    def _decode_block(self, text: bytes) -> list[JsonObject]:
        block = read_block(text)
        if block.error is not None:
            self._fail_upstream(_value_of(block.error))
            return []
        payloads: list[JsonObject] = []
        if block.bare:
            self._is_foreign = True
            payloads += self._decode_bare(block.bare)
        for data, name in block.events:
            if self.ending is None and (data or name):
                payload = self._decode_data(data, name)
                if payload is not None:
                    payloads.append(payload)
        return payloads

    def _decode_rest(self, rest: bytes) -> list[JsonObject]:
        """A last event without its blank line, or a body that never was SSE."""
        payloads = self._decode_block(rest)
        if isinstance(self.ending, UpstreamFailed) and self.ending.failure is not NO_STREAM:
            if self.ending.failure.code == "upstream_malformed":
                self.ending = None  # cut in the middle of an event: incomplete, not malformed
        return payloads

    def _decode_bare(self, text: bytes) -> list[JsonObject]:
        """JSON without SSE around it: an error anywhere, or all there is, if nothing came before."""
        if text[:1] not in (b"{", b"["):
            return []
        value = _value_of(text)
        if _says_error(value):
            self._fail_upstream(value)
        elif not self._events:
            chunk = self._mended(text, value) if is_completion(value) else None
            if self.ending is None:
                self.ending = UpstreamFailed(NO_STREAM) if chunk is None else self._done()
            return [] if chunk is None else [chunk]
        return []

    # --- events to chunks -------------------------------------------------------------------

    def _decode_data(self, data: bytes, name: bytes) -> JsonObject | None:
        """One event's data: the chunk in it, or None with `ending` set or nothing to say."""
        self._events += 1
        if not data.startswith(b"{"):
            text = data.strip()
            if text in DONE:
                self.ending = self._done()
                return None
            if b"error" not in name and (not text or text.lower() in _PINGS):
                return None
        if name and name not in _PLAIN_NAMES:
            return self._decode_named(data, name)
        if len(data) > MOST_VALUES and has_more_values(data, MOST_VALUES):
            self._fail("upstream_malformed", _TOO_MUCH)
            return None
        try:
            payload = decode_json(data)
        except ValueError:
            self._fail("upstream_malformed", "The model's backend sent an event that is not JSON.")
            return None
        if _is_plain(payload):
            self._mender.has_spoken = True
            return self._passed_on(data, payload, payload)
        return self._take_payload(data, payload)

    def _decode_named(self, data: bytes, name: bytes) -> JsonObject | None:
        """An event with a name of its own: an error, a heartbeat, or whatever has a chunk in it."""
        payload = _value_of(data)
        if b"error" in name:
            self._fail_upstream(payload)
        elif isinstance(payload, dict) and name not in _PINGS:
            if says_error(payload) or payload.get("choices") or payload.get("usage"):
                return self._take_payload(data, payload)
        return None

    def _take_payload(self, data: bytes, payload: Any) -> JsonObject | None:
        if type(payload) is dict and _may_be_no_chunk(payload):
            if says_error(payload):
                self._fail_upstream(error_of(payload))
                return None
            if _is_ping(payload):
                return None
        elif type(payload) is list and _says_error(payload):
            self._fail_upstream(payload)
            return None
        chunk = as_chunk(payload)
        if chunk is None:
            self._fail("upstream_malformed", "The model's backend sent JSON that is not a chunk.")
            return None
        for choice in chunk.get("choices") or ():
            if choice.get("error"):
                self._fail_upstream(choice["error"])
                return None
        return self._mended(data, chunk, is_as_sent=chunk is payload)

    def _mended(self, data: bytes, chunk: Any, *, is_as_sent: bool = True) -> JsonObject | None:
        try:
            mended = self._mender.mend(chunk)
        except TooManyItems:
            self._fail("upstream_malformed", _TOO_MUCH)
            return None
        return self._passed_on(data, chunk, mended, is_as_sent=is_as_sent)

    def _passed_on(
        self, data: bytes, chunk: JsonObject, mended: JsonObject, *, is_as_sent: bool = True
    ) -> JsonObject:
        """The chunk that goes on, mostly the one that came, after noting where it came from."""
        if not is_as_sent or _LF in data:
            self.sources.append(None)
        else:
            self.sources.append(data if mended is chunk else None)
            self._patterns.learn_from(data, chunk, mended)
        return mended

    def _done(self) -> Ending:
        return self._cut_off() or UpstreamFinished()

    def _cut_off(self) -> UpstreamFailed | None:
        """The ending of an answer whose finish reason says that it was cut off."""
        reason = self._mender.cut_off
        if reason is None:
            return None
        message = f"The model's backend cut the answer off; its reason: {reason!r}."
        return UpstreamFailed(Failure(BROKEN_OFF, message))

    def _fail(self, code: str, message: str) -> None:
        self.ending = UpstreamFailed(Failure(code, message))

    def _fail_upstream(self, said: Any) -> None:
        self.ending = UpstreamFailed(upstream_failure(said, redactor=self._redactor))


def _is_plain(payload: Any) -> bool:
    """True of nearly every chunk: one choice that goes on, with one text."""
    choices = payload.get("choices") if type(payload) is dict else None
    if type(choices) is not list or len(choices) != 1 or "error" in payload or "x_groq" in payload:
        return False
    choice = choices[0]
    if type(choice) is not dict or choice.get("finish_reason") is not None or "error" in choice:
        return False
    delta = choice.get("delta")
    if type(delta) is not dict or len(delta) != 1 or type(choice.get("index")) is not int:
        return False
    ((key, value),) = delta.items()
    return type(value) is str and key != "role"


def _may_be_no_chunk(payload: JsonObject) -> bool:
    """True for an object that wants a second look; for nearly no chunk."""
    return "choices" not in payload or "error" in payload or "x_groq" in payload


def _says_error(value: Any) -> bool:
    """True for an error, and for a list that begins with one, as Gemini has them."""
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, Mapping) and says_error(first)


def _is_ping(payload: Mapping[str, Any]) -> bool:
    kind = payload.get("type")
    return "choices" not in payload and kind in _PING_TYPES


def _value_of(data: bytes) -> Any:
    """A JSON value, or the text that is none, or too much."""
    try:
        if len(data) <= MOST_VALUES or not has_more_values(data, MOST_VALUES):
            return decode_json(data)
    except ValueError:
        pass
    return data.strip().decode("utf-8", "replace")
