"""Text matching written down from its equations: one text, one pair, one candidate at a time, float64, plain loops.

Pooling (Reimers and Gurevych 2019, section 3) of a text's states, no padding. MaxSim (Khattab and Zaharia 2020, equation 3):
    score(q, d) = sum over tokens i of q of max over tokens j of d of <q_i, d_j>
InfoNCE (van den Oord et al. 2018, equation 4), cosines s over candidates c of an anchor, p its positive:
    -log(exp(s_p / t) / sum over c of exp(s_c / t))
ArcCon (Zhang et al. 2022, section 3.2) is the same with cos(arccos(s_p) + margin) in the place of s_p; its triplets (section 3.3):
    max(0, cos(h, more masked) - cos(h, less masked) + margin)
CoSENT (Su 2022):
    log(1 + sum over pairs a, b with label(a) < label(b) of exp((s_a - s_b) / t))
Triplet (Schroff et al. 2015, equation 2), distance 1 - s:
    max(0, d(a, p) - d(a, n) + margin)
Sentence-BERT's classifier: softmax of W (u, v, |u - v|) + b.
Distillation (Hinton et al. 2015), both softened: t^2 KL(teacher || student)
MarginMSE (Hofstätter et al. 2020, equation 6): ((s_p - s_n) - (t_p - t_n))^2
R-Drop (Liang et al. 2021, equation 2): (KL(p || q) + KL(q || p)) / 2
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


def number(value: Tensor) -> float:
    """The value, for comparisons only."""
    return float(value.detach())


def mean_pooling(states: Sequence[Tensor]) -> Tensor:
    """The mean of one text's states, (hidden,)."""
    total = torch.zeros_like(states[0])
    for state in states:
        total = total + state
    return total / len(states)


def first_last_pooling(first: Sequence[Tensor], last: Sequence[Tensor]) -> Tensor:
    """The mean over one text's pieces of the mean of its first and last layer's states, (hidden,)."""
    return mean_pooling([(one + other) / 2 for one, other in zip(first, last, strict=True)])


def dot(first: Tensor, second: Tensor) -> Tensor:
    total = zero()
    for one, other in zip(first, second, strict=True):
        total = total + one * other
    return total


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """The cosine of two vectors, () float64."""
    return dot(first, second) / (dot(first, first).sqrt() * dot(second, second).sqrt())


def max_sim(query: Sequence[Tensor], document: Sequence[Tensor], mean: bool = False) -> Tensor:
    """The score of one query and one document, given by the tokens that count, () float64."""
    total = zero()
    for token in query:
        best = dot(token, document[0])
        for other in document[1:]:
            value = dot(token, other)
            if number(value) > number(best):
                best = value
        total = total + best
    return total / len(query) if mean else total


def multiplied_max_sim(query: Sequence[Tensor], document: Sequence[Tensor], real: Sequence[bool]) -> Tensor:
    """What is wrong: similarities of tokens that do not count become 0, and take part."""
    total = zero()
    for token in query:
        total = total + max((dot(token, other) * keep for other, keep in zip(document, real, strict=True)), key=number)
    return total


def info_nce(scores: Sequence[Tensor], positive: int, temperature: float, removed: Sequence[int] = ()) -> Tensor:
    """The loss of one anchor, () float64; what is removed is no candidate, but for the positive."""
    total = zero()
    for place, score in enumerate(scores):
        if place == positive or place not in removed:
            total = total + torch.exp(score / temperature)
    return -torch.log(torch.exp(scores[positive] / temperature) / total)


def arccon(scores: Sequence[Tensor], positive: int, margin: float, temperature: float) -> Tensor:
    """The loss of one text, () float64; angle and margin together must be at most pi."""
    angle = torch.arccos(scores[positive])
    assert number(angle) + margin <= math.pi
    turned = list(scores)
    turned[positive] = torch.cos(angle + margin)
    return info_nce(turned, positive, temperature)


def nested_triplet(less_masked: Tensor, more_masked: Tensor, margin: float) -> Tensor:
    """ArcCSE's loss of one triplet, () float64."""
    value = more_masked - less_masked + margin
    return value if number(value) > 0 else zero()


def cosent(scores: Sequence[Tensor], labels: Sequence[float], temperature: float) -> Tensor:
    """The loss of a batch, () float64, by looking at all pairs of pairs."""
    total = torch.ones((), dtype=torch.float64)
    for a, label in enumerate(labels):
        for b, other in enumerate(labels):
            if label < other:
                total = total + torch.exp((scores[a] - scores[b]) / temperature)
    return torch.log(total)


def triplet(positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """The loss of one triplet given by its two similarities, () float64."""
    value = (1 - positive) - (1 - negative) + margin
    return value if number(value) > 0 else zero()


def softmax(scores: Sequence[Tensor]) -> list[Tensor]:
    """The probabilities of some scores."""
    total = zero()
    for score in scores:
        total = total + torch.exp(score)
    return [torch.exp(score) / total for score in scores]


def pair_logits(weight: Tensor, bias: Tensor, first: Tensor, second: Tensor) -> list[Tensor]:
    """The logits of one pair's labels: weight (classes, 3 hidden), bias (classes,)."""
    features = [*first, *second, *(abs(one - other) for one, other in zip(first, second, strict=True))]
    return [
        sum((w * x for w, x in zip(row, features, strict=True)), start=b) for row, b in zip(weight, bias, strict=True)
    ]


def kl(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """KL(first || second) of two lists of probabilities, () float64."""
    total = zero()
    for p, q in zip(first, second, strict=True):
        total = total + p * torch.log(p / q)
    return total


def half_symmetric_kl(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """(KL(p || q) + KL(q || p)) / 2 of two lists of probabilities, () float64."""
    return (kl(first, second) + kl(second, first)) / 2


def distillation(
    scores: Sequence[Tensor], teacher: Sequence[Tensor], temperature: float, teacher_temperature: float
) -> Tensor:
    """The loss of one query, () float64."""
    taught = softmax([score / teacher_temperature for score in teacher])
    return temperature**2 * kl(taught, softmax([score / temperature for score in scores]))


def margin_mse(positive: Tensor, negative: Tensor, teacher_positive: Tensor, teacher_negative: Tensor) -> Tensor:
    """The loss of one triplet, () float64."""
    return ((positive - negative) - (teacher_positive - teacher_negative)) ** 2
