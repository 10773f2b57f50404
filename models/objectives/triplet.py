"""Triplet loss: an anchor must be more similar to its positive than to its negative, by a margin.

Source: Schroff et al. 2015 (FaceNet), equation 2; Reimers and Gurevych 2019 (Sentence-BERT), section 3.
Differs: on similarities, so that the distance is 1 - cosine, and the margin is of cosines (their Euclidean margin of 1 or 5 is out
of reach of vectors of unit length).
Cost: none beside the similarities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NoReturn

from torch import Tensor, nn

from hanzoo.errors import RecipeError
from hanzoo.models.layers.similarity import at_least_float32


class Triplet(nn.Module):
    """A unit is a triplet.

    Args:
        margin: above 0, in similarity.
    """

    decomposes: ClassVar[bool] = True

    def __init__(self, margin: float = 0.25) -> None:
        super().__init__()
        if not margin > 0:
            raise ValueError(f"triplet: margin must be above 0, but is {margin}.")
        self.margin = margin

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
