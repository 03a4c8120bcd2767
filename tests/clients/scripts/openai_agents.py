"""The OpenAI Agents SDK on chat completions, with a tool of its own. It shows no finish reason."""

from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI

from tests.clients.scripts.told import IS_STREAMED, KEY, MODEL, QUESTION, URL, Told, tell


async def ask(told: Told) -> None:
    set_tracing_disabled(True)
    model = OpenAIChatCompletionsModel(MODEL, AsyncOpenAI(base_url=URL, api_key=KEY))
    weather = function_tool(told.tool, name_override="weather")
    agent = Agent(name="asks", model=model, tools=[weather])
    if not IS_STREAMED:
        run = await Runner.run(agent, QUESTION)
        told.add(run.final_output, None, run.new_items[:-1])
        return
    stream = Runner.run_streamed(agent, QUESTION)
    async for event in stream.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            told.add(event.data.delta)
    told.add("", None, stream.new_items[:-1])
    assert told.text == stream.final_output


tell(ask)
