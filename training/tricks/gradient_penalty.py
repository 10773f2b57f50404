"""Gradient penalty: keep the loss flat around each embedded input.

Source: Drucker and Le Cun 1992 (double backpropagation); to first order what FGM does, with the square of the norm
in place of the norm.
Differs: the gradient is taken with respect to the embeddings (through the model's attack points), a sample at a time, so the
penalty is the same whatever the batch, the accumulation and the ranks. It is of the hard loss: focal, Poly, flooding, class
weights and the second pass of R-Drop do not touch it. (Public snippets that square `parameter.grad` and call backward again
double the plain gradient and penalise nothing: that square is a constant.)
Cost: one forward pass and a backward pass through the backward pass. Weibo's recipe trains at 0.118 of its plain speed
(one thread, benchmarks/results/tricks.json): the LSTM's fused kernels and the CRF's have no second derivative, so the gradient is
recorded step by step. Memory for that record. On CUDA the LSTM runs without cuDNN for the same reason.
Place: outermost. Not with an attack, and not in float16, where second derivatives underflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch.nn.attention import SDPBackend, sdpa_kernel

from hanzoo.models.model import Model, Settings
from hanzoo.training.attack import Perturbation
from hanzoo.training.trick import Backward, Loss, LossFunction, Trick, Window

_SAME = "both work against the gradient at the same input"


class GradientPenaltySettings(Settings):
    """Fields of `train.tricks.gradient_penalty`.

    Attributes:
        strength: lambda, factor of half the squared norm of a sample's gradient; 0 is training without it.
    """

    strength: float = Field(default=0.1, ge=0.0)


class GradientPenalty(Trick):
    """Adds strength / 2 * |d loss / d embeddings|^2 to each value."""

    Settings: ClassVar[type[GradientPenaltySettings]] = GradientPenaltySettings
    rank: ClassVar[int] = 12
    excludes: ClassVar[Mapping[str, str]] = {
        "fgm": _SAME,
        "pgd": _SAME,
        "free_lb": _SAME,
        "train.precision=float16": "second derivatives underflow in float16 (bfloat16 has the range)",
    }

    def wrap_loss(self, loss: LossFunction, model: Model) -> LossFunction:
        def penalised(batch: Any) -> Loss:
            # zeros that are added to the embeddings: there is a gradient also where the table is frozen
            inputs = Perturbation(model.attack_points(batch))
            with inputs:
                found = loss(batch)
            values = dict(found.weighted())
            for part, hard in found.gold().items():
                squares = inputs.squared_gradients(hard)
                if squares.shape != hard.shape:
                    raise RuntimeError(
                        f"gradient penalty: {part} must have one unit a sample, but has {len(hard)} of {len(squares)} samples"
                    )
                values[part] = values[part] + 0.5 * self.settings.strength * squares
            return Loss(values, found.output, hard=found.gold())

        return penalised

    def wrap_backward(self, backward: Backward, model: Model) -> Backward:
        def without_fused_kernels(window: Window) -> None:
            # neither cuDNN's LSTM nor the fused kernels of attention have second derivatives; in the backward pass, too, where
            # parts of the forward pass are computed once more (`model.rows_at_once`) and must come out as they were
            with torch.backends.cudnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
                backward(window)

        return without_fused_kernels
