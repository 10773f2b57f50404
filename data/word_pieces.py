"""Texts to the pieces of a pretrained encoder, as its own tokenizer cuts them: what a matcher reads.

A tagger needs one piece a character (`subwords.py`). A matcher needs the very pieces that the encoder was trained on, and that
sentence-transformers reads from the same folder.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hanzoo.data.subwords import PieceNumbers


class WordPieces(PieceNumbers):
    """From texts to piece numbers; see `PieceNumbers`."""

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """The pieces of each text, (pieces,) int64, without [CLS] and [SEP], of any number.

        A text of blanks has none. "[SEP]" written in a text is text. A lone surrogate, which no tokenizer takes, is read like a
        character that cannot be decoded.
        """
        if not texts:  # the tokenizer wants one at least
            return []
        readable = [text.encode("utf-8", "surrogatepass").decode("utf-8", "replace") for text in texts]
        found = self._tokenizer(
            readable, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
        )
        return [np.array(row, dtype=np.int64) for row in found["input_ids"]]

    def pair(self, first: str, second: str) -> tuple[list[int], list[int] | None]:
        """Two texts as the tokenizer joins them, special pieces included, and the type of each piece; None = it has no types."""
        found = self._tokenizer(first, second, split_special_tokens=True, verbose=False)
        return found["input_ids"], found.get("token_type_ids")

    def number(self, piece: str) -> int | None:
        """The number of a piece as the vocabulary writes it; None where it has none."""
        return self._vocabulary.get(piece)
