"""`deploy/compose.yaml`: its parts fit together, and the service takes what it is told there."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from tests.deploy.reading import DEPLOY, LAST_SAVES_SECONDS, configuration, documents, tool
from tests.redis_servers import free_port, server_program

TEXT = (DEPLOY / "compose.yaml").read_text("utf-8")
EXAMPLE = (DEPLOY / "compose.env.example").read_text("utf-8")
VARIABLE = re.compile(r"\$\{(\w+)(?::([?-])([^}]*))?\}")
REFERENCE = "github.com/compose-spec/compose-go/v2/cmd@v2.16.2"
"""The implementation that Docker's own command has."""
REPLICAS = ("verbatim-1", "verbatim-2")


def filled_in(text: str) -> str:
    """With each variable its default, or what somebody might put into the file of secrets."""
    return VARIABLE.sub(lambda m: m[3] if m[2] == "-" else f"0123456789abcdef{m[1]}", text)


COMPOSE: Any = yaml.safe_load(filled_in(TEXT))
SERVICES: dict[str, Any] = COMPOSE["services"]


def mounts(service: Any) -> list[tuple[str, str]]:
    """From where to where."""
    found = (volume.split(":") for volume in service.get("volumes", ()))
    return [(source, target) for source, target, *_ in found]


def replica_config(name: str) -> Any:
    service = SERVICES[name]
    environ = {key: str(value) for key, value in service["environment"].items()}
    path = service["command"][service["command"].index("--config") + 1]
    (source,) = (source for source, target in mounts(service) if target == path)
    return configuration(DEPLOY / source, **environ)


def seconds(text: str) -> int:
    assert text.endswith("s"), text
    return int(text[:-1])


def test_every_secret_is_in_the_example() -> None:
    """What has to be filled in stands in the example, empty; what stands there is used."""
    used = {name for name, *_ in VARIABLE.findall(TEXT)}
    assert used == set(re.findall(r"^#?(\w+)=", EXAMPLE, re.MULTILINE))
    needed = {name for name, kind, _ in VARIABLE.findall(TEXT) if kind == "?"}
    assert needed <= set(re.findall(r"^(\w+)=$", EXAMPLE, re.MULTILINE))


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_names_is_there(name: str) -> None:
    """Files, volumes, and services it waits for, which say when they are well if it waits for that."""
    service = SERVICES[name]
    for source, _ in mounts(service):
        assert (DEPLOY / source).exists() if source[0] == "." else source in COMPOSE["volumes"]
    for other, wanted in service.get("depends_on", {}).items():
        own = "healthcheck" in SERVICES[other] or other in REPLICAS  # theirs is in the Dockerfile
        assert own or wanted["condition"] != "service_healthy"
    assert "unless-stopped" == service["restart"]


def test_every_volume_is_used_by_one() -> None:
    """A journal has one writer, and so has a database."""
    used = [source for each in SERVICES.values() for source, _ in mounts(each) if source[0] != "."]
    assert sorted(COMPOSE["volumes"]) == sorted(used)


@pytest.mark.parametrize("name", REPLICAS)
def test_a_replica_takes_its_configuration(name: str) -> None:
    """It is valid with the environment beside it; the journal is in the volume, the name its own."""
    config, service = replica_config(name), SERVICES[name]
    assert (name, None) == (service["hostname"], config.fleet.replica)
    assert config.fleet.url == service["environment"]["FLEET_URL"]
    assert ["open-webui"] == [key.name for key in config.auth.api_keys]
    (journal,) = (target for source, target in mounts(service) if source[0] != ".")
    assert Path(config.journal.directory).is_relative_to(journal)
    patience = seconds(service["stop_grace_period"])
    assert patience >= config.server.drain_timeout_seconds + LAST_SAVES_SECONDS


def test_addresses_lead_to_what_listens() -> None:
    """The balancer to both replicas, Prometheus to each, and Open WebUI to the balancer."""
    config = replica_config("verbatim-1")
    (recipe,) = (source for source, target in mounts(SERVICES["balancer"]) if "nginx" in target)
    text = (DEPLOY / recipe).read_text()
    for name in REPLICAS:
        assert f"server {name}:{config.server.port} " in text
    assert "listen 8080;" in text
    assert ["127.0.0.1:8080:8080"] == SERVICES["balancer"]["ports"]
    assert "http://balancer:8080/v1" == SERVICES["open-webui"]["environment"]["OPENAI_API_BASE_URL"]
    (scraped,) = documents(DEPLOY / "compose/prometheus.yml")
    (job,) = scraped["scrape_configs"]
    targets = [f"{name}:{config.admin.port}" for name in REPLICAS]
    assert [{"targets": targets}] == job["static_configs"]
    (sources,) = documents(DEPLOY / "compose/grafana-datasources.yaml")
    assert "http://prometheus:9090" == sources["datasources"][0]["url"]


def test_grafana_gets_the_dashboard() -> None:
    """The folder that its provider reads is where the dashboard is mounted."""
    (providers,) = documents(DEPLOY / "compose/grafana-dashboards.yaml")
    folder = providers["providers"][0]["options"]["path"]
    (source,) = (source for source, target in mounts(SERVICES["grafana"]) if target == folder)
    assert (DEPLOY / source / "verbatim.json").exists()


def test_only_this_machine_is_served() -> None:
    """Keys would cross the network in the clear, so what is published is loopback's."""
    published = [port for each in SERVICES.values() for port in each.get("ports", ())]
    assert published
    assert {"127.0.0.1"} == {port.split(":")[0] for port in published}


def test_the_engine_takes_its_options(tmp_path: Path) -> None:
    """A real server starts with them, asks for the password, and keeps what it is told to."""
    service = SERVICES["valkey"]
    _, *options = service["command"]
    url = SERVICES["verbatim-1"]["environment"]["FLEET_URL"]
    port = free_port()
    where = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path)]
    process = subprocess.Popen(
        [server_program(), *options, *where], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    try:
        with redis.Redis.from_url(url.replace("valkey:6379", f"127.0.0.1:{port}")) as client:
            deadline = time.monotonic() + 20
            while True:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
            said = client.config_get("maxmemory*")
        assert ("noeviction", str(1 << 30)) == (said["maxmemory-policy"], said["maxmemory"])
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
    finally:
        process.kill()
        process.wait()


def test_it_is_a_compose_file(tmp_path: Path) -> None:
    """The specification's own implementation reads it: schema, names, dependencies."""
    go = tool("go")
    if go is None:
        pytest.skip("needs Go, and `make deploy`")
    place = tmp_path / "deploy"
    shutil.copytree(DEPLOY, place)
    (place / "compose.yaml").write_text(filled_in(TEXT))
    done = subprocess.run(
        [go, "run", REFERENCE, "compose.yaml"],
        cwd=place,
        capture_output=True,
        text=True,
        env={**os.environ, "GOFLAGS": "-mod=mod"},
    )
    assert 0 == done.returncode, done.stderr
    assert set(SERVICES) == set(yaml.safe_load(done.stdout)["services"])


def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    """With the alerts mounted beside it."""
    promtool = tool("promtool")
    if promtool is None:
        pytest.skip("needs Prometheus (apt-get install prometheus), and `make deploy`")
    for source, target in mounts(SERVICES["prometheus"]):
        if source[0] == ".":
            shutil.copy(DEPLOY / source, tmp_path / Path(target).name)
    done = subprocess.run(
        [promtool, "check", "config", "prometheus.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
