"""What the matchers on a pretrained encoder share: features and batches of pairs, triples and single texts.

A batch holds the views of its items that the objective compares, as rows of one pass: all first views, then all second ones.
Two views of one text are two rows, so that their dropout masks differ, as SimCSE needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hanzoo.data.document import Document, Pair, Triple, texts_of
from hanzoo.data.movable import Movable
from hanzoo.data.word_pieces import WordPieces
from hanzoo.models.layers.encoder import Encoder
from hanzoo.models.layers.gathering import is_alone
from hanzoo.models.layers.text_encoder import TextEncoderConfig, TextEncoderModel, TextRows
from hanzoo.models.model import Draw, Matcher, cut_notes

NO_LABEL = float("nan")


@dataclass(frozen=True, slots=True)
class MatchingFeatures:
    """One item.

    Attributes:
        texts: the pieces of each of its texts, (pieces,) int64.
        keys: of its texts: equal for equal texts.
        label: of a pair; NaN where there is none.
        length: pieces that the encoder reads of it in training: its rows, each as long as its longest.
    """

    texts: tuple[NDArray[np.int64], ...]
    keys: tuple[int, ...]
    label: float
    length: int


@dataclass(frozen=True)
class MatchingBatch(Movable):
    """Items whose texts are compared.

    Attributes:
        rows: what the encoder reads of all items: a row an item, then another of each, and so on.
        samples: (rows,) int64: which item a row is of.
        keys: (items, texts) int64: equal for equal texts, in the order of the items' own texts.
        labels: (items,) float32; NaN where there is none.
        units: of each part of the loss.
        item_ids: (items,) places in the training set; empty at inference.
    """

    rows: TextRows
    samples: Tensor
    keys: Tensor
    labels: Tensor
    units: Mapping[str, int]
    item_ids: tuple[int, ...] = ()

    @property
    def num_samples(self) -> int:
        return len(self.labels)

    def of_view(self, view: int) -> MatchingBatch:
        """The same with one view of its items alone."""
        rows = slice(view * self.num_samples, (view + 1) * self.num_samples)
        return replace(self, rows=self.rows.part(rows), samples=self.samples[rows])

    @property
    def num_units(self) -> Mapping[str, int]:
        return self.units

    @property
    def unit_lengths(self) -> Mapping[str, Tensor]:
        device = self.labels.device
        return {part: torch.ones(number, dtype=torch.int64, device=device) for part, number in self.units.items()}


def both_sides(pairs: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """The first texts of pairs, and the second. Raises TypeError where one is no pair: a string has characters, not texts."""
    for pair in pairs:
        if isinstance(pair, str) or len(pair) != 2:
            raise TypeError(f"scores: a pair must be two strings, but is {pair!r:.50}. Write [(first, second)].")
        for text in pair:
            if not isinstance(text, str):
                raise TypeError(
                    f"scores: a text must be a string, but is {type(text).__name__}. For many pairs write "
                    "scores([(first, second), ...])."
                )
    return [first for first, _ in pairs], [second for _, second in pairs]


def text_number(text: str) -> int:
    """A number for a text: the same for the same text, in every process, and for no other that anybody will meet."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") >> 1


class TextMatcher(TextEncoderModel, Matcher):
    """A matcher that reads whole texts."""

    def __init__(self, config: TextEncoderConfig, encoder: Encoder, subwords: WordPieces) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.subwords = subwords

    @classmethod
    def continue_from(cls, config: Any, previous: Self, data: Any) -> Self:
        """See `Model.continue_from`. The encoder's folder is not read: all weights are in `previous`."""
        cls.require_shape(config, previous)
        model = cls(config, previous.encoder.copied(config.encoder_dropout), previous.subwords)
        model.load_state_dict(previous.trained_weights())
        model.trained_on = previous.trained_on
        model.notes = ("goes on from a trained model", *model.cut_notes(data.train))
        return model

    @property
    def mask(self) -> int | None:
        return self.subwords.mask

    def cut_counts(self, items: Sequence[Pair | Triple | Document]) -> Mapping[str, tuple[int, int]]:
        return self.count_longer([text for item in items for text in texts_of(item)], self.max_pieces)

    @property
    def query_limit(self) -> int | None:
        """Pieces that are read of a text that is searched for, special ones aside; None = any number."""
        return self.max_pieces

    @property
    def document_limit(self) -> int | None:
        """Pieces that are read of a text that is searched, special ones aside; None = any number."""
        return self.max_pieces

    def read_pieces(self, views: Sequence[NDArray[np.int64]]) -> int:
        """Pieces, special ones and padding included, that the encoder reads of an item.

        Args:
            views: the pieces of the texts that are compared.
        """
        return len(views) * (max(map(len, views)) + 2)

    def featurize(self, item: Pair | Triple | Document) -> MatchingFeatures:
        texts = texts_of(item)
        label = item.label if isinstance(item, Pair) and item.label is not None else NO_LABEL
        pieces = self.read_texts(texts, item.source or "text")
        views = pieces if self.objective is None else self.objective.views(pieces, None)
        return MatchingFeatures(tuple(pieces), tuple(map(text_number, texts)), label, self.read_pieces(views))

    def collate(
        self, features: Sequence[MatchingFeatures], draw: Draw | None = None, item_ids: Sequence[int] = ()
    ) -> MatchingBatch:
        objective = self.objective
        draws = [None] * len(features) if draw is None else [draw(item) for item in item_ids]
        views = [
            list(item.texts) if objective is None else objective.views(item.texts, own)
            for item, own in zip(features, draws, strict=True)
        ]
        rows = self.rows_of_views(list(zip(*views, strict=True)))
        batch = MatchingBatch(
            rows,
            torch.arange(len(features)).repeat(len(rows.mask) // len(features)),
            torch.tensor([item.keys for item in features], dtype=torch.int64),
            torch.tensor([item.label for item in features], dtype=torch.float32),
            {} if objective is None else objective.num_units(len(features)),
            tuple(item_ids),
        )
        if draw is not None and objective is not None and is_alone():  # here, on the CPU: a step waits for no device
            if objective.teaches(batch):
                objective.num_taught += 1
            else:
                objective.num_untaught += 1
        return batch

    def corpus_notes(self, texts: Sequence[str]) -> tuple[str, ...]:
        """What a person should be told of texts that are indexed."""
        return tuple(cut_notes(self.count_longer(texts, self.document_limit)))

    def query_notes(self, texts: Sequence[str]) -> tuple[str, ...]:
        """What a person should be told of texts that are searched for."""
        return tuple(cut_notes(self.count_longer(texts, self.query_limit, "queries")))

    def rows_of_views(self, views: Sequence[Sequence[NDArray[np.int64]]]) -> TextRows:
        """The rows of a batch: all items' first views, then all second ones.

        Args:
            views: for each view the pieces of its texts, one an item.
        """
        return self.rows([text for view in views for text in view])
