"""One model by its id, as the raw request names it."""

import pytest
from yarl import URL

from service.settings.config import ScriptedAgentConfig
from tests.service.conftest import ServiceMaker


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/models/org/name", "org/name"),
        ("/v1/models/org%2Fname", "org/name"),
        ("/v1/models/org%2fname", "org/name"),
        ("/v1/models/org/name?x=1", "org/name"),
        ("/v1/models/a%20b%25c", "a b%c"),
        ("/v1/models/%C3%BC", "ü"),
        ("/v1/models/a//b", "a//b"),
        ("/v1/models/demo", "demo"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_slashes_and_escapes_name_a_model(
    make_service: ServiceMaker, path: str, name: str, method: str
) -> None:
    """An id may be sent with its slashes as they are or escaped; the answer is the list's entry."""
    models = ("org/name", "a b%c", "ü", "a//b")
    service = await make_service(ScriptedAgentConfig(name="demo", kind="scripted", models=models))
    url = URL(service.url + path, encoded=True)
    async with service.http.request(method, url) as response:
        assert (200, "application/json") == (response.status, response.content_type)
        if method == "GET":
            assert name == (await response.json())["id"]


@pytest.mark.parametrize("path", ["/v1/models/none", "/v1/models/demo/", "/v1/models/Demo"])
async def test_a_model_that_is_not_listed_is_not_found(
    make_service: ServiceMaker, path: str
) -> None:
    """Only what the list has is shown, however near a name comes."""
    service = await make_service(ScriptedAgentConfig(name="demo", kind="scripted"))
    async with service.http.get(service.url + path) as response:
        body = await response.json()
    assert (404, "model_not_found") == (response.status, body["error"]["code"])
