"""The findings are listed, and have what a reader looks for. None is run here: they need a network."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FINDINGS = sorted((ROOT / "findings").glob("*.sh"))
HEADINGS = ["Versions", "Needs", "A good guess", "What happens", "Output seen on", "Why it matters"]
"""In this order; that of the output has its date too."""

each_finding = pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)


def table() -> dict[str, list[str]]:
    """The README's rows: a finding's name → the other cells."""
    text = (ROOT / "findings/README.md").read_text("utf-8")
    found = re.findall(r"^\| `([a-z0-9-]+)` \| (.*) \|$", text, re.MULTILINE)
    return {name: cells.split(" | ") for name, cells in found}


def head(path: Path) -> list[str]:
    """The comment that a script begins with, without its marks."""
    lines = path.read_text("utf-8").splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return [line[2:] for line in lines[1:end]]


def test_the_table_lists_every_finding() -> None:
    """The README's table has a row of four cells for each script, and no other."""
    assert list(table()) == [path.stem for path in FINDINGS]
    assert {3} == {len(cells) for cells in table().values()}


def test_files_named_in_the_table_exist() -> None:
    """Where our code deals with a finding, the README names a file that is there."""
    named = re.findall(r"`([\w/]+\.py)`", (ROOT / "findings/README.md").read_text("utf-8"))
    assert [] == [name for name in named if not (ROOT / name).exists()]


@each_finding
def test_a_finding_can_be_run(path: Path) -> None:
    """Each is executable, for sh, and without mistakes in its syntax."""
    assert os.access(path, os.X_OK)
    assert path.read_text("utf-8").startswith("#!/bin/sh\n# ")
    subprocess.run(["sh", "-n", path], check=True)


@each_finding
def test_a_finding_has_its_headings(path: Path) -> None:
    """Each begins with a sentence, and tells the rest under the same headings in the same order."""
    lines = head(path)
    found = [name for line in lines for name in HEADINGS if re.match(rf"{name}( [\d-]+)?:", line)]
    assert HEADINGS == found
    assert " ".join(lines[: lines.index("")]).endswith(".")


@each_finding
def test_a_finding_checks_what_it_prints(path: Path) -> None:
    """Each compares its output with the one in its head, and leaves no folder behind."""
    text = path.read_text("utf-8")
    assert 'sed -n \'/^# Output seen on/,/^#$/s/^#   //p\' "$0" | diff - "$folder/output"' in text
    assert "trap 'rm -rf \"$folder\"' EXIT" in text


@each_finding
def test_versions_are_the_installed_ones(path: Path) -> None:
    """The versions in the README's table are in the script's head, and are what it installs."""
    told = " ".join(head(path)).partition("Versions: ")[2].partition("Needs: ")[0]
    pins = re.findall(r"([a-z0-9-]+)(?:\[\w+\])?(?:==|@)([\d.]+)", path.read_text("utf-8"))
    for package in without_asides(table()[path.stem][0]).split(", "):
        assert package in without_asides(told)
        assert package in [" ".join(pin) for pin in pins]


def without_asides(text: str) -> str:
    return re.sub(r" \(.*?\)", "", text)


@each_finding
def test_a_finding_is_not_about_us(path: Path) -> None:
    """No script imports our code."""
    assert not re.search(
        r"^\s*(from|import) (service|db|statemachine)\b", path.read_text("utf-8"), re.MULTILINE
    )
