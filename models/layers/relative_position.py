"""Self-attention over a lattice with FLAT's relative positions, exactly, without a tensor of (length, length, width).

A lattice is the characters of a text and the words found in it, each with its first and last character. The relation of two of
them is in the four signed distances of their ends (head-head, head-tail, tail-head, tail-tail), of which FLAT makes a vector R_ij
for each pair. Here that vector is computed once for each different relation, not for each pair:

- W_r is applied to the table of sinusoids, one quarter for each distance, and the four results are added (linearity);
- the four distances follow from (head_i - head_j, length of i, length of j): a batch holds a few thousand such triples;
- the rows are projected once, and a query meets them as it meets keys;
- the upper layer needs queries of characters alone, since words are not tagged: `num_queries`;
- what a backward pass would keep of a long text is computed again, a block of queries at a time.

Sources: Li et al. 2020 (FLAT), equations 4 to 11; relative scores, Dai et al. 2019 (Transformer-XL), equation in section 3.3.
Differs: keys and relations are projected without a bias, which would add the same to all scores of a query: softmax removes it.
Each layer has a W_r of its own; the release shares one between layers, which is the same for its one layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from hanzoo.data.lattice import Lattice
from hanzoo.models.layers.relative_products import relative_scores

SCORES_A_BLOCK = 1 << 23  # numbers: with more, queries are walked in blocks, and a backward pass computes them again
SINUSOID_BASE = 10_000.0


def sinusoids(reach: int, width: int, like: Tensor) -> Tensor:
    """The encodings of the distances reach, reach - 1, ... -reach, (2 reach + 1, width), of the type of `like`.

    Half of the numbers are sines, half cosines, of distance * 10000^(-k / (width / 2 - 1)).

    Source: Vaswani et al. 2017, section 3.5, as in tensor2tensor, whose denominator and order FLAT's release has.
    """
    half = width // 2
    distances = torch.arange(reach, -reach - 1, -1, dtype=torch.float64, device=like.device)
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float64, device=like.device) * (-math.log(SINUSOID_BASE) / max(1, half - 1))
    )
    angles = distances.unsqueeze(1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1).to(like.dtype)


class RelativeAttention(nn.Module):
    """Multi-head self-attention over a lattice with relative positions.

    Args:
        width: of the hidden states.
        num_heads: heads; divides width.
        four_positions: all four distances (the paper); False = head-head and tail-tail (the release's default).
        key_projection: keys are projected (the paper); False = they are the hidden states (the release).
        output_projection: the heads' output is projected (the paper); False = it is not (the release).
        scaled: scores are divided by the square root of a head's width (the paper); False = they are not (the release).
        dropout: of the attention weights.

    Attributes:
        content_bias: u, position_bias: v, (num_heads, width / num_heads) each.
        fusion: W_r and its bias. relative: W_{k,R}.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        four_positions: bool = True,
        key_projection: bool = True,
        output_projection: bool = True,
        scaled: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width % num_heads or width % 2:
            raise ValueError(
                f"attention: width must be even and a multiple of num_heads, but is {width} for {num_heads}."
            )
        self.num_heads = num_heads
        self.head_width = width // num_heads
        self.four_positions = four_positions
        self.dropout = dropout
        self.scale = 1.0 / math.sqrt(self.head_width) if scaled else 1.0
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False) if key_projection else None
        self.value = nn.Linear(width, width)
        self.relative = nn.Linear(width, width, bias=False)
        self.fusion = nn.Linear((4 if four_positions else 2) * width, width)
        self.output = nn.Linear(width, width) if output_projection else None
        self.content_bias = nn.Parameter(torch.empty(num_heads, self.head_width))
        self.position_bias = nn.Parameter(torch.empty(num_heads, self.head_width))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, hidden: Tensor, positions: Lattice, num_queries: int | None = None) -> Tensor:
        """Attend.

        Args:
            hidden: (batch, columns, width) float; columns as in `positions`.
            positions: of the same batch.
            num_queries: only the first columns attend (to all); None = all. The characters are the first `positions.seq`.

        Returns:
            (batch, num_queries, width) float. What stands at padding means nothing.
        """
        asking = hidden if num_queries is None else hidden[:, :num_queries]
        query, value = self.query(asking), self.value(hidden)
        key = hidden if self.key is None else self.key(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            # scores need more digits than bfloat16 has
            wide = torch.promote_types(query.dtype, torch.float32)
            heads = [part.to(wide).view(*part.shape[:2], self.num_heads, -1) for part in (query, key, value)]
            table = self.table(positions, words_ask=asking.shape[1] > positions.seq)
            content = (heads[0] + self.content_bias).mul(self.scale).transpose(1, 2)
            position = (heads[0] + self.position_bias).mul(self.scale).transpose(1, 2)
            keys, values = heads[1].permute(0, 2, 3, 1), heads[2].transpose(1, 2)
            found = self._attend(content, position, keys, values, table, positions)
        found = found.transpose(1, 2).flatten(2)
        return found if self.output is None else self.output(found)

    def table(self, positions: Lattice, words_ask: bool) -> Tensor:
        """W_{k,R} R for every relation, (query lengths, key lengths, shifts, heads, head width).

        Shift s stands for head_j - head_i = s - (seq - 1). Query lengths are those of `positions`, or 0 alone.
        """
        lengths, seq = positions.lengths, positions.seq
        asking = lengths if words_ask else lengths[:1]
        longest, shifts = lengths[-1], 2 * seq - 1
        encodings = sinusoids(seq - 1 + longest, self.fusion.out_features, self.fusion.weight)
        parts = [encodings @ weight.T for weight in torch.split(self.fusion.weight, self.fusion.out_features, dim=1)]

        places = torch.arange(shifts, device=encodings.device) + longest
        of_queries = torch.tensor(asking, device=encodings.device).view(-1, 1, 1)
        of_keys = torch.tensor(lengths, device=encodings.device).view(1, -1, 1)

        def rows(part: Tensor, offsets: Tensor) -> Tensor:
            """Its rows for the distances head_i - head_j + offset."""
            return F.embedding(places - offsets, part)

        total = rows(parts[-1], of_queries - of_keys) + (rows(parts[0], torch.zeros_like(places)) + self.fusion.bias)
        if self.four_positions:
            total += rows(parts[1], -of_keys)
            total += rows(parts[2], of_queries)
        projected: Tensor = self.relative(total.relu_())
        return projected.view(*total.shape[:3], self.num_heads, -1)

    def _attend(
        self,
        content: Tensor,
        position: Tensor,
        keys: Tensor,
        values: Tensor,
        table: Tensor,
        positions: Lattice,
    ) -> Tensor:
        """(batch, heads, queries, head width), in blocks of queries where there are many."""
        batch, heads, queries, _ = content.shape
        a_block = max(1, SCORES_A_BLOCK // (batch * heads * keys.shape[-1]))
        if a_block >= queries:
            return self._attend_from(0, content, position, keys, values, table, positions)
        found = []
        for first in range(0, queries, a_block):
            block = (first, content[:, :, first : first + a_block], position[:, :, first : first + a_block])
            if torch.is_grad_enabled():
                found.append(checkpoint(self._attend_from, *block, keys, values, table, positions, use_reentrant=False))
            else:
                found.append(self._attend_from(*block, keys, values, table, positions))
        return torch.cat(found, dim=2)

    def _attend_from(
        self, first: int, content: Tensor, position: Tensor, keys: Tensor, values: Tensor, table: Tensor,
        positions: Lattice,
    ) -> Tensor:  # fmt: skip
        scores = torch.matmul(content, keys)
        scores += relative_scores(position, table, positions, first)
        scores += scores.new_zeros(positions.mask.shape).masked_fill_(~positions.mask, -torch.inf)[:, None, None]
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        return torch.matmul(weights, values)
