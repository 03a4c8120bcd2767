"""Which address is connected to, where a database has several or its name isn't known."""

import asyncio
from pathlib import Path

import pytest

from db.embedded import EmbeddedPostgres
from db.postgres.address import Route, Way
from db.postgres.store import PostgresStore
from db.store import StoreUnavailable
from tests.db.records import make_record
from tests.postgres import UNSAFE_BUT_FAST


async def ways_of(route: Route) -> list[Way]:
    return [way async for way in route.ways()]


async def test_a_host_with_several_addresses_is_reached(
    data_dir: Path, unused_tcp_port: int
) -> None:
    """Where nothing listens on the first of a host's addresses, the next one is used, at once."""
    settings = {"listen_addresses": "127.0.0.1", "port": str(unused_tcp_port), **UNSAFE_BUT_FAST}
    server = EmbeddedPostgres.start(data_dir, settings=settings)
    for hosts in ("host=127.0.0.2,127.0.0.1", "host=db,db hostaddr=127.0.0.2,127.0.0.1"):
        store = await PostgresStore.open(
            f"{hosts} port={unused_tcp_port} user=postgres dbname=postgres", timeout_seconds=2
        )
        with pytest.raises(StoreUnavailable, match="run the migrations"):  # so it was reached
            await store.check()
        await store.close()
    server.stop()


async def test_a_name_servers_trouble_delays_nobody_else() -> None:
    """While a host name is looked up, the event loop goes on."""

    async def slow(host: str, port: str) -> list[str]:
        await asyncio.sleep(0.2)
        return ["192.0.2.1"]

    route = Route({"host": "db.example", "port": "6432"}, resolve=slow)
    ticks = 0
    choosing = asyncio.create_task(ways_of(route))
    while not choosing.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert ticks > 5
    assert [Way("db.example", "192.0.2.1", "6432", "any")] == choosing.result()


async def test_the_store_never_lets_the_driver_look_a_name_up() -> None:
    """A name that nobody knows is reported by us, and looked up outside the event loop."""
    store = await PostgresStore.open("postgresql://u:hunter2@no-such-host.invalid/chat")
    with pytest.raises(StoreUnavailable, match=r"isn't known: no-such-host\.invalid") as caught:
        await store.check()
    assert "hunter2" not in str(caught.value)
    await store.close()


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example"])
async def test_a_name_that_no_host_can_have_is_an_unknown_name(host: str) -> None:
    """A typing mistake in the address refuses no record: all wait until it is corrected."""
    store = await PostgresStore.open(f"postgresql://u:hunter2@{host}/chat")
    for call in (store.check(), store.save([make_record()])):
        with pytest.raises(StoreUnavailable, match="host name isn't known"):
            await call
    await store.close()


async def test_a_host_that_swallows_connections_is_passed_over(unused_tcp_port: int) -> None:
    """The first address that accepts a connection wins; if none does, the first of all."""

    async def three(host: str, port: str) -> list[str]:
        return ["127.0.0.2", "127.0.0.1", "127.0.0.3"]

    route = Route({"host": "db", "port": str(unused_tcp_port)}, resolve=three)
    assert ["127.0.0.2"] == [way.hostaddr for way in await ways_of(route)]
    server = await asyncio.start_server(
        lambda _, writer: writer.close(), "127.0.0.1", unused_tcp_port
    )
    async with server:
        assert ["127.0.0.1"] == [way.hostaddr for way in await ways_of(route)]


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"host": "/run/postgresql"},
        {"host": "@abstract"},
        {"host": "db", "hostaddr": "192.0.2.1"},
    ],
)
async def test_addresses_that_need_no_choice_are_left_alone(parts: dict[str, str]) -> None:
    """A socket, a given address and libpq's own defaults are passed on untouched."""
    assert Route(parts).is_fixed


async def test_sockets_are_tried_one_after_the_other() -> None:
    """Of several sockets each is an address of its own; nobody can ask beforehand who listens."""
    ways = await ways_of(Route({"host": "/a,,/b", "port": "1,2,3"}))
    assert [("/a", "1"), ("", "2"), ("/b", "3")] == [(way.host, way.port) for way in ways]


async def test_a_standby_is_preferred_in_two_rounds() -> None:
    """As libpq has it: first all hosts for a standby, then all for whatever is there."""
    route = Route({"host": "/a,/b", "target_session_attrs": "prefer-standby"})
    expected = [("/a", "standby"), ("/b", "standby"), ("/a", "any"), ("/b", "any")]
    ways = await ways_of(route)
    assert expected == [(way.host, way.target_session_attrs) for way in ways]


async def test_the_order_may_be_left_to_chance() -> None:
    """`load_balance_hosts=random` begins with any of the hosts."""
    route = Route({"host": "/a,/b,/c", "load_balance_hosts": "random"})
    firsts = {(await ways_of(route))[0].host for _ in range(100)}
    assert {"/a", "/b", "/c"} == firsts


async def test_hosts_may_have_ports_of_their_own() -> None:
    """Each host of a list goes with its port, or all with the one there is."""
    asked: list[tuple[str, str]] = []

    async def noting(host: str, port: str) -> list[str]:
        asked.append((host, port))
        raise OSError

    for ports in ("1,2", "3"):
        with pytest.raises(StoreUnavailable, match="a, b"):
            await ways_of(Route({"host": "a,b", "port": ports}, resolve=noting))
    assert [("a", "1"), ("b", "2"), ("a", "3"), ("b", "3")] == asked


@pytest.mark.parametrize("address", ["host=db port=1,2", "host=a,b,c port=1,2", "port=1,2"])
async def test_ports_that_go_with_no_host_are_reported(address: str) -> None:
    """As many ports as hosts, or one: any other is no address of a host, this machine included."""
    with pytest.raises(StoreUnavailable, match="one port for all hosts, or one for each"):
        await PostgresStore.open(f"{address} user=u dbname=chat")
