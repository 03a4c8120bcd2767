"""An agent of Pydantic AI, with a tool of its own."""

from pydantic_ai import Agent
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.clients.scripts.told import IS_STREAMED, KEY, MODEL, QUESTION, URL, Told, tell


async def ask(told: Told) -> None:
    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=URL, api_key=KEY))
    agent = Agent(model)
    agent.tool_plain(told.tool, name="weather")
    if IS_STREAMED:
        async with agent.run_stream(QUESTION) as run:
            async for text in run.stream_text(delta=True):
                told.add(text)
            messages = run.all_messages()
    else:
        result = await agent.run(QUESTION)
        told.add(result.output)
        messages = result.all_messages()
    _, answer = messages
    calls = [part for part in answer.parts if isinstance(part, ToolCallPart)]
    told.add("", answer.finish_reason, calls)


tell(ask)
