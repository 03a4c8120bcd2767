"""Several hosts, one of them a standby: as libpq means it, through a failover and back."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

from db.embedded import EmbeddedPostgres
from db.migrate import migrate
from db.postgres.store import PostgresStore
from db.store import StoreUnavailable
from tests.db.records import make_record
from tests.postgres import UNSAFE_BUT_FAST, execute, temporary_data_dir


@frozen
class Pair:
    """A primary and its standby, and their ports."""

    primary: EmbeddedPostgres
    standby: EmbeddedPostgres
    ports: tuple[int, int]

    def dsn(self, *, standby_first: bool = False, attributes: str = "any") -> str:
        first, second = reversed(self.ports) if standby_first else self.ports
        return (
            f"postgresql://postgres@127.0.0.1:{first},127.0.0.1:{second}/postgres"
            f"?target_session_attrs={attributes}"
        )


@pytest.fixture
def pair(unused_tcp_port_factory: object) -> Iterator[Pair]:
    ports = (unused_tcp_port_factory(), unused_tcp_port_factory())  # type: ignore[operator]
    with temporary_data_dir() as path:
        path.chmod(0o755)
        started: list[EmbeddedPostgres] = []

        def start(name: str, port: int) -> EmbeddedPostgres:
            settings = {"listen_addresses": "127.0.0.1", "port": str(port), **UNSAFE_BUT_FAST}
            started.append(EmbeddedPostgres.start(path / name, settings=settings))
            return started[-1]

        try:
            primary = start("one", ports[0])
            migrate(f"postgresql://postgres@127.0.0.1:{ports[0]}/postgres")
            copy(primary, ports[0], path / "two")
            yield Pair(primary, start("two", ports[1]), ports)
        finally:
            for server in started:
                server.stop()


def copy(server: EmbeddedPostgres, port: int, data_dir: Path) -> None:
    """A standby's directory, made of a running primary."""
    owner = (server.data_dir / "cluster").stat()
    is_root = os.geteuid() == 0
    data_dir.mkdir()
    if is_root:
        os.chown(data_dir, owner.st_uid, owner.st_gid)
    subprocess.run(
        [
            server._cluster.programs / "pg_basebackup",
            *("-D", data_dir / "cluster", "-d", f"host=127.0.0.1 port={port} user=postgres"),
            *("--write-recovery-conf", "--checkpoint=fast", "--no-sync"),
        ],
        check=True,
        capture_output=True,
        user=owner.st_uid if is_root else None,
        group=owner.st_gid if is_root else None,
    )


def names(port: int) -> set[str]:
    """The completions that this server has."""
    dsn = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    return {name for (name,) in execute(dsn, "SELECT completion_id FROM completions")}


async def test_saves_follow_the_primary_through_a_failover_and_back(pair: Pair) -> None:
    """The standby stands first and is passed over; promoted, it takes the saves; set read-only with
    its connections open, it loses them again."""
    one, two = pair.ports
    store = await PostgresStore.open(pair.dsn(standby_first=True, attributes="read-write"))
    before, during, after = (make_record() for _ in range(3))
    await store.save([before])
    await store.check()
    assert {before.completion_id} == names(one)

    await asyncio.to_thread(pair.primary.stop)
    with pytest.raises(StoreUnavailable):
        await store.save([during])
    two_dsn = f"postgresql://postgres@127.0.0.1:{two}/postgres"
    execute(two_dsn, "SELECT pg_promote()")
    await store.save([during])
    await store.check()
    assert {before.completion_id, during.completion_id} == names(two)

    settings = {"listen_addresses": "127.0.0.1", "port": str(one), **UNSAFE_BUT_FAST}
    again = await asyncio.to_thread(
        lambda: EmbeddedPostgres.start(pair.primary.data_dir, settings=settings)
    )
    execute(two_dsn, "ALTER SYSTEM SET default_transaction_read_only = on")
    execute(two_dsn, "SELECT pg_reload_conf()")
    await asyncio.sleep(0.2)
    await store.save([after])
    await store.check()
    assert {before.completion_id, after.completion_id} == names(one)
    await store.close()
    await asyncio.to_thread(again.stop)


async def test_each_wish_for_a_session_is_libpqs(pair: Pair) -> None:
    """Any takes the first, a standby is a standby, a preferred one is one if there is one; and a
    standby is no place for saves, which it is told by name."""
    for attributes in ("any", "read-write", "primary", "read-only", "standby", "prefer-standby"):
        store = await PostgresStore.open(pair.dsn(standby_first=True, attributes=attributes))
        if attributes not in ("read-write", "primary"):
            for call in (store.check(), store.save([make_record()])):
                with pytest.raises(StoreUnavailable, match="standby"):
                    await call
        else:
            await store.check()
        await store.close()
    await asyncio.to_thread(pair.standby.stop)
    preferring = await PostgresStore.open(pair.dsn(attributes="prefer-standby"))
    await preferring.check()
    await preferring.close()
    insisting = await PostgresStore.open(pair.dsn(attributes="standby"))
    with pytest.raises(StoreUnavailable, match="target_session_attrs"):
        await insisting.check()
    await insisting.close()
