"""Replicas that are hosts: each in a network namespace of its own, with a cable for each thing it needs.

A cable is a pair of veth devices; its end here is a port of a bridge. A cut takes the port out of its
bridge: the carrier stays, the neighbours' addresses are fixed, and packets in both directions go nowhere,
so nobody is told anything. Everything is made in a namespace of the run's own (`enter`), and gone with its
processes. Needs root, `ip`, `unshare` and `nsenter`.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

from tests.fleet_faults.wires import (
    CLIENTS,
    POSTGRES,
    REDIS,
    Address,
    Ends,
    Link,
    Place,
    address_in,
)

_INSIDE = "--inside"
_BACKEND = "backend"
_CABLES = {REDIS: 1, POSTGRES: 2, CLIENTS: 3, _BACKEND: 4}
_POSTGRES_PORT, _BACKEND_PORT = 5432, 8100


def enter(arguments: Sequence[str]) -> bool:
    """True in a network namespace of the run's own. The first call, where this is possible, begins the
    program anew in one, with the same arguments, and doesn't return; False where it isn't possible."""
    if _INSIDE in arguments:
        subprocess.run(("ip", "link", "set", "lo", "up"), check=True)
        return True
    tools = all(shutil.which(each) for each in ("ip", "unshare", "nsenter"))
    if not tools or os.geteuid() != 0:
        return False
    probe = (
        "ip link add verbatim0 type bridge && ip link add verbatim1 type veth peer name verbatim2"
    )
    if subprocess.run(("unshare", "--net", "sh", "-c", probe), capture_output=True).returncode:
        return False
    program = [sys.executable, "-m", "tests.fleet_faults", *arguments, _INSIDE]
    os.execvp("unshare", ["unshare", "--net", *program])


class Namespaced:
    """See the module. Only in a namespace of the run's own."""

    how = "network namespaces"

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        self._links: list[Link] = []
        self._hosts: dict[str, subprocess.Popen[bytes]] = {}
        self._numbers: dict[str, int] = {}
        for net in _CABLES.values():
            _ip(f"link add {_bridge(net)} address {_mac(net, 1)} type bridge")
            _ip(f"addr add {_address(net, 1)}/24 dev {_bridge(net)}")
            _ip(f"link set {_bridge(net)} up")

    async def place(self, name: str) -> Place:
        if not self._links:
            await self._open_doors()
        if name not in self._hosts:
            self._make_host(name)
        number = self._numbers[name]
        return Place(
            host=_address(_CABLES[CLIENTS], number),
            command=("nsenter", "--target", str(self._hosts[name].pid), "--net"),
            redis_url=f"redis://{_address(_CABLES[REDIS], 1)}:{address_in(self._ends.redis_url)[1]}/0",
            dsn=f"postgresql://postgres@{_address(_CABLES[POSTGRES], 1)}:{_POSTGRES_PORT}/postgres",
            backend_url=f"http://{_address(_CABLES[_BACKEND], 1)}:{_BACKEND_PORT}/v1",
        )

    async def _open_doors(self) -> None:
        """What listens on loopback or a Unix socket is had on the bridges, too."""
        redis = address_in(self._ends.redis_url)
        doors: tuple[tuple[str, object, int], ...] = (
            (REDIS, redis, redis[1]),
            (POSTGRES, self._ends.sockets / ".s.PGSQL.5432", _POSTGRES_PORT),
            (_BACKEND, address_in(self._ends.backend_url), _BACKEND_PORT),
        )
        for what, target, port in doors:
            link = Link(target, host=_address(_CABLES[what], 1))  # type: ignore[arg-type]  # either
            self._links.append(await link.start(port))

    def _make_host(self, name: str) -> None:
        number = self._numbers[name] = 11 + len(self._numbers)
        holder = subprocess.Popen(("unshare", "--net", "sleep", "infinity"))
        self._hosts[name] = holder
        _wait_for_namespace(holder.pid)
        inside = f"nsenter --target {holder.pid} --net ip"
        _run(f"{inside} link set lo up")
        for net in _CABLES.values():
            near, far = _port(net, number), f"far{net}"
            _ip(f"link add {near} type veth peer name {far} address {_mac(net, number)}")
            _ip(f"link set {far} netns {holder.pid}")
            _ip(f"link set {near} master {_bridge(net)} up")
            _run(f"{inside} addr add {_address(net, number)}/24 dev {far}")
            _run(f"{inside} link set {far} up")
            _run(f"{inside} neigh replace {_address(net, 1)} lladdr {_mac(net, 1)} dev {far}")
            neighbour = f"{_address(net, number)} lladdr {_mac(net, number)}"
            _ip(f"neigh replace {neighbour} dev {_bridge(net)}")

    def address(self, name: str, served: Address) -> Address:
        return served

    def cut(self, name: str, what: str) -> None:
        _ip(f"link set {_port(_CABLES[what], self._numbers[name])} nomaster")

    def mend(self, name: str, what: str) -> None:
        net = _CABLES[what]
        _ip(f"link set {_port(net, self._numbers[name])} master {_bridge(net)}")

    async def close(self) -> None:
        for link in self._links:
            await link.stop()
        for holder in self._hosts.values():
            holder.kill()
            holder.wait()
        self._take_down()

    def _take_down(self) -> None:
        for net in _CABLES.values():
            for number in self._numbers.values():
                # Its other end may have gone with its namespace, and taken it along.
                command = ("ip", "link", "del", _port(net, number))
                subprocess.run(command, capture_output=True, check=False)
            _ip(f"link del {_bridge(net)}")


def _wait_for_namespace(pid: int) -> None:
    ours = os.readlink("/proc/self/ns/net")
    until = time.monotonic() + 10
    while os.readlink(f"/proc/{pid}/ns/net") == ours:
        assert time.monotonic() < until, "no namespace"
        time.sleep(0.01)


def _ip(words: str) -> None:
    _run(f"ip {words}")


def _run(words: str) -> None:
    subprocess.run(words.split(), check=True)


def _bridge(net: int) -> str:
    return f"bridge{net}"


def _port(net: int, number: int) -> str:
    return f"port{net}-{number}"


def _address(net: int, number: int) -> str:
    return f"10.77.{net}.{number}"


def _mac(net: int, number: int) -> str:
    return f"02:00:00:77:{net:02x}:{number:02x}"
