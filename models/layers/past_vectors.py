"""Vectors of past batches as further negatives of a batch: of a momentum encoder, or of the encoder itself as it was then.

Source: Wu et al. 2022 (ESimCSE), section 3.3: a queue of 2.5 batches, of an encoder that follows with momentum 0.995, read without
dropout. Wang et al. 2020 (Cross-Batch Memory), section 3.2: no second encoder, since features drift slowly once training has
settled: their memory begins after some steps, and may be as large as the training set.
Differs: what is kept of an item is what stands as a candidate: of a pair or a triple the second text, of a single text the text as
it is, without repetition. It is kept after the step, from its first pass (the clean one; with FreeLB, or PGD from a random start,
the input is moved a little already), of all ranks in one order: each has the same. Texts of the present batch are no negatives of
themselves, for memories wrap into the next epoch. See `memory_queue.py`, `momentum.py`.
Cost: (rows, capacity); of the momentum encoder the weights once more, and a pass without gradients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from hanzoo.errors import RecipeError
from hanzoo.models.layers.gathering import SharedBatch
from hanzoo.models.layers.memory_queue import MemoryQueue
from hanzoo.models.layers.momentum import MomentumWeights
from hanzoo.models.layers.similarity import cosine_similarities
from hanzoo.models.model import Comparison, Matcher, Settings


class MomentumQueueSettings(Settings):
    """Fields of `momentum_queue`.

    Attributes:
        capacity: vectors; the paper has 2.5 batches of 64.
        momentum: how much of themselves the second encoder's weights keep in a step.
    """

    capacity: int = Field(default=160, ge=1)
    momentum: float = Field(default=0.995, ge=0.0, le=1.0)


class CrossBatchMemorySettings(Settings):
    """Fields of `cross_batch_memory`.

    Attributes:
        capacity: vectors.
        start_step: optimizer steps before anything is kept: vectors of an encoder that still changes fast are soon wrong.
    """

    capacity: int = Field(ge=1)
    start_step: int = Field(default=0, ge=0)


class PastVectors(nn.Module, ABC):
    """What both share: negatives from a queue, and what of a step goes into it.

    Args:
        capacity: vectors, at least 1.
        width: of a vector.
    """

    section: ClassVar[str]  # of the objective's settings

    def __init__(self, capacity: int, width: int) -> None:
        super().__init__()
        self.queue = MemoryQueue(capacity, width)
        self._seen: Any = None  # of the first pass since the last step
        self._ids = torch.empty(0)

    @classmethod
    def _width_for(cls, matcher: Matcher, capacity: int, num_items: int) -> int:
        """The width of the vectors to keep. Raises RecipeError where the matcher has none, or where there are more than items."""
        if matcher.width is None:
            raise RecipeError(
                f"objective.{cls.section}: must be left out where the model has no one vector a text to keep. "
                "Remove it, or take model.name=bi_encoder."
            )
        if capacity > num_items:
            raise RecipeError(
                f"objective.{cls.section}.capacity: must be at most the {num_items:,} items of train, but is {capacity:,}: "
                "it would hold older vectors of texts beside newer ones. Lower it."
            )
        return matcher.width

    def negatives(self, anchors: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Similarities with what is kept, and which of it are negatives.

        Args:
            anchors: (rows, width) float.
            keys: (rows, texts) int64, of the rows' texts: a vector of one of the first two is no negative.

        Returns:
            (rows, capacity) float, cosines, and (rows, capacity) bool.
        """
        kept = self.queue.negatives_of(keys[:, 0])
        if keys.shape[1] > 1:
            kept = kept & self.queue.negatives_of(keys[:, 1])
        return cosine_similarities(anchors, self.queue.vectors), kept

    def see(self, compared: Comparison, batch: Any, shared: SharedBatch) -> None:
        """Called in each pass over a batch: the first one of a step is kept."""
        if self._seen is None:
            view = min(1, batch.keys.shape[1] - 1)
            self._seen = self._from(compared, batch, view, shared)
            self._ids = batch.keys[shared.own, view]

    @abstractmethod
    def _from(self, compared: Comparison, batch: Any, view: int, shared: SharedBatch) -> Any:
        """What `_to_keep` needs of a pass, and no more."""

    @abstractmethod
    def _to_keep(self, seen: Any, matcher: Matcher) -> Tensor | None:
        """(rows, width): the vectors of this rank's items, after the step; None = nothing yet, on any rank."""

    def after_step(self, matcher: Matcher) -> None:
        """Keep the vectors of a step's batch. Collective."""
        seen, ids = self._seen, self._ids
        self._seen, self._ids = None, torch.empty(0)
        if seen is None:
            return
        vectors = self._to_keep(seen, matcher)
        if vectors is None:
            return
        shared = SharedBatch.of(vectors)
        everyone, ids = shared.gather(vectors), shared.gather(ids)
        if bool(everyone.isfinite().all()):  # one that is not would spoil every step until it is overwritten
            self.queue.push(everyone, ids)

    def training_state(self) -> Mapping[str, Tensor]:
        """What exact resume needs."""
        return {f"queue/{name}": tensor for name, tensor in self.queue.training_state().items()}


class CrossBatchMemory(PastVectors):
    """Vectors as they were when their batches were trained.

    Args:
        capacity: vectors, at least 1.
        width: of a vector.
        start_step: optimizer steps before anything is kept.
    """

    section: ClassVar[str] = "cross_batch_memory"
    num_steps: Tensor

    def __init__(self, capacity: int, width: int, start_step: int = 0) -> None:
        super().__init__(capacity, width)
        self.start_step = start_step
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64), persistent=False)

    @classmethod
    def build(cls, settings: CrossBatchMemorySettings, matcher: Matcher, num_items: int) -> Self:
        """As a recipe says. Raises RecipeError."""
        return cls(settings.capacity, cls._width_for(matcher, settings.capacity, num_items), settings.start_step)

    def _from(self, compared: Comparison, batch: Any, view: int, shared: SharedBatch) -> Tensor:
        return compared.vectors(view)[shared.own].detach()

    def _to_keep(self, seen: Tensor, matcher: Matcher) -> Tensor | None:
        self.num_steps += 1
        return seen if self.num_steps > self.start_step else None

    def training_state(self) -> Mapping[str, Tensor]:
        return {**super().training_state(), "num_steps": self.num_steps}


class MomentumQueue(PastVectors):
    """Vectors of an encoder whose weights follow the trained ones slowly.

    Args:
        capacity: vectors, at least 1.
        width: of a vector.
        matcher: that is followed, from where it is now; not kept.
        momentum: see `MomentumQueueSettings`.
    """

    section: ClassVar[str] = "momentum_queue"

    def __init__(self, capacity: int, width: int, matcher: Matcher, momentum: float = 0.995) -> None:
        super().__init__(capacity, width)
        self.weights = MomentumWeights(matcher, momentum)

    @classmethod
    def build(cls, settings: MomentumQueueSettings, matcher: Matcher, num_items: int) -> Self:
        """As a recipe says. Raises RecipeError."""
        width = cls._width_for(matcher, settings.capacity, num_items)
        return cls(settings.capacity, width, matcher, settings.momentum)

    def _from(self, compared: Comparison, batch: Any, view: int, shared: SharedBatch) -> tuple[Any, slice]:
        return batch.of_view(view), shared.own

    def _to_keep(self, seen: tuple[Any, slice], matcher: Matcher) -> Tensor:
        batch, own = seen
        self.weights.follow(matcher)
        vectors: Tensor = self.weights.run(matcher, batch).vectors(0)[own]
        return vectors

    def training_state(self) -> Mapping[str, Tensor]:
        weights = self.weights.training_state()
        return {**super().training_state(), **{f"weights/{name}": tensor for name, tensor in weights.items()}}
