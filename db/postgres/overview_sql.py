"""Words the statements of everybody's completions, each so that an index answers it. No driver here.

`python -m benchmarks.questions.history` shows their plans.

A page is read along one index that has the list's order, `created_at, completion_id`, backwards. What
no index has together is looked for among the next `LOOKED_AT` rows of one that has part of it, so that
rare pairs of common things cost no more than others.
"""

from typing import Final

from attrs import asdict

from db.overview import LOOKED_AT, Place, Sought
from db.postgres import sql
from statemachine import State

PLANNER: Final = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off"
"""Has every page read along its index, in the list's order, and stop where it is full. Where the planner
expects few rows it would rather fetch and sort all there are, and it can be wrong by a factor of a
thousand."""
_INDEXED: Final = 200
"""The characters of a chosen name that indexes hold."""
_ORDER = "ORDER BY created_at DESC, completion_id DESC"


def _beginning(column: str, name: str) -> str:
    return f"left({column}, {_INDEXED}) = left(%({name})s, {_INDEXED})"


_CONDITIONS: Final = {
    # filter → condition, as its index has it
    "conversation_id": "conversation_id = %(conversation_id)s",
    "error": _beginning("coalesce(error ->> 'kind', error ->> 'code')", "error")
    + " AND error IS NOT NULL",
    "state": "state = %(state)s AND state <> 'completed'",
    "owner": "owner = %(owner)s",
    "model": _beginning("model", "model"),
    "agent": _beginning("agent", "agent"),
}
_COMPLETED = "state = 'completed'"
"""Most are, so the list itself is their index."""
ALL: Final = "all"
"""The index that filters by nothing."""


def filters_of(sought: Sought) -> dict[str, str]:
    """The filters that are asked for, with their conditions; the first is a good one to read by."""
    values = asdict(sought)
    found = {name: text for name, text in _CONDITIONS.items() if values[name] is not None}
    if sought.state is State.COMPLETED:
        found["state"] = _COMPLETED
    return found


def leads_of(sought: Sought) -> list[str]:
    """The filters that have an index; `ALL` if none has."""
    leads = list(filters_of(sought))
    if sought.state is State.COMPLETED:
        leads.remove("state")
    return leads or [ALL]


def _stretch(lead: str, sought: Sought, after: Place | None, columns: str = "*") -> str:
    shown = ["NOT hidden"]
    if lead != ALL:
        shown.append(_CONDITIONS[lead])
    if sought.since is not None:
        shown.append("created_at >= to_timestamp(%(since)s)")
    if sought.until is not None:
        shown.append("created_at < to_timestamp(%(until)s)")
    if after is not None:
        shown.append("(created_at, completion_id) < (to_timestamp(%(at)s), %(after)s)")
    return f"SELECT {columns} FROM completions WHERE {' AND '.join(shown)} {_ORDER}"


def page(lead: str, sought: Sought, after: Place | None) -> str:
    """A page's completions, read along this filter's index. Takes `limit` and the filters' values."""
    others = [text for name, text in filters_of(sought).items() if name != lead]
    names = sql.select_list(sql.COMPLETIONS)
    if not others:
        return f"SELECT {names} FROM ({_stretch(lead, sought, after)} LIMIT %(limit)s) AS page {_ORDER}"
    return (
        f"SELECT {names} FROM ({_stretch(lead, sought, after)} LIMIT {LOOKED_AT}) AS page"
        f" WHERE {' AND '.join(others)} {_ORDER} LIMIT %(limit)s"
    )


def reach(lead: str, sought: Sought, after: Place | None) -> str:
    """The last place of those that are looked at for a page along this filter's index, if that isn't
    the last of all."""
    columns = "extract(epoch FROM created_at)::float8, completion_id"
    return f"{_stretch(lead, sought, after, columns)} OFFSET {LOOKED_AT - 1} LIMIT 1"


_SHOWN_BY_ID = " UNION ALL ".join(
    f"(SELECT completion_id FROM completions WHERE NOT hidden AND {condition} {_ORDER} LIMIT %(limit)s)"
    for condition in (
        "completion_id = %(name)s",
        "request_id = %(name)s",
        "trace_id = %(name)s",
        f"{_beginning('upstream_id', 'name')} AND upstream_id IS NOT NULL",
    )
)
FIND: Final = (
    f"SELECT {sql.select_list(sql.COMPLETIONS)} FROM completions"
    f" WHERE completion_id IN ({_SHOWN_BY_ID}) {_ORDER} LIMIT %(limit)s"
)
FIND_CONVERSATION: Final = (
    "SELECT conversation_id FROM conversations WHERE conversation_id = %(name)s AND NOT hidden"
)
