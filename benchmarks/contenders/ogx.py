"""Starts OGX, once llama-stack: inference alone, its completions stored in PostgreSQL.

Installed like the others into an environment of its own (`ogx.txt`), which needs Python 3.12 or newer.
Its storage is on, through its own queue: it saves after it has answered.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from benchmarks.contenders.contender import Missing, Place
from benchmarks.stand.running import answers, environment, free_port, interpreter, process

_PINS = Path(__file__).parent / "ogx.txt"

_CONFIG = """
version: 2
distro_name: bench
apis: [inference]
providers:
  inference:
  - provider_id: backend
    provider_type: remote::vllm
    config:
      base_url: http://127.0.0.1:{upstream_port}/v1
      api_token: none
storage:
  backends:
    keys: {{type: kv_postgres, {database}, table_name: ogx_keys}}
    rows: {{type: sql_postgres, {database}}}
  stores:
    metadata: {{namespace: registry, backend: keys}}
    inference: {{table_name: inference_store, backend: rows}}
    conversations: {{table_name: openai_conversations, backend: rows}}
    prompts: {{table_name: prompts, backend: rows}}
    connectors: {{table_name: connectors, backend: rows}}
registered_resources:
  models:
  - {{model_id: bench, provider_id: all, provider_model_id: bench, model_type: llm}}
server: {{host: 127.0.0.1, port: {port}}}
"""


def _program(place: Place) -> Path:
    python = interpreter("3.12", "3.13", "3.14")
    if python is None:
        raise Missing("ogx needs Python 3.12 or newer")
    try:
        return environment("ogx", _PINS, place.tell, python) / "ogx"
    except (OSError, subprocess.CalledProcessError) as error:
        raise Missing(f"ogx can't be installed: {error}") from error


def _database(dsn: str) -> str:
    parts = urlsplit(dsn)
    options = parse_qs(parts.query)
    host, port = options.get("host", [parts.hostname])[0], options.get("port", [parts.port])[0]
    name = parts.path.strip("/")
    return f'host: "{host}", port: {port or 5432}, db: {name}, user: {parts.username}'


@contextmanager
def start(place: Place) -> Iterator[tuple[int, int]]:
    """Port and process id; raises `Missing` if it can't be had."""
    program, port = _program(place), free_port()
    place.directory.mkdir(parents=True)
    path = place.directory / "config.yaml"
    values = {"upstream_port": place.upstream_port, "port": port}
    path.write_text(_CONFIG.format(database=_database(place.dsn), **values))
    command = [str(program), "run", str(path), "--insecure"]
    url = f"http://127.0.0.1:{port}/v1/health"

    def find_port(_: str) -> int | None:
        return port if answers(url) else None

    with process(command, place.directory, find_port) as running:
        yield running
