"""Who may look at the service: admin keys, and this machine where none are needed.

What they see is made elsewhere. Callers' keys open nothing here, and admin keys nothing of the API.
"""

from collections.abc import Callable, Collection, Iterable

from aiohttp import hdrs, web

from service.callers.auth import ANONYMOUS, Keyring, bearer_of, find_name
from service.edge.addresses import Addresses, of_operators
from service.edge.errors import ApiError, Check
from service.edge.other_sites import is_from_sibling, refuse_other_sites
from service.settings.admin import AdminKeyConfig
from statemachine import Failure

_PROXIED = (hdrs.FORWARDED, hdrs.X_FORWARDED_FOR)
"""What a reverse proxy on this machine adds: whoever asks is then perhaps elsewhere."""
_METRICS = "/metrics"
_SHUT = (
    "This is for whoever runs the service, and asks for a key of admin.api_keys, as "
    "'Authorization: Bearer <key>'."
)


class Admins:
    """The keys of who may look, as SHA-256 digests.

    Args:
        keys: those that the configuration lists.
        callers: the callers' keys.
        is_local: whether operators' paths are served to this machine alone: their address is loopback.
    """

    def __init__(self, keys: Iterable[AdminKeyConfig], callers: Keyring, *, is_local: bool) -> None:
        self.is_local = is_local
        self._callers = callers
        self.replace(keys)

    def replace(self, keys: Iterable[AdminKeyConfig]) -> None:
        """From now on, for every new request, these keys are valid and no others."""
        self._digests = tuple((digest, key.name) for key in keys for digest in key.digests)

    @property
    def has_keys(self) -> bool:
        """True if there is any key to look with. If not, and not `is_open`, nobody may look."""
        return bool(self._digests)

    @property
    def is_open(self) -> bool:
        """True if whoever is on this machine may look without a key: there are no keys at all."""
        return self.is_local and not self._digests and self._callers.is_open

    def name_of_key(self, key: str) -> str | None:
        """The name of the admin key, or None. Every key is compared, so the time reveals nothing."""
        return find_name(self._digests, key)

    def name_by_bearer(self, request: web.Request) -> str | None:
        """The name of the admin key in the request's `Authorization`; None if there is none such."""
        key = bearer_of(request)
        return None if key is None else self.name_of_key(key)

    def identify(self, request: web.Request) -> str:
        """The name of whoever looks by `Authorization`; `ANONYMOUS` while nobody needs a key.

        Raises:
            ApiError: `invalid_api_key` (401); `admin_key_required` (403) for a caller's key.
        """
        if self.is_open and not is_proxied(request):
            return ANONYMOUS
        if (name := self.name_by_bearer(request)) is not None:
            return name
        raise self._refusal(request)

    def _refusal(self, request: web.Request) -> ApiError:
        key = bearer_of(request)
        owner = None if key is None else self._callers.owner_of_key(key)
        if owner is None:
            return ApiError(Failure("invalid_api_key", _SHUT, type="invalid_request_error"))
        message = f"{_SHUT} The key that came is a caller's."
        return ApiError(Failure("admin_key_required", message, type="invalid_request_error"))


def is_proxied(request: web.Request) -> bool:
    """True of a request that says it came through a proxy, so perhaps from another machine."""
    return any(name in request.headers for name in _PROXIED)


def guard_operators(admins: Admins, own_names: Check) -> Check:
    """The check for operators' paths while they need no key: the rules for pages of other sites.

    Args:
        own_names: refuses what another site's page may have sent (`own_names_alone`).
    """

    def check(request: web.Request) -> None:
        path = request.path
        if of_operators(path) and path != _METRICS and admins.is_open:
            own_names(request)

    return check


def own_names_alone(hosts: Collection[str]) -> Check:
    """The check that refuses every `Host` that isn't this machine's and pages of every other site,
    listed in `server.cors_origins` or not, but for a link in one. Raises what `refuse_other_sites` raises.

    Args:
        hosts: further names of the service.
    """
    return refuse_other_sites(_always, hosts, (), _nothing, may_be_linked=True)


def may_scrape(admins: Admins, addresses: Addresses, own_names: Check) -> Callable[..., None]:
    """The check of `/metrics`: an admin key will do, anywhere. Without one pass who is on this machine
    and calls it by its own name, and who reaches operators' own address; and the other workers.

    It raises what `Admins.identify` and `own_names` raise.
    """

    def check(request: web.Request) -> None:
        if is_from_sibling(request) or admins.name_by_bearer(request) is not None:
            return
        if admins.is_local and not is_proxied(request):
            own_names(request)
        elif not addresses.is_operators(request):
            admins.identify(request)

    return check


def _always() -> bool:
    return True


def _nothing(_path: str) -> bool:
    return False
