"""The digests by which messages are found again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.rows import digest
from db.rows.digest import digest_of, message_digest

TEXTS = st.text(st.characters(codec=None, exclude_categories=()) | st.sampled_from("\ud83d\ude00"))


@given(TEXTS, st.integers(1, 5))
def test_a_long_text_has_the_digest_of_a_short_one(text: str, length: int) -> None:
    """Its JSON is made in slices, which part no character whose halves came apart."""
    content = {"annotations": [{"content": ""}], "content": text, "name": "Anne"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digest, "LONGEST_SLICE", length)
        assert digest_of(["parent", "user", content]) == message_digest("parent", "user", content)
