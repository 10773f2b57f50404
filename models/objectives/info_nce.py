"""InfoNCE: a row's positive must be the likeliest of all candidates, among them the positives of the other rows.

Source: van den Oord et al. 2018 (equation 4); in-batch negatives as in Henderson et al. 2017, section 4.4; SimCSE is this with the
other view as the positive (Gao et al. 2021, equations 1 and 5, temperature 0.05).
Differs: candidates that are known to be right too (the same text, another match of the anchor) are removed row by row; its own
positive never is. Not the NT-Xent of SimCLR by itself: that is had from the similarities of all 2N views with each other, each
row's own column removed and its other view as `positives`. Ranks have each other's candidates, but for those of past batches.
Cost: (rows, candidates), of the candidates of all ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from hanzoo.data.document import Document, texts_of
from hanzoo.data.training_items import ItemKind
from hanzoo.errors import RecipeError
from hanzoo.models.layers.gathering import SharedBatch
from hanzoo.models.layers.past_vectors import (
    CrossBatchMemory,
    CrossBatchMemorySettings,
    MomentumQueue,
    MomentumQueueSettings,
    PastVectors,
)
from hanzoo.models.layers.similarity import (
    candidate_divergence,
    candidate_log_probabilities,
    removed_candidates,
    require_shape,
)
from hanzoo.models.layers.text_matcher import text_number
from hanzoo.models.model import Comparison, Matcher, Objective, Settings


class InfoNCESettings(Settings):
    """Fields of the recipe's `objective` section.

    Attributes:
        temperature: that similarities are divided by.
        both_directions: see `InfoNCE`.
        repetition: ESimCSE: of a single text's second view, up to this share of its pieces stand twice; 0 = none do.
        momentum_queue: ESimCSE: vectors of past batches, read by a second encoder that follows slowly, as further negatives;
            or
        cross_batch_memory: as the encoder itself read them then. None = neither; see `layers/past_vectors.py`.
    """

    temperature: float = Field(default=0.05, gt=0.0)
    both_directions: bool = False
    repetition: float = Field(default=0.0, ge=0.0, le=1.0)
    momentum_queue: MomentumQueueSettings | None = None
    cross_batch_memory: CrossBatchMemorySettings | None = None

    @model_validator(mode="after")
    def _keeps_vectors_once(self) -> Self:
        if self.momentum_queue is not None and self.cross_batch_memory is not None:
            raise PydanticCustomError(
                "section",
                "must have one of momentum_queue and cross_batch_memory at most, but has both. Remove one.",
            )
        return self


class InfoNCE(Objective):
    """A unit is a row; rows are each other's negatives.

    Args:
        temperature: that similarities are divided by, above 0. 0.05 for cosines, 1 for sums of MaxSim.
        both_directions: the mean of this and of the same with documents as rows and anchors as candidates.
        repetition: see `InfoNCESettings`.
        past: vectors of past batches, as further negatives of the anchors; None = there are none.

        matches: (matches,) int64, rising: the `pair_number` of texts that are known to match; None = only equal texts do.
    """

    Settings: ClassVar[type[InfoNCESettings]] = InfoNCESettings
    decomposes: ClassVar[bool] = False
    learns_from: ClassVar[tuple[ItemKind, ...]] = ("matches", "triples", "texts")
    least_items: ClassVar[int] = 2

    def __init__(
        self,
        temperature: float = 0.05,
        both_directions: bool = False,
        repetition: float = 0.0,
        past: PastVectors | None = None,
        matches: Tensor | None = None,
    ) -> None:
        super().__init__()
        # on each device that asks: `teaches` looks at batches before they are moved
        self._matches = {} if matches is None else {matches.device: matches}
        self.repetition = repetition
        self.past = past
        if not temperature > 0:
            raise ValueError(f"info_nce: temperature must be above 0, but is {temperature}.")
        self.temperature = temperature
        self.both_directions = both_directions

    @classmethod
    def build(cls, settings: InfoNCESettings, matcher: Matcher, data: Any) -> Self:
        past: PastVectors | None = None
        if settings.momentum_queue is not None:
            past = MomentumQueue.build(settings.momentum_queue, matcher, len(data.train))
        elif settings.cross_batch_memory is not None:
            past = CrossBatchMemory.build(settings.cross_batch_memory, matcher, len(data.train))
        known = known_matches(data.train)
        return cls(settings.temperature, settings.both_directions, settings.repetition, past, known)

    def teaches(self, batch: Any) -> bool:
        """Whether any row has a negative."""
        return self.past is not None or not bool(self.known(batch.keys, batch.keys).all())

    def views(self, texts: Sequence[NDArray[np.int64]], draw: np.random.Generator | None) -> list[NDArray[np.int64]]:
        """A single text stands twice: its two views differ by dropout, and by what is repeated in the second."""
        if len(texts) > 1:
            return list(texts)
        (text,) = texts
        return [text, text if draw is None else with_repetition(text, self.repetition, draw)]

    def num_units(self, num_items: int) -> Mapping[str, int]:
        return {"info_nce": num_items}

    def of(self, compared: Comparison, batch: Any) -> Mapping[str, Tensor]:
        shared = SharedBatch.of(batch.keys)
        keys, everyone = batch.keys, shared.gather(batch.keys)
        further: dict[str, Tensor] = {}
        if self.past is not None:
            further["extra"], negatives = self.past.negatives(compared.vectors(0), keys)
            further["extra_mask"] = negatives & ~self.match(keys[:, 0], self.past.queue.ids)
            if self.training:
                self.past.see(compared, batch, shared)
        if self.both_directions and not shared.is_alone:
            # all anchors with the own documents, and not the other way round: MaxSim is no symmetric similarity
            further["reverse"] = compared.gathered(shared, [0]).matrix(0, [1]).T
            further["reverse_false_negatives"] = self.known(everyone, keys)[:, : len(keys)].T
        scores = self._similarities(compared, batch, shared)
        return shared.counted(self.losses(scores, shared.places(keys), self.known(keys, everyone), **further))

    def agreement(self, first: Comparison, second: Comparison, batch: Any) -> Mapping[str, Tensor]:
        shared = SharedBatch.of(batch.keys)
        keys, everyone = batch.keys, shared.gather(batch.keys)
        one, other = (self._similarities(compared, batch, shared) for compared in (first, second))
        return self.divergence(one, other, shared.places(keys), self.known(keys, everyone))

    def known(self, keys: Tensor, among: Tensor) -> Tensor:
        """Which candidates are no negatives of a row: its own texts once more, and what is known to match its anchor.

        Args:
            keys, among: see `equal_texts`.

        Returns:
            (items, candidates) bool.
        """
        return equal_texts(keys, among) | self.match(keys[:, 0], among[:, min(1, keys.shape[1] - 1) :].T.flatten())

    def match(self, anchors: Tensor, texts: Tensor) -> Tensor:
        """Which texts are known to match an anchor, (anchors, texts) bool, from their numbers, one-dimensional int64 each."""
        numbers = pair_number(anchors.unsqueeze(1), texts)
        if not self._matches:
            return torch.zeros_like(numbers, dtype=torch.bool)
        if numbers.device not in self._matches:
            self._matches[numbers.device] = next(iter(self._matches.values())).to(numbers.device)
        matches = self._matches[numbers.device]
        places = torch.searchsorted(matches, numbers).clamp(max=len(matches) - 1)
        return matches[places] == numbers

    @staticmethod
    def _similarities(compared: Comparison, batch: Any, shared: SharedBatch) -> Tensor:
        """Of this rank's anchors with the documents of all ranks."""
        documents = range(1, max(2, batch.keys.shape[1]))
        return compared.gathered(shared, documents).matrix(0, documents)

    def after_step(self, matcher: Matcher) -> None:
        if self.past is not None:
            self.past.after_step(matcher)

    def training_state(self) -> Mapping[str, Tensor]:
        return {} if self.past is None else self.past.training_state()

    def losses(
        self,
        similarities: Tensor,
        positives: Tensor | None = None,
        false_negatives: Tensor | None = None,
        *,
        extra: Tensor | None = None,
        extra_mask: Tensor | None = None,
        reverse: Tensor | None = None,
        reverse_false_negatives: Tensor | None = None,
    ) -> Mapping[str, Tensor]:
        """The negative log-likelihood of each row's positive.

        Args:
            similarities: (rows, candidates) float; [i, j] of anchor i with document j: the positives of all rows, then hard
                negatives of any rows.
            positives: (rows,) int64, the column of each row's positive, no two the same; None = row i's is column i.
            false_negatives: (rows, candidates) bool, True = is no negative for this row. The own positive may be marked: it
                stays.
            extra: (rows, extra) float, similarities with negatives of a queue; only anchors see them.
            extra_mask: bool, True = is a negative, (rows, extra), or (extra,) for all rows (a queue that is not full).
            reverse: (rows, anchors) float, for both directions: each row's positive with the anchors of all ranks, its own in
                column `positives`. None = all anchors are here: taken from `similarities`.
            reverse_false_negatives: (rows, anchors) bool, with `reverse`, as `false_negatives`.

        Returns:
            {"info_nce": (rows,) float32, or float64}. A row whose negatives are all removed is 0.

        Raises:
            RecipeError: there is nothing but one positive.
            ValueError: a shape is wrong.
        """
        candidates, places, removed = self._candidates(similarities, positives, false_negatives, extra, extra_mask)
        values = self._nll(candidates, places, removed)
        if self.both_directions:
            if reverse is None:
                # among the documents only the positives of this batch are asked for their anchors
                reverse = similarities.index_select(1, places).T
                if false_negatives is not None:
                    reverse_false_negatives = false_negatives.index_select(1, places).T
                positives = None
            values = 0.5 * (values + self._nll(*self._candidates(reverse, positives, reverse_false_negatives)))
        elif reverse is not None:
            raise ValueError("info_nce: reverse must be left out for one direction. Set both_directions.")
        return {"info_nce": values}

    def divergence(
        self,
        first: Tensor,
        second: Tensor,
        positives: Tensor | None = None,
        false_negatives: Tensor | None = None,
    ) -> Mapping[str, Tensor]:
        """Half the sum of both Kullback-Leibler divergences between two passes' distributions over a row's candidates.

        Args:
            first: (rows, candidates) float, similarities of one pass, its anchors with its documents.
            second: (rows, candidates) float, of the other pass, the same text in the same column.
            positives: (rows,) int64, as in `losses`.
            false_negatives: (rows, candidates) bool, as in `losses`.

        Returns:
            {"info_nce": (rows,) float32, or float64}.
        """
        _, _, removed = self._candidates(first, positives, false_negatives)
        one = candidate_log_probabilities(first, self.temperature, removed)
        return {"info_nce": candidate_divergence(one, candidate_log_probabilities(second, self.temperature, removed))}

    def _nll(self, candidates: Tensor, places: Tensor, removed: Tensor | None) -> Tensor:
        logs = candidate_log_probabilities(candidates, self.temperature, removed)
        return -logs.gather(1, places.unsqueeze(1)).squeeze(1)

    def _candidates(
        self,
        similarities: Tensor,
        positives: Tensor | None,
        false_negatives: Tensor | None,
        extra: Tensor | None = None,
        extra_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """All candidates of the rows, (rows, all), the positives' columns, and what is removed."""
        rows, candidates = similarities.shape
        positives, removed = removed_candidates(similarities, positives, false_negatives, "info_nce")
        if extra is not None:
            require_shape(extra, (rows, extra.shape[-1]), "info_nce: extra")
            similarities = torch.cat([similarities, extra.to(similarities.dtype)], dim=1)
            if removed is not None or extra_mask is not None:
                if removed is None:
                    removed = torch.zeros(rows, candidates, dtype=torch.bool, device=similarities.device)
                if extra_mask is None:
                    extra_mask = torch.ones_like(extra, dtype=torch.bool)
                removed = torch.cat([removed, ~extra_mask.expand(rows, extra.shape[1])], dim=1)
        if similarities.shape[1] < 2:
            raise RecipeError(
                "info_nce: a batch must hold 2 candidates or more, but holds 1: a row alone teaches nothing. "
                "Raise train.batch_size, or give hard negatives."
            )
        return similarities, positives, removed


def equal_texts(keys: Tensor, among: Tensor) -> Tensor:
    """Which candidates are no negatives, since they are a row's own anchor or positive once more, (items, candidates) bool.

    Args:
        keys: (items, texts) int64, equal for equal texts: anchor, positive, hard negatives; or single texts.
        among: (all items, texts) int64, whose positives, then hard negatives, are the candidates.
    """
    document = min(1, keys.shape[1] - 1)
    anchors, positives = keys[:, 0], keys[:, document]
    candidates = among[:, document:].T.flatten()
    return (candidates == anchors.unsqueeze(1)) | (candidates == positives.unsqueeze(1))


def pair_number(anchors: Tensor, others: Tensor) -> Tensor:
    """A number for two texts in order, from the numbers of the texts, int64 each: the same for no other two anybody will meet."""
    return anchors * 0x5851F42D4C957F2D + others  # the multiplier of Knuth's MMIX; the sum wraps around


def known_matches(items: Iterable[Any]) -> Tensor | None:
    """The pair numbers of anchors that match several texts with each of these, rising; None where no anchor does.

    A text matches what it stands with, on whichever side. An anchor that matches one text alone needs no number: that text is
    known by being equal to the row's own.

    Args:
        items: pairs and triples that are trained on, whose first two texts match; others are passed over.
    """
    matching: dict[str, set[str]] = {}
    anchors_met: set[str] = set()
    for item in items:
        texts = () if isinstance(item, Document) else texts_of(item)
        if len(texts) > 1:
            anchors_met.add(texts[0])
            matching.setdefault(texts[0], set()).add(texts[1])
            matching.setdefault(texts[1], set()).add(texts[0])
    pairs = [(text, other) for text in anchors_met if len(matching[text]) > 1 for other in matching[text]]
    if not pairs:
        return None
    anchors, others = (torch.tensor([text_number(pair[side]) for pair in pairs]) for side in (0, 1))
    found: Tensor = pair_number(anchors, others).sort().values
    return found


def with_repetition(text: NDArray[np.int64], share: float, draw: np.random.Generator) -> NDArray[np.int64]:
    """A text in which some pieces stand twice, as many as are drawn from 0 to max(2, share x pieces) (ESimCSE, section 3.1).

    Args:
        text: (pieces,) int64.
        share: of the pieces, at most; 0 = the text as it is.
        draw: all randomness comes from it.
    """
    if not share:
        return text
    most = min(len(text), max(2, int(share * len(text))))
    twice = draw.choice(len(text), size=int(draw.integers(0, most + 1)), replace=False)
    times = np.ones(len(text), dtype=np.int64)
    times[twice] = 2
    return np.repeat(text, times)
