"""The tests of evaluation/significance.py by listing every case: slow, obvious, float64.

Noreen 1989 and Yeh 2000 draw exchanges at random because there are 2^n of them; for few sentences all can be gone through, and
the p-value is the share that is at least as large as what was found. So can all n^n draws of the bootstrap.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

Counts = tuple[int, int, int]  # found, spurious, missed
Side = Sequence[Sequence[Counts]]  # a model: its counts in each sentence


def f1(counts: Sequence[Counts]) -> float:
    """Micro F1 of a model's sentences."""
    found, spurious, missed = (sum(each[k] for each in counts) for k in range(3))
    return 2 * found / (2 * found + spurious + missed) if found + spurious + missed else 0.0


def difference(first: Side, second: Side) -> float:
    """The mean over one side's models minus the mean over the other's."""
    return sum(map(f1, first)) / len(first) - sum(map(f1, second)) / len(second)


def exact_p(first: Side, second: Side) -> float:
    """The share of all exchanges of sentences whose difference is at least as large, to either side, as the real one."""
    num_models, num_sentences = len(first), len(first[0])
    really = abs(difference(first, second))
    at_least = 0
    for exchanged in itertools.product([False, True], repeat=num_sentences):
        one: list[list[Counts]] = []
        other: list[list[Counts]] = []
        for model in range(num_models):
            one.append([])
            other.append([])
            for sentence in range(num_sentences):
                here, there = first[model][sentence], second[model][sentence]
                one[model].append(there if exchanged[sentence] else here)
                other[model].append(here if exchanged[sentence] else there)
        at_least += abs(difference(one, other)) >= really - 1e-12
    return at_least / 2**num_sentences


def all_draws(first: Side, second: Side) -> list[float]:
    """The difference in every draw of n sentences out of n, with replacement: n^n equally likely values."""
    num_sentences = len(first[0])
    return [
        difference(
            [[model[sentence] for sentence in drawn] for model in first],
            [[model[sentence] for sentence in drawn] for model in second],
        )
        for drawn in itertools.product(range(num_sentences), repeat=num_sentences)
    ]
