"""Keeps an answer from the database once in memory, however many read it, and counts who does."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from attrs import define

from service.stream.answers import StoredAnswer


class TooManyReaders(Exception):
    """As many read the answer as may."""


@define
class _Read:
    count: int = 0
    answer: StoredAnswer | None = None


class SharedAnswers:
    """The answers from the database that are being read in this process."""

    def __init__(self) -> None:
        self._read: dict[str, _Read] = {}

    @contextmanager
    def one_more(
        self, completion_id: str, most: int
    ) -> Iterator[Callable[[StoredAnswer], StoredAnswer]]:
        """Count a reader meanwhile. What is yielded takes what was read from the database, and gives
        back what others have of it already.

        Raises:
            TooManyReaders: there are `most`.
        """
        read = self._read.setdefault(completion_id, _Read())
        if read.count >= most:
            raise TooManyReaders

        def share(answer: StoredAnswer) -> StoredAnswer:
            if read.answer is None:
                read.answer = answer
            return read.answer

        read.count += 1
        try:
            yield share
        finally:
            read.count -= 1
            if not read.count:
                del self._read[completion_id]
