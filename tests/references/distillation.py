"""The soft loss of a student CRF, by listing every tag path: slow, obvious, float64.

Source: Hinton, Vinyals and Dean 2015, section 2, with the tag of each token as the thing that is classified: temperature^2 times
the sum over tokens and tags of p log(p / q), p and q the marginals of teacher and student with all scores divided by the
temperature.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tests.references.crf import Chain, marginals


def softened(chain: Chain, temperature: float) -> Chain:
    """Return the same sentence with all scores divided by `temperature`."""
    return replace(
        chain,
        emissions=chain.emissions / temperature,
        transitions=chain.transitions / temperature,
        start=chain.start / temperature,
        end=chain.end / temperature,
    )


def soft_loss(teacher: Chain, student: Chain, temperature: float) -> Tensor:
    """Return the loss of one sentence, () float64; the teacher is a constant."""
    taught = marginals(softened(teacher, temperature)).detach()
    own = marginals(softened(student, temperature))
    total = torch.zeros((), dtype=torch.float64)
    for p_row, q_row in zip(taught, own, strict=True):
        for p, q in zip(p_row, q_row, strict=True):
            if p > 0:
                total = total + p * (p / q).log()
    return temperature**2 * total
