"""LlamaIndex's OpenAILike."""

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

from tests.clients.scripts.told import IS_STREAMED, KEY, MODEL, QUESTION, URL, Told, tell


async def ask(told: Told) -> None:
    model = OpenAILike(model=MODEL, api_base=URL, api_key=KEY, is_chat_model=True)
    messages = [ChatMessage(QUESTION)]
    if IS_STREAMED:
        async for each in await model.astream_chat(messages):
            for choice in each.raw.choices:
                told.add("", choice.finish_reason)
            told.add(each.delta)
    else:
        each = await model.achat(messages)
        told.add(each.message.content, each.raw.choices[0].finish_reason)
    told.tool_calls += len(each.message.additional_kwargs.get("tool_calls") or ())
    assert told.text == each.message.content


tell(ask)
