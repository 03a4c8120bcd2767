"""Defines the keys `admin` and `metrics`: who may look at the service, where, and what it counts.

Never here: callers' keys (`service.settings.access`), which are others.
"""

from typing import Literal

from attrs import frozen

from service.settings.access import KeyConfig
from service.settings.kinds import Name, Port, Seconds


@frozen
class AdminKeyConfig(KeyConfig):
    """One person or program that may look: a name and the hash of its key."""


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
