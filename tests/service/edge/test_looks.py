"""Clients that take nothing are found out, whatever happens to others meanwhile."""

import asyncio
import socket
from typing import Any

import pytest

from service.edge.connections import ClientConnection
from service.edge.kernel import tcp_info
from tests.service.conftest import Service
from tests.service.stage.backend import Backend, Exchange


class Closed:
    """A transport that uvloop has just closed, and its socket."""

    family = socket.AF_INET

    def get_extra_info(self, _name: str) -> "Closed":
        return self

    def getsockopt(self, *_: int) -> bytes:
        raise ValueError("negative file descriptor")


def test_a_descriptor_that_is_gone_is_an_error_of_the_systems() -> None:
    """As on asyncio's own loop, so that whoever asks need not know which it is."""
    transport: Any = Closed()
    with pytest.raises(OSError, match="negative file descriptor"):
        tcp_info(transport, 8)


async def test_a_look_that_fails_is_not_the_last(
    service: Service, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one comes in its time, as long as there is a client."""

    async def waits(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("Hello")
        await exchange.client_closed.wait()

    def broken(*_: object) -> float:
        raise RuntimeError("broken")

    backend.script = waits
    async with service.post() as response:
        await response.content.readany()
        server: Any = service.runner.server
        with monkeypatch.context() as breaking:
            breaking.setattr(ClientConnection, "look", broken)
            with pytest.raises(RuntimeError):
                server._look()
        assert server._looks is not None
        assert server._looks.when() > asyncio.get_running_loop().time()
