"""Builds the wheel and tries it where nothing of the source is.

    python -m tests.wheel           leaves the wheel in dist/

It is built from a copy, as setuptools would pack what an earlier build left behind, and installed
into a new environment with the versions of `constraints.txt`. There the command serves with its
defaults, in an empty directory: what one answer needs is then in the wheel.
"""

import http.client
import json
import shutil
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

from service import __version__
from tests.architecture import PACKAGES, ROOT

DESCRIPTION = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")
PATIENCE_SECONDS = 120.0
QUESTION = {
    "model": "demo",
    "stream": True,
    "messages": [{"role": "user", "content": "Hello!"}],
}


def main() -> int:
    """Build, install, serve; raises at the first thing that is not as it should be."""
    began = time.monotonic()
    with TemporaryDirectory(prefix="verbatim-wheel-") as name:
        place = Path(name)
        place.chmod(0o755)  # the embedded PostgreSQL may run as another user than root
        wheel = build(place / "source", ROOT / "dist")
        print(f"{wheel.relative_to(ROOT)}: {check_contents(wheel)} files", flush=True)
        command = install(wheel, place / "environment")
        (directory := place / "elsewhere").mkdir(mode=0o755)
        check_command(command, directory)
        check_service(command, directory)
    print(f"installed, served and stopped; {time.monotonic() - began:.0f} s in all")
    return 0


def build(copy: Path, target: Path) -> Path:
    """The wheel, made from a copy of the sources."""
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, copy / package, ignore=ignored)
    for file in DESCRIPTION:
        shutil.copy(ROOT / file, copy)
    _pip("wheel", "--no-deps", "--wheel-dir", str(target), str(copy))
    return target / f"verbatim_chat-{__version__}-py3-none-any.whl"


def check_contents(wheel: Path) -> int:
    """The number of files, which are those of the packages' directories and the metadata."""
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"db/py.typed", "service/endpoints/openapi.json"} <= expected
    with ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert expected == set(names), set(names) ^ expected
    return len(names)


def install(wheel: Path, environment: Path) -> Path:
    """The path of the command in a new environment."""
    venv.create(environment, symlinks=True)  # without pip: ours installs, in a third of the time
    python = environment / "bin" / "python"
    _pip(
        "--python", str(python),
        "install", "--no-compile", "--constraint", str(ROOT / "constraints.txt"),
        f"{wheel}[embedded]",
    )  # fmt: skip
    return environment / "bin" / "verbatim"


def _pip(*arguments: str) -> None:
    quiet = ("--quiet", "--disable-pip-version-check")
    subprocess.run([sys.executable, "-m", "pip", *quiet, *arguments], check=True)


def check_command(command: Path, directory: Path) -> None:
    """It says its version, and finds its own defaults good."""
    assert _said(command, "--version", directory) == f"verbatim {__version__}"
    assert "The default configuration is fine." == _said(command, "--check", directory)
    (directory / "config.yaml").write_text("server: {port: none}")
    refused = subprocess.run([command, "--check"], cwd=directory, capture_output=True, text=True)
    assert (2, True) == (refused.returncode, "config.yaml" in refused.stderr), refused
    (directory / "config.yaml").unlink()


def _said(command: Path, flag: str, directory: Path) -> str:
    done = subprocess.run(
        [command, flag], cwd=directory, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def check_service(command: Path, directory: Path) -> None:
    """One answer, streamed to its end and kept in the embedded PostgreSQL; then a clean stop."""
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [command, "--port", "0"], cwd=directory, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        connection = http.client.HTTPConnection("127.0.0.1", _port(process, directory / "log"))
        body = _asked(connection, "POST", "/v1/chat/completions", json.dumps(QUESTION))
        assert body.endswith("data: [DONE]\n\n"), body
        first = json.loads(body.partition("\n")[0].removeprefix("data: "))
        kept = json.loads(_asked(connection, "GET", f"/v1/chat/completions/{first['id']}"))
        assert kept["choices"][0]["message"]["content"] == _text_of(body), kept
        described = json.loads(_asked(connection, "GET", "/openapi.json"))
        assert described["info"]["title"], described
        connection.close()
        process.send_signal(signal.SIGTERM)
        assert 0 == process.wait(60)
    except BaseException:
        print((directory / "log").read_text(), file=sys.stderr)
        raise
    finally:
        if process.poll() is None:
            process.terminate()  # not killed, so that it stops its PostgreSQL
            process.wait(60)


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines(keepends=True):
            if '"serving"' in line and line.endswith("\n"):
                return int(json.loads(line)["url"].rpartition(":")[2])
        time.sleep(0.1)
    raise AssertionError("the service doesn't serve")


def _asked(
    connection: http.client.HTTPConnection, method: str, path: str, body: str | None = None
) -> str:
    headers = {"Content-Type": "application/json"}
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    text = response.read().decode()
    assert 200 == response.status, text
    return text


def _text_of(body: str) -> str:
    events: list[Any] = [
        json.loads(line.removeprefix("data: "))
        for line in body.splitlines()
        if line.startswith("data: {")
    ]
    choices = [choice for event in events for choice in event["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


if __name__ == "__main__":
    sys.exit(main())
