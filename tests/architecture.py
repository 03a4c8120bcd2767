"""Draws the house from its imports: which room needs which, on how many floors, any arrow up.

    python -m tests.architecture               print rooms and arrows
    python -m tests.architecture --files       with every file as a box of its own
    python -m tests.architecture --tree DIR    of another checkout

A box is what stands directly in a package: a folder with all below it, or a file of the package's
hall; a package without folders is one box. An arrow leads from a box to each other box that its
files import, wherever in a file, for type checkers alone too. `tests/test_architecture.py` holds
the rules over the same imports.
"""

import argparse
import ast
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("statemachine", "db", "service")
"""From the ground up: none imports one that is named after it."""
COMMAND = "run.py"

Boxes = Mapping[str, frozenset[str]]
"""Box → the boxes that it imports."""


# --- imports --------------------------------------------------------------------------------


def source_files(root: Path = ROOT) -> list[Path]:
    """The packages' Python files, and the command."""
    files = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    return sorted([*files, root / COMMAND])


@cache
def tree_of(path: Path) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse(path.read_text("utf-8"), filename=str(path))


@cache
def imports_of(path: Path) -> frozenset[str]:
    """The dotted names of all that a file imports, anywhere in it, also by a string.

    `from a.b import c` is `a.b.c`, whether that is a module or something within one.
    """
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        match node:
            case ast.Import(names=names):
                found.update(alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                found.update(f"{module}.{alias.name}" for alias in names)
            case ast.ImportFrom():
                found.add("a relative import")
            case ast.Call(func=function, args=[ast.Constant(value=str(module)), *_]):
                called = function.attr if isinstance(function, ast.Attribute) else function
                named = called.id if isinstance(called, ast.Name) else called
                if named in ("__import__", "find_spec", "import_module"):
                    found.add(module)
    return frozenset(found)


def top(module: str) -> str:
    """The package of a dotted name."""
    return module.partition(".")[0]


class House:
    """The files of a checkout and the imports among them."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self.files = source_files(root)

    def boxes(self, each_file: bool = False) -> Boxes:
        """Every box with those that it imports, by name; a box may be each single file."""
        arrows: dict[str, set[str]] = {}
        for path in self.files:
            box = self.box_of(path, each_file)
            targets = {self.box_of(target, each_file) for target in self.imported_by(path)}
            arrows.setdefault(box, set()).update(targets - {box})
        imported = set[str]().union(*arrows.values())
        # A package's docstring alone, which nobody needs, is no box.
        return {
            box: frozenset(targets)
            for box, targets in sorted(arrows.items())
            if targets or box in imported or box not in PACKAGES
        }

    def box_of(self, path: Path, each_file: bool = False) -> str:
        """The box that a file is in; a folder's `__init__.py` stands for the folder."""
        name = path.relative_to(self.root).as_posix().removesuffix("/__init__.py")
        package, *rest = name.split("/")
        if each_file or not rest:
            return name
        return f"{package}/{rest[0]}" if package in self._with_folders else package

    def imported_by(self, path: Path) -> set[Path]:
        """The house's own files that a file imports."""
        found = {self._file_of(name) for name in imports_of(path)}
        return {target for target in found if target is not None}

    def _file_of(self, name: str) -> Path | None:
        """The file that a dotted name leads to: `a/b.py` for `a.b.c` if `c` is something in it."""
        while name and name not in self._modules:
            name = name.rpartition(".")[0]
        return self._modules.get(name)

    @cached_property
    def _modules(self) -> dict[str, Path]:
        modules = {}
        for path in self.files:
            parts = path.relative_to(self.root).with_suffix("").parts
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        return modules

    @cached_property
    def _with_folders(self) -> set[str]:
        parts = [path.relative_to(self.root).parts for path in self.files]
        return {package for package, *rest in parts if len(rest) > 1}


# --- figures --------------------------------------------------------------------------------


def circles(boxes: Boxes) -> list[list[str]]:
    """The groups of boxes in which each leads to every other."""
    reach = {box: _reached(boxes, box) for box in boxes}
    groups = {frozenset(other for other in reach[box] if box in reach[other]) for box in boxes}
    return sorted(sorted(group) for group in groups if group)


def _reached(boxes: Boxes, start: str) -> set[str]:
    """All boxes that one leads to, itself only if in a circle."""
    found: set[str] = set()
    waiting = list(boxes[start])
    while waiting:
        box = waiting.pop()
        if box not in found:
            found.add(box)
            waiting.extend(boxes[box])
    return found


def floors(boxes: Boxes) -> list[list[str]]:
    """The boxes by the longest chain below them, from the ground up.

    Raises:
        ValueError: some are in a circle, and so on no floor.
    """
    if found := circles(boxes):
        raise ValueError(f"there are circles: {found}")
    heights: dict[str, int] = {}

    def height(box: str) -> int:
        if box not in heights:
            heights[box] = 1 + max(map(height, boxes[box]), default=-1)
        return heights[box]

    return [
        [box for box in boxes if height(box) == floor]
        for floor in range(1 + max(map(height, boxes), default=-1))
    ]


def upward(boxes: Boxes) -> list[tuple[str, str]]:
    """The arrows from a package to one above it."""
    order = [*PACKAGES, COMMAND]

    def level(box: str) -> int:
        return order.index(box.partition("/")[0])

    return [(box, target) for box in boxes for target in boxes[box] if level(target) > level(box)]


def longest_ways(boxes: Boxes) -> Boxes:
    """Without the arrows that a longer way along others leads to as well; for drawing."""
    reach = {box: _reached(boxes, box) for box in boxes}
    return {
        box: frozenset(
            target
            for target in targets
            if not any(target in reach[other] for other in targets if other != target)
        )
        for box, targets in boxes.items()
    }


def within(boxes: Boxes, package: str) -> Boxes:
    """The boxes of a package and the arrows among them."""
    inside = {box for box in boxes if box.partition("/")[0] == package}
    return {box: boxes[box] & inside for box in boxes if box in inside}


# --- printing -------------------------------------------------------------------------------


def printed(house: House, each_file: bool = False) -> str:
    """Figures, picture and list, as Markdown; no picture of single files."""
    boxes = house.boxes(each_file)
    parts = [figures_table(boxes), *([] if each_file else [picture(boxes)]), rooms_table(boxes)]
    return "\n\n".join(parts)


def figures_table(boxes: Boxes) -> str:
    """A row per package and one for all."""
    rows = [["", "boxes", "arrows", "floors", "arrows up", "circles"]]
    for package in PACKAGES:
        rows.append([f"`{package}/`", *_figures(within(boxes, package))])
    rows.append([f"all, with `{COMMAND}`", *_figures(boxes)])
    return _markdown_table(rows)


def _figures(boxes: Boxes) -> list[str]:
    round_about = circles(boxes)
    height = "none" if round_about else len(floors(boxes))
    figures = (len(boxes), sum(map(len, boxes.values())), height, len(upward(boxes)))
    return [str(figure) for figure in (*figures, len(round_about))]


def picture(boxes: Boxes) -> str:
    """A Mermaid flowchart, each package in a frame; only the longest ways, or nobody sees any."""
    drawn = longest_ways(boxes)
    lines = ["```mermaid", "flowchart TD"]
    for package in (COMMAND, *reversed(PACKAGES)):
        inside = [box for box in boxes if box.partition("/")[0] == package]
        if inside == [package]:
            lines.append(f"    {_node(package)}")
            continue
        lines.append(f"    subgraph {package}")
        lines += [f"        {_node(box)}" for box in inside]
        lines.append("    end")
    for box, targets in drawn.items():
        lines += [f"    {_key(box)} --> {_key(target)}" for target in sorted(targets)]
    return "\n".join([*lines, "```"])


def _node(box: str) -> str:
    return f'{_key(box)}["{box.partition("/")[2] or box}"]'


def _key(box: str) -> str:
    # Not the bare name: `service` is the frame's, and Mermaid keeps words such as `end`.
    return "box_" + box.replace("/", "_").replace(".", "_")


def rooms_table(boxes: Boxes) -> str:
    """A row per box, from the roof down, with all that it imports."""
    rows = [["floor", "room", "imports"]]
    for floor, group in reversed([*enumerate(_floors_or_one(boxes), start=1)]):
        for box in group:
            rows.append([str(floor), f"`{box}`", _names(boxes[box])])
    return _markdown_table(rows)


def _floors_or_one(boxes: Boxes) -> list[list[str]]:
    return [sorted(boxes)] if circles(boxes) else floors(boxes)


def _names(boxes: Iterable[str]) -> str:
    return ", ".join(f"`{box}`" for box in sorted(boxes)) or "nothing of ours"


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Print a house."""
    parser = argparse.ArgumentParser(prog="python -m tests.architecture")
    parser.add_argument("--files", action="store_true", help="print every file as a box")
    parser.add_argument(
        "--tree", type=Path, default=ROOT, metavar="DIR", help="a checkout; default: this one"
    )
    options = parser.parse_args()
    print(printed(House(options.tree.resolve()), options.files))


if __name__ == "__main__":
    main()
