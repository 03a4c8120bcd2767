"""What the page computes: sessions, lives, pictures, trees."""

from typing import Any

import pytest
from attrs import evolve

from db.store import StoredMessage, ThreadNode
from service.page.conversation import lines_of
from service.page.lives import MOST_LIVES, Lives
from service.page.rendering import seconds, size
from service.page.sessions import Sessions
from service.page.timeline import WIDTH, Asked, timeline_of
from service.page.writing import compact_text, completion_text, json_text
from service.settings.admin import AdminKeyConfig
from service.stream.moments import Attempt
from statemachine import Failure
from tests.db.records import make_request
from tests.service.page.conftest import ADMIN, ADMIN_KEYS, hashed

SECRET = b"s" * 32


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- sessions -------------------------------------------------------------------------------------


def test_every_worker_knows_a_session() -> None:
    """By the shared secret alone; by another it is nobody's."""
    begun = Sessions(SECRET, lambda: ADMIN_KEYS, Clock()).begin(ADMIN, 10)
    assert begun is not None
    name, token = begun
    assert "ops" == name == Sessions(SECRET, lambda: ADMIN_KEYS, Clock()).name_of(token)
    assert None is Sessions(b"o" * 32, lambda: ADMIN_KEYS, Clock()).name_of(token)


def test_a_session_ends_on_time() -> None:
    """Not a second later."""
    clock = Clock()
    sessions = Sessions(SECRET, lambda: ADMIN_KEYS, clock)
    _, token = sessions.begin(ADMIN, 10) or ("", "")
    clock.now += 9
    assert "ops" == sessions.name_of(token)
    clock.now += 1
    assert None is sessions.name_of(token)


def test_a_changed_token_is_nobodys() -> None:
    """Each part of it counts."""
    sessions = Sessions(SECRET, lambda: ADMIN_KEYS, Clock())
    _, token = sessions.begin(ADMIN, 10) or ("", "")
    name, ends_at, random, mac = token.split("~")
    for other in (
        "",
        "~~~",
        f"ops2~{ends_at}~{random}~{mac}",
        f"{name}~{int(ends_at) + 1}~{random}~{mac}",
        f"{name}~{ends_at}~{random}x~{mac}",
        f"{name}~{ends_at}~{random}~{mac[:-1]}",
        f"{name}~{ends_at}~{random}~ü",
        f"{name}~٣~{random}~{mac}",
        f"{name}~inf~{random}~{mac}",
        f"{name}~{'9' * 5000}~{random}~{mac}",
    ):
        assert None is sessions.name_of(other)
    assert 43 <= len(random)  # 256 bits


def test_the_key_that_signed_in_must_stay() -> None:
    """The old one of a name's two keys ends its own sessions, and no others."""
    old = "sk-vb-old-0123456789"
    both = AdminKeyConfig("ops", hashed(ADMIN), hashed(old))
    keys = [both]
    sessions = Sessions(SECRET, lambda: keys, Clock())
    _, by_new = sessions.begin(ADMIN, 10) or ("", "")
    _, by_old = sessions.begin(old, 10) or ("", "")
    assert by_new and by_old
    keys[:] = [evolve(both, old_sha256=None)]
    assert ("ops", None) == (sessions.name_of(by_new), sessions.name_of(by_old))
    keys[:] = [evolve(both, name="other")]
    assert None is sessions.name_of(by_new)


def test_form_tokens_belong_to_their_session() -> None:
    """And can't be had from the session's own token without the secret."""
    sessions = Sessions(SECRET, lambda: ADMIN_KEYS, Clock())
    assert sessions.is_form_token(sessions.form_token("a"), "a")
    assert not sessions.is_form_token(sessions.form_token("a"), "b")
    assert sessions.form_token("") != Sessions(b"o" * 32, lambda: ADMIN_KEYS).form_token("")


# --- lives ----------------------------------------------------------------------------------------


class Running:
    """As much of a relay as lives look at."""

    def __init__(self, name: str) -> None:
        self.session: Any = self
        self.request = make_request(completion_id=name)
        self.transcript: Any = self
        self.chunk_count = 0
        self.client_left_at: float | None = None


def test_gaps_and_absences_are_seen() -> None:
    """A gap ends with the next chunk; waiting for the first is none; a reader may come back."""
    clock = Clock()
    lives, one = Lives(clock), Running("a")

    def look(chunks: int, left_at: float | None = None) -> None:
        clock.now += 1
        one.chunk_count, one.client_left_at = chunks, left_at
        lives.look([one])  # type: ignore[list-item]  # a double

    for chunks in (0, 0, 0, 0, 1, 2, 2, 2, 2, 3):
        look(chunks)
    look(4, 1010.5)
    look(5, 1010.5)
    look(6)
    look(7, 1013.5)
    life = lives.of("a")
    assert life is not None
    assert [(1006.0, 1010.0)] == life["gaps"]
    assert [(1010.5, 1013.0), (1013.5, None)] == life["absences"]


def test_attempts_and_the_last_failure_are_kept() -> None:
    """In their order; of each agent what it failed with last."""
    clock = Clock()
    lives, request = Lives(clock), make_request(completion_id="a", model="m")
    lives.tried(request, Attempt("one", 1, 0.5, Failure("connect_timeout", "Why.")))
    clock.now += 2
    lives.tried(request, Attempt("two", 1, 1.5))
    lives.saved("a")
    lives.saved("another's")
    life = lives.of("a")
    assert life is not None
    assert [("one", 999.5, "connect_timeout"), ("two", 1000.5, None)] == [
        (tried["agent"], tried["began_at"], tried["error"]) for tried in life["attempts"]
    ]
    assert 1002.0 == life["saved_at"]
    assert {"one"} == set(lives.failures)


def test_lives_are_bounded() -> None:
    """The oldest go."""
    lives = Lives(Clock())
    for number in range(MOST_LIVES + 5):
        lives.tried(make_request(completion_id=str(number)), Attempt("one", 1, 0.1))
    assert None is lives.of("4")
    assert lives.of("5") and lives.of(str(MOST_LIVES + 4))


# --- pictures -------------------------------------------------------------------------------------

ASKED = Asked(100.0, 102.0, 110.0, None, "completed", None, "demo")


def test_a_life_is_laid_out_along_its_axis() -> None:
    """Spans lie where their times are, and touch."""
    line = timeline_of(ASKED, None, 110.0)
    kinds = {span.kind: (span.x, span.width) for span in line.states}
    assert {"pending": (0.0, 200.0), "streaming": (200.0, 800.0)}.items() <= kinds.items()
    assert WIDTH == sum(kinds["completed"])
    assert [0.0, 2.5, 5.0, 7.5, 10.0] == line.ticks
    assert [(0.0, "asked of demo"), (2.0, "first token"), (10.0, "completed")] == line.moments


def test_a_model_that_is_asked_again_with_results_is_no_retry() -> None:
    """Its later requests are named for their turns."""
    attempts = [
        {"agent": "a", "began_at": 100.0 + number, "seconds": 0.5, "error": error}
        for number, error in enumerate(("upstream_error", None, None))
    ]
    life = {"attempts": attempts, "gaps": [], "absences": [], "saved_at": None}
    told = [word for _, word in timeline_of(ASKED, life, 110.0).moments if " at a " in word]
    expected = ("attempt 1 at a failed: upstream_error", "attempt 2 at a answered")
    assert [*expected, "turn 2 at a answered"] == told


def test_a_life_with_everything() -> None:
    """Attempts, gaps, absences and the save, each in its lane and in words."""
    life = {
        "attempts": [
            {"agent": "a", "began_at": 100.0, "seconds": 1.0, "error": "connect_timeout"},
            {"agent": "b", "began_at": 101.0, "seconds": 1.0, "error": None},
        ],
        "gaps": [(104.0, 107.0)],
        "absences": [(105.0, 106.0), (109.0, None)],
        "saved_at": 112.0,
    }
    line = timeline_of(evolve(ASKED, state="failed", error="idle_timeout"), life, 110.0)
    assert ["failed", "completed"] == [span.kind for span in line.attempts]
    kinds = [span.kind for span in line.readers]
    assert ["reading", "away", "reading", "away"] == kinds
    assert 12.0 == line.seconds
    assert [
        "asked of demo",
        "attempt 1 at a failed: connect_timeout",
        "first token",
        "attempt 2 at b answered",
        "nothing came for 3 s",
        "the last reader left",
        "a reader came back",
        "the last reader left",
        "failed: idle_timeout",
        "saved",
    ] == [word for _, word in line.moments]


@pytest.mark.parametrize(
    "asked",
    [
        evolve(ASKED, first_token_at=None),
        evolve(ASKED, ended_at=100.0, first_token_at=None),
        evolve(ASKED, ended_at=None),
        evolve(ASKED, client_left_at=50.0),
        evolve(ASKED, first_token_at=500.0),
        evolve(ASKED, client_left_at=500.0),
    ],
)
def test_nothing_is_drawn_outside(asked: Asked) -> None:
    """Whatever the times are."""
    line = timeline_of(asked, None, 108.0)
    for span in (*line.states, *line.attempts, *line.readers):
        assert 0 <= span.x and span.x + span.width <= WIDTH + 0.2 and span.width > 0


# --- trees ----------------------------------------------------------------------------------------


def node(name: str, parent: str | None, at: float) -> ThreadNode:
    message = StoredMessage(
        name, "conv", None, None, "user", name, None, "complete", name, parent, at
    )
    return ThreadNode(name, parent, message, None)


def test_a_chain_is_not_indented_and_branches_are() -> None:
    """In the order in which they follow each other, whatever order they come in."""
    nodes = [
        node("d", "c", 4),
        node("c", "a", 3),
        node("b", "a", 2),
        node("a", None, 1),
        node("e", "b", 5),
    ]
    assert [
        ("a", 0, None),
        ("b", 1, "1 of 2"),
        ("e", 1, None),
        ("c", 1, "2 of 2"),
        ("d", 1, None),
    ] == [(line.node.node_id, line.depth, line.branch) for line in lines_of(nodes)]


def test_what_follows_a_node_of_another_page_begins_one() -> None:
    """Its page has no other place for it; and a chain of any length is no problem."""
    nodes = [node(str(n), str(n - 1), n) for n in range(5, 5000)]
    assert [0] * 4995 == [line.depth for line in lines_of(nodes)]


def test_figures_are_written_as_people_read_them() -> None:
    """Spans and sizes."""
    values = (None, 0.0, 0.123, 9.994, 9.996, 59.99, 61, 3599, 7260)
    assert [
        "–",
        "0.00 s",
        "0.12 s",
        "9.99 s",
        "10.0 s",
        "60.0 s",
        "1 min 1 s",
        "59 min 59 s",
        "2 h 1 min",
    ] == [seconds(value) for value in values]
    assert ["0 bytes", "1.5 KB", "1.0 GB"] == [size(0), size(1536), size(2**30)]


def test_json_is_written_whatever_is_in_it() -> None:
    """Without logprobs, which are many times the text; half a character and huge numbers are no harm."""
    choice = {"index": 0, "logprobs": {"content": [{"token": "sesame"}]}}
    text = completion_text({"id": "a", "choices": [choice]})
    assert "sesame" not in text and "left out here" in text
    assert {"content": [{"token": "sesame"}]} == choice["logprobs"]
    assert "\ud800" in json_text({"a": "\ud800", "n": 2**70})
    assert '{"a": "\\ud800"}' == compact_text({"a": "\ud800"})
    assert json_text("x" * 300_000).endswith("characters more")
