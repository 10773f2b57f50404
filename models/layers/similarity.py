"""Similarities of text vectors, and what the candidates of a row are worth: the arithmetic that objectives share.

All of it is float32 at least, also under autocast: at a temperature of 0.05 the rounding of a bfloat16 cosine is 0.08 of a logit.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor as float32, or as it is where it is float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def cosine_similarities(first: Tensor, second: Tensor) -> Tensor:
    """The cosine of each vector with each other one.

    Args:
        first: (rows, hidden) float.
        second: (candidates, hidden) float.

    Returns:
        (rows, candidates) float32, or float64 for float64 vectors.
    """
    with torch.autocast(first.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
        return normalize(first.to(dtype), dim=-1) @ normalize(second.to(dtype), dim=-1).mT


def paired_cosine_similarities(first: Tensor, second: Tensor) -> Tensor:
    """The cosine of vector i with vector i, (pairs,) from two times (pairs, hidden); see `cosine_similarities`."""
    return (normalize(at_least_float32(first), dim=-1) * normalize(at_least_float32(second), dim=-1)).sum(-1)


def candidate_log_probabilities(scores: Tensor, temperature: float, removed: Tensor | None = None) -> Tensor:
    """How likely each candidate of a row is, -inf for those that are removed.

    Args:
        scores: (rows, candidates) float.
        temperature: that scores are divided by, once they are float32.
        removed: (rows, candidates) bool, True = no candidate of this row; at least one of a row must be left.

    Returns:
        (rows, candidates) float32, or float64 for float64 scores.
    """
    logits = at_least_float32(scores) / temperature
    if removed is not None:
        logits = logits.masked_fill(removed, float("-inf"))
    return logits.log_softmax(-1)


def removed_candidates(
    similarities: Tensor, positives: Tensor | None, false_negatives: Tensor | None, name: str
) -> tuple[Tensor, Tensor | None]:
    """The column of each row's positive, and which candidates are none, among which the own positive never is.

    Args:
        similarities: (rows, candidates) float.
        positives: (rows,) int64, the column of each row's positive; None = row i's is column i.
        false_negatives: (rows, candidates) bool, True = no negative for this row.
        name: of the objective, for errors.

    Returns:
        (rows,) int64, and (rows, candidates) bool; None = all are candidates.

    Raises:
        ValueError: a shape is wrong.
    """
    rows, candidates = similarities.shape
    if positives is None:
        if candidates < rows:
            raise ValueError(f"{name}: candidates must be at least {rows}, one a row, but are {candidates}.")
        positives = torch.arange(rows, device=similarities.device)
    if false_negatives is None:
        return positives, None
    require_shape(false_negatives, (rows, candidates), f"{name}: false_negatives")
    return positives, false_negatives.scatter(1, positives.unsqueeze(1), False)


def require_shape(tensor: Tensor, shape: tuple[int, ...], name: str) -> None:
    """Raise ValueError unless a tensor has a shape."""
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, but has {tuple(tensor.shape)}.")


def candidate_divergence(first: Tensor, second: Tensor) -> Tensor:
    """Half the sum of both Kullback-Leibler divergences of two rows of log-probabilities.

    Args:
        first: (rows, candidates) float, as `candidate_log_probabilities` gives them.
        second: likewise, with the same candidates removed.

    Returns:
        (rows,) float.
    """
    left = first.isfinite() & second.isfinite()
    one, other = torch.where(left, first, 0.0), torch.where(left, second, 0.0)
    # a removed candidate becomes 1 in both, and the difference is 0 in value and gradient
    return 0.5 * ((one.exp() - other.exp()) * (one - other)).sum(-1)
