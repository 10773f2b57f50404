"""Which examples are trained in which step: a pure function of (generator, lengths, sizes), known before the epoch starts.

Length buckets: shuffle, cut into megabatches, sort each by length, cut into batches, shuffle the batches. Padding then costs a
few per cent (CLUENER at batch 32: 0.97 of the embedded positions are real; 0.75 in random batches), and every epoch has other
batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BATCHES_A_BUCKET = 50

Window = list[list[int]]  # the micro-batches of one optimizer step: lists of item numbers


def plan_epoch(
    lengths: Sequence[int], generator: np.random.Generator, *, batch_size: int, accumulation: int = 1
) -> list[Window]:
    """All windows of one epoch; each item is in exactly one micro-batch.

    Args:
        lengths: for each training item what it costs (characters).
        generator: keyed by (seed, epoch): the plan is a function of it.
        batch_size: items a micro-batch; the last ones may be smaller.
        accumulation: micro-batches a window; the last window may hold fewer.

    Returns:
        Windows in the order of training.
    """
    order = generator.permutation(len(lengths))
    length = np.asarray(lengths, dtype=np.int64)
    batches: list[list[int]] = []
    size = batch_size * BATCHES_A_BUCKET
    for start in range(0, len(order), size):
        bucket = order[start : start + size]
        bucket = bucket[np.argsort(length[bucket], kind="stable")]
        batches.extend(bucket[at : at + batch_size].tolist() for at in range(0, len(bucket), batch_size))
    batches = [batches[i] for i in generator.permutation(len(batches))]
    return [batches[at : at + accumulation] for at in range(0, len(batches), accumulation)]


def num_windows(num_items: int, *, batch_size: int, accumulation: int = 1) -> int:
    """Optimizer steps an epoch, without making the plan."""
    per_bucket = batch_size * BATCHES_A_BUCKET
    whole, rest = divmod(num_items, per_bucket)
    batches = whole * BATCHES_A_BUCKET + -(-rest // batch_size)
    return -(-batches // accumulation)
