"""Bi-encoder: one vector a text, and the cosine of two: what Sentence-BERT, CoSENT, SimCSE and ArcCSE train.

Source: Reimers and Gurevych 2019 (Sentence-BERT). What a bi-encoder is trained towards is the recipe's `objective`.
Differs: nothing of the network; see `layers/pooling.py` and `layers/text_encoder.py`.
Cost: that of the encoder; texts are encoded once and compared by a product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hanzoo.data.matching_catalogue import PairData
from hanzoo.data.word_pieces import WordPieces
from hanzoo.models.layers import interchange
from hanzoo.models.layers.encoder import ENCODER_FOLDER
from hanzoo.models.layers.gathering import SharedBatch
from hanzoo.models.layers.similarity import cosine_similarities, paired_cosine_similarities
from hanzoo.models.layers.text_encoder import Pooling, TextEncoderConfig, text_vectors
from hanzoo.models.layers.text_matcher import MatchingBatch, TextMatcher, both_sides
from hanzoo.models.model import Comparison, evaluating
from hanzoo.models.search.index import Corpus, index_kind
from hanzoo.models.search.vectors import FAISS_KIND, FaissIndex, VectorIndex


class BiEncoderConfig(TextEncoderConfig):
    """Fields of the recipe's `model` section, beside those of the encoder.

    Attributes:
        pooling: mean of the pieces' states, the state of [CLS], the pretrained pooler on it, or the mean of the first and the
            last layer.
    """

    pooling: Pooling = "mean"


@dataclass(frozen=True)
class Vectors(Comparison):
    """Texts as vectors, compared by their cosine.

    Attributes:
        views: (items, width) float32 each.
    """

    views: Sequence[Tensor]

    def paired(self, one: int, other: int) -> Tensor:
        return paired_cosine_similarities(self.views[one], self.views[other])

    def matrix(self, one: int, others: Sequence[int]) -> Tensor:
        return cosine_similarities(self.views[one], torch.cat([self.views[other] for other in others]))

    def gathered(self, shared: SharedBatch, views: Sequence[int]) -> Vectors:
        return Vectors([shared.gather(own) if number in views else own for number, own in enumerate(self.views)])

    def vectors(self, view: int) -> Tensor:
        return self.views[view]


class BiEncoder(TextMatcher):
    """Encoder and pooling.

    Args:
        config: its settings.
        encoder: pretrained, or of a checkpoint.
        subwords: of the same folder.
    """

    Config: ClassVar[type[BiEncoderConfig]] = BiEncoderConfig
    shape_fields: ClassVar[tuple[str, ...]] = ("encoder", "pooling")
    config: BiEncoderConfig

    @classmethod
    def build(cls, config: BiEncoderConfig, data: PairData) -> Self:
        encoder, subwords, digest = cls.open_folder(config, WordPieces, config.pooling == "pooler")
        model = cls(config, encoder, subwords)
        model.inputs = {f"encoder {config.encoder}": digest}
        model.notes = tuple(model.cut_notes(data.train))
        return model

    @property
    def width(self) -> int:
        return self.encoder.width

    def forward(self, batch: MatchingBatch) -> Vectors:
        """The vectors of each view."""
        pooled = text_vectors(self.encoder, batch.rows, self.config.pooling, self.config.rows_at_once)
        return Vectors(torch.split(pooled, batch.num_samples))

    # What users call.

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], normalised: bool = True) -> NDArray[np.float32]:
        """One vector a text.

        Args:
            texts: any number; none may be empty.
            normalised: of length 1, so that their product is the cosine.

        Returns:
            (texts, width) float32.

        Raises:
            TypeError: texts are one string, or hold something else.
            DataError: a text is empty, or all blanks.
        """
        pieces = self.read_texts(texts)
        found = np.empty((len(texts), self.encoder.width), dtype=np.float32)
        with evaluating(self):
            for indices in self.batches_by_length([len(row) + 2 for row in pieces]):
                rows = self.rows([pieces[i] for i in indices]).to(self.device)
                vectors = text_vectors(self.encoder, rows, self.config.pooling)
                if normalised:
                    vectors = torch.nn.functional.normalize(vectors, dim=1)
                found[indices] = vectors.cpu().numpy()
        return found

    def scores(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """The cosine of the two texts of each pair, (pairs,) in [-1, 1]; see `Matcher.scores`."""
        sides = both_sides(pairs)
        texts = list(dict.fromkeys(text for side in sides for text in side))
        places = {text: number for number, text in enumerate(texts)}
        # brought to length 1 here: one that float32 rounded has not quite this length, and equal texts would not have 1
        vectors = self.encode(texts, normalised=False).astype(np.float64)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
        first, second = (vectors[[places[text] for text in side]] for side in sides)
        cosines: NDArray[np.float64] = (first * second).sum(1).clip(-1.0, 1.0)
        return cosines

    def index(self, corpus: Corpus, folder: str | Path | None = None) -> VectorIndex:
        return VectorIndex.build(self, corpus, folder)

    def faiss_index(self, corpus: Corpus, kind: str) -> FaissIndex:
        """A corpus in an index of faiss, for more than memory holds; see `FaissIndex.build`."""
        return FaissIndex.build(self, corpus, kind)

    def open_index(self, folder: str | Path) -> VectorIndex | FaissIndex:
        if index_kind(Path(folder)) == FAISS_KIND:
            return FaissIndex.open(self, folder)
        return VectorIndex.open(self, folder)

    # Saving.

    def save_files(self, folder: Path) -> None:
        """Also what makes `folder` one of sentence-transformers."""
        super().save_files(folder)
        place, width, pooling = folder / ENCODER_FOLDER, self.encoder.width, self.config.pooling
        modules = [(ENCODER_FOLDER, interchange.TRANSFORMER)]

        def add(kind: str) -> Path:
            modules.append((f"{len(modules)}_{kind}", f"sentence_transformers.models.{kind}"))
            part = folder / modules[-1][0]
            part.mkdir()
            return part

        notes = []
        if pooling == "first_last":
            interchange.write_first_last(add("WeightedLayerPooling"), width, self.encoder.config.num_hidden_layers)
        interchange.write_pooling(add("Pooling"), width, "mean" if pooling in ("mean", "first_last") else "cls")
        if pooling == "pooler":
            dense = interchange.pooler_of(self.encoder.model)
            if dense is None:
                notes.append(
                    "Its pooler is none that sentence-transformers has a module for: it opens in hanzoo alone."
                )
            else:
                interchange.write_dense(add("Dense"), dense.weight, dense.bias, interchange.TANH)
        add("Normalize")
        interchange.set_tokenizer(place, split_special_tokens=True)  # "[SEP]" written in a text is text
        # said here and not in the encoder's config.json: hanzoo asks for all layers only where it needs them
        layers = {"config_args": {"output_hidden_states": True}} if pooling == "first_last" else {}
        interchange.write_transformer(place, None if self.max_pieces is None else self.max_pieces + 2, **layers)
        opened_by = []
        if not notes:
            interchange.write_modules(folder, modules, {"similarity_fn_name": "cosine"})
            opened_by = [
                "from sentence_transformers import SentenceTransformer\n",
                "model = SentenceTransformer('FOLDER')",
            ]
        interchange.write_notes(folder, "bi_encoder", opened_by, notes)

    @classmethod
    def from_description(cls, config: BiEncoderConfig, description: Mapping[str, Any], folder: Path) -> Self:
        return cls(config, *cls.saved_folder(config, folder, WordPieces, config.pooling == "pooler")).with_description(
            description
        )
