"""`deploy/Dockerfile`: what can be told without building it. `make image` takes its steps."""

import json
import re
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from tests.architecture import PACKAGES
from tests.deploy.reading import DEPLOY, ROOT, argument_of, stages, steps, tool, variables

STEPS = steps((DEPLOY / "Dockerfile").read_text("utf-8"))
BUILD, LAST = stages(STEPS)


def setup(section: str) -> dict[str, str]:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", "utf-8")
    return dict(parser[section])


def copied() -> set[str]:
    """What the first stage takes of the repository."""
    sources = [step.argument.split()[:-1] for step in BUILD if step.name == "COPY"]
    return {name for names in sources for name in names}


def test_it_copies_what_the_package_is_built_of() -> None:
    """The packages, their description, and the versions to install; all of it is there."""
    expected = {"constraints.txt", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", *PACKAGES}
    assert expected == copied()
    assert [] == [name for name in copied() if not (ROOT / name).exists()]


def test_nothing_else_reaches_the_builder() -> None:
    """The ignore file lets through what is copied, and no more."""
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert "*" in lines
    assert copied() == {line[1:] for line in lines if line.startswith("!")}


def test_its_extras_and_its_python_are_supported() -> None:
    """The defaults of its arguments are names that `setup.cfg` has, and versions are pinned."""
    (extras,) = (step.argument for step in BUILD if step.name == "ARG")
    assert {"fast", "fleet"} == set(extras.partition("=")[2].split(","))
    assert {"fast", "fleet"} <= set(setup("options.extras_require"))
    python = STEPS[0].argument.partition("=")[2]
    assert f"Programming Language :: Python :: {python}" in setup("metadata")["classifiers"]
    (install,) = (step.argument for step in BUILD if step.name == "RUN")
    assert "--constraint constraints.txt" in install


def test_it_runs_as_nobody_in_particular_and_keeps_the_journal() -> None:
    """Not as root, whose number Kubernetes can tell; the journal is in the volume."""
    uid, _, gid = argument_of(LAST, "USER").partition(":")
    assert int(uid) > 1000
    (made,) = (step.argument for step in LAST if step.name == "RUN")
    volume = argument_of(LAST, "VOLUME")
    assert f"-o {uid} -g {gid} {volume}" in made
    environ = variables(LAST, {"PATH": "/usr/bin"})
    assert Path(environ["JOURNAL_DIR"]).is_relative_to(volume)
    assert environ["JOURNAL_DIR"] in made
    assert "/opt/verbatim/bin:/usr/bin" == environ["PATH"]


def test_its_command_is_the_service_itself() -> None:
    """In exec form, so that signals reach it; one of its names, and the port that is exposed."""
    assert json.loads(argument_of(LAST, "ENTRYPOINT")) == [
        setup("options.entry_points")["console_scripts"].strip().partition(" ")[0]
    ]
    command = json.loads(argument_of(LAST, "CMD"))
    port = argument_of(LAST, "EXPOSE")
    assert ["--host", "0.0.0.0", "--port", port] == command
    assert "SIGTERM" == argument_of(LAST, "STOPSIGNAL")
    health = argument_of(LAST, "HEALTHCHECK").partition(" CMD ")[2]
    assert f"127.0.0.1:{port}/healthz" in json.loads(health)[-1]


def test_its_linter_finds_nothing() -> None:
    """hadolint, with its defaults."""
    hadolint = tool("hadolint")
    if hadolint is None:
        pytest.skip("needs hadolint: make deploy")
    done = subprocess.run([hadolint, str(DEPLOY / "Dockerfile")], capture_output=True, text=True)
    assert (0, "") == (done.returncode, done.stdout)


def test_its_base_is_named_once_for_each_stage() -> None:
    """Both stages are of one image, so what was built fits where it is put."""
    bases = {re.sub(r" AS .*", "", stage[0].argument) for stage in (BUILD, LAST)}
    assert {"python:${PYTHON}-slim-bookworm"} == bases
