"""Checks a tree of plain values against attrs classes, and words the problems.

cattrs walks the tree; the strictness (no silent conversions) and the sentences are here. Knows no
key by name.
"""

import difflib
import enum
import json
import math
import re
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from attrs import fields, frozen, has
from cattrs import Converter, transform_error
from cattrs.errors import ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn

T = TypeVar("T")

_TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    dict: "a mapping of keys",
    tuple: "a list",
    type(None): "null",
}


_TELLTALE = 10**9
"""A whole number from this on isn't shown: it may be a key that has no letters."""


@frozen
class Allowed:
    """A rule for a value of the right type, and its wording: `Annotated[int, Allowed("…", rule)]`."""

    words: str
    rule: Callable[[Any], bool]


class Unfit(Exception):
    """What a `Made` can't make a value of; `allowed` says in words what it can."""

    def __init__(self, found: Any, allowed: str) -> None:
        super().__init__(allowed)
        self.found = found
        self.allowed = allowed


@frozen
class Made:
    """How a value is made of what the file says: `Annotated[Value, Made(make)]`. `make` may raise Unfit."""

    make: Callable[[Any], Any]


@frozen
class Source:
    """Where a value came from, if not from the file. `is_number`: a number that comes as text."""

    name: str
    is_number: bool = False


@frozen
class Problem:
    """One value that doesn't fit, or one missing or unknown key."""

    source: str
    path: str
    found: str
    allowed: str

    def __str__(self) -> str:
        where = f"{self.source}: {self.path}" if self.path else self.source
        return f"{where}: found {self.found}, allowed: {self.allowed}"


class ConfigError(Exception):
    """The configuration can't be used. The message has a line for each problem."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class _Refused(ValueError):
    def __init__(self, found: Any, allowed: str, key: str = "") -> None:
        super().__init__()
        self.found = _show(found)
        self.described = _describe(found)
        self.allowed = allowed
        self.key = key


def structure(
    tree: Mapping[str, Any],
    cls: type[T],
    *,
    file: str,
    sources: Mapping[tuple[str, ...], Source],
    secret: Collection[tuple[str, ...]] = (),
) -> T:
    """The tree as an instance of `cls`.

    Args:
        tree: plain values, as a YAML parser gives them.
        cls: an attrs class of checked fields.
        file: the name of the place that the tree came from.
        sources: key path → the other place that a value came from.
        secret: paths of keys; at them, right above them and below them no value is shown, and further
            above none that holds others.

    Raises:
        ConfigError: with every problem in the tree.
    """
    tree = _convert_texts(tree, sources)
    try:
        return _converter().structure(tree, cls)
    except Exception as error:
        raise ConfigError(_problems(error, file, sources, secret)) from None


def _problems(
    error: Exception,
    file: str,
    sources: Mapping[tuple[str, ...], Source],
    secret: Collection[tuple[str, ...]],
) -> list[Problem]:
    problems: list[Problem] = []
    for line in transform_error(error, path="", format_exception=_format):
        words, _, path = line.rpartition(" @ ")
        path = path.lstrip(".")
        keys = re.sub(r"\[\d+\]", "", path).split(".")
        source = next((sources[up] for up in _upwards(keys) if up in sources), Source(file))
        for key, found, allowed, safe_key, described in json.loads(words):
            if any(_conceals(hidden, keys, key, found) for hidden in secret):
                key, found = safe_key, described
            full = ".".join(part for part in (path, key) if part)
            problems.append(Problem(source.name, full, found, allowed))
    return problems


def _conceals(hidden: tuple[str, ...], keys: list[str], key: str, found: str) -> bool:
    """Whether what was found at a path, or at a key below it, isn't shown, as it may be a secret that belongs
    at `hidden`: at, below and right above it; and further above, if it has something in it."""
    if not all(map(str.__eq__, hidden, keys)):
        return False
    has_parts = found[:1] in ("{", "[") and found not in ("{}", "[]")
    return len(keys) + 1 >= len(hidden) or (has_parts and not key)


def _upwards(keys: list[str]) -> Iterator[tuple[str, ...]]:
    """A key path, and the paths above it."""
    for length in range(len(keys), 0, -1):
        yield tuple(keys[:length])


def _format(error: BaseException, _type: Any) -> str:
    """The problems as JSON, since cattrs wants a text: a list of
    [key, found, allowed, key without secrets, found without secrets].

    The key is one below the path that cattrs adds, or empty.
    """
    match error:
        case _Refused():
            problems = [(error.key, error.found, error.allowed, error.key, error.described)]
        case ForbiddenExtraKeysError():
            known = [attribute.name for attribute in fields(error.cl)]
            unknown = sorted(map(str, error.extra_fields))
            problems = [_unknown_key(known, key) for key in unknown]
        case KeyError():
            problems = [("", "nothing", "a value: this key must be given", "", "nothing")]
        case _:
            problems = [("", _show(str(error)), "a value that fits", "", "something else")]
    return json.dumps(problems)


def _unknown_key(known: list[str], key: str) -> tuple[str, str, str, str, str]:
    near = difflib.get_close_matches(key, known, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    found = "an unknown key"
    return (key, found, f"{', '.join(known)}{hint}", key if near else "", found)


_PASSWORDS = (
    re.compile(r"(://[^/?:@]*:)(?:[^/]*|[^?]*)(?=@)"),  # before the host, even badly quoted
    # Redis's user name without a password may be a token
    re.compile(r"(\b(?:rediss?(?:\+\w+)?|unix)://)(?!/)(?:[^/:\s]+|[^?:\s]+)(?=@)", re.IGNORECASE),
    # libpq, Redis and backends take secrets among the parameters too
    re.compile(r"([?&][^=&?]*?(?:password|key|token|secret)[^=&?]*=)[^&]*", re.IGNORECASE),
)


def mask_password(url: str) -> str:
    """The URL with every password in it replaced, and all else that is a secret by its name."""
    for password in _PASSWORDS:
        url = password.sub(r"\1***", url)
    return url


def _show(value: Any) -> str:
    text = repr(mask_password(value) if isinstance(value, str) else value)
    return text if len(text) <= 80 else text[:77] + "…"


def _describe(value: Any) -> str:
    """The kind of a value, without the value."""
    match value:
        case str():
            return f"a text of {len(value)} character{'' if len(value) == 1 else 's'}"
        case int() if abs(value) < _TELLTALE or isinstance(value, bool):
            return repr(value)
        case None | float():
            return repr(value)
    return next((words for kind, words in _TYPE_NAMES.items() if isinstance(value, kind)), "a list")


def _convert_texts(
    tree: Mapping[str, Any], sources: Mapping[tuple[str, ...], Source]
) -> dict[str, Any]:
    """A copy in which numbers that came as text, from the environment, are numbers."""
    copy = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in tree.items()
    }
    for keys, source in sources.items():
        if source.is_number:
            *parents, last = keys
            below: Any = copy
            for key in parents:
                below = below.get(key) if isinstance(below, dict) else None
            if isinstance(below, dict) and isinstance(below.get(last), str):
                below[last] = _number_or_text(below[last])
    return copy


def _number_or_text(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@cache
def _converter() -> Converter:
    converter = Converter(forbid_extra_keys=True, detailed_validation=True)
    for kind in (bool, int, str):
        converter.register_structure_hook(kind, _exactly(kind))
    converter.register_structure_hook(float, _structure_float)
    # By class, not by predicate: those come second, and to cattrs a StrEnum is a str.
    converter.register_structure_hook(enum.StrEnum, _structure_enum)
    converter.register_structure_hook_func(_is_plain_dict, _structure_dict)
    converter.register_structure_hook_factory(has, lambda cls: _structure_class(converter, cls))
    converter.register_structure_hook_factory(_is_tuple, lambda t: _structure_list(converter, t))
    converter.register_structure_hook_factory(_is_union, lambda t: _structure_union(converter, t))
    converter.register_structure_hook_func(_is_literal, _structure_literal)
    converter.register_structure_hook_factory(
        _is_annotated, lambda t: _structure_annotated(converter, t)
    )
    return converter


def _exactly(kind: type) -> Callable[[Any, Any], Any]:
    def check(value: Any, _: Any) -> Any:
        if type(value) is not kind:
            raise _Refused(value, _TYPE_NAMES[kind])
        return value

    return check


def _structure_float(value: Any, _: Any) -> float:
    try:
        number = float(value) if type(value) in (int, float) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _Refused(value, _TYPE_NAMES[float])
    return number


def _is_plain_dict(kind: Any) -> bool:
    return kind is dict or get_origin(kind) is dict


def _structure_dict(value: Any, _: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Refused(value, _TYPE_NAMES[dict])
    return dict(value)


def _structure_class(converter: Converter, cls: Any) -> Callable[[Any, Any], Any]:
    build = make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True)

    def check(value: Any, kind: Any) -> Any:
        if not isinstance(value, Mapping):
            raise _Refused(value, _TYPE_NAMES[dict])
        return build(value, kind)

    return check


def _is_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple


def _structure_list(converter: Converter, kind: Any) -> Callable[[Any, Any], Any]:
    list_of: Any = types.GenericAlias(list, (get_args(kind)[0],))

    def check(value: Any, _: Any) -> Any:
        if not isinstance(value, list):
            raise _Refused(value, _TYPE_NAMES[tuple])
        return tuple(converter.structure(value, list_of))

    return check


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (types.UnionType, Union)


def _structure_union(converter: Converter, kind: Any) -> Callable[[Any, Any], Any]:
    """Either `X | None`, or classes told apart by their `kind` field."""
    members = [member for member in get_args(kind) if member is not type(None)]
    if len(members) == 1:
        return lambda value, _: None if value is None else converter.structure(value, members[0])
    by_kind = {get_args(fields(member).kind.type)[0]: member for member in members}

    def check(value: Any, _: Any) -> Any:
        if not isinstance(value, Mapping):
            raise _Refused(value, _TYPE_NAMES[dict])
        name = value.get("kind")
        if not isinstance(name, str) or name not in by_kind:
            raise _Refused(name, " or ".join(by_kind), key="kind")
        return converter.structure(value, by_kind[name])

    return check


def _is_literal(kind: Any) -> bool:
    return get_origin(kind) is Literal


def _structure_literal(value: Any, kind: Any) -> Any:
    if value is False and "off" in get_args(kind):
        return "off"  # which YAML reads as false unless it is quoted
    if value not in get_args(kind):
        raise _Refused(value, " or ".join(map(str, get_args(kind))))
    return value


def _structure_enum(value: Any, kind: Any) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise _Refused(value, " or ".join(member.value for member in kind)) from None


def _is_annotated(kind: Any) -> bool:
    return get_origin(kind) is Annotated


def _structure_annotated(converter: Converter, kind: Any) -> Callable[[Any, Any], Any]:
    base, *notes = get_args(kind)
    rules = [note for note in notes if isinstance(note, Allowed)]
    made = next((note for note in notes if isinstance(note, Made)), None)

    def check(given: Any, _: Any) -> Any:
        try:
            value = made.make(given) if made else converter.structure(given, base)
        except Unfit as unfit:
            raise _Refused(unfit.found, unfit.allowed) from None
        except _Refused as refused:
            raise _Refused(given, rules[-1].words if rules else refused.allowed) from None
        for rule in rules:
            if not rule.rule(value):
                raise _Refused(given, rule.words)
        return value

    return check
