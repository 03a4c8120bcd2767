"""What several machines do for each other's completions: `Fleet`, made where `fleet.url` is set.

Skip this room on a first reading. It is worth its price: without it a completion is read and stopped where
it runs, and by the other workers of its machine; with it, by every replica.
"""
