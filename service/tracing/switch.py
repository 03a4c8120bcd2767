"""Says whether spans are wanted, by OpenTelemetry's own variables, and loads what makes them.

Imports nothing of theirs: without the variables none of it is loaded.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

if TYPE_CHECKING:
    from service.tracing.tracing import Tracing

log = structlog.get_logger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_REMEDY = "in a checkout start it by: make run; or pip install '.[tracing]'"


def is_wanted(environ: Mapping[str, str]) -> bool:
    """True if an OTLP endpoint is named, or the console, and nothing forbids it."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    named = environ.get("OTEL_TRACES_EXPORTER", "").replace(" ", "").lower()
    exporters = set(named.split(",")) - {""}
    if "none" in exporters:
        return False
    has_endpoint = any(environ.get(name) for name in _ENDPOINTS)
    return "console" in exporters or (has_endpoint and (not exporters or "otlp" in exporters))


def tracing_for(
    environ: Mapping[str, str], is_from_sibling: Callable[[web.Request], bool] | None = None
) -> "Tracing | None":
    """What makes spans; None if they aren't wanted, or can't be made, of which the log says why.

    Args:
        is_from_sibling: whether another worker sent a request on.
    """
    if not is_wanted(environ):
        return None
    try:
        from service.tracing.tracing import Tracing

        return Tracing(environ, is_from_sibling or (lambda _: False))
    except ModuleNotFoundError as error:
        log.warning("traces off", missing=error.name, remedy=_REMEDY)
    except (OSError, RuntimeError, ValueError) as error:  # of a variable that makes no sense
        log.warning("traces off", reason=str(error))
    return None


def load_for(environ: Mapping[str, str]) -> None:
    """Import what `tracing_for` would, so that workers share its memory; starts nothing."""
    if is_wanted(environ):
        try:
            import service.tracing.tracing  # noqa: F401
        except ModuleNotFoundError:
            pass  # each worker says so
