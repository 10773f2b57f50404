"""FLAT: flat-lattice Transformer over characters and the words of a lexicon.

Source: Li et al. 2020, "FLAT: Chinese NER Using Flat-Lattice Transformer". The parts are in `layers/flat_tagger.py` (the network),
`layers/relative_position.py` (attention), `layers/word_table.py` (vectors of words), `data/lexicon.py` (which words).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from hanzoo.data.catalogue import TaggingData
from hanzoo.data.document import Document
from hanzoo.models.layers.flat_tagger import FlatConfig, FlatTagger, LatticeBatch, LatticeFeatures
from hanzoo.models.model import Draw


class Flat(FlatTagger):
    """FLAT on embeddings of characters, bigrams and words; see `FlatTagger`."""

    Config: ClassVar[type[FlatConfig]] = FlatConfig

    @classmethod
    def build(cls, config: FlatConfig, data: TaggingData) -> Self:
        return cls.build_with(config, data)

    @classmethod
    def continue_from(cls, config: FlatConfig, previous: Self, data: TaggingData) -> Self:
        return cls.continue_with(config, previous, data)

    @classmethod
    def from_description(cls, config: FlatConfig, description: Mapping[str, Any], folder: Path) -> Self:
        return cls.saved_with(config, description, folder)

    def featurize(self, item: Document) -> LatticeFeatures:
        return self.lattice_features(item)

    def collate(
        self, features: Sequence[LatticeFeatures], draw: Draw | None = None, item_ids: Sequence[int] = ()
    ) -> LatticeBatch:
        return self.lattice_batch(features, draw, item_ids)
