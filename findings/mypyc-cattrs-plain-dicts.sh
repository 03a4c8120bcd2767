#!/bin/sh
# Once a module of attrs classes is compiled by mypyc, cattrs leaves plain dicts where objects belong,
# or finds no way to make the class at all.
#
# Versions: mypy 2.4.1 (with mypyc), cattrs 26.2.1, attrs 26.1.0; Python 3.11.
# Needs: sh, python3 (3.11 or newer) with its headers, a C compiler, a Python package index.
#
# A good guess:
#   mypyc compiles what mypy understands, and the compiled module does the same, only quicker; where
#   it can't, compiling fails.
#
# What happens:
#   attrs classes compile without a word, but their `__annotations__` keep the outermost name only:
#   `list[Part]` becomes `list`, `Sequence[str]` becomes `Sequence`. cattrs makes its converters from
#   those. For a bare `list` it takes the elements as they come, so that `Message.parts` holds dicts
#   that look like what was meant until somebody asks for `.text`. For a bare `Sequence` it has no
#   converter, and raises. The source is the same in both runs.
#
# Output seen on 2026-11-28:
#   interpreted: Message(parts=[Part(text='hello')])
#   interpreted: Labels(names=('a', 'b'))
#   compiled: Message(parts=[{'text': 'hello'}])
#   compiled: StructureHandlerNotFoundError
#   compiled, what cattrs sees: {'parts': <class 'list'>} {'names': <class 'collections.abc.Sequence'>}
#
# Why it matters:
#   Journals, queues and requests are read back by such classes. Tests that make the objects by
#   calling the classes pass compiled as well; only reading stored data shows it. Keep the modules
#   whose annotations are read at run time out of mypyc, and run the whole test suite on the compiled
#   build.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    mypy==2.4.1 setuptools==84.2.1 cattrs==26.2.1 attrs==26.1.0
cat >"$folder/shapes.py" <<'END'
from collections.abc import Sequence

import attrs


@attrs.define
class Part:
    text: str


@attrs.define
class Message:
    parts: list[Part]


@attrs.define
class Labels:
    names: Sequence[str]
END
cat >"$folder/read.py" <<'END'
import cattrs

import shapes

HOW = "interpreted" if shapes.__file__.endswith(".py") else "compiled"
STORED = [(shapes.Message, {"parts": [{"text": "hello"}]}), (shapes.Labels, {"names": ["a", "b"]})]
for kind, stored in STORED:
    try:
        print(f"{HOW}: {cattrs.structure(stored, kind)}")
    except Exception as error:
        print(f"{HOW}: {type(error).__name__}")
if HOW == "compiled":
    print("compiled, what cattrs sees:", *(kind.__annotations__ for kind, _ in STORED))
END
(
    cd "$folder"
    venv/bin/python read.py >output
    MYPY_CACHE_DIR=cache venv/bin/mypyc shapes.py >compiling 2>&1 || { cat compiling >&2; exit 1; }
    venv/bin/python read.py >>output
)
cat "$folder/output"
sed -n '/^# Output seen on/,/^#$/s/^#   //p' "$0" | diff - "$folder/output" ||
    { echo "This is no longer what happens." >&2; exit 1; }
