"""Where a scenario plays: an upstream, a journal's directory, a database, and service processes.

`Ground` is shared by all scenarios of a run and holds what is slow to make; a `Stage` is one
scenario's own. Whatever a scenario started is ended with its stage, also when it fails.
"""

import asyncio
import random
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.faults.client import Client, reads
from tests.faults.database import Database
from tests.faults.oracle import QUERY, judge, rows_from
from tests.faults.plans import Plan
from tests.faults.readers import come_back, follow
from tests.faults.service import Service
from tests.faults.table import Table
from tests.faults.upstream import Upstream

SETTLE_PATIENCE_SECONDS = 25.0

FIRST_TOKEN_SECONDS, IDLE_SECONDS, TOTAL_SECONDS = 10.0, 10.0, 20.0
"""The agents' deadlines: every stall waits for one, and no upstream of ours may seem to stall only
because the machine is busy."""
SEND_TIMEOUT_SECONDS = 1.0
DRAIN_SECONDS = 1.5
WAIT_SECONDS = 1.0
"""For somebody who comes back, under `client_gone: wait`."""


class Ground:
    """What all scenarios share. Streams are numbered through the whole run, so that no two rows
    of its one database can be confused."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.table = Table()
        self.numbers = count(1)
        self.stages = count(1)
        self.database = Database(directory / "postgres")

    def end(self) -> None:
        self.database.end()


@contextmanager
def ground() -> Iterator[Ground]:
    """A ground in a directory of its own, which is removed."""
    with TemporaryDirectory(prefix="faults-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # PostgreSQL's user must get through
        made = Ground(directory)
        try:
            yield made
        finally:
            made.end()


class Stage:
    """One scenario's surroundings.

    Args:
        ground: what is shared.
        chance: the only source of randomness, so that a seed repeats everything we decide.
        scale: how large to be; 1 is the default, less is quicker.
    """

    def __init__(self, ground: Ground, chance: random.Random, scale: float) -> None:
        self.chance = chance
        self.scale = scale
        self.table = ground.table
        self.database = ground.database
        self.upstream = Upstream()
        self.directory = ground.directory / f"stage-{next(ground.stages)}"
        self.directory.mkdir()
        self.journal = self.directory / "journal"
        self._ground = ground
        self._services: list[Service] = []

    def many(self, number: int, least: int = 1) -> int:
        """So many, scaled."""
        return max(least, round(number * self.scale))

    # --- the service ------------------------------------------------------------------------

    def config(
        self,
        *,
        first_token_seconds: float = FIRST_TOKEN_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
        **fields: Any,
    ) -> dict[str, Any]:
        """A configuration; `fields` are `section__key=value`."""
        agent = {
            "kind": "openai",
            "base_url": self.upstream.base_url,
            "api_key_env": None,
            "retries": 0,
            "circuit": None,  # what breaks for one stream is no reason to spare the others
            "timeouts": {
                "connect_seconds": 2,
                "first_token_seconds": first_token_seconds,
                "idle_seconds": idle_seconds,
                "total_seconds": TOTAL_SECONDS,
            },
        }
        config: dict[str, Any] = {
            "server": {"drain_timeout_seconds": DRAIN_SECONDS},
            "sse": {
                "keep_alive_interval_seconds": 0.25,
                "send_timeout_seconds": SEND_TIMEOUT_SECONDS,
            },
            "database": {
                "url": self.database.dsn,
                "pool_max_size": 4,
                "commit_timeout_seconds": 0.5,
            },
            "journal": {"directory": str(self.journal)},
            "agents": [
                {**agent, "name": "cancel", "client_gone": "cancel", "models": ["cancel"]},
                {**agent, "name": "wait", "client_gone": "wait", "models": ["wait"]},
                {**agent, "name": "finish", "client_gone": "finish", "models": ["finish"]},
            ],
            "client_gone_wait_seconds": WAIT_SECONDS,
        }
        for name, value in fields.items():
            section, _, key = name.partition("__")
            if key:
                config[section][key] = value
            else:
                config[section] = value
        return config

    def launch(self, **fields: Any) -> Service:
        """A service that is just starting."""
        service = Service.launch(self.directory, len(self._services), self.config(**fields))
        self._services.append(service)
        return service

    async def serve(self, **fields: Any) -> Service:
        """A service that serves, on this stage's journal."""
        return await self.launch(**fields).ready()

    # --- streams ----------------------------------------------------------------------------

    def plan(self, fault: str, moment: str, **fields: Any) -> Plan:
        plan = Plan(number=next(self._ground.numbers), fault=fault, moment=moment, **fields)
        self.upstream.add(plan)
        return plan

    def start(
        self, service: Service, plan: Plan, client: Client = reads, *, within_seconds: float = 0.2
    ) -> "asyncio.Task[None]":
        """Let a client ask, some time from now."""
        return asyncio.create_task(self._start_later(service, plan, client, within_seconds))

    async def _start_later(
        self, service: Service, plan: Plan, client: Client, within_seconds: float
    ) -> None:
        await asyncio.sleep(self.chance.uniform(0, within_seconds))
        asking = asyncio.create_task(self._timed(service, plan, client))
        if plan.is_followed and plan.stream:
            await follow(service.port, plan, asking)
        await asking

    async def _timed(self, service: Service, plan: Plan, client: Client) -> None:
        started = time.monotonic()
        await client(service.port, plan)
        plan.took_seconds = time.monotonic() - started

    async def play(self, service: Service, plans: Sequence[Plan], client: Client = reads) -> None:
        """Let clients read all of these to their ends."""
        await asyncio.gather(*(self.start(service, plan, client) for plan in plans))

    async def harm(self, act: Callable[..., object], *arguments: Any) -> None:
        """Do something that blocks, to the database mostly, while streams go on."""
        await asyncio.to_thread(act, *arguments)

    # --- the end ----------------------------------------------------------------------------

    async def settle(
        self,
        service: Service,
        *,
        be_ready: bool = True,
        patience_seconds: float = SETTLE_PATIENCE_SECONDS,
    ) -> None:
        """Wait until the service is ready, has nothing left to save, and all journals of dead
        processes are gone."""
        why = "it never answered"
        try:
            async with asyncio.timeout(patience_seconds):
                while why:
                    why = await self._unsettled(service, be_ready)
                    await asyncio.sleep(0.05)
        except TimeoutError:
            self.complain(f"not settled after {patience_seconds:g} s: {why}")

    async def _unsettled(self, service: Service, be_ready: bool) -> str:
        status, body = await service.get("/readyz")
        if status == 0 or (status != 200 and be_ready):
            return f"/readyz says {status} {body.get('reasons')}"
        if body["streams"] or body["unsaved"]:
            return f"{body['streams']} streams, {body['unsaved']} unsaved"
        if (left := len(self.journals())) > 1:
            return f"{left} journals"
        return ""

    def journals(self) -> list[Path]:
        """The journals of processes, dead or alive; not those kept because they are damaged."""
        if not self.journal.exists():
            return []
        return [
            path
            for path in self.journal.iterdir()
            if (path / "lock").exists() and not path.name.startswith("damaged")
        ]

    async def judge(self, plans: Sequence[Plan]) -> None:
        """Compare these with the database, and count them in the table."""
        for plan in plans:
            plan.seen.read()
        keys = [plan.key for plan in plans]
        ids = [plan.seen.completion_id or plan.completion_id or "" for plan in plans]
        found = await asyncio.to_thread(self.database.execute, QUERY, (keys, ids))
        self.table.add(judge(plans, rows_from(found)))

    async def finish(self, service: Service, plans: Sequence[Plan]) -> None:
        """Settle, judge, stop cleanly; a clean stop leaves no journal behind."""
        await self.settle(service)
        await come_back(service.port, plans)
        await self.judge(plans)
        status = await service.stop()
        if status != 0:
            self.complain(f"exit status {status} after SIGTERM")
        if self.journals():
            self.complain(f"a clean stop left {len(self.journals())} journals")

    def complain(self, what: str) -> None:
        self.table.complaints.append(f"{self.directory.name}: {what}")

    async def close(self) -> None:
        for service in self._services:
            service.end()
            for complaint in service.complaints:
                self.complain(complaint)
        await self.upstream.stop()


@asynccontextmanager
async def stage(ground: Ground, chance: random.Random, scale: float = 1.0) -> AsyncIterator[Stage]:
    """A stage for one scenario; its directory is removed unless something went wrong on it."""
    # The service is what is tested. What plays with it shall not be late because of asyncio's checks.
    asyncio.get_running_loop().set_debug(False)
    made = Stage(ground, chance, scale)
    await made.upstream.start()
    before = len(ground.table.failures) + len(ground.table.complaints)
    try:
        yield made
    finally:
        await made.close()
        if len(ground.table.failures) + len(ground.table.complaints) == before:
            shutil.rmtree(made.directory, ignore_errors=True)
