"""Whole texts through a pretrained encoder, as its own tokenizer cuts them: what every matcher reads.

A batch's texts are rows, whatever they are to each other; short and long ones (questions, articles) are read in passes of
their own. A batch that is too large for the memory is read a few rows at a time, and each part is read again on the way back
(gradient checkpointing; Chen et al. 2016): the gradient is that of the whole batch, in which all rows are each other's negatives,
and the memory that of a part.

Source: GradCache, Gao et al. 2021, for what it is good for.
Differs: there the vectors are cached and the loss's gradient is carried over by hand; here the graph does it, so that attacks,
autocast and ranks need no second path. The piece embeddings are looked up once, outside of the parts: an attack moves their output
once a pass.
Cost: with parts one more forward pass of the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from hanzoo.data.movable import Movable
from hanzoo.data.windows import rounded
from hanzoo.data.word_pieces import WordPieces
from hanzoo.errors import DataError
from hanzoo.models.layers.encoder import Encoder, PretrainedConfig, PretrainedModel
from hanzoo.models.layers.pooling import cls_pooling, first_last_pooling, mean_pooling
from hanzoo.models.model import AttackPoint

Pooling = Literal["mean", "cls", "pooler", "first_last"]
TEXTS_AT_ONCE = 8_192  # that are cut into pieces to be counted
WORTH_A_PASS = 0.75  # of what one pass would read, padding included: several must read less
Head = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


class TextEncoderConfig(PretrainedConfig):
    """Fields of the recipe's `model` section for models that read whole texts.

    Attributes:
        max_pieces: pieces of a text that are read, [CLS] and [SEP] included; None = as many as the encoder can (BERT: 512). What
            a longer text has behind them is not read, and that is said.
        rows_at_once: texts that the encoder reads at once in training, the others of a batch after them; None = all. Fewer need
            less memory and one more pass, and change no gradient.
    """

    max_pieces: int | None = Field(default=None, ge=3)
    rows_at_once: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class TextRows(Movable):
    """Texts as rows.

    Attributes:
        pieces: (rows, seq) int64, [CLS] pieces [SEP] each.
        mask: (rows, seq) bool, True = real, a prefix of each row.
        lengths: (rows,) the columns of each row that are more than padding.
    """

    pieces: Tensor
    mask: Tensor
    lengths: tuple[int, ...]

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        """What the encoder reads beside pieces and mask, (rows, seq) each, as transformers names it."""
        return {}

    def part(self, rows: slice) -> Self:
        """Some of the rows."""
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))


def in_parts(encoder: Encoder, rows: TextRows, head: Head, rows_at_once: int | None) -> Tensor:
    """What `head` makes of rows; those of like length are read together, so that less padding is.

    Args:
        encoder: whose piece embeddings are looked up.
        rows: of the batch.
        head: from a mask and the encoder's input, as `Encoder.read` takes them, to a tensor with a line a row: (rows,),
            (rows, width) or, piece by piece, (rows, seq, width).
        rows_at_once: in training, see `TextEncoderConfig`; without gradients as many as `Encoder.pieces_a_pass` holds.
    """
    learns = torch.is_grad_enabled()
    again = learns and rows_at_once is not None and len(rows.mask) > rows_at_once
    groups = of_like_length(rows.lengths, rows_at_once) if learns else of_size(rows.lengths, encoder.pieces_a_pass)
    seq = rows.mask.shape[1]
    # GPUs want few shapes; a processor takes any, and pays for each column
    exact = not learns or rows.mask.device.type == "cpu"
    longest = [max(rows.lengths[row] for row in group) for group in groups]
    columns = longest if exact else [min(seq, rounded(pieces)) for pieces in longest]
    if columns == [seq]:
        return head(rows.mask, {"input_ids": rows.pieces, **rows.inputs})
    # looked up once, so that an attack has one place to add to; without gradients part by part
    read = {"inputs_embeds": encoder.look_up(rows.pieces)} if learns else {"input_ids": rows.pieces}
    given = {**read, **rows.inputs}
    made = []
    for group, width in zip(groups, columns, strict=True):
        place = torch.tensor(group, device=rows.mask.device)
        part = (rows.mask[place, :width], {key: it[place, :width] for key, it in given.items()})
        # dropout draws the same numbers when a part is read again: checkpoint puts the generators back
        found = checkpoint(head, *part, use_reentrant=False) if again else head(*part)
        made.append(F.pad(found, (0, 0, 0, seq - width)) if found.ndim == 3 else found)
    order = torch.tensor([row for group in groups for row in group], device=rows.mask.device)
    return torch.cat(made)[order.argsort()]


def of_like_length(lengths: Sequence[int], most: int | None) -> list[list[int]]:
    """The rows that are read together: none is less than half as long as another, unless one pass has little more to read.

    Args:
        lengths: of the rows.
        most: rows that are read together; None = any number.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    groups: list[list[int]] = []
    for row in order:
        if not groups or 2 * lengths[row] < lengths[groups[-1][0]] or len(groups[-1]) == most:
            groups.append([])
        groups[-1].append(row)
    read = sum(len(group) * lengths[group[0]] for group in groups)
    fits = most is None or len(order) <= most
    return [order] if fits and read > WORTH_A_PASS * len(order) * lengths[order[0]] else groups


def of_size(lengths: Sequence[int], pieces: int) -> list[list[int]]:
    """The rows that are read together, longest first: at most so many padded pieces, or one row."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if not groups or (len(groups[-1]) + 1) * lengths[groups[-1][0]] > pieces:
            groups.append([])
        groups[-1].append(row)
    return groups


def text_vectors(encoder: Encoder, rows: TextRows, pooling: Pooling, rows_at_once: int | None = None) -> Tensor:
    """One vector a row, (rows, width) float32.

    Args:
        encoder: pretrained.
        rows: texts.
        pooling: how a row's hidden states become its vector (see `pooling.py`; pooler: the layer that BERT was pretrained with).
        rows_at_once: see `TextEncoderConfig`.
    """

    def pooled(mask: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        if pooling == "first_last":
            layers = encoder.read(mask, output_hidden_states=True, **inputs).hidden_states
            return first_last_pooling(layers[1], layers[-1], mask)
        output = encoder.read(mask, **inputs)
        if pooling == "pooler":
            vectors: Tensor = output.pooler_output
            return vectors.float()
        return (mean_pooling if pooling == "mean" else cls_pooling)(output.last_hidden_state, mask)

    return in_parts(encoder, rows, pooled, rows_at_once)


class TextEncoderModel(PretrainedModel):
    """What the models on whole texts share: reading them, the rows of a batch, the attack point.

    A subclass's batch holds `rows`, and says in `samples` which item each row belongs to.
    """

    config: TextEncoderConfig
    subwords: WordPieces

    @property
    def max_pieces(self) -> int | None:
        """Pieces of a text that are read, without [CLS] and [SEP]; None = any number."""
        limits = [self.encoder.max_length, self.config.max_pieces and self.config.max_pieces - 2]
        return min((limit for limit in limits if limit is not None), default=None)

    def read_texts(self, texts: Sequence[str], where: str = "text") -> list[NDArray[np.int64]]:
        """The pieces of texts, no more of each than are read.

        Raises:
            TypeError: texts are one string, or hold something else.
            DataError: a text has no pieces: it is empty, or all blanks.
        """
        if isinstance(texts, str):
            raise TypeError(f"{where}: texts must be a list of strings, but are one string. Write [text].")
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"{where}: a text must be a string, but is {type(text).__name__}.")
        rows = self.subwords.encode(texts)
        for text, row in zip(texts, rows, strict=True):
            if not len(row):
                raise DataError(
                    f"{where}: a text to compare must hold a character that is no blank, but is {text[:20]!r}. Leave it out."
                )
        return [row[: self.max_pieces] for row in rows]

    def rows(self, texts: Sequence[NDArray[np.int64]]) -> TextRows:
        """The rows of a batch, from the pieces of its texts: no more of each than are read."""
        texts = [text[: self.max_pieces] for text in texts]
        lengths = np.array([len(text) + 2 for text in texts])
        mask = np.arange(self._columns(int(lengths.max()))) < lengths[:, None]
        pieces = np.full(mask.shape, self.subwords.padding, dtype=np.int64)
        ends = [[self.subwords.first], [self.subwords.last]]
        pieces[mask] = np.concatenate([part for text in texts for part in (ends[0], text, ends[1])])
        return TextRows(torch.from_numpy(pieces), torch.from_numpy(mask), tuple(lengths.tolist()))

    def _columns(self, longest: int) -> int:
        limit = self.encoder.max_length
        return rounded(longest) if limit is None else min(rounded(longest), limit + 2)

    def count_longer(
        self, texts: Sequence[str], limit: int | None, kind: str = "texts", said: str = "the rest of each is not read"
    ) -> dict[str, tuple[int, int]]:
        """How many texts have more pieces than are read of each; see `Matcher.cut_counts`."""
        if limit is None:
            return {}
        # all are cut into pieces to know: a character may have several (a Hangul syllable has up to three)
        parts = (texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE))
        longer = sum(len(row) > limit for part in parts for row in self.subwords.encode(part))
        return {f"{kind} have more than {limit} pieces: {said}": (longer, len(texts))}

    def attack_points(self, batch: Any) -> Mapping[str, AttackPoint]:
        table = self.encoder.table
        samples = torch.where(batch.rows.mask, batch.samples.unsqueeze(1), -1)
        return {"pieces": AttackPoint(table, samples, table.weight, batch.num_samples)}  # type: ignore[arg-type]
