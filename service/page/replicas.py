"""Lays out the replicas of a fleet for Health: who is alive, and how each stands. Pure."""

from collections.abc import Iterable
from typing import Any

from attrs import asdict

from db.fleet import Replica
from service.fleet.others import Told
from service.fleet.standing import TOKEN_LETTERS, Standing

Row = dict[str, Any]


def told_of(standing: Standing, streams: int) -> Row:
    """One replica, as JSON for the others.

    Args:
        streams: how many completions run there.
    """
    return {**asdict(standing), "streams": streams}


def replica_rows(here: Iterable[Row], told: Told, known: Iterable[Replica]) -> list[Row]:
    """Every replica, by name; those that said nothing have neither `streams` nor what a `Standing` has.

    Args:
        here: what this service's own processes say of themselves.
        told: what other replicas said of themselves.
        known: everybody who was seen last.
    """
    rows = [{**row, "state": "alive"} for row in (*here, *(row for _, row in told.answers))]
    said = {row["token"] for row in rows}
    for each in known:
        token = each.token[:TOKEN_LETTERS]
        if token not in said:
            state = "silent" if each.is_alive else "dead"
            about = {"replica": each.name, "token": token, "version": each.version}
            rows.append({**about, "state": state})
    return sorted(rows, key=lambda row: (row["replica"], row["state"], row["token"]))


def missing_text(told: Told) -> str:
    """Whose completions can't be shown; empty if all are."""
    if not told.is_known:
        return "What runs at other replicas can't be told now: the engine is away."
    if told.silent:
        return f"What runs at {', '.join(sorted(told.silent))} can't be told now."
    return ""
