"""The HTTP service: everything between the sockets and the state machine.

Reading order: `app` (who is wired to whom), `completions` (the way in), `relay` (drives one
session), `upstream` and `agents` (where tokens come from), `sse` (where they go), `wire`
(OpenAI's shapes), then `config`, `errors`, `lifecycle`, `telemetry`.
"""

__version__ = "0.1.0"
