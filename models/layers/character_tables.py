"""Tables of characters and bigrams with pretrained vectors: what the taggers that read no encoder's pieces begin with.

Every one- and two-character row of the vector file travels in the checkpoint, so that a character that train does not hold keeps
its vector at inference. Text is not normalised: a character without a row borrows that of its half-width or lower-case form.

Source: characters and bigrams for Chinese as in Zhang and Yang 2018 (the "char + bichar" baseline of the Lattice LSTM paper).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from hanzoo.data.document import Document
from hanzoo.data.movable import Movable
from hanzoo.data.vectors import Vectors, load_vectors
from hanzoo.data.vocabulary import UNKNOWN, StartingRows, Vocabulary, bigrams, build_vocabulary, characters
from hanzoo.models.layers.embedding import VocabularyEmbedding
from hanzoo.models.model import Draw, Settings


class CharacterConfig(Settings):
    """Fields of the recipe's `model` section for characters and bigrams.

    Attributes:
        vectors: word2vec file (text or .gz) whose one- and two-character rows are used; None = random vectors.
        vector_scale: root mean square of an entry that the vectors are scaled to; None = as in the file. The step of an optimizer
            like Adam does not depend on it, so it says how fast the vectors move away from where they start.
        dimension: of characters and bigrams where there is no vector file.
        use_bigrams: embed c_i c_{i+1} beside c_i.
        min_count: occurrences in train that a bigram without a vector needs for a row of its own.
        unknown_rate: share of train characters and bigrams replaced by "unknown", so that its row is trained.
    """

    vectors: str | None = None
    vector_scale: float | None = Field(default=None, gt=0.0)
    dimension: int = Field(default=64, ge=1)
    use_bigrams: bool = True
    min_count: int = Field(default=2, ge=1)
    unknown_rate: float = Field(default=0.01, ge=0.0, lt=1.0)


CHARACTER_SHAPE = ("vectors", "vector_scale", "dimension", "use_bigrams")
"""Fields of the config that going on with a trained model cannot change."""


def scaled_vectors(config: CharacterConfig) -> Vectors | None:
    """The vectors that a config names, scaled as it says. Raises DataError."""
    vectors = load_vectors(config.vectors) if config.vectors else None
    return vectors if vectors is None or config.vector_scale is None else vectors.scaled(config.vector_scale)


@dataclass(frozen=True, slots=True)
class CharacterFeatures:
    """One text as rows of the vocabularies.

    Attributes:
        characters: (length,) int64.
        bigrams: (length,) int64; empty where the model uses none.
        tags: (length,) int64 gold tags (nested entities flattened: the longer one is kept).
    """

    characters: NDArray[np.int64]
    bigrams: NDArray[np.int64]
    tags: NDArray[np.int64]

    @property
    def length(self) -> int:
        return len(self.characters)


@dataclass(frozen=True)
class CharacterBatch(Movable):
    """Padded texts.

    Attributes:
        characters: (batch, seq) int64, 0 = padding.
        bigrams: (batch, seq) int64, 0 = padding; None where the model uses none.
        tags: (batch, seq) int64, 0 at padding.
        mask: (batch, seq) bool, True = real, a prefix of each row.
        item_ids: (batch,) places in the training set; empty at inference.
    """

    characters: Tensor
    bigrams: Tensor | None
    tags: Tensor
    mask: Tensor
    item_ids: tuple[int, ...] = ()

    @property
    def num_units(self) -> Mapping[str, int]:
        return {"crf": self.mask.shape[0]}

    @property
    def unit_lengths(self) -> Mapping[str, Tensor]:
        return {"crf": self.mask.sum(dim=1)}


class CharacterTables(nn.Module):
    """What a model on characters and bigrams inherits beside `Tagger`.

    Attributes:
        character_vocabulary, bigram_vocabulary: the latter is None where bigrams are not used.
        characters, bigrams: their tables.
        dimensions: width of the character and of the bigram embedding.
    """

    character_vocabulary: Vocabulary
    bigram_vocabulary: Vocabulary | None
    characters: VocabularyEmbedding
    bigrams: VocabularyEmbedding | None
    dimensions: tuple[int, int]

    def make_tables(
        self, character_vocabulary: Vocabulary, bigram_vocabulary: Vocabulary | None, dimensions: tuple[int, int]
    ) -> int:
        """Make the tables; called where the module's order wants it. Returns the width of both together."""
        self.character_vocabulary = character_vocabulary
        self.bigram_vocabulary = bigram_vocabulary
        self.dimensions = dimensions
        self.characters = _table(character_vocabulary, dimensions[0])
        self.bigrams = None if bigram_vocabulary is None else _table(bigram_vocabulary, dimensions[1])
        return dimensions[0] + (0 if self.bigrams is None else dimensions[1])

    def initialise_tables(self, starts: Sequence[StartingRows | None]) -> None:
        """Set all rows to what `vocabularies_of` gave."""
        for table, rows in zip((self.characters, self.bigrams), starts, strict=False):
            assert table is not None
            table.initialise(rows)

    def copy_tables(self, previous: CharacterTables, rows: Sequence[NDArray[np.int64]]) -> None:
        """Set all rows to those of a trained model, as `extended_vocabularies` gave them."""
        for table, old, places in zip(
            (self.characters, self.bigrams), (previous.characters, previous.bigrams), rows, strict=False
        ):
            assert table is not None
            assert old is not None
            table.copy_rows(old, places)

    def extended_vocabularies(
        self, config: CharacterConfig, documents: Iterable[Document]
    ) -> tuple[list[Vocabulary], list[NDArray[np.int64]]]:
        """The vocabularies with what other training documents hold besides, and for each row the row it starts from."""
        texts = [document.text for document in documents]
        vocabulary, rows = self.character_vocabulary.extended(_counts(texts, 1))
        found, places = [vocabulary], [rows]
        if self.bigram_vocabulary is not None:
            vocabulary, rows = self.bigram_vocabulary.extended(_counts(texts, 2), min_count=config.min_count)
            found.append(vocabulary)
            places.append(rows)
        return found, places

    def rows_of(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows of a text's characters and bigrams, (length,) int64; the latter empty where the model uses none."""
        pairs = np.empty(0, dtype=np.int64)
        if self.bigram_vocabulary is not None:
            pairs = self.bigram_vocabulary.encode(bigrams(text))
        return self.character_vocabulary.encode(characters(text)), pairs

    def embed(self, character_ids: Tensor, bigram_ids: Tensor | None) -> Tensor:
        """(batch, seq) ids to (batch, seq, width) vectors, bigrams behind characters."""
        embedded: Tensor = self.characters(character_ids)
        if self.bigrams is None:
            return embedded
        return torch.cat([embedded, self.bigrams(bigram_ids)], dim=-1)


def vocabularies_of(
    config: CharacterConfig, documents: Iterable[Document], vectors: Vectors | None
) -> tuple[list[Vocabulary], list[StartingRows | None]]:
    """The vocabulary of characters, and that of bigrams where they are used, and what their rows start from."""
    texts = [document.text for document in documents]
    vocabularies, starts = [], []
    for length in (1, 2)[: 1 + config.use_bigrams]:
        min_count = config.min_count if length == 2 else 1
        vocabulary, rows = build_vocabulary(_counts(texts, length), vectors, length=length, min_count=min_count)
        vocabularies.append(vocabulary)
        starts.append(rows)
    return vocabularies, starts


def _counts(texts: Iterable[str], length: int) -> Counter[str]:
    split = characters if length == 1 else bigrams
    return Counter(token for text in texts for token in split(text))


def _table(vocabulary: Vocabulary, dimension: int) -> VocabularyEmbedding:
    return VocabularyEmbedding(vocabulary.num_trained_rows, dimension, vocabulary.num_frozen_rows)


def pad_rows(rows: Iterable[NDArray[np.int64]], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Rows one below the other, each a prefix of its line of `mask`, 0 at padding."""
    padded = np.zeros(mask.shape, dtype=np.int64)
    padded[mask] = np.concatenate([np.empty(0, np.int64), *rows])
    return padded


def draws_of(draw: Draw | None, item_ids: Sequence[int]) -> list[np.random.Generator]:
    """One generator an item; none outside of training, where nothing is drawn."""
    return [] if draw is None else [draw(item) for item in item_ids]


def hide(
    tables: Sequence[NDArray[np.int64]],
    masks: Sequence[NDArray[np.bool_]],
    rate: float,
    draws: Sequence[np.random.Generator],
) -> None:
    """Put "unknown" in the place of a share of the ids, in place; nothing where there are no draws.

    Args:
        tables: (batch, columns) ids each, drawn for in this order.
        masks: of each table, True = real, a prefix of each row.
        rate: the share.
        draws: one generator an item.
    """
    if not rate:
        return
    for row, generator in enumerate(draws):
        for ids, mask in zip(tables, masks, strict=True):
            length = int(mask[row].sum())
            ids[row, :length][generator.random(length) < rate] = UNKNOWN
