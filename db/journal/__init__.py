"""Keeps on disk what happens to running sessions, before anybody is shown it, and plays it back.

Skip this room on a first reading: the service begins a session here, appends what happens to it,
and forgets it once it is committed. Without a journal (`journal.directory: null`, `NoJournal`)
everything works but survives no kill. It is worth its price, the largest room of the store: with it
`kill -9` at any instant loses no word that a client saw.
"""

from db.journal.absent import NoJournal
from db.journal.writing import Fsync, Journal, JournalUnavailable

__all__ = ["Fsync", "Journal", "JournalUnavailable", "NoJournal"]
