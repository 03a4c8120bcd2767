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

from service.edge.errors import ApiError
from service.settings.access import ApiKeyConfig
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
        presented = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = None
        for digest, name in self._owners:
            if hmac.compare_digest(digest, presented):
                found = name
        return found

    def identify(self, request: web.Request) -> str:
        """The name that owns what this request makes.

        Raises:
            ApiError: `invalid_api_key` (401).
        """
        if self.is_open:
            return ANONYMOUS  # whatever key it has: the SDKs always send one
        given = request.headers.getall(hdrs.AUTHORIZATION, ())
        scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if scheme.lower() != "bearer" or not (key := key.strip()):
            raise ApiError(_MISSING)
        owner = self.owner_of_key(key)
        if owner is None:
            raise ApiError(_WRONG)
        return owner


def require_key(keyring: Keyring) -> Middleware:
    """The middleware that identifies each request's caller, or refuses it; see `owner_of`."""

    @web.middleware
    async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method != hdrs.METH_OPTIONS and request.path not in PROBES:
            request[OWNER] = keyring.identify(request)
        return await handler(request)

    return identify


def owner_of(request: web.Request) -> str:
    """The name that owns what this request makes; it can see nothing of other owners.

    Raises KeyError for requests that need no key (`PROBES`): they must make nothing.
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
    return parser


def main(arguments: list[str]) -> int:
    """The command line. Exit status 2 for a name or a key that won't do."""
    asked = _parser().parse_args(arguments)
    if asked.command == "new":
        key = f"sk-vb-{secrets.token_urlsafe(32)}"
    else:
        key = getpass.getpass("Key: ") if sys.stdin.isatty() else sys.stdin.read().strip("\r\n")
    if not re.fullmatch("[!-~]{16,}", key):
        print("A key has 16 or more visible ASCII characters, and no spaces.", file=sys.stderr)
        return 2
    entry = {"name": asked.name, "sha256": hashlib.sha256(key.encode()).hexdigest()}
    try:
        structure(entry, ApiKeyConfig, file="the command line", sources={})
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if asked.command == "new":
        print(f"The key, for the caller; it is shown this once:\n\n  {key}\n")
    print("The entry, for auth.api_keys in the configuration file:\n")
    print(f'  - {{name: "{entry["name"]}", sha256: "{entry["sha256"]}"}}')
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
