"""BiLSTM-CRF over characters and bigrams, with pretrained vectors.

Source: Huang, Xu and Yu 2015; Lample et al. 2016; characters and bigrams for Chinese as in Zhang and Yang 2018 (the "char + bichar"
baseline of the Lattice LSTM paper).
Differs: BIOES tags with hard constraints in training and decoding; variational dropout; every one- and two-character row of the
vector file travels in the checkpoint, so a character that train does not hold keeps its vector at inference; no normalisation
of the text (a character without a row borrows that of its half-width or lower-case form).
Cost: the LSTM is nine tenths of a step; memory grows with batch x seq x hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from hanzoo.data.catalogue import TaggingData
from hanzoo.data.document import Document
from hanzoo.data.schemes import TagSet, flatten
from hanzoo.data.vocabulary import Vocabulary
from hanzoo.models.layers.character_tables import (
    CHARACTER_SHAPE,
    CharacterBatch,
    CharacterConfig,
    CharacterFeatures,
    CharacterTables,
    draws_of,
    hide,
    pad_rows,
    scaled_vectors,
    vocabularies_of,
)
from hanzoo.models.layers.crf_tagger import CRFHeadConfig, CRFTagger
from hanzoo.models.layers.lstm import BiLSTM, variational_dropout
from hanzoo.models.model import AttackPoint, Draw, TaggerDescription


class BiLSTMCRFConfig(CharacterConfig, CRFHeadConfig):
    """Fields of the recipe's `model` section, beside those of characters and head.

    Attributes:
        hidden: LSTM units a direction.
        num_layers: LSTM layers.
        dropout_embedding: variational dropout of the embeddings.
        dropout_hidden: variational dropout between layers and before the emissions.
    """

    hidden: int = Field(default=256, ge=1)
    num_layers: int = Field(default=1, ge=1)
    dropout_embedding: float = Field(default=0.5, ge=0.0, lt=1.0)
    dropout_hidden: float = Field(default=0.5, ge=0.0, lt=1.0)


def _both(vocabularies: Sequence[Vocabulary]) -> tuple[Vocabulary, Vocabulary | None]:
    """The vocabularies of characters and of bigrams, None where there is none."""
    return vocabularies[0], vocabularies[1] if len(vocabularies) > 1 else None


class BiLSTMCRFDescription(TaggerDescription):
    """See `TaggerDescription`.

    Attributes:
        dimensions: width of the character and of the bigram embedding.
    """

    dimensions: list[int] = Field(min_length=2, max_length=2)


class BiLSTMCRF(CharacterTables, CRFTagger):
    """Characters and bigrams, bidirectional LSTM, linear-chain CRF.

    Args:
        config: its sizes.
        tag_set: labels and scheme.
        characters: vocabulary of the characters.
        bigrams: vocabulary of the bigrams; None = not used.
        dimensions: width of the character and of the bigram embedding.
    """

    Config: ClassVar[type[BiLSTMCRFConfig]] = BiLSTMCRFConfig
    shape_fields: ClassVar[tuple[str, ...]] = (*CHARACTER_SHAPE, "tag_scheme", "hidden", "num_layers")
    config: BiLSTMCRFConfig

    def __init__(
        self,
        config: BiLSTMCRFConfig,
        tag_set: TagSet,
        characters: Vocabulary,
        bigrams: Vocabulary | None,
        dimensions: tuple[int, int],
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.config = config
        self.temperature = temperature
        width = self.make_tables(characters, bigrams, dimensions)
        self.lstm = BiLSTM(width, config.hidden, config.num_layers, config.dropout_hidden)
        self.make_head(2 * config.hidden, tag_set)

    @classmethod
    def build(cls, config: BiLSTMCRFConfig, data: TaggingData) -> Self:
        vectors = scaled_vectors(config)
        dimension = config.dimension if vectors is None else vectors.dimension
        vocabularies, starts = vocabularies_of(config, data.train, vectors)
        tag_set = TagSet(tuple(data.labels), config.tag_scheme)
        model = cls(config, tag_set, *_both(vocabularies), (dimension, dimension))
        model.initialise_tables(starts)
        model.weigh_classes(data.train)
        if vectors is not None:
            model.inputs = {vectors.name: vectors.sha256}
            model.notes = vectors.notes
        return model

    @classmethod
    def continue_from(cls, config: BiLSTMCRFConfig, previous: Self, data: TaggingData) -> Self:
        """See `Model.continue_from`. The vector file is not read: all of its rows that matter are in `previous`."""
        cls.require_shape(config, previous)
        old_tags = previous.tag_set
        new_labels = [label for label in data.labels if label not in old_tags.labels]
        tag_set = TagSet((*old_tags.labels, *new_labels), config.tag_scheme)
        vocabularies, rows = previous.extended_vocabularies(config, data.train)
        model = cls(config, tag_set, *_both(vocabularies), previous.dimensions, previous.temperature)
        model.copy_tables(previous, rows)
        model.lstm.load_state_dict(previous.lstm.state_dict())
        model.fresh = model.copy_head(previous)
        model.weigh_classes(data.train)
        known = len(previous.character_vocabulary.trained)
        labels = f"{len(old_tags.labels)} labels and {len(new_labels)} new ones"
        rows_said = f"{known:,} trained characters and {len(vocabularies[0].trained) - known:,} new ones"
        model.notes = (f"goes on from a trained model: {labels}, {rows_said}",)
        return model

    # Text to batch.

    def featurize(self, item: Document) -> CharacterFeatures:
        kept, _ = flatten(item.spans)
        return CharacterFeatures(*self.rows_of(item.text), tags=self.tag_set.encode(len(item.text), kept))

    def collate(
        self, features: Sequence[CharacterFeatures], draw: Draw | None = None, item_ids: Sequence[int] = ()
    ) -> CharacterBatch:
        lengths = np.array([item.length for item in features])
        mask = np.arange(int(lengths.max())) < lengths[:, None]
        character_ids = pad_rows((item.characters for item in features), mask)
        bigram_ids = pad_rows((item.bigrams for item in features), mask) if self.bigrams is not None else None
        tables = [ids for ids in (character_ids, bigram_ids) if ids is not None]
        hide(tables, [mask] * len(tables), self.config.unknown_rate, draws_of(draw, item_ids))
        return CharacterBatch(
            torch.from_numpy(character_ids),
            None if bigram_ids is None else torch.from_numpy(bigram_ids),
            torch.from_numpy(pad_rows((item.tags for item in features), mask)),
            torch.from_numpy(mask),
            tuple(item_ids),
        )

    # Batch to emissions; the head makes losses and spans of them.

    def forward(self, batch: CharacterBatch) -> Tensor:
        """Emissions, (batch, seq, num_tags) float; with several dropout masks one more dimension before them."""
        embedded = self.embed(batch.characters, batch.bigrams)
        embedded = variational_dropout(embedded, self.config.dropout_embedding, self.training)
        hidden = self.lstm(embedded, batch.mask)
        return self.emissions(hidden, self.config.dropout_hidden)

    def attack_points(self, batch: CharacterBatch) -> Mapping[str, AttackPoint]:
        rows = torch.arange(batch.mask.shape[0], device=batch.mask.device).unsqueeze(1)
        samples = torch.where(batch.mask, rows, -1)
        embeddings = {"characters": self.characters, "bigrams": self.bigrams}
        return {
            name: AttackPoint(embedding, samples, embedding.weight)
            for name, embedding in embeddings.items()
            if embedding is not None
        }

    def depth(self, parameter: str) -> int:
        match parameter.split("."):
            case ["characters" | "bigrams", *_]:
                return 0
            case ["lstm", _, layer, *_]:  # lstm.forward_layers.0.weight_ih_l0
                return 1 + int(layer)
            case _:
                return 1 + self.config.num_layers

    # Saving.

    def description(self) -> dict[str, Any]:
        return super().description() | {"dimensions": list(self.dimensions)}

    def save_files(self, folder: Path) -> None:
        self.character_vocabulary.save(folder / "characters.json")
        if self.bigram_vocabulary is not None:
            self.bigram_vocabulary.save(folder / "bigrams.json")

    @classmethod
    def from_description(cls, config: BiLSTMCRFConfig, description: Mapping[str, Any], folder: Path) -> Self:
        saved = BiLSTMCRFDescription.model_validate(dict(description))
        return cls(
            config,
            TagSet(tuple(saved.labels), config.tag_scheme),
            Vocabulary.load(folder / "characters.json"),
            Vocabulary.load(folder / "bigrams.json") if config.use_bigrams else None,
            (saved.dimensions[0], saved.dimensions[1]),
            saved.temperature,
        )
