"""The linear-chain CRF of one sentence, by listing every tag path: slow, obvious, float64.

p(path) = exp(score(path)) / sum over the legal paths of exp(score(path)), with
score(path) = start[path[0]] + sum_i emissions[i, path[i]] + sum_i transitions[path[i - 1], path[i]] + end[path[-1]].

Everything follows from the scores of the listed paths by its definition: no recursion is involved, and autograd through
the list gives the reference gradients. The last section holds textbook recursions in the log domain for sentences that
are too long to list.

Source: Lafferty, McCallum and Pereira 2001, section 3, equation 1; recursions: Rabiner 1989, section III.
Cost: num_tags ** seq paths; meant for num_tags <= 5, seq <= 5.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Chain:
    """The scores of one sentence, and which of its tag paths exist.

    Attributes:
        emissions: (seq, num_tags) float64.
        transitions: (num_tags, num_tags) float64, [from, to].
        start: (num_tags,) float64.
        end: (num_tags,) float64.
        legal_transitions: (num_tags, num_tags) bool, [from, to].
        legal_start: (num_tags,) bool.
        legal_end: (num_tags,) bool.
    """

    emissions: Tensor
    transitions: Tensor
    start: Tensor
    end: Tensor
    legal_transitions: Tensor
    legal_start: Tensor
    legal_end: Tensor


def legal_paths(
    length: int, legal_transitions: Tensor, legal_start: Tensor, legal_end: Tensor
) -> list[tuple[int, ...]]:
    """List all paths of `length` tags that start, move and end as allowed."""
    moves, starts, ends = legal_transitions.tolist(), legal_start.tolist(), legal_end.tolist()
    return [
        path
        for path in itertools.product(range(len(starts)), repeat=length)
        if starts[path[0]] and ends[path[-1]] and all(moves[a][b] for a, b in itertools.pairwise(path))
    ]


def paths_of(chain: Chain) -> list[tuple[int, ...]]:
    """List the legal paths of this sentence."""
    return legal_paths(len(chain.emissions), chain.legal_transitions, chain.legal_start, chain.legal_end)


def path_scores(chain: Chain, paths: Sequence[Sequence[int]]) -> Tensor:
    """Return the score of each path, (paths,) float64, whether legal or not."""
    path = torch.tensor(paths)  # (paths, seq)
    score = chain.start[path[:, 0]] + chain.emissions[0, path[:, 0]]
    for i in range(1, path.shape[1]):
        score = score + chain.transitions[path[:, i - 1], path[:, i]] + chain.emissions[i, path[:, i]]
    return score + chain.end[path[:, -1]]


def log_partition(chain: Chain) -> Tensor:
    """Return the log of the sum of exp(score) over the legal paths, () float64."""
    return path_scores(chain, paths_of(chain)).logsumexp(0)


def log_likelihood(chain: Chain, tags: Sequence[int]) -> Tensor:
    """Return log p(tags), () float64; minus infinity for an illegal path."""
    if tuple(tags) not in paths_of(chain):
        return torch.tensor(float("-inf"), dtype=torch.float64)
    return path_scores(chain, [tags])[0] - log_partition(chain)


def probabilities(chain: Chain) -> Tensor:
    """Return p(path) for each legal path, in the order of `paths_of`, (paths,) float64."""
    return path_scores(chain, paths_of(chain)).softmax(0)


def marginals(chain: Chain) -> Tensor:
    """Return p(tag at i is k), (seq, num_tags) float64."""
    path = torch.tensor(paths_of(chain))
    probability = probabilities(chain)
    seq, num_tags = chain.emissions.shape
    rows = [[(probability * (path[:, i] == k)).sum() for k in range(num_tags)] for i in range(seq)]
    return torch.stack([torch.stack(row) for row in rows])


def pair_marginals(chain: Chain) -> Tensor:
    """Return p(tag at i is j and tag at i + 1 is k), (seq - 1, num_tags, num_tags) float64."""
    path = torch.tensor(paths_of(chain))
    probability = probabilities(chain)
    seq, num_tags = chain.emissions.shape
    pairs = torch.zeros(seq - 1, num_tags, num_tags, dtype=torch.float64)
    for i, j, k in itertools.product(range(seq - 1), range(num_tags), range(num_tags)):
        pairs[i, j, k] = (probability * ((path[:, i] == j) & (path[:, i + 1] == k))).sum()
    return pairs


def n_best(chain: Chain, n: int) -> list[tuple[list[int], float]]:
    """Return the n best legal paths with their scores, best first; fewer where fewer exist."""
    paths = paths_of(chain)
    scores = path_scores(chain, paths).tolist()
    order = sorted(range(len(paths)), key=lambda index: -scores[index])
    return [(list(paths[index]), scores[index]) for index in order[:n]]


def viterbi(chain: Chain) -> tuple[list[int], float]:
    """Return the best legal path and its score."""
    return n_best(chain, 1)[0]


def span_log_posterior(
    chain: Chain, start: int, end: int, tags: Sequence[int], next_forbidden: Sequence[int], temperature: float = 1.0
) -> float:
    """Return log p(tags at start..end-1 are exactly `tags`, and the tag at `end` is none of `next_forbidden`).

    Where the sentence stops at `end` the second condition holds by itself. All scores are divided by `temperature`.
    Minus infinity where no legal path fits.
    """
    paths = paths_of(chain)
    scores = path_scores(chain, paths) / temperature
    fits = torch.tensor(
        [path[start:end] == tuple(tags) and (end == len(path) or path[end] not in next_forbidden) for path in paths]
    )
    if not fits.any():
        return float("-inf")
    return (scores[fits].logsumexp(0) - scores.logsumexp(0)).item()


def divergence(first: Chain, second: Chain) -> Tensor:
    """Return half of KL(first || second) + KL(second || first) over the legal paths, () float64."""
    scores_p, scores_q = path_scores(first, paths_of(first)), path_scores(second, paths_of(second))
    log_p, log_q = scores_p.log_softmax(0), scores_q.log_softmax(0)
    forward = (log_p.exp() * (log_p - log_q)).sum()
    backward = (log_q.exp() * (log_q - log_p)).sum()
    return (forward + backward) / 2


# Recursions for sentences too long to list: log domain, float64, forbidden moves are minus infinity, no gradients.


def _arrays(chain: Chain) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return emissions, transitions, start and end with minus infinity at whatever is forbidden."""
    infinity = float("-inf")
    transitions = chain.transitions.detach().masked_fill(~chain.legal_transitions, infinity)
    start = chain.start.detach().masked_fill(~chain.legal_start, infinity)
    end = chain.end.detach().masked_fill(~chain.legal_end, infinity)
    return chain.emissions.detach().numpy(), transitions.numpy(), start.numpy(), end.numpy()


def log_domain(chain: Chain) -> tuple[float, NDArray[np.float64]]:
    """Return the log partition, and the marginals (seq, num_tags), which are its gradient by the emissions."""
    emissions, transitions, start, end = _arrays(chain)
    alpha, beta = np.empty_like(emissions), np.empty_like(emissions)
    alpha[0] = start + emissions[0]
    for i in range(1, len(emissions)):
        alpha[i] = emissions[i] + np.logaddexp.reduce(alpha[i - 1][:, None] + transitions, axis=0)
    beta[-1] = end
    for i in range(len(emissions) - 2, -1, -1):
        beta[i] = np.logaddexp.reduce(transitions + (emissions[i + 1] + beta[i + 1])[None, :], axis=1)
    partition = float(np.logaddexp.reduce(alpha[-1] + end))
    return partition, np.exp(alpha + beta - partition)


def log_domain_viterbi(chain: Chain) -> tuple[list[int], float]:
    """Return the best legal path and its score."""
    emissions, transitions, start, end = _arrays(chain)
    best = start + emissions[0]
    came_from = []
    for i in range(1, len(emissions)):
        candidates = best[:, None] + transitions
        came_from.append(candidates.argmax(axis=0))
        best = candidates.max(axis=0) + emissions[i]
    path = [int((best + end).argmax())]
    for previous in reversed(came_from):
        path.append(int(previous[path[-1]]))
    return path[::-1], float((best + end).max())
