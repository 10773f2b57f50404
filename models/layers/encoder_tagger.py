"""What the taggers on a pretrained encoder share, whatever head they have: features, batch, an optional BiLSTM, saving.

The head reads the whole text as one sequence, however many windows the encoder read it in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from hanzoo.data.catalogue import TaggingData
from hanzoo.data.document import Document
from hanzoo.data.movable import Movable
from hanzoo.data.schemes import TagSet, flatten
from hanzoo.data.subwords import Subwords
from hanzoo.data.windows import Windows
from hanzoo.models.layers.crf_tagger import CRFHeadConfig, TagSequenceTagger
from hanzoo.models.layers.encoder import Encoder, EncoderConfig, EncoderModel, check_window
from hanzoo.models.layers.lstm import BiLSTM, variational_dropout
from hanzoo.models.model import Draw, TaggerDescription


class EncoderTaggerConfig(EncoderConfig, CRFHeadConfig):
    """Fields of the recipe's `model` section, beside those of the encoder and of the head.

    Attributes:
        lstm_hidden: LSTM units a direction between encoder and head; 0 = no LSTM.
        lstm_layers: LSTM layers.
        dropout_hidden: variational dropout of the encoder's states, and of the LSTM's.
    """

    lstm_hidden: int = Field(default=0, ge=0)
    lstm_layers: int = Field(default=1, ge=1)
    dropout_hidden: float = Field(default=0.1, ge=0.0, lt=1.0)


@dataclass(frozen=True, slots=True)
class PieceFeatures:
    """One text as pieces.

    Attributes:
        pieces: (length,) int64, one a character.
        tags: (length,) int64 gold tags (nested entities flattened: the longer one is kept).
    """

    pieces: np.ndarray
    tags: np.ndarray

    @property
    def length(self) -> int:
        return len(self.pieces)


@dataclass(frozen=True)
class PieceBatch(Movable):
    """Padded texts.

    Attributes:
        windows: what the encoder reads.
        tags: (batch, seq) int64, 0 at padding.
        mask: (batch, seq) bool, True = real, a prefix of each row.
        part: of the loss.
        item_ids: (batch,) places in the training set; empty at inference.
    """

    windows: Windows
    tags: Tensor
    mask: Tensor
    part: str
    item_ids: tuple[int, ...] = ()

    @property
    def num_units(self) -> Mapping[str, int]:
        return {self.part: self.mask.shape[0]}

    @property
    def unit_lengths(self) -> Mapping[str, Tensor]:
        return {self.part: self.mask.sum(dim=1)}


class EncoderTagger(EncoderModel, TagSequenceTagger):
    """Encoder, optional BiLSTM, head.

    Args:
        config: its sizes.
        tag_set: labels and scheme.
        encoder: pretrained, or of a checkpoint.
        subwords: of the same folder.
        temperature: that confidences are computed at.
    """

    Config: ClassVar[type[EncoderTaggerConfig]] = EncoderTaggerConfig
    shape_fields: ClassVar[tuple[str, ...]] = ("encoder", "tag_scheme", "lstm_hidden", "lstm_layers")
    config: EncoderTaggerConfig

    def __init__(
        self,
        config: EncoderTaggerConfig,
        tag_set: TagSet,
        encoder: Encoder,
        subwords: Subwords,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.config = config
        self.subwords = subwords
        self.temperature = temperature
        self.encoder = encoder
        self.lstm: BiLSTM | None = None
        width = encoder.width
        if config.lstm_hidden:
            self.lstm = BiLSTM(width, config.lstm_hidden, config.lstm_layers, config.dropout_hidden)
            width = 2 * config.lstm_hidden
        self.make_head(width, tag_set)
        nn.init.normal_(self.emission.weight, std=0.02)  # as BERT's own layers
        nn.init.zeros_(self.emission.bias)

    @classmethod
    def build(cls, config: EncoderTaggerConfig, data: TaggingData) -> Self:
        encoder, subwords, digest = cls.open_encoder(config)
        model = cls(config, TagSet(tuple(data.labels), config.tag_scheme), encoder, subwords)
        model.weigh_classes(data.train)
        model.inputs = {f"encoder {config.encoder}": digest}
        model.notes = model.coverage_notes(document.text for document in data.train)
        return model

    @classmethod
    def continue_from(cls, config: EncoderTaggerConfig, previous: Self, data: TaggingData) -> Self:
        """See `Model.continue_from`. The encoder's folder is not read: its weights are in `previous`."""
        cls.require_shape(config, previous)
        old_tags = previous.tag_set
        new_labels = [label for label in data.labels if label not in old_tags.labels]
        tag_set = TagSet((*old_tags.labels, *new_labels), config.tag_scheme)
        encoder = previous.encoder.copied(config.encoder_dropout)
        check_window(config.window, encoder, "model.window")
        model = cls(config, tag_set, encoder, previous.subwords, previous.temperature)
        if model.lstm is not None and previous.lstm is not None:
            model.lstm.load_state_dict(previous.lstm.state_dict())
        model.fresh = model.copy_head(previous)
        model.weigh_classes(data.train)
        labels = f"{len(old_tags.labels)} labels and {len(new_labels)} new ones"
        model.notes = (f"goes on from a trained model: {labels}",)
        return model

    # Text to batch.

    def featurize(self, item: Document) -> PieceFeatures:
        kept, _ = flatten(item.spans)
        return PieceFeatures(self.subwords.encode(item.text), self.tag_set.encode(len(item.text), kept))

    def collate(
        self, features: Sequence[PieceFeatures], draw: Draw | None = None, item_ids: Sequence[int] = ()
    ) -> PieceBatch:
        lengths = np.array([item.length for item in features])
        mask = np.arange(int(lengths.max())) < lengths[:, None]
        tags = np.zeros(mask.shape, dtype=np.int64)
        tags[mask] = np.concatenate([item.tags for item in features])
        windows = self.windows([item.pieces for item in features])
        return PieceBatch(windows, torch.from_numpy(tags), torch.from_numpy(mask), self.part, tuple(item_ids))

    # Batch to emissions; the head makes losses and spans of them.

    def forward(self, batch: PieceBatch) -> Tensor:
        """Emissions, (batch, seq, num_tags) float; with several dropout masks one more dimension before them."""
        hidden = self.encoder(batch.windows)
        if self.lstm is not None:
            hidden = variational_dropout(hidden, self.config.dropout_hidden, self.training)
            hidden = self.lstm(hidden, batch.mask)
        return self.emissions(hidden, self.config.dropout_hidden)

    # Saving.

    @classmethod
    def from_description(cls, config: EncoderTaggerConfig, description: Mapping[str, Any], folder: Path) -> Self:
        saved = TaggerDescription.model_validate(dict(description))
        encoder, subwords = cls.saved_encoder(config, folder)
        return cls(config, TagSet(tuple(saved.labels), config.tag_scheme), encoder, subwords, saved.temperature)
