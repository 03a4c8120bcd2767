"""Keeps answers: the journal, the saver, and the store's contract with PostgreSQL behind it.

Knows the values of `statemachine`, and nothing of HTTP.
"""
