"""Binary cross-entropy: a score is the log-odds that two texts match.

Source: Devlin et al. 2019 (BERT), sentence-pair classification, with one output instead of two.
Differs: a graded label is a probability, its place between the ends of the scale.
Cost: none beside the scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from hanzoo.data.training_items import ItemKind
from hanzoo.models.layers.similarity import at_least_float32
from hanzoo.models.model import Comparison, Matcher, Objective, Settings


class BinarySettings(Settings):
    """Fields of the recipe's `objective` section.

    Attributes:
        scale: that scores are multiplied by: 1 for a cross-encoder's, 20 for cosines.
    """

    scale: float = Field(default=1.0, gt=0.0)


class Binary(Objective):
    """A unit is a pair.

    Args:
        scale: that scores are multiplied by, above 0.
        low: the label of two texts that do not match at all.
        high: of two that match fully, above low.
    """

    Settings: ClassVar[type[BinarySettings]] = BinarySettings
    decomposes: ClassVar[bool] = True
    learns_from: ClassVar[tuple[ItemKind, ...]] = ("pairs",)

    def __init__(self, scale: float = 1.0, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        if not scale > 0 or not high > low:
            raise ValueError(f"binary: scale must be above 0, and high above low, but are {scale}, {high}, {low}.")
        self.scale, self.low, self.high = scale, low, high

    @classmethod
    def build(cls, settings: BinarySettings, matcher: Matcher, data: Any) -> Self:
        return cls(settings.scale, data.scale.low, data.scale.high)

    def views(self, texts: Sequence[NDArray[np.int64]], draw: np.random.Generator | None) -> list[NDArray[np.int64]]:
        return list(texts)

    def num_units(self, num_items: int) -> Mapping[str, int]:
        return {"binary": num_items}

    def of(self, compared: Comparison, batch: Any) -> Mapping[str, Tensor]:
        return self.losses(compared.paired(0, 1), batch.labels)

    def sample_targets(self, compared: Comparison, batch: Any, draw: np.random.Generator) -> Any:
        """The two ends of the scale, as likely as the scores say."""
        likely = (self.scale * at_least_float32(compared.paired(0, 1).detach())).sigmoid().cpu().numpy()
        match = torch.from_numpy(draw.random(len(likely)) < likely).to(batch.labels.device)
        labels = torch.where(match, self.high, self.low).to(batch.labels.dtype)
        return dataclasses.replace(batch, labels=labels)

    def agreement(self, first: Comparison, second: Comparison, batch: Any) -> Mapping[str, Tensor]:
        return self.divergence(first.paired(0, 1), second.paired(0, 1))

    def losses(self, scores: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """The cross-entropy of each pair's label.

        Args:
            scores: (pairs,) float.
            labels: (pairs,) float, from low to high.

        Returns:
            {"binary": (pairs,) float32, or float64}.
        """
        logits = self.scale * at_least_float32(scores)
        targets = ((labels - self.low) / (self.high - self.low)).to(logits.dtype)
        return {"binary": binary_cross_entropy_with_logits(logits, targets, reduction="none")}

    def divergence(self, first: Tensor, second: Tensor) -> Mapping[str, Tensor]:
        """Half the sum of both Kullback-Leibler divergences of two passes, {"binary": (pairs,)}, from their scores, (pairs,)."""
        one, other = (self.scale * at_least_float32(scores) for scores in (first, second))
        yes = (one.sigmoid() - other.sigmoid()) * (logsigmoid(one) - logsigmoid(other))
        no = ((-one).sigmoid() - (-other).sigmoid()) * (logsigmoid(-one) - logsigmoid(-other))
        return {"binary": 0.5 * (yes + no)}
