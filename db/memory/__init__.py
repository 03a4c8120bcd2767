"""Keeps the store's contract in memory, for tests and as a second opinion on what the SQL means.

Skip it unless you change the store's contract. It is worth its price because each test of the
contract runs over both stores, so that a misreading of it shows as a difference.
"""
