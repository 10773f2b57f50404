"""ArcCSE: in-batch contrast with a margin in the angle of the positive, and an order among masked versions of one text.

Source: Zhang et al. 2022 (ArcCSE, ACL), sections 3.2 (ArcCon: margin 10 degrees, temperature 0.05) and 3.3 (triplets of nested
masks: of two versions the one whose masked spans contain the other's must be the less similar; margin 0, weight 0.1).
Differs: no code of the authors is public; the constants are those of a re-implementation, which reads masked versions without
dropout, where all views are read alike here. The masked spans are one, and a part of it. A text that is too short for a triplet
counts as one of loss 0 in the mean over all texts. Beyond 180 degrees the cosine would rise again: there the positive's logit goes
on falling evenly (ArcFace's way out, Deng et al. 2019).
Cost: (rows, candidates), and three texts a triplet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from hanzoo.data.masking import masked, nested_spans
from hanzoo.data.training_items import ItemKind
from hanzoo.errors import RecipeError
from hanzoo.models.layers.gathering import SharedBatch
from hanzoo.models.layers.similarity import (
    at_least_float32,
    candidate_divergence,
    candidate_log_probabilities,
    removed_candidates,
)
from hanzoo.models.model import Comparison, Matcher, Objective, Settings

_LEAST_SQUARED_SINE = 2e-6  # the gradient of the sine grows without bound where two vectors are one
_MARGIN_BOUND = 130.0  # degrees; from 133.6 on, where cos m + m sin m = 1, the logit would rise at the seam


class ArcCSESettings(Settings):
    """Fields of the recipe's `objective` section.

    Attributes:
        margin: degrees, below 130, added to the angle of the positive.
        temperature: that cosines are divided by.
        triplet_weight: factor of the triplets' losses; 0 = none are made. Where a share of the texts is too short for one it
            weighs that much less.
        triplet_margin: by which the less masked version must be more similar, in cosine.
        less_masked: share of a text's pieces in the shorter span,
        more_masked: and in the longer one.
        least_pieces: of a text of which a triplet is made.
    """

    margin: float = Field(default=10.0, ge=0.0, lt=_MARGIN_BOUND)
    temperature: float = Field(default=0.05, gt=0.0)
    triplet_weight: float = Field(default=0.1, ge=0.0)
    triplet_margin: float = 0.0
    less_masked: float = Field(default=0.2, gt=0.0, lt=1.0)
    more_masked: float = Field(default=0.4, gt=0.0, lt=1.0)
    least_pieces: int = Field(default=10, ge=2)


class ArcCSE(Objective):
    """The units of "arccon" are rows; those of "triplet" too, of which one whose text is too short for a triplet is 0.

    Args:
        margin: added to the angle of the positive, in radians, from 0 to below 130 degrees.
        temperature: that cosines are divided by, above 0.
        triplet_weight: factor of the triplets' losses.
        triplet_margin: by which the less masked version must be more similar, in cosine.
        mask: number of [MASK].
        shares: of a text's pieces that are masked, the fewer first.
        least_pieces: of a text of which a triplet is made.
    """

    Settings: ClassVar[type[ArcCSESettings]] = ArcCSESettings
    decomposes: ClassVar[bool] = False
    refuses: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("focal", "poly"), "a triplet's loss is no probability's, and would be all but turned off"
    )
    learns_from: ClassVar[tuple[ItemKind, ...]] = ("texts",)
    least_items: ClassVar[int] = 2

    def __init__(
        self,
        margin: float = math.pi / 18,
        temperature: float = 0.05,
        triplet_weight: float = 0.1,
        triplet_margin: float = 0.0,
        mask: int = 0,
        shares: tuple[float, float] = (0.2, 0.4),
        least_pieces: int = 10,
    ) -> None:
        super().__init__()
        if not 0 <= margin < math.radians(_MARGIN_BOUND):
            raise ValueError(
                f"arccse: margin must lie in [0, {math.radians(_MARGIN_BOUND):.3f}) radians, but is {margin}."
            )
        if not temperature > 0:
            raise ValueError(f"arccse: temperature must be above 0, but is {temperature}.")
        self.margin = margin
        self.temperature = temperature
        self.triplet_weight = triplet_weight
        self.triplet_margin = triplet_margin
        self.mask = mask
        self.shares = shares
        self.least_pieces = least_pieces

    @classmethod
    def build(cls, settings: ArcCSESettings, matcher: Matcher, data: Any) -> Self:
        if matcher.width is None:
            raise RecipeError(
                "objective.name: must not be arccse for a model without one vector a text, whose angles it is about. Take "
                "info_nce, or model.name=bi_encoder."
            )
        mask = matcher.mask
        if settings.triplet_weight and mask is None:
            raise RecipeError(
                "objective.triplet_weight: must be 0 for an encoder without [MASK], which the triplets need. Set it to 0."
            )
        if not settings.less_masked < settings.more_masked:
            raise RecipeError(
                f"objective.less_masked: must be below more_masked ({settings.more_masked}), but is {settings.less_masked}. "
                "Lower it."
            )
        return cls(
            math.radians(settings.margin), settings.temperature, settings.triplet_weight, settings.triplet_margin,
            mask or 0, (settings.less_masked, settings.more_masked), settings.least_pieces,
        )  # fmt: skip

    def views(self, texts: Sequence[NDArray[np.int64]], draw: np.random.Generator | None) -> list[NDArray[np.int64]]:
        """A text twice, and its two masked versions; one that is too short for a triplet stands for them itself."""
        (text,) = texts
        if not self.triplet_weight:
            return [text, text]
        if draw is None or len(text) < self.least_pieces:
            return [text] * 4
        return [text, text, *(masked(text, span, self.mask) for span in nested_spans(len(text), self.shares, draw))]

    def num_units(self, num_items: int) -> Mapping[str, int]:
        return {"arccon": num_items} | ({"triplet": num_items} if self.triplet_weight else {})

    def of(self, compared: Comparison, batch: Any) -> Mapping[str, Tensor]:
        shared = SharedBatch.of(batch.keys)
        cosines = compared.gathered(shared, [1]).matrix(0, [1])
        less, more = self._triplets(compared, batch) or (None, None)
        rows = shared.places(cosines), _equal_texts(batch, shared)
        return shared.counted(self.losses(cosines, *rows, less_masked=less, more_masked=more))

    def agreement(self, first: Comparison, second: Comparison, batch: Any) -> Mapping[str, Tensor]:
        shared = SharedBatch.of(batch.keys)
        one, other = (compared.gathered(shared, [1]).matrix(0, [1]) for compared in (first, second))
        rows = shared.places(one), _equal_texts(batch, shared)
        triplets = [self._triplets(compared, batch) for compared in (first, second)]
        return self.divergence(one, other, *rows, first_triplets=triplets[0], second_triplets=triplets[1])

    def _triplets(self, compared: Comparison, batch: Any) -> tuple[Tensor, Tensor] | None:
        """Cosines of each text with its less and its more masked version; those of a text that is too short say nothing."""
        if not self.triplet_weight:
            return None
        less, more = compared.paired(0, 2), compared.paired(0, 3)
        long = batch.rows.mask[: len(less)].sum(1) - 2 >= self.least_pieces
        return torch.where(long, less, 1.0), torch.where(long, more, -1.0)

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
        squared difference of its cosines, with their weight.

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
            distance = (at_least_float32(one) - at_least_float32(other)).square().mean(0)
            values["triplet"] = self.triplet_weight * distance
        return values


def _equal_texts(batch: Any, shared: SharedBatch) -> Tensor:
    """Which texts of all ranks are a row's own once more, (items, all items) bool."""
    keys: Tensor = batch.keys[:, 0]
    return shared.gather(keys) == keys.unsqueeze(1)


def _candidates(
    cosines: Tensor, positives: Tensor | None, false_negatives: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The columns of the rows' positives, (rows, 1), and what is removed."""
    if cosines.shape[1] < 2:
        raise RecipeError(
            "arccse: a batch must hold 2 candidates or more, but holds 1: a row alone teaches nothing. "
            "Raise train.batch_size."
        )
    positives, removed = removed_candidates(cosines, positives, false_negatives, "arccse")
    return positives.unsqueeze(1), removed
