"""A model that is no tagger: a line through points, by least squares. The tests put this folder beside the real models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from hanzoo.models.model import AttackPoint, Draw, Model, Settings


class Point(NamedTuple):
    """An item; without gold `y` is None."""

    x: float
    y: float | None

    @property
    def length(self) -> int:
        return 1


@dataclass(frozen=True)
class PointBatch:
    points: Tensor
    item_ids: Sequence[int]

    @property
    def num_units(self) -> Mapping[str, int]:
        return {"square": len(self.points)}

    @property
    def unit_lengths(self) -> Mapping[str, Tensor]:
        return {"square": torch.ones(len(self.points), dtype=torch.int64)}

    def to(self, device: torch.device) -> Self:
        return self


class Line(Model):
    class Config(Settings):
        offset: float = 0.0

    def __init__(self, config: Line.Config) -> None:
        super().__init__()
        self.config = config
        self.slope = nn.Parameter(torch.zeros(()))

    @classmethod
    def build(cls, config: Any, data: Any) -> Self:
        return cls(config)

    def featurize(self, item: Point) -> Point:
        return item

    def collate(self, features: Sequence[Point], draw: Draw | None = None, item_ids: Sequence[int] = ()) -> PointBatch:
        return PointBatch(torch.tensor([[x, 0.0 if y is None else y] for x, y in features]), item_ids)

    def forward(self, batch: PointBatch) -> Tensor:
        return self.slope * batch.points[:, 0] + self.config.offset  # type: ignore[attr-defined]

    def losses(self, output: Tensor, batch: PointBatch) -> Mapping[str, Tensor]:
        return {"square": (output - batch.points[:, 1]) ** 2}

    def divergence(self, first: Any, second: Any, batch: Any) -> Mapping[str, Tensor]:
        return {"square": (first - second) ** 2}

    def attack_points(self, batch: Any) -> Mapping[str, AttackPoint]:
        return {}

    def description(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_description(cls, config: Any, description: Mapping[str, Any], folder: Path) -> Self:
        return cls(config)
