"""Keeps the store's contract on PostgreSQL: statements, transactions, connections and their errors."""
