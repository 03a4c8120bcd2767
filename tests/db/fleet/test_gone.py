"""A connection that another call has closed is an engine that is away, not a mistake of ours."""

import pytest

from db.fleet import FleetUnavailable
from db.fleet.redis_link import RedisLink


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("unable to perform operation on <TCPTransport>; the handler is closed"),
        AttributeError("'NoneType' object has no attribute 'writelines'"),
        ConnectionResetError(),
    ],
)
async def test_whatever_tells_of_a_lost_connection_is_unavailable(error: Exception) -> None:
    """As redis-py's client of a cluster says it when a node has died."""

    async def command() -> None:
        raise error

    link = RedisLink("redis://127.0.0.1:1/0")
    try:
        with pytest.raises(FleetUnavailable):
            await link.call(command())
    finally:
        await link.close()
