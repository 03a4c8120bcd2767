"""Checks API keys: from a request to the name of its caller.

The middleware runs before any body is read; endpoints ask `owner_of`. What an owner may do is
decided elsewhere. The service knows only the SHA-256 of a key; `python -m service.callers.auth
new NAME` makes a key and prints it once.
"""

import argparse
import getpass
import hashlib
import hmac
import re
import secrets
import sys
from collections.abc import Iterable

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from service.edge.addresses import of_operators
from service.edge.errors import ApiError
from service.settings.access import ApiKeyConfig
from service.settings.admin import AdminKeyConfig
from service.settings.checking import ConfigError, structure
from statemachine import Failure

ANONYMOUS = "anonymous"
"""Owns what is made while there are no keys."""

OWNER = web.RequestKey("owner", str)
PROBES = frozenset(("/healthz", "/openapi.json", "/readyz"))
"""Paths without a key: they reveal nothing about anybody, and the machines that ask have none."""

_MISSING = Failure(
    "invalid_api_key",
    "This service wants an API key, as 'Authorization: Bearer <key>'. Ask whoever runs it for one.",
    type="invalid_request_error",
)
_WRONG = Failure(
    "invalid_api_key",
    "The API key is not one of this service's. Ask whoever runs it for one.",
    type="invalid_request_error",
)


class Keyring:
    """The keys that are valid now, as SHA-256 digests.

    Args:
        keys: those that the configuration lists.
        is_required: if there are no keys, refuse everybody instead of letting everybody in as
            `ANONYMOUS`. For a service that other machines can reach.
    """

    def __init__(self, keys: Iterable[ApiKeyConfig] = (), *, is_required: bool = False) -> None:
        self._is_required = is_required
        self.replace(keys)

    @property
    def is_open(self) -> bool:
        """True if requests need no key."""
        return not self._owners and not self._is_required

    def replace(self, keys: Iterable[ApiKeyConfig]) -> None:
        """From now on, for every new request, these keys are valid and no others."""
        self._owners = tuple((digest, key.name) for key in keys for digest in key.digests)

    def owner_of_key(self, key: str) -> str | None:
        """The name of the key, or None. Every key is compared, so the time reveals nothing."""
        return find_name(self._owners, key)

    def identify(self, request: web.Request) -> str:
        """The name that owns what this request makes.

        Raises:
            ApiError: `invalid_api_key` (401).
        """
        if self.is_open:
            return ANONYMOUS  # whatever key it has: the SDKs always send one
        key = bearer_of(request)
        if key is None:
            raise ApiError(_MISSING)
        owner = self.owner_of_key(key)
        if owner is None:
            raise ApiError(_WRONG)
        return owner


def find_name(names: Iterable[tuple[bytes, str]], key: str) -> str | None:
    """The name whose SHA-256 digest is the key's, or None. All are compared, always."""
    presented = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    found = None
    for digest, name in names:
        if hmac.compare_digest(digest, presented):
            found = name
    return found


def bearer_of(request: web.Request) -> str | None:
    """The key in `Authorization: Bearer <key>`; None if there is no such header, or more than one."""
    given = request.headers.getall(hdrs.AUTHORIZATION, ())
    scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    return key.strip() or None if scheme.lower() == "bearer" else None


def needs_caller(path: str) -> bool:
    """False of paths where no caller is asked for: probes, and operators' paths, which have rules of
    their own (`service.callers.admin`)."""
    return not (path in PROBES or of_operators(path))


def require_key(keyring: Keyring) -> Middleware:
    """The middleware that identifies each request's caller, or refuses it; see `owner_of`."""

    @web.middleware
    async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method != hdrs.METH_OPTIONS and needs_caller(request.path):
            request[OWNER] = keyring.identify(request)
        return await handler(request)

    return identify


def owner_of(request: web.Request) -> str:
    """The name that owns what this request makes; it can see nothing of other owners.

    Raises KeyError where no caller is asked for (`needs_caller`): such requests must make nothing.
    """
    return request[OWNER]


# --- making keys ------------------------------------------------------------------------------

_EPILOG = """\
Give the key to the caller and the hash to the service. The key is shown once and kept nowhere: if
it is lost, make a new one. List the printed entry in the configuration file:

  auth:
    api_keys:
      - {name: open-webui, sha256: "..."}

and have the service reread it (kill -HUP), or restart it. Callers send the key as 'Authorization:
Bearer <key>', as OpenAI's SDKs do with their api_key. The name owns whatever is made with the key.

With --admin the key is for looking at the service, at its page and at /metrics, and for nothing else;
its entry belongs under admin.api_keys.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service.callers.auth",
        description="Make an API key for a caller of this service.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="new | hash")
    new = commands.add_parser("new", help="make a key; print it, once, and its hash")
    known = commands.add_parser(
        "hash", help="print the hash of a key that you have; type it in, or pipe it"
    )
    for command in (new, known):
        command.add_argument("name", metavar="NAME", help="who calls with it, e.g. open-webui")
        command.add_argument(
            "--admin", action="store_true", help="for who runs the service, and calls nothing"
        )
    return parser


def main(arguments: list[str]) -> int:
    """The command line. Exit status 2 for a name or a key that won't do."""
    asked = _parser().parse_args(arguments)
    if asked.command == "new":
        key = f"sk-vb-{'admin-' if asked.admin else ''}{secrets.token_urlsafe(32)}"
    else:
        key = getpass.getpass("Key: ") if sys.stdin.isatty() else sys.stdin.read().strip("\r\n")
    if not re.fullmatch("[!-~]{16,}", key):
        print("A key has 16 or more visible ASCII characters, and no spaces.", file=sys.stderr)
        return 2
    entry = {"name": asked.name, "sha256": hashlib.sha256(key.encode()).hexdigest()}
    section, kind, who = (
        ("admin", AdminKeyConfig, "whoever looks")
        if asked.admin
        else ("auth", ApiKeyConfig, "the caller")
    )
    try:
        structure(entry, kind, file="the command line", sources={})
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if asked.command == "new":
        print(f"The key, for {who}; it is shown this once:\n\n  {key}\n")
    print(f"The entry, for {section}.api_keys in the configuration file:\n")
    print(f'  - {{name: "{entry["name"]}", sha256: "{entry["sha256"]}"}}')
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
