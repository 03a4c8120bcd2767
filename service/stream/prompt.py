"""Holds what was asked for as long as it is needed, and no longer: a chat sends all of its history each
time, and an answer may take minutes.

Until the first token it may have to be sent to another agent. From then on the journal alone has it, if
it has it, until the record is made. Small ones are kept: they take less than reading them would.
"""

from attrs import evolve

from service.stream.ports import Journal
from statemachine import SessionRecord, SessionRequest, StreamSession


class Prompt:
    """What one completion was asked.

    Args:
        session: the completion's.
        journal: where it was written down.
    """

    __slots__ = ("_journal", "_session")

    def __init__(self, session: StreamSession, journal: Journal) -> None:
        self._session = session
        self._journal = journal

    @property
    def request(self) -> SessionRequest:
        """The whole request. Without messages and tools if the disk doesn't give them back."""
        held = self._session.request
        if self._session.has_prompt:
            return held
        return self._journal.request(held.completion_id) or held

    def let_go(self) -> None:
        """Nobody is to be sent it any more."""
        session = self._session
        if self._journal.has_request(session.request.completion_id):
            session.let_go_of_prompt()

    def put_back(self, record: SessionRecord) -> SessionRecord:
        """The session's record, with all that was asked."""
        if self._session.has_prompt:
            return record
        return evolve(record, request=self.request)
