"""The compiled part of `relative_position.py`: relative scores and their gradients, in numba, for the CPU.

The three kernels are the three partial derivatives of one trilinear form, sum over pairs of g_ij q_i . t(i, j), where t(i, j) is
the row of the table for query i and key j. For a fixed query the rows of the characters lie beside each other: with the table
turned, what is done for all characters of a text runs along memory. Words are few, and are done one by one.

Heads do not share anything, so that they can be given to several threads: the sums come out the same.

They are compiled at the first call and kept for the process; nothing is cached on disk (numba's cache is a pickle).
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any


@functools.cache
def relative_kernels(head_width: int) -> SimpleNamespace:
    """Compile the kernels for heads of this width, which must be known for the innermost loops to be unrolled.

    Arrays, for all of them (float32 or float64):
        grads, scores: (batch, heads, queries, keys). queries: (batch, heads, queries, head_width).
        table: (query lengths, key lengths, shifts, heads, head_width); turned: its key length 0, as (query lengths, heads,
        head_width, shifts).
        starts, kinds: (batch, keys) int64: first character, and place of the length in the table; queries are the columns from
        `first` on. counts: (batch, 2) int64, characters and words; words stand from column `seq` on.
        head: which head.
    """
    import numba

    width = head_width
    jit = numba.njit(error_model="numpy", nogil=True, fastmath={"contract", "reassoc", "nsz"})

    def is_real(column: int, seq: int, counts: Any) -> Any:
        return column < counts[0] or seq <= column < seq + counts[1]

    is_real = jit(is_real)

    def scores(
        queries: Any,
        table: Any,
        turned: Any,
        starts: Any,
        kinds: Any,
        counts: Any,
        seq: int,
        first: int,
        head: int,
        out: Any,
    ) -> None:
        """out = q_i . t(i, j), 0 where query or key is padding."""
        for b in range(queries.shape[0]):
            for i in range(queries.shape[2]):
                row = out[b, head, i]
                row[:] = 0.0
                if not is_real(first + i, seq, counts[b]):
                    continue
                query = queries[b, head, i]
                start, kind = starts[b, first + i], kinds[b, first + i]
                base = seq - 1 - start
                num = counts[b, 0]
                characters = row[:num]
                for c in range(0, width - 3, 4):
                    q0, q1, q2, q3 = query[c], query[c + 1], query[c + 2], query[c + 3]
                    t0 = turned[kind, head, c, base : base + num]
                    t1 = turned[kind, head, c + 1, base : base + num]
                    t2 = turned[kind, head, c + 2, base : base + num]
                    t3 = turned[kind, head, c + 3, base : base + num]
                    for j in range(num):
                        characters[j] += q0 * t0[j] + q1 * t1[j] + q2 * t2[j] + q3 * t3[j]
                for c in range(width - width % 4, width):
                    q0 = query[c]
                    t0 = turned[kind, head, c, base : base + num]
                    for j in range(num):
                        characters[j] += q0 * t0[j]
                for j in range(seq, seq + counts[b, 1]):
                    there = table[kind, kinds[b, j], base + starts[b, j], head]
                    total = query[0] * there[0]
                    for c in range(1, width):
                        total += query[c] * there[c]
                    row[j] = total

    def query_gradient(
        grads: Any,
        table: Any,
        turned: Any,
        starts: Any,
        kinds: Any,
        counts: Any,
        seq: int,
        first: int,
        head: int,
        out: Any,
    ) -> None:
        """out = sum over j of g_ij t(i, j)."""
        for b in range(grads.shape[0]):
            for i in range(grads.shape[2]):
                result = out[b, head, i]
                result[:] = 0.0
                if not is_real(first + i, seq, counts[b]):
                    continue
                grad = grads[b, head, i]
                start, kind = starts[b, first + i], kinds[b, first + i]
                base = seq - 1 - start
                num = counts[b, 0]
                for c in range(width):
                    there = turned[kind, head, c, base : base + num]
                    total = there[0] * grad[0]
                    for j in range(1, num):
                        total += there[j] * grad[j]
                    result[c] = total
                for j in range(seq, seq + counts[b, 1]):
                    there = table[kind, kinds[b, j], base + starts[b, j], head]
                    for c in range(width):
                        result[c] += grad[j] * there[c]

    def table_gradient(
        grads: Any,
        queries: Any,
        starts: Any,
        kinds: Any,
        counts: Any,
        seq: int,
        first: int,
        head: int,
        out: Any,
        turned: Any,
    ) -> None:
        """For each row of the table the sum over its pairs of g_ij q_i: of words into out, of characters into turned, both zero
        before."""
        for b in range(grads.shape[0]):
            for i in range(grads.shape[2]):
                if not is_real(first + i, seq, counts[b]):
                    continue
                grad, query = grads[b, head, i], queries[b, head, i]
                start, kind = starts[b, first + i], kinds[b, first + i]
                base = seq - 1 - start
                num = counts[b, 0]
                for c in range(width):
                    q = query[c]
                    there = turned[kind, head, c, base : base + num]
                    for j in range(num):
                        there[j] += q * grad[j]
                for j in range(seq, seq + counts[b, 1]):
                    row = out[kind, kinds[b, j], base + starts[b, j], head]
                    for c in range(width):
                        row[c] += grad[j] * query[c]

    return SimpleNamespace(scores=jit(scores), query_gradient=jit(query_gradient), table_gradient=jit(table_gradient))
