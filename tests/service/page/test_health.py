"""Health: what is ill says so; dead letters are looked at and tried again."""

from pathlib import Path
from typing import Any

import pytest

from db.dead_letters import DeadLetters
from db.store import RecordRejected, StoreUnavailable
from service.settings.admin import AdminConfig
from service.settings.config import JournalConfig, ScriptedAgentConfig
from tests.db.records import make_record, user
from tests.service.conftest import Kept, ServiceMaker
from tests.service.page.conftest import VisitorMaker

BROKEN = ScriptedAgentConfig(name="broken", kind="scripted", fail_after_tokens=0, fail_with="reset")


class Choosy(Kept):
    """A store that refuses records as long as a test says why."""

    why: Exception | None = None

    async def save(self, records: Any) -> None:
        if self.why is not None:
            raise self.why
        await super().save(records)

    async def check(self) -> None:
        if isinstance(self.why, StoreUnavailable):
            raise self.why


async def test_what_is_well_says_so(make_service: ServiceMaker, visit: VisitorMaker) -> None:
    """Each part by name, the agents, the worker, the versions."""
    visitor = await visit(await make_service())
    seen = await visitor.get("/page/health")
    for part in ("Database ready", "Journal ready", "Dead letters 0", "demo asked", "serving"):
        assert part in seen.words
    assert "aiohttp" in seen.words and "Python" in seen.words


async def test_what_is_ill_says_why(make_service: ServiceMaker, visit: VisitorMaker) -> None:
    """A database that is away, an agent that fails."""
    store = Choosy()
    service = await make_service(BROKEN, store=store)
    await service.stream(model="broken")
    store.why = StoreUnavailable("Nothing listens there.")
    seen = await (await visit(service)).get("/page/health")
    assert "Database not ready Nothing listens there." in seen.words
    assert "upstream_incomplete" in seen.words


async def test_without_a_journal_there_is_a_page(
    make_service: ServiceMaker, visit: VisitorMaker
) -> None:
    """And no letters."""
    visitor = await visit(await make_service(journal=JournalConfig(directory=None)))
    assert "Dead letters 0" in (await visitor.get("/page/health")).words
    assert 404 == (await visitor.get("/page/letters/a")).status


async def test_a_letter_is_looked_at_and_tried_again(
    make_service: ServiceMaker, visit: VisitorMaker, tmp_path: Path, log_lines: Any
) -> None:
    """Refused again it stays, with the reason; once it is taken it is gone, and stored."""
    store = Choosy()
    visitor = await visit(await make_service(store=store))
    letters = DeadLetters(tmp_path / "journal")
    record = make_record(user("sesame"))
    letters.add(record, "SQLSTATE 22001")
    seen = await visitor.get("/page/health")
    assert "Dead letters 1" in seen.words and "SQLSTATE 22001" in seen.words
    path = f"/page/letters/{record.completion_id}"
    assert "sesame" in (await visitor.get(path)).text
    assert ["text opened"] == [line["event"] for line in log_lines if "opened" in line["event"]]
    for why, status in ((RecordRejected("Still."), 409), (StoreUnavailable("Away."), 503)):
        store.why = why
        seen = await visitor.post(f"{path}/retry")
        assert status == seen.status
        assert str(why) in seen.words
        assert 1 == len(letters.paths())
    store.why = None
    assert 303 == (await visitor.post(f"{path}/retry")).status
    assert [] == letters.paths()
    assert record.completion_id == (await store.one()).completion_id
    assert 404 == (await visitor.post(f"{path}/retry")).status
    assert "sesame" not in str(log_lines)


@pytest.mark.parametrize("name", ["..%2F..%2Fetc%2Fpasswd", "nobody's", "*"])
async def test_no_other_file_is_a_letter(
    make_service: ServiceMaker, visit: VisitorMaker, name: str
) -> None:
    """Names are compared, not opened."""
    visitor = await visit(await make_service())
    assert 404 == (await visitor.get(f"/page/letters/{name}")).status


async def test_a_damaged_letter_harms_nobody(
    make_service: ServiceMaker, visit: VisitorMaker, tmp_path: Path
) -> None:
    """It is listed as what it is."""
    visitor = await visit(await make_service())
    folder = tmp_path / "journal" / "dead-letters"
    folder.mkdir(parents=True)
    (folder / "torn.json").write_text("{")
    seen = await visitor.get("/page/health")
    assert "is no dead letter" in seen.words
    assert 404 == (await visitor.get("/page/letters/torn")).status


async def test_hidden_texts_are_not_in_letters_either(
    make_service: ServiceMaker, visit: VisitorMaker, tmp_path: Path
) -> None:
    """Their reason is shown, and not what is in them."""
    visitor = await visit(await make_service(admin=AdminConfig(texts="hide")))
    record = make_record(user("sesame"))
    DeadLetters(tmp_path / "journal").add(record, "SQLSTATE 22001")
    seen = await visitor.get(f"/page/letters/{record.completion_id}")
    assert "SQLSTATE 22001" in seen.words
    assert "sesame" not in seen.text


async def test_a_letter_that_nobody_may_read_is_listed(
    make_service: ServiceMaker, visit: VisitorMaker, tmp_path: Path, log_lines: Any
) -> None:
    """`store: false`: it can be tried again, and shows no text."""
    visitor = await visit(await make_service())
    record = make_record(user("sesame"), request={"parameters": {"store": False}})
    assert record.request.is_hidden
    DeadLetters(tmp_path / "journal").add(record, "SQLSTATE 22001")
    assert record.completion_id in (await visitor.get("/page/health")).words
    seen = await visitor.get(f"/page/letters/{record.completion_id}")
    assert "SQLSTATE 22001" in seen.words and "store: false" in seen.words
    assert "sesame" not in seen.text
    assert "text opened" not in str(log_lines)
