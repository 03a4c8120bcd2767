"""What many clients cause at once is spread over turns of the loop."""

import asyncio
from collections import Counter
from functools import partial

import aiohttp

from service.edge.turns import Turns
from tests.service.conftest import Service
from tests.service.stage.backend import Backend, Exchange


async def test_little_is_done_at_once() -> None:
    """Work that comes alone waits for nobody."""
    done: list[int] = []
    Turns().give(partial(done.append, 1))
    assert [1] == done


async def test_much_is_spread_over_turns_in_its_order() -> None:
    """Ten in each turn, also of what comes while others wait."""
    turns, done, turn_of = Turns(), list[int](), list[int]()
    for number in range(25):
        turns.give(partial(done.append, number))
    turn_of += [0] * len(done)
    for turn in range(1, 6):
        await asyncio.sleep(0)
        if turn == 1:
            for number in range(25, 30):
                turns.give(partial(done.append, number))
        turn_of += [turn] * (len(done) - len(turn_of))
    assert list(range(30)) == done
    assert {0: 10, 1: 10, 2: 10} == Counter(turn_of)


async def test_every_stream_ends_whose_clients_leave_together(
    service: Service, backend: Backend
) -> None:
    """More than have their turn at once: none is forgotten."""

    async def wait(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("Hello")
        await exchange.client_closed.wait()

    backend.script = wait
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
        url = f"{service.url}/v1/chat/completions"
        responses = await asyncio.gather(*(http.post(url, json=body) for _ in range(35)))
        for response in responses:
            await response.content.readany()
            response.close()
        async with asyncio.timeout(10):
            while len(service.kept.records) < 35:
                await asyncio.sleep(0.01)
    assert {"client_gone"} == {record.state.value for record in service.kept.records}
