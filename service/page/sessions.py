"""Makes and checks sign-ins, and the tokens of forms. Pure but for time and randomness.

A session is a signed token: a name, its end, 256 random bits, and an HMAC over them. The HMAC's key is
made of a secret that the workers share and of the admin key that was shown, so that every worker knows
a session without asking anybody, a key that is taken out of the configuration ends its sessions, and so
does the service's stop. What was signed out is remembered until it would have ended.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterable

from service.settings.admin import AdminKeyConfig

_SEPARATOR = "~"
"""Is in no key's name."""
_MOST_ENDED = 10_000
_MOST_DIGITS = 15
"""Of a session's end. Python reads no number of thousands of digits."""


class Sessions:
    """Who is signed in.

    Args:
        secret: 32 random bytes, the same in each worker, others at each start.
        keys: the admin keys in force.
        clock: POSIX seconds.
    """

    def __init__(
        self,
        secret: bytes,
        keys: Callable[[], Iterable[AdminKeyConfig]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._secret = secret
        self._keys = keys
        self._clock = clock
        self._ended: dict[str, float] = {}

    def begin(self, key: str, seconds: float) -> tuple[str, str] | None:
        """The name of an admin key, and the token of a new session; None if it is none."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = None
        for one in self._keys():
            for known in one.digests:
                if hmac.compare_digest(known, digest):
                    found = one.name
        if found is None:
            return None
        ends_at = int(self._clock() + seconds)
        body = _SEPARATOR.join((found, str(ends_at), secrets.token_urlsafe(32)))
        return found, f"{body}{_SEPARATOR}{self._mac(digest, body)}"

    def name_of(self, token: str) -> str | None:
        """Whose session it is; None if it is none, is over, or was signed out."""
        body, _, mac = token.rpartition(_SEPARATOR)
        name, _, rest = body.partition(_SEPARATOR)
        ends_at = rest.partition(_SEPARATOR)[0]
        if not (ends_at.isascii() and ends_at.isdigit() and len(ends_at) <= _MOST_DIGITS):
            return None
        if int(ends_at) <= self._clock():
            return None
        if _hash(token) in self._ended:
            return None
        is_signed = False
        for one in self._keys():
            for digest in one.digests if one.name == name else ():
                expected = self._mac(digest, body).encode()
                is_signed |= hmac.compare_digest(expected, mac.encode("utf-8", "replace"))
        return name if is_signed else None

    def end(self, token: str) -> None:
        """Sign out: from now on the token is nobody's here."""
        now = self._clock()
        if self.name_of(token) is None:
            return
        if len(self._ended) >= _MOST_ENDED:
            self._ended = {name: at for name, at in self._ended.items() if at > now}
        self._ended[_hash(token)] = float(token.split(_SEPARATOR)[1])

    def form_token(self, token: str) -> str:
        """What a form of this session carries, and no page of another site can know. Of nobody's
        session, "", too."""
        return self._mac(b"form", token)

    def is_form_token(self, given: str, token: str) -> bool:
        """True if a form of this session carried it."""
        expected = self.form_token(token).encode()
        return hmac.compare_digest(expected, given.encode("utf-8", "replace"))

    def _mac(self, key: bytes, text: str) -> str:
        own = hmac.digest(self._secret, key, "sha256")
        return hmac.digest(own, text.encode("utf-8", "replace"), "sha256").hex()


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
