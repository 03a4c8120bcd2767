"""`POST /v1/chat/completions/{id}/cancel`: an explicit stop, told apart from a lost connection."""

import asyncio
import json

import aiohttp
import pytest

from statemachine import ClientGone, State
from tests.service.conftest import Service, ServiceMaker, agent_for
from tests.service.stage.backend import Backend
from tests.service.stream.test_client_gone import talk_until_closed


async def first_id(response: aiohttp.ClientResponse) -> str:
    """The completion's id, from the first chunk."""
    line = await response.content.readuntil(b"\n")
    return str(json.loads(line.removeprefix(b"data: "))["id"])


async def cancel(service: Service, completion_id: str) -> tuple[int, dict[str, object]]:
    url = f"{service.url}/v1/chat/completions/{completion_id}/cancel"
    async with service.http.post(url) as response:
        return response.status, await response.json()


async def test_a_stopped_stream_ends_without_error_or_done(
    service: Service, backend: Backend
) -> None:
    """The stream just ends, without `[DONE]` and without an error; the upstream is closed; who
    has the answer can read the row, `client_gone` because of `stopped`."""
    backend.script = talk_until_closed
    async with service.post() as response:
        completion_id = await first_id(response)
        status, body = await cancel(service, completion_id)
        rest = await response.read()
    assert (status, body) == (
        200,
        {"id": completion_id, "object": "chat.completion.cancelled", "cancelled": True},
    )
    assert b"[DONE]" not in rest
    assert b"error" not in rest
    completion = await service.store.find(completion_id)
    assert completion is not None
    assert completion.error is not None
    assert (State.CLIENT_GONE, "stopped") == (completion.state, completion.error["code"])
    assert completion.client_left_at is None
    async with asyncio.timeout(1):
        await backend.exchanges[0].client_closed.wait()


async def test_an_answer_whose_client_left_can_be_stopped(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """Under `finish` an answer that goes on without its client can be stopped too."""
    backend.script = talk_until_closed
    service = await make_service(agent_for(backend), client_gone=ClientGone.FINISH)
    async with service.post() as response:
        completion_id = await first_id(response)
        response.close()
    async with asyncio.timeout(5):
        while service.relays[0].session.attached:
            await asyncio.sleep(0.01)
    assert 200 == (await cancel(service, completion_id))[0]
    record = await service.kept.one()
    assert record.failure is not None
    assert (State.CLIENT_GONE, "stopped") == (record.state, record.failure.code)
    assert record.client_left_at is not None


async def test_a_stopped_plain_request_is_a_409(service: Service, backend: Backend) -> None:
    """A client that waits for one object is told that there won't be one: 409, not to be retried."""
    backend.script = talk_until_closed
    asking = asyncio.create_task(service.stream(stream=False))
    async with asyncio.timeout(5):
        while not service.relays or not service.relays[0].session.transcript.chunk_count:
            await asyncio.sleep(0.01)
    status, _ = await cancel(service, service.relays[0].session.request.completion_id)
    answered = await asking
    assert (200, 409, "stopped") == (status, answered.status, answered.error["code"])
    assert "false" == answered.headers["x-should-retry"]


@pytest.mark.parametrize("completion_id", ["chatcmpl-unknown", "x" * 300])
async def test_an_id_that_does_not_run_is_not_found(service: Service, completion_id: str) -> None:
    """An id that doesn't run, or never did, is a 404 in OpenAI's shape."""
    status, body = await cancel(service, completion_id)
    assert (404, "not_found") == (status, body["error"]["code"])  # type: ignore[index]


async def test_an_ended_completion_cannot_be_stopped(service: Service) -> None:
    """What has ended can't be stopped any more, and stays as it ended."""
    streamed = await service.stream()
    completion_id = streamed.chunks[0]["id"]
    assert 404 == (await cancel(service, completion_id))[0]
    completion = await service.store.find(completion_id)
    assert completion is not None
    assert completion.state is State.COMPLETED
