"""What the page asks of a large history: its statements, for their plans, and its screens, for their
times. `benchmarks.questions.history` runs both."""

from collections.abc import Callable, Iterator
from typing import Any

from attrs import asdict

from benchmarks.questions.filling import OWNER
from db.overview import Place, Sought
from db.postgres import overview_sql
from statemachine import State

MOST_MS = 100.0
"""What the slowest of a hundred looks at a screen may take."""

FILTERS = {
    "all": Sought(),
    "common model": Sought(model="model-1"),
    "rare model": Sought(model="rare"),
    "no such model": Sought(model="none"),
    "common agent": Sought(agent="demo"),
    "rare agent": Sought(agent="spare"),
    "failed": Sought(state=State.FAILED),
    "completed": Sought(state=State.COMPLETED),
    "an error": Sought(error="idle_timeout"),
    "an owner": Sought(owner=OWNER),
    "an owner and a rare model": Sought(owner=OWNER, model="rare"),
    "an owner and no such model": Sought(owner=OWNER, model="none"),
    "failed and a common model": Sought(state=State.FAILED, model="model-1"),
    "an error and no such owner": Sought(error="idle_timeout", owner="nobody"),
    "two common things that never meet": Sought(model="model-1", agent="spare"),
    "an hour": Sought(since=1_767_600_000.0, until=1_767_603_600.0),
    "a model in an hour": Sought(model="model-2", since=1_767_600_000.0, until=1_767_603_600.0),
}


def statements(
    after: Place, conversation: str, names: dict[str, str]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Question, statement and its values: each filter's page, its next one, and where it leads.

    Args:
        after: a place in the middle.
        conversation: one of them.
        names: kind of an id → one of that kind.
    """
    filters = {**FILTERS, "a conversation": Sought(conversation_id=conversation)}
    for name, sought in filters.items():
        for place in (None, after):
            values = {
                **asdict(sought),
                "state": sought.state and sought.state.value,
                "limit": 51,
                "at": place and place.created_at,
                "after": place and place.completion_id,
            }
            which = f"page: {name}" + (", older" if place else "")
            for lead in overview_sql.leads_of(sought):
                by = f" by {lead}" if len(overview_sql.leads_of(sought)) > 1 else ""
                yield which + by, overview_sql.page(lead, sought, place), values
                if by:
                    yield f"{which}: reach{by}", overview_sql.reach(lead, sought, place), values
    for kind, name in names.items():
        yield f"page: find a {kind}", overview_sql.FIND, {"name": name, "limit": 100}
    yield "page: find a conversation", overview_sql.FIND_CONVERSATION, {"name": conversation}


def screens(
    name: Callable[[], str], talk: Callable[[], int]
) -> dict[str, Callable[[], tuple[str, str, Any]]]:
    """Screen → makes method, path and body of a look at it, another one each time."""
    lists = {
        "all": "",
        "older": "after=1768000000.000000-chatcmpl-",
        "common model": "model=model-1",
        "rare model": "model=rare",
        "failed": "state=failed",
        "error": "error=idle_timeout",
        "rare agent": "agent=spare",
        "owner, rare model": f"owner={OWNER}&model=rare",
        "owner, no such model": f"owner={OWNER}&model=none",
        "never meet": "model=model-1&agent=spare",
        "an hour": "model=model-2&since=2026-01-05T08:00&until=2026-01-05T09:00",
    }

    def one(path: str) -> Callable[[], tuple[str, str, Any]]:
        return lambda: ("GET", path.format(name=name(), talk=talk()), None)

    return {
        "page: Now": one("/"),
        **{
            f"page: Completions, {kind}": one(f"/page/completions?{q}") for kind, q in lists.items()
        },
        "page: Completions of one talk": one("/page/completions?conversation=conv_{talk:09}"),
        "page: find": one("/page/find?id={name}"),
        "page: find a request": one("/page/find?id=req_{name}"),
        "page: find nothing": one("/page/find?id=nothing-{talk}"),
        "page: One completion": one("/page/completions/{name}"),
        "page: Conversation": one("/page/conversations/conv_{talk:09}"),
        "page: Health": one("/page/health"),
        "page: Callers": one("/page/callers"),
    }
