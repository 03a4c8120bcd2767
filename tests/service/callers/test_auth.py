"""API keys: who is let in, who owns what, and that a key is shown nowhere."""

import asyncio
import hashlib
import io
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from service.app import KEYRING
from service.callers.admin import Admins
from service.callers.auth import ANONYMOUS, Keyring
from service.settings.access import ApiKeyConfig, AuthConfig
from service.settings.checking import ConfigError
from service.settings.config import (
    Config,
    LoggingConfig,
    ServerConfig,
    dump_config,
    load_config,
)
from service.telemetry import configure_logging
from tests.service.conftest import QUESTION, Service, ServiceMaker, agent_for
from tests.service.endpoints.test_cancel import first_id
from tests.service.stage.backend import Backend
from tests.service.stream.test_client_gone import talk_until_closed
from tests.service.test_telemetry import restored_logging as restored_logging

ROOT = Path(__file__).parents[3]
ANNE, BOB = "sk-vb-anne-0123456789", "sk-vb-bob-0123456789"
HASH = hashlib.sha256(ANNE.encode()).hexdigest()


def api_key(name: str, key: str, **fields: Any) -> ApiKeyConfig:
    return ApiKeyConfig(name, hashlib.sha256(key.encode()).hexdigest(), **fields)


KEYS = (api_key("anne", ANNE), api_key("bob", BOB))


@pytest.fixture
async def closed(backend: Backend, make_service: ServiceMaker) -> Service:
    """A service that knows Anne and Bob."""
    return await make_service(agent_for(backend), auth=AuthConfig(KEYS))


@pytest.fixture
async def anne(closed: Service) -> AsyncIterator[openai.AsyncOpenAI]:
    async with sdk(closed, ANNE) as client:
        yield client


def sdk(service: Service, key: str, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{service.url}/v1", api_key=key, **{"max_retries": 0, **options}
    )


async def status_with(service: Service, headers: Any, path: str = "/v1/models") -> int:
    async with service.http.get(service.url + path, headers=headers) as response:
        return response.status


# --- who is let in --------------------------------------------------------------------------------


async def test_a_listed_key_owns_the_answer(closed: Service, anne: openai.AsyncOpenAI) -> None:
    """A key that is listed works, and its name owns the answer."""
    stream = await anne.chat.completions.create(model="m", messages=QUESTION, stream=True)
    text = "".join([item.choices[0].delta.content or "" async for item in stream])
    assert "Hello world!" == text
    assert "anne" == (await closed.kept.one()).request.owner


async def test_an_unlisted_key_is_refused_and_nothing_kept(closed: Service) -> None:
    """A key that is not listed is an AuthenticationError with OpenAI's code, and nothing is kept."""
    async with sdk(closed, "sk-vb-carl-0123456789") as carl:
        with pytest.raises(openai.AuthenticationError) as caught:
            await carl.chat.completions.create(model="m", messages=QUESTION, stream=True)
    error = caught.value
    assert ("invalid_api_key", "invalid_request_error") == (error.code, error.type)
    assert "Bearer" == error.response.headers["WWW-Authenticate"]
    assert error.response.headers["x-request-id"]
    assert "carl" not in error.response.text
    assert [] == closed.kept.records


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ANNE},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {ANNE}"},
        {"Authorization": f"Bearer {ANNE} {ANNE}"},
        {"Authorization": f"Bearer {ANNE[:-1]}"},
        {"Authorization": f"Bearer {HASH}"},
        {"Authorization": "Bearer anne"},
        {"Authorization": "Bearer \u00e4\u00f6"},
        {"api-key": ANNE},
        {"x-api-key": ANNE},
        [("Authorization", f"Bearer {ANNE}"), ("Authorization", f"Bearer {BOB}")],
    ],
)
async def test_only_one_bearer_header_lets_anybody_in(closed: Service, headers: Any) -> None:
    """One header, `Authorization: Bearer <key>`: nothing else lets anybody in."""
    assert 401 == await status_with(closed, headers)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_schemes_name_has_no_case(closed: Service, scheme: str) -> None:
    """RFC 9110: the scheme's name is the same in capitals."""
    assert 200 == await status_with(closed, {"Authorization": f"{scheme} {ANNE}"})


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/nowhere", "/metricsx"])
async def test_every_path_asks_for_a_key(closed: Service, path: str) -> None:
    """Without a key no path says even whether it is there."""
    assert 401 == await status_with(closed, {}, path)


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_probes_need_no_key(closed: Service, path: str) -> None:
    """Load balancers have no key, and learn nobody's name."""
    async with closed.http.get(closed.url + path) as response:
        assert 200 == response.status
        assert "anne" not in await response.text()


async def test_a_browser_can_read_why_it_was_refused(make_service: ServiceMaker) -> None:
    """The preflight needs no key, and a page can read why it was refused."""
    server = ServerConfig(cors_origins=("https://chat.example",))
    closed = await make_service(server=server, auth=AuthConfig(KEYS))
    origin = {"Origin": "https://chat.example"}
    ask = {**origin, "Access-Control-Request-Method": "POST"}
    async with closed.http.options(f"{closed.url}/v1/chat/completions", headers=ask) as response:
        assert 204 == response.status
    async with closed.http.options(f"{closed.url}/v1/chat/completions") as response:
        assert 405 == response.status
    async with closed.http.get(f"{closed.url}/v1/models", headers=origin) as response:
        assert 401 == response.status
        assert "https://chat.example" == response.headers["Access-Control-Allow-Origin"]
        assert "x-request-id" in response.headers["Access-Control-Expose-Headers"]


async def test_a_wrong_key_is_refused_before_the_body_is_read(closed: Service) -> None:
    """Who has no key is told so while the body is still on its way."""

    async def endless() -> AsyncIterator[bytes]:
        yield b"{"
        await told.wait()

    told = asyncio.Event()
    async with closed.http.post(f"{closed.url}/v1/chat/completions", data=endless()) as response:
        assert 401 == response.status
        told.set()


async def test_without_keys_everybody_is_anonymous(service: Service) -> None:
    """While none is listed, whatever key an SDK brings is ignored."""
    async with sdk(service, "whatever") as client:
        await client.chat.completions.create(model="m", messages=QUESTION)
    assert ANONYMOUS == (await service.kept.one()).request.owner


# --- two owners -----------------------------------------------------------------------------------


async def test_another_owners_completion_cannot_be_stopped(
    closed: Service, backend: Backend
) -> None:
    """Bob can't stop Anne's answer: to him it looks as if there were none."""
    backend.script = talk_until_closed
    closed.key = ANNE
    async with closed.post() as response:
        completion_id = await first_id(response)
        url = f"{closed.url}/v1/chat/completions/{completion_id}/cancel"
        bobs, annes = ({"Authorization": f"Bearer {key}"} for key in (BOB, ANNE))
        async with closed.http.post(url, headers=bobs) as refused:
            body = await refused.json()
            assert (404, "not_found") == (refused.status, body["error"]["code"])
        async with closed.http.post(
            url.replace(completion_id, "chatcmpl-none"), headers=bobs
        ) as other:
            none = await other.json()
        assert (
            body["error"]["message"].replace(completion_id, "chatcmpl-none")
            == (none["error"]["message"])
        )
        async with closed.http.post(url, headers=annes) as stopped:
            assert 200 == stopped.status


# --- changing keys --------------------------------------------------------------------------------


async def test_a_deleted_key_is_refused_and_its_answers_go_on(
    closed: Service, backend: Backend
) -> None:
    """After `replace` a key that is gone works no more, a new one does, and an answer that runs
    goes on."""
    closed.key = ANNE
    async with closed.post() as response:
        closed.app[KEYRING].replace([api_key("carl", "sk-vb-carl-0123456789")])
        assert 200 == response.status
        assert b"[DONE]" in await response.read()
    assert 401 == await status_with(closed, {"Authorization": f"Bearer {ANNE}"})
    assert 200 == await status_with(closed, {"Authorization": "Bearer sk-vb-carl-0123456789"})


def test_an_old_key_is_as_good_as_the_new_one() -> None:
    """While callers change over, the old key is as good as the new one, under one name."""
    ring = Keyring([api_key("anne", ANNE, old_sha256=KEYS[1].sha256)])
    assert ["anne", "anne", None] == [ring.owner_of_key(key) for key in (ANNE, BOB, "")]


async def test_deleting_every_key_opens_nothing_to_the_network() -> None:
    """A service that others can reach and that has no key left lets nobody in."""
    assert not Keyring([], is_required=True).is_open
    ring = Keyring(KEYS, is_required=True)
    ring.replace([])
    assert not ring.is_open
    assert ring.owner_of_key(ANNE) is None
    ring = Keyring(KEYS)
    ring.replace([])
    assert ring.is_open


# --- nowhere shown --------------------------------------------------------------------------------


async def test_keys_are_not_logged(closed: Service, restored_logging: None) -> None:
    """Neither a good key nor a bad one is in any line, of ours or of our libraries'."""
    sink = io.StringIO()
    configure_logging(LoggingConfig(level="debug", format="json"), sink)
    for key in (ANNE, "sk-vb-carl-0123456789"):
        closed.key = key
        await closed.stream()
        await closed.stream(b"{oops")
        await status_with(closed, {"Authorization": f"Bearer {key}" + "x" * 10_000})
    assert "completion finished" in sink.getvalue()
    assert "sk-vb" not in sink.getvalue()


def test_the_printed_configuration_masks_hashes() -> None:
    """`--print-config` names the callers and shows neither keys nor hashes."""
    config = Config(auth=AuthConfig((api_key("anne", ANNE, old_sha256="0" * 64), KEYS[1])))
    shown = yaml.safe_load(dump_config(config))["auth"]["api_keys"]
    assert [
        ("anne", "***", "***"),
        ("bob", "***", None),
    ] == [(key["name"], key["sha256"], key["old_sha256"]) for key in shown]


# --- the configuration ----------------------------------------------------------------------------


def problems(tmp_path: Path, auth: Any, environ: dict[str, str] | None = None) -> list[str]:
    """What is said about a file with this `auth`, without the file's name."""
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"auth": auth} if auth is not None else {}))
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ or {})
    return str(caught.value).replace(f"{path}: ", "").split("\n")


SECRET = "sk-secret"


@pytest.mark.parametrize(
    ("auth", "found"),
    [
        (SECRET, "auth: found a text of 9 characters, allowed: a mapping"),
        ([SECRET], "auth: found a list, allowed: a mapping"),
        ({"api_keys": SECRET}, "auth.api_keys: found a text of 9 characters, allowed: a list"),
        ({"api_keys": {"me": SECRET}}, "auth.api_keys: found a mapping of keys, allowed: a list"),
        ({"api_keys": [SECRET]}, "auth.api_keys[0]: found a text of 9 characters, allowed: a map"),
        ({"api_keys": [{SECRET: None}]}, "auth.api_keys[0]: found an unknown key, allowed: name,"),
        (
            {"api_keys": [{"name": "a", "sha256": HASH, "sha257": SECRET}]},
            "auth.api_keys[0].sha257: found an unknown key, allowed: name, sha256",
        ),
        ({"api_keys": [{"name": "a"}]}, "auth.api_keys[0].sha256: found nothing, allowed: a value"),
        (
            {"api_keys": [{"name": "a", "sha256": SECRET}]},
            "auth.api_keys[0].sha256: found a text of 9 characters, allowed: the 64 hex digits",
        ),
        (
            {"api_keys": [{"name": "a", "sha256": int("1" * 64)}]},
            "auth.api_keys[0].sha256: found a whole number, allowed: the 64 hex digits",
        ),
        (
            {"api_keys": [{"name": "a", "sha256": HASH[:-1]}]},
            "auth.api_keys[0].sha256: found a text of 63 characters, allowed: the 64 hex digits",
        ),
        (
            {"api_keys": [{"name": "a", "sha256": HASH[:-1] + "g"}]},
            "auth.api_keys[0].sha256: found a text of 64 characters, allowed: the 64 hex digits",
        ),
        (
            {"api_keys": [{"name": "a", "sha256": HASH, "old_sha256": SECRET}]},
            "auth.api_keys[0].old_sha256: found a text of 9 characters, allowed: the 64 hex",
        ),
        *(
            (
                {"api_keys": [{"name": name, "sha256": HASH}]},
                f"auth.api_keys[0].name: found a text of {len(name)} "
                f"character{'s' * (len(name) != 1)}, allowed: 1 to 64",
            )
            for name in ("", "-a", "a b", "a\n", "ä", "a" * 65, "a:b")
        ),
        (
            {"api_keys": [{"name": "a", "sha256": HASH, "requests_per_minute": 0}]},
            "auth.api_keys[0].requests_per_minute: found 0, allowed: a whole number above 0",
        ),
        (
            {"api_keys": [{"name": "a", "sha256": HASH}, {"name": "a", "sha256": "0" * 64}]},
            "auth.api_keys[1].name: found 'a', allowed: a name used once",
        ),
        (
            {"api_keys": [{"name": "a", "sha256": HASH}, {"name": "b", "sha256": HASH.upper()}]},
            "auth.api_keys[1].sha256: found the key of auth.api_keys[0], allowed: a key used once",
        ),
        (
            {"api_keys": [{"name": "a", "sha256": HASH, "old_sha256": HASH}]},
            "auth.api_keys[0].old_sha256: found the key of auth.api_keys[0], allowed: a key used",
        ),
    ],
)
def test_a_bad_entry_is_named_and_never_shown(tmp_path: Path, auth: Any, found: str) -> None:
    """What doesn't fit is named by its place and described, and never shown: it may be a key."""
    (line,) = [line for line in problems(tmp_path, auth) if "found nothing" not in line] or (
        problems(tmp_path, auth)
    )
    assert line.startswith(found)
    assert SECRET not in line


ENVIRONMENT = "environment variable API_KEYS: "


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("sk-secret-0123456789", "found no colon in entry 1, allowed: name:key"),
        ("a:0123456789abcdef,", "found no colon in entry 2, allowed: name:key"),
        ("a:sk-secret", "found a key that won't do in entry 1, allowed: name:key"),
        ("a:sk-secret 0123456789", "found a key that won't do in entry 1, allowed: name:key"),
        ("a:", "found a key that won't do in entry 1, allowed: name:key"),
        (
            "sk-secret!:0123456789abcdef",
            "auth.api_keys[0].name: found a text of 10 characters, allowed: 1 to 64",
        ),
        (
            "a:0123456789abcdef,a:0123456789abcdeg",
            "auth.api_keys[1].name: found 'a', allowed: a name used once",
        ),
        (
            "a:0123456789abcdef,b:0123456789abcdef",
            "auth.api_keys[1].sha256: found the key of auth.api_keys[0], allowed: a key used once",
        ),
    ],
)
def test_bad_api_keys_in_the_environment_are_never_shown(
    tmp_path: Path, text: str, found: str
) -> None:
    """The same holds for `API_KEYS`, which is named as the place."""
    (line,) = problems(tmp_path, None, {"API_KEYS": text})
    assert line.startswith(ENVIRONMENT + found)
    assert "secret" not in line
    assert "0123456789" not in line


def test_keys_of_the_environment_replace_the_files(tmp_path: Path) -> None:
    """`API_KEYS` takes the place of the file's keys; a key may hold colons."""
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"auth": {"api_keys": [{"name": "x", "sha256": "0" * 64}]}}))
    config = load_config(path, {"API_KEYS": f"anne:{ANNE}, bob:with:colons:0123456789"})
    assert config.auth.api_keys == (KEYS[0], api_key("bob", "with:colons:0123456789"))
    assert ["x"] == [key.name for key in load_config(path, {"API_KEYS": ""}).auth.api_keys]


# --- making keys ----------------------------------------------------------------------------------


def command(*arguments: str, given: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "service.callers.auth", *arguments],
        input=given,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )


def test_a_new_key_can_be_pasted_as_printed(tmp_path: Path) -> None:
    """What the command prints can be pasted: the entry into the file, the key into a client."""
    done = command("new", "open-webui")
    assert 0 == done.returncode
    (key,) = [line.strip() for line in done.stdout.splitlines() if line.startswith("  sk-vb-")]
    (entry,) = [line for line in done.stdout.splitlines() if line.startswith("  - {")]
    path = tmp_path / "c.yaml"
    path.write_text(f"auth:\n  api_keys:\n{entry}\n")
    ring = Keyring(load_config(path, {}).auth.api_keys)
    assert "open-webui" == ring.owner_of_key(key)
    assert len(key) >= 40
    assert key not in command("new", "open-webui").stdout


def test_an_admin_key_can_be_pasted_as_printed(tmp_path: Path) -> None:
    """With --admin the entry is one for `admin.api_keys`."""
    done = command("new", "ops", "--admin")
    (key,) = [line.strip() for line in done.stdout.splitlines() if line.startswith("  sk-vb-")]
    (entry,) = [line for line in done.stdout.splitlines() if line.startswith("  - {")]
    path = tmp_path / "c.yaml"
    path.write_text(f"admin:\n  api_keys:\n{entry}\n")
    admins = Admins(load_config(path, {}).admin.api_keys, Keyring(), is_local=True)
    assert "ops" == admins.name_of_key(key)
    assert "admin.api_keys" in done.stdout


def test_a_key_from_elsewhere_is_hashed_and_not_printed() -> None:
    """A key that comes from elsewhere is hashed, and not printed."""
    done = command("hash", "anne", given=f"{ANNE}\n")
    assert HASH in done.stdout
    assert ANNE not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "given"),
    [(("new", "a b"), ""), (("new",), ""), (("hash", "a"), "short"), ((), "")],
)
def test_a_bad_name_or_key_is_refused_with_status_2(arguments: tuple[str, ...], given: str) -> None:
    """A name or a key that won't do is refused with exit status 2 and without a traceback."""
    done = command(*arguments, given=given)
    assert 2 == done.returncode
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("environ", "status"), [({}, 2), ({"API_KEYS": "somebody:0123456789abcdef"}, 0)]
)
def test_a_reachable_service_must_have_keys(
    tmp_path: Path, environ: dict[str, str], status: int
) -> None:
    """Listening to other machines without a key is refused at the start, and allowed with one."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "--host", "0.0.0.0", "--check"],
        env={"PATH": "/usr/bin:/bin", **environ},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert ("auth.api_keys" in done.stderr) is (status == 2)
    assert "0123456789abcdef" not in done.stderr + done.stdout
