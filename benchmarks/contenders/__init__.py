"""Starts each contender, on the server's core, in front of the same backend."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.contenders import ogx, rust
from benchmarks.contenders.contender import Contender, Missing, Place, Target
from benchmarks.stand.running import agent, answers, environment, free_port, process, service
from service import __version__

__all__ = ["CONTENDERS", "Contender", "Missing", "Place", "Target", "nginx", "our_config"]

HERE = Path(__file__).parent
_MOST_STREAMS = 10_000


# --- ours -------------------------------------------------------------------------------------


def our_config(place: Place) -> dict[str, Any]:
    """Everything on, defaults but for what a benchmark needs: room for all streams."""
    return {
        "server": {"max_concurrent_streams": _MOST_STREAMS},
        "sse": {"keep_alive_interval_seconds": place.keep_alive_seconds},
        "database": {"url": place.dsn},
        "agents": [agent(place.upstream_port)],
    }


def _ours(place: Place) -> AbstractContextManager[tuple[int, int]]:
    return service(place.directory, our_config(place))


def _bare(place: Place) -> AbstractContextManager[tuple[int, int]]:
    config = {**our_config(place), "journal": {"directory": None}}
    return service(place.directory, config, [str(HERE / "bare.py")])


# --- the least --------------------------------------------------------------------------------


def _passthrough(place: Place) -> AbstractContextManager[tuple[int, int]]:
    base_url = f"http://127.0.0.1:{place.upstream_port}"
    command = [sys.executable, str(HERE / "passthrough.py"), base_url]

    def find_port(log: str) -> int | None:
        found = re.search(r"^port (\d+)$", log, re.MULTILINE)
        return int(found[1]) if found else None

    return process(command, place.directory, find_port)


# --- nginx ------------------------------------------------------------------------------------

_NGINX = """
daemon off;
worker_processes {workers};
worker_rlimit_nofile 20000;
error_log stderr;
pid {directory}/pid;
{user}
events {{ worker_connections 18000; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  upstream backend {{ server 127.0.0.1:{upstream_port}; keepalive 1000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    keepalive_requests 100000000;
    location / {{
      proxy_pass http://backend;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600;
    }}
  }}
}}
"""


def _nginx_program() -> str:
    found = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/bin") or ""
    found = shutil.which("nginx") or found
    if not found:
        raise Missing("nginx is not installed (on Debian: apt install nginx-light)")
    return found


@contextmanager
def nginx(place: Place, workers: int = 1, *, is_pinned: bool = True) -> Iterator[tuple[int, int]]:
    """Port and process id of an nginx that passes everything on, with so many workers."""
    port, program = free_port(), _nginx_program()
    place.directory.mkdir(parents=True)
    place.directory.chmod(0o755)
    is_root = place.directory.stat().st_uid == 0
    config = _NGINX.format(
        workers=workers,
        directory=place.directory,
        upstream_port=place.upstream_port,
        port=port,
        user="user root;" if is_root else "",
    )
    path = place.directory / "nginx.conf"
    path.write_text(config)
    command = [program, "-p", str(place.directory), "-c", str(path)]
    url = f"http://127.0.0.1:{port}/v1/models"

    def find_port(_: str) -> int | None:
        return port if answers(url) else None

    with process(command, place.directory, find_port, is_pinned=is_pinned) as running:
        yield running


def _nginx_version() -> str:
    shown = subprocess.run([_nginx_program(), "-v"], capture_output=True, text=True).stderr
    return shown.strip().rpartition("/")[2]


# --- in environments of their own ----------------------------------------------------------------


def _installed(name: str, place: Place) -> Path:
    try:
        return environment(name, HERE / f"{name}.txt", place.tell)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Missing(f"{name} can't be installed: {error}") from error


def _pinned(name: str, package: str) -> str:
    pins = (HERE / f"{name}.txt").read_text()
    found = re.search(rf"^{package}(?:\[.*\])?==(\S+)", pins, re.MULTILINE)
    return found[1] if found else "unknown"


@contextmanager
def _textbook(place: Place) -> Iterator[tuple[int, int]]:
    uvicorn = _installed("textbook", place) / "uvicorn"
    command = [str(uvicorn), "--app-dir", str(HERE), "textbook:app", "--port", "0"]
    environ = {
        "DATABASE_URL": place.dsn,
        "OPENAI_BASE_URL": f"http://127.0.0.1:{place.upstream_port}/v1",
    }

    def find_port(log: str) -> int | None:
        found = re.search(r"running on http://127.0.0.1:(\d+)", log)
        return int(found[1]) if found else None

    with process(command, place.directory, find_port, environ) as running:
        yield running


_LITELLM = """
model_list:
  - model_name: bench
    litellm_params:
      model: openai/bench
      api_base: http://127.0.0.1:{upstream_port}/v1
      api_key: none
litellm_settings:
  telemetry: false
# Nobody here asks callers for a key; LiteLLM wants to be told that this is meant.
general_settings:
  dangerously_permit_weak_or_unset_master_key: true
"""


@contextmanager
def _litellm(place: Place) -> Iterator[tuple[int, int]]:
    program, port = _installed("litellm", place) / "litellm", free_port()
    place.directory.mkdir(parents=True)
    path = place.directory / "config.yaml"
    path.write_text(_LITELLM.format(upstream_port=place.upstream_port))
    command = [str(program), "--config", str(path), "--host", "127.0.0.1", "--port", str(port)]
    environ = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    url = f"http://127.0.0.1:{port}/health/liveliness"
    place.tell("LiteLLM is starting (about half a minute)")

    def find_port(_: str) -> int | None:
        return port if answers(url) else None

    with process(command, place.directory, find_port, environ) as running:
        yield running


def _textbook_version() -> str:
    fastapi, openai = _pinned("textbook", "fastapi"), _pinned("textbook", "openai")
    return f"FastAPI {fastapi}, openai {openai}, uvicorn {_pinned('textbook', 'uvicorn')}"


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("ours", "our service, journal and PostgreSQL on", _ours, lambda: __version__),
        Contender("bare", "our service, nothing kept", _bare, lambda: __version__),
        Contender(
            "aiohttp",
            "forty lines that pass bytes on: the framework's part of ours",
            _passthrough,
            lambda: aiohttp.__version__,
        ),
        Contender("nginx", "proxy_pass, unbuffered, one worker: the floor", nginx, _nginx_version),
        Contender(
            "rust",
            "rig-core, axum, sqlx, saved at the end and when it breaks off",
            rust.start,
            rust.version,
        ),
        Contender(
            "textbook",
            "FastAPI, openai SDK, asyncpg, saved at the end",
            _textbook,
            _textbook_version,
            idle_streams=900,
            why_no_more="the SDK's client opens 1,000 connections at most",
            burst_share=0.1,
            most_rounds=3,
            has_plain=False,
        ),
        Contender(
            "litellm",
            "LiteLLM proxy, nothing kept",
            _litellm,
            lambda: _pinned("litellm", "litellm"),
            idle_streams=500,
            why_no_more="opening more takes minutes",
            burst_share=0.02,
            most_rounds=2,
        ),
        Contender(
            "ogx",
            "OGX, completions stored after they are answered",
            ogx.start,
            lambda: _pinned("ogx", "ogx"),
            idle_streams=500,
            why_no_more="opening more takes minutes",
            burst_share=0.02,
            most_rounds=2,
            is_on_demand=True,
        ),
    )
}
