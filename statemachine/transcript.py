"""Folds chunks (decoded JSON objects) into the answer so far: choices, usage and the rest.

On the hot path. Never raises on odd values: what doesn't fit OpenAI's shape is kept as it came.

Every delta field (`content`, `reasoning_content`, `reasoning`, `refusal`, `tool_calls`,
`function_call`, `audio`, and whatever a vendor invents) folds alike, by the rules of
`statemachine.folding`; the role is said by the message itself, and a list or an object with nothing
in it says nothing. Taking a chunk in costs time for what is in it, however much came before.

An answer may only grow so large: past `max_bytes`, `MOST_ITEMS` or `MOST_CHOICES` it is in excess.
The chunk that made it so is in it as a whole, and the session ends there.
"""

from collections.abc import Mapping
from typing import Any

from statemachine.chunks import (
    ENVELOPE,
    ChunkPattern,
    ChunkRun,
    JsonObject,
    ParsedChunk,
    RepeatedChunks,
    bears_token,
    find_usage,
    finish_reason_of,
    own_fields,
)
from statemachine.folding import Folder, Text, plain, utf8_size
from statemachine.messages import Choice, Failure
from statemachine.tape import BACKSLASH, DEFAULT_LIMIT, Tape
from statemachine.usage import added_up

MOST_ITEMS = 5_000
"""Items of an answer's lists, such as tool calls; its log probabilities aside."""
MOST_CHOICES = 1_000
"""Choices of an answer, or as many as were asked for."""
_CHOICE_BYTES = 256
"""What a choice counts for, besides what it holds."""
_LOOK_BYTES = 64 * 1024
"""How much text comes from one measuring to the next, which also joins its pieces."""


class _OpenChoice:
    """One choice while it is arriving."""

    __slots__ = ("content", "delta", "extra", "finish_reason", "logprobs")

    def __init__(self) -> None:
        self.content: Text | None = None
        self.delta: dict[str, Any] = {}
        self.finish_reason: str | None = None
        self.logprobs: Any = None
        self.extra: dict[str, Any] = {}

    def fold(self, choice: JsonObject, answer: "Transcript") -> bool:
        """Take one chunk's choice in; true if it bore a token."""
        bore_token = False
        delta = choice.get("delta")
        if type(delta) is dict or isinstance(delta, Mapping):
            for key, value in delta.items():
                if key == "content" and type(value) is str and "content" not in self.delta:
                    if self.content is None:
                        self.content = Text()
                    if value:
                        self.content.append(value)
                        answer.text_size += len(value) if value.isascii() else utf8_size(value)
                        bore_token = True
                elif value is not None and key != "role":
                    self._fold_field(key, value, answer)
                    bore_token = bore_token or bears_token(key, value)
        for key, value in choice.items():
            if value is None or key == "delta" or key == "index":
                continue
            if key == "finish_reason":
                if (reason := finish_reason_of(value)) is not None:
                    answer.unfinished -= self.finish_reason is None
                    self.finish_reason = reason
            elif key == "logprobs":
                self.logprobs = answer.folder.fold_apart(self.logprobs, value)
            else:
                answer.folder.put(self.extra, key, value)
        return bore_token

    def _fold_field(self, key: str, value: Any, answer: "Transcript") -> None:
        if key == "content" and self.content is not None:
            self.delta[key] = self.content  # text first, then parts: they go on as one list
            self.content = None
        known = self.delta.get(key)
        if type(value) is str and (known is None or type(known) is Text):
            answer.text_size += utf8_size(value)
            if known is None:
                self.delta[key] = Text((value,))
                answer.folder.size += len(key)
            elif value:
                known.append(value)
        elif known is not None or not (isinstance(value, (list, Mapping)) and not value):
            self.delta[key] = answer.folder.fold(known, value)

    def growing(self, key: str) -> Text | None:
        """Where texts of this field go; None if it isn't plain text."""
        value = self.content if key == "content" else self.delta.get(key)
        return value if isinstance(value, Text) else None

    def measure(self) -> int:
        """Join the pieces of its texts; return their size in bytes."""
        size = 0
        for text in (self.content, *self.delta.values()):
            if type(text) is Text:
                text.pack()
                size += text.bytes_packed
        return size

    def closed(self, index: int) -> Choice:
        content = None if self.content is None else self.content.joined()
        fields = {key: plain(value) for key, value in self.delta.items()}
        message = {"role": "assistant", "content": content, **fields}
        logprobs = None if self.logprobs is None else plain(self.logprobs)
        return Choice(index, message, self.finish_reason, logprobs, dict(self.extra))


class Transcript:
    """The answer so far. One per session; not safe to share between sessions.

    Args:
        choices_expected: OpenAI's `n`.
        max_bytes: the most that it may hold, about; None: no limit.
        max_tape_bytes: the most that its tape may take, about.

    Attributes:
        tape: its chunks, as they came, without their texts.
    """

    __slots__ = (
        "_choices",
        "_choices_expected",
        "_growing",
        "_is_counted_apart",
        "_look_at",
        "_max_bytes",
        "_pattern",
        "_usage_frames",
        "_weighed",
        "chunk_count",
        "excess",
        "extra",
        "folder",
        "is_over",
        "is_whole",
        "tape",
        "text_size",
        "unfinished",
        "upstream_created",
        "upstream_id",
        "upstream_model",
        "usage",
        "usage_frame",
    )

    def __init__(
        self,
        choices_expected: int = 1,
        max_bytes: int | None = None,
        max_tape_bytes: int = DEFAULT_LIMIT,
    ) -> None:
        self._choices: dict[int, _OpenChoice] = {}
        self._choices_expected = choices_expected
        self._max_bytes = float("inf") if max_bytes is None else max_bytes
        self._pattern: ChunkPattern | None = None
        self._growing: Text | None = None
        self._look_at: float = min(_LOOK_BYTES, self._max_bytes + 1)
        self._usage_frames = 0
        self._is_counted_apart = True
        self._weighed = 0
        self.chunk_count = 0
        self.tape = Tape(max_tape_bytes)
        self.folder = Folder()
        self.text_size = 0
        """How many bytes of text its deltas brought; a little more than that until repeated chunks are
        measured the next time."""
        self.unfinished = 0
        """How many choices have come and have no finish reason yet."""
        self.is_whole = False
        """True once every choice, those asked for and those seen, has a finish reason."""
        self.is_over = False
        """True once it is whole or in excess."""
        self.excess: Failure | None = None
        """What is too much of it."""
        self.usage: JsonObject | None = None
        self.usage_frame: JsonObject | None = None
        """The last chunk that carried usage and no choice; shown only to clients that asked."""
        self.upstream_id: str | None = None
        self.upstream_model: str | None = None
        self.upstream_created: int | None = None
        self.extra: dict[str, Any] = {}

    def fold(self, payload: JsonObject) -> bool:
        """Take one chunk in.

        Returns true if it bore a token: any non-empty delta field besides `role`.
        """
        self._pattern = None
        if not self.chunk_count:
            self._fold_envelope(payload)
        self.chunk_count += 1
        if not ENVELOPE.issuperset(payload):
            for key, value in own_fields(payload).items():
                self.folder.put(self.extra, key, value)
        choices = payload.get("choices")
        if (usage := find_usage(payload)) is not None:
            self.usage = usage if choices else self._usage_after(payload, usage)
        bore_token = False
        if choices:
            for choice in choices:
                index = choice.get("index")
                if type(index) is not int:
                    index = _number(index)
                current = self._choices.get(index) or self._begin(index)
                if current.fold(choice, self):
                    bore_token = True
            if not self.unfinished or self.is_whole:
                self._judge()
        if self.folder.size != self._weighed:
            self._weigh()
        if self.text_size >= self._look_at:
            self._look()
        return bore_token

    def _begin(self, index: int) -> _OpenChoice:
        choice = self._choices[index] = _OpenChoice()
        self.unfinished += 1
        self.folder.size += _CHOICE_BYTES
        return choice

    def fold_run(self, run: ChunkRun) -> bool:
        """Take a run in: `fold` for each of its chunks. Returns true if one of them bore a token.

        Repeated chunks go onto the tape here; a parsed one that is for clients is put there first.
        """
        if type(run) is ParsedChunk:
            return self.fold(run.payload)
        if run.pattern is not self._pattern or self._growing is None:
            return self._fold_anew(run)
        # The last chunk was of this pattern too: whatever else it holds has been taken in.
        if BACKSLASH in run.literals or self.tape.notes_all:
            self.tape.note(run)
        texts = run.texts
        self.chunk_count += len(texts)
        self._growing.extend(texts)
        self.text_size = size = self.text_size + len(run.literals)
        if size >= self._look_at:
            self._look()
        return any(texts)

    def room_for(self, pattern: ChunkPattern) -> float:
        """How many bytes of literals may come in further runs of this pattern before the text is
        measured: so many fold in one run as they do in several. 0 if the last chunk was of another
        pattern, or its text isn't plain here."""
        if pattern is not self._pattern or self._growing is None:
            return 0.0
        return self._look_at - self.text_size

    def _fold_anew(self, run: RepeatedChunks) -> bool:
        """The same for a run that follows another kind of chunk, or whose text isn't plain here."""
        pattern, texts = run.pattern, run.texts
        frame = pattern.chunk("")  # whatever else such chunks hold
        self.tape.close()
        self.fold(frame)
        index = _number(frame["choices"][0].get("index"))
        self._growing = growing = self._choices[index].growing(pattern.key)
        self.chunk_count -= 1
        if growing is None:
            self.tape.begin_apart(run)
            return any([self.fold(pattern.chunk(text)) for text in texts])
        self.tape.begin(run, growing)
        self._pattern = pattern
        self.chunk_count += len(texts)
        growing.extend(texts)
        self.text_size += len(run.literals)
        if self.text_size >= self._look_at:
            self._look()
        return any(texts)

    def _fold_envelope(self, payload: JsonObject) -> None:
        upstream_id, model = payload.get("id"), payload.get("model")
        created = payload.get("created")
        self.upstream_id = upstream_id if isinstance(upstream_id, str) else None
        self.upstream_model = model if isinstance(model, str) else None
        # Azure's first chunk, which only has filter results, says 0.
        self.upstream_created = created if type(created) is int and created > 0 else None

    def _usage_after(self, payload: JsonObject, usage: JsonObject) -> JsonObject:
        """The usage after a chunk that brings nothing else. The latest counts; but where one comes for
        each choice, behind its end (llama.cpp), their sum."""
        self.usage_frame = payload
        self._usage_frames += 1
        finished = len(self._choices) - self.unfinished
        self._is_counted_apart = self._is_counted_apart and self._usage_frames <= finished
        if self._is_counted_apart and self._usage_frames > 1 and self.usage is not None:
            return added_up(self.usage, usage)
        return usage

    def _judge(self) -> None:
        self.is_whole = self.is_whole_so_far and len(self._choices) >= self._choices_expected
        self.is_over = self.is_whole or self.excess is not None

    def _weigh(self) -> None:
        """Something other than text at the top has grown."""
        self._weighed = self.folder.size
        self._look_at = min(self._look_at, self._room)
        if self.folder.items > MOST_ITEMS:
            self._exceed("upstream_malformed", f"more than {MOST_ITEMS} items, such as tool calls")
        elif len(self._choices) > max(MOST_CHOICES, self._choices_expected):
            self._exceed("upstream_malformed", f"more than {MOST_CHOICES} choices")

    def _look(self) -> None:
        """Measure the text, and join its pieces."""
        self.text_size = sum([choice.measure() for choice in self._choices.values()])
        if self.text_size >= self._room:
            self._exceed("answer_too_large", f"more than {self._max_bytes} bytes")
        self._look_at = min(self.text_size + _LOOK_BYTES, self._room)
        self.tape.check_size()

    @property
    def _room(self) -> float:
        """How much text would be too much."""
        return self._max_bytes + 1 - self.folder.size

    def _exceed(self, code: str, what: str) -> None:
        self.excess = self.excess or Failure(code, f"The answer was stopped: it has {what}.")
        self.is_over = True

    @property
    def is_whole_so_far(self) -> bool:
        """True if there is a choice, and each that began has a finish reason."""
        return bool(self._choices) and not self.unfinished

    @property
    def has_begun(self) -> bool:
        """True once any choice has come."""
        return bool(self._choices)

    @property
    def finish_reason(self) -> str | None:
        """The first choice's finish reason, if it has come."""
        return self._first.finish_reason if self._first else None

    @property
    def _first(self) -> _OpenChoice | None:
        return self._choices[min(self._choices)] if self._choices else None

    # --- an answer of several turns ---------------------------------------------------------

    @property
    def text_length(self) -> int:
        """How many characters of the first choice's text have come."""
        return sum(map(len, self._first.content or ())) if self._first else 0

    def text_from(self, start: int) -> str:
        """The first choice's text as far as it has come, from this character on."""
        return "".join(self._first.content or ())[start:] if self._first else ""

    def take_usage(self) -> JsonObject | None:
        """What was used so far, and count anew: another turn follows."""
        usage, self.usage = self.usage, None
        self._usage_frames, self._is_counted_apart = 0, True
        return usage

    def put_beside(self, chunk: ParsedChunk) -> None:
        """A chunk that is sent, and says nothing of the answer."""
        self._pattern = None
        self.tape.add(chunk)

    def choices(self) -> tuple[Choice, ...]:
        """The choices as far as they came, by index; fresh copies with all text joined."""
        return tuple([self._choices[index].closed(index) for index in sorted(self._choices)])


def _number(index: Any) -> int:
    """A choice's index, as most upstreams mean it; 0 for one that is none."""
    if isinstance(index, str) and index.isdecimal() and len(index) < 10:
        return int(index)
    is_number = isinstance(index, (int, float)) and abs(index) < 2**63
    return int(index) if is_number else 0
