"""Distillation of a ranking: a query's candidates must be as likely as a teacher, a cross-encoder, says.

Source: Hinton et al. 2015, section 2, over a query's candidates as in Santhanam et al. 2022 (ColBERTv2), section 3.2:
temperature^2 times KL(teacher || student).
Differs: teacher and student may have scores of unlike size, each with a temperature of its own; the student's is that whose
square keeps the gradients' size.
Cost: (queries, candidates).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from hanzoo.errors import RecipeError
from hanzoo.models.layers.similarity import candidate_divergence, candidate_log_probabilities


class Distillation(nn.Module):
    """A unit is a query with its candidates.

    Args:
        temperature: that the student's scores are divided by, above 0.
        teacher_temperature: that the teacher's are divided by; None = as the student's.
    """

    decomposes: ClassVar[bool] = True

    def __init__(self, temperature: float = 1.0, teacher_temperature: float | None = None) -> None:
        super().__init__()
        teacher_temperature = temperature if teacher_temperature is None else teacher_temperature
        for name, value in (("temperature", temperature), ("teacher_temperature", teacher_temperature)):
            if not value > 0:
                raise ValueError(f"distillation: {name} must be above 0, but is {value}.")
        self.temperature = temperature
        self.teacher_temperature = teacher_temperature

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
