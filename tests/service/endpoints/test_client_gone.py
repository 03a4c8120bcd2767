"""What the last reader's leaving means for one completion, and who has a say in it."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from attrs import evolve

from service.edge.errors import errors_middleware
from service.endpoints.client_gone import client_gone_policy
from service.settings.config import Config
from service.settings.readers import IdempotencyConfig
from service.telemetry import telemetry_middleware
from statemachine import ClientGone

CANCEL, WAIT, FINISH = ClientGone

Asking = Callable[..., Any]


@pytest.fixture
async def ask(aiohttp_client: Any) -> AsyncIterator[Asking]:
    """Asks what a request's policy is: `ask(config, agent_policy, has_key, header)` gives its word,
    or the error that it got."""
    current: list[Any] = []

    async def answer(request: web.Request) -> web.Response:
        config, agent_policy, has_key = current
        return web.Response(
            text=client_gone_policy(request, config, agent_policy, has_key=has_key).value
        )

    app = web.Application(middlewares=[telemetry_middleware, errors_middleware])
    app.router.add_get("/", answer)
    client: TestClient[web.Request, web.Application] = await aiohttp_client(app)

    async def asking(
        config: Config,
        agent_policy: ClientGone | None = None,
        has_key: bool = False,
        header: str | None = None,
    ) -> Any:
        current[:] = config, agent_policy, has_key
        headers = {} if header is None else {"x-client-gone": header}
        async with client.get("/", headers=headers) as response:
            if response.status == 200:
                return ClientGone(await response.text())
            return response.status, (await response.json())["error"]

    yield asking


def configured(
    client_gone: ClientGone = CANCEL, with_key: ClientGone = WAIT, **fields: Any
) -> Config:
    idempotency = IdempotencyConfig(client_gone=with_key)
    return evolve(Config(), client_gone=client_gone, idempotency=idempotency, **fields)


async def test_by_default_a_client_that_leaves_stops_its_answer(ask: Asking) -> None:
    """And one that says by a key that it will ask again is waited for."""
    assert CANCEL is await ask(Config())
    assert WAIT is await ask(Config(), has_key=True)


@pytest.mark.parametrize("service", ClientGone)
@pytest.mark.parametrize("agent", [None, *ClientGone])
async def test_an_agents_own_policy_wins_over_the_services(
    ask: Asking, service: ClientGone, agent: ClientGone | None
) -> None:
    """Up or down; none of its own means the service's."""
    assert (agent or service) is await ask(configured(service), agent)


@pytest.mark.parametrize(
    ("without", "of_keys", "expected"),
    [
        (CANCEL, CANCEL, CANCEL),
        (CANCEL, WAIT, WAIT),
        (CANCEL, FINISH, FINISH),
        (WAIT, CANCEL, WAIT),
        (WAIT, WAIT, WAIT),
        (WAIT, FINISH, FINISH),
        (FINISH, CANCEL, FINISH),
        (FINISH, WAIT, FINISH),
        (FINISH, FINISH, FINISH),
    ],
)
async def test_a_key_never_makes_a_request_less_patient(
    ask: Asking, without: ClientGone, of_keys: ClientGone, expected: ClientGone
) -> None:
    """Of the policy that it had without a key and the one of keys, the more patient holds."""
    assert expected is await ask(configured(without, of_keys), has_key=True)
    assert expected is await ask(configured(CANCEL, of_keys), without, has_key=True)
    assert without is await ask(configured(without, of_keys))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("cancel", CANCEL),
        ("wait", WAIT),
        ("finish", FINISH),
        ("Finish", FINISH),
        ("  CANCEL ", CANCEL),
    ],
)
async def test_a_header_wins_over_everybody(ask: Asking, header: str, expected: ClientGone) -> None:
    """Over the service's policy, the agent's and the one of keys, up and down, in capitals or not."""
    for other in ClientGone:
        for has_key in (True, False):
            config = configured(other, other)
            assert expected is await ask(config, None, has_key, header)
            assert expected is await ask(config, other, has_key, header)


@pytest.mark.parametrize("header", ["", "stop", "finish, cancel", "finish;q=1", "wait 30", "ﬁnish"])
async def test_what_is_no_policy_is_refused(ask: Asking, header: str) -> None:
    """With the header's name; what a client asked for and didn't get it must know."""
    status, error = await ask(Config(), header=header)
    assert (400, "invalid_request", "X-Client-Gone") == (status, error["code"], error["param"])
    assert "cancel, wait, finish" in error["message"]


@pytest.mark.parametrize("header", ["finish", "cancel", "stop"])
async def test_a_header_can_be_ignored(ask: Asking, header: str) -> None:
    """Then it has no say, and nobody reads what stands in it."""
    config = configured(WAIT, client_gone_header="ignore")
    assert WAIT is await ask(config, header=header)
    assert FINISH is await ask(config, FINISH, True, header)
