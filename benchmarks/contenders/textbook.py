"""Serves chat completions as tutorials do: FastAPI, the openai SDK, asyncpg.

What it leaves out is part of the comparison: nothing is kept of an answer that doesn't end well,
or when the client leaves. Runs in an environment of its own (`textbook.txt`):
`uvicorn --app-dir benchmarks/contenders textbook:app`, with OPENAI_BASE_URL and DATABASE_URL set.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from openai import AsyncOpenAI
from pydantic import BaseModel


class ChatRequest(BaseModel):
    model: str
    messages: list[dict[str, Any]]
    stream: bool = True


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.openai = AsyncOpenAI(api_key="none")
    app.state.database = await asyncpg.create_pool(os.environ["DATABASE_URL"])
    await app.state.database.execute(
        "CREATE TABLE IF NOT EXISTS textbook_answers"
        " (id text PRIMARY KEY, question text, answer text, created_at timestamptz DEFAULT now())"
    )
    yield
    await app.state.database.close()
    await app.state.openai.close()


app = FastAPI(lifespan=lifespan)


@app.post("/v1/chat/completions")
async def chat(request: ChatRequest) -> StreamingResponse:
    completion_id = f"chatcmpl-{uuid4().hex}"

    async def events() -> AsyncIterator[str]:
        answer = ""
        stream = await app.state.openai.chat.completions.create(
            model=request.model, messages=request.messages, stream=True
        )
        async for chunk in stream:
            chunk.id = completion_id
            if chunk.choices and chunk.choices[0].delta.content:
                answer += chunk.choices[0].delta.content
            yield f"data: {chunk.model_dump_json()}\n\n"
        await app.state.database.execute(
            "INSERT INTO textbook_answers (id, question, answer) VALUES ($1, $2, $3)",
            completion_id,
            str(request.messages[-1]["content"]),
            answer,
        )
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")
