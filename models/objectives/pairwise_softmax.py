"""Pairwise softmax: a query's relevant document must be the likeliest of its own few candidates.

Source: Khattab and Zaharia 2020 (ColBERT), section 3.4: the cross-entropy of a softmax over the scores of d+ and d-; with more
negatives as in Santhanam et al. 2022 (ColBERTv2).
Differs: nothing. Other queries' documents take no part, so that a batch may be cut; InfoNCE is the objective where they do.
Cost: (queries, candidates).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from hanzoo.data.training_items import ItemKind
from hanzoo.errors import RecipeError
from hanzoo.models.layers.similarity import candidate_divergence, candidate_log_probabilities
from hanzoo.models.model import Comparison, Matcher, Objective, Settings


class PairwiseSoftmaxSettings(Settings):
    """Fields of the recipe's `objective` section.

    Attributes:
        temperature: that scores are divided by.
    """

    temperature: float = Field(default=1.0, gt=0.0)


class PairwiseSoftmax(Objective):
    """A unit is a query with its candidates.

    Args:
        temperature: that scores are divided by, above 0. 1 for sums of MaxSim.
    """

    Settings: ClassVar[type[PairwiseSoftmaxSettings]] = PairwiseSoftmaxSettings
    decomposes: ClassVar[bool] = True
    learns_from: ClassVar[tuple[ItemKind, ...]] = ("triples",)

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"pairwise_softmax: temperature must be above 0, but is {temperature}.")
        self.temperature = temperature

    @classmethod
    def build(cls, settings: PairwiseSoftmaxSettings, matcher: Matcher, data: Any) -> Self:
        return cls(settings.temperature)

    def views(self, texts: Sequence[NDArray[np.int64]], draw: np.random.Generator | None) -> list[NDArray[np.int64]]:
        return list(texts)

    def num_units(self, num_items: int) -> Mapping[str, int]:
        return {"pairwise_softmax": num_items}

    def of(self, compared: Comparison, batch: Any) -> Mapping[str, Tensor]:
        return self.losses(compared.candidates(batch.keys.shape[1]))

    def agreement(self, first: Comparison, second: Comparison, batch: Any) -> Mapping[str, Tensor]:
        num_views = batch.keys.shape[1]
        return self.divergence(first.candidates(num_views), second.candidates(num_views))

    def losses(self, scores: Tensor, mask: Tensor | None = None) -> Mapping[str, Tensor]:
        """The negative log-likelihood of each query's relevant document.

        Args:
            scores: (queries, candidates) float, the relevant document first.
            mask: (queries, candidates) bool, True = a candidate; the first of each query is one. None = all are.

        Returns:
            {"pairwise_softmax": (queries,) float32, or float64}.

        Raises:
            RecipeError: there is no negative.
        """
        if scores.shape[1] < 2:
            raise RecipeError(
                "pairwise_softmax: a query must have 2 candidates or more, but has 1: alone it teaches nothing. "
                "Give it negatives, or take the objective info_nce."
            )
        return {"pairwise_softmax": -self._logs(scores, mask)[:, 0]}

    def divergence(self, first: Tensor, second: Tensor, mask: Tensor | None = None) -> Mapping[str, Tensor]:
        """Half the sum of both Kullback-Leibler divergences of two passes' distributions over a query's candidates.

        Args:
            first: (queries, candidates) float, scores of one pass.
            second: (queries, candidates) float, of the other.
            mask: as in `losses`.

        Returns:
            {"pairwise_softmax": (queries,) float32, or float64}.
        """
        return {"pairwise_softmax": candidate_divergence(self._logs(first, mask), self._logs(second, mask))}

    def _logs(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        removed = None if mask is None else torch.logical_not(mask)
        return candidate_log_probabilities(scores, self.temperature, removed)
