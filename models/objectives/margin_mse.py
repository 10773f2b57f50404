"""MarginMSE: the difference of a positive's and a negative's score must be that of a teacher, a cross-encoder.

Source: Hofstätter et al. 2020 (Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation),
equation 6.
Differs: a query may have several negatives: their mean. The size of the scores is part of what is learnt: cosines cannot reach
margins above 2, so the teacher's can be divided by a number. The teacher scores them once, before the training
(`training/distillation.py`).
Cost: none beside the scores.
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
from hanzoo.models.layers.similarity import at_least_float32
from hanzoo.models.model import Comparison, Matcher, Objective, TeacherSettings


class MarginMSESettings(TeacherSettings):
    """Fields of the recipe's `objective` section, beside `teacher`: a run of any matcher, or several, whose mean is taken.

    Attributes:
        teacher_temperature: that the teacher's scores are divided by: 1 for sums of MaxSim; 10 or so for cosines.
    """

    section: ClassVar[str] = "objective"

    teacher_temperature: float = Field(default=1.0, gt=0.0)


class MarginMSE(Objective):
    """A unit is a query with its positive and its negatives.

    Args:
        teacher_temperature: that the teacher's scores are divided by, above 0.
    """

    Settings: ClassVar[type[MarginMSESettings]] = MarginMSESettings
    decomposes: ClassVar[bool] = True
    refuses: ClassVar[Mapping[str, str]] = dict.fromkeys(("focal", "poly"), "its loss is no probability's")
    learns_from: ClassVar[tuple[ItemKind, ...]] = ("triples",)

    def __init__(self, teacher_temperature: float = 1.0) -> None:
        super().__init__()
        if not teacher_temperature > 0:
            raise ValueError(f"margin_mse: teacher_temperature must be above 0, but is {teacher_temperature}.")
        self.teacher_temperature = teacher_temperature

    @classmethod
    def build(cls, settings: MarginMSESettings, matcher: Matcher, data: Any) -> Self:
        return cls(settings.teacher_temperature)

    def views(self, texts: Sequence[NDArray[np.int64]], draw: np.random.Generator | None) -> list[NDArray[np.int64]]:
        return list(texts)

    def num_units(self, num_items: int) -> Mapping[str, int]:
        return {"margin_mse": num_items}

    def of(self, compared: Comparison, batch: Any) -> Mapping[str, Tensor]:
        positives, negatives = _scores(compared, batch)
        assert self.targets is not None
        taught = torch.stack(self.targets.of(batch.item_ids, positives.device)).squeeze(2)
        return self.losses(positives, negatives, taught[:, 0], taught[:, 1:])

    def agreement(self, first: Comparison, second: Comparison, batch: Any) -> Mapping[str, Tensor]:
        return self.divergence(_scores(first, batch), _scores(second, batch))

    def losses(
        self, positives: Tensor, negatives: Tensor, teacher_positives: Tensor, teacher_negatives: Tensor
    ) -> Mapping[str, Tensor]:
        """The squared difference of the student's and the teacher's margin, the mean over a query's negatives.

        Args:
            positives: (queries,) float, the student's scores of positives.
            negatives: (queries, negatives) float, of negatives.
            teacher_positives: (queries,) float, the teacher's; no gradient flows to them.
            teacher_negatives: (queries, negatives) float, likewise.

        Returns:
            {"margin_mse": (queries,) float32, or float64}.

        Raises:
            ValueError: the shapes do not fit.
        """
        for name, given, shape in (
            ("negatives", negatives, (*positives.shape, *negatives.shape[1:])),
            ("teacher_positives", teacher_positives, positives.shape),
            ("teacher_negatives", teacher_negatives, negatives.shape),
        ):
            if given.shape != shape or negatives.dim() != 2:
                raise ValueError(
                    f"margin_mse: {name} must have shape {tuple(shape)}, negatives (queries, negatives), but have "
                    f"{tuple(given.shape)}."
                )
        taught = _margins(teacher_positives, teacher_negatives).detach() / self.teacher_temperature
        return {"margin_mse": (_margins(positives, negatives) - taught).square().mean(1)}

    def divergence(self, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Mapping[str, Tensor]:
        """The squared difference of two passes' margins, as R-Drop does for a regression, the mean over negatives.

        Args:
            first: (positives, negatives) of one pass, (queries,) and (queries, negatives) float.
            second: of the other.

        Returns:
            {"margin_mse": (queries,) float32, or float64}.
        """
        return {"margin_mse": (_margins(*first) - _margins(*second)).square().mean(1)}


def _scores(compared: Comparison, batch: Any) -> tuple[Tensor, Tensor]:
    """The scores of each item's first text with its positive, (items,), and with its negatives, (items, negatives)."""
    others = range(2, batch.keys.shape[1])
    return compared.paired(0, 1), torch.stack([compared.paired(0, other) for other in others], dim=1)


def _margins(positives: Tensor, negatives: Tensor) -> Tensor:
    return at_least_float32(positives).unsqueeze(1) - at_least_float32(negatives)
