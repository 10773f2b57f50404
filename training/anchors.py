"""What EWC and L2-SP share: each weight is pulled to an anchor, with a strength of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from hanzoo.models.model import Model
from hanzoo.training.trick import Start, Trick


class Pull(Trick, ABC):
    """Adds strength * (weight - anchor) to the gradients of a step: the gradient of half the weighted squared distance.

    It is part of the objective, as in both papers: added once a step, after accumulation and ranks, before clipping, so that the
    optimizer sees one gradient. The loss that is logged does not hold it. Weight decay pulls to zero what this holds in place:
    set `train.optimizer.weight_decay=0`. What has no gradient in a step is not trained in it (a frozen encoder), and not pulled:
    with a gradient, if only 0, the optimizer would decay it.
    """

    needs_start: ClassVar[bool] = True

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.anchors: dict[str, Tensor] = {}
        self.strengths: dict[str, Tensor] = {}

    @abstractmethod
    def pulls(self, model: Model, start: Start, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Anchors and strengths by parameter name, each of the parameter's shape, found once at the beginning of the run."""

    def begin(self, model: Model, start: Start | None, seed: int) -> None:
        assert start is not None
        self.anchors, self.strengths = self.pulls(model, start, seed)

    @torch.no_grad()
    def before_step(self, model: Model, step: int) -> None:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                parameter.grad.add_(self.strengths[name] * (parameter - self.anchors[name]))

    def state(self) -> Mapping[str, Tensor]:
        return {
            **{f"anchors/{name}": tensor for name, tensor in self.anchors.items()},
            **{f"strengths/{name}": tensor for name, tensor in self.strengths.items()},
        }

    def load_state(self, tensors: Mapping[str, Tensor], model: Model) -> None:
        for name, tensor in tensors.items():
            kind, _, parameter = name.partition("/")
            getattr(self, kind)[parameter] = tensor.to(model.device).clone()


def kept(model: Model, start: Start) -> dict[str, Tensor]:
    """For each parameter which entries the start had, bool of the parameter's shape."""
    return {
        name: ~start.fresh[name].to(parameter.device)
        if name in start.fresh
        else torch.ones_like(parameter, dtype=torch.bool)
        for name, parameter in model.named_parameters()
    }
