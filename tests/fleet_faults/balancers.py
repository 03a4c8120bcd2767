"""A real proxy with its recipe of `deploy/proxies/replicas/`, in front of so many replicas."""

import contextlib
import http.client
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.proxies.running import DOOR, PROXIES, RECIPES, SERVICE, Proxy, free_port, path_of

NAMES = ("nginx", "haproxy", "apache", "caddy", "traefik", "envoy")
_PATIENCE_SECONDS = 20.0


def installed() -> dict[str, tuple[Proxy, str]]:
    """Those that are here, by name: what is known of each, and its program."""
    found = {proxy.name: (proxy, path_of(proxy)) for proxy in PROXIES if proxy.name in NAMES}
    return {name: (proxy, path) for name, (proxy, path) in found.items() if path is not None}


@contextlib.contextmanager
def balancer(name: str, ports: Sequence[int], directory: Path) -> Iterator[int]:
    """The proxy meanwhile; the port where clients find it."""
    proxy, program = installed()[name]
    door = free_port()
    _lay_out(directory, door, ports)
    command = [word.format(program=program, dir=directory) for word in proxy.command]
    with (directory / "proxy.log").open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=directory, start_new_session=True
        )
    try:
        _wait_for(door, process, directory)
        yield door
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(3)


def _lay_out(directory: Path, door: int, ports: Sequence[int]) -> None:
    """Copy the recipes, with our addresses, and a line for each replica."""
    directory.mkdir()
    directory.chmod(0o755)  # some proxies read it as another user
    for source in (RECIPES / "replicas").iterdir():
        text = "".join(
            _for_each(line, len(ports)) for line in source.read_text("utf-8").splitlines(True)
        )
        for number, port in enumerate(ports, start=1):
            name = f"verbatim-{number}"
            text = text.replace(f"{name}:{SERVICE}", f"127.0.0.1:{port}")
            text = text.replace(
                f"address: {name}, port_value: {SERVICE}", f"address: 127.0.0.1, port_value: {port}"
            )
        text = text.replace(f"isten {DOOR}", f"isten 127.0.0.1:{door}")
        text = text.replace(f"bind :{DOOR}", f"bind 127.0.0.1:{door}")
        text = text.replace(f'":{DOOR}"', f'"127.0.0.1:{door}"')
        text = text.replace(f"\n:{DOOR} {{", f"\nhttp://127.0.0.1:{door} {{\n\tbind 127.0.0.1")
        text = text.replace(
            f"address: 0.0.0.0, port_value: {DOOR}", f"address: 127.0.0.1, port_value: {door}"
        )
        text = text.replace("deploy/proxies/replicas", str(directory))
        text = text.replace("/run/verbatim-apache.pid", f"{directory}/apache.pid")
        text = text.replace("DefaultRuntimeDir /run", f"DefaultRuntimeDir {directory}")
        (directory / source.name).write_text(text, "utf-8")


def _for_each(line: str, count: int) -> str:
    """The recipes have two replicas; what stands in a line for the second stands in one for each more."""
    last = f"verbatim-2:{SERVICE}", "address: verbatim-2,"
    if not any(each in line for each in last):
        return line
    if f"verbatim-1:{SERVICE}" in line:  # all of them in one line
        more = "".join(f" verbatim-{number}:{SERVICE}" for number in range(3, count + 1))
        return line.replace(last[0], last[0] + more)
    more = "".join(line.replace("verbatim-2", f"verbatim-{n}") for n in range(3, count + 1))
    return line + more


def _wait_for(port: int, process: "subprocess.Popen[bytes]", directory: Path) -> None:
    until = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            with contextlib.closing(connection):
                connection.request("GET", "/healthz")
                if connection.getresponse().status == 200:
                    return
        time.sleep(0.05)
    raise AssertionError((directory / "proxy.log").read_text("utf-8", "replace")[-3000:])
