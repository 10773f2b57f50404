"""The relative attention of FLAT as one writes it down in torch: the side that a faster one is measured against.

Vectorised over texts, pairs and heads, and without any trick: four rows of a table of sinusoids for each pair of tokens,
concatenated, (batch, N, N, 4 width), and every pair projected twice. It answers what `tests/references/flat.py` does
(`tests/benchmarks/test_plain_flat.py`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoid_table(reach: int, width: int) -> Tensor:
    """Sinusoids of the distances -reach .. reach, (2 reach + 1, width) float64: sines, then cosines."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000.0) / (half - 1) * torch.arange(half, dtype=torch.float64))
    angles = torch.arange(-reach, reach + 1, dtype=torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class PlainRelativeAttention(nn.Module):
    """Self-attention over characters and words with relative positions (Li et al. 2020, FLAT), no output projection.

    With `key_projection=False`, `scaled=False` this is the released code's; its default is `four_positions=False` ("ff_two").
    Its table of sinusoids has a fixed number of rows and is made once; here one is made for the distances of each batch, a few
    hundred rows, so that no text is too long.

    Args:
        width: Numbers a token; even, at least 4.
        num_heads: Divides the width.
        four_positions: All four distances between heads and tails, or head to head and tail to tail only.
        key_projection: Whether keys are projected; else they are the input itself.
        scaled: Divide the scores by sqrt(width / num_heads).

    Raises:
        ValueError: `width` is odd or below 4, or `num_heads` does not divide it.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        four_positions: bool = True,
        *,
        key_projection: bool = True,
        scaled: bool = True,
    ) -> None:
        super().__init__()
        if width < 4 or width % 2:
            raise ValueError(f"PlainRelativeAttention: width must be even and at least 4, but is {width}. Change it.")
        if num_heads < 1 or width % num_heads:
            raise ValueError(
                f"PlainRelativeAttention: num_heads must divide the width ({width}), but is {num_heads}. Change it."
            )
        self.width = width
        self.num_heads = num_heads
        self.head_dim = width // num_heads
        self.four_positions = four_positions
        self.scaled = scaled
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width) if key_projection else nn.Identity()
        self.value = nn.Linear(width, width)
        self.relative = nn.Linear(width, width, bias=False)  # a constant would cancel in the softmax
        self.fusion = nn.Linear((4 if four_positions else 2) * width, width)
        self.content_bias = nn.Parameter(torch.empty(num_heads, self.head_dim))
        self.position_bias = nn.Parameter(torch.empty(num_heads, self.head_dim))
        nn.init.xavier_uniform_(self.content_bias)
        nn.init.xavier_uniform_(self.position_bias)

    def forward(self, hidden: Tensor, heads: Tensor, tails: Tensor, mask: Tensor) -> Tensor:
        """Attend to all tokens of the own text.

        Args:
            hidden: (batch, N, width).
            heads: (batch, N) int64, position of each token's first character.
            tails: (batch, N) int64, position of its last character.
            mask: (batch, N) bool, True = real; every text has a real token.

        Returns:
            (batch, N, width). Rows of padding hold numbers without meaning.
        """
        batch, tokens, _ = hidden.shape
        split = (batch, tokens, self.num_heads, self.head_dim)
        query = self.query(hidden).view(split)
        key = self.key(hidden).view(split)
        value = self.value(hidden).view(split)
        relative = self.relative(self.relative_encoding(heads, tails, hidden.dtype))
        relative = relative.view(batch, tokens, tokens, self.num_heads, self.head_dim)
        by_content = torch.einsum("bihd,bjhd->bhij", query + self.content_bias, key)
        # Not einsum: it copies `relative`, which takes about twice as long (one thread of a CPU, forward and backward).
        by_position = ((query + self.position_bias)[:, :, None] * relative).sum(dim=-1).permute(0, 3, 1, 2)
        scores = by_content + by_position
        if self.scaled:
            scores = scores / math.sqrt(self.head_dim)
        scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
        return torch.einsum("bhij,bjhd->bihd", scores.softmax(dim=-1), value).reshape(batch, tokens, self.width)

    def relative_encoding(self, heads: Tensor, tails: Tensor, dtype: torch.dtype) -> Tensor:
        """R of every pair, (batch, N, N, width): [b, i, j] for query i and key j."""
        positions = torch.stack([heads, tails])
        reach = int(positions.max() - positions.min())
        table = sinusoid_table(reach, self.width).to(heads.device, dtype)

        def of_pairs(query: Tensor, key: Tensor) -> Tensor:
            return table[query[:, :, None] - key[:, None, :] + reach]

        if self.four_positions:
            pairs = [of_pairs(heads, heads), of_pairs(heads, tails), of_pairs(tails, heads), of_pairs(tails, tails)]
        else:
            pairs = [of_pairs(heads, heads), of_pairs(tails, tails)]
        return torch.relu(self.fusion(torch.cat(pairs, dim=-1)))
