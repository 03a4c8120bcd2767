"""Holds the configuration in force for everybody who reads it.

A part that must follow reloads keeps the `Live` and reads `value` each time it needs a key, so a
reload need not know the part. Never here: actions that a changed key asks for.
"""

from typing import Generic, TypeVar

T = TypeVar("T")


class Live(Generic[T]):
    """A value that one writer replaces while others read it."""

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value = value

    @property
    def value(self) -> T:
        """The newest value. Two reads may differ: keys that must agree are taken from one."""
        return self._value

    def publish(self, value: T) -> None:
        """Replace the value. Only the one writer calls this: for the configuration, `Reloader`."""
        self._value = value
