"""Measures what the tapes of answers take in their rows.

    python -m benchmarks.questions.tapes

Has the service answer from the built-in agent, and from a backend that says words of this project's
documents, some four characters a chunk, with everything else as OpenAI's API has it; then asks
PostgreSQL for the sizes as they are stored, compressed where it does that.
"""

import asyncio
import json
import re
import tempfile
from pathlib import Path
from random import Random
from string import ascii_letters, digits
from typing import Any

import aiohttp
from aiohttp import web

from benchmarks.stand.figures import print_table
from benchmarks.stand.running import ROOT, Server, agent, service

LENGTHS = (10, 100, 1_000, 10_000)
LONGEST_TOKEN = 8
SIZES = """
SELECT chunk_count, pg_column_size(tape), pg_column_size(tape_lengths), (
    SELECT sum(octet_length(content)) FROM messages
    WHERE messages.completion_id = completions.completion_id
) FROM completions WHERE completion_id = '{}'
"""
_ENVELOPE = {
    "id": "chatcmpl-CH3uWYzbmCjhuUbRMg5nVkPJWnGs6",
    "object": "chat.completion.chunk",
    "created": 1767264752,
    "model": "gpt-4o-2024-08-06",
    "service_tier": "default",
    "system_fingerprint": "fp_e819e3438b",
}


def tokens(count: int) -> list[str]:
    """So many of the documents' words and signs, about as a model's tokenizer cuts them, in random order:
    PostgreSQL is not to find a sentence again."""
    lines = [
        line
        for path in sorted(ROOT.glob("docs/*.md"))
        for line in path.read_text("utf-8").splitlines()
        if re.match(r"[A-Z][^|`(]{30,}\.$", line)
    ]
    words = re.findall(r" ?\w+| ?[^\w\s]+", " ".join(lines))
    pieces = [
        word[at : at + LONGEST_TOKEN] for word in words for at in range(0, len(word), LONGEST_TOKEN)
    ]
    return Random(1).choices(pieces, k=count)


def _chunk(delta: dict[str, Any], end: str | None = None, index: int = 0, **fields: Any) -> bytes:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": end}
    event = {**_ENVELOPE, "choices": [choice], **fields}
    return f"data: {json.dumps(event, separators=(',', ':'), ensure_ascii=False)}\n\n".encode()


async def _answer(request: web.Request) -> web.StreamResponse:
    """Say as many chunks as the message asks for, in its way."""
    body = await request.json()
    count, way = json.loads(body["messages"][-1]["content"])
    choices, letters = range(body.get("n") or 1), Random(1)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for index in choices:
        await response.write(_chunk({"role": "assistant", "content": ""}, None, index))
    for token in tokens(count):
        fields = {}
        if way == "padded":
            padding = letters.choices(ascii_letters + digits, k=letters.randint(1, 16))
            fields["obfuscation"] = "".join(padding)
        for index in choices:
            await response.write(_chunk({"content": token}, None, index, **fields))
    for index in choices:
        await response.write(_chunk({}, "stop", index))
    await response.write(b"data: [DONE]\n\n")
    return response


async def _ask(port: int, model: str, text: str, **fields: Any) -> str:
    """The id of an answer that has been saved."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        async with http.post("/v1/chat/completions", json=body) as response:
            return str((await response.json())["id"])


async def _measure(directory: Path, server: Server) -> dict[str, dict[str, Any]]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", _answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    backend = agent(runner.addresses[0][1])
    demo = {"name": "demo", "kind": "scripted", "tokens_per_second": 1000}
    config = {"database": {"url": server.dsn}, "agents": [demo, backend]}
    table: dict[str, dict[str, Any]] = {}

    async def note(name: str, port: int, model: str, text: str, **fields: Any) -> None:
        completion_id = await _ask(port, model, text, **fields)
        ((chunks, tape, lengths, content),) = server.query(SIZES.format(completion_id))
        share = 100 * (tape + lengths) / int(content)
        sizes = {"chunks": chunks, "content": int(content), "tape": tape, "lengths": lengths}
        table[name] = {**sizes, "share %": share}

    with service(directory, config) as (port, _):
        await note("the demo agent's", port, "demo", "Hi")
        for count in LENGTHS:
            await note(f"plain, {count:,}", port, "bench", json.dumps([count, "plain"]))
        await note("padded, 1,000", port, "bench", json.dumps([1_000, "padded"]))
        await note("two choices, 500", port, "bench", json.dumps([500, "plain"]), n=2)
    await runner.cleanup()
    return table


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="verbatim-bench-") as name:
        server = Server(Path(name) / "postgres")
        try:
            table = asyncio.run(_measure(Path(name) / "service", server))
        finally:
            server.stop()
    print_table("answers, bytes", table)


if __name__ == "__main__":
    main()
