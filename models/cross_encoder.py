"""Cross-encoder: both texts of a pair read together, one score.

Source: Devlin et al. 2019 (BERT), sentence pairs; Nogueira and Cho 2019 for ranking.
Differs: the score is one linear map of the state of [CLS], without the pretrained pooler. Of a pair that is too long the longer
text loses its last pieces first, until both fit; that is said.
Cost: one pass of the encoder a pair: nothing of a text can be computed beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hanzoo.data.document import Document, Pair, Triple, texts_of
from hanzoo.data.word_pieces import WordPieces
from hanzoo.errors import RecipeError, RunError
from hanzoo.models.layers import interchange
from hanzoo.models.layers.encoder import Encoder
from hanzoo.models.layers.gathering import SharedBatch
from hanzoo.models.layers.pooling import cls_pooling
from hanzoo.models.layers.text_encoder import TextEncoderConfig, TextRows, in_parts
from hanzoo.models.layers.text_matcher import MatchingBatch, TextMatcher, both_sides
from hanzoo.models.model import Comparison, cut_notes, evaluating
from hanzoo.models.search.index import Corpus
from hanzoo.models.search.pairs import PairIndex


class CrossEncoderConfig(TextEncoderConfig):
    """Fields of the recipe's `model` section, beside those of the encoder.

    Attributes:
        max_pieces: of both texts and the three special ones, see `TextEncoderConfig`.
        dropout: of the state before the score.
    """

    max_pieces: int | None = Field(default=None, ge=5)
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)


@dataclass(frozen=True)
class PairRows(TextRows):
    """See `TextRows`.

    Attributes:
        types: (rows, seq) int64: 0 for the first text, 1 for the second.
    """

    types: Tensor

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        return {"token_type_ids": self.types}


@dataclass(frozen=True)
class PairScores(Comparison):
    """Scores of each item's first view with each of its others.

    Attributes:
        scores: (items,) float32 each.
    """

    scores: Sequence[Tensor]

    def paired(self, one: int, other: int) -> Tensor:
        if one != 0:
            raise ValueError(f"cross_encoder: one must be 0, the first view, but is {one}.")
        return self.scores[other - 1]

    def matrix(self, one: int, others: Sequence[int]) -> NoReturn:
        raise RecipeError(
            "objective: must compare each item's own texts where the model is cross_encoder, which reads pairs together: all pairs "
            "of a batch would be a pass each. Take another objective, or model.name=bi_encoder."
        )

    def gathered(self, shared: SharedBatch, views: Sequence[int]) -> NoReturn:
        self.matrix(0, views)

    def vectors(self, view: int) -> Tensor:
        raise RecipeError(
            "objective: must compare scores where the model is cross_encoder, which has no vector a text. Take another objective."
        )


class CrossEncoder(TextMatcher):
    """Encoder, a linear map of the state of [CLS].

    Args:
        config: its settings.
        encoder: pretrained, or of a checkpoint.
        subwords: of the same folder.
    """

    Config: ClassVar[type[CrossEncoderConfig]] = CrossEncoderConfig
    shape_fields: ClassVar[tuple[str, ...]] = ("encoder",)
    config: CrossEncoderConfig

    def __init__(self, config: CrossEncoderConfig, encoder: Encoder, subwords: WordPieces) -> None:
        super().__init__(config, encoder, subwords)
        self.output = nn.Linear(encoder.width, 1)
        nn.init.normal_(self.output.weight, std=0.02)  # as BERT's own layers
        nn.init.zeros_(self.output.bias)
        # one that knows a single type, as RoBERTa's, tells the texts apart by [SEP] alone
        self._second = 1 if (getattr(encoder.config, "type_vocab_size", 1) or 1) > 1 else 0

    @classmethod
    def build(cls, config: CrossEncoderConfig, data: Any) -> Self:
        encoder, subwords, digest = cls.open_folder(config, WordPieces)
        model = cls(config, encoder, subwords)
        model.inputs = {f"encoder {config.encoder}": digest}
        model.notes = tuple(model.cut_notes(data.train))
        return model

    def cut_counts(self, items: Sequence[Pair | Triple | Document]) -> Mapping[str, tuple[int, int]]:
        room = self.room
        if room is None:
            return {}
        texts = [texts_of(item) for item in items]
        pairs = [(own[0], other) for own in texts for other in (own[1:] or own)]
        pieces = [self.subwords.encode([pair[side] for pair in pairs]) for side in (0, 1)]
        longer = sum(len(first) + len(second) > room for first, second in zip(*pieces, strict=True))
        return {f"pairs have more than {room} pieces: the rest of the longer text is not read": (longer, len(pairs))}

    def read_pieces(self, views: Sequence[NDArray[np.int64]]) -> int:
        first, *others = views
        return len(others) * max(
            len(one) + len(two) + 3 for one, two in (fitted(first, other, self.room) for other in others)
        )

    def corpus_notes(self, texts: Sequence[str]) -> tuple[str, ...]:
        return self._notes(texts, "texts")

    def query_notes(self, texts: Sequence[str]) -> tuple[str, ...]:
        return self._notes(texts, "queries")

    def _notes(self, texts: Sequence[str], kind: str) -> tuple[str, ...]:
        """A text that fits whatever the other is has half the room at most."""
        half = None if self.room is None else self.room // 2
        said = f"what does not fit beside the other text of a pair is not read ({self.room} pieces of both)"
        return tuple(cut_notes(self.count_longer(texts, half, kind, said)))

    # Pairs to rows.

    @property
    def room(self) -> int | None:
        """Pieces of both texts that are read, without [CLS] and two [SEP]; None = any number."""
        return None if self.max_pieces is None else self.max_pieces - 1

    def read_texts(self, texts: Sequence[str], where: str = "text") -> list[NDArray[np.int64]]:
        """See `TextEncoderModel.read_texts`: no more of a text than could be read beside an empty one."""
        return [text[: self.room] for text in super().read_texts(texts, where)]

    def pair_rows(self, pairs: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> PairRows:
        """[CLS] first [SEP] second [SEP]."""
        subwords = self.subwords
        rows, types = [], []
        for first, second in (fitted(*pair, self.room) for pair in pairs):
            rows.append(np.concatenate([[subwords.first], first, [subwords.last], second, [subwords.last]]))
            types.append(np.repeat([0, self._second], [len(first) + 2, len(second) + 1]))
        lengths = np.array([len(row) for row in rows])
        mask = np.arange(self._columns(int(lengths.max()))) < lengths[:, None]
        pieces = np.full(mask.shape, subwords.padding, dtype=np.int64)
        kinds = np.zeros(mask.shape, dtype=np.int64)
        pieces[mask], kinds[mask] = np.concatenate(rows), np.concatenate(types)
        return PairRows(
            torch.from_numpy(pieces), torch.from_numpy(mask), tuple(lengths.tolist()), torch.from_numpy(kinds)
        )

    def rows_of_views(self, views: Sequence[Sequence[NDArray[np.int64]]]) -> PairRows:
        first, *others = views
        return self.pair_rows([pair for other in others for pair in zip(first, other, strict=True)])

    def forward(self, batch: MatchingBatch) -> PairScores:
        """The score of each item's first view with each of its others."""
        return PairScores(torch.split(self.pair_scores(batch.rows, self.config.rows_at_once), batch.num_samples))

    def pair_scores(self, rows: TextRows, rows_at_once: int | None = None) -> Tensor:
        """(rows,) float32."""

        def scored(mask: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
            state = cls_pooling(self.encoder.read(mask, **inputs).last_hidden_state, mask)
            scores: Tensor = self.output(F.dropout(state, self.config.dropout, self.training))
            return scores.squeeze(1).float()

        return in_parts(self.encoder, rows, scored, rows_at_once)

    # What users call.

    @torch.inference_mode()
    def scores(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """The score of each pair before any squashing, (pairs,); see `Matcher.scores`."""
        first, second = (self.read_texts(side) for side in both_sides(pairs))
        read = list(zip(first, second, strict=True))
        found = np.empty(len(pairs))
        with evaluating(self):
            for indices in self.batches_by_length([len(one) + len(other) + 3 for one, other in read]):
                rows = self.pair_rows([read[i] for i in indices]).to(self.device)
                found[indices] = self.pair_scores(rows).cpu().numpy()
        return found

    def index(self, corpus: Corpus, folder: str | Path | None = None) -> PairIndex:
        """The corpus as it is: a cross-encoder ranks the candidates of a first stage. Raises RunError where a folder is given."""
        index = PairIndex.build(self, corpus)
        if folder is not None:
            index.save(folder)
        return index

    def open_index(self, folder: str | Path) -> PairIndex:
        raise RunError(
            f"{folder}: a cross-encoder must have the corpus, but saves no index. Give the corpus: index(corpus)."
        )

    # Saving.

    def save_files(self, folder: Path) -> None:
        """What makes `folder` one of transformers and sentence-transformers; the encoder is a part of it."""
        pairs_as_here = self._tokenizer_pairs()
        if not (pairs_as_here and interchange.write_sequence_classifier(folder, self.encoder, self.output)):
            super().save_files(folder)
            reason = (
                "transformers have no class for this"
                if pairs_as_here
                else "the encoder's tokenizer joins pairs otherwise"
            )
            interchange.write_notes(folder, "cross_encoder", (), [f"It opens in hanzoo alone: {reason}."])
            return
        self.subwords.save(folder)
        limit = {} if self.max_pieces is None else {"model_max_length": self.max_pieces + 2}
        interchange.set_tokenizer(folder, split_special_tokens=True, **limit)  # "[SEP]" written in a text is text
        notes = [
            "The score is before any squashing, as hanzoo's.",
            "Its pooler is a part of the identity under a tanh, and changes nothing. Draw it anew to train on elsewhere.",
        ]
        opened_by = [
            "from sentence_transformers import CrossEncoder\n",
            "model = CrossEncoder('FOLDER')\n",
            "from transformers import AutoModelForSequenceClassification\n",
            "model = AutoModelForSequenceClassification.from_pretrained('FOLDER')",
        ]
        interchange.write_notes(folder, "cross_encoder", opened_by, notes)

    def _tokenizer_pairs(self) -> bool:
        """Whether the encoder's own tokenizer writes a pair as `pair_rows` does."""
        texts = self.subwords.encode(["a", "b c"])
        rows = self.pair_rows([(texts[0], texts[1])])
        written, types = self.subwords.pair("a", "b c")
        length = len(written)
        same = rows.mask[0].sum() == length and rows.pieces[0, :length].tolist() == written
        return bool(same and ((types is None and not self._second) or rows.types[0, :length].tolist() == types))

    @classmethod
    def from_description(cls, config: CrossEncoderConfig, description: Mapping[str, Any], folder: Path) -> Self:
        return cls(config, *cls.saved_folder(config, folder, WordPieces)).with_description(description)


def fitted(
    first: NDArray[np.int64], second: NDArray[np.int64], room: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two texts without as many of their last pieces as are needed for both to fit, taken from the longer one first."""
    over = 0 if room is None else len(first) + len(second) - room
    if over <= 0:
        return first, second
    assert room is not None
    shorter = min(len(first), len(second), room // 2)
    return (
        (first[: room - shorter], second[:shorter])
        if len(first) > len(second)
        else (first[:shorter], second[: room - shorter])
    )
