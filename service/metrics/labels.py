"""Decides which texts may be labels, so that nobody outside can make series at will.

Prometheus keeps every series that it ever saw. Whatever a client or a backend can choose is a label
only if the configuration or a backend's list names it; else it is `other`.
"""

from collections.abc import Callable

from service.edge.errors import ERROR_CODES
from statemachine import Failure

OTHER = "other"
NONE = "none"
"""Of an error's label: there was none."""
_UPSTREAM = "upstream_error"
_MOST_MODELS = 1_000
"""Backends may list thousands, and others each day."""
_LONGEST_MODEL = 200


class ModelLabels:
    """Models' labels.

    Args:
        is_known: whether the configuration names a model, or a backend lists it.
    """

    def __init__(self, is_known: Callable[[str], bool]) -> None:
        self._is_known = is_known
        self._known: dict[str, str] = {}

    def label(self, model: str) -> str:
        """The model's own name, if it is known, printable and of 200 characters at most, and if there
        aren't a thousand already; else `other`."""
        found = self._known.get(model)
        if found is not None:
            return found
        if self._is_fit(model) and self._is_known(model):
            self._known[model] = model
            return model
        return OTHER

    def _is_fit(self, model: str) -> bool:
        # Half a character, which JSON can say, could be written nowhere.
        is_text = len(model) <= _LONGEST_MODEL and model.isprintable()
        return is_text and len(self._known) < _MOST_MODELS


def code_label(failure: Failure | None) -> str:
    """Our own code of a failure, never the backend's; `none` without one."""
    if failure is None:
        return NONE
    return failure.code if failure.code in ERROR_CODES else _UPSTREAM
