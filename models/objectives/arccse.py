"""ArcCSE: in-batch contrast with a margin in the angle of the positive, and an order among masked versions of one text.

Source: Zhang et al. 2022 (ArcCSE, ACL), sections 3.2 (ArcCon: margin 10 degrees, temperature 0.05) and 3.3 (triplets of nested
masks: of two versions the one whose masked spans contain the other's must be the less similar; margin 0, weight 0.1).
Differs: no code of the authors is public; the constants are those of a re-implementation. Beyond 180 degrees the cosine would
rise again: there the positive's logit goes on falling evenly (ArcFace's way out, Deng et al. 2019).
Cost: (rows, candidates), and three texts a triplet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from hanzoo.errors import RecipeError
from hanzoo.models.layers.similarity import at_least_float32, candidate_divergence, candidate_log_probabilities

_LEAST_SQUARED_SINE = 2e-6  # the gradient of the sine grows without bound where two vectors are one


class ArcCSE(nn.Module):
    """The units of "arccon" are rows, those of "triplet" triplets.

    Args:
        margin: added to the angle of the positive, in radians, in [0, pi).
        temperature: that cosines are divided by, above 0.
        triplet_weight: factor of the triplets' losses.
        triplet_margin: by which the less masked version must be more similar, in cosine.
    """

    decomposes: ClassVar[bool] = False

    def __init__(
        self,
        margin: float = math.pi / 18,
        temperature: float = 0.05,
        triplet_weight: float = 0.1,
        triplet_margin: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= margin < math.pi:
            raise ValueError(f"arccse: margin must lie in [0, pi) radians, but is {margin}.")
        if not temperature > 0:
            raise ValueError(f"arccse: temperature must be above 0, but is {temperature}.")
        self.margin = margin
        self.temperature = temperature
        self.triplet_weight = triplet_weight
        self.triplet_margin = triplet_margin

    def losses(
        self,
        cosines: Tensor,
        positives: Tensor | None = None,
        false_negatives: Tensor | None = None,
        *,
        less_masked: Tensor | None = None,
        more_masked: Tensor | None = None,
    ) -> Mapping[str, Tensor]:
        """Both losses.

        Args:
            cosines: (rows, candidates) float, of each text with the other view of each.
            positives: (rows,) int64, the column of a row's own other view; None = row i's is column i.
            false_negatives: (rows, candidates) bool, True = is no negative for this row; the own positive stays.
            less_masked: (triplets,) float, cosine of a text with its version in which fewer spans are masked.
            more_masked: (triplets,) float, with the version in which these and more are masked.

        Returns:
            {"arccon": (rows,)} and, with triplets, {"triplet": (triplets,)}, float32 or float64.

        Raises:
            RecipeError: there is nothing but one positive.
            ValueError: a shape is wrong.
        """
        places, removed = _candidates(cosines, positives, false_negatives)
        cosines = at_least_float32(cosines)
        turned = cosines.scatter(1, places, self.with_margin(cosines.gather(1, places)))
        logs = candidate_log_probabilities(turned, self.temperature, removed)
        values = {"arccon": -logs.gather(1, places).squeeze(1)}
        if less_masked is not None or more_masked is not None:
            if less_masked is None or more_masked is None or less_masked.shape != more_masked.shape:
                raise ValueError(
                    "arccse: less_masked and more_masked must be given together, one value a triplet each."
                )
            gap = at_least_float32(more_masked) - at_least_float32(less_masked) + self.triplet_margin
            values["triplet"] = self.triplet_weight * gap.relu()
        return values

    def with_margin(self, cosines: Tensor) -> Tensor:
        """cos(angle + margin) for cosines of any shape, without the angle: arccos has no gradient at 1."""
        sines = (1 - cosines.square()).clamp(min=_LEAST_SQUARED_SINE).sqrt()
        turned = cosines * math.cos(self.margin) - sines * math.sin(self.margin)
        beyond = cosines < -math.cos(self.margin)
        return torch.where(beyond, cosines - self.margin * math.sin(self.margin), turned)

    def divergence(
        self,
        first: Tensor,
        second: Tensor,
        positives: Tensor | None = None,
        false_negatives: Tensor | None = None,
        *,
        first_triplets: tuple[Tensor, Tensor] | None = None,
        second_triplets: tuple[Tensor, Tensor] | None = None,
    ) -> Mapping[str, Tensor]:
        """Half the sum of both Kullback-Leibler divergences of two passes' distributions over a row's candidates.

        The distributions are those without the margin, which is of the loss and not of the model. A triplet's is the mean
        squared difference of its cosines.

        Args:
            first: (rows, candidates) float, cosines of one pass, its texts with its other views.
            second: (rows, candidates) float, of the other pass, the same text in the same column.
            positives: (rows,) int64, as in `losses`.
            false_negatives: (rows, candidates) bool, as in `losses`.
            first_triplets: (less_masked, more_masked) of one pass.
            second_triplets: of the other.

        Returns:
            The parts of `losses`.
        """
        _, removed = _candidates(first, positives, false_negatives)
        one = candidate_log_probabilities(first, self.temperature, removed)
        other = candidate_log_probabilities(second, self.temperature, removed)
        values = {"arccon": candidate_divergence(one, other)}
        if first_triplets is not None and second_triplets is not None:
            one, other = torch.stack(first_triplets), torch.stack(second_triplets)
            values["triplet"] = (at_least_float32(one) - at_least_float32(other)).square().mean(0)
        return values


def _candidates(
    cosines: Tensor, positives: Tensor | None, false_negatives: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The columns of the rows' positives, (rows, 1), and what is removed."""
    rows, candidates = cosines.shape
    if candidates < 2:
        raise RecipeError(
            "arccse: a batch must hold 2 candidates or more, but holds 1: a row alone teaches nothing. "
            "Raise train.batch_size."
        )
    if positives is None:
        if candidates < rows:
            raise ValueError(f"arccse: candidates must be at least {rows}, one a row, but are {candidates}.")
        positives = torch.arange(rows, device=cosines.device)
    places = positives.unsqueeze(1)
    if false_negatives is None:
        return places, None
    if false_negatives.shape != cosines.shape:
        raise ValueError(
            f"arccse: false_negatives must have shape {tuple(cosines.shape)}, but has {tuple(false_negatives.shape)}."
        )
    return places, false_negatives.scatter(1, places, False)
