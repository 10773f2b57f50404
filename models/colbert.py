"""ColBERT: a vector a token, and late interaction: for each token of a query the best of a document's.

Source: Khattab and Zaharia 2020 (ColBERT), sections 3.2 (markers, query augmentation by [MASK], punctuation left out of documents)
and 3.3 (MaxSim); Santhanam et al. 2022 (ColBERTv2).
Differs, for Chinese. The markers are pieces that the vocabulary has (its [unused0] is not in Chinese BERT's, and would be [UNK]).
As many [MASK] as a query has pieces are put behind it, up to `query_pieces`, instead of always 32 in all: the median query of
AFQMC has 12 characters. Punctuation of both scripts is left out of documents, [UNK] never is ("`" and most quotation marks are
[UNK] there). What does not count is -inf before the maximum, not 0. The mean over a query's tokens is offered beside the sum. The
linear map begins with orthonormal rows, not as another layer of BERT: with as many dimensions as the encoder has, an untrained
model compares the encoder's own states.
Cost: that of the encoder; a corpus takes 2 x dimension bytes a token; see `layers/max_sim.py`.
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hanzoo.data.document import Document, Pair, Triple, texts_of
from hanzoo.data.word_pieces import WordPieces
from hanzoo.errors import RecipeError
from hanzoo.models.layers import interchange
from hanzoo.models.layers.encoder import ENCODER_FOLDER, Encoder
from hanzoo.models.layers.gathering import SharedBatch
from hanzoo.models.layers.max_sim import max_sim, paired_max_sim
from hanzoo.models.layers.text_encoder import TextEncoderConfig, TextRows, in_parts
from hanzoo.models.layers.text_matcher import MatchingBatch, TextMatcher, both_sides
from hanzoo.models.model import Comparison, evaluating
from hanzoo.models.search.index import Corpus
from hanzoo.models.search.tokens import TokenIndex

PUNCTUATION = string.punctuation + "，。、；：？！（）《》〈〉【】「」『』〔〕·—…～“”‘’￥％＆＊＋－／＝＠＃"


class ColBERTConfig(TextEncoderConfig):
    """Fields of the recipe's `model` section, beside those of the encoder.

    Attributes:
        max_pieces: of a document, see `TextEncoderConfig`; its marker is one of them.
        dimension: of a token's vector; the encoder's own width loses nothing of its states, a corpus then takes more room.
        query_pieces: of a query, [MASK] and the three others included, at most.
        expansion: [MASK] behind a query, a piece of it; 0 = none.
        mean: the mean over a query's tokens instead of the sum.
        query_marker: the piece behind [CLS] of a query.
        document_marker: of a document.
    """

    max_pieces: int | None = Field(default=None, ge=4)
    dimension: int = Field(default=128, ge=1)
    query_pieces: int = Field(default=32, ge=4)
    expansion: float = Field(default=1.0, ge=0.0)
    mean: bool = False
    query_marker: str = "[unused1]"
    document_marker: str = "[unused2]"


class Row(NamedTuple):
    """A text as the encoder reads it.

    Attributes:
        pieces: (pieces,) int64, all of them.
        attended: how many of them, the first, are attended to.
        scored: (pieces,) bool, True = the token counts.
    """

    pieces: NDArray[np.int64]
    attended: int
    scored: NDArray[np.bool_]


@dataclass(frozen=True)
class TokenRows(TextRows):
    """See `TextRows`, whose mask says what is attended to.

    Attributes:
        scored: (rows, seq) bool, True = the token counts.
    """

    scored: Tensor


@dataclass(frozen=True)
class TokenVectors(Comparison):
    """Texts as a vector a token.

    Attributes:
        views: (items, seq, dimension) float each, of unit length.
        masks: (items, seq) bool each, True = a token that counts.
        mean: see `ColBERTConfig`.
    """

    views: Sequence[Tensor]
    masks: Sequence[Tensor]
    mean: bool

    def paired(self, one: int, other: int) -> Tensor:
        given = self.views[one], self.views[other], self.masks[one], self.masks[other]
        return paired_max_sim(*given, mean=self.mean)

    def matrix(self, one: int, others: Sequence[int]) -> Tensor:
        documents, mask = (torch.cat([each[other] for other in others]) for each in (self.views, self.masks))
        return max_sim(self.views[one], documents, self.masks[one], mask, mean=self.mean)

    def gathered(self, shared: SharedBatch, views: Sequence[int]) -> TokenVectors:
        vectors, masks = list(self.views), list(self.masks)
        for view in views:
            vectors[view], masks[view] = shared.gather_tokens(vectors[view]), shared.gather_tokens(masks[view])
        return TokenVectors(vectors, masks, self.mean)

    def vectors(self, view: int) -> Tensor:
        raise RecipeError(
            "objective: must compare scores where the model is colbert, which has no one vector a text. "
            "Take another objective, or model.name=bi_encoder."
        )


class ColBERT(TextMatcher):
    """Encoder, a linear map of each state, MaxSim. The first text of a pair is the query.

    Args:
        config: its settings.
        encoder: pretrained, or of a checkpoint.
        subwords: of the same folder.

    Raises:
        RecipeError: a marker is no piece of the vocabulary, there is no [MASK] to expand with, or a query has more pieces than
            the encoder reads.
    """

    Config: ClassVar[type[ColBERTConfig]] = ColBERTConfig
    shape_fields: ClassVar[tuple[str, ...]] = ("encoder", "dimension", "query_marker", "document_marker")
    config: ColBERTConfig

    def __init__(self, config: ColBERTConfig, encoder: Encoder, subwords: WordPieces) -> None:
        super().__init__(config, encoder, subwords)
        self.projection = nn.Linear(encoder.width, config.dimension, bias=False)
        # similarities are at first those of the states themselves, or as near to them as a random map of fewer dimensions comes
        nn.init.orthogonal_(self.projection.weight)
        self._markers = tuple(self._marker(name) for name in ("query_marker", "document_marker"))
        if config.expansion and subwords.mask is None:
            raise RecipeError(
                f"model.expansion: must be 0 where {config.encoder} has no [MASK], but is not. Set it to 0."
            )
        if encoder.max_length is not None and config.query_pieces > encoder.max_length + 2:
            raise RecipeError(
                f"model.query_pieces: must be {encoder.max_length + 2} at most, what {config.encoder} reads at once, but is "
                f"{config.query_pieces}. Lower it."
            )
        numbers = (subwords.number(character) for character in PUNCTUATION)
        skipped = {number for number in numbers if number not in (None, subwords.unknown)}
        self._skipped = np.array(sorted(skipped), dtype=np.int64)

    def _marker(self, field: str) -> int:
        piece: str = getattr(self.config, field)
        number = self.subwords.number(piece)
        if number is None or number == self.subwords.unknown:
            raise RecipeError(
                f"model.{field}: must be a piece of {self.config.encoder}'s vocabulary, but {piece!r} is none: it would be "
                "[UNK]. Name one that it has and no text needs."
            )
        return number

    @classmethod
    def build(cls, config: ColBERTConfig, data: Any) -> Self:
        encoder, subwords, digest = cls.open_folder(config, WordPieces)
        model = cls(config, encoder, subwords)
        model.inputs = {f"encoder {config.encoder}": digest}
        model.notes = tuple(model.cut_notes(data.train))
        return model

    def cut_counts(self, items: Sequence[Pair | Triple | Document]) -> Mapping[str, tuple[int, int]]:
        texts = list(map(texts_of, items))
        queries = self.count_longer([own[0] for own in texts], self.query_limit, "queries")
        return queries | self.count_longer(
            [text for own in texts for text in own[1:]], self.document_limit, "documents"
        )

    @property
    def query_limit(self) -> int:
        written = self.config.query_pieces - 3
        return written if self.max_pieces is None else min(written, self.max_pieces)

    @property
    def document_limit(self) -> int | None:
        return None if self.max_pieces is None else self.max_pieces - 1

    def read_pieces(self, views: Sequence[NDArray[np.int64]]) -> int:
        query, *documents = views
        rows = [self.query_row(query), *map(self.document_row, documents)]
        return len(rows) * max(len(row.pieces) for row in rows)

    # Texts to rows.

    def query_row(self, text: NDArray[np.int64]) -> Row:
        """[CLS] marker pieces [SEP] [MASK] ...: nobody attends to the [MASK], but they attend to the query, and are scored."""
        subwords, limit = self.subwords, self.config.query_pieces
        text = text[: limit - 3]
        read = np.concatenate([[subwords.first, self._markers[0]], text, [subwords.last]])
        masks = min(limit - len(read), math.ceil(self.config.expansion * len(text)))
        row = np.concatenate([read, np.full(masks, subwords.mask or 0)])
        return Row(row, len(read), np.ones(len(row), dtype=np.bool_))

    def document_row(self, text: NDArray[np.int64]) -> Row:
        """[CLS] marker pieces [SEP], all of them scored but punctuation."""
        text = text[: self.document_limit]
        row = np.concatenate([[self.subwords.first, self._markers[1]], text, [self.subwords.last]])
        return Row(row, len(row), ~np.isin(row, self._skipped))

    def token_rows(self, rows: Sequence[Row]) -> TokenRows:
        """The rows of a batch."""
        lengths = np.array([len(row.pieces) for row in rows])
        columns = np.arange(self._columns(int(lengths.max())))
        written = columns < lengths[:, None]
        pieces = np.full(written.shape, self.subwords.padding, dtype=np.int64)
        scored = np.zeros(written.shape, dtype=np.bool_)
        pieces[written] = np.concatenate([row.pieces for row in rows])
        scored[written] = np.concatenate([row.scored for row in rows])
        attended = columns < np.array([row.attended for row in rows])[:, None]
        return TokenRows(
            torch.from_numpy(pieces), torch.from_numpy(attended), tuple(lengths.tolist()), torch.from_numpy(scored)
        )

    def rows_of_views(self, views: Sequence[Sequence[NDArray[np.int64]]]) -> TokenRows:
        queries, *documents = views
        rows = [self.query_row(text) for text in queries]
        return self.token_rows([*rows, *(self.document_row(text) for view in documents for text in view)])

    def forward(self, batch: MatchingBatch) -> TokenVectors:
        """The tokens' vectors of each view: of the first as queries, of the others as documents."""
        rows = batch.rows
        assert isinstance(rows, TokenRows)
        vectors = torch.split(self.token_vectors(rows, self.config.rows_at_once), batch.num_samples)
        return TokenVectors(vectors, torch.split(rows.scored, batch.num_samples), self.config.mean)

    def token_vectors(self, rows: TokenRows, rows_at_once: int | None = None) -> Tensor:
        """(rows, seq, dimension) float32, of unit length."""

        def projected(mask: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
            states = self.encoder.read(mask, **inputs).last_hidden_state
            return F.normalize(self.projection(states).float(), dim=-1)

        return in_parts(self.encoder, rows, projected, rows_at_once)

    # What users call.

    @torch.inference_mode()
    def scores(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """MaxSim of the first text of each pair, as a query, with the second, (pairs,); see `Matcher.scores`."""
        sides = [self.read_texts(side) for side in both_sides(pairs)]
        queries, documents = map(self.query_row, sides[0]), map(self.document_row, sides[1])
        rows = list(zip(queries, documents, strict=True))
        found = np.empty(len(pairs))
        with evaluating(self):
            for indices in self.batches_by_length([2 * max(len(one.pieces), len(other.pieces)) for one, other in rows]):
                chosen = [rows[i] for i in indices]
                both = self.token_rows([one for one, _ in chosen] + [other for _, other in chosen]).to(self.device)
                vectors = torch.split(self.token_vectors(both), len(indices))
                compared = TokenVectors(vectors, torch.split(both.scored, len(indices)), self.config.mean)
                found[indices] = compared.paired(0, 1).cpu().numpy()
        return found

    @property
    def token_dimension(self) -> int:
        return self.config.dimension

    @property
    def mean_of_tokens(self) -> bool:
        return self.config.mean

    def index(self, corpus: Corpus, folder: str | Path | None = None) -> TokenIndex:
        return TokenIndex.build(self, corpus, folder)

    def open_index(self, folder: str | Path) -> TokenIndex:
        return TokenIndex.open(self, folder)

    @torch.inference_mode()
    def query_tokens(self, texts: Sequence[str]) -> list[Tensor]:
        """The vectors of queries' tokens, (tokens, dimension) float32 each."""
        rows = [self.query_row(text) for text in self.read_texts(texts)]
        found: list[Tensor] = [torch.empty(0)] * len(rows)
        for indices, vectors in self._kept(rows):
            for index, own in zip(
                indices, torch.split(vectors, [int(rows[i].scored.sum()) for i in indices]), strict=True
            ):
                found[index] = own
        return found

    def document_tokens(
        self, texts: Sequence[str]
    ) -> tuple[NDArray[np.int64], Iterator[tuple[Sequence[int], NDArray[np.float16]]]]:
        """Documents as a store of tokens takes them.

        Args:
            texts: any number; none may be empty.

        Returns:
            (texts,) the number of tokens of each that count; and, encoded as they are asked for, places of some of the texts with
            their tokens' vectors one text after the other, (tokens, dimension) float16.

        Raises:
            DataError: a text is empty, or all blanks.
        """
        rows = [self.document_row(text) for text in self.read_texts(texts)]
        encoded = ((indices, vectors.half().cpu().numpy()) for indices, vectors in self._kept(rows))
        return np.array([row.scored.sum() for row in rows], dtype=np.int64), encoded

    def _kept(self, rows: Sequence[Row]) -> Iterator[tuple[list[int], Tensor]]:
        """Places of some rows, and the vectors of their tokens that count, row by row, (tokens, dimension) float32."""
        with evaluating(self):
            for indices in self.batches_by_length([len(row.pieces) for row in rows]):
                with torch.inference_mode():
                    batch = self.token_rows([rows[i] for i in indices]).to(self.device)
                    vectors = self.token_vectors(batch)[batch.scored]
                yield indices, vectors

    # Saving.

    def save_files(self, folder: Path) -> None:
        """Also what makes `folder` one of sentence-transformers and of pylate."""
        super().save_files(folder)
        config = self.config
        length = None if self.max_pieces is None else self.max_pieces + 2
        dense = "1_Dense"
        # all pieces of a query, of which [CLS], marker and [SEP] come on top of what is read of a text
        query_length = config.query_pieces if length is None else min(config.query_pieces, length + 1)
        # then a query of one piece is as long as any other
        fixed = config.expansion >= config.query_pieces - 4 and query_length == config.query_pieces
        interchange.write_modules(
            folder,
            [(ENCODER_FOLDER, interchange.TRANSFORMER), (dense, "pylate.models.Dense.Dense")],
            {
                "model_type": "ColBERT",
                "similarity_fn_name": "meanmaxsim" if config.mean else "MaxSim",
                "query_prefix": config.query_marker,
                "document_prefix": config.document_marker,
                "query_length": query_length,
                **({} if length is None else {"document_length": length}),
                "attend_to_expansion_tokens": False,
                "do_query_expansion": config.expansion > 0,
                # no word that is [UNK]: all [UNK] would be left out
                "skiplist_words": [word for word in PUNCTUATION if self.subwords.number(word) in self._skipped],
            },
        )
        interchange.write_dense(folder / dense, self.projection.weight, None, interchange.IDENTITY, use_residual=False)
        interchange.write_transformer(folder / ENCODER_FOLDER, length)
        notes = ["A special piece that is written in a text, as [SEP], is text in hanzoo, and special elsewhere."]
        if config.expansion and not fixed:
            notes.append(
                f"Behind a query of n pieces hanzoo puts {config.expansion:g} x n [MASK], up to {config.query_pieces} pieces "
                f"in all; elsewhere every query has {config.query_pieces}: scores differ. Models that are trained with "
                f"model.expansion={config.query_pieces}, or 0, have equal ones."
            )
        if config.mean:
            notes.append("Its score is the mean over a query's tokens: pylate knows the sum alone.")
        opened_by = [
            "from sentence_transformers import MultiVectorEncoder  # 6 or newer\n",
            "model = MultiVectorEncoder('FOLDER')\n",
            "from pylate.models import ColBERT\n",
            "model = ColBERT('FOLDER')",
        ]
        interchange.write_notes(folder, "colbert", opened_by, notes)

    @classmethod
    def from_description(cls, config: ColBERTConfig, description: Mapping[str, Any], folder: Path) -> Self:
        return cls(config, *cls.saved_folder(config, folder, WordPieces)).with_description(description)
