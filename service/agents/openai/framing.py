"""What an SSE event's lines say, also where an upstream parts its events by one line end. Pure.

SSE joins the data lines of an event. Whole JSON objects in two of them are no JSON together, so each
is an event of its own then.
"""

from collections.abc import Sequence

from attrs import frozen

DONE = (b"[DONE]", b'"[DONE]"')
_NO_DATA = (b"event:", b"id:", b"retry:", b":")


@frozen
class Block:
    """The lines up to a blank one."""

    events: Sequence[tuple[bytes, bytes]]
    """The data of each event, and its name in lower case; an event may have either."""
    error: bytes | None
    """llama.cpp's own field, `error:`."""
    bare: bytes
    """Lines that are no fields: JSON without SSE around it, or a web page."""


def read_block(block: bytes) -> Block:
    """Read an event's lines, which end in `\\n`."""
    name = b""
    data: list[tuple[bytes, bytes]] = []
    bare: list[bytes] = []
    error: bytes | None = None
    for line in block.split(b"\n"):
        key, _, value = line.partition(b":")
        if key == b"data":
            data.append((value.removeprefix(b" "), name))
            name = b""
        elif key == b"event":
            name = value.strip().lower()
        elif key == b"error":
            error = value
        elif key and not key.isalpha():  # SSE ignores fields it doesn't know; this is none
            bare.append(line)
    if name:  # it may stand behind the data
        data[-1:] = [(data[-1][0] if data else b"", name)]
    return Block(_events_in(data), error, b"\n".join(bare).strip())


def begins_line_parted(buffer: bytearray) -> bool:
    """True if a body begins with an event that ends with its line."""
    lines = bytes(buffer[: buffer.find(b"\ndata:") + 8]).split(b"\n")
    data = [line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")]
    return len(data) > 1 and _is_object(data[0]) and data[1][:1] in (b"{", b"[", b"")


def take_lines(buffer: bytearray) -> list[bytes]:
    """Take the whole lines out of the buffer, each with the lines before it that bring no data."""
    *lines, rest = bytes(buffer).split(b"\n")
    blocks: list[bytes] = []
    start = 0
    for end, line in enumerate(lines, 1):
        if not line.startswith(_NO_DATA):
            blocks.append(b"\n".join(lines[start:end]))
            start = end
    buffer[:] = b"\n".join((*lines[start:], rest))
    return blocks


def _events_in(data: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    if len(data) > 1 and not all(_is_object(line) or line in DONE for line, _ in data):
        name = next((name for _, name in reversed(data) if name), b"")
        return [(b"\n".join(line for line, _ in data), name)]
    return data


def _is_object(data: bytes) -> bool:
    """True if this may be a whole JSON object; where another line of data begins with one, it is."""
    return data.startswith(b"{") and data.rstrip().endswith(b"}")
