"""Alerts and dashboard, tried: promtool plays the alerts, and a real Prometheus that scrapes a real
service of two workers answers every query of the dashboard.

`make dashboards` runs these; Prometheus must be installed (apt-get install prometheus), or PROMETHEUS_PATH
name the folder of `prometheus` and `promtool`.
"""

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.redis_servers import RedisServer
from tests.service.process.conftest import settings
from tests.service.stage.backend import Backend, Exchange, chunk
from tests.service.stage.process import ROOT, Process

DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/verbatim.json").read_text())
USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 5,
    "total_tokens": 14,
    "prompt_tokens_details": {"cached_tokens": 7},
    "completion_tokens_details": {"reasoning_tokens": 3},
}
ENOUGH_SECONDS = 40.0

pytestmark = pytest.mark.dashboards


def program(name: str) -> str:
    """Where it is; the test is skipped if it isn't."""
    found = shutil.which(name, path=f"{os.environ.get('PROMETHEUS_PATH', '')}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} isn't installed: apt-get install prometheus")
    return found


def promtool(*arguments: str) -> str:
    """What it says. Fails with that if it isn't content."""
    command = [program("promtool"), *arguments]
    done = subprocess.run(command, cwd=DEPLOY / "prometheus", capture_output=True, text=True)
    assert 0 == done.returncode, done.stdout + done.stderr
    print(done.stdout)
    return done.stdout


def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    """Each alert fires in one of the cases beside it, and none where all is well."""
    assert "SUCCESS" in promtool("test", "rules", "alerts-test.yml")
    cases = (DEPLOY / "prometheus/alerts-test.yml").read_text()
    alerts = set(re.findall(r"alert: (\w+)", (DEPLOY / "prometheus/alerts.yml").read_text()))
    assert alerts == set(re.findall(r'alertname="(\w+)"', cases))


def test_rules_and_configuration_are_valid() -> None:
    """Prometheus can be started with both as they are."""
    assert "SUCCESS" in promtool("check", "rules", "alerts.yml")
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml")


# --- a real Prometheus ------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Prometheus:
    """A Prometheus that scrapes one service each second. `url` is where it answers."""

    def __init__(self, directory: Path, target: str) -> None:
        config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(DEPLOY / "prometheus/alerts.yml")]
        config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
        path = directory / "prometheus.yml"
        path.write_text(yaml.safe_dump(config))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/api/v1"
        self._popen = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={path}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    async def ask(self, http: aiohttp.ClientSession, path: str, **query: str) -> Any:
        """The data of an answer. Fails if it is none."""
        async with http.get(self.url + path, params=query) as response:
            answer = await response.json()
            assert "success" == answer["status"], (query, answer)
            return answer["data"]

    def end(self) -> None:
        self._popen.terminate()
        self._popen.wait()


@pytest.fixture
def start_prometheus(tmp_path: Path) -> Iterator[Any]:
    """Starts them; they end with the test."""
    running: list[Prometheus] = []

    def start(target: str) -> Prometheus:
        running.append(Prometheus(tmp_path, target))
        return running[-1]

    yield start
    for each in running:
        each.end()


async def answer(exchange: Exchange) -> None:
    """Fail if asked to; list models; else say a word with everything in its usage."""
    if exchange.body is None:
        return await exchange.json(200, {"data": [{"id": "listed"}]})
    if exchange.body["model"] == "broken":
        return await exchange.json(400, {"error": {"message": "No."}})
    await exchange.start()
    await exchange.words("Hello", " world")
    await exchange.event(chunk({}, "stop"))
    await exchange.event({**chunk({}), "choices": [], "usage": USAGE})
    await exchange.done()
    return None


async def traffic(process: Process) -> None:
    """Completions of every kind, until cancelled."""
    url = f"http://127.0.0.1:{process.port}/v1/chat/completions"
    async with aiohttp.ClientSession() as http:
        while True:
            for model in ("backend", "listed", "made-up", "broken"):
                question = [{"role": "user", "content": "Hi"}]
                body = {"model": model, "stream": model != "backend", "messages": question}
                async with http.post(url, json=body, headers={"Idempotency-Key": model}) as said:
                    await said.read()
                async with http.post(url, json=body) as said:
                    await said.read()
            await asyncio.sleep(0.1)


@pytest.fixture
async def watched(
    spawn: Any, start_prometheus: Any, database_url: str, backend: Backend, own_redis: RedisServer
) -> AsyncIterator[Prometheus]:
    """A Prometheus that has scraped a busy service for some time."""
    program("prometheus")
    backend.script = answer
    process = spawn(settings(database_url, backend, fleet={"url": own_redis.url}))
    url = await asyncio.to_thread(lambda: process.line("serving")["admin_url"])
    prometheus = start_prometheus(url.removeprefix("http://"))
    busy = asyncio.create_task(traffic(process))
    yield prometheus
    busy.cancel()
    with suppress(asyncio.CancelledError):
        await busy
    await asyncio.to_thread(process.stop)  # before its database is emptied


def queries() -> Iterator[tuple[str, str]]:
    """Panel and query, with what the dashboard would put in for its variables."""
    values = {"$__rate_interval": "15s", "$job": "verbatim", "$instance": ".*", "$agent": ".*"}
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"]
            for name, value in values.items():
                query = query.replace(name, value)
            yield f"{panel['title']}: {target['legendFormat']}", query


def variables() -> Iterator[tuple[str, str]]:
    """What the dashboard's variables are chosen from: series and label."""
    for variable in DASHBOARD["templating"]["list"]:
        if found := re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]):
            series = found[1].replace("$job", "verbatim").replace("$instance", ".*")
            yield series, found[2]


async def test_every_query_of_the_dashboard_shows_something(watched: Prometheus) -> None:
    """Asked of a service that does all of it, each panel has figures."""
    expected = dict(queries())
    assert len(expected) == len(list(queries())) > 40
    missing = expected
    async with aiohttp.ClientSession() as http:
        deadline = asyncio.get_running_loop().time() + ENOUGH_SECONDS
        while missing and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(2)
            with suppress(aiohttp.ClientError):  # it may still be starting
                found = {
                    panel: await watched.ask(http, "/query", query=query)
                    for panel, query in missing.items()
                }
                missing = {
                    panel: missing[panel]
                    for panel, data in found.items()
                    if not data["result"] or "NaN" in str(data["result"])
                }
        assert {} == missing
        for series, label in variables():
            data = await watched.ask(http, "/series", **{"match[]": series})
            assert any(label in each for each in data), series
        groups = (await watched.ask(http, "/rules"))["groups"]
        health = {rule["health"] for group in groups for rule in group["rules"]}
        assert {"ok"} == health
