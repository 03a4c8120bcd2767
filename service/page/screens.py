"""What every screen has: who looks, the frame around it, headers, errors as pages. Never here: what a
screen shows."""

import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar
from urllib.parse import urlencode

import structlog
from aiohttp import hdrs, web

from db.store import StoreUnavailable, TooSlow
from service import __version__
from service.edge.errors import ApiError
from service.endpoints.asking import to_its_end
from service.page.doorway import FORM_TOKEN, Doorway, SignInWanted, Visitor
from service.page.rendering import render, static_files
from service.page.watched import Watched

log = structlog.get_logger(__name__)

_T = TypeVar("_T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Screen = Callable[[web.Request, Visitor], Awaitable[web.StreamResponse]]

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # Not `no-referrer`: with that, a form's `Origin` is "null".
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    hdrs.CACHE_CONTROL: "no-store",
}
_WEEK_SECONDS = 604_800
_TITLES = {
    400: "This can't be read",
    403: "Not from here",
    404: "Nothing here",
    409: "Not now",
    413: "Too much",
    429: "Too many",
    503: "The database can't be reached",
    504: "This takes too long",
}


class Screens:
    """The frame of all screens.

    Args:
        watched: what the page shows.
        doorway: who may look.
    """

    def __init__(self, watched: Watched, doorway: Doorway) -> None:
        self.watched = watched
        self.doorway = doorway

    def routes(self) -> list[web.RouteDef]:
        """Signing in and out, and what pages link to."""
        return [
            web.get("/page/sign-in", self._framed(self._sign_in_form)),
            web.post("/page/sign-in", self._framed(self._sign_in)),
            web.post("/page/sign-out", self._framed(self._sign_out)),
            web.get("/page/sign-out", self._framed(self._signed_out)),
            web.get("/page/static/{name}", self._static),
        ]

    def shown(self, screen: Screen) -> Handler:
        """The handler of a screen for whoever may look; others are sent to sign in, and find
        nothing where nobody may."""

        async def handle(request: web.Request) -> web.StreamResponse:
            return await screen(request, self.doorway.visitor_of(request))

        return self._framed(handle)

    def page(
        self, template: str, visitor: Visitor | None, *, status: int = 200, **values: Any
    ) -> web.Response:
        """A page with its frame."""
        token = "" if visitor is None else visitor.token
        text = render(
            template,
            visitor=visitor,
            form_token=self.doorway.sessions.form_token(token),
            form_token_name=FORM_TOKEN,
            shows_texts=self.watched.shows_texts,
            version=__version__,
            **values,
        )
        body = text.encode("utf-8", "replace")  # half a character is shown as a question mark
        return web.Response(body=body, content_type="text/html", charset="utf-8", status=status)

    def message(
        self, visitor: Visitor | None, status: int, text: str, title: str | None = None
    ) -> web.Response:
        """A page that says why there is none."""
        title = title or _TITLES.get(status, "This didn't work")
        return self.page("message.html", visitor, status=status, title=title, text=text, here="")

    # --- around every handler -----------------------------------------------------------------

    def _framed(self, handle: Handler) -> Handler:
        @functools.wraps(handle)
        async def framed(request: web.Request) -> web.StreamResponse:
            try:
                response = await self._tried(request, handle)
            except web.HTTPNotFound as error:
                if error.text is not None and error.reason != "Not Found":
                    return self._with_headers(self._told(request, 404, error.reason))
                raise
            except web.HTTPRedirection as error:
                error.headers.update(HEADERS)
                raise
            return self._with_headers(response)

        return framed

    async def _tried(self, request: web.Request, handle: Handler) -> web.StreamResponse:
        try:
            return await handle(request)
        except SignInWanted:
            if request.method == hdrs.METH_GET and _takes_html(request):
                raise web.HTTPSeeOther("/page/sign-in") from None
            return self.message(None, 401, "Please sign in.")
        except (web.HTTPNotFound, web.HTTPRedirection):
            raise
        except web.HTTPException as error:
            return self._told(request, error.status, error.reason)
        except TooSlow as error:
            log.warning("overview given up", reason=str(error), path=request.path)
            text = "The database took longer than 2 s, and was told to stop. Try narrower filters."
            return self._told(request, 504, text)
        except StoreUnavailable as error:
            log.warning("store not reached", reason=str(error))
            text = "What runs goes on, and what ends waits in the journal. Now and Health need no database."
            return self._told(request, 503, text)
        except ApiError as error:
            status, title = (503, "Not now") if error.failure.retry_after_seconds else (400, None)
            return self._told(request, status, error.failure.message, title)

    def _told(
        self, request: web.Request, status: int, text: str, title: str | None = None
    ) -> web.Response:
        try:
            visitor: Visitor | None = self.doorway.visitor_of(request)
        except (SignInWanted, web.HTTPNotFound):
            visitor = None
        return self.message(visitor, status, text, title)

    def _with_headers(self, response: web.StreamResponse) -> web.StreamResponse:
        if not response.prepared:
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
        return response

    # --- signing in and out -------------------------------------------------------------------

    async def _sign_in_form(self, request: web.Request) -> web.StreamResponse:
        try:
            self.doorway.visitor_of(request)
        except SignInWanted:
            return self._form()
        raise web.HTTPSeeOther("/")

    def _form(self, status: int = 200, problem: str = "") -> web.Response:
        return self.page("sign_in.html", None, status=status, problem=problem, here="")

    async def _sign_in(self, request: web.Request) -> web.StreamResponse:
        doorway = self.doorway
        doorway.check_on(request)
        form = await doorway.form_of(request, "")
        if wait := doorway.wait_seconds(request):
            response = self._form(429, "Too many wrong keys came from there. Wait a minute.")
            response.headers[hdrs.RETRY_AFTER] = str(round(wait) + 1)
            return response
        token = doorway.sign_in(request, form.get("key", "").strip())
        if token is None:
            return self._form(403, "That is not one of the admin keys.")
        response = web.Response(status=303, headers={hdrs.LOCATION: "/"})
        doorway.set_cookie(request, response, token)
        return response

    async def _sign_out(self, request: web.Request) -> web.StreamResponse:
        doorway = self.doorway
        visitor = doorway.visitor_of(request)
        told = f"/page/sign-out?{urlencode({'session': visitor.token})}"
        telling = request.clone(rel_url=told)  # can't be cloned once its form is read
        await doorway.form_of(request, visitor.token)
        doorway.sessions.end(visitor.token)
        await self.watched.ask_others(telling)
        log.info("signed out", admin=visitor.name)
        response = web.Response(status=303, headers={hdrs.LOCATION: "/page/sign-in"})
        doorway.set_cookie(request, response, "")
        return response

    async def _signed_out(self, request: web.Request) -> web.StreamResponse:
        """A sibling tells which session is over."""
        siblings = self.watched.siblings
        if siblings is None or not siblings.is_from_sibling(request):
            raise web.HTTPNotFound
        self.doorway.sessions.end(request.query.get("session", ""))
        return web.json_response({})

    async def _static(self, request: web.Request) -> web.StreamResponse:
        admins = self.watched.admins
        found = static_files().get(request.match_info["name"])
        if found is None or not (admins.has_keys or admins.is_open):
            raise web.HTTPNotFound
        data, kind, digest = found
        is_named = request.query.get("v") == digest
        keep = f"public, max-age={_WEEK_SECONDS}, immutable" if is_named else "no-cache"
        headers = {**HEADERS, hdrs.CACHE_CONTROL: keep}
        return web.Response(body=data, content_type=kind, charset="utf-8", headers=headers)


def _takes_html(request: web.Request) -> bool:
    return "text/event-stream" not in request.headers.get(hdrs.ACCEPT, "")


async def look(call: Coroutine[Any, Any, _T]) -> _T:
    """Ask the store, to the call's end also if the visitor leaves. Raises `TooSlow`,
    `StoreUnavailable`."""
    return await to_its_end(call)


def nothing(what: str, name: str) -> web.HTTPNotFound:
    """The 404 page for what isn't there."""
    return web.HTTPNotFound(reason=f"There is no {what} {name[:100]!r}.".replace("\n", " "))
