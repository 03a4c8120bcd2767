"""The model of smolagents, offered a tool. It shows no finish reason of a stream."""

from smolagents import OpenAIModel, tool

from tests.clients.scripts.told import IS_STREAMED, KEY, MODEL, QUESTION, URL, Told, tell


@tool
def weather() -> str:
    """Say what the weather is like."""
    raise AssertionError("nobody has asked for it")


async def ask(told: Told) -> None:
    model = OpenAIModel(MODEL, api_base=URL, api_key=KEY)
    messages = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    if IS_STREAMED:
        for delta in model.generate_stream(messages, tools_to_call_from=[weather]):
            told.add(delta.content, None, delta.tool_calls)
    else:
        answer = model.generate(messages, tools_to_call_from=[weather], tool_choice="auto")
        told.add(answer.content, answer.raw.choices[0].finish_reason, answer.tool_calls)


tell(ask)
