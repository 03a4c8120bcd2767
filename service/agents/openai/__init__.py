"""Asks OpenAI-compatible backends through the `openai` SDK, and reads their SSE as events.

The plain way is `agent` (what is asked), `answer` (one request and its events), `reads` (a socket
read's bytes to events) and `decoder` (SSE to chunks).

Skip `lane` and `pattern` on a first reading. They are the shortcut for repeated chunks, and
`OpenAIAgent(uses_shortcut=False)` does without. The shortcut is worth its price because it carries
nearly every chunk past aiohttp's parser, a task's waking, one parse and one write, at less than half
of what the plain way costs (`make instructions`).
"""
