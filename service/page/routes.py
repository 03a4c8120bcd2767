"""Puts the screens together: the page's routes."""

import secrets

from aiohttp import web

from service.page.callers import Callers
from service.page.completion import OneCompletion
from service.page.completions import Completions
from service.page.conversation import Conversation
from service.page.doorway import Doorway
from service.page.health import Health
from service.page.now import Now
from service.page.screens import Screens
from service.page.sessions import Sessions
from service.page.watched import Watched


def page_routes(watched: Watched) -> list[web.RouteDef]:
    """The page's calls and their handlers."""
    siblings = watched.siblings
    secret = secrets.token_bytes(32) if siblings is None else siblings.secret
    sessions = Sessions(secret, lambda: watched.config.value.admin.api_keys)
    screens = Screens(watched, Doorway(watched, sessions))
    return [
        *screens.routes(),
        *Now(screens).routes(),
        *Completions(screens).routes(),
        *OneCompletion(screens).routes(),
        *Conversation(screens).routes(),
        *Health(screens).routes(),
        *Callers(screens).routes(),
    ]
