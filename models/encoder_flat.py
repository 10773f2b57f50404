"""FLAT on the states of a pretrained encoder: a character's embeddings and its state are read together.

Source: Li et al. 2020, the experiments with BERT: the encoder's vector of a character is put beside its embeddings. The parts are
in `layers/flat_tagger.py` and `layers/encoder.py`.
Differs: texts that are longer than the encoder can read are read in windows; the lattice is always that of the whole text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from hanzoo.data.catalogue import TaggingData
from hanzoo.data.document import Document
from hanzoo.data.lexicon import Lexicon
from hanzoo.data.schemes import TagSet
from hanzoo.data.subwords import Subwords
from hanzoo.data.vocabulary import Vocabulary
from hanzoo.data.windows import Windows
from hanzoo.models.layers.encoder import Encoder, EncoderConfig, EncoderModel, check_window
from hanzoo.models.layers.flat_tagger import FlatConfig, FlatTagger, LatticeBatch, LatticeFeatures
from hanzoo.models.model import AttackPoint, Draw


class EncoderFlatConfig(EncoderConfig, FlatConfig):
    """Fields of the recipe's `model` section: those of the encoder and of FLAT."""


@dataclass(frozen=True, slots=True)
class EncoderLatticeFeatures(LatticeFeatures):
    """See `LatticeFeatures`.

    Attributes:
        pieces: (length,) int64, one a character.
    """

    pieces: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class EncoderLatticeBatch(LatticeBatch):
    """See `LatticeBatch`.

    Attributes:
        windows: what the encoder reads.
    """

    windows: Windows


class EncoderFlat(EncoderModel, FlatTagger):
    """Encoder beside embeddings, FLAT's layers, linear-chain CRF.

    Args:
        config: its sizes.
        tag_set: labels and scheme.
        vocabularies: see `FlatTagger`, as for the next four.
        dimensions: widths.
        lexicon: words.
        num_found: learnt words.
        temperature: that confidences are computed at.
        encoder: pretrained, or of a checkpoint.
        subwords: of the same folder.
    """

    Config: ClassVar[type[EncoderFlatConfig]] = EncoderFlatConfig
    shape_fields: ClassVar[tuple[str, ...]] = ("encoder", *FlatTagger.shape_fields)
    config: EncoderFlatConfig

    def __init__(
        self,
        config: EncoderFlatConfig,
        tag_set: TagSet,
        vocabularies: Sequence[Vocabulary],
        dimensions: Sequence[int],
        lexicon: Lexicon,
        num_found: int,
        temperature: float = 1.0,
        *,
        encoder: Encoder,
        subwords: Subwords,
    ) -> None:
        super().__init__(
            config, tag_set, vocabularies, dimensions, lexicon, num_found, temperature, beside=encoder.width
        )
        self.encoder = encoder
        self.subwords = subwords

    @classmethod
    def build(cls, config: EncoderFlatConfig, data: TaggingData) -> Self:
        cls.check(config)
        encoder, subwords, digest = cls.open_encoder(config)
        model = cls.build_with(config, data, encoder=encoder, subwords=subwords)
        model.inputs = {**model.inputs, f"encoder {config.encoder}": digest}
        model.notes = (*model.notes, *model.coverage_notes(document.text for document in data.train))
        return model

    @classmethod
    def continue_from(cls, config: EncoderFlatConfig, previous: Self, data: TaggingData) -> Self:
        """See `Model.continue_from`. No file is read: all weights, words and vectors are in `previous`."""
        encoder = previous.encoder.copied(config.encoder_dropout)
        check_window(config.window, encoder, "model.window")
        return cls.continue_with(config, previous, data, encoder=encoder, subwords=previous.subwords)

    # Text to batch.

    def featurize(self, item: Document) -> EncoderLatticeFeatures:
        flat = self.lattice_features(item)
        parts = {field.name: getattr(flat, field.name) for field in fields(flat)}
        return EncoderLatticeFeatures(**parts, pieces=self.subwords.encode(item.text))

    def collate(
        self, features: Sequence[EncoderLatticeFeatures], draw: Draw | None = None, item_ids: Sequence[int] = ()
    ) -> EncoderLatticeBatch:
        flat = self.lattice_batch(features, draw, item_ids)
        parts = {field.name: getattr(flat, field.name) for field in fields(flat)}
        return EncoderLatticeBatch(**parts, windows=self.windows([item.pieces for item in features]))

    # Batch to emissions; FLAT does the rest.

    def embed_characters(self, batch: Any) -> Tensor:
        """(batch, seq, numbers a character): embeddings, then the encoder's state."""
        states = self.encoder(batch.windows)
        padded = F.pad(states, (0, 0, 0, batch.positions.seq - states.shape[1]))
        return torch.cat([super().embed_characters(batch), padded], dim=-1)

    def attack_points(self, batch: Any) -> Mapping[str, AttackPoint]:
        return {**FlatTagger.attack_points(self, batch), **EncoderModel.attack_points(self, batch)}

    # Saving.

    @classmethod
    def from_description(cls, config: EncoderFlatConfig, description: Mapping[str, Any], folder: Path) -> Self:
        encoder, subwords = cls.saved_encoder(config, folder)
        return cls.saved_with(config, description, folder, encoder=encoder, subwords=subwords)

    def save_files(self, folder: Path) -> None:
        FlatTagger.save_files(self, folder)
        EncoderModel.save_files(self, folder)
