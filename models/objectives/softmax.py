"""Sentence-BERT's classifier over (u, v, |u - v|): labels of pairs, learnt through a layer that inference leaves out.

Source: Reimers and Gurevych 2019 (Sentence-BERT), section 3, classification objective function.
Differs: nothing. What is trained is not what inference uses, the cosine of u and v: CoSENT mends that.
Cost: one linear layer, whose weights are the objective's own and must be trained with the model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hanzoo.data.training_items import ItemKind
from hanzoo.errors import RecipeError
from hanzoo.models.layers.similarity import at_least_float32, candidate_divergence, candidate_log_probabilities
from hanzoo.models.model import Comparison, Matcher, Objective, Settings


class SoftmaxSettings(Settings):
    """Fields of the recipe's `objective` section: none."""


class Softmax(Objective):
    """A unit is a pair.

    Args:
        width: of a text's vector.
        num_classes: number of labels, at least 2.
    """

    labels: Tensor
    Settings: ClassVar[type[SoftmaxSettings]] = SoftmaxSettings
    decomposes: ClassVar[bool] = True
    learns_from: ClassVar[tuple[ItemKind, ...]] = ("pairs",)

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"softmax: num_classes must be at least 2, but is {num_classes}.")
        # the labels that the classes stand for, in rising order; not persistent: no part of what is saved
        self.register_buffer("labels", torch.arange(num_classes, dtype=torch.float32), persistent=False)
        self.classifier = nn.Linear(3 * width, num_classes)

    @classmethod
    def build(cls, settings: SoftmaxSettings, matcher: Matcher, data: Any) -> Self:
        if matcher.width is None:
            raise RecipeError(
                "objective.name: must not be softmax for a model without one vector a text. Take binary or cosent, or "
                "model.name=bi_encoder."
            )
        objective = cls(matcher.width, len({item.label for item in data.train}))
        objective.labels = torch.tensor(sorted({item.label for item in data.train}), dtype=torch.float32)
        return objective

    def views(self, texts: Sequence[NDArray[np.int64]], draw: np.random.Generator | None) -> list[NDArray[np.int64]]:
        return list(texts)

    def num_units(self, num_items: int) -> Mapping[str, int]:
        return {"softmax": num_items}

    def of(self, compared: Comparison, batch: Any) -> Mapping[str, Tensor]:
        return self.losses(
            self(compared.vectors(0), compared.vectors(1)), torch.searchsorted(self.labels, batch.labels)
        )

    def agreement(self, first: Comparison, second: Comparison, batch: Any) -> Mapping[str, Tensor]:
        return self.divergence(*(self(passed.vectors(0), passed.vectors(1)) for passed in (first, second)))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Logits of the labels, (pairs, num_classes), from two times (pairs, width) float: vectors as pooled, of any length."""
        logits: Tensor = self.classifier(torch.cat([first, second, (first - second).abs()], dim=-1))
        return logits

    def losses(self, logits: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """The negative log-likelihood of each pair's label.

        Args:
            logits: (pairs, num_classes) float, of `forward`.
            labels: (pairs,) int64.

        Returns:
            {"softmax": (pairs,) float32, or float64}.
        """
        return {"softmax": cross_entropy(at_least_float32(logits), labels, reduction="none")}

    def divergence(self, first: Tensor, second: Tensor) -> Mapping[str, Tensor]:
        """Half the sum of both Kullback-Leibler divergences of two passes' labels, {"softmax": (pairs,)}, from their logits."""
        one, other = candidate_log_probabilities(first, 1.0), candidate_log_probabilities(second, 1.0)
        return {"softmax": candidate_divergence(one, other)}
