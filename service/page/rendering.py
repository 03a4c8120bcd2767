"""Renders the page's templates: the one file that sees jinja2. Never here: what they show."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from service.page.texts import code_of

_HERE = Path(__file__).parent
STATIC = _HERE / "static"
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "moment": moment,
        "code": code_of,
        "seconds": seconds,
        "size": size,
        "number": number,
    }
    environment.filters.update(filters)
    environment.globals["static"] = static_path
    return environment


def render(template: str, **values: Any) -> str:
    """The HTML of a template with these values, all of them escaped."""
    return _environment().get_template(template).render(values)


@cache
def static_files() -> dict[str, tuple[bytes, str, str]]:
    """Name → bytes, type and digest of each file that pages link to."""
    found = {}
    for path in STATIC.iterdir():
        if path.suffix in _TYPES:
            data = path.read_bytes()
            found[path.name] = data, _TYPES[path.suffix], hashlib.sha256(data).hexdigest()[:12]
    return found


def static_path(name: str) -> str:
    """The address of a file that pages link to; another one once the file is another."""
    return f"/page/static/{name}?v={static_files()[name][2]}"


# --- values as people read them ---------------------------------------------------------------


def moment(at: float) -> str:
    """A time in UTC, to the second."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"


def seconds(value: float | None) -> str:
    """A span of seconds, to three digits: `0.82 s`, `12.3 s`, `4 min 5 s`, `2 h 3 min`."""
    if value is None:
        return "–"
    if value < 60:
        return f"{value:.2f} s" if value < 9.995 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(value: float) -> str:
    """A number of bytes."""
    for unit in ("bytes", "KB", "MB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GB"


def number(value: int) -> str:
    """A whole number, its thousands apart."""
    return f"{value:,}"
