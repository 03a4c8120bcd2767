"""Words a request as the SDK would, until the SDK has been loaded, which takes up to a second.

What it says of a plain backend depends on little, so it is known by heart, for the versions that this
was compared with; the SDK itself words all that isn't plain, and is asked afterwards in any case
(`connection`). Never here: what is sent to whom.
"""

import os
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from attrs import frozen

NO_KEY = "no-key-needed"
"""What a backend is sent that asks for none: the SDK can't do without a key."""
_COMPARED_WITH = ("3.54.",)
_PLAIN_URL = re.compile(r"https?://[a-z0-9.-]+(:[1-9][0-9]{0,4})?(/[A-Za-z0-9._~/-]*)?")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]+")
_DEFAULT_PORTS = ("http", ":80"), ("https", ":443")
_UNDERSTOOD = frozenset(("OPENAI_API_KEY", "OPENAI_BASE_URL"))
"""Variables of which ours is the last word."""
_SENT = {"OPENAI_ORG_ID": "openai-organization", "OPENAI_PROJECT_ID": "openai-project"}
"""Variables and their headers; what any other means the SDK knows."""


@frozen
class Specimen:
    """What all requests to a path have in common: the address, and headers by their names in lower
    case."""

    url: str
    headers: Mapping[str, str]


def known_specimen(
    base_url: str, api_key: str | None, headers: Mapping[str, str], path: str
) -> Specimen | None:
    """What the SDK would send to a path; None if that isn't known for sure.

    Args:
        headers: what every request carries besides the SDK's own, or instead.
    """
    installed = _installed()
    if not installed.startswith(_COMPARED_WITH) or not _is_plain(base_url):
        return None
    named = {name: value for name, value in os.environ.items() if name.startswith("OPENAI_")}
    sent = {
        _SENT[name]: named.pop(name) for name in _SENT if _PLAIN_NAME.fullmatch(named.get(name, ""))
    }
    if named.keys() - _UNDERSTOOD:
        return None
    own = {
        "authorization": f"Bearer {api_key or NO_KEY}",
        "accept": "application/json",
        "accept-encoding": "gzip, deflate",
        "content-type": "application/json",
        "user-agent": f"AsyncOpenAI/Python {installed}",
    }
    given = {name.lower(): value for name, value in headers.items()}
    return Specimen(f"{base_url}{path}", {**own, **sent, **given})


def _is_plain(base_url: str) -> bool:
    """True of an address that the SDK would write no other way."""
    found = _PLAIN_URL.fullmatch(base_url)
    scheme = base_url.partition(":")[0]
    if found is None or (scheme, found[1]) in _DEFAULT_PORTS:
        return False
    segments = (found[2] or "/").split("/")[1:]
    return "" not in segments[:-1] and not {".", ".."} & {*segments}


def _installed() -> str:
    try:
        return version("openai")
    except PackageNotFoundError:
        return ""
