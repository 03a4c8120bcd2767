"""When a backend counts as down, for how long it is spared, and who tries it again."""

from typing import Any

import pytest

from service.agents.circuit import Circuits
from service.agents.directory import askable
from service.edge.errors import ApiError, error_response
from service.settings.config import CircuitConfig
from statemachine import Failure
from tests.service.agents.conftest import scripted

REFUSED = Failure("upstream_unreachable", "No.")
TIMED_OUT = Failure("connect_timeout", "No.")


def status(number: int) -> Failure:
    return Failure("upstream_error", "No.", status=number)


class Clock:
    """Monotonic seconds that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr("random.random", lambda: 0.0)
    return Clock()


def circuits(clock: Clock, **fields: Any) -> Circuits:
    defaults: dict[str, Any] = {"failures": 3, "pause_seconds": 1.0, "longest_pause_seconds": 5.0}
    return Circuits("a", CircuitConfig(**{**defaults, **fields}), 60.0, clock)


def fail(tested: Circuits, failure: Failure, times: int = 1, model: str = "m") -> None:
    for _ in range(times):
        is_trial = tested.begin(model)
        tested.failed(model, failure, is_trial=is_trial)


def test_failures_in_a_row_open_it(clock: Clock) -> None:
    """Not one less, and an answer in between starts the count anew."""
    tested = circuits(clock)
    for failure in (REFUSED, TIMED_OUT):
        fail(tested, failure, 2)
        assert 0.0 == tested.wait_seconds("m")
        tested.succeeded("m")
    fail(tested, REFUSED, 2)
    assert 0.0 == tested.wait_seconds("m")
    fail(tested, TIMED_OUT)
    assert 1.0 == tested.wait_seconds("m") == tested.wait_seconds("other")


@pytest.mark.parametrize("number", [502, 503, 504, 521, 522, 523, 530])
def test_a_status_that_says_down_is_about_its_model(clock: Clock, number: int) -> None:
    """Who asks for another model isn't shut out by it."""
    tested = circuits(clock)
    fail(tested, status(number), 3)
    assert (1.0, 0.0) == (tested.wait_seconds("m"), tested.wait_seconds("other"))


@pytest.mark.parametrize("number", [400, 401, 402, 404, 408, 409, 413, 422, 429, 500, 501, 529])
def test_any_other_status_says_that_the_backend_is_there(clock: Clock, number: int) -> None:
    """One caller's fault, or limit, is no reason to spare the backend."""
    tested = circuits(clock)
    fail(tested, REFUSED, 2)
    fail(tested, status(503), 2)
    fail(tested, status(number), 9)
    fail(tested, REFUSED, 2)
    fail(tested, status(503), 2)
    assert 0.0 == tested.wait_seconds("m")


@pytest.mark.parametrize("code", ["first_token_timeout", "upstream_incomplete"])
def test_what_may_be_the_models_slowness_says_nothing(clock: Clock, code: str) -> None:
    """It neither opens nor closes; a trial that ends so wasn't answered."""
    tested = circuits(clock)
    fail(tested, Failure(code, "No."), 9)
    assert 0.0 == tested.wait_seconds("m")
    fail(tested, status(503), 2)
    fail(tested, Failure(code, "No."))
    fail(tested, status(503))
    assert 1.0 == tested.wait_seconds("m")
    clock.now += 1
    fail(tested, Failure(code, "No."))
    assert 2.0 == tested.wait_seconds("m")


def test_pauses_grow_up_to_their_longest(clock: Clock) -> None:
    """Each trial that fails doubles the next pause."""
    tested = circuits(clock)
    fail(tested, REFUSED, 3)
    found = []
    for _ in range(5):
        found.append(tested.wait_seconds("m"))
        clock.now += found[-1]
        assert 0.0 == tested.wait_seconds("m")
        fail(tested, REFUSED)
    assert [1.0, 2.0, 4.0, 5.0, 5.0] == found


def test_one_request_at_a_time_is_the_trial(clock: Clock) -> None:
    """Until it is known what became of it nobody else goes; for ever if need be it isn't."""
    tested = circuits(clock)
    fail(tested, REFUSED, 3)
    clock.now += 1
    assert tested.begin("m")
    assert 60.0 == tested.wait_seconds("m") == tested.wait_seconds("other")
    clock.now += 60
    assert 0.0 == tested.wait_seconds("m")


def test_a_trial_that_is_given_up_leaves_its_turn(clock: Clock) -> None:
    """Its client left before anything was known."""
    tested = circuits(clock)
    fail(tested, REFUSED, 3)
    clock.now += 1
    tested.begin("m")
    tested.abandoned("m")
    assert 0.0 == tested.wait_seconds("m")


@pytest.mark.parametrize("failure", [None, status(429), status(400)])
def test_a_trial_that_is_answered_closes_it(clock: Clock, failure: Failure | None) -> None:
    """Whatever the answer; and the next failures are counted from the first."""
    tested = circuits(clock)
    fail(tested, REFUSED, 3)
    clock.now += 1
    is_trial = tested.begin("m")
    if failure is None:
        tested.succeeded("m")
    else:
        tested.failed("m", failure, is_trial=is_trial)
    assert 0.0 == tested.wait_seconds("m")
    fail(tested, REFUSED, 2)
    assert 0.0 == tested.wait_seconds("m")


def test_stragglers_dont_lengthen_a_pause(clock: Clock) -> None:
    """Requests that began before it opened say nothing new."""
    tested = circuits(clock)
    for _ in range(9):
        tested.failed("m", REFUSED, is_trial=False)
    assert 1.0 == tested.wait_seconds("m")
    tested.succeeded("m")
    assert 0.0 == tested.wait_seconds("m")


def test_null_never_opens(clock: Clock) -> None:
    """Then the backend is asked for every request."""
    tested = Circuits("a", None, 60.0, clock)
    fail(tested, REFUSED, 99)
    assert 0.0 == tested.wait_seconds("m")
    assert not tested.begin("m")


def test_models_without_end_take_no_memory_without_end(clock: Clock) -> None:
    """Clients may name any."""
    tested = circuits(clock)
    for number in range(3000):
        fail(tested, status(503), model=f"m{number}")
    assert len(tested._circuits) <= 1000


def test_it_is_logged_once_that_it_opened_and_closed(clock: Clock, log_lines: Any) -> None:
    """With who, why and for how long."""
    tested = circuits(clock)
    fail(tested, REFUSED, 3)
    for _ in range(3):
        clock.now += tested.wait_seconds("m")
        fail(tested, REFUSED)
    fail(tested, status(503), 3, model="x")
    clock.now += 9
    tested.succeeded("m")
    found = [(line["event"], line["log_level"], line["agent"], line["model"]) for line in log_lines]
    assert [
        ("circuit opened", "warning", "a", None),
        ("circuit closed", "info", "a", None),
        ("circuit opened", "warning", "a", "x"),
    ] == found
    assert ("upstream_unreachable", 3) == (log_lines[0]["cause"], log_lines[0]["failures"])
    assert "503" == log_lines[2]["cause"]


def test_its_state_is_for_operators(clock: Clock) -> None:
    """Models are counted, not named: clients name them."""
    tested = circuits(clock)
    closed = {"agent": "a", "circuit": "closed", "models_paused": 0}
    assert closed == tested.state()
    fail(tested, REFUSED, 2)
    assert closed == tested.state()
    fail(tested, status(503), 3, model="x")
    assert {**closed, "models_paused": 1} == tested.state()
    fail(tested, REFUSED, 3)
    shown = {"cause": "upstream_unreachable", "models_paused": 1}
    assert {**closed, "circuit": "open", **shown, "next_trial_in_seconds": 1} == tested.state()
    clock.now += 1
    assert {**closed, "circuit": "half-open", **shown, "next_trial_in_seconds": 0} == tested.state()


def test_the_first_that_may_be_asked_is(clock: Clock) -> None:
    """Those after it are its fallbacks; if none may be, it is said when to come back."""
    agents = tuple(scripted(name=name) for name in "abc")
    assert agents == askable(agents, "m")
    for index, agent in enumerate(agents):
        agent.circuits = circuits(clock, pause_seconds=index + 1.5)
        fail(agent.circuits, REFUSED, 3)
        if index < 2:
            assert agents[index + 1 :] == askable(agents, "m")
    with pytest.raises(ApiError) as caught:
        askable(agents, "m")
    response = error_response(caught.value.failure)
    assert (503, "2", "true") == (
        response.status,
        response.headers["Retry-After"],
        response.headers["x-should-retry"],
    )
