"""Runs a PostgreSQL of the service's own, for machines that have none (`database.url: embedded`).

Skip this room unless you change that: the rest of the service sees an address. It is worth its
price, because `make run` needs nothing installed, and the tests run on the real database.
"""

from db.embedded.cluster import EmbeddedUnavailable
from db.embedded.server import EmbeddedPostgres

__all__ = ["EmbeddedPostgres", "EmbeddedUnavailable"]
