"""The lattices of a batch of texts: the characters of each, and the words of a lexicon found in it, as positions.

Source: FLAT (Li et al. 2020), section 3.1: each token has a head and a tail, the indices of its first and last character; a
character's are its own index.
Differs: all characters of a batch stand before all words, each kind in columns of its own, so that one slice takes the characters;
in the release the words of a text follow its own characters directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hanzoo.data.movable import Movable


@dataclass(frozen=True)
class Lattice(Movable):
    """Where the characters and words of a batch of texts stand. Columns: first those of the characters, then those of the words.

    Attributes:
        starts: (batch, columns) int64: first character (FLAT: head); of a character column its own number, also at padding.
        kinds: (batch, columns) int64: place of the length in `lengths`; 0 for characters and at padding.
        mask: (batch, columns) bool, True = real; of characters and of words each text's are the first.
        lengths: the distances from head to tail that occur, rising; the first is 0, a character's.
        seq: columns of characters.
    """

    starts: Tensor
    kinds: Tensor
    mask: Tensor
    lengths: tuple[int, ...]
    seq: int

    @classmethod
    def of(
        cls,
        num_characters: Sequence[int],
        words: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
        seq: int,
        most: int,
    ) -> Self:
        """The positions of texts.

        Args:
            num_characters: of each text.
            words: of each text the first character of its words, and the one behind the last; (words,) each.
            seq: columns for characters, at least as many as the longest text has.
            most: columns for words.
        """
        batch = len(num_characters)
        counts = np.array([[number, len(starts)] for number, (starts, _) in zip(num_characters, words, strict=True)])
        lengths, kinds_of_words = np.unique(
            np.concatenate([np.zeros(1, np.int64), *(ends - starts - 1 for starts, ends in words)]), return_inverse=True
        )
        starts = np.zeros((batch, seq + most), dtype=np.int64)
        starts[:, :seq] = np.arange(seq)
        kinds = np.zeros((batch, seq + most), dtype=np.int64)
        mask = np.empty((batch, seq + most), dtype=np.bool_)
        mask[:, :seq] = np.arange(seq) < counts[:, :1]
        mask[:, seq:] = np.arange(most) < counts[:, 1:]
        is_word = mask.copy()
        is_word[:, :seq] = False
        starts[is_word] = np.concatenate([heads for heads, _ in words])
        kinds[is_word] = kinds_of_words[1:]
        return cls(
            torch.from_numpy(starts),
            torch.from_numpy(kinds),
            torch.from_numpy(mask),
            tuple(lengths.tolist()),
            seq,
        )
