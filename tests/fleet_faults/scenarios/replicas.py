"""A replica is killed, and comes back or doesn't; is stopped for longer than its lease and let go; whoever
adopts a dead one's answers is killed, too."""

import asyncio
import json

import redis

from db.fleet.keys import REPLICAS
from tests.faults.plans import DIED, Outcome, failed
from tests.fleet_faults.run import scenario
from tests.fleet_faults.stage import LEASE_SECONDS, Stage

NAMES = ("a", "b", "c")
STREAMS = 6
"""At each replica."""
FENCED = Outcome("failed", "adopted_elsewhere")
"""The end of what its own replica had to give up."""
LATE = failed("connect_timeout", "first_token_timeout", "idle_timeout")
"""What a process that was stopped finds when it is let go."""
AFTER_A_DEATH = frozenset(("answer_unavailable", "idempotency_pending"))
"""What clients may be told until a dead replica's answers are adopted."""


@scenario("replica/nothing happens", modes=("off", "follow", "before_send"))
async def calm(stage: Stage) -> None:
    """Without a fault nobody is told anything but the answer."""
    await stage.raise_replicas(*NAMES)
    for name in NAMES:
        for _ in range(stage.many(STREAMS)):
            stage.play(stage.stream("nothing happens", name))
    await stage.finish()


@scenario("replica/killed, stays away")
async def killed_for_good(stage: Stage) -> None:
    """SIGKILL, and the machine never comes back."""
    await _killed(stage, "replica: SIGKILL, stays away", comes_back=False)


@scenario("replica/killed, comes back", modes=("follow", "before_send", "off"))
async def killed_and_back(stage: Stage) -> None:
    """SIGKILL, and the machine comes back with its journal, before or after it was adopted."""
    await _killed(stage, "replica: SIGKILL, comes back", comes_back=True)


@scenario("replica/killed on a cluster", engine="cluster")
async def killed_on_a_cluster(stage: Stage) -> None:
    """The first of these on a Redis Cluster of three nodes."""
    await _killed(stage, "replica: SIGKILL, on a cluster", comes_back=False)


async def _killed(stage: Stage, fault: str, *, comes_back: bool) -> None:
    await stage.raise_replicas(*NAMES)
    victim = stage.chance.choice(NAMES)
    play_on_all(stage, fault, victim, dies=not comes_back)
    await stage.begun()
    stage.replicas[victim].kill(for_good=not comes_back)
    if comes_back:
        await asyncio.sleep(stage.chance.uniform(0, 3 * LEASE_SECONDS))
        await stage.replicas[victim].start()
    await stage.finish()


def play_on_all(stage: Stage, fault: str, victim: str, *, dies: bool = False) -> None:
    """Streams at each replica. Those of the victim may end as it does; the others may not."""
    for name in stage.replicas:
        for _ in range(stage.many(STREAMS)):
            is_hit = name == victim
            stream = stage.stream(
                fault,
                name,
                also=(DIED,) if is_hit else (),
                due=AFTER_A_DEATH if is_hit else (),
                dies=dies and is_hit,
            )
            stage.play(stream)


@scenario("replica/stopped and let go")
async def stopped(stage: Stage) -> None:
    """SIGSTOP for longer than a lease: others adopt what it runs, and it finds that out."""
    await stage.raise_replicas(*NAMES)
    victim = stage.chance.choice(NAMES)
    for name in NAMES:
        for _ in range(stage.many(STREAMS)):
            is_hit = name == victim
            stream = stage.stream(
                "replica: SIGSTOP, let go",
                name,
                also=(DIED, FENCED, *LATE) if is_hit else (),
                due=AFTER_A_DEATH if is_hit else (),
            )
            stage.play(stream)
    await stage.begun()
    stage.replicas[victim].freeze()
    await asyncio.sleep(stage.chance.uniform(2, 3) * LEASE_SECONDS)
    stage.replicas[victim].thaw()
    await stage.finish()


@scenario("replica/adopter killed")
async def adopter_killed(stage: Stage) -> None:
    """A replica is killed, and then whoever brings its answers to an end, while it does: the third ends
    them all."""
    await stage.raise_replicas(*NAMES)
    victim = stage.chance.choice(NAMES)
    for name in NAMES:
        for _ in range(stage.many(3 * STREAMS if name == victim else STREAMS)):
            # Whichever of the others adopts dies as well.
            stream = stage.stream(
                "replica: SIGKILL, and the adopter",
                name,
                also=(DIED,),
                due=AFTER_A_DEATH,
                dies=True,
            )
            stage.play(stream)
    await stage.begun()
    stage.replicas[victim].kill(for_good=True)
    adopter = await _adopter(stage, victim)
    if adopter is None:
        stage.complain("nobody adopted what a dead replica had left")
    else:
        await asyncio.sleep(stage.chance.uniform(0, 0.05))
        stage.replicas[adopter].kill(for_good=True)
    await stage.finish()


async def _adopter(stage: Stage, victim: str) -> str | None:
    """Who has taken over what a replica left; None if nobody has in time."""
    names = _names_of_tokens(stage)
    for _ in range(round(100 * (2 * LEASE_SECONDS + 5))):
        found = await asyncio.to_thread(stage.engine.keys, "verbatim:*:adopt:*")
        for token in filter(None, found.values()):
            name = names.get(token.decode())
            if name is not None and name != victim:
                return name
        await asyncio.sleep(0.01)
    return None


def _names_of_tokens(stage: Stage) -> dict[str, str]:
    with redis.Redis(port=stage.engine.servers[0].port) as client:
        told = client.hgetall(REPLICAS)
    return {token.decode(): json.loads(value)["name"] for token, value in told.items()}
