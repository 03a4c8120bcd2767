"""The store in PostgreSQL: the statements, and what becomes of a call whatever the connection does."""
