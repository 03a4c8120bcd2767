"""Connections to each worker of a service, though all share one port; and readers on them."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import psutil

from tests.service.stage.process import PATIENCE_SECONDS, Process

COMPLETIONS = "/v1/chat/completions"
_MOST_TRIES = 400


class Door:
    """One connection, kept alive: what is asked on it is answered by the same process.

    Attributes:
        pid: of that process.
    """

    def __init__(self, url: str, key: str | None) -> None:
        self.pid = 0
        self._url = url
        self._sockets: list[socket.socket] = []
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1, socket_factory=self._socket),
            timeout=aiohttp.ClientTimeout(total=2 * PATIENCE_SECONDS),
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
        )

    async def knock(self, pids: Iterable[int]) -> "Door":
        """Connect, and find out who answers."""
        async with self._http.get(f"{self._url}/healthz") as response:
            await response.read()
        (ours,) = self._sockets
        self.pid = next(pid for pid in pids if ours.getsockname() in _clients_of(pid))
        return self

    def _socket(self, address: Any) -> socket.socket:
        self._sockets.append(made := socket.socket(*address[:3]))
        made.setblocking(False)
        return made

    def post(self, *, headers: dict[str, str] | None = None, **fields: Any) -> Any:
        """Ask for a completion."""
        question = [{"role": "user", "content": "Hi"}]
        body = {"model": "backend", "stream": True, "messages": question, **fields}
        return self._http.post(self._url + COMPLETIONS, json=body, headers=headers)

    def get(self, path: str = "", **query: Any) -> Any:
        """Ask for what runs or is stored."""
        params = {name: str(value) for name, value in query.items()}
        return self._http.get(f"{self._url}{COMPLETIONS}{path}", params=params)

    def delete(self, path: str) -> Any:
        """Delete what is stored."""
        return self._http.delete(f"{self._url}{COMPLETIONS}{path}")

    def read(self, completion_id: str, **query: Any) -> Any:
        """Ask for a completion's stream."""
        return self.get(f"/{completion_id}", stream="true", **query)

    async def shown(self, path: str = "", **query: Any) -> tuple[int, Any]:
        """Status and JSON of the same."""
        async with self.get(path, **query) as response:
            return response.status, await response.json()

    def post_cancel(self, completion_id: str) -> Any:
        """Stop a completion."""
        return self._http.post(f"{self._url}{COMPLETIONS}/{completion_id}/cancel")

    async def cancel(self, completion_id: str) -> tuple[int, Any]:
        """Status and JSON of the same."""
        async with self.post_cancel(completion_id) as response:
            return response.status, await response.json()

    async def close(self) -> None:
        await self._http.close()


def _clients_of(pid: int) -> set[tuple[str, int]]:
    connections = psutil.Process(pid).net_connections("tcp")
    return {tuple(each.raddr) for each in connections if each.raddr}


@asynccontextmanager
async def doors(
    process: Process, pids: list[int], count: int, *, key: str | None = None
) -> AsyncIterator[list[list[Door]]]:
    """So many connections to each of these processes, in their order."""
    url = f"http://127.0.0.1:{process.port}"
    opened: list[Door] = []
    found: dict[int, list[Door]] = {pid: [] for pid in pids}
    try:
        for _ in range(_MOST_TRIES):
            opened.append(door := Door(url, key))
            await door.knock(pids)
            found[door.pid].append(door)
            if all(len(each) >= count for each in found.values()):
                break
        yield [found[pid][:count] for pid in pids]
    finally:
        await asyncio.gather(*(door.close() for door in opened))
