"""Runs the application in a process, or in several on one port: binding, serving, signals, workers.

Skip it on a first reading: nothing in the rest of the service imports it, and with the default
`server.workers: 1` only `command`, `serving` and `hangup` do anything. The rest, 450 lines, is
worth its price where one core is not enough (docs/operations.md has the figures): several services
side by side could share a port too, but not the limit of streams, and a cancel would reach only the
one that it happened to be sent to.
"""
