"""Lets in whoever may look, and keeps out what other sites' pages send. Never here: what is seen.

1. On this machine, while there are no keys at all, everybody may look.
2. With admin keys a sign-in makes a session, which a cookie holds.
3. Otherwise the page isn't there.
4. What changes something comes from a page of this service: by its `Origin`, and by the form's token.
"""

import asyncio
from collections.abc import Mapping

import structlog
from aiohttp import hdrs, web
from attrs import frozen

from service.callers.admin import is_proxied
from service.callers.auth import ANONYMOUS
from service.callers.limits import Budget
from service.edge.other_sites import OTHER_SITES, is_from_sibling, is_own
from service.page.sessions import Sessions
from service.page.watched import Watched

log = structlog.get_logger(__name__)

COOKIE = "verbatim_session"
FORM_TOKEN = "form_token"
_WRONG_A_MINUTE = 10
"""Wrong sign-ins from one address. Keys can't be guessed; the log is to stay readable."""
_MOST_ADDRESSES = 1000
_LONGEST_FORM = 64 * 1024


@frozen
class Visitor:
    """Who looks: the name of an admin key, or anybody on this machine. `token` is their session's."""

    name: str
    token: str = ""

    @property
    def is_signed_in(self) -> bool:
        """True if they can sign out."""
        return bool(self.token)

    def is_current(self, doorway: "Doorway", request: web.Request) -> bool:
        """True as long as they may look: keys go, and sessions end, while somebody looks on."""
        try:
            doorway.visitor_of(request)
        except (SignInWanted, web.HTTPNotFound):
            return False
        return True


class SignInWanted(Exception):
    """Somebody may look, and whoever asks isn't known to be one of them."""


class Doorway:
    """Who may look at the page.

    Args:
        watched: whose page it is.
        sessions: who is signed in.
    """

    def __init__(self, watched: Watched, sessions: Sessions) -> None:
        self.sessions = sessions
        self._watched = watched
        self._wrong: dict[str, Budget] = {}

    def visitor_of(self, request: web.Request) -> Visitor:
        """Who looks. Raises `SignInWanted`, and `web.HTTPNotFound` where nobody may look."""
        admins = self._watched.admins
        if is_from_sibling(request):
            return Visitor("worker")  # where somebody was let in
        if admins.is_open and not is_proxied(request):
            return Visitor(ANONYMOUS)
        self.check_on(request)
        token = request.cookies.get(COOKIE, "")
        if (name := self.sessions.name_of(token)) is not None:
            return Visitor(name, token)
        if (name := admins.name_by_bearer(request)) is not None:
            return Visitor(name)
        raise SignInWanted

    def check_on(self, request: web.Request) -> None:
        """Raises `web.HTTPNotFound` where nobody can sign in, nor look without."""
        admins = self._watched.admins
        if not admins.has_keys and (is_proxied(request) or not admins.is_open):
            raise web.HTTPNotFound

    async def form_of(self, request: web.Request, token: str) -> Mapping[str, str]:
        """The form that a page of ours sent. Raises `web.HTTPForbidden`, or `web.HTTPBadRequest` for
        what is no form."""
        if is_from_sibling(request):
            return {}
        site = request.headers.get("Sec-Fetch-Site", "").strip().lower()
        origin = request.headers.get(hdrs.ORIGIN)
        if site in OTHER_SITES or not (origin is None or is_own(origin, request)):
            raise web.HTTPForbidden(reason="This came from a page of another site.")
        if request.content_type != "application/x-www-form-urlencoded":
            raise web.HTTPBadRequest(reason="This is no form.")
        try:
            async with asyncio.timeout(self._watched.config.value.server.request_timeout_seconds):
                posted = await request.clone(client_max_size=_LONGEST_FORM).post()
        except TimeoutError:
            raise web.HTTPRequestTimeout(reason="The form didn't come in time.") from None
        except (ValueError, LookupError):  # of an encoding that it isn't in, or that there isn't
            raise web.HTTPBadRequest(reason="This is no form.") from None
        form = {name: value for name, value in posted.items() if isinstance(value, str)}
        if not self.sessions.is_form_token(form.get(FORM_TOKEN, ""), token):
            raise web.HTTPForbidden(reason="The form is too old; reload the page and try again.")
        return form

    def wait_seconds(self, request: web.Request) -> float:
        """How long an address that showed wrong keys must wait; 0: not at all."""
        budget = self._wrong.get(request.remote or "")
        return 0.0 if budget is None else budget.wait_seconds(self._watched.clock())

    def sign_in(self, request: web.Request, key: str) -> str | None:
        """The token of a new session; None for a wrong key. Both are logged."""
        begun = self.sessions.begin(key, self._watched.config.value.admin.session_seconds)
        address = request.remote or ""
        if begun is None:
            if address not in self._wrong and len(self._wrong) >= _MOST_ADDRESSES:
                del self._wrong[next(iter(self._wrong))]
            budget = self._wrong.setdefault(address, Budget(_WRONG_A_MINUTE))
            budget.take(1, self._watched.clock())
            log.warning("sign-in refused", address=address)
            return None
        log.info("signed in", admin=begun[0], address=address)
        return begun[1]

    def set_cookie(self, request: web.Request, response: web.StreamResponse, token: str) -> None:
        """Have the browser keep the session, or forget it for an empty token."""
        seconds = int(self._watched.config.value.admin.session_seconds) if token else 0
        response.set_cookie(
            COOKIE,
            token,
            max_age=seconds,
            path="/",
            httponly=True,
            samesite="Strict",
            secure=_is_https(request),
        )


def _is_https(request: web.Request) -> bool:
    return request.secure or request.headers.get(hdrs.X_FORWARDED_PROTO, "").lower() == "https"
