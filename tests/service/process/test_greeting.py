"""The words at start: they name the page, where there is one."""

import hashlib
from typing import Any

import pytest

from service.process.serving import _greeting, _page_url
from service.settings.access import ApiKeyConfig, AuthConfig
from service.settings.admin import AdminConfig, AdminKeyConfig
from service.settings.config import Config, ServerConfig

URL = "http://127.0.0.1:8000"
HASH = hashlib.sha256(b"sk-vb-admin-0123456789").hexdigest()
CALLERS, ADMINS = AuthConfig((ApiKeyConfig("a", HASH),)), (AdminKeyConfig("a", HASH),)


@pytest.mark.parametrize(
    ("fields", "is_there"),
    [
        ({}, True),
        ({"auth": CALLERS}, False),
        ({"server": ServerConfig(host="0.0.0.0")}, False),
        ({"server": ServerConfig(host="0.0.0.0"), "admin": AdminConfig(port=9000)}, False),
        ({"admin": AdminConfig(port=9000)}, True),
        ({"admin": AdminConfig(host="0.0.0.0", port=9000)}, False),
        ({"auth": CALLERS, "admin": AdminConfig(ADMINS)}, True),
        ({"server": ServerConfig(host="0.0.0.0"), "admin": AdminConfig(ADMINS)}, True),
    ],
)
def test_the_page_is_named_where_somebody_may_look(fields: dict[str, Any], is_there: bool) -> None:
    """And not where it isn't there."""
    config = Config(**fields)
    page = _page_url(config, URL)
    assert (f"{URL}/" if is_there else None) == page
    words = _greeting(config, URL, ["demo"], {}, page)
    assert is_there == (f"look at it  {URL}/\n" in words)
