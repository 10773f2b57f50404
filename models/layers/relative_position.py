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
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from hanzoo.data.lattice import Lattice
from hanzoo.models.layers.relative_kernels import relative_kernels

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

        def rows(part: Tensor, offset: int) -> Tensor:
            """Its rows for the distances head_i - head_j + offset."""
            return part.narrow(0, longest - offset, shifts)

        both = torch.stack([rows(parts[-1], i - j) for i in asking for j in lengths])
        total = both.view(len(asking), len(lengths), shifts, -1) + rows(parts[0], 0) + self.fusion.bias
        if self.four_positions:
            total = total + torch.stack([rows(parts[1], -j) for j in lengths])
            total = total + torch.stack([rows(parts[2], i) for i in asking]).unsqueeze(1)
        projected: Tensor = self.relative(total.relu())
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
        scores = scores.masked_fill_(~positions.mask[:, None, None], -torch.inf)
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        return torch.matmul(weights, values)


def relative_scores(queries: Tensor, table: Tensor, positions: Lattice, first: int = 0) -> Tensor:
    """The product of each query with the row of the table for each key.

    Args:
        queries: (batch, heads, queries, head width) float: of the columns from `first` on.
        table: (query lengths, key lengths, shifts, heads, head width), as `RelativeAttention.table` gives it.
        positions: of the batch.
        first: column of the first query.

    Returns:
        (batch, heads, queries, columns) float; what stands where query or key is padding means nothing.
    """
    if queries.device.type == "cpu":
        found: Tensor = _Scores.apply(queries, table, positions, first)  # type: ignore[no-untyped-call]
        return found
    return gathered_scores(queries, table, positions, first)


def gathered_scores(queries: Tensor, table: Tensor, positions: Lattice, first: int = 0) -> Tensor:
    """`relative_scores` on any device: from torch's own operations."""
    columns = slice(first, first + queries.shape[2])
    starts, kinds = positions.starts, positions.kinds
    shifts = starts.unsqueeze(1) - starts[:, columns].unsqueeze(2) + positions.seq - 1  # (batch, queries, keys)
    places = kinds.unsqueeze(1) * table.shape[2] + shifts
    if table.shape[0] == 1:  # all queries share their rows: one product, then the numbers are picked
        rows = table[0].flatten(0, 1)
        every = torch.einsum("bhqd,rhd->bhqr", queries, rows)
        return every.gather(3, places.unsqueeze(1).expand(-1, queries.shape[1], -1, -1))
    places = kinds[:, columns].unsqueeze(2) * (table.shape[1] * table.shape[2]) + places
    rows = table.flatten(0, 2).index_select(0, places.flatten()).view(*places.shape, *table.shape[3:])
    return torch.einsum("bhqd,bqkhd->bhqk", queries, rows)


# The compiled form. Scores are bilinear in queries and table; so are the gradients in theirs. Each of the three functions is
# differentiated by the other two, to any order.


def _run(name: str, head_width: int, num_heads: int, *arguments: Any) -> None:
    """Run a kernel for all heads, on as many threads as torch has."""
    kernel = getattr(relative_kernels(head_width), name)
    *inputs, outputs = arguments
    threads = min(num_heads, torch.get_num_threads())
    if threads == 1:
        for head in range(num_heads):
            kernel(*inputs, head, *outputs)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda head: kernel(*inputs, head, *outputs), range(num_heads)))


def _arrays(*tensors: Tensor) -> list[NDArray[Any]]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def _places(positions: Lattice, first: int) -> tuple[Any, ...]:
    return (*_arrays(positions.starts, positions.kinds, positions.counts), positions.seq, first)


def _turned(table: Tensor) -> Tensor:
    """The rows for characters as keys, (query lengths, heads, head width, shifts)."""
    return table.detach()[:, 0].permute(0, 2, 3, 1).contiguous()


class _Scores(torch.autograd.Function):
    """q_i . t(i, j)."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, table: Tensor, positions: Lattice, first: int) -> Tensor:
        ctx.save_for_backward(queries, table)
        ctx.positions, ctx.first = positions, first
        out = queries.new_empty(*queries.shape[:3], positions.starts.shape[1])
        arrays = _arrays(queries, table, _turned(table))
        _run("scores", queries.shape[3], queries.shape[1], *arrays, *_places(positions, first), (out.numpy(),))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        queries, table = ctx.saved_tensors
        of_queries = (
            _QueryGradient.apply(grads[0], table, ctx.positions, ctx.first) if ctx.needs_input_grad[0] else None  # type: ignore[no-untyped-call]
        )
        of_table = (
            _TableGradient.apply(grads[0], queries, table.shape, ctx.positions, ctx.first)  # type: ignore[no-untyped-call]
            if ctx.needs_input_grad[1]
            else None
        )
        return of_queries, of_table, None, None


class _QueryGradient(torch.autograd.Function):
    """Sum over j of g_ij t(i, j)."""

    @staticmethod
    def forward(ctx: Any, grads: Tensor, table: Tensor, positions: Lattice, first: int) -> Tensor:
        ctx.save_for_backward(grads, table)
        ctx.positions, ctx.first = positions, first
        out = grads.new_empty(*grads.shape[:3], table.shape[4])
        arrays = _arrays(grads, table, _turned(table))
        _run("query_gradient", table.shape[4], table.shape[3], *arrays, *_places(positions, first), (out.numpy(),))
        return out

    @staticmethod
    def backward(ctx: Any, *along: Any) -> tuple[Tensor | None, ...]:
        grads, table = ctx.saved_tensors
        of_grads = _Scores.apply(along[0], table, ctx.positions, ctx.first) if ctx.needs_input_grad[0] else None  # type: ignore[no-untyped-call]
        of_table = (
            _TableGradient.apply(grads, along[0], table.shape, ctx.positions, ctx.first)  # type: ignore[no-untyped-call]
            if ctx.needs_input_grad[1]
            else None
        )
        return of_grads, of_table, None, None


class _TableGradient(torch.autograd.Function):
    """For each row of the table the sum over its pairs of g_ij q_i."""

    @staticmethod
    def forward(ctx: Any, grads: Tensor, queries: Tensor, shape: torch.Size, positions: Lattice, first: int) -> Tensor:
        ctx.save_for_backward(grads, queries)
        ctx.positions, ctx.first = positions, first
        out = grads.new_zeros(shape)
        turned = grads.new_zeros(shape[0], shape[3], shape[4], shape[2])
        results = (out.numpy(), turned.numpy())
        _run("table_gradient", shape[4], shape[3], *_arrays(grads, queries), *_places(positions, first), results)
        out[:, 0] += turned.permute(0, 3, 1, 2)
        return out

    @staticmethod
    def backward(ctx: Any, *along: Any) -> tuple[Tensor | None, ...]:
        grads, queries = ctx.saved_tensors
        of_grads = _Scores.apply(queries, along[0], ctx.positions, ctx.first) if ctx.needs_input_grad[0] else None  # type: ignore[no-untyped-call]
        of_queries = (
            _QueryGradient.apply(grads, along[0], ctx.positions, ctx.first) if ctx.needs_input_grad[1] else None  # type: ignore[no-untyped-call]
        )
        return of_grads, of_queries, None, None, None
