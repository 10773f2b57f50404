"""Distillation of a ranking: a query's candidates must be as likely as a teacher, a cross-encoder, says.

Source: Hinton et al. 2015, section 2, over a query's candidates as in Santhanam et al. 2022 (ColBERTv2), section 3.2:
temperature^2 times KL(teacher || student).
Differs: teacher and student may have scores of unlike size, each with a temperature of its own; the student's is that whose
square keeps the gradients' size. The candidates of a query are its own positive and negatives. The teacher scores them once,
before the training (`training/distillation.py`).
Cost: (queries, candidates).
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
from hanzoo.errors import RecipeError
from hanzoo.models.layers.similarity import candidate_divergence, candidate_log_probabilities
from hanzoo.models.model import Comparison, Matcher, Objective, TeacherSettings


class DistillationSettings(TeacherSettings):
    """Fields of the recipe's `objective` section, beside `teacher`: a run of any matcher, or several, whose mean is taken.

    Attributes:
        temperature: that the student's scores are divided by: 1 for a cross-encoder and sums of MaxSim, 0.05 for cosines.
        teacher_temperature: that the teacher's are divided by.
    """

    section: ClassVar[str] = "objective"

    temperature: float = Field(default=1.0, gt=0.0)
    teacher_temperature: float = Field(default=1.0, gt=0.0)


class Distillation(Objective):
    """A unit is a query with its candidates.

    Args:
        temperature: that the student's scores are divided by, above 0.
        teacher_temperature: that the teacher's are divided by; None = as the student's.
    """

    Settings: ClassVar[type[DistillationSettings]] = DistillationSettings
    decomposes: ClassVar[bool] = True
    refuses: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("focal", "poly"), "a teacher's distribution has no one probability"
    )
    learns_from: ClassVar[tuple[ItemKind, ...]] = ("triples",)

    def __init__(self, temperature: float = 1.0, teacher_temperature: float | None = None) -> None:
        super().__init__()
        teacher_temperature = temperature if teacher_temperature is None else teacher_temperature
        for name, value in (("temperature", temperature), ("teacher_temperature", teacher_temperature)):
            if not value > 0:
                raise ValueError(f"distillation: {name} must be above 0, but is {value}.")
        self.temperature = temperature
        self.teacher_temperature = teacher_temperature

    @classmethod
    def build(cls, settings: DistillationSettings, matcher: Matcher, data: Any) -> Self:
        return cls(settings.temperature, settings.teacher_temperature)

    def views(self, texts: Sequence[NDArray[np.int64]], draw: np.random.Generator | None) -> list[NDArray[np.int64]]:
        return list(texts)

    def num_units(self, num_items: int) -> Mapping[str, int]:
        return {"distillation": num_items}

    def of(self, compared: Comparison, batch: Any) -> Mapping[str, Tensor]:
        scores = compared.candidates(batch.keys.shape[1])
        assert self.targets is not None
        taught = torch.stack(self.targets.of(batch.item_ids, scores.device)).squeeze(2)
        return self.losses(scores, taught)

    def agreement(self, first: Comparison, second: Comparison, batch: Any) -> Mapping[str, Tensor]:
        num_views = batch.keys.shape[1]
        return self.divergence(first.candidates(num_views), second.candidates(num_views))

    def losses(self, scores: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Mapping[str, Tensor]:
        """temperature^2 times the divergence of each query's candidates from the teacher's.

        Args:
            scores: (queries, candidates) float, of the student.
            teacher: (queries, candidates) float, the teacher's scores (logits); no gradient flows to them.
            mask: (queries, candidates) bool, True = a candidate; at least two a query. None = all are.

        Returns:
            {"distillation": (queries,) float32, or float64}.

        Raises:
            RecipeError: there is but one candidate.
            ValueError: the shapes differ.
        """
        if scores.shape != teacher.shape:
            raise ValueError(
                f"distillation: teacher must have shape {tuple(scores.shape)}, but has {tuple(teacher.shape)}."
            )
        if scores.shape[1] < 2:
            raise RecipeError(
                "distillation: a query must have 2 candidates or more, but has 1: alone it teaches nothing. "
                "Give it negatives."
            )
        own = self._logs(scores, self.temperature, mask)
        taught = self._logs(teacher.detach(), self.teacher_temperature, mask)
        real = taught.isfinite() & own.isfinite()
        difference = torch.where(real, taught, 0.0) - torch.where(real, own, 0.0)
        return {"distillation": self.temperature**2 * (taught.exp() * difference).sum(1)}

    def divergence(self, first: Tensor, second: Tensor, mask: Tensor | None = None) -> Mapping[str, Tensor]:
        """Half the sum of both Kullback-Leibler divergences of two passes' distributions over a query's candidates.

        Args:
            first: (queries, candidates) float, the student's scores of one pass.
            second: (queries, candidates) float, of the other.
            mask: as in `losses`.

        Returns:
            {"distillation": (queries,) float32, or float64}.
        """
        one, other = self._logs(first, self.temperature, mask), self._logs(second, self.temperature, mask)
        return {"distillation": candidate_divergence(one, other)}

    @staticmethod
    def _logs(scores: Tensor, temperature: float, mask: Tensor | None) -> Tensor:
        return candidate_log_probabilities(scores, temperature, None if mask is None else torch.logical_not(mask))
