"""Triplet loss: an anchor must be more similar to its positive than to its negative, by a margin.

Source: Schroff et al. 2015 (FaceNet), equation 2; Reimers and Gurevych 2019 (Sentence-BERT), section 3.
Differs: on similarities, so that the distance is 1 - cosine, and the margin is of cosines (their Euclidean margin of 1 or 5 is out
of reach of vectors of unit length).
Cost: none beside the similarities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from hanzoo.data.training_items import ItemKind
from hanzoo.errors import RecipeError
from hanzoo.models.layers.similarity import at_least_float32
from hanzoo.models.model import Comparison, Matcher, Objective, Settings


class TripletSettings(Settings):
    """Fields of the recipe's `objective` section.

    Attributes:
        margin: in similarity.
    """

    margin: float = Field(default=0.25, gt=0.0)


class Triplet(Objective):
    """A unit is a triplet; of an anchor with several negatives the mean of its triplets.

    Args:
        margin: above 0, in similarity.
    """

    Settings: ClassVar[type[TripletSettings]] = TripletSettings
    decomposes: ClassVar[bool] = True
    learns_from: ClassVar[tuple[ItemKind, ...]] = ("triples",)
    refuses: ClassVar[Mapping[str, str]] = {
        "r_drop": "it gives no distribution that two passes could agree on (pairwise_softmax does)",
        **dict.fromkeys(("focal", "poly"), "its loss is no probability's (that of pairwise_softmax is)"),
    }

    def __init__(self, margin: float = 0.25) -> None:
        super().__init__()
        if not margin > 0:
            raise ValueError(f"triplet: margin must be above 0, but is {margin}.")
        self.margin = margin

    @classmethod
    def build(cls, settings: TripletSettings, matcher: Matcher, data: Any) -> Self:
        return cls(settings.margin)

    def views(self, texts: Sequence[NDArray[np.int64]], draw: np.random.Generator | None) -> list[NDArray[np.int64]]:
        return list(texts)

    def num_units(self, num_items: int) -> Mapping[str, int]:
        return {"triplet": num_items}

    def of(self, compared: Comparison, batch: Any) -> Mapping[str, Tensor]:
        negatives = [compared.paired(0, other) for other in range(2, batch.keys.shape[1])]
        values = [self.losses(compared.paired(0, 1), one)["triplet"] for one in negatives]
        return {"triplet": torch.stack(values).mean(0)}

    def agreement(self, first: Comparison, second: Comparison, batch: Any) -> NoReturn:
        self.divergence(first.paired(0, 1), second.paired(0, 1))

    def losses(self, positives: Tensor, negatives: Tensor) -> Mapping[str, Tensor]:
        """How far each triplet falls short of the margin.

        Args:
            positives: (triplets,) float, similarity of the anchor with its positive.
            negatives: (triplets,) float, with its negative.

        Returns:
            {"triplet": (triplets,) float32, or float64}.

        Raises:
            ValueError: the shapes differ.
        """
        if positives.shape != negatives.shape:
            raise ValueError(
                f"triplet: negatives must have shape {tuple(positives.shape)}, but have {tuple(negatives.shape)}."
            )
        return {"triplet": (at_least_float32(negatives) - at_least_float32(positives) + self.margin).relu()}

    def divergence(self, first: Tensor, second: Tensor) -> NoReturn:
        """Raises RecipeError: this objective is no likelihood of anything."""
        raise RecipeError(
            "train.tricks.r_drop: must be left out with the objective triplet, which gives no distribution that two passes "
            "could agree on. Remove the trick, or take the objective pairwise_softmax."
        )
