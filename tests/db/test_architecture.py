"""The rules of the store's own rooms, checked on the syntax trees."""

import ast
from pathlib import Path

from tests.architecture import ROOT, imports_of, tree_of
from tests.test_architecture import name_of

FILES = sorted((ROOT / "db").rglob("*.py"))
ARROWS = {
    # room: the only other rooms of db that it may see
    "dead_letters": {"journal", "postgres", "store"},
    "embedded": set(),
    "journal": set(),
    "memory": {"rows", "store"},
    "migrate": {"postgres", "store"},
    "postgres": {"rows", "store"},
    "rows": {"store"},
    "saver": {"store"},
    "store": set(),
}


def room_of(path: Path) -> str:
    """The folder that a file lies in, or its own name."""
    return path.relative_to(ROOT / "db").with_suffix("").parts[0]


def test_rooms_see_only_those_below() -> None:
    """The journal and the store's contract know no other room; the saver knows the contract
    alone, and neither the journal nor any store."""
    seen: dict[str, set[str]] = {}
    for path in FILES:
        if (room := room_of(path)) == "__init__":
            continue
        rooms = {name.split(".")[1] for name in imports_of(path) if name.startswith("db.")}
        seen.setdefault(room, set()).update(rooms - {room})
    assert ARROWS == seen


def test_records_are_saved_in_one_place() -> None:
    """Within db, the saver calls the store's `save` once, and a dead letter's retry once: nobody
    else decides what a failed save means."""
    calls = [
        (name_of(path), ast.unparse(node.func))
        for path in FILES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "save"
    ]
    assert [
        ("db/dead_letters.py", "store.save"),
        ("db/postgres/store.py", "saving.save"),  # the step behind `PostgresStore.save`
        ("db/saver.py", "self._store.save"),
    ] == sorted(calls)
