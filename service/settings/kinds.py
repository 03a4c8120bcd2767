"""Defines the kinds of values that several keys have, each with its rule in words.

Never here: keys.
"""

import re
from typing import Annotated
from urllib.parse import urlsplit

from service.settings.checking import Allowed


def _is_http_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
        has_place = bool(parts.hostname) and parts.port != 0  # a bad port raises
    except ValueError:
        return False
    return has_place and not parts.fragment and value.startswith(("http://", "https://"))


above_0 = Allowed("a number above 0", lambda value: value > 0)
from_0 = Allowed("a number from 0", lambda value: value >= 0)
count = Allowed("a whole number above 0", lambda value: value > 0)
http_url = Allowed("an http:// or https:// URL without a fragment", _is_http_url)
some_text = Allowed("a non-empty text", lambda value: bool(value))
port = Allowed("a port, 0 to 65535", lambda value: 0 <= value <= 65535)
header_name = Allowed(
    "the name of a header",
    lambda value: bool(re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", value)),  # RFC 9110, 5.6.2
)

Seconds = Annotated[float, above_0]
Name = Annotated[str, some_text]
HeaderName = Annotated[str, header_name]
Count = Annotated[int, count]
Port = Annotated[int, port]
