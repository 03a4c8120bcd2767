"""Names what the engine on Redis keeps, and reads entries of its streams. Pure.

Every key begins with `verbatim:1:` and lives for a limited time; what stands in braces decides the slot:

    verbatim:1:lease:{name}        token           who has a name
    verbatim:1:alive:{token}       name            a replica's lease
    verbatim:0:replicas            token → JSON    who joined, dead or alive, of all versions
    verbatim:1:adopt:{token}       token           who brings to an end what that one left
    verbatim:1:runs:{token}        id → owner      what runs under it
    verbatim:1:owner:{digest}      id → JSON       what an owner has under way, and who runs it
    verbatim:1:run:{id}            JSON            who runs a completion
    verbatim:1:log:{id}            stream          its lines; an entry's id is 1-<number of its first line>,
                                                   and that of the one that closes it 2-0
    verbatim:1:asked:{token}       list            commands for a replica, and answers to its own
    verbatim:1:bell:{token}        stream          by which a replica ends its own waiting
    verbatim:1:mark:{token}        text            gone if the engine was emptied
    verbatim:1:limit:{owner}       hash            when an owner's amounts will be full again
    verbatim:1:streams:{owner}     sorted set      the owner's streams, by when they stop counting
    verbatim:1:charged:{owner}:token  hash         what that replica has charged the owner for
    verbatim:1:claim:{digest}      hash            which completion holds an Idempotency-Key
    verbatim:1:knows:{token}       "1"             it has had that replica's claims since it had this

These are the same in every version, whose number stands in the key: `replicas`, with a name and a version;
`alive`; `runs`; and `run`, a list that begins with owner, replica and token. So one knows of the other.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from db.fleet.contract import CLOSED, VERSION, Entry

ROOT = "verbatim:"
PREFIX = f"{ROOT}{VERSION}:"
REPLICAS = f"{ROOT}0:replicas"
CLOSING_ID = "2-0"
"""Above each `1-N`: a stream takes no id that isn't above its last one."""


def key_of(kind: str, name: str, version: int | None = None) -> str:
    return f"{ROOT}{version or VERSION}:{kind}:{{{name}}}"


def owner_key(kind: str, owner: str) -> str:
    """The same of an owner, whatever is in that name: a brace would move the key to another slot."""
    return key_of(kind, quote(owner, safe="@"))


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
