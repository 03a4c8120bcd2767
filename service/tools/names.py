"""Makes names that models may call tools by. Pure."""

import hashlib
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from attrs import frozen

from service.tools.contract import SEPARATOR, Tool
from service.tools.link import Offered

LONGEST = 64
"""Of a function's name, as OpenAI checks it: `^[a-zA-Z0-9_-]{1,64}$`."""
_HASH_DIGITS = 8


@frozen
class ServerTool(Tool):
    """A tool of a server. Its `name` may differ from `own_name`, which the server calls it by."""

    own_name: str = ""


def named(server: str, offered: Iterable[Offered]) -> tuple[ServerTool, ...]:
    """The tools of a server under names that can be called, each once, in the server's order.

    A name that fits stays. Another is made fit, and ends in a hash of its own name: the same always, however
    the list changes. Of two tools with one own name the first counts.
    """
    own: dict[str, Offered] = {}
    for tool in offered:
        own.setdefault(tool.name, tool)
    taken = {name for name in own if _fits(server, name)}
    found: list[ServerTool] = []
    for name, tool in own.items():
        if not _fits(server, name):
            name = _made_fit(server, name, taken)
            taken.add(name)
        found.append(ServerTool(server, name, tool.description, tool.parameters, tool.name))
    return tuple(found)


def is_allowed(name: str, allow: Iterable[str], deny: Iterable[str]) -> bool:
    """Whether a tool may be called, by its own name: some pattern allows it and none denies it."""
    return any(fnmatchcase(name, pattern) for pattern in allow) and not any(
        fnmatchcase(name, pattern) for pattern in deny
    )


def _fits(server: str, name: str) -> bool:
    length = len(server) + len(SEPARATOR) + len(name)
    return length <= LONGEST and re.fullmatch(r"[A-Za-z0-9_-]+", name) is not None


def _made_fit(server: str, name: str, taken: Iterable[str]) -> str:
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    room = LONGEST - len(server) - len(SEPARATOR)
    for digits in range(_HASH_DIGITS, len(digest) + 1):
        kept = re.sub(r"[^A-Za-z0-9_-]", "_", name)[: max(0, room - digits - 1)]
        made = f"{kept}_{digest[:digits]}"[-room:]
        if made not in taken:
            return made
    return digest[:room]
