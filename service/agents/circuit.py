"""Spares a backend that is known to be down: it isn't asked for every request.

One `Circuit` for the backend as a whole, which failed connections count for, and one for each model
that it answers 502, 503 or 504 for, so that one model's trouble is no other's. The rules:

1. Closed: everything goes. So many failures in a row open it; whatever else the backend answers
   (also a 429 or a 400) starts the count anew.
2. Open: nothing goes for a pause, which doubles each time up to its longest, with jitter.
3. Then one request goes as a trial, while others wait. An answer closes the circuit, anything else
   opens it again.

Never here: who is asked instead, and what clients are told.
"""

import math
import random
import time
from collections.abc import Callable, Iterator

import structlog
from attrs import define

from service.settings.config import CircuitConfig
from statemachine import Failure
from statemachine.backoff import backoff

log = structlog.get_logger(__name__)

_NO_CONNECTION = frozenset(("upstream_unreachable", "connect_timeout"))
_DOWN_STATUSES = frozenset((502, 503, 504, 521, 522, 523, 530))
"""The last four are Cloudflare's, of an origin that it doesn't reach."""
_NO_VERDICT = frozenset(("first_token_timeout", "upstream_incomplete"))
_MOST_MODELS = 1000
WHOLE_BACKEND = ""


@define
class Circuit:
    """One that has seen a failure. Times are those of the clock in `Circuits`."""

    failures: int = 0
    cause: str = ""
    opened_at: float | None = None
    """None: it is closed."""
    next_trial_at: float = 0.0
    trial_ends_at: float = 0.0
    """Until then a trial that nobody has reported on may be under way; 0: none is."""
    pauses: Iterator[float] | None = None

    def wait_seconds(self, now: float) -> float:
        """How long until a request may go; 0: at once."""
        if self.opened_at is None:
            return 0.0
        return max(self.next_trial_at, self.trial_ends_at) - now


class Circuits:
    """Those of one agent.

    Args:
        agent: its name, for the log.
        config: when they open, and for how long; None: never.
        trial_seconds: how long a trial may take at most.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        agent: str,
        config: CircuitConfig | None = None,
        trial_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._agent = agent
        self._config = config
        self._trial_seconds = trial_seconds
        self._clock = clock
        self._circuits: dict[str, Circuit] = {}  # empty nearly always

    def wait_seconds(self, model: str) -> float:
        """How long no request for this model may go, in seconds; 0: it may at once."""
        if not self._circuits:
            return 0.0
        now = self._clock()
        return max([0.0, *(circuit.wait_seconds(now) for circuit in self._of(model))])

    def begin(self, model: str) -> bool:
        """A request goes, as it may. True if it is a trial: what becomes of it must be told
        (`succeeded`, `failed`, `abandoned`)."""
        if not self._circuits:
            return False
        is_trial = False
        for circuit in self._of(model):
            if circuit.opened_at is not None:
                is_trial = True
                circuit.trial_ends_at = self._clock() + self._trial_seconds
        return is_trial

    def succeeded(self, model: str) -> None:
        """The backend has answered."""
        if self._circuits:
            self._close(WHOLE_BACKEND)
            self._close(model)

    def failed(self, model: str, failure: Failure, *, is_trial: bool) -> None:
        """An attempt has failed; whether that says anything of the backend is decided here."""
        if self._config is None:
            return
        if failure.code in _NO_CONNECTION:
            self._count(WHOLE_BACKEND, failure, is_trial=is_trial)
        elif failure.status in _DOWN_STATUSES:
            self._close(WHOLE_BACKEND)
            self._count(model, failure, is_trial=is_trial)
        elif failure.code not in _NO_VERDICT:
            self.succeeded(model)
        elif is_trial:
            for name in (WHOLE_BACKEND, model):
                if name in self._circuits:
                    self._count(name, failure, is_trial=True)

    def abandoned(self, model: str) -> None:
        """A trial was given up before it showed anything; the next request is one."""
        for circuit in self._of(model):
            circuit.trial_ends_at = 0.0

    def state(self) -> dict[str, object]:
        """Their state, for operators: `closed`, `open` or `half-open`, and why."""
        now = self._clock()
        whole = self._circuits.get(WHOLE_BACKEND)
        paused = [circuit for circuit in self._circuits.values() if circuit.opened_at is not None]
        shown = whole if whole in paused else None
        state = {"agent": self._agent, "circuit": "closed", "models_paused": len(paused)}
        if shown is None:
            return state
        wait = shown.wait_seconds(now)
        return {
            **state,
            "circuit": "open" if wait > 0 else "half-open",
            "models_paused": len(paused) - 1,
            "cause": shown.cause,
            "next_trial_in_seconds": math.ceil(max(0.0, wait)),
        }

    def _of(self, model: str) -> list[Circuit]:
        names = (WHOLE_BACKEND, model)
        return [self._circuits[name] for name in names if name in self._circuits]

    def _count(self, name: str, failure: Failure, *, is_trial: bool) -> None:
        config = self._config
        assert config is not None
        circuit = self._circuits.get(name)
        if circuit is None:
            if len(self._circuits) >= _MOST_MODELS:
                del self._circuits[next(iter(self._circuits))]
            circuit = self._circuits[name] = Circuit()
        circuit.failures += 1
        circuit.cause = str(failure.status or failure.code)
        if circuit.opened_at is not None:
            if is_trial:
                self._pause(circuit)
        elif circuit.failures >= config.failures:
            circuit.opened_at = self._clock()
            circuit.pauses = backoff(
                config.pause_seconds, config.longest_pause_seconds, random.random
            )
            seconds = self._pause(circuit)
            log.warning(
                "circuit opened",
                **self._named(name),
                cause=circuit.cause,
                failures=circuit.failures,
                pause_seconds=round(seconds, 1),
            )

    def _pause(self, circuit: Circuit) -> float:
        assert circuit.pauses is not None
        seconds = next(circuit.pauses)
        circuit.next_trial_at = self._clock() + seconds
        circuit.trial_ends_at = 0.0
        return seconds

    def _close(self, name: str) -> None:
        circuit = self._circuits.pop(name, None)
        if circuit is not None and circuit.opened_at is not None:
            seconds = self._clock() - circuit.opened_at
            log.info("circuit closed", **self._named(name), after_seconds=round(seconds, 1))

    def _named(self, name: str) -> dict[str, str | None]:
        return {"agent": self._agent, "model": name or None}
