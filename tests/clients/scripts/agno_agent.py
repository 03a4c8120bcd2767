"""An agent of Agno, with a tool of its own. It shows no finish reason."""

from agno.agent import Agent
from agno.models.openai.like import OpenAILike

from tests.clients.scripts.told import IS_STREAMED, KEY, MODEL, QUESTION, URL, Told, tell


async def ask(told: Told) -> None:
    model = OpenAILike(id=MODEL, api_key=KEY, base_url=URL)
    agent = Agent(model=model, tools=[told.tool], telemetry=False)
    if not IS_STREAMED:
        run = await agent.arun(QUESTION)
        told.add(run.content, None, run.tools)
        return
    async for event in agent.arun(QUESTION, stream=True, stream_events=True):
        told.tool_calls += event.event.startswith("ToolCall")
        if event.event == "RunContent":
            told.add(event.content)


tell(ask)
