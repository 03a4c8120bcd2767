"""The store in memory: what tests run on, and a second opinion on what the SQL means."""
