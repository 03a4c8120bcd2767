"""Defines the keys `auth` and `limits`: who may call, and how much.

An API key may be pasted into the wrong place, so no problem that is found here shows a value; see
`SECRET`.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Annotated

from attrs import frozen

from service.settings.checking import Allowed, ConfigError, Problem
from service.settings.kinds import Count, Seconds

SECRET = (("admin", "api_keys"), ("auth",))
"""Paths of keys at which, above which and below which values are described and never shown."""

API_KEYS = "environment variable API_KEYS"
SHORTEST_KEY = 16
"""In characters. Keys are hashed once and without salt, which is safe if they can't be guessed."""

_name = Allowed(
    "1 to 64 letters, digits and . _ - @, a letter or digit first",
    lambda value: re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", value) is not None,
)
_hash = Allowed(
    "the 64 hex digits of a key's SHA-256 (make key NAME=… makes both)",
    lambda value: re.fullmatch(r"[0-9a-fA-F]{64}", value) is not None,
)
_PAIRS = f"name:key, a comma between two; a key has {SHORTEST_KEY} or more visible ASCII characters"

Hash = Annotated[str, _hash]
KeyName = Annotated[str, _name]


@frozen
class KeyConfig:
    """Whoever has a key: a name, and the hash of the key; of two while they change over."""

    name: KeyName
    sha256: Hash
    old_sha256: Hash | None = None

    @property
    def digests(self) -> tuple[bytes, ...]:
        """The SHA-256 of each key that may be presented, as 32 bytes."""
        texts = (self.sha256,) if self.old_sha256 is None else (self.sha256, self.old_sha256)
        return tuple(bytes.fromhex(text) for text in texts)


@frozen
class ApiKeyConfig(KeyConfig):
    """One caller: its name, the hash of its key, and what differs from `limits` and `sse`."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    max_concurrent_streams: Count | None = None
    max_answer_bytes: Count | None = None
    tool_calls_per_minute: Count | None = None
    keep_alive_interval_seconds: Seconds | None = None


@frozen
class AuthConfig:
    api_keys: tuple[ApiKeyConfig, ...] = ()


@frozen
class LimitsConfig:
    """How much each caller may use; None: no limit."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    max_concurrent_streams: Count | None = None
    max_answer_bytes: Count | None = 32 * 1024 * 1024
    tool_calls_per_minute: Count | None = None


def keys_from_environment(text: str) -> list[dict[str, str]]:
    """The entries of `auth.api_keys` that the variable `API_KEYS` stands for.

    Raises:
        ConfigError: an entry is not a pair of a name and a key.
    """
    entries: list[dict[str, str]] = []
    problems: list[Problem] = []
    for number, pair in enumerate(text.split(","), 1):
        name, colon, key = pair.strip().partition(":")
        if colon and re.fullmatch(f"[!-~]{{{SHORTEST_KEY},}}", key):
            entries.append({"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest()})
        else:
            fault = "a key that won't do" if colon else "no colon"
            problems.append(Problem(API_KEYS, "", f"{fault} in entry {number}", _PAIRS))
    if problems:
        raise ConfigError(problems)
    return entries


def key_problems(
    keys: Sequence[KeyConfig], path: str, source: str, owners: dict[bytes, str]
) -> list[Problem]:
    """The problems of the keys of a list: a name that occurs twice in it, a key that has an owner.

    Args:
        path: of the list, such as `auth.api_keys`.
        owners: the SHA-256 of a key → the path of who has it; these keys are added.
    """
    problems: list[Problem] = []
    names: dict[str, int] = {}
    for position, key in enumerate(keys):
        one = f"{path}[{position}]"
        if names.setdefault(key.name, position) != position:
            problems.append(Problem(source, f"{one}.name", repr(key.name), "a name used once"))
        for field, digest in zip(("sha256", "old_sha256"), key.digests, strict=False):
            if digest in owners:
                found = f"the key of {owners[digest]}"
                problems.append(Problem(source, f"{one}.{field}", found, "a key used once"))
            owners.setdefault(digest, one)
    return problems
