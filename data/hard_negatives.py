"""Hard negatives: of the texts nearest to an anchor those that are most likely no matches.

Source: Moreira et al. 2024 (NV-Retriever): candidates whose score comes near that of the positive are taken for matches that nobody
marked, and left out, by a share of the positive's score (TopK-PercPos) or by a margin below it (TopK-MarginPos).
Differs: a share of a negative score is taken from its size, so that the limit always lies below the positive; what is known to
match the anchor is left out whatever its score, in whatever writing; an anchor of which too few are left gets texts at random.
Cost: linear in the candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set

import numpy as np
from numpy.typing import NDArray

from hanzoo.data.document import Pair
from hanzoo.data.leakage import text_key


def known_matches(pairs: Iterable[Pair]) -> Mapping[str, Set[str]]:
    """For each text the keys (`leakage.text_key`) of all that pairs say matches it, its own among them."""
    found: dict[str, set[str]] = {}
    for pair in pairs:
        for one, other in ((pair.first, pair.second), (pair.second, pair.first)):
            found.setdefault(one, {text_key(one)}).add(text_key(other))
    return found


def highest_scores(positives: NDArray[np.floating], ratio: float | None, margin: float | None) -> NDArray[np.float64]:
    """The score up to which a candidate is no match, (anchors,), from the scores of the anchors' positives, (anchors,).

    Args:
        positives: of any sign.
        ratio: 0.95 = 5 % of its size below the positive; None = no such limit.
        margin: this much below the positive; None = no such limit.
    """
    scores = np.asarray(positives, dtype=np.float64)
    limits = np.full(scores.shape, np.inf)
    if ratio is not None:
        limits = np.minimum(limits, scores - (1 - ratio) * np.abs(scores))
    return limits if margin is None else np.minimum(limits, scores - margin)


def choose_negatives(
    candidates: Sequence[NDArray[np.integer]],
    scores: Sequence[NDArray[np.floating]],
    limits: NDArray[np.floating],
    matches: Sequence[Set[str]],
    corpus: Sequence[str],
    *,
    number: int,
    skip: int = 0,
    draw: Callable[[int], np.random.Generator],
) -> tuple[NDArray[np.int64], int]:
    """The negatives of each anchor.

    Args:
        candidates: (anchors,) places in the corpus, the nearest first, one-dimensional; as many as there are.
        scores: (anchors,) of them, likewise.
        limits: (anchors,): a candidate above it is left out.
        matches: (anchors,) the keys of texts that match.
        corpus: distinct texts.
        number: negatives an anchor.
        skip: of the candidates that are left, the nearest that are passed over.
        draw: one generator an anchor, for those of which too few candidates are left.

    Returns:
        (anchors, number) places in the corpus, those of an anchor all different; and how many of them were drawn at random.

    Raises:
        ValueError: the corpus holds too few texts that do not match an anchor.
    """
    keys = [text_key(text) for text in corpus]
    chosen = np.empty((len(candidates), number), dtype=np.int64)
    num_drawn = 0
    for row, (places, matching) in enumerate(zip(candidates, matches, strict=True)):
        own, near = places.tolist(), (scores[row] > limits[row]).tolist()
        left = [place for place, is_near in zip(own, near, strict=True) if not is_near and keys[place] not in matching]
        found = left[skip : skip + number]
        if len(found) < number:
            # the near ones stay out; where nothing else is there, nothing is
            out = {*found, *(place for place, is_near in zip(own, near, strict=True) if is_near)}
            rest = [place for place in range(len(corpus)) if place not in out and keys[place] not in matching]
            wanted = number - len(found)
            if len(rest) < wanted:
                raise ValueError(f"anchor {row} must have {number} texts that do not match it, but has fewer")
            found += draw(row).choice(rest, size=wanted, replace=False).tolist()
            num_drawn += wanted
        chosen[row] = found
    return chosen, num_drawn
