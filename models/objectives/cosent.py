"""CoSENT: pairs with a higher label must have a higher similarity than pairs with a lower one.

Source: Su 2022 (CoSENT), temperature 0.05: log(1 + sum over pairs a, b of the batch with label(a) < label(b) of
exp((s_a - s_b) / temperature)).
Differs: exact in B log B steps instead of B^2, by a running logsumexp over the pairs in the order of their labels; pairs of equal
labels are not compared, whatever the order. A batch of one label teaches nothing: that is counted and said, where the release
learns nothing in silence. Ranks compare the pairs of all of them.
R-Drop adds the mean squared difference of the similarities (Liang et al. 2021 for regression).
Cost: B log B time and memory. The value grows with the log of the compared pairs: losses of unlike batch sizes do not compare.
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
from hanzoo.models.layers.gathering import SharedBatch
from hanzoo.models.layers.similarity import at_least_float32
from hanzoo.models.model import Comparison, Matcher, Objective, Settings


class CoSENTSettings(Settings):
    """Fields of the recipe's `objective` section.

    Attributes:
        temperature: that similarities are divided by.
    """

    temperature: float = Field(default=0.05, gt=0.0)


class CoSENT(Objective):
    """One unit a batch.

    Args:
        temperature: that similarities are divided by, above 0.
    """

    Settings: ClassVar[type[CoSENTSettings]] = CoSENTSettings
    decomposes: ClassVar[bool] = False
    refuses: ClassVar[Mapping[str, str]] = {
        "gradient_penalty": "all pairs of a batch are one unit, and none has a loss of its own"
    }
    learns_from: ClassVar[tuple[ItemKind, ...]] = ("pairs",)
    least_items: ClassVar[int] = 2

    def __init__(self, temperature: float = 0.05) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"cosent: temperature must be above 0, but is {temperature}.")
        self.temperature = temperature

    @classmethod
    def build(cls, settings: CoSENTSettings, matcher: Matcher, data: Any) -> Self:
        return cls(settings.temperature)

    def teaches(self, batch: Any) -> bool:
        """Whether there are two labels."""
        return bool((batch.labels != batch.labels[0]).any())

    def views(self, texts: Sequence[NDArray[np.int64]], draw: np.random.Generator | None) -> list[NDArray[np.int64]]:
        return list(texts)

    def num_units(self, num_items: int) -> Mapping[str, int]:
        return {"cosent": 1}

    def of(self, compared: Comparison, batch: Any) -> Mapping[str, Tensor]:
        shared = SharedBatch.of(batch.labels)
        return self.losses(shared.gather(compared.paired(0, 1)), shared.gather(batch.labels))

    def agreement(self, first: Comparison, second: Comparison, batch: Any) -> Mapping[str, Tensor]:
        shared = SharedBatch.of(batch.labels)
        return self.divergence(*(shared.gather(compared.paired(0, 1)) for compared in (first, second)))

    def losses(self, similarities: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """The loss of a batch, over all of its pairs of pairs.

        Args:
            similarities: (pairs,) float, of the two texts of each pair; those of all ranks, with their gradients.
            labels: (pairs,) of any real dtype or bool: the greater, the more alike.

        Returns:
            {"cosent": (1,) float32, or float64}; 0, without a gradient, where all labels are the same.

        Raises:
            ValueError: a shape is wrong.
        """
        if similarities.dim() != 1 or labels.shape != similarities.shape:
            raise ValueError(
                f"cosent: labels must have the shape of the similarities, (pairs,), but have {tuple(labels.shape)} for "
                f"{tuple(similarities.shape)}."
            )
        _, ranks = torch.unique(labels, return_inverse=True)  # sorted
        order = ranks.argsort(stable=True)
        ranks = ranks[order]
        scores = at_least_float32(similarities).index_select(0, order) / self.temperature
        num_lower = torch.searchsorted(ranks, ranks)  # pairs with a strictly lower label, which stand first
        lower = _running_logsumexp(scores).index_select(0, (num_lower - 1).clamp(min=0))
        above = torch.where(num_lower > 0, lower - scores, float("-inf"))
        return {"cosent": torch.cat([scores.new_zeros(1), above]).logsumexp(0, keepdim=True)}

    def divergence(self, first: Tensor, second: Tensor) -> Mapping[str, Tensor]:
        """The mean squared difference of two passes' similarities, {"cosent": (1,)}, from two times (pairs,)."""
        return {"cosent": (at_least_float32(first) - at_least_float32(second)).square().mean(0, keepdim=True)}


def _running_logsumexp(scores: Tensor) -> Tensor:
    """[i] = log of the sum of exp over scores[: i + 1], by doubling the reach of each place.

    torch.logcumsumexp takes the logarithm of its gradient on the way back, and has no second derivative where that is 0.
    """
    reach = 1
    while reach < len(scores):
        scores = torch.cat([scores[:reach], torch.logaddexp(scores[reach:], scores[:-reach])])
        reach *= 2
    return scores
