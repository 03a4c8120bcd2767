"""Agents: the configured upstreams that answer. `protocol` is what the service knows of them.

`openai` asks any OpenAI-compatible backend through the SDK, `scripted` answers by itself from a
script; `directory` picks one by model name. A new kind of agent is a new file here and a line in
`directory`.
"""
