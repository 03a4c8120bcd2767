"""What is known of a backend's response, whichever way it was asked for (`connection`)."""

from typing import Protocol, overload

from aiohttp.connector import Connection
from aiohttp.streams import StreamReader


class Found(Protocol):
    """Header fields that can be asked for."""

    @overload
    def get(self, name: str) -> str | None: ...

    @overload
    def get(self, name: str, default: str) -> str: ...


class Fields(Found, Protocol):
    """Header fields, whose names may be written in any case."""

    def __contains__(self, name: object) -> bool: ...

    def __getitem__(self, name: str) -> str: ...

    def getall(self, name: str) -> list[str]: ...


class Response(Protocol):
    """As much of a response as is read."""

    @property
    def status(self) -> int:
        """The status code."""

    @property
    def headers(self) -> Fields:
        """The header fields."""

    @property
    def content(self) -> StreamReader:
        """The body, as it comes."""

    @property
    def connection(self) -> Connection | None:
        """None once the connection may be another's."""

    def close(self) -> None:
        """Close the connection, unless it is given back already."""
