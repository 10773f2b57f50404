"""What is found in rows, in order and in constant memory, however many ranks look for it: what `predict.py` shares over tasks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from hanzoo.data.text_streams import Row
from hanzoo.models.model import in_chunks
from hanzoo.training.distributed import gather_objects, merge, num_ranks, share

F = TypeVar("F")


def found_in(
    rows: Iterator[Row], length: Callable[[Row], int], find: Callable[[Sequence[Row]], list[F]]
) -> Iterator[tuple[Row, F]]:
    """Each row with what was found in it, in order: every rank looks through its part, and all get the whole.

    Args:
        rows: the same on all ranks.
        length: characters of a row.
        find: from some rows to what is found in each. What it gives travels between ranks.
    """
    chunks = in_chunks(rows, length)
    while group := list(itertools.islice(chunks, num_ranks())):
        found = merge(gather_objects([find(chunk) for chunk in share(group)]))
        for chunk, values in zip(group, found, strict=True):
            yield from zip(chunk, values, strict=True)
