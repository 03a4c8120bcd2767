"""The agent that asks an OpenAI-compatible backend through the `openai` SDK."""
