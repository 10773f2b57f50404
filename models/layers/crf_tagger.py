"""What every tagger with one tag a character shares: from hidden states to losses and spans, and the fields of its head.

A model is a subclass that embeds and encodes: it makes its head by `make_head`, ends its `forward` with `emissions`, and its batch
has `tags` and `mask`. Label smoothing, class weights and multi-sample dropout are then there. What a head is, is a distribution
over tag sequences: here a CRF (`CRFTagger`), in `softmax_tagger.py` one tag independent of the other.

Sources: label smoothing, Szegedy et al. 2016, section 7 (for sequences: `CRF.label_smoothing`); multi-sample dropout, Inoue 2019:
the mean of the losses under several masks of one encoder output, not the loss of mean scores.
Differs: class weights are of sentences. A weight on single tags inside a CRF would be no likelihood any more.
Cost: of a step of Weibo's recipe (one thread, benchmarks/results/tricks.json) label smoothing 12 %, five masks 17 %: as many
recursions of the CRF as there are masks, the encoder runs once. Class weights nothing. None of them changes inference.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Protocol, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from hanzoo.data.document import Document, Span
from hanzoo.data.schemes import TagSet, flatten, split_tag
from hanzoo.models.layers.crf import CRF, SpanQuery
from hanzoo.models.layers.lstm import variational_dropout
from hanzoo.models.model import Settings, Tagger, TargetForm


class CRFHeadConfig(Settings):
    """Fields of the recipe's `model` section that every tagger with one tag a character has.

    Attributes:
        tag_scheme: of the output layer; the data's own scheme does not matter.
        label_smoothing: probability that leaves the gold tag at each position, for the legal sequences around; 0 = hard targets.
        class_weights: exponent tau of a class's weight (N / (C n_c))^tau, n_c of N entities of C classes in train; 0 = all 1. With
            train.oversample, which raises rare classes too, halve it.
        class_weight_cap: a class's weight at most.
        class_weight_of: a sentence's weight is the mean, or the largest, of those of the classes in its gold, each class once; 1
            without entities.
        multi_sample_dropout: masks before the emissions; the loss is the mean over them; 0 = the model's one usual mask.
        multi_sample_rate: of these masks, in place of the usual rate.
    """

    tag_scheme: Literal["BIO", "BIOES"] = "BIOES"
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    class_weights: float = Field(default=0.0, ge=0.0)
    class_weight_cap: float = Field(default=10.0, ge=1.0)
    class_weight_of: Literal["mean", "max"] = "mean"
    multi_sample_dropout: int = Field(default=0, ge=0)
    multi_sample_rate: float = Field(default=0.5, ge=0.0, lt=1.0)


class CRFBatch(Protocol):
    """What the head reads of a batch, which is a dataclass.

    Attributes:
        tags: (batch, seq) int64, a tag's number also at padding.
        mask: (batch, seq) bool, True = real, a prefix of each row.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def tags(self) -> Tensor: ...

    @property
    def mask(self) -> Tensor: ...


AnyBatch = TypeVar("AnyBatch", bound=CRFBatch)


def class_weights(documents: Iterable[Document], labels: Sequence[str], tau: float, cap: float) -> Tensor:
    """The weight of each class, (labels,) float32: min(cap, (N / (C n_c))^tau).

    N entities, C classes that occur, n_c entities of class c, as a flat tagger sees them (of nested ones the longer). A class that
    does not occur has weight 1.
    """
    counts = Counter(span.label for document in documents for span in flatten(document.spans)[0])
    total, occurring = sum(counts.values()), len(counts)
    weights = [
        min(cap, (total / (occurring * counts[label])) ** tau) if counts[label] else 1.0  # labels may be of dev alone
        for label in labels
    ]
    return torch.tensor(weights, dtype=torch.float32)


class TagSequences(Protocol):
    """A distribution over the tag sequences of a text, given emissions: what `CRF` says of each of these."""

    def restrict(self, allowed: Any) -> None: ...

    def log_likelihood(self, emissions: Tensor, tags: Tensor, mask: Tensor) -> Tensor: ...

    def label_smoothing(self, emissions: Tensor, tags: Tensor, mask: Tensor, epsilon: float) -> Tensor: ...

    def divergence(self, first: Tensor, second: Tensor, mask: Tensor) -> Tensor: ...

    def marginals(self, emissions: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor: ...

    def marginal_divergence(
        self, emissions: Tensor, targets: Tensor, mask: Tensor, temperature: float = 1.0
    ) -> Tensor: ...

    def sample(self, emissions: Tensor, mask: Tensor, uniforms: NDArray[np.float64]) -> Tensor: ...

    def viterbi_decode(self, emissions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]: ...

    def span_log_posteriors(
        self, emissions: Tensor, mask: Tensor, spans: Sequence[Sequence[SpanQuery]], temperature: float = 1.0
    ) -> list[list[float]]: ...


class TagSequenceTagger(Tagger):
    """Hidden states, dropout, a linear layer, a distribution over tag sequences: where the one part of the loss and the spans come
    from.

    Attributes:
        part: the name of the part of the loss, and of the module that is the distribution.
        tag_set: labels and scheme.
        emission: from hidden states to a score a tag.
    """

    part: ClassVar[str]

    config: CRFHeadConfig
    tag_set: TagSet
    emission: nn.Linear
    _tag_labels: Tensor
    _label_weights: Tensor

    @staticmethod
    @abstractmethod
    def tag_sequences_of(tag_set: TagSet) -> nn.Module:
        """The distribution over the tag sequences of this set."""

    @property
    def distribution(self) -> TagSequences:
        """The module `part`."""
        return cast("TagSequences", getattr(self, self.part))

    def make_head(self, width: int, tag_set: TagSet) -> None:
        """Make `emission` and what is on it for hidden states of this width; called where the module's order of draws wants it."""
        self.tag_set = tag_set
        self.emission = nn.Linear(width, len(tag_set.tags))
        self.add_module(self.part, self.tag_sequences_of(tag_set))
        # not persistent: inference needs neither, and training makes the weights anew from train
        tag_labels = torch.tensor([0, *(1 + tag_set.labels.index(split_tag(tag)[1]) for tag in tag_set.tags[1:])])
        self.register_buffer("_tag_labels", tag_labels, persistent=False)
        self.register_buffer("_label_weights", torch.ones(len(tag_set.labels)), persistent=False)

    def weigh_classes(self, documents: Iterable[Document]) -> None:
        """Take the class weights from these training documents, where the config wants some; called by `build`."""
        if self.config.class_weights:
            self._label_weights.copy_(
                class_weights(documents, self.tag_set.labels, self.config.class_weights, self.config.class_weight_cap)
            )

    @torch.no_grad()
    def copy_head(self, previous: TagSequenceTagger) -> dict[str, Tensor]:
        """Take over the emissions and scores of the tags that `previous` has; the scheme must be the same.

        Returns:
            For `Model.fresh`: by parameter name where there were none, bool of the parameter's shape.
        """
        places = torch.tensor([self.tag_set.tags.index(tag) for tag in previous.tag_set.tags])
        fresh = {}
        for module, name in ((self.emission, "emission"), (self.get_submodule(self.part), self.part)):
            given = previous.get_submodule(name).state_dict()
            for field, parameter in module.named_parameters():
                is_matrix = field == "transitions"  # from and to are both tags
                where = (places.unsqueeze(1), places.unsqueeze(0)) if is_matrix else (places,)
                parameter[where] = given[field]
                missing = torch.ones_like(parameter, dtype=torch.bool)
                missing[where] = False
                if missing.any():
                    fresh[f"{name}.{field}"] = missing
        return fresh

    @property
    def labels(self) -> tuple[str, ...]:
        return self.tag_set.labels

    def _restrict(self, labels: Sequence[str]) -> None:
        self.distribution.restrict(self.tag_set.tags_of(labels))

    def emissions(self, hidden: Tensor, dropout: float) -> Tensor:
        """Scores of the tags.

        Args:
            hidden: (batch, seq, width) float.
            dropout: rate of the usual variational dropout.

        Returns:
            (batch, seq, num_tags) float; in training with multi-sample dropout (masks, batch, seq, num_tags).
        """
        masks = self.config.multi_sample_dropout
        if not (self.training and masks):
            once: Tensor = self.emission(variational_dropout(hidden, dropout, self.training))
            return once
        rate = self.config.multi_sample_rate
        return torch.stack([self.emission(variational_dropout(hidden, rate, True)) for _ in range(masks)])

    # Losses.

    def losses(self, output: Tensor, batch: CRFBatch) -> Mapping[str, Tensor]:
        return {self.part: self._mean_over_masks(self._negative_log_likelihood, output, batch)}

    def smoothing(self, output: Tensor, batch: CRFBatch) -> Mapping[str, Tensor]:
        if not self.config.label_smoothing:
            return {}
        return {self.part: self._mean_over_masks(self._smoothing, output, batch)}

    def unit_weights(self, batch: CRFBatch) -> Mapping[str, Tensor] | None:
        if not self.config.class_weights:
            return None
        labels = torch.where(batch.mask, self._tag_labels[batch.tags], 0)
        present = self._label_weights.new_zeros(len(labels), 1 + len(self._label_weights))
        present = present.scatter(1, labels, 1.0)[:, 1:]  # 0 stands for no label
        if self.config.class_weight_of == "mean":
            weights = (present * self._label_weights).sum(1) / present.sum(1).clamp_min(1.0)
        else:
            weights = (present * self._label_weights).amax(1)
        return {self.part: torch.where(present.any(1), weights, 1.0)}

    def _negative_log_likelihood(self, emissions: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
        return -self.distribution.log_likelihood(emissions, tags, mask)

    def _smoothing(self, emissions: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
        return self.distribution.label_smoothing(emissions, tags, mask, self.config.label_smoothing)

    @staticmethod
    def _mean_over_masks(loss: Callable[[Tensor, Tensor, Tensor], Tensor], output: Tensor, batch: CRFBatch) -> Tensor:
        """The loss (batch,) of each sentence; with several dropout masks the mean of its losses under them."""
        if output.dim() == 3:
            return loss(output, batch.tags, batch.mask)
        masks = len(output)
        values = loss(output.flatten(0, 1), batch.tags.repeat(masks, 1), batch.mask.repeat(masks, 1))
        return values.view(masks, -1).mean(0)

    def sample_targets(self, output: Tensor, batch: AnyBatch, draw: np.random.Generator) -> AnyBatch:
        return replace(batch, tags=self.distribution.sample(output, batch.mask, draw.random(tuple(batch.mask.shape))))

    def divergence(self, first: Tensor, second: Tensor, batch: CRFBatch) -> Mapping[str, Tensor]:
        return {self.part: self.distribution.divergence(first, second, batch.mask)}

    # Distillation.

    def target_form(self) -> TargetForm:
        return TargetForm("token marginals", tuple(self.tag_set.tags))

    def soft_targets(self, output: Tensor, batch: CRFBatch, temperature: float) -> list[Tensor]:
        """Marginals with all scores divided by `temperature`."""
        marginals = self.distribution.marginals(output, batch.mask, temperature)
        return [row[:length] for row, length in zip(marginals, batch.mask.sum(dim=1).tolist(), strict=True)]

    def soft_losses(
        self, output: Tensor, targets: Sequence[Tensor], batch: CRFBatch, temperature: float
    ) -> Mapping[str, Tensor]:
        """As the contract says; with several dropout masks of the mean of their emissions, in one recursion."""
        emissions = output if output.dim() == 3 else output.mean(0)
        padded = nn.utils.rnn.pad_sequence(list(targets), batch_first=True)
        divergence = self.distribution.marginal_divergence(emissions, padded, batch.mask, temperature)
        return {self.part: temperature**2 * divergence}

    # Spans.

    def decode(self, output: Tensor, batch: CRFBatch) -> list[list[Span]]:
        return [self.tag_set.decode(path) for path in self.tag_sequences(output, batch)]

    def tag_sequences(self, output: Tensor, batch: CRFBatch) -> list[np.ndarray]:
        paths, _ = self.distribution.viterbi_decode(output, batch.mask)
        lengths = batch.mask.sum(dim=1).tolist()
        return [path[:length] for path, length in zip(paths.cpu().numpy(), lengths, strict=True)]

    def confidences(
        self, output: Tensor, batch: CRFBatch, spans: Sequence[Sequence[Span]], temperature: float
    ) -> list[list[float]]:
        """Posterior of exactly this span and type with all scores divided by `temperature`."""
        wanted = [[(span.start, span.end, *self.tag_set.span_tags(span)) for span in row] for row in spans]
        logarithms = self.distribution.span_log_posteriors(output, batch.mask, wanted, temperature)
        return [[float(np.exp(min(value, 0.0))) for value in row] for row in logarithms]


class CRFTagger(TagSequenceTagger):
    """With a CRF, which holds the scheme's constraints.

    Attributes:
        crf: over the emissions.
    """

    part: ClassVar[str] = "crf"

    crf: CRF

    @staticmethod
    def tag_sequences_of(tag_set: TagSet) -> CRF:
        return CRF(
            len(tag_set.tags),
            batch_first=True,
            legal_transitions=tag_set.legal_transitions,
            legal_start=tag_set.legal_start,
            legal_end=tag_set.legal_end,
        )
