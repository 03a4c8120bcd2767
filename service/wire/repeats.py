"""Tells a request that was sent before by its `Idempotency-Key` and its content. Pure.

What a key is and when two requests say the same; who holds a key is `db.claims`'s business. The rules:

1. A key belongs to its owner and path: the same one elsewhere is another key.
2. Two bodies say the same if they are the same JSON values, but for `stream` and `stream_options`:
   the order of keys, white space and escapes don't count, since nobody reads them out of a value.
3. All else counts. 1 and 1.0 are two values, null isn't absent, and a text isn't the list of text
   parts that says the same: whoever repeats a request sends what they sent, so that a difference
   is rather a mistake, which a 422 shows, than a spelling.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

import orjson

from service.wire.jsontext import encode_json

LONGEST_KEY: Final = 255
"""Characters of an `Idempotency-Key`."""
_FORM_OF_THE_ANSWER = frozenset(("stream", "stream_options"))
"""A repeat may ask for the same answer in the other form."""


def is_claimable(key: str) -> bool:
    """True if a text can be an `Idempotency-Key`: 1 to 255 visible ASCII characters (0x21 to 0x7e)."""
    return 0 < len(key) <= LONGEST_KEY and key.isascii() and key.isprintable() and " " not in key


def claim_key(owner: str, path: str, key: str) -> bytes:
    """SHA-256 of an owner's key on a path, 32 bytes. Different ones have different digests, wherever
    one text ends and the next begins."""
    return sha256(encode_json([owner, path, key])).digest()


def body_digest(body: Mapping[str, Any]) -> bytes:
    """SHA-256 of what a request says, 32 bytes: of `ChatRequest.body`, as `decode_json` read it.

    Digests live as long as claims do, a day or so: a release may change these rules.

    Raises:
        ValueError: nested too deeply; no body that was read is.
    """
    said = {key: value for key, value in body.items() if key not in _FORM_OF_THE_ANSWER}
    return sha256(_canonical(said)).digest()


def _canonical(value: Any) -> bytes:
    """The bytes that the same values share, and no others: what orjson writes is UTF-8, and what it
    refuses, of all that `decode_json` reads, has half a character in it, which is not."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        pass
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return text.encode("utf-8", "surrogatepass")
