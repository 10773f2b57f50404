"""MarginMSE: the difference of a positive's and a negative's score must be that of a teacher, a cross-encoder.

Source: Hofstätter et al. 2020 (Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation),
equation 6.
Differs: nothing. The size of the scores is part of what is learnt: cosines cannot reach margins above 2, so the teacher's can be
divided by a number.
Cost: none beside the scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from hanzoo.models.layers.similarity import at_least_float32


class MarginMSE(nn.Module):
    """A unit is a triplet.

    Args:
        teacher_temperature: that the teacher's scores are divided by, above 0.
    """

    decomposes: ClassVar[bool] = True

    def __init__(self, teacher_temperature: float = 1.0) -> None:
        super().__init__()
        if not teacher_temperature > 0:
            raise ValueError(f"margin_mse: teacher_temperature must be above 0, but is {teacher_temperature}.")
        self.teacher_temperature = teacher_temperature

    def losses(
        self, positives: Tensor, negatives: Tensor, teacher_positives: Tensor, teacher_negatives: Tensor
    ) -> Mapping[str, Tensor]:
        """The squared difference of the student's and the teacher's margin.

        Args:
            positives: (triplets,) float, the student's scores of positives.
            negatives: (triplets,) float, of negatives.
            teacher_positives: (triplets,) float, the teacher's; no gradient flows to them.
            teacher_negatives: (triplets,) float, likewise.

        Returns:
            {"margin_mse": (triplets,) float32, or float64}.

        Raises:
            ValueError: the shapes differ.
        """
        for name, given in (
            ("negatives", negatives), ("teacher_positives", teacher_positives), ("teacher_negatives", teacher_negatives),
        ):  # fmt: skip
            if given.shape != positives.shape:
                raise ValueError(
                    f"margin_mse: {name} must have shape {tuple(positives.shape)}, but have {tuple(given.shape)}."
                )
        taught = (at_least_float32(teacher_positives) - at_least_float32(teacher_negatives)).detach()
        return {"margin_mse": (_margin(positives, negatives) - taught / self.teacher_temperature).square()}

    def divergence(self, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Mapping[str, Tensor]:
        """The squared difference of two passes' margins, as R-Drop does for a regression.

        Args:
            first: (positives, negatives) of one pass, (triplets,) float each.
            second: of the other.

        Returns:
            {"margin_mse": (triplets,) float32, or float64}.
        """
        return {"margin_mse": (_margin(*first) - _margin(*second)).square()}


def _margin(positives: Tensor, negatives: Tensor) -> Tensor:
    return at_least_float32(positives) - at_least_float32(negatives)
