"""What docs/tape.md shows of a tape is what there is: its example is made, kept and printed here."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from db.postgres.store import PostgresStore
from service.agents.openai.decoder import SseDecoder
from statemachine import ChunkRun, ParsedChunk, SessionRecord
from statemachine.tape import Cursor
from tests.db.tapes import record_of
from tests.db.test_tapes_contract import ANSWERS
from tests.postgres import execute
from tests.statemachine.test_tape import read_all

DOCUMENT = (Path(__file__).parents[1] / "docs/tape.md").read_text("utf-8")
SHOWN = "SELECT encode(tape_lengths, 'hex'), tape::text FROM completions WHERE completion_id = %s"
UNREAD = {"half characters", "half characters as NUL", "a vendor's field"}
"""What the script doesn't read: texts that no text column holds, and those of a field called `choice`."""


def block(language: str, holding: str = "") -> str:
    """The document's one block in this language with this in it."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    (found,) = (each for each in blocks if holding in each)
    return str(found)


def said_by_a_backend(events: str) -> list[ChunkRun]:
    """What a backend's answer is read as, each of its events having come by itself."""
    decoder, runs = SseDecoder(10_000), list[ChunkRun]()
    for event in events.rstrip("\n").split("\n\n"):
        data = f"{event}\n\n".encode()
        run = decoder.take(data)
        runs += [run] if run else map(ParsedChunk, decoder.feed(data), decoder.sources)
    return runs


async def saved(database_url: str, record: SessionRecord) -> str:
    store = await PostgresStore.open(database_url)
    await store.save([record])
    await store.close()
    return record.completion_id


def printed(database_url: str, completion_id: str) -> str:
    """What the document's script prints of an answer."""
    command = [sys.executable, "-c", block("python"), database_url, completion_id]
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout


async def test_the_example_is_what_is_kept_of_it(database_url: str) -> None:
    """The columns that the document shows are those of the answer that it shows."""
    name = await saved(database_url, record_of(*said_by_a_backend(block("text"))))
    ((lengths, tape),) = execute(database_url, SHOWN, (name,))
    assert f"{lengths}|{tape}" == block("console", "SELECT encode").splitlines()[1]


async def test_the_script_prints_what_the_document_shows(database_url: str) -> None:
    """And that is what the backend had sent."""
    sent = block("text")
    name = await saved(database_url, record_of(*said_by_a_backend(sent)))
    expected = block("console", "chunks.py").partition("\n")[2]
    assert expected == printed(database_url, name)
    assert re.findall(r"^data: (\{.*)$", sent, re.MULTILINE) == expected.splitlines()


@pytest.mark.parametrize("answer", ANSWERS)
async def test_the_script_prints_every_chunk(database_url: str, answer: str) -> None:
    """Of any answer with ordinary texts."""
    record = record_of(*ANSWERS[answer])
    assert record.tape is not None
    expected = [
        json.loads(what) if isinstance(what, bytes) else what[0].chunk(text)
        for text, what in read_all(Cursor(record.tape))
    ]
    name = await saved(database_url, record)
    if answer not in UNREAD:
        found = [json.loads(line) for line in printed(database_url, name).splitlines()]
        assert expected == found
