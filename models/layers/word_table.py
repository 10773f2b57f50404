"""Vectors for the words of a lexicon: learnt for those that train holds, frozen for all others, made for words that have none.

The first words of the lexicon are those found in train; their rows are learnt. The rows of the others keep their vector, in half
precision. A word that the vector file does not have, and one that is added after training, gets a vector composed from those of its
characters: a linear map of the first, the mean and the last of them, fitted by ridge regression to the words that have one, and
scaled to their root mean square.

Cost: 2 bytes a number of a frozen row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hanzoo.data.lexicon import Lexicon
from hanzoo.data.vectors import Vectors
from hanzoo.data.vocabulary import NUM_SPECIAL, StartingRows, Vocabulary, characters, half_precision
from hanzoo.models.layers.embedding import VocabularyEmbedding

RIDGE = 1e-2  # a share of the mean of the diagonal of the normal equations
WORDS_A_PASS = 1 << 14


class WordComposer(nn.Module):
    """A word's vector from those of its characters.

    Args:
        num_characters: rows of the character vocabulary.
        dimension: of the vectors of characters and words.

    Attributes:
        characters: (num_characters, dimension) float16 buffer: vectors as they were before training.
        weight: (3 dimension + 1, dimension) float32 buffer.
    """

    characters: Tensor
    weight: Tensor

    def __init__(self, num_characters: int, dimension: int) -> None:
        super().__init__()
        self.register_buffer("characters", torch.zeros(num_characters, dimension, dtype=torch.float16))
        self.register_buffer("weight", torch.zeros(3 * dimension + 1, dimension))

    def _inputs(self, words: Sequence[str], vocabulary: Vocabulary) -> Tensor:
        """(words, 3 dimension + 1) float32: first, mean, last, 1."""
        lengths = torch.tensor([len(word) for word in words])
        rows = torch.from_numpy(vocabulary.encode(characters("".join(words))))
        vectors = self.characters.cpu()[rows].float()
        ends = lengths.cumsum(0)
        starts = ends - lengths
        means = nn.functional.embedding_bag(torch.arange(len(rows)), vectors, starts, mode="mean")
        return torch.cat([vectors[starts], means, vectors[ends - 1], torch.ones(len(words), 1)], dim=1)

    @torch.no_grad()
    def fit(self, vocabulary: Vocabulary, start: Tensor, words: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Set both buffers.

        Args:
            vocabulary: of the characters.
            start: (num_characters, dimension) what their vectors are before training.
            words: that have a vector; none = a word is the mean of its characters.
            vectors: (words, dimension).
        """
        self.characters.copy_(start)
        width = start.shape[1]
        if not len(words):
            self.weight.zero_()
            self.weight[width : 2 * width] = torch.eye(width)
            return
        normal = torch.zeros(3 * width + 1, 3 * width + 1, dtype=torch.float64)
        right = torch.zeros(3 * width + 1, width, dtype=torch.float64)
        for at in range(0, len(words), WORDS_A_PASS):
            inputs = self._inputs(words[at : at + WORDS_A_PASS], vocabulary).double()
            normal += inputs.T @ inputs
            right += inputs.T @ torch.from_numpy(vectors[at : at + WORDS_A_PASS]).double()
        ridge = RIDGE * normal.diagonal().mean() * torch.eye(len(normal), dtype=torch.float64)
        solution = torch.linalg.solve(normal + ridge, right)
        found = (solution * (normal @ solution)).sum() / (len(words) * width)  # mean square of what is composed
        wanted = np.mean(np.square(vectors, dtype=np.float64))
        scale = float(np.sqrt(wanted / float(found))) if found > 0 else 1.0  # all vectors may be zero
        self.weight.copy_(solution * scale)

    @torch.no_grad()
    def copy(self, previous: WordComposer, rows: NDArray[np.int64]) -> None:
        """Take over both buffers; `rows` are the rows of the other's characters, as `Vocabulary.extended` gave them."""
        self.characters.copy_(previous.characters[torch.from_numpy(rows)])
        self.weight.copy_(previous.weight)

    @torch.no_grad()
    def forward(self, words: Sequence[str], vocabulary: Vocabulary) -> Tensor:
        """Vectors of words, (words, dimension) float32, on the CPU.

        Args:
            words: of one character or more each.
            vocabulary: of the characters, as in `fit`.
        """
        weight = self.weight.cpu()
        parts = [words[at : at + WORDS_A_PASS] for at in range(0, len(words), WORDS_A_PASS)]
        if not parts:
            return weight.new_zeros(0, weight.shape[1])
        return torch.cat([self._inputs(part, vocabulary) @ weight for part in parts])


class WordTable(VocabularyEmbedding):
    """The rows of a lexicon's words: that of a word is its id + NUM_SPECIAL."""

    @torch.no_grad()
    def append(self, vectors: Tensor) -> None:
        """Add frozen rows behind all others, (words, dimension); they are part of the state dict from now on."""
        self.frozen = torch.cat([self.frozen, vectors.to(self.frozen)])


def found_first(lexicon: Lexicon, texts: Sequence[str], first: Sequence[int] = ()) -> tuple[list[int], int]:
    """The order of a lexicon's words in which those to be learnt come first.

    Args:
        lexicon: removed words are left out.
        texts: whose words are learnt.
        first: ids of words that are learnt wherever they occur.

    Returns:
        Ids: `first`, then those found in the texts by falling count, then the rest, each by their id; and how many the first
        two are.
    """
    ids = lexicon.ids().tolist()
    there = set(ids)
    known = [word for word in first if word in there]
    counts: Counter[int] = Counter()
    for found in lexicon.match(texts):
        counts.update(found.words.tolist())
    new = sorted(counts.keys() - set(known), key=lambda word: (-counts[word], word))
    learnt = {*known, *new}
    return [*known, *new, *(word for word in ids if word not in learnt)], len(learnt)


def starting_rows(
    lexicon: Lexicon,
    num_found: int,
    vectors: Vectors | None,
    composer: WordComposer,
    vocabulary: Vocabulary,
    start: Tensor,
) -> StartingRows:
    """Fit the composer, and give all words of a lexicon their vectors.

    Args:
        lexicon: its first `num_found` words are found in train.
        num_found: how many.
        vectors: pretrained ones; None = all words are composed.
        composer: is fitted.
        vocabulary: of the characters.
        start: (rows, dimension) what the characters' vectors are before training.
    """
    words = list(lexicon)
    places: dict[str, int] = {}
    for row, word in enumerate(() if vectors is None else vectors.words):
        places.setdefault(lexicon.form(word), row)  # of several forms of a word the first row, as in the lexicon
    rows = np.array([places.get(lexicon.form(word), -1) for word in words], dtype=np.int64)
    has_vector = rows >= 0
    given = np.zeros((0, start.shape[1]), np.float32) if vectors is None else vectors.matrix[rows[has_vector]]
    composer.fit(vocabulary, start, [word for word, there in zip(words, has_vector, strict=True) if there], given)
    table = np.empty((len(words), start.shape[1]), dtype=np.float32)
    table[has_vector] = given
    table[~has_vector] = composer(
        [word for word, there in zip(words, has_vector, strict=True) if not there], vocabulary
    ).numpy()
    trained = np.full((NUM_SPECIAL + num_found, start.shape[1]), np.nan, dtype=np.float32)
    trained[NUM_SPECIAL:] = table[:num_found]
    name = "composed vectors" if vectors is None else vectors.name
    return StartingRows(trained, half_precision(table[num_found:], words[num_found:], name))
