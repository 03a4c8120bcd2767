"""A replay with the shortcut is one without it: the same records, the same tapes, the same damage."""

import asyncio
import json
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from attrs import asdict

from db.journal import reading as reading_module
from db.journal import survey as survey_module
from db.journal import texts as texts_module
from db.journal.reading import PAUSE, read_in_turns
from db.journal.replay import Replay
from db.journal.survey import survey
from db.journal.texts import TextReader
from statemachine import (
    ChunkPattern,
    ChunkReceived,
    ClientGone,
    ClientLeft,
    ClientReturned,
    Event,
    Failure,
    RepeatedChunks,
    SessionPolicy,
    SessionRecord,
    UpstreamFailed,
    UpstreamFinished,
)
from statemachine import transcript as transcript_module
from statemachine.tape import Chunks, Tape
from tests.db.journal.journals import collect, open_journal, segments, words
from tests.db.journal.test_replay import line
from tests.statemachine.conftest import asked, chunk, finish_chunk, text_chunk

WORDS = ["", " a", " word", "é", "漢字", "🙂", '"', "\\", "\n\n", "<", "/", "\\u", "}}]}", "\u2028"]
Write = Callable[[str], bytes]
WRITERS: list[Write] = [
    lambda text: json.dumps(text, ensure_ascii=False).encode(),
    lambda text: json.dumps(text).encode(),
    lambda text: json.dumps(text, ensure_ascii=False).replace("<", "\\u003c").encode(),
    lambda text: json.dumps(text, ensure_ascii=False).replace("/", "\\/").encode(),
    lambda text: json.dumps(text + "\ud83d").encode(),
]
PARSED: list[Any] = [
    text_chunk("parsed"),
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "other"}, index=1),
    chunk({"content": [{"type": "text", "text": "part"}]}),
    chunk({"tool_calls": [{"index": 0, "id": "t", "function": {"arguments": '{"a'}}]}),
    finish_chunk(),
    {"choices": [], "usage": {"completion_tokens": 5}},
]


def made_pattern(chance: Random) -> ChunkPattern:
    """One whose chunks any of the texts may be in."""
    key = chance.choice(["content", "content", "reasoning_content", "id"])
    index = chance.choice([0, 0, 0, 1])
    fields: dict[str, Any] = chance.choice([{}, {"system_fingerprint": "fp"}, {"list": [1]}])
    between = b'}}],"obfuscation":' if chance.random() < 0.3 else b""
    if between:
        fields = {**fields, "obfuscation": "x"}
    return ChunkPattern(chunk({key: ""}, index=index, **fields), key, b"{", b"}", between)


def made_run(chance: Random, pattern: ChunkPattern, write: Write) -> RepeatedChunks:
    """Mostly one chunk, as they come."""
    texts = chance.choices(WORDS, k=chance.choice([1, 1, 1, 1, 1, 2, 3]))
    literals = [write(text) for text in texts]
    if pattern.between:
        literals = [
            literal + pattern.between + json.dumps("x" * chance.randint(0, 9)).encode()
            for literal in literals
        ]
    firsts = [literal.partition(pattern.between or b"\0")[0] for literal in literals]
    return RepeatedChunks(pattern, list(map(json.loads, firsts)), b"\n".join(literals))


def made_events(chance: Random) -> Iterator[list[Event]]:
    """What a session is told, in each of its lines: mostly texts of one pattern after the other."""
    while chance.random() < 0.85:
        pattern, write = made_pattern(chance), chance.choice(WRITERS)
        if chance.random() < 0.2:
            write = chance.choice(WRITERS[:2])
        for _ in range(chance.choice([1, 3, 10, 40])):
            yield [ChunkReceived(made_run(chance, pattern, write))]
            if chance.random() < 0.05:
                yield [ChunkReceived(chance.choice(PARSED))]
            if chance.random() < 0.03:
                write = chance.choice(WRITERS)
            if chance.random() < 0.02:
                yield [chance.choice([ClientLeft(), ClientReturned()])]
    yield [ChunkReceived(finish_chunk())] if chance.random() < 0.7 else []
    yield chance.choice([[], [UpstreamFinished()], [UpstreamFailed(Failure("broken", "So."))]])


def made_journal(chance: Random, directory: Path) -> list[bytes]:
    """The lines of some sessions that ran at once."""
    journal = open_journal(directory)
    running = {}
    for name in chance.sample(["a", "b", "c/d", "é", 'e"', *map(str, range(12))], 9):
        policy = SessionPolicy(
            chance.choice(list(ClientGone)),
            max_answer_bytes=chance.choice([None, None, 100, 400]),
            max_tape_bytes=chance.choice([10**6, 10**6, 1000]),
        )
        if journal.begin(asked(completion_id=name), policy):
            running[name] = made_events(chance)
    now = 10.0
    while running:
        name = chance.choice(list(running))
        events = next(running[name], None)
        if events is None:
            del running[name]
            continue
        now += chance.choice([0.125, 0.1, 1, -0.5])
        journal.append(name, events, now)
    written = b"".join(path.read_bytes() for path in segments(journal.directory))
    journal.close()
    return written.splitlines(keepends=True)


# --- spoiling them ----------------------------------------------------------------------------


def signed(source: bytes) -> bytes:
    """The line with this JSON, or what isn't any."""
    return b"%08x %d %b\n" % (zlib.crc32(source), len(source), source)


def spoiled(chance: Random, whole: bytes) -> Sequence[bytes]:
    """What became of a line, in one of many ways."""
    source = whole[:-1].split(b" ", 2)[2]
    place = chance.randrange(len(source))
    odd = bytes((chance.choice(b'"\\{}[]0123456789.,:x \n\x00\x1f\x80\xc3\xe9\xff'),))
    other = source[:place] + odd + source[place + 1 :]
    return chance.choice(
        [
            (),
            (whole, whole),
            (whole[:-1],),
            (whole[: chance.randrange(len(whole))],),
            (whole[:60] + odd + whole[61:],),
            (b"%08x %d %b\n" % (zlib.crc32(source) ^ 1, len(source), source),),
            (b"%08x %d %b\n" % (zlib.crc32(source), len(source) + 1, source),),
            (b"%08X 00%d %b\n" % (zlib.crc32(source), len(source), source),),
            (signed(other),),
            (signed(source[:place] + odd + source[place:]),),
            (signed(source.replace(b'"like":', b'"like":1')),),
            (signed(source.replace(b'"n":', b'"n":0')),),
            (signed(b'"index":1'.join(source.rsplit(b'"index":0', 1))),),
            (signed(b'"delta":{"id":'.join(source.rsplit(b'"delta":{"content":', 1))),),
            (signed(b'}}],"obfuscation":"x"}'.join(source.rsplit(b"}}]}", 2))),),
            (signed(source.replace(b'"n":', b'"n":1')),),
            (signed(source.replace(b'"at":', b'"at":0')),),
            (signed(source.replace(b'"at":', b'"at":1')),),
            (signed(source.replace(b',"version":2', b"")),),
            (signed(source.replace(b'{"content":"', b'{"content":"\\ud83d')),),
            (signed(source.replace(b'{"content":"', b'{"content":"\xed\xa0\xbd')),),
            (signed(source.replace(b'{"content":"', b'{"content":"\\x')),),
            (signed(source.replace(b'}}]}}]}', b'}}],"obfuscation":"abc"}}]}')),),
            (signed(source.replace(b'"obfuscation":"', b'"obfuscation":"\\"')),),
            (b"garbage", whole),
            (b"01234567 12 {", whole),
        ]
    )  # fmt: skip


def spoil(chance: Random, lines: list[bytes]) -> list[bytes]:
    """The lines with some of them damaged, mixed up or torn."""
    result = list[bytes]()
    share = chance.choice([0.0, 0.0, 0.01, 0.1])
    for each in lines:
        result += spoiled(chance, each) if chance.random() < share else [each]
    if result and chance.random() < 0.1:
        place = chance.randrange(len(result))
        result.insert(chance.randrange(len(result)), result.pop(place))
    if result and chance.random() < 0.2:
        result[-1] = result[-1][: chance.randrange(len(result[-1]))]
    return result


def written(directory: Path, lines: Sequence[bytes], parts: int) -> list[Path]:
    """The segments with these lines."""
    directory.mkdir()
    size = len(lines) // parts + 1
    for number in range(parts):
        data = b"".join(lines[number * size : (number + 1) * size])
        (directory / f"{number:06}.jsonl").write_bytes(data)
    return segments(directory)


# --- comparing --------------------------------------------------------------------------------


def told(record: SessionRecord) -> dict[str, Any]:
    """All of a record that is kept, its tape included: nobody is told a gap of one that was killed."""
    fields = asdict(record, recurse=False)
    del fields["longest_gap_seconds"]
    tape = fields.pop("tape")
    return {**fields, "tape": None if tape is None else tape_told(tape)}


def tape_told(tape: Tape) -> Any:
    parts: list[Any] = []
    for part in tape.parts:
        if isinstance(part, Chunks):
            parts.append((part.begins, part.sources))
            continue
        pattern = part.pattern
        parts.append((part.begins, pattern.payload, pattern.key, bool(pattern.between)))
        parts.append((part.start, bytes(part.lengths), part.count, part.characters, part.ascii))
        parts.append((part.odd or {}, None if part.paddings is None else bytes(part.paddings)))
    return tape.first, tape.size, tape.created, parts


def found(
    paths: Sequence[Path], only: Collection[str] | None, shortcut: bool
) -> tuple[list[dict[str, Any]], int]:
    replay = Replay(paths, only, shortcut=shortcut)
    records = asyncio.run(collect(replay))
    return [told(record) for record in records], replay.damages


@pytest.mark.parametrize("seed", range(100))
def test_the_shortcut_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Of any journal, whole or damaged, all of it or some completions, the same comes back."""
    chance = Random(seed)
    monkeypatch.setattr(transcript_module, "_LOOK_BYTES", chance.choice([30, 200, 65536]))
    monkeypatch.setattr(texts_module, "_BLOCK_BYTES", chance.choice([1, 1000, 32768]))
    lines = spoil(chance, made_journal(chance, tmp_path / "made"))
    paths = written(tmp_path / "journal", lines, chance.choice([1, 1, 3]))
    only = chance.choice([None, None, {"a", "b", "1"}, {"c/d", "é", *map(str, range(9))}])
    assert found(paths, only, shortcut=False) == found(paths, only, shortcut=True)


def text_line(number: int, text: bytes, at: bytes = b"2.5") -> bytes:
    """A line of one more text, as it is written."""
    fields = (number, at, text)
    return signed(
        b'{"id":"a","n":%d,"at":%b,"like":1,"events":[{"chunk":{"choices":'
        b'[{"index":0,"delta":{"content":%b}}]}}]}' % fields
    )


def begun(directory: Path) -> list[bytes]:
    """The lines of a session that has said a word of a pattern."""
    journal = open_journal(directory)
    journal.begin(asked(completion_id="a"), SessionPolicy())
    pattern = ChunkPattern(text_chunk(""), "content", b"", b"")
    journal.append("a", [ChunkReceived(RepeatedChunks(pattern, ["one"], b'"one"'))], 1.0)
    (path,) = segments(journal.directory)
    lines = path.read_bytes().splitlines(keepends=True)
    journal.close()
    return lines


AND = b'}}]}},{"chunk":{"choices":[{"index":0,"delta":{"content":'
"""What stands between two texts of a line."""


class Counted(TextReader):
    """Counts the bytes that went past JSON."""

    read_bytes = 0

    def read(self, data: bytes, start: int) -> int:
        end = super().read(data, start)
        Counted.read_bytes += end - start
        return end


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'" two"', " two"),
        (b'"\\n\\"\\\\"', '\n"\\'),
        ('"é漢"'.encode(), "é漢"),
        (b'" two"%b" three"' % AND, " two three"),
        (b'" two"%b" three"' % AND.replace(b"0", b"1"), None),
        (b'" two"%b" three"' % AND.replace(b"content", b"contents"), None),
        (b'" two"%b" three"' % AND.replace(b"}}]}", b'}}],"obfuscation":"x"}'), None),
        (b'"\\u00e9"', None),
        (b'"\xff"', None),
        (b'"\\x"', None),
        (b'"a","b"', None),
    ],
)
def test_what_is_read_past_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes, says: str | None
) -> None:
    """A line of further texts is, if any reader takes it for the same; every other is left to one."""
    monkeypatch.setattr("db.journal.replay.TextReader", Counted)
    monkeypatch.setattr(Counted, "read_bytes", 0)
    one_more = text_line(2, text)
    paths = written(tmp_path / "journal", [*begun(tmp_path / "made"), one_more], 1)
    (record,) = asyncio.run(collect(Replay(paths)))
    assert (0 if says is None else len(one_more)) == Counted.read_bytes
    if says is not None:
        assert (f"one{says}", 2.5) == (words(record), record.finished_at)


def test_others_lines_are_passed_over(tmp_path: Path) -> None:
    """They are not checked: of many completions that ran at once each is a small part."""
    reader = TextReader({b"b"})
    others = text_line(2, b'" two"') * 3
    assert len(others) == reader.read(others, 0)
    assert 0 == TextReader({b"a"}).read(others, 0)
    assert 0 == TextReader().read(others, 0)


@pytest.mark.parametrize("count", [1, 9])
def test_of_a_few_nothing_else_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """A few completions' lines are found faster than all the others' are passed over."""
    monkeypatch.setattr("db.journal.replay.TextReader", Counted)
    monkeypatch.setattr(Counted, "read_bytes", 0)
    own, others = text_line(2, b'" two"'), text_line(2, b'" two"').replace(b'"a"', b'"x"')
    others = signed(others.split(b" ", 2)[2][:-1])
    paths = written(tmp_path / "journal", [*begun(tmp_path / "made"), own, *[others] * 50], 1)
    (record,) = asyncio.run(collect(Replay(paths, {"a", *"123456789"[1:count]})))
    assert "one two" == words(record)
    assert len(own) + (50 * len(others) if count > 8 else 0) == Counted.read_bytes


@pytest.mark.parametrize("second", [1, 2])
def test_a_pattern_told_again_is_another(tmp_path: Path, second: int) -> None:
    """Texts follow the pattern that was read last, also if its line couldn't be understood."""
    first = begun(tmp_path / "made")
    told = {"key": "reasoning_content", "chunk": chunk({"reasoning_content": ""}), "padded": False}
    odd = {"id": "a", "n": second, "at": 2.0, "events": [{"chunk": {}}], "pattern": told}
    texts = [text_line(number, b'"two"') for number in (3, 4, 5)]
    lines = [*first, text_line(2, b'"two"'), line(odd), *texts]
    paths = written(tmp_path / "journal", lines, 1)
    assert found(paths, None, shortcut=False) == found(paths, None, shortcut=True)


def test_what_a_survey_adds_up_is_what_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of whole and of damaged journals it finds the same without the shortcut."""
    for seed in range(40):
        chance = Random(seed)
        lines = spoil(chance, made_journal(chance, tmp_path / f"made{seed}"))
        paths = written(tmp_path / f"journal{seed}", lines, 3)
        monkeypatch.setattr(survey_module, "PART_BYTES", 2000)
        expected = survey(paths)
        with monkeypatch.context() as without:
            without.setattr(survey_module._Found, "_look_at_whole", lambda _, data, start: start)
            assert expected == survey(paths)


@pytest.mark.parametrize("only", [None, {"a"}, {"a", *"123456789"}, {*"123456789"}])
def test_others_get_their_turn_beside_texts(
    monkeypatch: pytest.MonkeyPatch, only: Collection[str] | None
) -> None:
    """Neither lines that are put aside nor those that are passed over hold the loop up: every so many
    bytes there is a moment for others."""
    monkeypatch.setattr(reading_module, "_PAUSE_BYTES", 1000)
    data = b"".join([text_line(number, b'"two"') for number in range(2, 300)])

    def next_line(data: bytes, start: int) -> int:
        return data.find(b"\n", start) + 1

    put_aside = next_line if only is None or "a" in only else None
    pauses = [item for item in read_in_turns(data, only, put_aside) if item is PAUSE]
    assert len(pauses) > len(data) / 2000
