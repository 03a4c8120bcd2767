"""Decides what the last reader's leaving means for one completion: as its agent or the configuration
says, as a header asks, or more patiently where an `Idempotency-Key` says that its client will ask again."""

from aiohttp import web

from service.edge.errors import invalid_request
from service.settings.config import Config
from statemachine import ClientGone

_HEADER = "X-Client-Gone"
_IN_ORDER_OF_PATIENCE = tuple(ClientGone)


def client_gone_policy(
    request: web.Request, config: Config, agent_policy: ClientGone | None, *, has_key: bool
) -> ClientGone:
    """The policy of a completion that this request asks for.

    A header's wins over all others, also over a key's: whoever sends one has thought of this request.
    Where the configuration ignores the header, it isn't read at all.

    Args:
        request: as it came.
        config: the one in force for this completion.
        agent_policy: that of the agent that is asked first; None: the service's.
        has_key: the request has an `Idempotency-Key`.

    Raises:
        ApiError: `invalid_request` (400), for a header that is no policy.
    """
    asked = request.headers.get(_HEADER)
    if asked is not None and config.client_gone_header == "allow":
        return _read(asked)
    policy = agent_policy or config.client_gone
    if not has_key:
        return policy
    return max(policy, config.idempotency.client_gone, key=_IN_ORDER_OF_PATIENCE.index)


def _read(text: str) -> ClientGone:
    try:
        return ClientGone(text.lower())
    except ValueError:
        words = ", ".join(ClientGone)
        raise invalid_request(f"The header {_HEADER} is to be one of {words}.", _HEADER) from None
