"""Fuzzes the API: Schemathesis makes requests from the served description, right and wrong ones,
and holds every answer to it. `make fuzz` runs it long; `test_openapi.py` runs it short.

The service is the real one over a real PostgreSQL, with an agent that answers at once.
"""

import argparse
import asyncio
import hashlib
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from aiohttp import web

from service.app import build_app
from service.edge.connections import Runner
from service.settings.access import ApiKeyConfig, AuthConfig
from service.settings.config import (
    Config,
    DatabaseConfig,
    JournalConfig,
    LoggingConfig,
    ScriptedAgentConfig,
)
from service.telemetry import configure_logging

QUICK = ScriptedAgentConfig(
    name="demo", kind="scripted", models=("*",), tokens_per_second=1e4, reply="Hello to you!"
)
LONG = ("--max-time", "300", "--continue-on-failure")
SETTINGS = Path(__file__).with_name("schemathesis.toml")


def command(url: str, *options: str, key: str | None = None) -> list[str]:
    """The command line that fuzzes the service at `url`."""
    keyed = [] if key is None else ["--header", f"Authorization: Bearer {key}"]
    program = [str(Path(sys.executable).with_name("st")), "--config-file", str(SETTINGS)]
    return [*program, "run", f"{url}/openapi.json", "--no-color", *keyed, *options]


async def fuzz(
    url: str, *options: str, key: str | None = None, output: int | None = None
) -> tuple[int, str]:
    """Run Schemathesis; its exit status and what it said, if `output` is a pipe."""
    process = await asyncio.create_subprocess_exec(
        *command(url, *options, key=key), stdout=output, stderr=output
    )
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode or 0, (said or b"").decode()


async def _main(keyed: bool, options: Sequence[str]) -> int:
    key = secrets.token_urlsafe(24) if keyed else None
    keys = () if key is None else (ApiKeyConfig("fuzz", hashlib.sha256(key.encode()).hexdigest()),)
    with TemporaryDirectory(prefix="verbatim-chat-") as directory:
        config = Config(
            auth=AuthConfig(keys),
            database=DatabaseConfig(data_dir=f"{directory}/postgres"),
            journal=JournalConfig(directory=f"{directory}/journal"),
            agents=(QUICK,),
        )
        runner = Runner(build_app(config), config.server.idle_timeout_seconds, 1.0)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0][:2]
            status, _ = await fuzz(f"http://{host}:{port}", *options, key=key)
        finally:
            await runner.cleanup()
    return status


def main(arguments: list[str]) -> int:
    """The command line; options that aren't known here go to Schemathesis."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.service.stage.fuzz_api", description=__doc__
    )
    parser.add_argument("--key", action="store_true", help="let the service ask for an API key")
    flags, options = parser.parse_known_args(arguments)
    configure_logging(LoggingConfig(level="error", format="console"))
    return asyncio.run(_main(flags.key, options or LONG))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
