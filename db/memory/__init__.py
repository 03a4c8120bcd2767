"""Keeps the store's contract in memory, for tests and as a second opinion on what the SQL means."""
