"""The plainest head of a tagger: each character's tag is drawn by itself, from a softmax over its emissions.

Source: Devlin et al. 2019, section 5.3 (BERT for CoNLL-2003, without a CRF).
Differs: each character has one piece, so none is left out of the loss. The tags that it chooses need not be a legal sequence;
spans are then those that the strict score counts (`TagSet.decode`), and `tag_sequences` shows the rest.
Cost: nothing beside the emissions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hanzoo.data.schemes import TagSet
from hanzoo.models.layers.crf import SpanQuery
from hanzoo.models.layers.crf_tagger import TagSequenceTagger

_FLOOR = -1e30  # stands for -inf, which would give NaN in 0 * (-inf - -inf)


class IndependentTags(nn.Module):
    """The distribution over tag sequences in which tags do not depend on one another; the methods are those of `CRF`.

    It has no parameters: a `CRF` without constraints whose scores are all 0 is the same distribution.

    Args:
        num_tags: number of tags, at least 1.
    """

    allowed: Tensor

    def __init__(self, num_tags: int) -> None:
        super().__init__()
        self.register_buffer("allowed", torch.ones(num_tags, dtype=torch.bool), persistent=False)
        self._restricted = False

    def restrict(self, allowed: Any) -> None:
        """See `CRF.restrict`."""
        chosen = torch.ones_like(self.allowed) if allowed is None else torch.as_tensor(allowed).bool()
        if chosen.shape != self.allowed.shape or not bool(chosen.any()):
            raise ValueError(
                f"softmax: allowed must be {len(self.allowed)} values, one of them True, but is {allowed}."
            )
        self.allowed.copy_(chosen)
        self._restricted = not bool(chosen.all())

    def _log_probabilities(self, emissions: Tensor, temperature: float = 1.0) -> Tensor:
        """(batch, seq, num_tags) float32, or float64 for float64 emissions."""
        scores = emissions.to(torch.promote_types(emissions.dtype, torch.float32)) / temperature
        return torch.where(self.allowed, scores, _FLOOR).log_softmax(-1)

    def log_likelihood(self, emissions: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
        """See `CRF.log_likelihood`. Raises ValueError where a tag takes no part."""
        if self._restricted and bool((~self.allowed[tags] & mask).any()):
            raise ValueError("softmax: tags must be among those that take part, but are illegal. Check the labels.")
        chosen = self._log_probabilities(emissions).gather(2, tags.unsqueeze(2)).squeeze(2)
        return (chosen * mask).sum(1)

    def label_smoothing(self, emissions: Tensor, tags: Tensor, mask: Tensor, epsilon: float) -> Tensor:
        """See `CRF.label_smoothing`: epsilon goes to all tags that take part, evenly."""
        logs = self._log_probabilities(emissions)
        gold = logs.gather(2, tags.unsqueeze(2)).squeeze(2)
        mean = torch.where(self.allowed, logs, 0.0).sum(2) / self.allowed.sum()
        return epsilon * ((gold - mean) * mask).sum(1)

    def divergence(self, first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
        """See `CRF.divergence`."""
        one, other = self._log_probabilities(first), self._log_probabilities(second)
        return 0.5 * (((one.exp() - other.exp()) * (one - other)).sum(2) * mask).sum(1)

    def marginals(self, emissions: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
        """See `CRF.marginals`."""
        return self._log_probabilities(emissions, temperature).exp() * mask.unsqueeze(2)

    def marginal_divergence(self, emissions: Tensor, targets: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
        """See `CRF.marginal_divergence`."""
        logs = self._log_probabilities(emissions, temperature)
        targets = targets.to(logs.dtype)
        divergences: Tensor = (torch.special.xlogy(targets, targets) - targets * logs).sum(2)
        return (divergences * mask).sum(1)

    @torch.no_grad()
    def sample(self, emissions: Tensor, mask: Tensor, uniforms: NDArray[np.float64]) -> Tensor:
        """See `CRF.sample`."""
        sums = self._log_probabilities(emissions.double()).exp().cumsum(2)
        drawn = torch.from_numpy(uniforms).to(sums.device).unsqueeze(2) * sums[..., -1:]
        tags = (sums <= drawn).sum(2)
        # the product may round up to the sum itself: then it is the last tag that is possible at all
        last = (sums < sums[..., -1:]).sum(2)
        chosen: Tensor = torch.minimum(tags, last) * mask
        return chosen

    @torch.no_grad()
    def viterbi_decode(self, emissions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest tag of each character, and the log-likelihood of all; see `CRF.viterbi_decode`."""
        logs, tags = self._log_probabilities(emissions).max(2)
        return tags * mask, (logs * mask).sum(1)

    @torch.no_grad()
    def span_log_posteriors(
        self, emissions: Tensor, mask: Tensor, spans: Sequence[Sequence[SpanQuery]], temperature: float = 1.0
    ) -> list[list[float]]:
        """See `CRF.span_log_posteriors`: here a sum over the characters."""
        found: list[list[float]] = []
        for row, length, wanted in zip(emissions, mask.sum(1).tolist(), spans, strict=True):
            logs = self._log_probabilities(row[None, :length].double(), temperature)[0].cpu().numpy()
            values = []
            for start, end, tags, forbidden in wanted:
                value = float(logs[np.arange(start, end), list(tags)].sum())
                if end < length and len(forbidden):
                    value += math.log1p(-min(float(np.exp(logs[end, list(forbidden)]).sum()), 1.0 - 1e-300))
                values.append(value)
            found.append(values)
        return found


class SoftmaxTagger(TagSequenceTagger):
    """With a softmax a character; nothing holds the tags to a legal sequence."""

    part: ClassVar[str] = "softmax"

    softmax: IndependentTags

    @staticmethod
    def tag_sequences_of(tag_set: TagSet) -> IndependentTags:
        return IndependentTags(len(tag_set.tags))
