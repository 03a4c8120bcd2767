"""What happened to running sessions, on disk before anybody is shown it, and the way back.

Skip it on a first reading: towards the rest of the service it is `append`, `begin` and `forget`,
and without it (`journal.directory: null`) everything works but survives no kill. It is worth its
price, the largest room of the store: `kill -9` at any instant loses no word that a client saw.
"""

from db.journal.absent import NoJournal
from db.journal.writing import Fsync, Journal, JournalUnavailable

__all__ = ["Fsync", "Journal", "JournalUnavailable", "NoJournal"]
