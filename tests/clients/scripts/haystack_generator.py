"""Haystack's OpenAIChatGenerator: its reply, and what its callback was given."""

from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage, StreamingChunk
from haystack.utils import Secret

from tests.clients.scripts.told import IS_STREAMED, KEY, MODEL, QUESTION, URL, Told, tell


async def ask(told: Told) -> None:
    generator = OpenAIChatGenerator(Secret.from_token(KEY), model=MODEL, api_base_url=URL)

    async def seen(chunk: StreamingChunk) -> None:
        told.add(chunk.content, chunk.finish_reason, chunk.tool_calls)

    callback = seen if IS_STREAMED else None
    answer = await generator.run_async([ChatMessage.from_user(QUESTION)], callback)
    (reply,) = answer["replies"]
    if IS_STREAMED:
        assert (told.text, told.finish) == (reply.text, [reply.meta["finish_reason"]])
        told.add("", None, reply.tool_calls)
    else:
        told.add(reply.text, reply.meta["finish_reason"], reply.tool_calls)


tell(ask)
