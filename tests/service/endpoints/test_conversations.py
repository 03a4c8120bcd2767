"""A long conversation through the real service into a real database: what is stored of it, and the
tree that the API makes of that."""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from db.postgres.store import PostgresStore
from tests.db.records import assistant, user
from tests.postgres import execute
from tests.service.conftest import Service, ServiceMaker
from tests.service.endpoints.test_stored import QUICK, call

EXAMPLES = Path(__file__).parents[3] / "examples"


async def say(service: Service, history: list[dict[str, Any]]) -> dict[str, Any]:
    """Ask for the next answer the way a stateless client does: with all that was said."""
    async with service.post(stream=False, messages=history) as response:
        assert 200 == response.status
        return assistant((await response.json())["choices"][0]["message"]["content"])


async def nodes_of(service: Service, conversation: str, limit: int) -> list[dict[str, Any]]:
    """The whole tree, page by page."""
    nodes: list[dict[str, Any]] = []
    path = f"/v1/conversations/{conversation}?limit={limit}"
    has_more, after = True, ""
    while has_more:
        _, body = await call(service, path + after)
        nodes += body["nodes"]["data"]
        has_more, after = body["nodes"]["has_more"], f"&after={body['nodes']['last_id']}"
    return nodes


async def test_fifty_turns_with_an_edit_and_a_regeneration(
    make_service: ServiceMaker, database_url: str
) -> None:
    """Fifty turns are a hundred messages, the edit adds two and the regeneration one; the tree
    branches in those two places and nowhere else."""
    store = await PostgresStore.open(database_url)
    service = await make_service(QUICK, store=store)
    history: list[dict[str, Any]] = []
    for turn in range(50):
        history.append(user(f"Question {turn}"))
        history.append(await say(service, history))
    await say(service, [*history[:48], user("Question 24, put better")])
    await say(service, history[:-1])

    def count(table: str) -> int:
        return int(execute(database_url, f"SELECT count(*) FROM {table}")[0][0])

    assert (1, 52, 103) == (count("conversations"), count("completions"), count("messages"))
    _, page = await call(service, "/v1/conversations")
    (talk,) = page["data"]
    nodes = await nodes_of(service, talk["id"], 40)
    assert 103 == len(nodes)
    names = [node["id"] for node in nodes]
    parents = [node["parent_id"] and names.index(node["parent_id"]) for node in nodes]
    #       the conversation itself,   the edit and its answer,  the other last answer
    assert [None, *range(99), 47, 100, 98] == parents
    assert history == [
        {key: node["message"][key] for key in ("role", "content")} for node in nodes[:100]
    ]
    answers = [node["completion"] for node in nodes if node["completion"]]
    assert 52 == len({answer["id"] for answer in answers})
    _, sent = await call(service, f"/v1/chat/completions/{answers[-1]['id']}/messages?limit=100")
    assert history[:-1] == [{k: item[k] for k in ("role", "content")} for item in sent["data"]]
    await store.close()


async def test_the_python_example_runs(make_service: ServiceMaker) -> None:
    """The example for the official Python SDK finds everything as it should be."""
    await run_example(make_service, sys.executable, "stored_completions.py")


async def test_the_node_example_runs(make_service: ServiceMaker) -> None:
    """The same for the official Node SDK, where Node.js and the SDK are installed."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node on this machine")
    if not (EXAMPLES / "node_modules/openai").exists():
        pytest.skip("the Node SDK isn't installed: npm install --prefix examples")
    await run_example(make_service, node, "stored_completions.mjs")


async def run_example(make_service: ServiceMaker, program: str, name: str) -> None:
    service = await make_service(QUICK)
    process = await asyncio.create_subprocess_exec(
        program,
        str(EXAMPLES / name),
        f"{service.url}/v1",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert 0 == process.returncode, output.decode()
    assert b"a deleted one is gone" in output
    assert b"WRONG" not in output
