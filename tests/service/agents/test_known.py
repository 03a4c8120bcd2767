"""What is known of the SDK is what it says."""

from typing import Any

import pytest

from service.agents.openai import connection, known
from service.agents.openai.known import Specimen, known_specimen
from service.agents.openai.specimen import Sdk
from tests.service.agents.conftest import KEY, Backend, MakeAgent, collect

HEADERS = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("key", [KEY, None])
@pytest.mark.parametrize("headers", [{}, HEADERS, {"Authorization": "Basic YTpi", **HEADERS}])
@pytest.mark.parametrize(
    "base_url",
    [
        "http://127.0.0.1:8000/v1",
        "https://api.openai.com/v1",
        "http://host",
        "http://h/a/b-c_d.e~f",
    ],
)
async def test_what_is_known_is_what_the_sdk_says(
    monkeypatch: pytest.MonkeyPatch, base_url: str, headers: dict[str, str], key: str | None
) -> None:
    """Address and headers, of any plain backend."""
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj1")
    for path in ("/chat/completions", "/models"):
        sdk = Sdk(base_url, key, headers)
        said = await sdk.specimen(path)
        await sdk.close()
        assert said == known_specimen(base_url, key, headers, path)


@pytest.mark.parametrize(
    "base_url",
    [
        "http://h:80/v1",
        "https://h:443/v1",
        "http://H/v1",
        "http://h/ü",
        "http://h//v1",
        "http://h/x/../v1",
        "http://h/./v1",
        "http://h/%7e",
    ],
)
def test_of_what_is_not_plain_nothing_is_known(base_url: str) -> None:
    """The SDK may write it another way."""
    assert known_specimen(base_url, KEY, {}, "/models") is None


def test_other_versions_and_variables_are_the_sdks_business(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who knows what they mean to it."""
    with monkeypatch.context() as patched:
        patched.setenv("OPENAI_NEW_THING", "x")
        assert known_specimen("http://h/v1", KEY, {}, "/models") is None
    monkeypatch.setattr(known, "version", lambda _: "4.0.0")
    assert known_specimen("http://h/v1", KEY, {}, "/models") is None


async def test_the_sdk_has_the_last_word(
    backend: Backend, make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch, log_lines: Any
) -> None:
    """Where it says something else than was known, that is what is sent from then on."""

    def wrong(base_url: str, _key: Any, headers: dict[str, str], path: str) -> Specimen:
        return Specimen(f"{base_url}/known{path}", {**headers, "authorization": "Bearer known"})

    monkeypatch.setattr(connection, "known_specimen", wrong)
    agent = make_agent()
    await collect(agent)
    await agent.prepare()
    await collect(agent)
    await agent.prepare()
    await agent.models()
    said = [request.headers["Authorization"] for request in backend.requests]
    assert ["Bearer known", f"Bearer {KEY}", f"Bearer {KEY}"] == said
    assert "/v1/models" == backend.requests[-1].path
    assert 1 == len([line for line in log_lines if "was known" in line["event"]])


@pytest.mark.parametrize("name", ["org-1", "org 1"])
async def test_a_variable_for_the_sdk_is_obeyed_from_the_first_request_on(
    backend: Backend, make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Of an odd one the SDK is asked first."""
    monkeypatch.setenv("OPENAI_ORG_ID", name)
    await collect(make_agent())
    assert name == backend.requests[0].headers["OpenAI-Organization"]
