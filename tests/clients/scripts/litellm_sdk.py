"""LiteLLM's SDK."""

import litellm

from tests.clients.scripts.told import IS_STREAMED, KEY, MESSAGES, MODEL, URL, Told, tell


async def ask(told: Told) -> None:
    answer = await litellm.acompletion(
        f"openai/{MODEL}", messages=MESSAGES, stream=IS_STREAMED, base_url=URL, api_key=KEY
    )
    if not IS_STREAMED:
        (choice,) = answer.choices
        told.add(choice.message.content, choice.finish_reason, choice.message.tool_calls)
        return
    async for chunk in answer:
        for each in chunk.choices:
            told.add(each.delta.content, each.finish_reason, each.delta.tool_calls)


tell(ask)
