"""Encodes spans as OTLP's protobuf messages (opentelemetry/proto/trace/v1/trace.proto).

The SDK's encoder makes an object for each attribute and takes many times as long. Tests compare the
two on made-up spans. Computes and does nothing else.
"""

import struct
from collections.abc import Iterable
from functools import lru_cache

from service.tracing.spans import Span, Value

_FIXED64 = struct.Struct("<Q").pack
_DOUBLE = struct.Struct("<d").pack
_TIMES = struct.Struct("<BQBQ").pack
_STARTED, _ENDED = 7 << 3 | 1, 8 << 3 | 1
_ERROR, _UNSET = b"\x7a\x02\x18\x02", b"\x7a\x00"  # field 15, with and without a code
_HAS_IS_REMOTE, _IS_REMOTE = 0x100, 0x200
_FLAGS = b"\x85\x01"  # field 16, 32 bits
_LOCAL_PARENT = _FLAGS + struct.pack("<I", _HAS_IS_REMOTE)
_REMOTE_PARENT = _FLAGS + struct.pack("<I", _HAS_IS_REMOTE | _IS_REMOTE)
_REMOTE_LINK = b"\x35" + struct.pack("<I", _HAS_IS_REMOTE | _IS_REMOTE)  # field 6 of a link
_KEPT = 1024
"""Most attributes of most spans are the same as before."""


def encode_request(resource: bytes, scope: bytes, spans: Iterable[Span]) -> bytes:
    """An `ExportTraceServiceRequest` of these spans.

    Args:
        resource, scope: the messages `Resource` and `InstrumentationScope`, encoded.
    """
    encoded = [_field(2, encode_span(span)) for span in spans]
    scope_spans = b"".join((_field(1, scope), *encoded))
    return _field(1, _field(1, resource) + _field(2, scope_spans))


def encode_span(span: Span) -> bytes:
    """The message `Span`. Half a character, which no protobuf text may hold, becomes a question
    mark."""
    parts = [
        b"\x0a\x10" + bytes.fromhex(span.trace_id),
        b"\x12\x08" + bytes.fromhex(span.span_id),
        _name(span.name),
        b"\x30" + bytes((span.kind,)),
        _TIMES(_STARTED, span.started_ns, _ENDED, span.ended_ns),
    ]
    if span.parent_id is not None:
        parts.append(b"\x22\x08" + bytes.fromhex(span.parent_id))
    for key, value in span.attributes.items():
        parts.append(_attribute(key, tuple(value) if type(value) is list else value))
    for name, at_ns in span.events:
        parts.append(_field(11, b"\x09" + _FIXED64(at_ns) + _text(2, name)))
    for trace_id, span_id in span.links:
        ids = b"\x0a\x10" + bytes.fromhex(trace_id) + b"\x12\x08" + bytes.fromhex(span_id)
        parts.append(_field(13, ids + _REMOTE_LINK))
    parts.append(_ERROR if span.is_error else _UNSET)
    parts.append(_REMOTE_PARENT if span.has_remote_parent else _LOCAL_PARENT)
    return b"".join(parts)


@lru_cache(_KEPT, typed=True)  # to Python 1, 1.0 and True are the same
def _attribute(key: str, value: Value) -> bytes:
    return _field(9, _text(1, key) + _field(2, _any_value(value)))


@lru_cache(_KEPT)
def _name(name: str) -> bytes:
    return _text(5, name)


def _any_value(value: Value) -> bytes:
    """The message `AnyValue`."""
    match value:
        case str():
            return _text(1, value)
        case bool():
            return b"\x10" + bytes((value,))
        case int():
            return b"\x18" + _varint(value & (1 << 64) - 1)
        case float():
            return b"\x21" + _DOUBLE(value)
        case _:
            return _field(5, b"".join(_field(1, _text(1, each)) for each in value))


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode("utf-8", "replace"))


def _field(number: int, data: bytes) -> bytes:
    """A field of a length and so many bytes, with a number up to 15."""
    size = len(data)
    if size < 128:
        return bytes((number << 3 | 2, size)) + data
    return bytes((number << 3 | 2,)) + _varint(size) + data


def _varint(number: int) -> bytes:
    """A whole number from 0 on, seven bits to a byte, the lowest first."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
