"""Where answers are kept: the store's contract, PostgreSQL behind it, and the saver before it.

Knows `statemachine`'s values and nothing of HTTP.
"""
