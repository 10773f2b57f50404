"""The pairs that a matcher is most wrong about: what `evaluate.py --errors` shows of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from hanzoo.data.document import Pair
from hanzoo.evaluation.report import results_table

WORST = 10  # pairs a table
LONGEST = 60  # characters of a text that are shown


def worst_pairs(
    pairs: Sequence[Pair], scores: NDArray[np.float64], threshold: float | None, two_classes: bool
) -> Iterator[str]:
    """Blocks of text: for two classes the matches with the lowest scores and the others with the highest, for a graded scale the
    pairs whose places by score and by label lie farthest apart.

    Args:
        pairs: with their labels.
        scores: (pairs,) of the model.
        threshold: from which score on pairs are called a match; None = no pair is called anything.
        two_classes: whether labels are 0 and 1.
    """
    gold = np.array([pair.label for pair in pairs], dtype=np.float64)
    if not two_classes:
        apart = rankdata(scores) - rankdata(gold)
        order = np.argsort(-np.abs(apart), kind="stable")[:WORST]
        yield "the pairs that are farthest from their place (+: too high)\n" + _table(
            pairs, scores, order, {index: f"{apart[index] / len(pairs):+.2f}" for index in order.tolist()}
        )
        return
    for label, name, order in (
        (1.0, "matches with the lowest scores", np.argsort(scores, kind="stable")),
        (0.0, "no matches, with the highest scores", np.argsort(-scores, kind="stable")),
    ):
        own = order[gold[order] == label]
        if not len(own):
            continue
        wrong = ""
        if threshold is not None:
            missed = scores[own] < threshold if label else scores[own] >= threshold
            wrong = f"; {int(missed.sum()):,} of {len(own):,} are on the wrong side of {threshold:.4f}"
        yield f"{name}{wrong}\n{_table(pairs, scores, own[:WORST])}"


def _table(
    pairs: Sequence[Pair], scores: NDArray[np.float64], order: NDArray[np.int64], apart: dict[int, str] | None = None
) -> str:
    rows = []
    for index in order.tolist():
        pair = pairs[index]
        row = {"score": f"{scores[index]:.4f}", "label": f"{pair.label:g}"}
        row |= {} if apart is None else {"apart": apart[index]}
        rows.append(row | {"where": Path(pair.source).name, "first": _shown(pair.first), "second": _shown(pair.second)})
    return results_table(rows)


def _shown(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
