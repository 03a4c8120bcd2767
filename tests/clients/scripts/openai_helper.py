"""The official SDK: `chat.completions.stream`, which folds the chunks itself; plain, `parse`."""

from openai import AsyncOpenAI

from tests.clients.scripts.told import IS_STREAMED, KEY, MESSAGES, MODEL, URL, Told, tell


async def ask(told: Told) -> None:
    completions = AsyncOpenAI(base_url=URL, api_key=KEY).chat.completions
    if IS_STREAMED:
        async with completions.stream(model=MODEL, messages=MESSAGES) as stream:
            async for event in stream:
                told.tool_calls += "tool_calls" in event.type
            (choice,) = (await stream.get_final_completion()).choices
    else:
        (choice,) = (await completions.parse(model=MODEL, messages=MESSAGES)).choices
    told.add(choice.message.content, choice.finish_reason, choice.message.tool_calls)


tell(ask)
