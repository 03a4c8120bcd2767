"""Every screen: that it is there, what it shows, and what it is sent with."""

import asyncio
from typing import Any

import pytest

from db.overview import Place, Sought, Stretch
from db.store import StoreUnavailable, TooSlow
from statemachine import Choice, SessionRecord
from tests.db.records import assistant, make_partial, make_record, user
from tests.service.conftest import Kept, Service, ServiceMaker
from tests.service.page.conftest import (
    ADMIN_KEYS,
    CALLER,
    CALLER_KEYS,
    FAST,
    VisitorMaker,
    keyed,
)

NASTY = "<script>alert(1)</script> & \"quotes\" 'n' {{ 7 * 7 }} </pre>"
SCREENS = ("/", "/page/completions", "/page/health", "/page/callers")


async def kept(service: Service, *records: SessionRecord) -> None:
    await service.store.save(records)


async def test_every_screen_is_there(open_service: Service, visit: VisitorMaker) -> None:
    """Without keys on this machine, each says which one it is, and nothing of it may be kept."""
    visitor = await visit(open_service)
    for path in SCREENS:
        seen = await visitor.get(path)
        assert 200 == seen.status
        assert "no-store" == seen.headers["Cache-Control"]
        assert f'href="{path}" aria-current="page"' in seen.text
        for name in ("Now", "Completions", "Health", "Callers"):
            assert f">{name}</a>" in seen.text


@pytest.mark.parametrize(
    "path", [*SCREENS, "/page/completions/nobody's", "/page/sign-in", "/page/static/page.js"]
)
async def test_no_page_can_be_framed_or_run_foreign_code(
    open_service: Service, visit: VisitorMaker, path: str
) -> None:
    """Script, style and requests come from this service alone; nothing inline, no frame."""
    seen = await (await visit(open_service)).get(path)
    policy = dict(
        part.split(" ", 1) for part in seen.headers["Content-Security-Policy"].split("; ")
    )
    assert "'none'" == policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"]
    assert "'self'" == policy["script-src"] == policy["style-src"] == policy["connect-src"]
    assert "DENY" == seen.headers["X-Frame-Options"]
    assert "nosniff" == seen.headers["X-Content-Type-Options"]
    assert "same-origin" == seen.headers["Referrer-Policy"]
    if "html" in seen.headers["Content-Type"]:
        assert " style=" not in seen.text and " onclick=" not in seen.text
        assert "http://" not in seen.text.replace("http://www.w3.org", "").replace(
            f"{open_service.url}", ""
        )


async def test_what_pages_link_to_is_kept_as_long_as_it_is_the_same(
    open_service: Service, visit: VisitorMaker
) -> None:
    """By the address that pages name; not under another one, and nothing else is served."""
    visitor = await visit(open_service)
    page = (await visitor.get("/")).text
    named = page.partition('rel="stylesheet" href="')[2].partition('"')[0]
    assert "immutable" in (await visitor.get(named)).headers["Cache-Control"]
    other = await visitor.get("/page/static/page.css?v=1")
    assert (200, "no-cache") == (other.status, other.headers["Cache-Control"])
    assert 404 == (await visitor.get("/page/static/..%2Fbase.html")).status


async def test_the_api_stays_as_it_is(open_service: Service, visit: VisitorMaker) -> None:
    """What there is not is JSON for the API's clients, as before."""
    visitor = await visit(open_service)
    for path in ("/v1/nothing", "/nothing", "/page/nothing"):
        seen = await visitor.get(path)
        assert (404, "application/json") == (seen.status, seen.headers["Content-Type"])


async def test_a_completion_is_shown_as_it_is_stored(
    open_service: Service, visit: VisitorMaker
) -> None:
    """Question, answer, JSON, a command, its conversation; all as text."""
    said = assistant(NASTY, reasoning_content="Hm.", tool_calls=[TOOL_CALL])
    record = make_record(user(NASTY), answer=said, request={"request_id": "req_1"})
    await kept(open_service, record)
    seen = await (await visit(open_service)).get(f"/page/completions/{record.completion_id}")
    assert 200 == seen.status
    assert "<script>alert" not in seen.text and "{{ 7 * 7 }}" in seen.text
    assert 2 <= seen.text.count("&lt;script&gt;alert(1)&lt;/script&gt;")
    for part in ("req_1", "Hm.", "look({", "curl -N", "/page/conversations/conv_", "completed"):
        assert part in seen.text


TOOL_CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}


async def test_a_partial_answer_is_marked(open_service: Service, visit: VisitorMaker) -> None:
    """On its own screen, in its conversation, and among the last failures."""
    record = make_partial(user("Hello"), answer="cut o")
    await kept(open_service, record)
    visitor = await visit(open_service)
    seen = await visitor.get(f"/page/completions/{record.completion_id}")
    assert "cut o partial The answer broke off here." in seen.words
    assert "upstream_incomplete : The upstream broke off." in seen.words
    conversation = seen.text.partition('href="/page/conversations/')[2].partition('"')[0]
    tree = await visitor.get(f"/page/conversations/{conversation}")
    assert "partial" in tree.words and "cut o" in tree.words
    assert record.completion_id in (await visitor.get("/")).text


async def test_a_silent_failure_is_shown(open_service: Service, visit: VisitorMaker) -> None:
    """Also one that never said a word, and content that is no text."""
    silent = make_partial(user([{"type": "image_url", "image_url": {"url": "x"}}]), choices=())
    await kept(open_service, silent)
    visitor = await visit(open_service)
    seen = await visitor.get(f"/page/completions/{silent.completion_id}")
    assert "No word was said." in seen.words and "[image_url]" in seen.words


async def test_branches_are_told_apart(open_service: Service, visit: VisitorMaker) -> None:
    """Two answers to one question, and what followed one of them."""
    first, other = make_record(user("One"), answer="A"), make_record(user("One"), answer="B")
    onward = make_record(user("One"), assistant("B"), user("Two"), answer="C")
    await kept(open_service, first, other, onward)
    row = await open_service.store.find(first.completion_id)
    assert row is not None
    seen = await (await visit(open_service)).get(f"/page/conversations/{row.conversation_id}")
    assert "branch 1 of 2" in seen.words and "branch 2 of 2" in seen.words
    places = [seen.words.index(text) for text in (" One ", " A ", " B ", " Two ", " C ")]
    assert sorted(places) == places


async def test_older_leads_on(open_service: Service, visit: VisitorMaker) -> None:
    """Page by page to the first of all, with the filters kept."""
    records = [make_record(request={"model": "m" if n % 2 else "o"}) for n in range(120)]
    await kept(open_service, *records)
    visitor, path, found = await visit(open_service), "/page/completions?model=m", 0
    for _ in range(5):
        seen = await visitor.get(path)
        found += seen.text.count('<td data-label="Id"')
        if 'rel="next"' not in seen.text:
            break
        assert ">older</a>" in seen.text
        path = seen.text.partition('rel="next" href="')[2].partition('"')[0].replace("&amp;", "&")
    assert 60 == found


@pytest.mark.parametrize(
    "query",
    [
        "state=streaming",
        "state=x",
        "since=yesterday",
        "until=0000",
        "after=x",
        "after=1-2",
        "after=-9.000000-a",
    ],
)
async def test_a_filter_that_cannot_be_read_is_refused(
    open_service: Service, visit: VisitorMaker, query: str
) -> None:
    """As a page that says so, not as a list of everything."""
    seen = await (await visit(open_service)).get(f"/page/completions?{query}")
    assert 400 == seen.status
    assert "This can't be read" in seen.text.replace("&#39;", "'")


async def test_filters_and_times_narrow_the_list(
    open_service: Service, visit: VisitorMaker
) -> None:
    """Each of them; what is asked for stays in the form."""
    record = make_partial(user("Hi"), request={"owner": "bob", "created_at": 1_750_000_000.0})
    await kept(open_service, record, make_record(user("Other")))
    visitor = await visit(open_service)
    for query in (
        "state=failed",
        "error=upstream_incomplete",
        "owner=bob",
        "since=2025-06-15T15:06:40&until=2025-06-15T15:06:41",
        "until=2025-06-15T17:06:41%2B02:00",
    ):
        seen = await visitor.get(f"/page/completions?{query}")
        assert 1 == seen.text.count('<td data-label="Id"')
        assert record.completion_id in seen.text
        assert query.partition("=")[2].partition("&")[0].partition("%2B")[0] in seen.text
    assert "Nothing fits" in (await visitor.get("/page/completions?owner=nobody")).words


async def test_any_id_is_found(open_service: Service, visit: VisitorMaker) -> None:
    """One thing is led to; several are listed; nothing is said to be nothing."""
    trace = "b" * 32
    one = make_record(user("One"), request={"request_id": "req_1", "trace_id": trace})
    two = make_record(user("Two"), request={"trace_id": trace}, upstream_id="up-2")
    await kept(open_service, one, two)
    visitor = await visit(open_service)

    async def leads_to(name: str) -> str:
        return str((await visitor.get(f"/page/find?id={name}")).headers.get("Location"))

    assert f"/page/completions/{one.completion_id}" == await leads_to(one.completion_id)
    assert f"/page/completions/{one.completion_id}" == await leads_to("req_1")
    assert f"/page/completions/{two.completion_id}" == await leads_to("%20up-2%20")
    row = await open_service.store.find(one.completion_id)
    assert row is not None
    assert f"/page/conversations/{row.conversation_id}" == await leads_to(row.conversation_id)
    both = await visitor.get(f"/page/find?id={trace}")
    assert one.completion_id in both.text and two.completion_id in both.text
    assert "No completion" in (await visitor.get("/page/find?id=%3Cb%3E")).words
    assert "No completion" in (await visitor.get("/page/find")).words


async def test_callers_and_configuration_tell_no_secret(
    make_service: ServiceMaker, visit: VisitorMaker
) -> None:
    """Names and what is left, and not even hashes."""
    service = await make_service(FAST, **keyed())
    service.key = CALLER
    await service.stream(model="demo")
    visitor = await visit(service)
    await visitor.sign_in()
    seen = await visitor.get("/page/callers")
    assert "chat 0 1 of 2 left no limit" in seen.words
    assert "ops" in seen.words and "***" in seen.text
    assert ADMIN_KEYS[0].sha256 not in seen.text and CALLER_KEYS[0].sha256 not in seen.text


class Slow(Kept):
    """A store whose overviews fail in the way that a test wants."""

    failure: StoreUnavailable = TooSlow("Given up.")

    async def list_all(self, sought: Sought, limit: int, after: Place | None = None) -> Stretch:
        await asyncio.sleep(0)
        raise self.failure


@pytest.mark.parametrize(
    ("failure", "status", "words"),
    [
        (TooSlow("Given up."), 504, "The database took longer than 2 s"),
        (StoreUnavailable("Away."), 503, "The database can't be reached"),
    ],
)
async def test_a_database_that_does_not_answer_is_said_so(
    make_service: ServiceMaker, visit: VisitorMaker, failure: Any, status: int, words: str
) -> None:
    """Slow or away, the list says which; Now shows what runs all the same."""
    store = Slow()
    store.failure = failure
    visitor = await visit(await make_service(store=store))
    seen = await visitor.get("/page/completions")
    assert status == seen.status
    assert words in seen.words.replace("&#39;", "'")
    now = await visitor.get("/")
    assert 200 == now.status
    assert "can't be reached" in now.words.replace("&#39;", "'")


async def test_half_a_character_is_shown(open_service: Service, visit: VisitorMaker) -> None:
    """What no page can hold does not break it."""
    record = make_record(user("a\ud800b"), choices=(Choice(0, assistant("c\udfffd\x00e"), "stop"),))
    await kept(open_service, record)
    seen = await (await visit(open_service)).get(f"/page/completions/{record.completion_id}")
    assert 200 == seen.status
    assert "a?b" in seen.text
