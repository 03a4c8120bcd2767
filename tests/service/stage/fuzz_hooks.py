"""What Schemathesis is told about this API beyond its description; named in schemathesis.toml."""

from typing import Any
from urllib.parse import parse_qsl, urlsplit

import schemathesis


@schemathesis.hook
def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """False for what is no failure, since no schema can say it."""
    match type(failure).__name__:
        case "AcceptedNegativeData":
            return not (_has_metadata(case, response) or _is_repeat(response))
        case "RejectedPositiveData":
            return not (_asks_after_something(case) or _reads_from_somewhere(response))
    return True


def _has_metadata(case: Any, response: Any) -> bool:
    """Whatever comes as `metadata[…]=…` is a pair of texts: a key may have any characters, brackets
    too, and `null` or `1` are texts in a query. What holds nothing isn't sent at all."""
    metadata = (case.query or {}).get("metadata")
    values = metadata.values() if isinstance(metadata, dict) else ()
    names = [name for name, _ in parse_qsl(urlsplit(response.request.url).query, True)]
    is_empty = any(isinstance(value, (dict, list)) for value in values)
    return is_empty or any(name.startswith("metadata[") for name in names)


def _asks_after_something(case: Any) -> bool:
    """An id that `after` doesn't find is refused with 400, and which ones it finds depends on what
    is stored."""
    return bool((case.query or {}).get("after"))


def _is_repeat(response: Any) -> bool:
    """A request that was answered before gets that answer, and its policy and form aren't read anew."""
    return "idempotency-replayed" in response.headers


def _reads_from_somewhere(response: Any) -> bool:
    """Which positions there are depends on the answer, which parameters go together no schema can say,
    and whether a key was used before depends on what was asked."""
    error = response.json()["error"]
    of_positions = ("starting_after", "include_usage", "Last-Event-ID")
    return error["param"] in of_positions or error["code"] == "idempotency_mismatch"
