"""The documents say what the code does: everything that has a name in both is compared.

What a test here can't check, a command in the documents reproduces.
"""

import ast
import json
import re
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import attrs
import pytest
import yaml

import service
from db.journal.format import JOURNALED
from service.completion_log import completion_fields
from service.edge.errors import ERROR_CODES
from service.process import command
from service.settings import config as configuration
from service.settings.access import ApiKeyConfig
from service.settings.admin import AdminKeyConfig
from service.settings.config import RELOADABLE, Config, OpenAIAgentConfig, ScriptedAgentConfig
from service.settings.tools import ToolServerConfig
from statemachine import (
    ChunkReceived,
    Save,
    SessionPolicy,
    SessionRecord,
    SessionRequest,
    StreamSession,
    UpstreamFinished,
    messages,
)
from tests import architecture
from tests.printing import PRINTED, between_markers, printed_anew

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

Rows = dict[str, list[str]]


def document(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def without_code_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of any level."""
    found = re.search(
        rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)",
        without_code_blocks(text),
        re.DOTALL | re.MULTILINE,
    )
    assert found, f"there is no heading {heading!r}"
    return found[1]


def rows(text: str) -> Rows:
    """The table rows whose first cell is a name in backticks: name → the other cells."""
    found: Rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and (name := re.fullmatch(r"`([^`]+)`", cells[0])):
            assert name[1] not in found, f"{name[1]} has two rows"
            found[name[1]] = cells[1:]
    return found


def same(documented: Rows, expected: Any) -> None:
    """Both name the same things; says which are missing and which are made up."""
    missing, made_up = set(expected) - set(documented), set(documented) - set(expected)
    assert (missing, made_up) == (set(), set()), "(missing, made up)"


# --- configuration ----------------------------------------------------------------------------


def keys_of(cls: type, prefix: str) -> Iterator[tuple[str, str]]:
    """Every key below an attrs class with its default as the documents write it."""
    for field in attrs.fields(cls):
        path = f"{prefix}{field.name}"
        kinds = get_args(field.type) if isinstance(field.type, types.UnionType) else ()
        inner = next((kind for kind in kinds if attrs.has(kind)), field.type)
        if isinstance(inner, type) and attrs.has(inner):
            yield from keys_of(inner, f"{path}.")
        else:
            yield path, default_of(field)


def default_of(field: "attrs.Attribute[Any]") -> str:
    default = field.default
    if default is attrs.NOTHING:
        return "required"
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # a class, though not to mypy
        default = default.factory()  # type: ignore[union-attr]
    if isinstance(default, float) and default.is_integer():
        default = int(default)
    match default:
        case None | bool():
            return f"`{json.dumps(default)}`"
        case str():
            return f"`{default}`"  # enums too: their text is their value
        case tuple() | list():
            return f"`{list(default)}`".replace("'", '"')
        case _:
            return f"`{default}`"


SCALARS = {
    field.name: field
    for field in attrs.fields(Config)
    if (isinstance(field.type, type) and not attrs.has(field.type)) or get_origin(field.type)
}
"""Keys at the top that are no section. One stands in the section of another whose name begins its."""


def configuration_sections() -> Iterator[tuple[str, dict[str, str]]]:
    """Heading → its keys with their defaults, from the classes."""
    for field in attrs.fields(Config):
        if field.name == "agents":
            kinds = {
                "kind: openai": dict(keys_of(OpenAIAgentConfig, "agents[].")),
                "kind: scripted": dict(keys_of(ScriptedAgentConfig, "agents[].")),
            }
            first, second = kinds.values()
            shared = {key: first[key] for key in first if first[key] == second.get(key)}
            yield "Every agent", shared
            yield (
                "Every server of tools",
                dict(keys_of(ToolServerConfig, "agents[].tools.servers[].")),
            )
            for kind, keys in kinds.items():
                yield f"`{kind}`", {k: v for k, v in keys.items() if k not in shared}
        elif isinstance(field.type, type) and attrs.has(field.type):
            yield f"`{field.name}`", dict(keys_of(field.type, f"{field.name}."))
            if field.name == "auth":
                yield "Every key", dict(keys_of(ApiKeyConfig, "auth.api_keys[]."))
            if field.name == "admin":
                yield "Every admin key", dict(keys_of(AdminKeyConfig, "admin.api_keys[]."))
        elif not any(field.name.startswith(f"{other}_") for other in SCALARS):
            group = [name for name in SCALARS if name.startswith(field.name)]
            yield f"`{field.name}`", {name: default_of(SCALARS[name]) for name in group}


@pytest.mark.parametrize(
    ("heading", "keys"), [*configuration_sections()], ids=lambda value: str(value)[:20]
)
def test_every_key_is_documented(heading: str, keys: dict[str, str]) -> None:
    """Each section names exactly the keys that the classes have, with their defaults."""
    documented = rows(section(document("docs/configuration.md"), heading))
    same(documented, keys)
    assert {key: cells[1] for key, cells in documented.items()} == keys


def test_the_union_of_agents_is_known() -> None:
    """A new kind of agent needs a section of its own here and in the document."""
    (agents,) = (field for field in attrs.fields(Config) if field.name == "agents")
    union = get_args(agents.type)[0]
    assert get_origin(union) is types.UnionType
    assert set(get_args(union)) == {OpenAIAgentConfig, ScriptedAgentConfig}


def test_config_yaml_holds_the_defaults() -> None:
    """The file that ships changes nothing: deleting it leaves the same configuration."""
    assert Config() == configuration.load_config(ROOT / "config.yaml", environ={})


def test_config_yaml_shows_every_key() -> None:
    """The file that ships names every key outside the agents, and every one of the openai agent
    but for those that most never touch."""
    tree = yaml.safe_load(document("config.yaml"))
    for field in attrs.fields(Config):
        if isinstance(field.type, type) and attrs.has(field.type):
            assert set(tree[field.name]) == {key.name for key in attrs.fields(field.type)}
    shown = set(tree["agents"][1])
    all_keys = {field.name for field in attrs.fields(OpenAIAgentConfig)}
    assert {"client_gone", "cut_off_reasons", "max_event_bytes"} == all_keys - shown


def test_environment_variables_are_documented() -> None:
    """The variables in the document, in `--help` and in the code are the same."""
    in_help = set(re.findall(r"^  ([A-Z_]{4,})  ", command.EPILOG, re.MULTILINE))
    in_code = {*configuration._ENVIRONMENT, "OPENAI_BASE_URL", "OPENAI_API_KEY", "API_KEYS"}
    assert in_help == in_code
    same(rows(section(document("docs/configuration.md"), "Environment")), in_code)


def test_reloadable_keys_are_documented() -> None:
    """The keys that a reload changes are those of the code, and they exist."""
    same(rows(section(document("docs/configuration.md"), "Reloading")), RELOADABLE)
    for key in RELOADABLE:
        section_name, _, name = key.partition(".")
        value = getattr(Config(), section_name)
        assert not name or hasattr(value, name)


def test_flags_are_documented(capsys: pytest.CaptureFixture[str]) -> None:
    """The flags in the document are those of `--help`."""
    with pytest.raises(SystemExit):
        command.parse_flags(["--help"])
    flags = set(re.findall(r"^  (?:-h, )?(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE))
    documented = rows(section(document("docs/configuration.md"), "Flags"))
    assert {name.partition(" ")[0] for name in documented} == flags


# --- API --------------------------------------------------------------------------------------


def test_error_codes_are_documented() -> None:
    """Every error code has a row, with its status."""
    codes = {
        code: cells
        for code, cells in rows(section(document("docs/api.md"), "Errors")).items()
        if len(cells) == 3
    }
    same(codes, ERROR_CODES)
    assert {code: int(cells[0]) for code, cells in codes.items()} == dict(ERROR_CODES)


def test_differences_from_openai_are_those_of_the_code() -> None:
    """The list in the API document is the one that opens `service/wire/__init__.py`."""
    in_code = ast.get_docstring(ast.parse(document("service/wire/__init__.py"))) or ""
    in_document = section(document("docs/api.md"), "Differences from OpenAI")
    assert numbered(in_document) == numbered(in_code)
    assert numbered(in_code)


def numbered(text: str) -> list[str]:
    """The items of a numbered list, with their line breaks undone."""
    items = re.findall(r"^\d+\. (.*?)(?=^\d+\. |^\S|\Z)", text, re.DOTALL | re.MULTILINE)
    return [" ".join(item.split()) for item in items]


# --- operations -------------------------------------------------------------------------------


def some_record() -> SessionRecord:
    request = SessionRequest("chatcmpl-1", 0.0, "", "anonymous", "demo", "demo", messages=())
    session = StreamSession(request, SessionPolicy())
    word = ChunkReceived({"choices": [{"index": 0, "delta": {"content": "Hi"}}]})
    effects = [*session.handle(word, 1.0), *session.handle(UpstreamFinished(), 2.0)]
    (record,) = (effect.record for effect in effects if isinstance(effect, Save))
    return record


def test_log_fields_are_documented() -> None:
    """The canonical line's fields have a row each, and the sample shows them in their order."""
    fields = list(completion_fields(some_record()))
    text = document("docs/operations.md")
    same(rows(section(text, "Logs")), fields)
    (sample,) = re.findall(r'^\{.*"completion finished".*\}$', text, re.MULTILINE)
    assert re.findall(r'"(\w+)":', sample)[3:-1] == fields


def tables() -> dict[str, list[str]]:
    """Table → its columns, from the migrations."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "db/migrations").glob("*.sql")):
        text = re.sub(r"--.*", "", path.read_text("utf-8"))
        for name, body in re.findall(r"CREATE TABLE (\w+) \((.*?)^\);", text, re.DOTALL | re.M):
            columns = re.findall(r"^    (\w+) [a-z]", body, re.MULTILINE)
            found[name] = [column for column in columns if column != "CONSTRAINT"]
        added = re.findall(r"ALTER TABLE (\w+)\s+ADD COLUMN (?:IF NOT EXISTS )?(\w+)", text)
        for name, column in added:
            found[name].append(column)
    return found


def test_there_are_tables() -> None:
    """The migrations are found and read."""
    assert {
        "completion_labels",
        "completions",
        "conversations",
        "deletions",
        "messages",
        "tool_calls",
        "tool_sets",
    } == set(tables())


@pytest.mark.parametrize("table", sorted(tables()))
def test_columns_are_documented(table: str) -> None:
    """Every column of every table has a row."""
    same(rows(section(document("docs/operations.md"), f"`{table}`")), tables()[table])


def test_the_journals_events_are_documented() -> None:
    """Every event that the journal writes by name has a row, with its fields, and no other has."""
    found = re.findall(r"^\| `([A-Z]\w+)` \| [^|]+ \|(.*)\|$", document("docs/journal.md"), re.M)
    documented = {name: set(re.findall(r"`(\w+)`", fields)) for name, fields in found}
    kinds: dict[str, type] = dict(JOURNALED)
    assert documented == {
        name: {field.name for field in attrs.fields(kind)} for name, kind in kinds.items()
    }


# --- architecture and state machine -----------------------------------------------------------


ROOM_PAGES = sorted(ROOT.glob("docs/rooms/*.md"))
PARTS_OF_A_PAGE = ["What it promises", "Main types", "The way through it", "Files"]
SKIPPED = {
    # what a newcomer may skip: its page, and the package that says so too
    "docs/rooms/agents.md": "service/agents/openai",
    "docs/rooms/claims.md": "db/claims",
    "docs/rooms/elsewhere.md": "service/fleet",
    "docs/rooms/embedded.md": "db/embedded",
    "docs/rooms/fleet.md": "db/fleet",
    "docs/rooms/journal.md": "db/journal",
    "docs/rooms/memory.md": "db/memory",
    "docs/rooms/process.md": "service/process",
}


def folder_of(page: Path) -> str:
    """The folder that a room's page is about, from its heading: `# `service/wire/``."""
    found = re.match(r"# `([\w/]+/)`", page.read_text("utf-8"))
    assert found, f"{page.name} has no folder in its heading"
    return found[1]


def files_of(page: Path) -> set[str]:
    """The files of that folder that are in no room of their own; `run.py` opens the hall."""
    folder, others = folder_of(page), {folder_of(other) for other in ROOM_PAGES}
    inner = {other for other in others if other.startswith(folder)} - {folder}
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    }
    files -= {name for name in files if name.startswith(tuple(inner))}
    return files | ({"run.py"} if folder == "service/" else set())


def defined_in(paths: Iterable[Path]) -> set[str]:
    """The names of all classes, functions and constants there, methods included."""
    nodes = [node for path in paths for node in ast.walk(architecture.tree_of(path))]
    named = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    constants = {
        target.id
        for node in nodes
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    return constants | {node.name for node in nodes if isinstance(node, named)}


def test_every_room_has_a_page() -> None:
    """The table of rooms links each page, under its folder's name; the packages' folders, down to
    those that only serve another, are all there."""
    linked = re.findall(r"^\| \[`([^`]+)`\]\((rooms/\w+\.md)\)", rooms_section(), re.MULTILINE)
    assert {folder: ROOT / "docs" / name for folder, name in linked} == {
        folder_of(page): page for page in ROOM_PAGES
    }
    boxes = {box for box in architecture.House().boxes() if not box.endswith(".py")}
    assert boxes | {"db"} == {folder.rstrip("/") for folder, _ in linked}


def rooms_section() -> str:
    return section(document("docs/architecture.md"), "Rooms")


@pytest.mark.parametrize("page", ROOM_PAGES, ids=lambda page: page.stem)
def test_every_file_of_a_room_is_documented(page: Path) -> None:
    """A room's page has a line for each of its files, and no other."""
    same(rows(section(page.read_text("utf-8"), "Files")), files_of(page))


@pytest.mark.parametrize("page", ROOM_PAGES, ids=lambda page: page.stem)
def test_main_types_are_in_their_room(page: Path) -> None:
    """What a page calls a main type is defined in its room."""
    names = set(rows(section(page.read_text("utf-8"), "Main types")))
    assert names
    assert names - defined_in(ROOT / name for name in files_of(page)) == set()


@pytest.mark.parametrize("page", ROOM_PAGES, ids=lambda page: page.stem)
def test_pages_of_rooms_are_alike(page: Path) -> None:
    """Each says first what its neighbours may rely on, and last, if anything, why it is so."""
    headings = re.findall(r"^## (.*)$", page.read_text("utf-8"), re.MULTILINE)
    ordered = [heading for heading in headings if heading in PARTS_OF_A_PAGE]
    assert PARTS_OF_A_PAGE == ordered
    assert "Why it is so" not in headings[:-1]


@pytest.mark.parametrize(("page", "package"), SKIPPED.items())
def test_doors_say_what_may_be_skipped(page: str, package: str) -> None:
    """What a newcomer may skip says so at its door, in the code and on its page, and why it is
    worth its price."""
    docstring = ast.get_docstring(ast.parse(document(f"{package}/__init__.py"))) or ""
    for text in (docstring, document(page)):
        assert "Skip" in text
        assert "worth its price" in " ".join(text.split())


def test_names_in_the_way_of_an_answer_exist() -> None:
    """The chart that people drew names classes and functions that are there."""
    (chart,) = re.findall(
        r"^## The way of one answer\n+```\n(.*?)^```", document("docs/architecture.md"), re.M | re.S
    )
    classes = re.findall(r"\b(?!PostgreSQL)[A-Z][a-z]+[A-Z]\w*|\b[A-Z][a-z]+\b", chart)
    functions = re.findall(r"(\w+)\(\)", chart)
    assert len(classes) > 10
    assert {*classes, *functions} - defined_in(architecture.source_files()) == set()


def test_every_event_and_effect_is_explained() -> None:
    """The document has a row for each event and each effect that there is, and for no other."""
    kinds = [kind for kind in vars(messages).values() if isinstance(kind, type)]
    bases = (messages.Event, messages.Effect)
    named = {kind.__name__ for kind in kinds if issubclass(kind, bases) and kind not in bases}
    same(rows(section(document("docs/state-machine.md"), "Events and effects")), named)


# --- all documents ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRINTED)
def test_what_is_printed_into_a_document_is_fresh(name: str) -> None:
    """State table, rooms and backends are what the code prints now."""
    assert printed_anew(name) == document(name), "run: make docs"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!-- x: begin -->",
        "<!-- x: end --> <!-- x: begin -->",
        "<!-- x: begin --> <!-- x: end --> <!-- x: end -->",
        "<!-- x: begin --> <!-- x: begin --> <!-- x: end -->",
    ],
)
def test_markers_that_are_not_a_pair_are_refused(text: str) -> None:
    """Nothing is printed where it isn't clear what it would replace."""
    with pytest.raises(ValueError, match="needs one <!-- x: begin -->"):
        between_markers(text, "x", "new")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_exist(path: Path) -> None:
    """Every `make …` in a document is a target."""
    targets = set(re.findall(r"^([a-z-]+):", document("Makefile"), re.MULTILINE))
    named = re.findall(r"(?:`|\$ |\d |unused |=1 |… )make ([a-z-]+)", path.read_text("utf-8"))
    assert set(named) <= targets


def test_readme_shows_its_two_commands() -> None:
    """The README shows how to run and how to test."""
    assert {"$ make run", "$ make test"} <= set(document("README.md").splitlines())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """Every relative link is to a file that is there, and to a heading in it if it names one."""
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code_blocks(path.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text("utf-8")), link


def anchors(text: str) -> set[str]:
    """GitHub's anchors of the headings."""
    headings = re.findall(r"^#+ (.*)$", without_code_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(path: Path) -> None:
    """Every file of ours that a document names is there."""
    named = re.findall(
        r"`((?:statemachine|service|db|tests|docs|benchmarks)/[\w./-]*)`", path.read_text("utf-8")
    )
    assert [] == [name for name in named if not (ROOT / name).exists()]


def test_versions_agree() -> None:
    """The version stands in the service alone: setup.cfg reads it there, and the changelog opens
    with it."""
    (in_metadata,) = re.findall(r"^version = (.+)", document("setup.cfg"), re.MULTILINE)
    in_changelog = re.findall(r"^## (\S+)", document("CHANGELOG.md"), re.MULTILINE)
    assert "attr: service.__version__" == in_metadata
    assert in_changelog[0] == service.__version__
