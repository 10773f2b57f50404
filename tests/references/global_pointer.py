"""Efficient GlobalPointer written down from its equations: one span, one label at a time, float64, plain loops.

Su et al. 2022 (arXiv 2208.03054). For a label a and a span from character i to character j, both included, i <= j:
    q_i = W_q h_i + b_q,  k_i = W_k h_i + b_k                                  shared by all labels
    s_a(i, j) = (R_i q_i)^T (R_j k_j) / sqrt(d) + w_a^T [q_i; k_i; q_j; k_j]   R: rotary positions
The paper has the sum without the square root, its released code has it; each half of w_a has a constant of its own here.
    loss of a label = log(1 + sum over its gold spans of exp(-s)) + log(1 + sum over all other spans of exp(s))
    loss of a text = the sum over its labels
Rotary positions (Su et al. 2021, equation 15): R_m turns each pair (x_2t, x_2t+1) by the angle m * 10000^(-2t / d).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Pairs = Mapping[tuple[int, int], Tensor]  # (first character, last character) -> score


def rotated(vector: Tensor, position: int) -> Tensor:
    """R_m x for one vector (d,)."""
    dimension = len(vector)
    values = []
    for t in range(dimension // 2):
        angle = position * 10000.0 ** (-2 * t / dimension)
        x, y = vector[2 * t], vector[2 * t + 1]
        values += [x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)]
    return torch.stack(values)


def rotation(position: int, dimension: int) -> Tensor:
    """The matrix R_m, (d, d)."""
    return torch.stack([rotated(row, position) for row in torch.eye(dimension, dtype=torch.float64)], dim=1)


def span_score(
    queries: Sequence[Tensor], keys: Sequence[Tensor], i: int, j: int, start: Tensor, end: Tensor, constants: Tensor
) -> Tensor:
    """s_a(i, j) of one label: `start` and `end` are the halves of w_a for [q_i; k_i] and [q_j; k_j], both (2 d,)."""
    dimension = len(queries[i])
    product = (rotation(i, dimension) @ queries[i]) @ (rotation(j, dimension) @ keys[j]) / math.sqrt(dimension)
    at_start = start @ torch.cat([queries[i], keys[i]]) + constants[0]
    at_end = end @ torch.cat([queries[j], keys[j]]) + constants[1]
    return product + at_start + at_end


def text_loss(scores: Sequence[Pairs], gold: Sequence[set[tuple[int, int]]]) -> Tensor:
    """The loss of a text: for each label its scores by span, and which of these spans are gold."""
    total = torch.zeros((), dtype=torch.float64)
    for of_label, spans in zip(scores, gold, strict=True):
        inside = torch.ones((), dtype=torch.float64)
        outside = torch.ones((), dtype=torch.float64)
        for pair, score in of_label.items():
            if pair in spans:
                inside = inside + torch.exp(-score)
            else:
                outside = outside + torch.exp(score)
        total = total + torch.log(inside) + torch.log(outside)
    return total


def divergence(first: Sequence[Pairs], second: Sequence[Pairs]) -> Tensor:
    """Half the sum of both Kullback-Leibler divergences, each span of each label a coin that falls with sigmoid(s)."""
    total = torch.zeros((), dtype=torch.float64)
    for one, other in zip(first, second, strict=True):
        for pair in one:
            p, q = torch.sigmoid(one[pair]), torch.sigmoid(other[pair])
            there = p * torch.log(p / q) + (1 - p) * torch.log((1 - p) / (1 - q))
            back = q * torch.log(q / p) + (1 - q) * torch.log((1 - q) / (1 - p))
            total = total + (there + back) / 2
    return total


def owner(start: int, end: int, windows: Sequence[tuple[int, int]], length: int) -> int | None:
    """The window that judges a span (end excluded): of those that hold it, where it lies farthest from the edges.

    An end of the text is no edge. How far a span lies is how far its middle does, the right one of two. The left one of equally
    good windows. None where no window holds the span.
    """
    middle = (start + end) // 2
    best: tuple[float, int] | None = None
    for number, (first, last) in enumerate(windows):
        if first <= start and end <= last:
            left = math.inf if first == 0 else middle - first
            right = math.inf if last == length else last - 1 - middle
            distance = min(left, right)
            if best is None or distance > best[0]:
                best = (distance, number)
    return None if best is None else best[1]


def all_spans(length: int, allowed: Callable[[int, int], bool] = lambda i, j: True) -> list[tuple[int, int]]:
    """Every (i, j) with i <= j < length that is allowed."""
    return [(i, j) for i in range(length) for j in range(i, length) if allowed(i, j)]
