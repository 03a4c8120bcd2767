"""Defines what whoever runs the service may ask of the store: everybody's completions.

The contract of owners is `db.store.Readable`; the page alone uses this one. No SQL here. The tests of
both (`tests/db`) run over PostgreSQL and over memory.
"""

from typing import Final, Protocol

from attrs import frozen

from db.store import (
    CompletionView,
    ConversationView,
    Moment,
    Page,
    Paging,
    Store,
    StoredCompletion,
    StoredMessage,
)
from statemachine import State

OVERVIEW_SECONDS: Final = 2.0
"""How long a call of `Overview` may take."""
LOOKED_AT: Final = 5000
"""So many completions are looked at for a page of those that fit several filters, and no more."""


@frozen
class Place:
    """A place in the list of everybody's completions: behind the one of this time and id."""

    created_at: Moment
    completion_id: str


@frozen
class Sought:
    """The completions that fit all that isn't None. `error` is a code of ours, or the upstream's where
    there is none of ours; `since` and `until` bound their creation, `until` excluded."""

    state: State | None = None
    error: str | None = None
    model: str | None = None
    agent: str | None = None
    owner: str | None = None
    conversation_id: str | None = None
    since: Moment | None = None
    until: Moment | None = None


@frozen
class Stretch:
    """A part of the list of everybody's completions, newest first. It may hold few or none although
    there are more: `next` is the place to go on from, or None at the end."""

    items: tuple[StoredCompletion, ...]
    next: Place | None


@frozen
class Found:
    """What has an id: completions, newest first, and the conversation if it is one's."""

    completions: tuple[StoredCompletion, ...]
    conversation_id: str | None


class Overview(Protocol):
    """The calls by which whoever runs the service reads what all owners have.

    Hidden completions aren't there. Each call is a coroutine and may be cancelled. It raises
    `TooSlow` after `OVERVIEW_SECONDS`, and `StoreUnavailable`.
    """

    async def list_all(self, sought: Sought, limit: int, after: Place | None = None) -> Stretch:
        """Completions from a place on, without their texts. The place need not be one of theirs."""

    async def find_any(self, name: str, limit: int) -> Found:
        """What has this id: a completion's, a request's, a trace's, an upstream's, a conversation's."""

    async def view_any(self, completion_id: str) -> CompletionView | None:
        """As `Readable.view`, whoever's it is."""

    async def list_any_prompt(
        self, completion_id: str, paging: Paging
    ) -> Page[StoredMessage] | None:
        """As `Readable.list_prompt`, whoever's it is. Raises `UnknownCursor`."""

    async def view_any_conversation(
        self, conversation_id: str, paging: Paging
    ) -> ConversationView | None:
        """As `Readable.view_conversation`, whoever's it is. Raises `UnknownCursor`."""


class WholeStore(Store, Overview, Protocol):
    """A store that can also be looked over."""
