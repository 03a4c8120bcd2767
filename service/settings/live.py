"""Holds the configuration in force for everybody who reads it.

A part that goes by a key of the newest configuration keeps the `Live` and reads `value` each time
it needs the key; so a reload need not know it. Never here: what a change asks for besides.
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
        """The newest value. Two reads may differ, so what must agree is read once."""
        return self._value

    def publish(self, value: T) -> None:
        """From now on this is the value. For the one writer: the configuration's is `Reloader`."""
        self._value = value
