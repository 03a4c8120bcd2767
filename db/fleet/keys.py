"""Names what the engine on Redis keeps, and reads entries of its streams. Pure.

Every key begins with `verbatim:1:` and lives for a limited time; what stands in braces decides the slot:

    verbatim:1:lease:{name}        token           who has a name
    verbatim:1:alive:{token}       name            a replica's lease
    verbatim:1:replicas            token → JSON    who joined, dead or alive
    verbatim:1:adopt:{token}       token           who brings to an end what that one left
    verbatim:1:runs:{token}        id → owner      what runs under it
    verbatim:1:run:{id}            JSON            who runs a completion
    verbatim:1:log:{id}            stream          its lines; an entry's id is 1-<number of its first line>,
                                                   and that of the one that closes it 2-0
    verbatim:1:asked:{token}       list            commands for a replica, and answers to its own
    verbatim:1:bell:{token}        stream          by which a replica ends its own waiting
"""

from collections.abc import Mapping
from typing import Any

from db.fleet.contract import CLOSED, VERSION, Entry

PREFIX = f"verbatim:{VERSION}:"
CLOSING_ID = "2-0"
"""Above each `1-N`: a stream takes no id that isn't above its last one."""


def key_of(kind: str, name: str) -> str:
    return f"{PREFIX}{kind}:{{{name}}}"


def name_in(key: str) -> str:
    return key.partition("{")[2][:-1]


def after_id(number: int) -> str:
    if number >= CLOSED:
        return CLOSING_ID
    return "0" if number < 0 else f"1-{number}"


def number_of(entry_id: bytes) -> int:
    return CLOSED if entry_id == CLOSING_ID.encode() else int(entry_id.partition(b"-")[2])


def text_of(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def entry_of(completion_id: str, entry_id: bytes, fields: Mapping[bytes, bytes]) -> Entry:
    return Entry(completion_id, number_of(entry_id), int(fields[b"c"]), fields[b"l"])


def entries_of(found: Any) -> list[Entry]:
    """What `XREAD` gives, in either version of the protocol."""
    if not found:
        return []
    items = found.items() if isinstance(found, dict) else found
    entries = []
    for key, added in items:
        name = name_in(text_of(key))
        if isinstance(found, dict):
            added = [each for part in added for each in part]
        entries += [entry_of(name, *item) for item in added]
    return entries
