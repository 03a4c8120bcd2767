"""Which chunks can be told by their text alone: the knowledge behind `ChunkPattern`.

Called by `service.wire.pattern`, which finds such chunks among the bytes.
"""

from statemachine.messages import JsonObject
from statemachine.transcript import find_usage

PADDING = "obfuscation"
"""OpenAI's: random letters that hide from who counts bytes how long a text is. Says nothing, and is
another in each chunk."""


def text_field(payload: JsonObject) -> str | None:
    """The key of a chunk's only text, if folding it again with another text changes nothing else.

    So it has one choice, whose delta holds one string besides the role, which goes on, and which
    brings neither log probabilities nor usage. None for any other chunk.
    """
    choices = payload.get("choices")
    if not choices or len(choices) != 1 or find_usage(payload) is not None:
        return None
    (choice,) = choices
    if choice.get("finish_reason") is not None or choice.get("logprobs") is not None:
        return None
    delta = choice.get("delta") or {}
    said = [key for key, value in delta.items() if value is not None and key != "role"]
    if len(said) != 1 or not isinstance(delta[said[0]], str):
        return None
    return str(said[0])
