"""Which examples are trained in which step: a pure function of (generator, lengths, sizes), known before the epoch starts.

Length buckets: shuffle, cut into megabatches, sort each by length, cut into windows, shuffle the windows. Padding then costs a
few per cent (CLUENER at batch 32: 0.97 of the embedded positions are real; 0.75 in random batches), and every epoch has other
windows. Which examples stand in a window depends on its size alone, not on how it is cut into micro-batches, so that ranks and
accumulation change the arithmetic of a training and not its data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WINDOWS_A_BUCKET = 50

Window = list[list[int]]  # the micro-batches of one optimizer step, of all ranks: lists of item numbers


def plan_epoch(
    lengths: Sequence[int],
    generator: np.random.Generator,
    *,
    batch_size: int,
    micro_batches: int = 1,
    batch_characters: int = 0,
    repeats: Sequence[float] | None = None,
    least: int = 1,
) -> list[Window]:
    """All windows of one epoch; without `repeats` each item is in exactly one micro-batch.

    Args:
        lengths: for each training item what it costs (characters).
        generator: keyed by (seed, epoch): the plan is a function of it.
        batch_size: items a micro-batch at most; the last ones may be smaller.
        micro_batches: of a window (accumulation x ranks); the last window may hold fewer.
        batch_characters: padded characters a micro-batch at most, 0 = no such limit; an item that is longer goes alone.
        repeats: for each item how often an epoch shall train it, at least 1, on average over epochs; the part behind the point is
            the probability of once more.
        least: items a micro-batch at least, where there are as many: fewer are put to the next one, which is then larger than
            `batch_size`.

    Returns:
        Windows in the order of training.
    """
    items = np.arange(len(lengths))
    if repeats is not None:
        wanted = np.asarray(repeats, dtype=np.float64)
        items = np.repeat(items, np.floor(wanted + generator.random(len(wanted))).astype(np.int64))
    order = items[generator.permutation(len(items))]
    length = np.asarray(lengths, dtype=np.int64)
    rows = batch_size
    if batch_characters and len(order):
        rows = min(batch_size, max(1, int(batch_characters // max(1.0, length[order].mean()))))
    bucket_size = rows * micro_batches * WINDOWS_A_BUCKET
    windows: list[Window] = []
    starts = range(bucket_size, len(order) - least + 1, bucket_size)  # too few items to be a batch are no bucket either
    for bucket in np.split(order, starts):
        bucket = bucket[np.argsort(length[bucket], kind="stable")]
        batches = _joined(_cut(bucket.tolist(), length[bucket].tolist(), batch_size, batch_characters), least)
        windows.extend(batches[at : at + micro_batches] for at in range(0, len(batches), micro_batches))
    return [windows[i] for i in generator.permutation(len(windows))]


def _cut(items: list[int], lengths: list[int], batch_size: int, batch_characters: int) -> list[list[int]]:
    """Cut items that are sorted by length into micro-batches."""
    if not batch_characters:
        return [items[at : at + batch_size] for at in range(0, len(items), batch_size)]
    batches: list[list[int]] = []
    for item, length in zip(items, lengths, strict=True):
        # sorted: this item is the longest so far, all are padded to it
        if batches and len(batches[-1]) < batch_size and (len(batches[-1]) + 1) * length <= batch_characters:
            batches[-1].append(item)
        else:
            batches.append([item])
    return batches


def _joined(batches: list[list[int]], least: int) -> list[list[int]]:
    """Micro-batches in order, those of fewer items than `least` joined with their neighbours."""
    joined: list[list[int]] = []
    for batch in batches:
        if joined and (len(batch) < least or len(joined[-1]) < least):
            joined[-1] = joined[-1] + batch
        else:
            joined.append(batch)
    return joined


def repeat_factors(labels: Sequence[Sequence[str]], threshold: float) -> list[float]:
    """How often an epoch shall train each item, so that rare classes are seen more often.

    r = max over the item's classes of max(1, sqrt(threshold / f)), f = share of the items that hold the class; an item without a
    class has 1. Source: Gupta, Dollar and Girshick 2019 (LVIS), section "repeat factor sampling".

    Args:
        labels: for each item its classes (of its gold entities, or its label).
        threshold: share of items from which on a class is not rare.
    """
    counts: dict[str, int] = {}
    for own in labels:
        for label in set(own):
            counts[label] = counts.get(label, 0) + 1
    factor = {label: max(1.0, (threshold * len(labels) / count) ** 0.5) for label, count in counts.items()}
    return [max((factor[label] for label in own), default=1.0) for own in labels]
