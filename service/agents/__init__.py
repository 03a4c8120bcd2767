"""Agents: the configured upstreams that answer. `protocol` is what the service knows of them.

`openai` asks any OpenAI-compatible backend through the SDK, `scripted` answers from a script;
`directory` picks one by model name. An agent answers with a session's events, so a new kind that
speaks anything else is a new file here and a line in `directory`.
"""
