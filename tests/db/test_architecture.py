"""A rule of the store's own, checked on the syntax trees; `tests/test_architecture.py` has the rest."""

import ast

from tests.architecture import ROOT, tree_of
from tests.test_architecture import name_of

FILES = sorted((ROOT / "db").rglob("*.py"))


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
        ("db/postgres/extending.py", "saving.save"),  # the steps behind `PostgresStore.save`
        ("db/postgres/store.py", "extending.save"),
        ("db/saver.py", "self._store.save"),
    ] == sorted(calls)
