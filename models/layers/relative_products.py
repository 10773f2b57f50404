"""Relative scores: the product of each query with the row of a table for its relation to each key; and their gradients.

Which row that is follows from the lengths of query and key and from how far one starts behind the other. So queries of one length
that start near each other meet the same few rows, in whatever text they stand: a block of them is multiplied with all these rows
as matrices, and each product is then put where its pair stands.

- Characters ask in blocks of neighbours. Among the products with the rows for characters, those of a query are a stretch that
  begins one place further left than that of the query before: a view, nothing is looked up. Those with words are picked by number.
- Words ask by their length, in the order of their starts. All their products are picked by number.
- A length that few words have is not worth a matrix: the rows of its pairs are gathered.

Nothing of (queries, keys, width) is made but for these few words. Cost: each common length costs a little more than the products
of queries and keys do.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from hanzoo.data.lattice import Lattice

QUERIES_A_BLOCK = 24  # of each text: with more, more products are of no pair; with fewer, the matrices are small
COMMON = 48  # a length is common if the words of it in the batch, times this, are more than the characters in it


class _Queries:
    """Queries of one length, and the part of the table that they meet.

    Args:
        lattice: of the batch.
        kind: of the queries' length.
        keys: kinds that are multiplied as matrices, rising; the first is 0.
        texts: (queries,) int64: the text of each.
        starts: (queries,) int64: its first character.
        ends: smallest and largest of `starts`.
        since: the first column that is picked by number.

    Attributes:
        low, shifts: the first of the table's shifts that they meet, and how many.
        places: (queries, columns since) int64: of each pair among the query's products; where it has none, the one behind the last.
        rows, columns: (pairs,) each: which pairs meet a rare length.
        relations: (pairs,) their rows in the table, flattened.
    """

    def __init__(
        self,
        lattice: Lattice,
        kind: int,
        keys: Sequence[int],
        texts: Tensor,
        starts: Tensor,
        ends: tuple[int, int],
        since: int,
    ) -> None:
        num_kinds, seq = len(lattice.lengths), lattice.seq
        self.kind, self.keys, self.since = kind, list(keys), since
        self.low, self.shifts = seq - 1 - ends[1], seq + ends[1] - ends[0]
        place_of_kind = texts.new_full((num_kinds,), -1)
        place_of_kind[self.keys] = torch.arange(len(self.keys), device=texts.device)
        kinds, real = lattice.kinds[:, since:], lattice.mask[:, since:]
        found = place_of_kind[kinds]
        shifts = lattice.starts[:, since:][texts] - starts.unsqueeze(1)
        places = (found * self.shifts)[texts] + shifts + ends[1]
        self.places = places.masked_fill_((~real | (found < 0))[texts], self.num_products)
        self.rows, self.columns = ((found < 0) & real)[texts].nonzero(as_tuple=True)
        of_keys = kinds[texts[self.rows], self.columns]
        shift = shifts[self.rows, self.columns] + seq - 1
        self.relations = (kind * num_kinds + of_keys) * (2 * seq - 1) + shift

    @property
    def num_products(self) -> int:
        return len(self.keys) * self.shifts

    def scores(self, queries: Tensor, table: Tensor, out: Tensor) -> None:
        """Put their scores into `out`, (batch, heads, queries, columns)."""
        asking = self._take(queries)
        products = asking.new_empty(*asking.shape[:2], self.num_products + 1)
        products[..., -1] = 0
        torch.bmm(asking, self._window(table).transpose(1, 2), out=products[..., :-1])
        picked = products.gather(2, self.places.expand(len(products), -1, -1))
        if len(self.rows):
            picked[:, self.rows, self.columns] = (asking.index_select(1, self.rows) * self._rare(table)).sum(-1)
        self._put(out, picked, products)

    def gradients(self, grads: Tensor, queries: Tensor, table: Tensor, of_queries: Tensor, of_table: Tensor) -> None:
        """Put the gradients of their scores into one, and add them to the other."""
        asking, given = self._take(queries), self._take(grads[..., self.since :])
        products = self._spread(grads, asking.new_zeros(*asking.shape[:2], self.num_products + 1))
        # no two pairs of a query have one place but those without any, whose place is cut off
        products.scatter_(2, self.places.expand(len(products), -1, -1), given)
        products = products[..., :-1]
        toward = torch.bmm(products, self._window(table))
        of_window = torch.bmm(products.transpose(1, 2), asking)
        for place, key in enumerate(self.keys):
            part = of_window[:, place * self.shifts : (place + 1) * self.shifts]
            of_table[self.kind, key, self.low : self.low + self.shifts] += part.transpose(0, 1)
        if len(self.rows):
            of_pairs = given[:, self.rows, self.columns].unsqueeze(-1)
            toward.index_add_(1, self.rows, self._rare(table) * of_pairs)
            of_relations = (asking.index_select(1, self.rows) * of_pairs).transpose(0, 1).flatten(1)
            of_table.view(-1, of_relations.shape[1]).index_add_(0, self.relations, of_relations)
        self._put(of_queries, toward)

    def _window(self, table: Tensor) -> Tensor:
        """(heads, products, head width)."""
        rows = table[self.kind, :, self.low : self.low + self.shifts]
        return rows[self.keys].flatten(0, 1).transpose(0, 1)

    def _rare(self, table: Tensor) -> Tensor:
        """(heads, pairs, head width)."""
        return table.flatten(0, 2).index_select(0, self.relations).transpose(0, 1)

    def _take(self, values: Tensor) -> Tensor:
        """Of (batch, heads, queries, any) theirs, (heads, theirs, any)."""
        raise NotImplementedError

    def _put(self, out: Tensor, values: Tensor, products: Tensor | None = None) -> None:
        """The other way round; with `products`, `values` are those of the columns since."""
        raise NotImplementedError

    def _spread(self, grads: Tensor, products: Tensor) -> Tensor:
        """Add to the gradients of the products those of scores that are not picked by number."""
        raise NotImplementedError


class _Characters(_Queries):
    """The characters of all texts in some columns that lie beside each other.

    Args:
        lattice: of the batch.
        keys: as above.
        column: the first, which is that of the first query.
        number: of columns.
    """

    def __init__(self, lattice: Lattice, keys: Sequence[int], column: int, number: int) -> None:
        self.here = slice(0, number)
        self.shape = len(lattice.starts), number, lattice.seq
        device = lattice.starts.device
        texts = torch.arange(len(lattice.starts), device=device).repeat_interleave(number)
        starts = torch.arange(column, column + number, device=device).repeat(len(lattice.starts))
        super().__init__(lattice, 0, keys, texts, starts, (column, column + number - 1), lattice.seq)

    def moved(self, query: int) -> Self:
        """As many characters from another query on: all that differs is where they meet the table."""
        other = copy.copy(self)
        other.here = slice(query, query + self.here.stop)
        other.low, other.relations = self.low - query, self.relations - query
        return other

    def _stretches(self, products: Tensor) -> Tensor:
        """The products with the rows for characters as they stand in scores, (batch, heads, queries, seq)."""
        batch, number, seq = self.shape
        of_head, of_query, _ = products.stride()
        strides = number * of_query, of_head, of_query - 1, 1
        return products.as_strided((batch, len(products), number, seq), strides, products.storage_offset() + number - 1)

    def _take(self, values: Tensor) -> Tensor:
        return values[:, :, self.here].transpose(0, 1).flatten(1, 2)

    def _put(self, out: Tensor, values: Tensor, products: Tensor | None = None) -> None:
        here = out[:, :, self.here]
        if products is not None:
            here[..., : self.since] = self._stretches(products)
            here = here[..., self.since :]
        here.copy_(values.view(len(values), *self.shape[:2], -1).transpose(0, 1))

    def _spread(self, grads: Tensor, products: Tensor) -> Tensor:
        self._stretches(products).copy_(grads[:, :, self.here, : self.since])
        return products


class _Words(_Queries):
    """Words of one length.

    Args:
        lattice: of the batch.
        kind: of their length.
        keys: as above.
        texts: (queries,) int64: the text of each.
        columns: (queries,) int64: its column.
        first: column of the first query.
    """

    def __init__(
        self, lattice: Lattice, kind: int, keys: Sequence[int], texts: Tensor, columns: Tensor, first: int
    ) -> None:
        self.at = texts, columns - first
        starts = lattice.starts[texts, columns]
        super().__init__(lattice, kind, keys, texts, starts, (int(starts.min()), int(starts.max())), 0)

    def _take(self, values: Tensor) -> Tensor:
        texts, queries = self.at
        return values[texts, :, queries].transpose(0, 1).contiguous()

    def _put(self, out: Tensor, values: Tensor, products: Tensor | None = None) -> None:
        texts, queries = self.at
        out[texts, :, queries] = values.transpose(0, 1)

    def _spread(self, grads: Tensor, products: Tensor) -> Tensor:
        return products


class _Plan(NamedTuple):
    """All queries of some columns.

    Attributes:
        blocks: characters, then words.
        characters: how many queries of each text are characters, the first.
        columns: keys of each text, padding included.
    """

    blocks: list[_Queries]
    characters: int
    columns: int


def _parts(number: int) -> list[int]:
    """As few parts as are allowed, of two sizes at most."""
    parts = -(-number // QUERIES_A_BLOCK)
    return [number // parts + (part < number % parts) for part in range(parts)]


def plan(lattice: Lattice, first: int, queries: int) -> _Plan:
    """How the columns from `first` on ask."""
    batch, columns, seq, end = *lattice.starts.shape, lattice.seq, first + queries
    counts = torch.bincount(lattice.kinds[:, seq:].flatten(), minlength=len(lattice.lengths)).tolist()
    keys = [0, *(kind for kind, count in enumerate(counts) if kind and count * COMMON > batch * seq)]
    blocks: list[_Queries] = []
    characters = max(0, min(end, seq) - first)
    alike: dict[int, _Characters] = {}
    at = 0
    for number in _parts(characters):
        if number not in alike:
            alike[number] = _Characters(lattice, keys, first, number)
        blocks.append(alike[number].moved(at))
        at += number
    if end > seq:
        asking = lattice.mask.clone()
        asking[:, : max(first, seq)] = False
        asking[:, end:] = False
        for kind in range(len(lattice.lengths)):
            texts, places = (asking & (lattice.kinds == kind)).nonzero(as_tuple=True)
            order = lattice.starts[texts, places].argsort(stable=True)
            for part in torch.split(order, QUERIES_A_BLOCK * batch):
                if len(part):
                    blocks.append(_Words(lattice, kind, keys, texts[part], places[part], first))
    return _Plan(blocks, characters, columns)


def relative_scores(queries: Tensor, table: Tensor, lattice: Lattice, first: int = 0) -> Tensor:
    """The product of each query with the row of the table for each key. Differentiable to any order.

    Args:
        queries: (batch, heads, queries, head width) float: of the columns from `first` on.
        table: (query lengths, key lengths, shifts, heads, head width), as `RelativeAttention.table` gives it.
        lattice: of the batch.
        first: column of the first query.

    Returns:
        (batch, heads, queries, columns) float; what stands where query or key is padding is finite and means nothing.
    """
    scores: Tensor = _Scores.apply(queries, table, plan(lattice, first, queries.shape[2]))  # type: ignore[no-untyped-call]
    return scores


# Scores are bilinear in queries and table: the derivatives of scores and gradients are again scores and gradients.


class _Scores(torch.autograd.Function):
    """r_ij = q_i . t(i, j)."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, table: Tensor, plan: _Plan) -> Tensor:
        ctx.save_for_backward(queries, table)
        ctx.plan = plan
        out = queries.new_empty(*queries.shape[:3], plan.columns)
        out[:, :, plan.characters :] = 0  # words that are padding have no block
        for block in plan.blocks:
            block.scores(queries, table, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return *_Gradients.apply(grads[0], *ctx.saved_tensors, ctx.plan), None  # type: ignore[no-untyped-call]


class _Gradients(torch.autograd.Function):
    """With g_ij the gradient of r_ij: of q_i the sum over keys of g_ij t(i, j), of a row over its pairs of g_ij q_i."""

    @staticmethod
    def forward(ctx: Any, grads: Tensor, queries: Tensor, table: Tensor, plan: _Plan) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(grads, queries, table)
        ctx.plan = plan
        of_queries, of_table = queries.new_zeros(queries.shape), table.new_zeros(table.shape)
        for block in plan.blocks:
            block.gradients(grads, queries, table, of_queries, of_table)
        return of_queries, of_table

    @staticmethod
    def backward(ctx: Any, *along: Any) -> tuple[Tensor | None, ...]:
        grads, queries, table = ctx.saved_tensors
        of_grads = _Scores.apply(along[0], table, ctx.plan) + _Scores.apply(queries, along[1], ctx.plan)  # type: ignore[no-untyped-call]
        return of_grads, *_Gradients.apply(grads, *along, ctx.plan), None  # type: ignore[no-untyped-call]
