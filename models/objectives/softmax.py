"""Sentence-BERT's classifier over (u, v, |u - v|): labels of pairs, learnt through a layer that inference leaves out.

Source: Reimers and Gurevych 2019 (Sentence-BERT), section 3, classification objective function.
Differs: nothing. What is trained is not what inference uses, the cosine of u and v: CoSENT mends that.
Cost: one linear layer, whose weights are the objective's own and must be trained with the model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hanzoo.models.layers.similarity import at_least_float32, candidate_divergence, candidate_log_probabilities


class Softmax(nn.Module):
    """A unit is a pair.

    Args:
        width: of a text's vector.
        num_classes: number of labels, at least 2.
    """

    decomposes: ClassVar[bool] = True

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"softmax: num_classes must be at least 2, but is {num_classes}.")
        self.classifier = nn.Linear(3 * width, num_classes)

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
