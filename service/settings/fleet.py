"""Defines the key `fleet`: what several machines share, and where.

Never here: what is shared.
"""

import re
from typing import Annotated, Literal

from attrs import frozen

from service.settings.checking import Allowed
from service.settings.kinds import Seconds, from_0

_url = Allowed(
    "a redis://, rediss:// or unix:// URL, or redis+sentinel:// or redis+cluster://",
    lambda value: re.match(r"(rediss?(\+sentinel|\+cluster)?|unix)://.", value) is not None,
)
_replica = Allowed(
    "1 to 64 letters, digits and . _ -",
    lambda value: re.fullmatch(r"[A-Za-z0-9._-]{1,64}", value) is not None,
)


@frozen
class FleetConfig:
    """See `docs/configuration.md`."""

    url: Annotated[str, _url] | None = None
    replica: Annotated[str, _replica] | None = None
    journal: Literal["off", "follow", "before_send"] = "follow"
    wait_replicas: Annotated[int, from_0] = 0
    lease_seconds: Seconds = 15.0
