"""Defines the keys `admin` and `metrics`: who may look at the service, where, and what it counts.

Never here: callers' keys (`service.settings.access`), which are others.
"""

from collections.abc import Sequence
from typing import Literal

from attrs import frozen

from service.settings.access import ApiKeyConfig, Hash, KeyName
from service.settings.checking import Problem
from service.settings.kinds import Name, Port, Seconds


@frozen
class AdminKeyConfig:
    """One person or program that may look: a name and the hash of its key."""

    name: KeyName
    sha256: Hash
    old_sha256: Hash | None = None

    @property
    def digests(self) -> tuple[bytes, ...]:
        """The SHA-256 of each key that may be presented, as 32 bytes."""
        texts = (self.sha256,) if self.old_sha256 is None else (self.sha256, self.old_sha256)
        return tuple(bytes.fromhex(text) for text in texts)


@frozen
class AdminConfig:
    """The page and `/metrics`: who may look at them, and where they are.

    Attributes:
        api_keys: none: only this machine may look, and only while no caller needs a key either.
        host: of the address of its own.
        port: of the same; None: they are where the API is.
        texts: whether chats may be read there.
        session_seconds: how long a sign-in holds.
    """

    api_keys: tuple[AdminKeyConfig, ...] = ()
    host: Name = "127.0.0.1"
    port: Port | None = None
    texts: Literal["show", "hide"] = "show"
    session_seconds: Seconds = 43200.0


@frozen
class MetricsConfig:
    """What is counted; see `docs/configuration.md`."""

    enabled: bool = True
    per_owner: bool = False


def admin_key_problems(
    admins: Sequence[AdminKeyConfig], callers: Sequence[ApiKeyConfig], source: str
) -> list[Problem]:
    """The problems of the keys together: a name that occurs twice; a key that occurs twice, or that is
    also a caller's."""
    problems: list[Problem] = []
    names: dict[str, int] = {}
    owners = {
        digest: f"auth.api_keys[{position}]"
        for position, key in enumerate(callers)
        for digest in key.digests
    }
    for position, key in enumerate(admins):
        path = f"admin.api_keys[{position}]"
        if names.setdefault(key.name, position) != position:
            problems.append(Problem(source, f"{path}.name", repr(key.name), "a name used once"))
        for field, digest in zip(("sha256", "old_sha256"), key.digests, strict=False):
            if digest in owners:
                found = f"the key of {owners[digest]}"
                problems.append(Problem(source, f"{path}.{field}", found, "a key used once"))
            owners.setdefault(digest, path)
    return problems
