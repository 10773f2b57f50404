"""Hard negatives: of the texts nearest to an anchor those that are most likely no matches.

Source: Moreira et al. 2024 (NV-Retriever): candidates whose score comes near that of the positive are taken for matches that nobody
marked, and left out, by a share of the positive's score (TopK-PercPos) or by a margin below it (TopK-MarginPos).
Differs: a share of a negative score is taken from its size, so that the limit always lies below the positive; what is known to
match the anchor is left out whatever its score, in whatever writing; an anchor of which too few are left gets texts at random,
of those below the limit.
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
        positives: of any sign; -inf = nothing in common with the anchor, so that everything that has is above the limit.
        ratio: 0.95 = 5 % of its size below the positive; None = no such limit.
        margin: this much below the positive; None = no such limit.
    """
    scores = np.maximum(
        np.asarray(positives, dtype=np.float64), np.finfo(np.float32).min
    )  # -inf x 0 would be no number
    limits = np.full(scores.shape, np.inf)
    if ratio is not None:
        limits = np.minimum(limits, scores - (1 - ratio) * np.abs(scores))
    return limits if margin is None else np.minimum(limits, scores - margin)


def choose_negatives(
    nearest: Iterable[int],
    scores: NDArray[np.floating],
    limit: float,
    matches: Set[str],
    keys: Sequence[str],
    *,
    number: int,
    skip: int = 0,
    draw: Callable[[], np.random.Generator],
) -> tuple[list[int], int]:
    """The negatives of an anchor.

    Args:
        nearest: places in the corpus that are looked at, the nearest first.
        scores: (corpus,) of all texts; -inf = nothing in common.
        limit: a text above it is left out.
        matches: keys of texts that match the anchor.
        keys: (corpus,) `text_key` of all texts, which are distinct.
        number: negatives.
        skip: of the nearest that are left, those that are passed over, unless nothing else is left.
        draw: the generator, asked where too few of the nearest are left.

    Returns:
        Places in the corpus, all different; and how many of them were drawn at random.

    Raises:
        ValueError: the corpus holds too few texts that do not match the anchor and are not above the limit.
    """
    left = [place for place in nearest if scores[place] <= limit and keys[place] not in matches]
    found = left[skip : skip + number]
    wanted = number - len(found)
    if not wanted:
        return found, 0
    known = set(found)
    rest = [
        place for place in np.flatnonzero(scores <= limit).tolist() if place not in known and keys[place] not in matches
    ]
    if len(rest) < wanted:
        raise ValueError(f"there are {len(known) + len(rest)}")
    passed = set(left[:skip])
    others = [place for place in rest if place not in passed]
    if len(others) < wanted:  # those passed over are all that there is
        others = rest
    return found + draw().choice(others, size=wanted, replace=False).tolist(), wanted
