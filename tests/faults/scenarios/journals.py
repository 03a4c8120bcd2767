"""The journal's own disk fails: torn, flipped, full, gone."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.faults import damage
from tests.faults.plans import COMPLETED, DIED, Plan
from tests.faults.scenario import scenario
from tests.faults.service import Service
from tests.faults.stage import Stage

STREAMS = 30
_FULL = frozenset(("journal_full",))


async def _damaged(stage: Stage, fault: str, hurt: Callable[[list[Plan]], None]) -> None:
    """Streams whose words are in the journal alone; a kill; the damage; a successor."""
    await stage.harm(stage.database.stop)
    service = await stage.serve()
    plans = [
        stage.plan(
            f"journal: {fault}",
            "found by the successor",
            expected=frozenset((COMPLETED, DIED)),
            may_vanish=True,
            words=stage.chance.randint(1, 60),
            choices=stage.chance.choice((1, 1, 2)),
        )
        for _ in range(stage.many(STREAMS))
    ]
    tasks = [stage.start(service, plan) for plan in plans]
    await asyncio.sleep(stage.chance.uniform(0.6, 1.2))
    service.kill()
    await asyncio.gather(*tasks)
    await stage.harm(hurt, plans)
    await stage.harm(stage.database.start)
    await stage.finish(await stage.serve(), plans)


@scenario("journal/torn tail", rounds=2)
async def torn_tail(stage: Stage) -> None:
    """A record cut short by the kill costs nothing."""
    await _damaged(stage, "torn tail", lambda _: damage.tear(stage.journal, stage.chance))


@scenario("journal/truncated", rounds=2)
async def truncated(stage: Stage) -> None:
    """A file cut within its last record costs that record."""
    await _damaged(
        stage, "truncated", lambda plans: damage.truncate(stage.journal, plans, stage.chance)
    )


@scenario("journal/flipped bits", rounds=4)
async def flipped(stage: Stage) -> None:
    """A flipped bit costs the record that it hit, and its completion the name of complete."""
    await _damaged(
        stage, "flipped bits", lambda plans: damage.flip(stage.journal, plans, stage.chance, 12)
    )


# --- full -----------------------------------------------------------------------------------


def _running(stage: Stage, fault: str, moment: str, number: int) -> list[Plan]:
    return [
        stage.plan(f"journal: {fault}", moment, words=60, interval_seconds=0.03)
        for _ in range(number)
    ]


async def _fill(stage: Stage, service: Service, fault: str, padding: int) -> list[Plan]:
    """Large requests until one is refused."""
    plans: list[Plan] = []
    while not plans or plans[-1].seen.code != "journal_full":
        plan = stage.plan(
            f"journal: {fault}",
            "new ones",
            words=3,
            interval_seconds=0.0,
            refusals=_FULL,
            ballast=padding,
        )
        await stage.play(service, [plan])
        plan.seen.read()
        plans.append(plan)
        if len(plans) > 60:
            stage.complain(f"{fault}: never refused")
            break
    return plans


async def _expect_ready(stage: Stage, service: Service, why: str, patience: float) -> None:
    """Without any traffic, since nobody sends some to a service that isn't ready."""
    try:
        async with asyncio.timeout(patience):
            while (await service.get("/readyz"))[0] != 200:
                await asyncio.sleep(0.05)
    except TimeoutError:
        stage.complain(f"{why}: /readyz still says {await service.get('/readyz')}")


@scenario("journal/max_bytes", rounds=1)
async def past_its_size(stage: Stage) -> None:
    """At `max_bytes` new streams are refused, running ones complete, `/readyz` says why, and all
    is well once the database has caught up."""
    await _past_its_size(stage, "max_bytes", 2_000_000, 200_000)


@scenario("journal/max_bytes small", rounds=1)
async def past_its_small_size(stage: Stage) -> None:
    """The same at a size below the one from which idle segments are dropped."""
    await _past_its_size(stage, "max_bytes below 1 MB", 300_000, 20_000)


async def _past_its_size(stage: Stage, fault: str, max_bytes: int, padding: int) -> None:
    await stage.harm(stage.database.stop)
    service = await stage.serve(journal__max_bytes=max_bytes, database__commit_timeout_seconds=0.05)
    running = _running(stage, fault, "running ones", stage.many(6))
    tasks = [stage.start(service, plan, within_seconds=0.05) for plan in running]
    await asyncio.sleep(0.2)
    new = await _fill(stage, service, fault, padding)
    await _expect_journal_reason(stage, service)
    await asyncio.gather(*tasks)
    await stage.harm(stage.database.start)
    await _expect_ready(stage, service, f"{fault}, once the database had caught up", 10)
    later = _running(stage, fault, "afterwards", 3)
    await stage.play(service, later)
    await stage.finish(service, [*running, *new, *later])


async def _fill_until_not_ready(
    stage: Stage, service: Service, fault: str, padding: int
) -> list[Plan]:
    """The same; what is committed meanwhile may make room again after the last refusal, and then
    `/readyz` rightly says so."""
    plans: list[Plan] = []
    for _ in range(3):
        plans += await _fill(stage, service, fault, padding)
        if (await service.get("/readyz"))[0] == 503:
            break
    await _expect_journal_reason(stage, service)
    return plans


async def _expect_journal_reason(stage: Stage, service: Service) -> None:
    status, body = await service.get("/readyz")
    if status != 503 or "journal" not in str(body.get("reasons")):
        stage.complain(f"with a full journal /readyz says {status} {body}")


@contextmanager
def _small_disk(stage: Stage) -> Iterator[str | None]:
    """A tmpfs of one megabyte at the journal's directory; else the reason why not."""
    stage.journal.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(stage.journal)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        yield "mounting needs root"
        return
    mounted = subprocess.run(command, capture_output=True, text=True, timeout=10)
    if mounted.returncode != 0:
        yield mounted.stderr.strip()
        return
    try:
        yield None
    finally:
        subprocess.run(["umount", "--lazy", str(stage.journal)], check=True, timeout=10)


@scenario("journal/full disk", rounds=1)
async def full_disk(stage: Stage) -> None:
    """A disk that is full: new streams are refused, running ones complete, and it is ready again
    by itself once there is room."""
    fault = "full disk"
    with _small_disk(stage) as reason:
        if reason is not None:
            stage.table.skipped.append(f"journal/full disk: no small disk to be had: {reason}")
            return
        service = await stage.serve()
        running = _running(stage, fault, "running ones", stage.many(6))
        tasks = [stage.start(service, plan, within_seconds=0.05) for plan in running]
        await asyncio.sleep(0.3)
        filler = stage.journal / "filler"
        await stage.harm(_fill_up, filler)
        new = await _fill_until_not_ready(stage, service, fault, 50_000)
        await asyncio.gather(*tasks)
        await stage.settle(service, be_ready=False)
        new += await _fill(stage, service, fault, 50_000)
        filler.unlink()
        await _expect_ready(stage, service, f"{fault}, once there was room", 5)
        later = _running(stage, fault, "afterwards", 3)
        await stage.play(service, later)
        await stage.finish(service, [*running, *new, *later])
        await stage.close()


def _fill_up(path: "os.PathLike[str]") -> None:
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


@scenario("journal/deleted", rounds=1)
async def deleted(stage: Stage) -> None:
    """Somebody deletes the journal under the running service: what runs is kept all the same."""
    service = await stage.serve()
    running = _running(stage, "directory deleted", "running ones", stage.many(10))
    tasks = [stage.start(service, plan) for plan in running]
    await asyncio.sleep(0.5)
    await stage.harm(shutil.rmtree, stage.journal)
    later = [
        stage.plan("journal: directory deleted", "afterwards", refusals=_FULL) for _ in range(5)
    ]
    await asyncio.gather(*tasks, stage.play(service, later))
    await stage.settle(service, be_ready=False)
    await stage.judge([*running, *later])
    if (status := await service.stop()) != 0:
        stage.complain(f"exit status {status} with its journal deleted")


@scenario("journal/deleted, killed", rounds=1)
async def deleted_and_killed(stage: Stage) -> None:
    """A service whose journal is gone must not take streams that it can't write down."""
    service = await stage.serve()
    await stage.harm(shutil.rmtree, stage.journal)
    await asyncio.sleep(0.5)
    plans = [
        stage.plan(
            "journal: directory deleted + SIGKILL",
            "afterwards",
            expected=frozenset((COMPLETED, DIED)),
            refusals=_FULL,
            may_vanish=True,
            words=50,
        )
        for _ in range(5)
    ]
    tasks = [stage.start(service, plan) for plan in plans]
    await asyncio.sleep(0.6)
    service.kill()
    await asyncio.gather(*tasks)
    await stage.finish(await stage.serve(), plans)
