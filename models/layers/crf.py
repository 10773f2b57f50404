"""Linear-chain conditional random field: a faster, constrained drop-in for `torchcrf.CRF`.

Source: Lafferty, McCallum and Pereira 2001; the forward-backward recursions with a normaliser a step are those of Rabiner 1989,
section V.A. A sequence's score is `start[y_1] + sum_t emissions[t, y_t] + sum_t transitions[y_t-1, y_t] + end[y_n]`, its
probability `exp(score - log_partition)`.

Differs from pytorch-crf 0.7.2:
  * Probabilities scaled at every step instead of a log-sum-exp over (num_tags, num_tags), only over real steps; the gradient is
    written down (node and pair marginals) instead of recorded. On a CPU both are compiled by numba, elsewhere they are torch.
  * Hard constraints: an illegal start, transition or end has probability exactly 0, in training and in decoding, and gradient
    exactly 0. The partition runs over legal sequences only. A gold sequence that is illegal is an error.
  * Some of the tags alone may take part for a while (`restrict`): the distribution over the sequences of those.
  * Marginals, exact n-best, exact samples, divergence of two sequence distributions, span posteriors; scores beside the best path.
  * Always float32 (float64 stays float64), also under autocast. Sums over a sequence are float64.
  * Masks must be prefixes; that is checked.

Numerics: a step multiplies by `exp(transitions - max)` and by `exp(emissions[t] - max)` and divides by the sum. Entries below
1e-30 are set to 0. Whether that can be felt is decided, not hoped: an entry that is lost matters by at most 1e-30 times the
(scaled) backward variable there, so a sentence where that product may pass 1e-12 is done again in the log domain in float64.
float64 emissions always are.

The compiled part is in `crf_kernels.py`.

Cost: time batch * seq * num_tags^2, memory three (real steps, num_tags) arrays for training. The kernels are compiled at
their first use, once a process (seconds). Second derivatives of the likelihood, and third ones of what is made of marginals,
go through a plain recursion in the log domain, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torchcrf
from numpy.typing import NDArray
from torch import Tensor, nn

from hanzoo.models.layers.crf_kernels import (
    aligned,
    log_kernels,
    n_best_kernel,
    padded_width,
    scaled_kernels,
    viterbi_kernel,
)

Backend = Literal["auto", "numba", "torch"]
SpanQuery = tuple[int, int, Sequence[int], Sequence[int]]

_WEAK = -16.0  # finite transitions this far below the largest are nearly lost in exp(): the check is then always made
_TARGET_FELT = 1e-6  # a smaller target moves no gradient by more than itself
_RATIO_FELT = 1e-6  # the curvature's direction is target / marginal: from 1e6 on float32 cancels to more than 1e-4
_FLOOR = -1e30  # stands for -inf where -inf would give NaN gradients: exp(floor - finite) is exactly 0


# ------------------------------------------------------------------------------------------------------------ the layer


class CRF(torchcrf.CRF):  # type: ignore[misc]
    """Linear-chain CRF with hard constraints; parameters, `forward` and `decode` are those of `torchcrf.CRF`.

    Args:
        num_tags: number of tags, at least 1.
        batch_first: layout of what `forward` and `decode` take; all other methods are batch-first always.
        legal_transitions: (num_tags, num_tags) bool [from, to]; None = all.
        legal_start: (num_tags,) bool; None = all.
        legal_end: (num_tags,) bool; None = all.

    Raises:
        ValueError: `num_tags` is below 1, or a constraint has another shape.
    """

    start_transitions: nn.Parameter
    end_transitions: nn.Parameter
    transitions: nn.Parameter
    legal_transitions: Tensor
    legal_start: Tensor
    legal_end: Tensor
    num_tags: int
    batch_first: bool

    def __init__(
        self,
        num_tags: int,
        batch_first: bool = False,
        *,
        legal_transitions: Any = None,
        legal_start: Any = None,
        legal_end: Any = None,
    ) -> None:
        super().__init__(num_tags, batch_first)
        shapes = {
            "legal_transitions": (legal_transitions, (num_tags, num_tags)),
            "legal_start": (legal_start, (num_tags,)),
            "legal_end": (legal_end, (num_tags,)),
        }
        self._scheme: dict[str, Tensor] = {}  # what is legal where all tags take part
        for name, (given, shape) in shapes.items():
            legal = torch.ones(shape, dtype=torch.bool) if given is None else torch.as_tensor(given).bool().clone()
            if tuple(legal.shape) != shape:
                raise ValueError(f"CRF: {name} must have shape {shape}, but has {tuple(legal.shape)}.")
            self._scheme[name] = legal
            # not persistent: the state_dict stays that of torchcrf, constraints come from the tag scheme
            self.register_buffer(name, legal, persistent=False)
        self.restrict(None)

    def restrict(self, allowed: Any) -> None:
        """Let only these tags take part from now on, in the likelihood, in decoding and in all else.

        A sequence that holds another tag is illegal: its probability is exactly 0, and the scores of other tags get gradient
        exactly 0.

        Args:
            allowed: (num_tags,) bool; None = all.

        Raises:
            ValueError: the shape differs, or no tag is left.
        """
        chosen = torch.ones(self.num_tags, dtype=torch.bool) if allowed is None else torch.as_tensor(allowed).bool()
        if tuple(chosen.shape) != (self.num_tags,) or not bool(chosen.any()):
            raise ValueError(f"CRF: allowed must be {self.num_tags} values, one of them True, but is {allowed}.")
        for name, legal in self._scheme.items():
            both = chosen & chosen[:, None] if legal.dim() == 2 else chosen
            setattr(self, name, (legal & both).to(getattr(self, name).device))
        self._constrained = not all(bool(getattr(self, name).all()) for name in self._scheme)

    def forward(self, emissions: Tensor, tags: Tensor, mask: Tensor | None = None, reduction: str = "sum") -> Tensor:
        """Log-likelihood (not negated) as in torchcrf.

        Args:
            emissions: (seq, batch, num_tags) float, or (batch, seq, num_tags) with `batch_first`.
            tags: (seq, batch) int64, or (batch, seq).
            mask: as `tags`, bool or uint8, True = real; a prefix of each sentence. None = all real.
            reduction: "none", "sum", "mean" (over sentences) or "token_mean" (sum over real tokens' number).

        Returns:
            (batch,) for "none", else a scalar; float32, or float64 for float64 emissions.

        Raises:
            ValueError: shapes differ, the mask is no prefix, a gold sequence is illegal, the reduction is unknown.
        """
        if reduction not in ("none", "sum", "mean", "token_mean"):
            raise ValueError(f"CRF: reduction must be none, sum, mean or token_mean, but is {reduction!r}.")
        emissions, mask = self._batch_first(emissions, mask)
        if not self.batch_first and tags.dim() == 2:
            tags = tags.transpose(0, 1)
        values = self.log_likelihood(emissions, tags, mask)
        if reduction == "none":
            return values
        if reduction == "sum":
            return values.sum()
        if reduction == "mean":
            return values.mean()
        return values.sum() / mask.sum()

    def decode(self, emissions: Tensor, mask: Tensor | None = None) -> list[list[int]]:
        """Best legal tags of each sentence, as in torchcrf; arguments as in `forward`.

        Returns:
            One list of tags a sentence, of its own length.

        Raises:
            ValueError: shapes differ, the mask is no prefix, or there is no legal sequence of a sentence's length.
        """
        emissions, mask = self._batch_first(emissions, mask)
        tags, _ = self.viterbi_decode(emissions, mask)
        lengths = mask.sum(1).tolist()
        return [row[:length] for row, length in zip(tags.tolist(), lengths, strict=True)]

    def log_likelihood(self, emissions: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
        """Log-probability of the given tags.

        Args:
            emissions: (batch, seq, num_tags) float.
            tags: (batch, seq) int64; ignored at padding.
            mask: (batch, seq) bool, True = real; a prefix, at least one a row.

        Returns:
            (batch,) float32, or float64 for float64 emissions.

        Raises:
            ValueError: shapes differ, the mask is no prefix, or a gold sequence is illegal (row and position are named).
        """
        emissions, lengths, scores = self._prepare(emissions, mask)
        if tags.shape != mask.shape:
            raise ValueError(f"CRF: tags must have shape {tuple(mask.shape)}, but has {tuple(tags.shape)}.")
        with _no_autocast(emissions):
            return log_likelihood(emissions, *scores, tags.long().contiguous(), lengths)

    def log_partition(self, emissions: Tensor, mask: Tensor) -> Tensor:
        """Log of the sum of exp(score) over all legal sequences; arguments as in `log_likelihood`.

        Returns:
            (batch,) float32, or float64 for float64 emissions; -inf where no sequence of that length is legal.
        """
        emissions, lengths, scores = self._prepare(emissions, mask)
        with _no_autocast(emissions):
            return -log_likelihood(emissions, *scores, None, lengths)

    @torch.no_grad()
    def viterbi_decode(self, emissions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Best legal sequence of each sentence and its score; arguments as in `log_likelihood`.

        Memory: one float a step and tag, for the longest sentence.

        Returns:
            (batch, seq) int64 tags, 0 at padding; (batch,) float scores.

        Raises:
            ValueError: no sequence of a sentence's length is legal.
        """
        emissions, lengths, scores = self._prepare(emissions, mask)
        array = emissions.detach().cpu().contiguous().numpy()
        counts = lengths.cpu().numpy()
        batch, seq, num_tags = array.shape
        width = padded_width(num_tags)
        work = aligned(2 * width + 5, width, dtype=array.dtype, fill=-math.inf)
        matrix, matrix_t, start, end = work[:width], work[width : 2 * width], work[-2], work[-1]
        start[:num_tags], matrix[:num_tags, :num_tags], end[:num_tags] = (x.detach().cpu().numpy() for x in scores)
        matrix_t[:] = matrix.T
        tags = np.zeros((batch, seq), np.int64)
        table = aligned(int(counts.max()), width, dtype=array.dtype)
        row = viterbi_kernel(width, array.dtype.name)(
            array, counts, start, matrix, matrix_t, end, work[2 * width :], table, tags
        )
        if row >= 0:
            raise ValueError(
                f"CRF: row {row} has no legal sequence of length {counts[row]}. Check the constraints, and the "
                "emissions for NaN."
            )
        values = np.zeros(batch)
        log_kernels().gold(array, tags, counts, *(_double(x) for x in scores), values)
        return torch.from_numpy(tags).to(mask.device), torch.from_numpy(values).to(emissions)

    @torch.no_grad()
    def sample(self, emissions: Tensor, mask: Tensor, uniforms: NDArray[np.float64]) -> Tensor:
        """One tag sequence a sentence, drawn exactly from the distribution: forward filtering, backward sampling.

        Source: Scott 2002 (for hidden Markov models). Always float64.

        Args:
            emissions: (batch, seq, num_tags) float.
            mask: (batch, seq) bool, True = real; a prefix, at least one a row.
            uniforms: (batch, seq) in [0, 1): what decides each tag; nothing else is drawn. Those at padding mean nothing.

        Returns:
            (batch, seq) int64, 0 at padding.

        Raises:
            ValueError: the uniforms have another shape, or no sequence of a sentence's length is legal.

        Cost: one forward pass in the log domain and a loop over positions in Python.
        """
        emissions, lengths, scores = self._prepare(emissions, mask)
        if uniforms.shape != tuple(mask.shape):
            raise ValueError(f"CRF: uniforms must have shape {tuple(mask.shape)}, but has {uniforms.shape}.")
        start, matrix, end = (_double(x) for x in scores)
        kernel, kernel_max, _ = _exponential(matrix)
        tags = np.zeros(uniforms.shape, np.int64)
        for row, length in enumerate(lengths.tolist()):
            array = emissions[row, :length].detach().cpu().contiguous().numpy()
            alphas = np.empty((length, self.num_tags))
            total = log_kernels().forward(array, start, matrix, end, kernel, kernel_max, 1.0, alphas)
            if total == -math.inf:
                raise ValueError(f"CRF: row {row} has no legal sequence of length {length}. Check the constraints.")
            following = end  # what each tag here adds by what comes after it, whose tag is drawn already
            for position in range(length - 1, -1, -1):
                logs = alphas[position] + following
                sums = np.cumsum(np.exp(logs - logs.max()))
                drawn = int(np.searchsorted(sums, uniforms[row, position] * sums[-1], side="right"))
                # the product may round up to the sum itself: then it is the last tag that is possible at all
                tag = min(drawn, int(np.searchsorted(sums, sums[-1])))
                tags[row, position] = tag
                following = matrix[:, tag]
        return torch.from_numpy(tags).to(mask.device)

    @torch.no_grad()
    def n_best(self, emissions: Tensor, mask: Tensor, n: int) -> list[list[tuple[list[int], float]]]:
        """The n best legal sequences of each sentence, exact; arguments as in `log_likelihood`.

        Cost: time seq * num_tags^2 * n, memory seq * num_tags * n * 4 bytes.

        Returns:
            For each sentence (tags, score), best first; fewer than n where fewer legal sequences exist.

        Raises:
            ValueError: n is below 1.
        """
        if n < 1:
            raise ValueError(f"CRF: n must be at least 1, but is {n}.")
        emissions, lengths, scores = self._prepare(emissions, mask)
        start, matrix, end = (_double(x) for x in scores)
        kernel = n_best_kernel()
        result = []
        for row, length in enumerate(lengths.tolist()):
            tags = np.empty((n, length), np.int64)
            totals, work = np.empty(n), np.empty((self.num_tags, n))
            pointers = np.empty((length, self.num_tags, n), np.int32)
            found = kernel(_double(emissions[row, :length]), start, matrix, end, work, pointers, tags, totals)
            result.append([(tags[k].tolist(), float(totals[k])) for k in range(found)])
        return result

    def marginals(self, emissions: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
        """Probability of each tag at each position; differentiable. Arguments as in `log_likelihood`.

        Args:
            emissions: (batch, seq, num_tags) float.
            mask: (batch, seq) bool.
            temperature: divides all scores, transitions included; above 0.

        Returns:
            (batch, seq, num_tags) float in [0, 1], summing to 1 at real positions, 0 at padding.
        """
        emissions, lengths, scores = self._prepare(emissions, mask)
        with _no_autocast(emissions):
            start, matrix, end = (x / temperature for x in scores)
            return marginals(emissions / temperature, start, matrix, end, lengths)

    def marginal_divergence(self, emissions: Tensor, targets: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
        """Kullback-Leibler divergence from given distributions over tags to the marginals, summed over positions.

        `sum_t sum_j targets[t, j] * log(targets[t, j] / marginals[t, j])`: what a student of token marginals minimises.

        Args:
            emissions: (batch, seq, num_tags) float.
            targets: (batch, seq, num_tags) float, a distribution at each real position; ignored at padding.
            mask: (batch, seq) bool, True = real; a prefix, at least one a row.
            temperature: divides all scores of the marginals; above 0. `targets` are taken as they are.

        Returns:
            (batch,) float, at least 0 up to rounding; exact gradients to emissions and all parameters. A target on a tag that
            no legal sequence has there costs 690 nats times its probability, and has no gradient.

        Raises:
            ValueError: shapes differ.

        Cost: that of `marginals` with its gradient. Sentences whose marginals are so far below their targets that float32 would
        be felt in the gradient are done again in float64, 40 times slower: many at temperature 1 while a student is sure of
        what its teacher is not, hardly any from 2 on.
        """
        if targets.shape != emissions.shape:
            raise ValueError(f"CRF: targets must have shape {tuple(emissions.shape)}, but has {tuple(targets.shape)}.")
        emissions, lengths, scores = self._prepare(emissions, mask)
        with _no_autocast(emissions):
            emissions = emissions / temperature
            start, matrix, end = (x / temperature for x in scores)
            targets = torch.where(mask.unsqueeze(2), targets.to(emissions.dtype), 0.0)
            found = marginals(emissions, start, matrix, end, lengths)
            result = _relative_entropy(targets, found)
            if emissions.dtype == torch.float64:
                return result
            lost = (targets > _TARGET_FELT) & (found < _RATIO_FELT * targets)
            rows = lost.flatten(1).any(1).nonzero().squeeze(1)
            if len(rows):
                again = marginals(
                    emissions[rows].double(), start.double(), matrix.double(), end.double(), lengths[rows]
                )
                exact = _relative_entropy(targets[rows].double(), again).to(result.dtype)
                result = result.index_put((rows,), exact)
            return result

    def divergence(self, first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
        """Half the sum of both Kullback-Leibler divergences between the sequence distributions of two emissions.

        With shared transitions the partitions cancel: `0.5 * sum_t <marginals(first) - marginals(second), first - second>`.

        Args:
            first: (batch, seq, num_tags) float.
            second: as `first`.
            mask: (batch, seq) bool, True = real; a prefix, at least one a row.

        Returns:
            (batch,) float, at least 0 up to rounding; exact gradients to both emissions and to all parameters.
        """
        if first.shape != second.shape:
            raise ValueError(f"CRF: second must have shape {tuple(first.shape)}, but has {tuple(second.shape)}.")
        first, lengths, scores = self._prepare(first, mask)
        second, _, _ = self._prepare(second, mask)
        with _no_autocast(first):
            both = marginals(torch.cat((first, second)), *scores, torch.cat((lengths, lengths)))
            difference = (both[: len(first)] - both[len(first) :]) * (first - second)
            return 0.5 * torch.where(mask.unsqueeze(2), difference, 0.0).sum((1, 2))

    def label_smoothing(self, emissions: Tensor, tags: Tensor, mask: Tensor, epsilon: float) -> Tensor:
        """What a smoothed target adds to the negative log-likelihood of `tags`: their score less the target's expected score.

        The sum is the exact cross-entropy between a target distribution over tag sequences and this CRF. The target draws each
        tag by itself: the gold one with 1 - epsilon, and with epsilon any tag, all equally likely, that may stand at its place
        (at the first position those that may start, at the last those that may end, elsewhere those that another may precede and
        follow: so none that `restrict` leaves out); and then keeps to legal sequences. Nothing
        forbidden has any mass, so what stands at forbidden entries means nothing. Without constraints this is the closed form
        `sum_t <q_t, emissions_t> + sum_t q_t-1' transitions q_t` with q_t = (1 - epsilon) onehot(tags_t) + epsilon / num_tags.

        Differs from that closed form under constraints, where it would sum over forbidden transitions too: at -1e4 they cost
        hundreds of nats a step, and left out of the sum (counted as 0) the loss has no lower bound: all transitions less a
        constant are the same distribution, at a lower loss.

        Args:
            emissions: (batch, seq, num_tags) float.
            tags: (batch, seq) int64, legal sequences (`log_likelihood` checks them); ignored at padding.
            mask: (batch, seq) bool, True = real; a prefix, at least one a row.
            epsilon: mass that leaves the gold tag, in [0, 1).

        Returns:
            (batch,) float32, or float64 for float64 emissions; exact gradients to the emissions and all parameters.

        Cost: forward and backward variables of the target, seq products (batch, num_tags) x (num_tags, num_tags) each, without
        gradients; the expected score is one more such product over all positions.
        """
        emissions, lengths, _ = self._prepare(emissions, mask)
        dtype = emissions.dtype
        with _no_autocast(emissions):
            seq = int(lengths.max())
            emissions, tags, mask = emissions[:, :seq], torch.where(mask, tags, 0)[:, :seq], mask[:, :seq]
            steps = torch.arange(seq, device=mask.device)
            last = (steps == lengths.unsqueeze(1) - 1).unsqueeze(2)
            first = (steps == 0).view(1, -1, 1)
            real = mask.unsqueeze(2)
            gold = torch.nn.functional.one_hot(tags, self.num_tags).to(dtype) * real
            moves = self.legal_transitions.to(dtype)
            with torch.no_grad():
                entered = torch.where(first, self.legal_start, self.legal_transitions.any(0))
                left = torch.where(last, self.legal_end, self.legal_transitions.any(1))
                possible = (real & entered & left).to(dtype)
                target = (1 - epsilon) * gold + epsilon * possible / possible.sum(2, keepdim=True).clamp_min(1)
                ahead, behind = _target_chain(target, moves, last)
                nodes = ahead * behind
                totals = nodes.sum(2, keepdim=True)
                nodes = torch.where(real, nodes / totals, 0.0)
                # of a pair: ahead[t - 1] x after[t], times the legal moves, over the pairs' total
                after = target * behind
                pairs = torch.einsum("bti,ij,btj->bt", ahead[:, :-1], moves, after[:, 1:]).unsqueeze(2)
                after = torch.where(real[:, 1:], after[:, 1:] / pairs, 0.0)
                excess = gold - nodes
            # what stands at forbidden entries and at padding may be anything, also no number
            scores = (self.start_transitions, self.transitions, self.end_transitions)
            legal = (self.legal_start, self.legal_transitions, self.legal_end)
            start, transitions, end = (torch.where(x, y.to(dtype), 0.0) for x, y in zip(legal, scores, strict=True))
            following = torch.where(mask[:, 1:], transitions[tags[:, :-1], tags[:, 1:]], 0.0)
            expected = (ahead[:, :-1] @ transitions * after).sum(2)  # legal moves alone: the others are 0 here
            value = (excess * torch.where(real, emissions, 0.0)).sum((1, 2), dtype=torch.float64)
            value = value + (following - expected).sum(1, dtype=torch.float64)
            return value.to(dtype) + excess[:, 0] @ start + (excess * last).sum(1) @ end

    @torch.no_grad()
    def span_log_posteriors(
        self,
        emissions: Tensor,
        mask: Tensor,
        spans: Sequence[Sequence[SpanQuery]],
        temperature: float = 1.0,
    ) -> list[list[float]]:
        """Exact log-probability that a span carries exactly these tags and is not continued. Always float64.

        Sums over all legal sequences whose tags at start..end-1 are the given ones and whose tag at `end`, where the sentence
        goes on, is none of `next_forbidden` (for BIO the type's I tag; for BIOES nothing).

        Args:
            emissions: (batch, seq, num_tags) float.
            mask: (batch, seq) bool, True = real; a prefix, at least one a row.
            spans: for each sentence its (start, end, tags, next_forbidden), half-open, end - start tags.
            temperature: divides all scores; above 0.

        Returns:
            For each sentence the log-probabilities of its spans, at most 0; -inf for an illegal one.

        Raises:
            ValueError: the temperature is not above 0, or a span lies outside its sentence or has another number of tags.

        Cost: one forward and one backward pass a sentence that has spans; memory two (seq, num_tags) float64 arrays.
        """
        if not temperature > 0:
            raise ValueError(f"CRF: temperature must be above 0, but is {temperature}.")
        if len(spans) != len(emissions):
            raise ValueError(f"CRF: spans must have {len(emissions)} rows, but has {len(spans)}.")
        emissions, lengths, scores = self._prepare(emissions, mask)
        start, matrix, end = (_double(x) / temperature for x in scores)
        matrix_t = np.ascontiguousarray(matrix.T)
        kernel, kernel_max, _ = _exponential(matrix)
        kernel_t = np.ascontiguousarray(kernel.T)
        kernels = log_kernels()
        results: list[list[float]] = []
        for row, (length, queries) in enumerate(zip(lengths.tolist(), spans, strict=True)):
            for begin, past, tags, _ in queries:
                if not 0 <= begin < past <= length or len(tags) != past - begin:
                    raise ValueError(
                        f"CRF: row {row}: a span must lie in 0..{length} and have one tag a position, but is "
                        f"{begin}..{past} with {len(tags)} tags."
                    )
            if not queries:
                results.append([])
                continue
            array = emissions[row, :length].detach().cpu().contiguous().numpy()
            alphas, betas = np.empty((2, length, self.num_tags))
            total = kernels.forward(array, start, matrix, end, kernel, kernel_max, temperature, alphas)
            kernels.betas(array, end, matrix_t, kernel_t, kernel_max, temperature, betas)
            found = []
            for begin, past, tags, forbidden in queries:
                path = np.asarray(tags, np.int64)
                value = alphas[begin, path[0]] - total + matrix[path[:-1], path[1:]].sum()
                value += array[np.arange(begin + 1, past), path[1:]].sum(dtype=np.float64) / temperature
                if past == length:
                    value += end[path[-1]]
                elif not forbidden:
                    value += betas[past - 1, path[-1]]
                else:
                    tail = matrix[path[-1]] + array[past] / temperature + betas[past]
                    tail[np.asarray(forbidden, np.int64)] = -np.inf
                    value += np.logaddexp.reduce(tail)
                found.append(min(float(value), 0.0))  # rounding may pass 0
            results.append(found)
        return results

    def _batch_first(self, emissions: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        if emissions.dim() != 3:
            raise ValueError(f"CRF: emissions must have 3 dimensions, but has {emissions.dim()}.")
        if mask is None:
            mask = emissions.new_ones(emissions.shape[:2], dtype=torch.bool)
        elif mask.dtype == torch.uint8:  # torchcrf takes it
            mask = mask.bool()
        if not self.batch_first:
            emissions, mask = emissions.transpose(0, 1), mask.transpose(0, 1)
        return emissions, mask

    def _prepare(self, emissions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Check shapes and mask; return emissions in float32 or float64, lengths, scores with -inf where illegal."""
        if emissions.dim() != 3 or emissions.shape[2] != self.num_tags:
            raise ValueError(
                f"CRF: emissions must have shape (batch, seq, {self.num_tags}), but has {tuple(emissions.shape)}."
            )
        if mask.shape != emissions.shape[:2]:
            raise ValueError(f"CRF: mask must have shape {tuple(emissions.shape[:2])}, but has {tuple(mask.shape)}.")
        if mask.dtype != torch.bool:
            raise ValueError(f"CRF: mask must be bool, but is {mask.dtype}. Give True for real positions.")
        if mask.device.type == "cpu":
            lengths = torch.empty(len(mask), dtype=torch.int64)
            row = log_kernels().prefix_lengths(mask.numpy(), lengths.numpy())
        else:
            lengths = mask.sum(1)
            wrong = (mask[:, 1:] & ~mask[:, :-1]).any(1) | ~mask[:, :1].any(1)
            row = int(wrong.nonzero()[0]) if bool(wrong.any()) else -1
        if row >= 0:
            what = "True at first" if not bool(mask[row, :1].any()) else "a prefix (no True after a False)"
            raise ValueError(f"CRF: row {row} of mask must be {what}, but is not. Padding stands at the end.")
        dtype = torch.promote_types(torch.promote_types(emissions.dtype, self.transitions.dtype), torch.float32)
        scores = (self.start_transitions.to(dtype), self.transitions.to(dtype), self.end_transitions.to(dtype))
        if self._constrained:
            start, transitions, end = scores
            scores = (
                torch.where(self.legal_start, start, -math.inf),
                torch.where(self.legal_transitions, transitions, -math.inf),
                torch.where(self.legal_end, end, -math.inf),
            )
        return emissions.to(dtype), lengths, scores


# ------------------------------------------------------------------------- the functions behind it, and their gradients


def _no_autocast(emissions: Tensor) -> Any:
    return torch.autocast(emissions.device.type, enabled=False)


def _double(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().double().cpu().numpy()


def _exponential(logs: NDArray[np.float64]) -> tuple[NDArray[np.float64], float, bool]:
    """exp(logs - max), the max, and whether finite entries are (nearly) lost in it."""
    top = float(logs.max())
    if not math.isfinite(top):
        return np.exp(logs), 0.0, True
    shifted = logs - top
    return np.exp(shifted), top, bool(((shifted < _WEAK) & (logs > -np.inf)).any())


def _relative_entropy(targets: Tensor, found: Tensor) -> Tensor:
    """sum over positions and tags of targets * log(targets / found), (batch,); 0 where a target is 0."""
    # below it, in float32, no target is felt that is not done again; its gradient is 0, not 0 times inf
    smallest = _TARGET_FELT * _RATIO_FELT if found.dtype == torch.float32 else 1e-300
    terms: Tensor = torch.special.xlogy(targets, targets) - targets * found.clamp_min(smallest).log()
    return terms.double().sum((1, 2)).to(found.dtype)


def _illegal(tags: Tensor, row: int, position: int, num_tags: int) -> ValueError:
    tag = int(tags[row, position])
    if not 0 <= tag < num_tags:
        what = f"be at least 0 and below {num_tags}, but is {tag}"
    elif position == 0:
        what = f"be a legal sequence, but holds an illegal start (or, in a sentence of one, end) {tag}"
    else:
        what = f"be a legal sequence, but holds an illegal transition or end: {int(tags[row, position - 1])} -> {tag}"
    return ValueError(f"row {row}, position {position}: tags must {what}. Repair the gold tags before training.")


def _target_chain(target: Tensor, moves: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Forward and backward variables, each summing to 1 a step, of the sequences with these tag weights and legal moves.

    target: (batch, seq, num_tags), 0 at padding; moves: (num_tags, num_tags) 0 or 1; last: (batch, seq, 1) bool.
    """
    ahead, behind = [target[:, 0]], [torch.ones_like(target[:, 0])]
    for t in range(1, target.shape[1]):
        row = (ahead[-1] @ moves) * target[:, t]
        ahead.append(row / row.sum(1, keepdim=True).clamp_min(1e-30))  # 0 at padding
    for t in range(target.shape[1] - 2, -1, -1):
        row = (behind[-1] * target[:, t + 1]) @ moves.T
        row = torch.where(last[:, t], 1.0, row)
        behind.append(row / row.sum(1, keepdim=True).clamp_min(1e-30))
    return torch.stack(ahead, 1), torch.stack(behind[::-1], 1)


class _NumbaState:
    """What the compiled forward pass leaves for the backward pass."""

    def __init__(self, emissions: Tensor, start: Tensor, transitions: Tensor, end: Tensor, lengths: Tensor) -> None:
        self.tensors = (emissions.detach(), start.detach(), transitions.detach(), end.detach())
        self.start, self.matrix, self.end = _double(start), _double(transitions), _double(end)
        self.emissions = emissions.detach().contiguous().numpy()
        self.lengths = lengths.numpy()
        batch, _, num_tags = self.emissions.shape
        self.kernel64, self.kernel_max, weak = _exponential(self.matrix)
        start_kernel, start_max, weak_start = _exponential(self.start)
        end_kernel, end_max, weak_end = _exponential(self.end)
        self.log_partitions = np.empty(batch, np.float64)
        if self.emissions.dtype == np.float64:
            self.retry = np.ones(batch, np.bool_)
        else:
            total = int(self.lengths.sum())
            width = padded_width(num_tags)
            start32, end32 = np.zeros((2, width), np.float32)
            start32[:num_tags], end32[:num_tags] = start_kernel, end_kernel
            kernel, kernel_t = aligned(2, width, width, fill=0.0)
            kernel[:num_tags, :num_tags] = self.kernel64
            kernel_t[:num_tags, :num_tags] = self.kernel64.T
            self.work = aligned(8, width, fill=0.0)
            self.kernels = scaled_kernels(width)
            self.alphas, weights = aligned(2, total, width)
            self.tape = (self.alphas, weights, np.empty(total, np.float32), np.empty(batch, np.bool_))
            self.scores = (start32, kernel, kernel_t, end32)
            tops, always_check = (start_max + end_max, self.kernel_max), weak or weak_start or weak_end
            self.kernels.forward(
                self.emissions, self.lengths, self.scores, tops, always_check, self.work, self.tape, self.log_partitions
            )
            self.retry = self.tape[3]
        for row in np.flatnonzero(self.retry).tolist():
            n = self.lengths[row]
            self.log_partitions[row] = self._log_forward(row, np.empty((n, num_tags)))

    def _log_forward(self, row: int, alphas: NDArray[np.float64]) -> float:
        result: float = log_kernels().forward(
            self.emissions[row], self.start, self.matrix, self.end, self.kernel64, self.kernel_max, 1.0, alphas
        )
        return result

    def gradients(self, tags: Tensor | None, factors: Tensor, only_emissions: bool = False) -> tuple[Tensor, ...]:
        """factors[b] * gradient of (gold score - log partition) of row b, summed over rows for the parameters."""
        num_tags = self.emissions.shape[2]
        gold = np.empty((0, 0), np.int64) if tags is None else tags.numpy()
        weights = factors.detach().to(torch.float64).numpy()
        gradient = np.empty_like(self.emissions)
        pairs = np.zeros((num_tags, num_tags))
        ends = np.zeros((2, num_tags))
        if not self.retry.all():
            outer, factor32 = aligned(*self.alphas.shape), weights.astype(np.float32)
            self.kernels.backward(
                self.lengths, gold, factor32, self.scores, self.work, self.tape, gradient, outer, ends
            )
            if not only_emissions:
                product = torch.from_numpy(self.alphas).T @ torch.from_numpy(outer)
                pairs -= product.numpy()[:num_tags, :num_tags] * self.kernel64
        for row in np.flatnonzero(self.retry).tolist():
            self._log_gradient(row, gold, weights[row], gradient, pairs, ends)
        if tags is not None:
            log_kernels().add_gold(gold, self.lengths, weights, pairs, ends)
        return tuple(torch.from_numpy(x) for x in (gradient, ends[0], pairs, ends[1]))

    def curvature(self, direction: Tensor) -> tuple[Tensor, ...]:
        """Hessian of the log partitions' sum times the direction in the emissions: for emissions, start, transitions, end."""
        num_tags = self.emissions.shape[2]
        along = direction.detach().contiguous()
        product = np.empty_like(self.emissions)
        pairs = np.zeros((num_tags, num_tags))
        ends = np.zeros((2, num_tags))
        if not self.retry.all():
            outer = aligned(3, *self.alphas.shape)
            views = (outer[0], outer[1], outer[2])
            self.kernels.curvature(self.lengths, along.numpy(), self.scores, self.work, self.tape, product, views, ends)
            tangents, pair, pair_tangents = (torch.from_numpy(x) for x in views)
            counts = tangents.T @ pair + torch.from_numpy(self.alphas).T @ pair_tangents
            pairs += counts.numpy()[:num_tags, :num_tags] * self.kernel64
        results = tuple(torch.from_numpy(x) for x in (product, ends[0], pairs, ends[1]))
        rows = torch.from_numpy(np.flatnonzero(self.retry))
        if len(rows):
            _add_log_domain_curvature(results, rows, self.tensors, torch.from_numpy(self.lengths), along)
        return results

    def _log_gradient(self, row: int, gold: Any, factor: float, gradient: Any, pairs: Any, ends: Any) -> None:
        n, num_tags = int(self.lengths[row]), self.emissions.shape[2]
        kernels = log_kernels()
        alphas, betas, nodes = np.empty((3, n, num_tags))
        log_partition = self._log_forward(row, alphas)
        matrix_t, kernel_t = np.ascontiguousarray(self.matrix.T), np.ascontiguousarray(self.kernel64.T)
        emissions = self.emissions[row]
        kernels.betas(emissions, self.end, matrix_t, kernel_t, self.kernel_max, 1.0, betas)
        counts = np.empty((num_tags, num_tags))
        kernels.counts(
            emissions, self.matrix, self.kernel64, self.kernel_max, alphas, betas, log_partition, nodes, counts
        )
        pairs -= factor * counts
        ends[0] -= factor * nodes[0]
        ends[1] -= factor * nodes[-1]
        gradient[row, :n] = -factor * nodes
        gradient[row, n:] = 0.0
        if gold.size:
            gradient[row, np.arange(n), gold[row, :n]] += factor


def _log_domain(
    emissions: Tensor, start: Tensor, transitions: Tensor, end: Tensor, tags: Tensor | None, lengths: Tensor
) -> Tensor:
    """Gold score (0 without tags) less log partition, by a plain recursion that can be differentiated as often as wanted.

    float64 where the device has it. -inf is replaced by a floor so low that its probability is exactly 0.
    """
    dtype = torch.float32 if emissions.device.type == "mps" else torch.float64
    emissions, start, transitions, end = (x.to(dtype).clamp(min=_FLOOR) for x in (emissions, start, transitions, end))
    score = start + emissions[:, 0]
    for t in range(1, emissions.shape[1]):
        following = torch.logsumexp(score.unsqueeze(2) + transitions, 1) + emissions[:, t]
        score = torch.where((lengths > t).unsqueeze(1), following, score)
    result = -torch.logsumexp(score + end, 1)
    if tags is not None:
        steps = torch.arange(emissions.shape[1], device=emissions.device)
        real = steps < lengths.unsqueeze(1)
        tags = torch.where(real, tags, 0)
        zero = emissions.new_zeros(())
        result = result + torch.where(real, emissions.gather(2, tags.unsqueeze(2)).squeeze(2), zero).sum(1)
        result = result + torch.where(real[:, 1:], transitions[tags[:, :-1], tags[:, 1:]], zero).sum(1)
        result = result + start[tags[:, 0]] + end[tags.gather(1, lengths.unsqueeze(1) - 1).squeeze(1)]
    return result


def _add_log_domain_curvature(
    results: tuple[Tensor, ...], rows: Tensor, tensors: tuple[Tensor, ...], lengths: Tensor, direction: Tensor
) -> None:
    """Set these rows of the Hessian product, and add what they give to that of the parameters, through the plain recursion."""
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in (tensors[0][rows], *tensors[1:])]
        value = -_log_domain(inputs[0], inputs[1], inputs[2], inputs[3], None, lengths[rows])
        (nodes,) = torch.autograd.grad(value.sum(), inputs[0], create_graph=True)
        found = torch.autograd.grad(nodes, inputs, direction[rows], allow_unused=True, materialize_grads=True)
    results[0][rows] = found[0]
    for result, extra in zip(results[1:], found[1:], strict=True):
        result += extra


class _LogLikelihood(torch.autograd.Function):
    """Gold score (0 without tags) less log partition, (batch,)."""

    @staticmethod
    def forward(
        ctx: Any,
        emissions: Tensor,
        start: Tensor,
        transitions: Tensor,
        end: Tensor,
        tags: Tensor | None,
        lengths: Tensor,
        backend: str,
    ) -> Tensor:
        ctx.save_for_backward(emissions, start, transitions, end, tags, lengths)
        if backend == "torch":
            ctx.state = _TorchState(emissions, start, transitions, end, lengths)
            result: Tensor = ctx.state.log_likelihood(tags).to(emissions.dtype)
            return result
        ctx.state = state = _NumbaState(emissions, start, transitions, end, lengths)
        scores = np.zeros(len(state.lengths))
        if tags is not None:
            row, position = log_kernels().gold(
                state.emissions, tags.numpy(), state.lengths, state.start, state.matrix, state.end, scores
            )
            if row >= 0:
                raise _illegal(tags, row, position, emissions.shape[2])
        return torch.from_numpy((scores - state.log_partitions).astype(state.emissions.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        emissions, start, transitions, end, tags, lengths = ctx.saved_tensors
        inputs = (emissions, start, transitions, end)
        if torch.is_grad_enabled():  # create_graph: a gradient that can itself be differentiated
            wanted = [x for x, need in zip(inputs, ctx.needs_input_grad, strict=False) if need]
            value = _log_domain(*inputs, tags, lengths).to(emissions.dtype)
            found = iter(
                torch.autograd.grad(
                    value, wanted, grads[0], create_graph=True, allow_unused=True, materialize_grads=True
                )
            )
            return (*(next(found) if need else None for need in ctx.needs_input_grad[:4]), None, None, None)
        with _no_autocast(emissions):
            gradients = ctx.state.gradients(tags, grads[0])
        return (*(g.to(x.dtype) for g, x in zip(gradients, inputs, strict=True)), None, None, None)


class _Marginals(torch.autograd.Function):
    """Node marginals (batch, seq, num_tags); the gradient is a product with the Hessian of the log partition."""

    @staticmethod
    def forward(
        ctx: Any, emissions: Tensor, start: Tensor, transitions: Tensor, end: Tensor, lengths: Tensor, backend: str
    ) -> Tensor:
        ctx.save_for_backward(emissions, start, transitions, end, lengths)
        state = _NumbaState if backend == "numba" else _TorchState
        ctx.state = state(emissions, start, transitions, end, lengths)
        nodes: Tensor = ctx.state.gradients(None, emissions.new_full((len(emissions),), -1.0), only_emissions=True)[0]
        return nodes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, lengths = ctx.saved_tensors
        if torch.is_grad_enabled():
            source, *parameters = inputs
            anew = source if source.requires_grad else source.detach().requires_grad_()
            value = -_log_domain(anew, parameters[0], parameters[1], parameters[2], None, lengths)
            (nodes,) = torch.autograd.grad(value.sum(), anew, create_graph=True)
            wanted = [x for x, need in zip(inputs, ctx.needs_input_grad, strict=False) if need]
            found = iter(
                torch.autograd.grad(
                    nodes, wanted, grads[0], create_graph=True, allow_unused=True, materialize_grads=True
                )
            )
            return (*(next(found) if need else None for need in ctx.needs_input_grad[:4]), None, None)
        with _no_autocast(inputs[0]):
            products = ctx.state.curvature(grads[0])
        return (*(g.to(x.dtype) for g, x in zip(products, inputs, strict=True)), None, None)


class _TorchState:
    """The same scaled recursion in torch, both directions as one batch of two: one matrix product a step. CUDA runs this.

    Everything inside is (seq, batch, ...), sentences by falling length, so that the real ones come first at every step.
    """

    def __init__(self, emissions: Tensor, start: Tensor, transitions: Tensor, end: Tensor, lengths: Tensor) -> None:
        self.inputs = (emissions, start, transitions, end)
        self.lengths = lengths
        batch = len(emissions)
        self.order = torch.argsort(lengths, descending=True, stable=True)
        self.ordered = ordered = lengths[self.order]
        self.seq = seq = int(ordered[0])
        self.active = torch.bincount(lengths, minlength=seq + 1).flip(0).cumsum(0).flip(0)[1:].tolist()
        steps = torch.arange(seq, device=lengths.device).unsqueeze(1)
        self.columns = torch.arange(batch, device=lengths.device)
        self.real = steps < ordered
        self.mirror = (torch.where(self.real, ordered - 1 - steps, steps) * batch + self.columns).flatten()
        e = emissions[self.order, :seq].transpose(0, 1).contiguous()
        e_max = e.amax(2, keepdim=True)
        weights = torch.exp(e - e_max)
        self.weights = torch.stack((weights, self._mirrored(weights)))
        tops = [x.max() for x in (start, transitions, end)]
        first, self.kernel, last = (torch.exp(x - top) for x, top in zip((start, transitions, end), tops, strict=True))
        self.kernels = torch.stack((self.kernel, self.kernel.T))
        self.states = torch.empty_like(self.weights)
        before = torch.empty_like(self.weights)  # without the step's own emission: on side 1 the backward variables
        before[0, 0] = first
        before[1, 0] = last
        self.norms = torch.ones_like(self.weights[..., :1])
        for t, n in enumerate(self.active):
            now, row, norm = self.states[:, t, :n], before[:, t, :n], self.norms[:, t, :n]
            if t > 0:
                torch.bmm(self.states[:, t - 1, :n], self.kernels, out=row)
            torch.mul(row, self.weights[:, t, :n], out=now)
            torch.sum(now, 2, keepdim=True, out=norm)
            now.div_(norm)
        self.alphas = self.states[0]
        self.betas = self._mirrored(before[1])
        self.following = self._mirrored(self.states[1])  # emission times backward variable
        nodes = self.alphas * self.betas
        self.totals = torch.where(self.real, nodes.sum(2), 1.0).unsqueeze(2)
        self.nodes = nodes.div_(self.totals).masked_fill_(~self.real.unsqueeze(2), 0.0)
        ends = self.alphas[ordered - 1, self.columns] @ last
        logs = torch.where(self.real, (self.norms[0].log() + e_max).squeeze(2), 0.0).double().sum(0)
        logs = logs + ends.log() + tops[0] + tops[2] + (ordered - 1) * tops[1]
        smallest = torch.minimum(self.totals, self.norms.amin(0)).squeeze(2)
        smallest = torch.where(self.real, smallest, 1.0).amin(0).minimum(ends)
        harm = ~(torch.isfinite(logs) & (smallest > 1e-12))  # what float32 lost may be felt
        self.clean = ~harm
        self.log_partition = torch.empty_like(logs).index_put_((self.order,), logs)
        self.rows = self.order[harm]
        if len(self.rows):
            with torch.no_grad():
                exact = -_log_domain(emissions[self.rows], start, transitions, end, None, lengths[self.rows])
            exact = torch.where(exact < 0.5 * _FLOOR, -math.inf, exact)  # no legal sequence
            self.log_partition[self.rows] = exact.to(self.log_partition.dtype)

    def log_likelihood(self, tags: Tensor | None) -> Tensor:
        """Score of the tags (0 without) less the log partition, (batch,) float64."""
        if tags is None:
            return -self.log_partition
        emissions, start, transitions, end = self.inputs
        num_tags = emissions.shape[2]
        real = torch.arange(emissions.shape[1], device=emissions.device) < self.lengths.unsqueeze(1)
        outside = real & ((tags < 0) | (tags >= num_tags))
        known = torch.where(real & ~outside, tags, 0)
        steps = torch.empty_like(known, dtype=emissions.dtype)
        steps[:, 0] = start[known[:, 0]]
        steps[:, 1:] = transitions[known[:, :-1], known[:, 1:]]
        final = (self.lengths - 1).unsqueeze(1)
        steps.scatter_add_(1, final, end[known.gather(1, final)])
        wrong = outside | (real & (steps == -math.inf))
        if bool(wrong.any()):
            row, position = wrong.nonzero()[0].tolist()
            raise _illegal(tags, row, position, num_tags)
        steps += emissions.gather(2, known.unsqueeze(2)).squeeze(2)
        return torch.where(real, steps, 0.0).double().sum(1) - self.log_partition

    def gradients(self, tags: Tensor | None, factors: Tensor, only_emissions: bool = False) -> tuple[Tensor, ...]:
        """As `_NumbaState.gradients`."""
        emissions, start, transitions, end = self.inputs
        num_tags = emissions.shape[2]
        factor = torch.where(self.clean, factors.to(emissions.dtype)[self.order], 0.0)
        nodes = torch.where(self.clean.unsqueeze(1), self.nodes, 0.0)
        results = self._placed(nodes * -factor.unsqueeze(1))
        if not only_emissions:
            results[2].sub_(self.kernel * self._counts(self.alphas, self.following, factor))
        if tags is not None:
            gradient, first, pairs, last = results
            weights = factors.to(emissions.dtype)
            real = torch.arange(emissions.shape[1], device=tags.device) < self.lengths.unsqueeze(1)
            tags = torch.where(real, tags, 0)
            gradient.scatter_add_(2, tags.unsqueeze(2), (weights.unsqueeze(1) * real).unsqueeze(2))
            places = tags[:, :-1] * num_tags + tags[:, 1:]
            pairs.view(-1).index_add_(0, places.reshape(-1), (weights.unsqueeze(1) * real[:, 1:]).reshape(-1))
            first.index_add_(0, tags[:, 0], weights)
            last.index_add_(0, tags.gather(1, self.lengths.unsqueeze(1) - 1).squeeze(1), weights)
        if len(self.rows):
            with torch.enable_grad():
                inputs = [x.detach().requires_grad_() for x in (emissions[self.rows], start, transitions, end)]
                value = _log_domain(inputs[0], inputs[1], inputs[2], inputs[3], None, self.lengths[self.rows])
                weights = factors[self.rows].to(value.dtype)
                extra = torch.autograd.grad(value, inputs, weights, allow_unused=True, materialize_grads=True)
            results[0][self.rows] += extra[0]
            for result, addend in zip(results[1:], extra[1:], strict=True):
                result += addend
        return results

    def curvature(self, direction: Tensor) -> tuple[Tensor, ...]:
        """As `_NumbaState.curvature`: both directions again as one batch of two."""
        along = direction[self.order, : self.seq].transpose(0, 1)
        along = torch.where(self.real.unsqueeze(2), along, 0.0)
        tangents = self.states * torch.stack((along, self._mirrored(along)))
        ratios = self.weights / self.norms
        before = torch.zeros_like(tangents)
        for t, n in enumerate(self.active):
            now, row = tangents[:, t, :n], before[:, t, :n]
            if t > 0:
                torch.bmm(tangents[:, t - 1, :n], self.kernels, out=row)
                now.addcmul_(row, ratios[:, t, :n])
            now.addcmul_(self.states[:, t, :n], now.sum(2, keepdim=True), value=-1.0)
        slopes, following = self._mirrored(before[1]), self._mirrored(tangents[1])
        raw = (tangents[0] * self.betas + self.alphas * slopes) / self.totals
        raw = torch.where(self.real.unsqueeze(2) & self.clean.unsqueeze(1), raw, 0.0)
        mean = raw.sum(2, keepdim=True)
        results = self._placed(raw - torch.where(self.clean.unsqueeze(1), self.nodes, 0.0) * mean)
        factor = self.clean.to(along.dtype)
        following[1:] -= mean[:-1] * self.following[1:]
        counts = self._counts(tangents[0], self.following, factor) + self._counts(self.alphas, following, factor)
        results[2].add_(self.kernel * counts)
        if len(self.rows):
            tensors = tuple(x.detach() for x in self.inputs)
            _add_log_domain_curvature(results, self.rows, tensors, self.lengths, direction)
        return results

    def _mirrored(self, values: Tensor) -> Tensor:
        """Reverse each sentence over its own length."""
        return values.flatten(0, 1).index_select(0, self.mirror).view_as(values)

    def _counts(self, left: Tensor, right: Tensor, factor: Tensor) -> Tensor:
        """Sum over neighbouring real positions of left[t - 1] x right[t], times factor over the pair's total."""
        usable = (self.real[1:] & (factor != 0.0)).unsqueeze(2)
        after = torch.where(usable, right[1:] * (factor.unsqueeze(1) / self.totals[:-1]), 0.0)
        ahead = torch.where(usable, left[:-1], 0.0)
        return ahead.flatten(0, 1).T @ after.flatten(0, 1)

    def _placed(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the nodes give, back in the caller's order: emissions, first steps, zeros for the pairs, last steps."""
        gradient = torch.zeros_like(self.inputs[0])
        gradient[self.order, : self.seq] = nodes.transpose(0, 1)
        last = nodes[self.ordered - 1, self.columns]
        return gradient, nodes[0].sum(0), torch.zeros_like(self.kernel), last.sum(0)


def log_likelihood(
    emissions: Tensor,
    start: Tensor,
    transitions: Tensor,
    end: Tensor,
    tags: Tensor | None,
    lengths: Tensor,
    backend: Backend = "auto",
) -> Tensor:
    """Score of the tags less the log partition; without tags the negative log partition.

    Args:
        emissions: (batch, seq, num_tags) float32 or float64.
        start: (num_tags,) of the same dtype; -inf = illegal. So are `transitions` (num_tags, num_tags) [from, to] and
            `end` (num_tags,).
        transitions: see `start`.
        end: see `start`.
        tags: (batch, seq) int64; what stands at padding is ignored.
        lengths: (batch,) int64, at least 1.
        backend: "numba" (compiled, CPU only), "torch", or "auto": numba on a CPU.

    Returns:
        (batch,) float of the dtype of `emissions`.

    Raises:
        ValueError: a sequence of tags is illegal.
    """
    if backend == "auto":
        backend = "numba" if emissions.device.type == "cpu" else "torch"
    value: Tensor = _LogLikelihood.apply(emissions, start, transitions, end, tags, lengths, backend)  # type: ignore[no-untyped-call]
    return value


def marginals(
    emissions: Tensor, start: Tensor, transitions: Tensor, end: Tensor, lengths: Tensor, backend: Backend = "auto"
) -> Tensor:
    """Probability of each tag at each position; arguments as in `log_likelihood`.

    Returns:
        (batch, seq, num_tags) float of the dtype of `emissions`; 0 at padding.
    """
    if backend == "auto":
        backend = "numba" if emissions.device.type == "cpu" else "torch"
    nodes: Tensor = _Marginals.apply(emissions, start, transitions, end, lengths, backend)  # type: ignore[no-untyped-call]
    return nodes
