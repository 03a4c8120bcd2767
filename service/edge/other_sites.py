"""Tells browsers' pages from other sites, and refuses them while callers need no key.

Without keys the service trusts whoever can connect, which is this machine alone. A browser on it
connects for any page it shows: with the page's `Origin`, or by a name of the page's own that was made
to lead here (DNS rebinding). Who may call once there are keys is decided elsewhere.
"""

import ipaddress
import re
import socket
from collections.abc import Callable, Collection
from functools import lru_cache

from aiohttp import hdrs, web

from service.edge.errors import ApiError, Check
from statemachine import Failure

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:@/\s]+?)\.?(?::[0-9]*)?")
"""A name, or an address, and maybe a port (RFC 3986, section 3.2.2)."""
_FETCH_SITE = "Sec-Fetch-Site"
OTHER_SITES = frozenset(("cross-site", "same-site"))
"""Of `Sec-Fetch-Site`, which pages can't forge; `same-site` is another origin, such as another port."""
_ANY = "*"
_OWN_NAMES = frozenset(("host.docker.internal", "host.containers.internal"))
"""What Docker and Podman call this machine in containers. No page can have such a name: `.internal` is
never given to anybody in the public DNS."""
_LONGEST_SHOWN = 100


def refuse_other_sites(
    is_open: Callable[[], bool],
    hosts: Collection[str],
    origins: Collection[str],
    is_exempt: Callable[[str], bool],
    *,
    may_be_linked: bool = False,
) -> Check:
    """The check that refuses what another site's page may have sent.

    It raises ApiError (403): `host_not_allowed` for a `Host` that is neither loopback nor in `hosts`,
    `origin_not_allowed` for a page whose origin is neither this service's own nor in `origins`.

    Args:
        is_open: whether callers need no key now; as long as they do, everything passes.
        hosts: further names of the service; `*` among them allows any.
        origins: allowed values of `Origin`; `*` among them allows any.
        is_exempt: whether a path passes: it tells nothing about anybody, or has rules of its own.
        may_be_linked: a link in another site's page may lead here: its page learns nothing of the answer.
    """
    names = {name for host in hosts if (name := _name_of(host))} | _OWN_NAMES

    def refuse(request: web.Request) -> None:
        if is_open() and not is_exempt(request.path):
            try:
                if _ANY not in names:
                    _check_host(request, names)
                if _ANY not in origins and not (may_be_linked and _is_link(request)):
                    _check_origin(request, origins)
            except ApiError:
                if not is_from_sibling(request):
                    raise

    return refuse


def _check_host(request: web.Request, names: Collection[str]) -> None:
    given = request.headers.get(hdrs.HOST)  # absent from HTTP/1.0 alone, which no browser speaks
    hosts = [] if given is None else [given]
    if not request.raw_path.startswith(("/", "*")):  # absolute form: its name counts as well
        hosts.append(request.url.host_subcomponent or "")
    for host in hosts:
        if not (_is_loopback(host) or _name_of(host) in names):
            raise _refusal(
                "host_not_allowed",
                "Without a key this service answers to this machine's own names alone, not to "
                f"{host[:_LONGEST_SHOWN]!r}. Whoever runs it can list that in server.allowed_hosts, "
                "or make keys.",
            )


def _check_origin(request: web.Request, origins: Collection[str]) -> None:
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is None:
        is_foreign = request.headers.get(_FETCH_SITE, "").strip().lower() in OTHER_SITES
    else:
        is_foreign = origin not in origins and not is_own(origin, request)
    if is_foreign:
        shown = "another site" if origin is None else repr(origin[:_LONGEST_SHOWN])
        raise _refusal(
            "origin_not_allowed",
            f"Without a key this service takes no requests from pages of {shown}. "
            "Whoever runs it can list their origin in server.cors_origins, or make keys.",
        )


def _is_link(request: web.Request) -> bool:
    """True of what a browser asks for to show it in a tab of its own."""
    return (
        request.method == hdrs.METH_GET
        and request.headers.get("Sec-Fetch-Mode") == "navigate"
        and request.headers.get("Sec-Fetch-Dest") == "document"
    )


def is_own(origin: str, request: web.Request) -> bool:
    """True if the origin is the very host and port that the request was sent to."""
    scheme, _, host = origin.lower().partition("://")
    return scheme in ("http", "https") and host == request.headers.get(hdrs.HOST, "").lower()


def _name_of(host: str) -> str | None:
    """The name or address in a `Host`, in one spelling; None if there is none."""
    found = _HOST.fullmatch(host.strip())
    return found[1].lower().strip("[]") if found else None


@lru_cache(maxsize=64)
def _is_loopback(host: str) -> bool:
    """True of a `Host` that leads to this machine, wherever its name is looked up."""
    name = _name_of(host)
    if name is None or name == "localhost":
        return name is not None
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def is_from_sibling(request: web.Request) -> bool:
    """True of a worker's own Unix socket, which no browser can reach, and no header can pretend."""
    sock = request.transport.get_extra_info("socket") if request.transport else None
    return sock is not None and sock.family == socket.AF_UNIX


def _refusal(code: str, message: str) -> ApiError:
    return ApiError(Failure(code, message, type="invalid_request_error"))
