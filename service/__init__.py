"""The HTTP service: everything between the sockets and the state machine.

Reading order: `stream` (the life of one answer), `agents` (where it comes from), `endpoints` (the
way in), `app` (who is wired to whom); then `wire` (OpenAI's shapes), `settings`, `callers`, `edge`,
`process`.
"""

__version__ = "0.1.0"
