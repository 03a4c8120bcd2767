"""This process and its siblings: binding, serving, signals, workers, and what SIGHUP means.

Skip it unless you start the service some other way or set `server.workers`. Several processes
are worth their price only where one core isn't enough; docs/architecture.md has the figures.
"""
