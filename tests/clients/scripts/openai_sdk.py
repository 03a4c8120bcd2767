"""The official SDK: `create`."""

from openai import AsyncOpenAI

from tests.clients.scripts.told import IS_STREAMED, KEY, MESSAGES, MODEL, URL, Told, tell


async def ask(told: Told) -> None:
    create = AsyncOpenAI(base_url=URL, api_key=KEY).chat.completions.create
    if not IS_STREAMED:
        (choice,) = (await create(model=MODEL, messages=MESSAGES)).choices
        told.add(choice.message.content, choice.finish_reason, choice.message.tool_calls)
        return
    async for chunk in await create(model=MODEL, messages=MESSAGES, stream=True):
        for each in chunk.choices:
            told.add(each.delta.content, each.finish_reason, each.delta.tool_calls)


tell(ask)
