"""LangChain's ChatOpenAI: its chunks, added up as its chains do."""

from langchain_openai import ChatOpenAI

from tests.clients.scripts.told import IS_STREAMED, KEY, MESSAGES, MODEL, URL, Told, tell


async def ask(told: Told) -> None:
    model = ChatOpenAI(base_url=URL, api_key=KEY, model=MODEL)
    if not IS_STREAMED:
        answer = await model.ainvoke(MESSAGES)
        told.add(answer.text, answer.response_metadata["finish_reason"], answer.tool_calls)
        return
    async for chunk in model.astream(MESSAGES):
        finish = chunk.response_metadata.get("finish_reason")
        told.add(chunk.text, finish, chunk.tool_call_chunks)


tell(ask)
