"""The embedding table of a vocabulary: rows that are learnt, then pretrained rows that stay as they are.

Rows 0 (padding) and 1 (unknown) and the tokens of the training set are a parameter. All other pretrained tokens follow
as a float16 buffer: it goes into the checkpoint at half the size, no optimizer state is kept for it, and tokens that
training never saw keep their pretrained vector at inference.

Cost: on the processor the frozen zone costs nothing for a batch that does not use it; elsewhere one more lookup, since
asking would make the host wait for the device.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from hanzoo.data.vocabulary import PADDING, UNKNOWN, StartingRows


class VocabularyEmbedding(nn.Module):
    """Look up rows of a learnt table followed by a frozen one.

    Its output is what an activation attack perturbs, `weight` is what a table attack perturbs.

    Args:
        num_trained: rows of the learnt table, padding (0) and unknown (1) included; at least 2.
        dimension: numbers a row.
        num_frozen: rows of the frozen table; its first one is row `num_trained`.

    Attributes:
        weight: (num_trained, dimension) parameter; row 0 is zero and gets no gradient. Its gradient is dense.
        frozen: (num_frozen, dimension) float16 buffer, part of the state dict.
    """

    frozen: Tensor

    def __init__(self, num_trained: int, dimension: int, num_frozen: int = 0) -> None:
        super().__init__()
        if num_trained < 2 or dimension < 1 or num_frozen < 0:
            raise ValueError(
                "embedding: sizes must be num_trained >= 2 (padding, unknown), dimension >= 1, num_frozen >= 0, "
                f"but are {num_trained}, {dimension}, {num_frozen}. Take them from a vocabulary."
            )
        self.num_trained = num_trained
        self.dimension = dimension
        self.weight = nn.Parameter(torch.zeros(num_trained, dimension))
        self.register_buffer("frozen", torch.zeros(num_frozen, dimension, dtype=torch.float16))

    @torch.no_grad()
    def initialise(self, start: StartingRows | None, generator: torch.Generator | None = None) -> None:
        """Set all rows; the same state of the generator gives the same rows.

        A row without a vector is drawn from the uniform distribution with the root mean square of the known rows, or
        without any known row from U(-sqrt(3 / dimension), sqrt(3 / dimension)). The unknown row is the mean of the
        known ones. The padding row is zero. A frozen row is exactly the vector of the file, rounded to float16.

        Args:
            start: the pretrained rows that `build_vocabulary` gave with the vocabulary; None: there are none.
            generator: for the rows without a vector, on the processor; None: torch's default one.

        Raises:
            ValueError: the rows are not as many, or not as wide, as those of the tables.

        Source: NCRF++ (Yang and Zhang 2018) draws rows without a vector from ±sqrt(3 / dimension).
        Differs: the range is scaled to the known rows, so that neither kind of row outweighs the other at the start.
        """
        given = None if start is None else torch.from_numpy(start.trained).float()
        frozen = self.frozen if start is None else torch.from_numpy(start.frozen)
        for name, rows, table in (("trained", given, self.weight), ("frozen", frozen, self.frozen)):
            if rows is not None and rows.shape != table.shape:
                raise ValueError(
                    f"embedding: the {name} rows must be of shape {tuple(table.shape)}, but are {tuple(rows.shape)}. "
                    "Take the sizes from the vocabulary that they were built with."
                )
        drawn = torch.rand(self.num_trained, self.dimension, generator=generator) * 2 - 1
        spread = math.sqrt(1 / self.dimension)
        if given is not None:
            known = ~given.isnan().any(dim=1)
            known[: UNKNOWN + 1] = False
            vectors = given[known]
            if bool(vectors.any()):
                spread = vectors.double().square().mean().sqrt().item()
            drawn = torch.where(known.unsqueeze(1), given, drawn * (math.sqrt(3) * spread))
            if len(vectors):
                drawn[UNKNOWN] = vectors.double().mean(dim=0)
        else:
            drawn *= math.sqrt(3) * spread
        drawn[PADDING] = 0
        self.weight.copy_(drawn)
        self.frozen.copy_(frozen)

    @torch.no_grad()
    def copy_rows(self, previous: VocabularyEmbedding, rows: NDArray[np.int64]) -> None:
        """Set all rows to rows of another table, exactly.

        Args:
            previous: of the same dimension.
            rows: (num_trained + num_frozen,) the row of `previous` that each row here is; frozen ones must be frozen there.

        Raises:
            ValueError: the tables do not fit.
        """
        places = torch.from_numpy(rows)
        frozen = places[self.num_trained :] - previous.num_trained
        if (
            len(rows) != self.num_trained + len(self.frozen)
            or previous.dimension != self.dimension
            or (frozen < 0).any()
        ):
            raise ValueError("embedding: rows must come from `Vocabulary.extended` of the other table, but do not fit.")
        self.weight.copy_(torch.cat([previous.weight, previous.frozen.float()])[places[: self.num_trained]])
        self.frozen.copy_(previous.frozen[frozen])

    def forward(self, ids: Tensor) -> Tensor:
        """Look rows up.

        Args:
            ids: (batch, seq) int64 in [0, num_trained + num_frozen); any other shape does as well.

        Returns:
            (batch, seq, dimension) of the type of `weight` (float32, also under autocast); padding (0) gives zeros.
        """
        if not len(self.frozen) or (ids.device.type == "cpu" and not bool((ids >= self.num_trained).any())):
            return F.embedding(ids, self.weight, padding_idx=PADDING)
        is_frozen = ids >= self.num_trained
        trained = F.embedding(ids.masked_fill(is_frozen, PADDING), self.weight, padding_idx=PADDING)
        frozen = F.embedding((ids - self.num_trained).clamp(min=0), self.frozen)
        return torch.where(is_frozen.unsqueeze(-1), frozen.to(trained.dtype), trained)

    def extra_repr(self) -> str:
        return f"{self.num_trained}, {self.dimension}, num_frozen={len(self.frozen)}"
