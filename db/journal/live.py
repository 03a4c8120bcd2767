"""Plays a journal's lines to a session as they come, for whoever reads along: `LiveReplay`.

What happened is told by lines alone, so a session that is played is at each moment what the original
was when it had written them. Where lines come from makes no difference here.
"""

from db.journal.reading import Damage, read_lines
from db.journal.replay import Replay
from statemachine import SessionRecord, StreamSession


class LiveReplay:
    """One completion.

    Attributes:
        first_session: it, once its first line has been read; also after its end.
        record: once it has ended, whole or not.
        is_damaged: a line was missing or not understood: nothing that comes can be trusted any more.
    """

    def __init__(self) -> None:
        self._replay = Replay((), shortcut=False)
        self.first_session: StreamSession | None = None
        self.record: SessionRecord | None = None
        self.is_damaged = False

    def feed(self, lines: bytes) -> None:
        """Take more lines, in their order."""
        for line in read_lines(lines):
            if isinstance(line, Damage):
                self.is_damaged = True
                return
            record = self._replay.take(line)
            if record is not None:
                self.record = record
            elif self.first_session is None:
                self.first_session = self._replay.session_of_one()
        self.is_damaged |= self._replay.is_damaged

    def end(self) -> None:
        """No more lines come: its process died. It ends as one that recovery brings back."""
        if self.record is None:
            self.record = self._replay.end_of_one()
