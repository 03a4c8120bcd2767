"""Operators' own address: what is there alone, for one process and for workers, and if it is taken."""

import http.client
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.service.stage.process import PATIENCE_SECONDS, config


def status_at(url: str, path: str) -> int:
    """Of a GET on a connection of its own."""
    place = urlsplit(url)
    assert place.hostname
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=PATIENCE_SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_each_address_has_nothing_of_the_others(
    spawn: Any, database_url: str, workers: int
) -> None:
    """Probes are at both, the API at one, whoever of the workers answers."""
    settings = config(database_url) | {"admin": {"port": 0}, "server": {"workers": workers}}
    process = spawn(settings)
    serving = process.line("serving")
    api, operators = serving["url"], serving["admin_url"]
    assert api != operators
    for _ in range(6):  # each on another connection, so at another worker
        assert [200, 200, 404] == [
            status_at(api, path) for path in ("/healthz", "/v1/models", "/page/nowhere")
        ]
        assert [200, 404, 404] == [
            status_at(operators, path) for path in ("/healthz", "/v1/models", "/page/nowhere")
        ]


def test_without_one_operators_are_where_the_api_is(spawn: Any, database_url: str) -> None:
    """One address serves both, and is said to."""
    serving = spawn(config(database_url)).line("serving")
    assert serving["admin_url"] == serving["url"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_that_is_taken_is_named(spawn: Any, database_url: str, workers: int) -> None:
    """The start fails at once, and says which key to change."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = config(database_url) | {"admin": {"port": port}, "server": {"workers": workers}}
        process = spawn(settings)
        assert 1 == process.popen.wait(PATIENCE_SECONDS)
    said = process.log.read_text()
    assert f"127.0.0.1:{port}" in said
    assert "admin.port" in said


def test_one_port_for_both_is_refused(spawn: Any, database_url: str) -> None:
    """Two addresses that differ in their host alone could not be told apart; so they need two ports."""
    settings = config(database_url) | {"admin": {"port": 9, "host": "127.0.0.2"}}
    process = spawn(settings, "--port", "9")
    assert 1 == process.popen.wait(PATIENCE_SECONDS)
    assert "admin.port and server.port are both 9" in process.log.read_text()
