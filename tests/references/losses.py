"""Focal, Poly-1, flooding, smoothed targets and class weights, one unit at a time: slow, obvious, float64.

Focal: (1 - p)^gamma * -log p (Lin et al. 2017, equation 4). Poly-1: -log p + epsilon (1 - p) (Leng et al. 2022). Flooding:
|l - b| + b (Ishida et al. 2020, equation 1), here of one unit. Label smoothing: the cross-entropy of a target distribution
with the model's (Szegedy et al. 2016, section 7), here over listed tag paths.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.references.crf import Chain, log_partition, path_scores, paths_of


def focal(nll: Tensor, gamma: float, length: int = 1) -> Tensor:
    """The focal loss of a unit, () float64; with its length, p is the geometric mean over that many positions."""
    p = torch.exp(-nll / length)
    return (1 - p) ** gamma * nll


def poly(value: Tensor, nll: Tensor, epsilon: float) -> Tensor:
    """A loss with Poly-1's term, p being that of the hard gold, () float64."""
    return value + epsilon * (1 - torch.exp(-nll))


def flooded(value: Tensor, level: float, length: int) -> Tensor:
    """A loss that is held at `level` nats a position, () float64."""
    mean = value / length
    return (mean if mean >= level else 2 * level - mean) * length


def tag_targets(chain: Chain, tags: Sequence[int], epsilon: float) -> list[list[float]]:
    """For each position the target of each tag by itself: epsilon shared among those that may stand there."""
    num_tags = chain.emissions.shape[1]
    rows = []
    for i, gold in enumerate(tags):
        may = [
            bool(chain.legal_transitions[:, tag].any() if i > 0 else chain.legal_start[tag])
            and bool(chain.legal_transitions[tag].any() if i < len(tags) - 1 else chain.legal_end[tag])
            for tag in range(num_tags)
        ]
        rows.append([(1 - epsilon) * (tag == gold) + epsilon * may[tag] / sum(may) for tag in range(num_tags)])
    return rows


def path_targets(chain: Chain, tags: Sequence[int], epsilon: float) -> Tensor:
    """The target probability of each legal path, in the order of `paths_of`: tags by themselves, given that all is legal."""
    rows = tag_targets(chain, tags, epsilon)
    weights = [math.prod(rows[i][tag] for i, tag in enumerate(path)) for path in paths_of(chain)]
    return torch.tensor(weights, dtype=torch.float64) / sum(weights)


def smoothed(chain: Chain, tags: Sequence[int], epsilon: float) -> Tensor:
    """The cross-entropy of the smoothed target with the chain: - sum over legal paths of target * log p, () float64."""
    log_p = path_scores(chain, paths_of(chain)) - log_partition(chain)
    return -(path_targets(chain, tags, epsilon) * log_p).sum()


def smoothed_over_all_paths(chain: Chain, tags: Sequence[int], epsilon: float, forbidden: float) -> Tensor:
    """What our form avoids: the target visits forbidden starts, moves and ends too, and counts `forbidden` for each."""
    rows = tag_targets(chain, tags, epsilon)
    expected = torch.zeros((), dtype=torch.float64)
    for path in itertools.product(range(len(rows[0])), repeat=len(tags)):
        score = sum(chain.emissions[i, tag] for i, tag in enumerate(path))
        score = score + (chain.start[path[0]] if chain.legal_start[path[0]] else forbidden)
        score = score + (chain.end[path[-1]] if chain.legal_end[path[-1]] else forbidden)
        for a, b in itertools.pairwise(path):
            score = score + (chain.transitions[a, b] if chain.legal_transitions[a, b] else forbidden)
        expected = expected + math.prod(rows[i][tag] for i, tag in enumerate(path)) * score
    return log_partition(chain) - expected


def class_weight(counts: Sequence[int], of: int, tau: float, cap: float) -> float:
    """The weight of class `of` where class c has counts[c] entities: (N / (C n_c))^tau, at most `cap`."""
    present = [count for count in counts if count]
    return float(min(cap, (sum(present) / (len(present) * counts[of])) ** tau))
