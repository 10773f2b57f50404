"""One batch that several ranks share: the rows of all of them, with gradients, on each.

An objective whose rows are each other's negatives must see the batch of all ranks, or N ranks train something else than one does.
Each rank has the losses of its own rows alone, against candidates of all ranks; on the way back the gradients of a row, from all
ranks, are added where the row is. Divided by the rows of all ranks, as the trainer does, that is the gradient of the whole batch.
A value that is one a batch (CoSENT) is had on every rank from what all of them gave, and is divided by their number.

Source: as sentence-transformers gathers; SimCSE's own code gathers without gradients, puts its own rows back in, and has 1/ranks
of the gradient.
Differs: ranks may have unlike numbers of rows, also none.
Cost: rows times ranks times width, there and back; nothing for a process alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

_STANDS_IN: ContextVar[bool] = ContextVar("stands_in", default=False)


@contextmanager
def standing_in() -> Iterator[None]:
    """Around the passes of a rank that has nothing to do in a step, and only stands in: its rows are not part of the batch."""
    before = _STANDS_IN.set(True)
    try:
        yield
    finally:
        _STANDS_IN.reset(before)


def is_alone() -> bool:
    """Whether this process has no other ranks beside it."""
    return not dist.is_initialized() or dist.get_world_size() == 1


@dataclass(frozen=True)
class SharedBatch:
    """Whose rows are where in the batch of all ranks: those of the first rank, then those of the second, and so on.

    Attributes:
        counts: rows of each rank.
        rank: this process's.
    """

    counts: tuple[int, ...]
    rank: int

    @classmethod
    def of(cls, rows: Tensor) -> Self:
        """Agree on a batch with the other ranks. Collective.

        Args:
            rows: (rows, ...) of this rank.
        """
        number = 0 if _STANDS_IN.get() else len(rows)
        if is_alone():
            return cls((number,), 0)
        counts = _from_all(torch.tensor([number], device=rows.device))
        return cls(tuple(int(count) for count in counts.flatten().tolist()), dist.get_rank())

    @property
    def is_alone(self) -> bool:
        """Whether there is no other rank."""
        return len(self.counts) == 1

    @property
    def own(self) -> slice:
        """Which of this rank's rows are part of the batch: all of them, or none of one that stands in."""
        return slice(0, self.counts[self.rank])

    def places(self, rows: Tensor) -> Tensor:
        """(rows,) int64: where each of this rank's rows is in the batch of all; 0 for those of one that stands in."""
        numbers = torch.arange(len(rows), device=rows.device)
        return numbers + sum(self.counts[: self.rank]) if self.counts[self.rank] else torch.zeros_like(numbers)

    def counted(self, losses: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The losses of this rank's rows; of one that stands in as many as it has rows, but 0, also in every gradient."""
        return losses if self.counts[self.rank] else {part: 0.0 * values for part, values in losses.items()}

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks; those of floating point take their gradients back to where they are from. Collective.

        Args:
            rows: (rows, ...) of this rank, of any dtype; the same on all ranks but for the number of rows.

        Returns:
            (rows of all ranks, ...).
        """
        rows = rows[self.own]
        if self.is_alone:
            return rows
        if rows.dtype == torch.bool:
            return self.gather(rows.to(torch.uint8)).bool()
        missing = max(self.counts) - len(rows)
        padded = F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, missing)) if missing else rows
        parts: Tensor = _Gather.apply(padded)  # type: ignore[no-untyped-call]
        return torch.cat([part[:count] for part, count in zip(parts, self.counts, strict=True)])

    def gather_tokens(self, rows: Tensor) -> Tensor:
        """The same for rows of tokens, (rows, seq, ...), of which each rank has its own seq: padded by 0 to the greatest."""
        if self.is_alone:
            return self.gather(rows)
        seq = int(_from_all(torch.tensor([rows.shape[1]], device=rows.device)).max())
        return self.gather(F.pad(rows, (0, 0) * (rows.dim() - 2) + (0, seq - rows.shape[1])))


def _from_all(tensor: Tensor) -> Tensor:
    """(ranks, ...): each rank's tensor, which has the same shape and dtype on all."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.stack(parts)


class _Gather(torch.autograd.Function):
    """(ranks, ...) from each rank's tensor."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return _from_all(own)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _SumOfOwn.apply(gradients[0])  # type: ignore[no-untyped-call]


class _SumOfOwn(torch.autograd.Function):
    """What all ranks have in this rank's place, added; the two are each other's way back, also a second time."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor) -> Tensor:
        total = parts.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[dist.get_rank()]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Gather.apply(gradients[0])  # type: ignore[no-untyped-call]
