"""GlobalPointer: every span of a text is scored for every label, so that nested entities come out as they are.

A pretrained encoder, then for the span from character i to character j and the label a
    s_a(i, j) = (R_i q_i)^T (R_j k_j) / sqrt(d) + w_a^T [q_i; k_i; q_j; k_j],
where q and k are made of the characters' hidden states and R turns them by their position (RoPE), so that the product knows how
long a span is. What scores above 0 is an entity; a span may have several labels.

Source: Su et al. 2022 (arXiv 2208.03054), its efficient variant: q and k are shared by all labels, which is enough to find spans,
and w_a tells their label. (The other variant has q and k a label: with ten labels ten times the weights. It would be another
class.) The loss is the paper's multi-label categorical cross-entropy; rotary positions: Su et al. 2021, equation 34.
Differs: the product is divided by sqrt(d), as in the released code; w_a has a constant; dropout before q and k. The loss of a text
is the sum over its labels; the mean that the released code takes only scales it. Long texts are read in windows: a span belongs
to the window that its middle character, (start + end) // 2, belongs to, in training as in decoding, and a text's loss has one
sum over the spans of all its windows. A span that lies in no window whole cannot be found; it stays gold, and is missed.
Confidence: sigmoid(s / temperature). The loss sets gold above 0 and all else below, and asks for no probabilities: before
calibration they are an order, no more.
Cost: labels x characters^2 scores a window, in training kept for the backward pass; at inference a few rows at a time.
Not with: distillation, and EWC, which needs a distribution over all that could be gold; both are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from hanzoo.data.catalogue import TaggingData
from hanzoo.data.document import Document, Span
from hanzoo.data.movable import Movable
from hanzoo.data.subwords import Subwords
from hanzoo.data.windows import Windows, cut
from hanzoo.models.layers.encoder import Encoder, EncoderConfig, EncoderModel, check_window
from hanzoo.models.layers.lstm import variational_dropout
from hanzoo.models.model import Draw, Tagger, TaggerDescription

NEVER = -1e30  # the score of what is no span: exp of it is 0, and unlike -inf it leaves no NaN in a gradient
SCORES_AT_ONCE = 2**24  # at inference: scores of spans in memory at a time


class GlobalPointerConfig(EncoderConfig):
    """Fields of the recipe's `model` section, beside those of the encoder.

    Attributes:
        dimension: of a query and of a key; even. The paper's is 64.
        dropout_hidden: variational dropout of the encoder's states.
    """

    dimension: int = Field(default=64, ge=2, multiple_of=2)
    dropout_hidden: float = Field(default=0.1, ge=0.0, lt=1.0)


@dataclass(frozen=True, slots=True)
class SpanFeatures:
    """One text.

    Attributes:
        pieces: (length,) int64: one piece a character.
        gold: (entities, 3) int64: start, end, number of the label; all of them, also those that nest.
    """

    pieces: np.ndarray
    gold: np.ndarray

    @property
    def length(self) -> int:
        return len(self.pieces)


@dataclass(frozen=True)
class SpanBatch(Movable):
    """Padded texts.

    Attributes:
        windows: what the encoder reads; a long text has several rows.
        gold: (batch, entities, 3) int64: start, end, number of the label in each text; -1 at padding.
        mask: (batch, seq) bool, True = real, a prefix of each row.
        num_labels: labels that take part: what a text's loss is the sum over.
        item_ids: (batch,) places in the training set; empty at inference.
    """

    windows: Windows
    gold: Tensor
    mask: Tensor
    num_labels: int
    item_ids: tuple[int, ...] = ()

    @property
    def num_units(self) -> Mapping[str, int]:
        return {"spans": self.mask.shape[0]}

    @property
    def unit_lengths(self) -> Mapping[str, Tensor]:
        return {"spans": torch.full((self.mask.shape[0],), self.num_labels, device=self.mask.device)}


def rotary_table(length: int, dimension: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angles of RoPE, each (length, dimension / 2), with the dtype and device of `like`."""
    # float64: at position 500 float32 would have rounded the fastest angle by 3e-5
    rates = 10000.0 ** (-torch.arange(0, dimension, 2, dtype=torch.float64) / dimension)
    angles = torch.arange(length, dtype=torch.float64).unsqueeze(1) * rates
    return angles.cos().to(like), angles.sin().to(like)


def rotated(vectors: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Each pair of neighbouring entries turned by the angle of its position: (..., seq, dimension) as it was."""
    x, y = vectors[..., 0::2], vectors[..., 1::2]
    return torch.stack([x * cosine - y * sine, x * sine + y * cosine], dim=-1).flatten(-2)


@dataclass(frozen=True)
class SpanScores:
    """The parts that scores are put together from; float32 or wider, whatever the precision of the encoder.

    Attributes:
        queries: (rows, seq, dimension), turned by their positions.
        keys: (rows, seq, dimension), turned by their positions, divided by sqrt(dimension).
        starts: (rows, seq, labels): what a span's first character adds.
        ends: (rows, seq, labels): what its last character adds.
    """

    queries: Tensor
    keys: Tensor
    starts: Tensor
    ends: Tensor

    def scores(self, rows: slice = slice(None)) -> Tensor:
        """s_a(i, j) of some rows: (rows, labels, seq, seq); those with i > j mean nothing."""
        with torch.autocast(self.queries.device.type, enabled=False):
            products = self.queries[rows] @ self.keys[rows].transpose(1, 2)
        starts, ends = self.starts[rows].transpose(1, 2), self.ends[rows].transpose(1, 2)
        return products.unsqueeze(1) + starts.unsqueeze(3) + ends.unsqueeze(2)

    def scores_of(self, rows: Tensor, labels: Tensor, first: Tensor, last: Tensor) -> Tensor:
        """The scores of single spans, (spans,); each argument is (spans,) int64, `last` included."""
        products = (self.queries[rows, first] * self.keys[rows, last]).sum(-1)
        return products + self.starts[rows, first, labels] + self.ends[rows, last, labels]

    def slices(self) -> Iterator[slice]:
        """The rows, a few at a time: as many as keep SCORES_AT_ONCE."""
        rows, seq, labels = self.starts.shape
        size = max(1, SCORES_AT_ONCE // (labels * seq * seq))
        return (slice(at, min(at + size, rows)) for at in range(0, rows, size))


class SpanHead(nn.Module):
    """From hidden states to `SpanScores`.

    Args:
        width: of the hidden states.
        num_labels: labels.
        dimension: of queries and keys, even.
    """

    def __init__(self, width: int, num_labels: int, dimension: int) -> None:
        super().__init__()
        self.pair = nn.Linear(width, 2 * dimension)  # q, then k
        self.label = nn.Linear(2 * dimension, 2 * num_labels)  # a label: what its first, what its last character adds

    def forward(self, hidden: Tensor) -> SpanScores:
        """Scores for hidden states (rows, seq, width)."""
        pairs = self.pair(hidden)
        ends = self.label(pairs)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        ends = ends.to(wide).unflatten(-1, (-1, 2))
        queries, keys = pairs.to(wide).chunk(2, dim=-1)
        table = rotary_table(queries.shape[1], queries.shape[2], queries)
        scale = 1.0 / math.sqrt(queries.shape[2])
        return SpanScores(rotated(queries, *table), rotated(keys, *table) * scale, ends[..., 0], ends[..., 1])

    @torch.no_grad()
    def copy(self, previous: SpanHead, name: str) -> dict[str, Tensor]:
        """Take over the weights of a head for the first of these labels.

        Args:
            previous: of the same dimension.
            name: of this module in the model.

        Returns:
            For `Model.fresh`: by parameter name where there were none, bool of the parameter's shape.
        """
        self.pair.load_state_dict(previous.pair.state_dict())
        known = len(previous.label.bias)
        fresh = {}
        for field, parameter in self.label.named_parameters():
            parameter[:known] = previous.label.get_parameter(field)
            if known < len(parameter):
                fresh[f"{name}.label.{field}"] = torch.zeros_like(parameter, dtype=torch.bool)
                fresh[f"{name}.label.{field}"][known:] = True
        return fresh


def own_spans(windows: Windows, rows: slice = slice(None)) -> Tensor:
    """Which spans each row judges: those inside it with their middle, (start + end) // 2, among the characters that are its own.

    With the windows of `hanzoo.data.windows.cut` each span that some window holds is judged by exactly one: the one in which its
    middle is farthest from an edge.

    Returns:
        (rows, seq, seq) bool, [row, first character, last character]; seq is that of the longest row.
    """
    place = torch.arange(windows.pieces.shape[1] - 2, device=windows.pieces.device)
    first, last = place.unsqueeze(1), place
    middle = (first + last + 1) // 2
    starts = windows.starts[rows].view(-1, 1, 1)
    ends, own_starts, own_ends = (
        part[rows].view(-1, 1, 1) - starts for part in (windows.ends, windows.own_starts, windows.own_ends)
    )
    return (first <= last) & (last < ends) & (own_starts <= middle) & (middle < own_ends)


def sum_by_text(values: Tensor, row_texts: Tensor, num_texts: int) -> Tensor:
    """(rows, ...) -> (texts, ...): the sum over the rows of each text."""
    return values.new_zeros(num_texts, *values.shape[1:]).index_add(0, row_texts, values)


def logsumexp_by_text(values: Tensor, row_texts: Tensor, num_texts: int) -> Tensor:
    """(rows, labels) -> (texts, labels): log of the sum of exp over the rows of each text; each text has a row."""
    with torch.no_grad():
        index = row_texts.unsqueeze(1).expand_as(values)
        largest = values.new_full((num_texts, values.shape[1]), NEVER).scatter_reduce(0, index, values, "amax")
    return largest + sum_by_text((values - largest[row_texts]).exp(), row_texts, num_texts).log()


def multi_label_loss(scores: Tensor, own: Tensor, gold: Tensor, row_texts: Tensor, num_texts: int) -> Tensor:
    """log(1 + sum over gold of exp(-s)) + log(1 + sum over the rest of exp(s)), over all spans that a text's rows judge.

    Args:
        scores: (rows, labels, seq, seq) float.
        own: (rows, seq, seq) bool: which spans a row judges.
        gold: (rows, labels, seq, seq) bool; only where `own` is.
        row_texts: (rows,) int64: the text of each row.
        num_texts: texts.

    Returns:
        (texts, labels) float.

    Source: Su et al. 2022, the equation of the loss; Su 2020 (kexue.fm/archives/7359).
    """
    missed = torch.where(gold, -scores, NEVER).flatten(2).logsumexp(2)
    wrong = torch.where(own.unsqueeze(1) & ~gold, scores, NEVER).flatten(2).logsumexp(2)
    zero = scores.new_zeros(())
    missed, wrong = (logsumexp_by_text(part, row_texts, num_texts) for part in (missed, wrong))
    return torch.logaddexp(missed, zero) + torch.logaddexp(wrong, zero)


class GlobalPointer(EncoderModel, Tagger):
    """A pretrained encoder, and scores for all spans.

    Args:
        config: its sizes.
        labels: the labels, in the order of their scores.
        encoder: from characters to hidden states.
        subwords: of the encoder.
        temperature: that confidences are computed at.
    """

    Config: ClassVar[type[GlobalPointerConfig]] = GlobalPointerConfig
    shape_fields: ClassVar[tuple[str, ...]] = ("encoder", "dimension")
    config: GlobalPointerConfig
    _taking_part: Tensor

    def __init__(
        self,
        config: GlobalPointerConfig,
        labels: Sequence[str],
        encoder: Encoder,
        subwords: Subwords,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.subwords = subwords
        self.temperature = temperature
        self.head = SpanHead(encoder.width, len(labels), config.dimension)
        self._labels = tuple(labels)
        self.register_buffer("_taking_part", torch.ones(len(labels), dtype=torch.bool), persistent=False)

    @classmethod
    def build(cls, config: GlobalPointerConfig, data: TaggingData) -> Self:
        encoder, subwords, digest = cls.open_encoder(config)
        model = cls(config, data.labels, encoder, subwords)
        model.inputs = {f"encoder {config.encoder}": digest}
        model.notes = (*model.coverage_notes(document.text for document in data.train), *model._reach_notes(data.train))
        return model

    def _reach_notes(self, documents: Sequence[Document]) -> tuple[str, ...]:
        """What a person should be told of the training entities that lie in no window whole."""
        lost = 0
        for document in documents:
            window = self.window or len(document.text)
            if document.text and len(document.text) > window:
                parts = cut(len(document.text), window, self.config.overlap)
                lost += sum(
                    not any(part.start <= start and end <= part.end for part in parts)
                    for start, end, _ in document.spans
                )
        return (
            (f"{lost} entities of train lie in no window of {self.window} characters: they cannot be learnt",)
            if lost
            else ()
        )

    @property
    def labels(self) -> tuple[str, ...]:
        return self._labels

    def _restrict(self, labels: Sequence[str]) -> None:
        chosen = [label in labels for label in self.labels]
        self._taking_part.copy_(torch.tensor(chosen))

    # Text to batch.

    def featurize(self, item: Document) -> SpanFeatures:
        numbers = {label: number for number, label in enumerate(self.labels)}
        gold = [(start, end, numbers[label]) for start, end, label in item.spans]
        return SpanFeatures(self.subwords.encode(item.text), np.array(gold, dtype=np.int64).reshape(-1, 3))

    def collate(
        self, features: Sequence[SpanFeatures], draw: Draw | None = None, item_ids: Sequence[int] = ()
    ) -> SpanBatch:
        lengths = np.array([item.length for item in features])
        gold = np.full((len(features), max(1, *(len(item.gold) for item in features)), 3), -1, dtype=np.int64)
        for row, item in enumerate(features):
            gold[row, : len(item.gold)] = item.gold
        return SpanBatch(
            self.windows([item.pieces for item in features]),
            torch.from_numpy(gold),
            torch.from_numpy(np.arange(int(lengths.max())) < lengths[:, None]),
            len(self.active_labels),
            tuple(item_ids),
        )

    # Batch to scores.

    def forward(self, batch: SpanBatch) -> SpanScores:
        """What the scores of all spans are put together from."""
        states = self.encoder.states(batch.windows)[:, 1:-1]  # without the places of [CLS] and the last [SEP]
        scores: SpanScores = self.head(variational_dropout(states, self.config.dropout_hidden, self.training))
        return scores

    def losses(self, output: SpanScores, batch: SpanBatch) -> Mapping[str, Tensor]:
        scores = output.scores()
        own, gold = own_spans(batch.windows), self._gold(scores, batch)
        values = multi_label_loss(scores, own, gold, batch.windows.texts, len(batch.mask))
        return {"spans": (values * self._taking_part).sum(1)}

    def _gold(self, scores: Tensor, batch: SpanBatch) -> Tensor:
        """Which of the scores are those of gold spans: bool, the shape of `scores`."""
        starts, ends, labels = batch.gold.unbind(-1)
        there = labels >= 0
        if len(self.active_labels) < len(self.labels) and (there & ~self._taking_part[labels]).any():
            raise ValueError("gold: must have labels that take part, but a span's is illegal now. See restrict().")
        texts = torch.arange(len(labels), device=labels.device).unsqueeze(1)
        rows, first, last, inside = self._places(batch.windows, texts, starts.clamp_min(0), ends.clamp_min(1))
        _, num_labels, seq, _ = scores.shape
        places = ((rows * num_labels + labels) * seq + first) * seq + last
        flat = scores.new_zeros(scores.numel() + 1, dtype=torch.bool)  # one more, for what is nowhere
        flat[torch.where(there & inside, places, scores.numel()).flatten()] = True
        return flat[:-1].view(scores.shape)

    @staticmethod
    def _places(windows: Windows, texts: Tensor, starts: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where spans of texts stand: the row that judges them, first and last place in it, whether it holds them whole."""
        middle = (starts + ends) // 2
        place = windows.places[texts, middle]
        width = windows.pieces.shape[1]
        rows, middle_place = place // width, place % width - 1  # place 0 is [CLS]
        first, last = middle_place - (middle - starts), middle_place + (ends - 1 - middle)
        return rows, first, last, (first >= 0) & (last < (windows.ends - windows.starts)[rows])

    def divergence(self, first: SpanScores, second: SpanScores, batch: SpanBatch) -> Mapping[str, Tensor]:
        """Half the sum of both divergences, each span of each label being a coin that falls with sigmoid(s).

        KL(p || q) + KL(q || p) of two such coins is (p - q) (s_p - s_q). The loss has no distribution of its own; so Su has it.
        """
        one, other = first.scores(), second.scores()
        both = (torch.sigmoid(one) - torch.sigmoid(other)) * (one - other)
        judged = own_spans(batch.windows).unsqueeze(1) & self._taking_part.view(-1, 1, 1)
        per_row = 0.5 * torch.where(judged, both, 0.0).sum((1, 2, 3))
        return {"spans": sum_by_text(per_row, batch.windows.texts, len(batch.mask))}

    # Spans.

    def decode(self, output: SpanScores, batch: SpanBatch) -> list[list[Span]]:
        """What scores above 0, by position; the longer last of those that begin together."""
        found: list[list[Span]] = [[] for _ in range(len(batch.mask))]
        windows = batch.windows
        for rows in output.slices():
            judged = own_spans(windows, rows).unsqueeze(1) & self._taking_part.view(-1, 1, 1)
            row, label, first, last = ((output.scores(rows) > 0) & judged).nonzero().unbind(1)
            row = row + rows.start
            start = first + windows.starts[row]
            columns = (windows.texts[row], start, start + last - first + 1, label)
            for text, begin, end, number in zip(*(column.tolist() for column in columns), strict=True):
                found[text].append(Span(begin, end, self.labels[number]))
        return [sorted(spans) for spans in found]

    def confidences(
        self, output: SpanScores, batch: SpanBatch, spans: Sequence[Sequence[Span]], temperature: float
    ) -> list[list[float]]:
        """sigmoid(s / temperature); 0 for a span that no window holds, or whose label does not take part."""
        places = [(text, *span) for text, row in enumerate(spans) for span in row]
        if not places:
            return [[] for _ in spans]
        numbers = [(text, start, end, self.labels.index(label)) for text, start, end, label in places]
        texts, starts, ends, labels = torch.tensor(numbers, device=batch.mask.device).unbind(1)
        rows, first, last, inside = self._places(batch.windows, texts, starts, ends)
        inside = inside & self._taking_part[labels]
        scores = output.scores_of(rows, labels, first.clamp_min(0), last.clamp_max(output.starts.shape[1] - 1))
        values = iter(torch.where(inside, torch.sigmoid(scores / temperature), 0.0).tolist())
        return [[next(values) for _ in row] for row in spans]

    # Going on, saving.

    @classmethod
    def continue_from(cls, config: GlobalPointerConfig, previous: Self, data: TaggingData) -> Self:
        """See `Model.continue_from`. The encoder's folder is not read: its weights are in `previous`."""
        cls.require_shape(config, previous)
        new_labels = [label for label in data.labels if label not in previous.labels]
        encoder = previous.encoder.copied(config.encoder_dropout)
        check_window(config.window, encoder, "model.window")
        model = cls(config, (*previous.labels, *new_labels), encoder, previous.subwords, previous.temperature)
        model.fresh = model.head.copy(previous.head, "head")
        labels = f"{len(previous.labels)} labels and {len(new_labels)} new ones"
        model.notes = (f"goes on from a trained model: {labels}", *model._reach_notes(data.train))
        return model

    @classmethod
    def from_description(cls, config: GlobalPointerConfig, description: Mapping[str, Any], folder: Path) -> Self:
        saved = TaggerDescription.model_validate(dict(description))
        encoder, subwords = cls.saved_encoder(config, folder)
        return cls(config, saved.labels, encoder, subwords, saved.temperature)
