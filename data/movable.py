"""What moves to a device together: a frozen dataclass of tensors, as a batch is."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Movable:
    """Base of a dataclass whose fields are tensors, other such dataclasses, and what stays as it is."""

    def to(self, device: torch.device) -> Self:
        """The same with its tensors on `device`: copies, made while the caller goes on where the memory is pinned."""
        if device.type == "cpu":
            return self
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value.to(device)
            for name, value in values.items()
            if isinstance(value, Tensor | Movable)
        }
        return replace(self, **moved)
