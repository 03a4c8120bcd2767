"""`deploy/README.md` and `deploy/proxies/README.md` say what is there, and how it is checked."""

import re
from pathlib import Path

import pytest

from tests.deploy.reading import DEPLOY, ROOT
from tests.proxies.running import HAVE_REPLICAS

README = (DEPLOY / "README.md").read_text("utf-8")
PROXIES = (DEPLOY / "proxies" / "README.md").read_text("utf-8")
RECIPES = {
    "nginx": "nginx.conf",
    "Caddy": "Caddyfile",
    "HAProxy": "haproxy.cfg",
    "Traefik": "traefik.yaml",
    "Envoy": "envoy.yaml",
    "Apache": "apache.conf",
}


def test_everything_there_has_a_row() -> None:
    """By itself or with its folder, and with it a command that checks it."""
    rows = re.findall(r"^\| (.*?) \| .* \| (.*) \|$", README, re.MULTILINE)
    named = {link for cell, _ in rows for link in re.findall(r"\]\(([^)]*)\)", cell)}
    tops = {link.partition("/")[0] for link in named}
    assert {path.name for path in DEPLOY.iterdir()} == tops | {"README.md"}
    assert all("make " in how for cell, how in rows if "](" in cell)


@pytest.mark.parametrize("text", [README, PROXIES], ids=["deploy", "proxies"])
def test_commands_exist(text: str) -> None:
    """Each `make …` that is named is one."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)`", text))
    assert named
    assert set() == named - targets


@pytest.mark.parametrize(
    "file", [DEPLOY / "README.md", DEPLOY / "proxies/README.md"], ids=["deploy", "proxies"]
)
def test_links_lead_somewhere(file: Path) -> None:
    """Each is a file or a folder, and the heading is there."""
    for target, _, heading in re.findall(r"\]\(([^)#]*)(#([^)]*))?\)", file.read_text("utf-8")):
        found = (file.parent / target).resolve() if target else file
        assert found.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", found.read_text("utf-8"), re.MULTILINE)
            assert heading in [
                re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings
            ]


@pytest.mark.parametrize("name", RECIPES)
def test_the_table_is_about_the_recipes(name: str) -> None:
    """Each recipe for replicas has a column, of the version that it was tried with, and is tried with
    the same two replicas."""
    text = (DEPLOY / "proxies" / "replicas" / RECIPES[name]).read_text("utf-8")
    tried = re.search(r"Tried with ([\d.]+) ", text)
    assert tried
    assert f"| {name} {tried[1]} " in PROXIES
    if name == "Traefik":
        text = (DEPLOY / "proxies/replicas/traefik-routes.yaml").read_text("utf-8")
    for replica in ("verbatim-1", "verbatim-2"):
        assert replica in text


def test_each_recipe_is_tried() -> None:
    """By `make proxies`."""
    assert set(HAVE_REPLICAS) == {name.lower() for name in RECIPES}
