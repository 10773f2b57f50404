"""R-Drop for a linear-chain CRF, by listing every tag path: slow, obvious, float64.

R-Drop (Liang et al. 2021, equations 1 to 4) passes each sample through the model twice, with two dropout masks, and trains on
    mean of both losses + alpha * (KL(p || q) + KL(q || p)) / 2,
p and q being what the two passes predict. For a CRF they are distributions over whole tag sequences, so each divergence is a sum
over all legal paths. (The paper adds the two losses where this takes their mean: half of everything, alpha as it is here.)
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tests.references.crf import Chain, divergence, log_likelihood


def sentence_loss(first: Chain, second: Chain, tags: Sequence[int], alpha: float) -> Tensor:
    """What one sentence adds to the loss: () float64."""
    plain = -(log_likelihood(first, tags) + log_likelihood(second, tags)) / 2
    return plain + alpha * divergence(first, second)


def batch_loss(first: Sequence[Chain], second: Sequence[Chain], tags: Sequence[Sequence[int]], alpha: float) -> Tensor:
    """The mean over the sentences of a batch, one after the other."""
    total = sum(sentence_loss(p, q, gold, alpha) for p, q, gold in zip(first, second, tags, strict=True))
    assert isinstance(total, Tensor)
    return total / len(tags)
