"""OpenAI's shapes: bytes in, values out, and back. Pure: no sockets, no clocks.

`jsontext` reads and writes JSON, `requests` checks a client's request and builds an upstream's,
`encoder` writes the SSE that clients read. An upstream's SSE is read in `service.agents.openai`.

Deliberate differences from OpenAI, for whoever compares:

1. `id`, `model` and `created` are the same in every chunk even where an upstream varies them:
   the id is ours, the model is the name the client asked for, `created` is the first chunk's.
2. A client that didn't ask for usage sees none: no usage chunk, and no `usage` key.
3. Usage that no upstream counted is estimated, and then carries `"estimated": true`.
4. A chunk without choices that says nothing (an upstream's heartbeat) isn't passed on; one with
   fields of its own (Azure's filter results) is, with `choices: []` if it had none.
5. After a failure there is an error event and no `[DONE]`.
6. Request fields outside OpenAI's schema go to the upstream as they came; only what we use
   ourselves is checked.
"""

from service.wire.encoder import (
    DONE,
    PING,
    ChunkEncoder,
    NumberingEncoder,
    answer_object,
    completion_object,
    error_body,
    error_event,
)
from service.wire.jsontext import decode_json, encode_json
from service.wire.requests import (
    ChatRequest,
    InvalidRequest,
    parse_metadata_update,
    parse_request,
    upstream_body,
)

__all__ = [
    "DONE",
    "PING",
    "ChatRequest",
    "ChunkEncoder",
    "InvalidRequest",
    "NumberingEncoder",
    "answer_object",
    "completion_object",
    "decode_json",
    "encode_json",
    "error_body",
    "error_event",
    "parse_metadata_update",
    "parse_request",
    "upstream_body",
]
