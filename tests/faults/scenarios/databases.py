"""PostgreSQL stops, dies, freezes, refuses or forgets, before, during and at the end of streams;
alone, and together with a SIGKILL of the service before the database is back.

Streaming must not notice: every stream of a service that lives ends with `[DONE]`.
"""

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from tests.faults.database import Database
from tests.faults.plans import COMPLETED, DIED, Plan
from tests.faults.proxy import Proxy, Weather
from tests.faults.scenario import scenario
from tests.faults.stage import Stage

STREAMS = 15
WORDS, INTERVAL_SECONDS = 40, 0.02
SLACK_SECONDS = 1.5
"""For the start, `commit_timeout_seconds` and a busy machine; a held-up stream takes longer."""
BEFORE, MID, END = "before the start", "mid-stream", "at the end"

Trouble = Callable[[Database], Iterator[None]]


def stopped(database: Database) -> Iterator[None]:
    database.stop()
    yield
    database.start()


def crashed(database: Database) -> Iterator[None]:
    database.crash()
    yield
    database.start()


def restarted(database: Database) -> Iterator[None]:
    database.restart()
    yield


def frozen(database: Database) -> Iterator[None]:
    database.freeze()
    yield
    database.thaw()


def read_only(database: Database) -> Iterator[None]:
    database.set_read_only(True)
    yield
    database.set_read_only(False)


def crowded(database: Database) -> Iterator[None]:
    with database.crowded():
        yield


def terminated(database: Database) -> Iterator[None]:
    database.terminate_backends()
    yield
    database.terminate_backends()


def full_disk(database: Database) -> Iterator[None]:
    with database.full_disk():
        yield


TROUBLES: tuple[tuple[str, Trouble], ...] = (
    ("stopped", stopped),
    ("crashed", crashed),
    ("restarted", restarted),
    ("frozen", frozen),
    ("read-only", read_only),
    ("out of connections", crowded),
    ("backends terminated", terminated),
    ("disk full", full_disk),
)


def _on_the_list(name: str, trouble: Trouble, moment: str, *, killed: bool) -> None:
    @scenario(f"database/{name}/{moment}{'/killed' if killed else ''}", rounds=1)
    async def play(stage: Stage) -> None:
        if trouble is full_disk and (os.geteuid() != 0 or shutil.which("mount") is None):
            stage.table.skipped.append(f"database/{name}/{moment}: mounting a disk needs root")
            return
        await _play(stage, name, trouble, moment, killed=killed)


for _name, _trouble in TROUBLES:
    for _moment in (MID, END):
        for _killed in (False, True):
            _on_the_list(_name, _trouble, _moment, killed=_killed)
for _name, _trouble in (TROUBLES[0], TROUBLES[3], TROUBLES[4]):
    for _killed in (False, True):
        _on_the_list(_name, _trouble, BEFORE, killed=_killed)


async def _play(stage: Stage, name: str, trouble: Trouble, moment: str, *, killed: bool) -> None:
    with ExitStack() as stack:
        loop = contextmanager(trouble)(stage.database)
        begin = stack.enter_context
        if moment == BEFORE:
            await stage.harm(begin, loop)
        service = await stage.serve()
        plans = _plans(stage, name, moment, killed=killed)
        # Filling a disk takes a while, in which not all of the answers may end.
        spread = 3.0 if trouble is full_disk and moment == END else 0.1
        tasks = [stage.start(service, plan, within_seconds=spread) for plan in plans]
        lasts = WORDS * INTERVAL_SECONDS
        if moment == MID:
            await asyncio.sleep(stage.chance.uniform(0.2, 0.7) * lasts)
            await stage.harm(begin, loop)
        elif moment == END:
            async with asyncio.timeout(20):
                while not any(plan.finished for plan in plans):
                    await asyncio.sleep(0.002)
            await asyncio.sleep(stage.chance.uniform(0, 0.08))
            await stage.harm(begin, loop)
        if killed:
            await asyncio.sleep(stage.chance.uniform(0, lasts))
            service.kill()
        await asyncio.gather(*tasks)
        if trouble is full_disk and not killed:
            await _expect_unsaved(stage, name, moment, plans)
        slowest = max(plan.took_seconds for plan in plans)
        if not killed and slowest > lasts + SLACK_SECONDS:
            stage.complain(f"{name} × {moment}: a stream of {lasts:.1f} s took {slowest:.1f} s")
        before_it_is_back = killed and stage.chance.random() < 0.5
        successor = stage.launch() if before_it_is_back else None
        if successor is not None:
            await asyncio.sleep(stage.chance.uniform(0, 1))
        await stage.harm(stack.close)
    if killed:
        service = await (successor or stage.launch()).ready()
    await stage.finish(service, plans)


async def _expect_unsaved(stage: Stage, name: str, moment: str, plans: list[Plan]) -> None:
    """The trouble was real: not all of these can be there yet."""
    keys = [plan.key for plan in plans]
    query = "SELECT count(*) FROM conversations WHERE client_key = ANY (%s)"
    ((saved,),) = await asyncio.to_thread(stage.database.execute, query, (keys,))
    if saved == len(plans):
        stage.complain(f"{name} × {moment}: everything was saved all the same")


def _plans(stage: Stage, name: str, moment: str, *, killed: bool) -> list[Plan]:
    return [
        stage.plan(
            f"database: {name}{' + SIGKILL' if killed else ''}",
            moment,
            expected=frozenset((COMPLETED, DIED)) if killed else frozenset((COMPLETED,)),
            may_vanish=killed,
            words=WORDS,
            interval_seconds=INTERVAL_SECONDS,
        )
        for _ in range(stage.many(STREAMS))
    ]


@scenario("database/wrong password", rounds=1)
async def wrong_password(stage: Stage) -> None:
    """A wrong password at the start: it serves, says why it isn't ready, and the words wait for a
    start with the right one."""
    user = f"writer_{stage.chance.randrange(10**9)}"
    dsn = await asyncio.to_thread(stage.database.make_user, user, "right")
    service = await stage.serve(database__url=dsn.replace(f"{user}@", f"{user}:wrong@"))
    plans = _plans(stage, "wrong password, then the right one", BEFORE, killed=False)
    await stage.play(service, plans)
    status, body = await service.get("/readyz")
    if status != 503 or "password" not in str(body):
        stage.complain(f"with a wrong password /readyz says {status} {body}")
    service.kill()
    right = dsn.replace(f"{user}@", f"{user}:right@")
    await stage.finish(await stage.serve(database__url=right), plans)


def _proxied(weather: Weather, moment: str, *, killed: bool) -> None:
    @scenario(f"database/{weather.value}/{moment}{'/killed' if killed else ''}", rounds=1)
    async def play(stage: Stage) -> None:
        await _play_weather(stage, weather, moment, killed=killed)


for _weather in (Weather.BLACK_HOLE, Weather.RESET, Weather.COMMITS_LOST):
    for _killed in (False, True):
        _proxied(_weather, END, killed=_killed)


async def _play_weather(stage: Stage, weather: Weather, moment: str, *, killed: bool) -> None:
    proxy = await Proxy(stage.database.sockets).start()
    try:
        service = await stage.serve(database__url=proxy.dsn)
        plans = _plans(stage, weather.value, moment, killed=killed)
        tasks = [stage.start(service, plan, within_seconds=0.3) for plan in plans]
        async with asyncio.timeout(20):
            while not any(plan.told > WORDS // 2 for plan in plans):
                await asyncio.sleep(0.002)
        proxy.weather = weather
        if killed:
            await asyncio.sleep(stage.chance.uniform(0.3, 1.2))
            service.kill()
        await asyncio.gather(*tasks)
        proxy.weather = Weather.FINE
        if killed:
            service = await stage.serve(database__url=proxy.dsn)
        if weather is Weather.COMMITS_LOST and not killed and not proxy.commits_lost:
            stage.complain("no commit's answer was lost")
        await stage.finish(service, plans)
    finally:
        await proxy.stop()
