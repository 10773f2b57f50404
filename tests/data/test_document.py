"""What counts as blank: what a tokenizer leaves nothing of."""

from __future__ import annotations

from pathlib import Path

import pytest

from hanzoo.data.document import is_blank
from hanzoo.data.word_pieces import WordPieces


@pytest.mark.parametrize(
    "text", ["", " \t\u3000", "\u200b", "\ufeff\u00ad\u2060", "\x00\x1f", "\ud83d", "\ue000", " \ufffd"]
)
def test_a_tokenizer_leaves_nothing_of_a_blank_text(encoders: Path, text: str) -> None:
    assert is_blank(text)
    pieces = WordPieces.load(encoders / "tiny-bert")
    assert [len(row) for row in pieces.encode([text, f"{text}好", "。"])] == [0, 1, 1]
    assert not is_blank(f"{text}好")
    assert not is_blank("。")
