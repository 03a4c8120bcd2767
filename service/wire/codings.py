"""Reads `Content-Encoding`, of requests and of responses (RFC 9110, section 8.4). Pure."""

from collections.abc import Iterable


def codings_in(fields: Iterable[str]) -> list[str]:
    """The codings that these header fields name, as they are written; `identity` is none."""
    codings = [coding.strip() for field in fields for coding in field.split(",")]
    return [coding for coding in codings if coding.lower() not in ("", "identity")]
