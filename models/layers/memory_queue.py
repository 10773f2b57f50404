"""A queue of text vectors of past batches, as further negatives: of ESimCSE's momentum encoder, or of the model itself.

Source: He et al. 2020 (MoCo), section 3.2; Wu et al. 2022 (ESimCSE), section 3.3 (2.5 batches, momentum 0.995); Wang et al. 2020
(Cross-Batch Memory), section 3.2, which has no second encoder.
Differs: one fixed set of tensors, overwritten in place from the oldest on, so that a run goes on from a checkpoint bit for bit; ids
of the texts lie beside the vectors, for a queue wraps into the next epoch and then holds texts of the present batch.
Cost: capacity times dimension; nothing of it is trained, nor saved with a model.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

NO_TEXT = -1  # the id of a place that holds nothing, and of a text that is like no other


class MemoryQueue(nn.Module):
    """The newest `capacity` vectors that were pushed.

    Args:
        capacity: vectors, at least 1.
        dimension: of a vector.

    Attributes:
        vectors: (capacity, dimension) float32; what `mask` says is not filled is 0.
        ids: (capacity,) int64.
        num_pushed: () int64, since the beginning.
    """

    vectors: Tensor
    ids: Tensor
    num_pushed: Tensor

    def __init__(self, capacity: int, dimension: int) -> None:
        super().__init__()
        if capacity < 1:
            raise ValueError(f"memory_queue: capacity must be at least 1, but is {capacity}.")
        # not persistent: a trained model is complete without them
        self.register_buffer("vectors", torch.zeros(capacity, dimension), persistent=False)
        self.register_buffer("ids", torch.full((capacity,), NO_TEXT), persistent=False)
        self.register_buffer("num_pushed", torch.zeros((), dtype=torch.int64), persistent=False)

    @property
    def mask(self) -> Tensor:
        """(capacity,) bool, True = holds a vector."""
        return torch.arange(len(self.ids), device=self.ids.device) < self.num_pushed

    def negatives_of(self, ids: Tensor) -> Tensor:
        """(rows, capacity) bool, True = a vector of another text than the row's, from (rows,) int64 ids of the rows' texts."""
        unlike = (ids.unsqueeze(1) != self.ids) | (ids == NO_TEXT).unsqueeze(1)
        return self.mask & unlike

    @torch.no_grad()
    def push(self, vectors: Tensor, ids: Tensor | None = None) -> None:
        """Put vectors in the place of the oldest ones; after the backward pass, for it still reads what it would overwrite.

        Args:
            vectors: (rows, dimension) float, as similarities take them; those of all ranks, in one order.
            ids: (rows,) int64, of their texts; None = like no other.

        Raises:
            ValueError: a shape is wrong.
        """
        if vectors.dim() != 2 or vectors.shape[1] != self.vectors.shape[1]:
            raise ValueError(
                f"memory_queue: vectors must have shape (rows, {self.vectors.shape[1]}), but have {tuple(vectors.shape)}."
            )
        if ids is None:
            ids = torch.full((len(vectors),), NO_TEXT, device=vectors.device)
        elif ids.shape != vectors.shape[:1]:
            raise ValueError(f"memory_queue: ids must have shape ({len(vectors)},), but have {tuple(ids.shape)}.")
        capacity, rows = len(self.ids), len(vectors)
        skipped = max(0, rows - capacity)  # a place is written once, or the order of writing would matter
        places = (self.num_pushed + torch.arange(skipped, rows, device=self.ids.device)) % capacity
        self.vectors.index_copy_(0, places, vectors[skipped:].to(self.vectors.dtype))
        self.ids.index_copy_(0, places, ids[skipped:])
        self.num_pushed += rows

    def training_state(self) -> Mapping[str, Tensor]:
        """What exact resume needs: the queue's own tensors, which may be copied into."""
        return {"vectors": self.vectors, "ids": self.ids, "num_pushed": self.num_pushed}
