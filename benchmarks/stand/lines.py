"""Makes up conversations, the same for whoever stores them.

No I/O, and nothing but the standard library: programs in environments of their own read it too.
"""

import random
import re
from functools import lru_cache

QUESTION_WORDS, ANSWER_WORDS = 40, 160

_ASKED = re.compile(rb"Question (\d+) of conversation (\d+):")
_SYLLABLES = ("ka", "to", "mir", "es", "lon", "da", "ru", "vi", "sten", "o", "pal", "ne", "qui")
_VOCABULARY = 2_000


@lru_cache(1)
def _vocabulary() -> tuple[list[str], list[float]]:
    """Made-up words, and how often each is said: as in a language, few of them often."""
    chance, words = random.Random(1), dict[str, None]()
    while len(words) < _VOCABULARY:
        words["".join(chance.choices(_SYLLABLES, k=chance.randint(1, 4)))] = None
    return [*words], [1 / (rank + 3) for rank in range(_VOCABULARY)]


def _words(seed: str, count: int) -> str:
    words, weights = _vocabulary()
    return " ".join(random.Random(seed).choices(words, weights, k=count))


def question(conversation: int, turn: int) -> str:
    """What the user says; it names itself, so that a backend knows what to answer."""
    words = _words(f"question {conversation} {turn}", QUESTION_WORDS)
    return f"Question {turn} of conversation {conversation}: {words}?"


def answer(conversation: int, turn: int) -> str:
    """What the model says to it."""
    return _words(f"answer {conversation} {turn}", ANSWER_WORDS) + "."


def asked_last(body: bytes) -> tuple[int, int]:
    """Conversation and turn of the last question in a request's body.

    Raises `ValueError` if there is none.
    """
    found = _ASKED.findall(body)
    if not found:
        raise ValueError("no question")
    turn, conversation = found[-1]
    return int(conversation), int(turn)
