"""Reads what is in `deploy/`: YAML, a Dockerfile's steps, a unit's keys."""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from attrs import frozen

from service.settings.config import Config, load_config

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
TOOLS = os.environ.get("DEPLOY_TOOLS", "")
"""A folder with the programs that `make deploy` installs; empty without it."""
LAST_SAVES_SECONDS = 10
"""What a stop waits for the database after its drain (docs/operations.md, "Stopping")."""


def tool(name: str) -> str | None:
    """The program, if `make deploy` runs and it is there."""
    return shutil.which(name, path=f"{TOOLS}:{os.environ['PATH']}") if TOOLS else None


def documents(path: Path) -> list[Any]:
    """A YAML file's documents."""
    return list(yaml.safe_load_all(path.read_text("utf-8")))


def configuration(path: Path, **environ: str) -> Config:
    """As the service reads it; raises ConfigError if it would refuse it."""
    return load_config(path, environ=environ)


@frozen
class Step:
    """An instruction of a Dockerfile, and what follows it."""

    name: str
    argument: str


def steps(text: str) -> list[Step]:
    """A Dockerfile's instructions, their lines joined, without comments."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = (line.partition(" ") for line in joined.splitlines() if line.strip())
    return [Step(name.upper(), argument.strip()) for name, _, argument in found]


def stages(found: Sequence[Step]) -> list[list[Step]]:
    """They by stage, each beginning with its FROM; what stands before the first is left out."""
    parted: list[list[Step]] = []
    for step in found:
        if step.name == "FROM":
            parted.append([])
        if parted:
            parted[-1].append(step)
    return parted


def argument_of(found: Sequence[Step], name: str) -> str:
    """Of the one instruction of that name."""
    (only,) = (step.argument for step in found if step.name == name)
    return only


def variables(found: Sequence[Step], given: Mapping[str, str]) -> dict[str, str]:
    """What ENV sets, with what was there put in."""
    values = dict(given)
    for step in found:
        if step.name == "ENV":
            for key, value in re.findall(r"(\w+)=(\S+)", step.argument):
                values[key] = re.sub(r"\$(\w+)", lambda m: values.get(m[1], ""), value)
    return values
