"""What counts as blank: what a tokenizer leaves nothing of."""

from __future__ import annotations

import json
import shutil
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


@pytest.mark.parametrize("text", ["\u0301", "\ufe0f \u0308"])
def test_a_tokenizer_that_takes_off_accents_leaves_nothing_of_them_alone(
    encoders: Path, tmp_path: Path, text: str
) -> None:
    assert is_blank(text)
    folder = shutil.copytree(encoders / "tiny-bert", tmp_path / "lower")
    about = json.loads((folder / "tokenizer_config.json").read_text("utf-8")) | {"do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(about), "utf-8")
    assert [len(row) for row in WordPieces.load(folder).encode([text, f"好{text}"])] == [0, 1]
    assert not is_blank(f"好{text}")
