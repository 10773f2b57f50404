"""What FLAT is, with an encoder in front or without: characters, the words of a lexicon found in the text, Transformer layers over
both with relative positions, a CRF over the characters.

Source: Li et al. 2020, "FLAT: Chinese NER Using Flat-Lattice Transformer".
Differs from the paper: BIOES tags with hard constraints; words that train does not hold keep their pretrained vectors; a word
without a vector has one composed from its characters; no length limit. How the released code differs from the paper is in the
fields of `FlatConfig`: `four_positions`, `key_projection`, `output_projection`, `scaled`, `residual`, `shared_norm`.
Cost: see `relative_position.py`; time grows with characters x (characters + words) in the last layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hanzoo.data.catalogue import TaggingData
from hanzoo.data.document import Document
from hanzoo.data.lattice import Lattice
from hanzoo.data.lexicon import Lexicon, coverage, read_words, words_of
from hanzoo.data.schemes import TagSet, flatten
from hanzoo.data.vocabulary import NUM_SPECIAL, UNKNOWN, Vocabulary
from hanzoo.data.windows import rounded
from hanzoo.errors import RecipeError
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
from hanzoo.models.layers.relative_position import RelativeAttention
from hanzoo.models.layers.word_table import WordComposer, WordTable, found_first, starting_rows
from hanzoo.models.model import AttackPoint, Draw, TaggerDescription


class FlatConfig(CharacterConfig, CRFHeadConfig):
    """Fields of the recipe's `model` section, beside those of characters and head.

    Attributes:
        lexicon: where its words come from (see `read_words`), in this order; none = the words of `vectors`.
        max_word_length: characters that a word has at most; None = any number.
        width: of the hidden states.
        num_heads: attention heads; divides width.
        num_layers: Transformer layers.
        feed_forward: width of the feed-forward layers.
        four_positions: all four distances between two spans; False = head-head and tail-tail, the release's default.
        key_projection: project the keys; False = they are the hidden states, as in the release.
        output_projection: project the output of the heads; False = as in the release.
        scaled: divide attention scores by the square root of a head's width; False = as in the release.
        residual: add a sublayer's input to its output; False = as in the release, whose residual adds the output to itself.
        shared_norm: one LayerNorm behind both sublayers, as in the release.
        dropout_embedding: of the characters' and bigrams' embeddings.
        dropout_word: of the words' embeddings.
        dropout_feed_forward: inside and behind the sublayers.
        dropout_attention: of attention weights.
        dropout_hidden: variational dropout before the emissions.
        kind_rate: share of the entities that are read in training as if somebody had added them to the lexicon with their label as
            their kind; words that are added so to a trained model are then read as these were. 0 = a kind says nothing.
    """

    lexicon: list[str] = Field(default_factory=list)
    max_word_length: int | None = Field(default=None, ge=2)
    width: int = Field(default=160, ge=4)
    num_heads: int = Field(default=8, ge=1)
    num_layers: int = Field(default=1, ge=1)
    feed_forward: int = Field(default=480, ge=1)
    four_positions: bool = True
    key_projection: bool = True
    output_projection: bool = True
    scaled: bool = True
    residual: bool = True
    shared_norm: bool = False
    dropout_embedding: float = Field(default=0.5, ge=0.0, lt=1.0)
    dropout_word: float = Field(default=0.5, ge=0.0, lt=1.0)
    dropout_feed_forward: float = Field(default=0.15, ge=0.0, lt=1.0)
    dropout_attention: float = Field(default=0.0, ge=0.0, lt=1.0)
    dropout_hidden: float = Field(default=0.3, ge=0.0, lt=1.0)
    kind_rate: float = Field(default=0.0, ge=0.0, lt=1.0)


class FlatDescription(TaggerDescription):
    """See `TaggerDescription`.

    Attributes:
        dimensions: width of the character, bigram and word embedding.
        num_found: words whose rows are learnt.
    """

    dimensions: list[int] = Field(min_length=3, max_length=3)
    num_found: int = Field(ge=0)


LEXICON_FILE = "lexicon.txt"


@dataclass(frozen=True, slots=True)
class LatticeFeatures(CharacterFeatures):
    """One text and the words found in it; see `CharacterFeatures`.

    Attributes:
        starts: (words,) int64, index of the first character.
        ends: (words,) int64, index behind the last.
        words: (words,) int64 rows.
        entities: (entities, 3) int64, first character, the one behind the last, label: the gold.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    words: NDArray[np.int64]
    entities: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class LatticeBatch(CharacterBatch):
    """Padded texts with their words; see `CharacterBatch`.

    Attributes:
        words: (batch, words) int64, 0 = padding.
        positions: of characters and words.
        kinds: (batch, words) int64, the label that a word is read as; -1 = it is read as itself. None = all are.
    """

    words: Tensor
    positions: Lattice
    kinds: Tensor | None = None


class FlatLayer(nn.Module):
    """Attention over the lattice and a feed-forward layer, each with LayerNorm behind it.

    Args:
        config: see there.
    """

    def __init__(self, config: FlatConfig) -> None:
        super().__init__()
        self.residual = config.residual
        self.dropout = config.dropout_feed_forward
        self.attention = RelativeAttention(
            config.width,
            config.num_heads,
            four_positions=config.four_positions,
            key_projection=config.key_projection,
            output_projection=config.output_projection,
            scaled=config.scaled,
            dropout=config.dropout_attention,
        )
        self.inner = nn.Linear(config.width, config.feed_forward)
        self.outer = nn.Linear(config.feed_forward, config.width)
        self.attention_norm = nn.LayerNorm(config.width)
        self.feed_forward_norm = None if config.shared_norm else nn.LayerNorm(config.width)
        for linear in (self.inner, self.outer):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, hidden: Tensor, positions: Lattice, num_queries: int | None = None) -> Tensor:
        """(batch, columns, width) to (batch, num_queries, width): see `RelativeAttention`."""
        attended = self._dropped(self.attention(hidden, positions, num_queries))
        hidden = self.attention_norm(attended + hidden[:, :num_queries] if self.residual else attended)
        found = self._dropped(self.outer(self._dropped(self.inner(hidden).relu())))
        norm = self.attention_norm if self.feed_forward_norm is None else self.feed_forward_norm
        normed: Tensor = norm(found + hidden if self.residual else found)
        return normed

    def _dropped(self, values: Tensor) -> Tensor:
        return F.dropout(values, self.dropout, self.training)


class FlatTagger(CharacterTables, CRFTagger):
    """Characters, words, Transformer layers over both, linear-chain CRF.

    Args:
        config: its sizes.
        tag_set: labels and scheme.
        vocabularies: of the characters, and of the bigrams where they are used.
        dimensions: width of the character, bigram and word embedding.
        lexicon: its words; may be changed at any time.
        num_found: how many of them, the first, are learnt.
        temperature: that confidences are computed at.
        beside: numbers a character beside its embeddings (an encoder's states).
    """

    shape_fields: ClassVar[tuple[str, ...]] = (
        *CHARACTER_SHAPE, "tag_scheme", "lexicon", "max_word_length", "width", "num_heads", "num_layers", "feed_forward",
        "four_positions", "key_projection", "output_projection", "scaled", "residual", "shared_norm",
    )  # fmt: skip
    config: FlatConfig
    lexicon: Lexicon

    def __init__(
        self,
        config: FlatConfig,
        tag_set: TagSet,
        vocabularies: Sequence[Vocabulary],
        dimensions: Sequence[int],
        lexicon: Lexicon,
        num_found: int,
        temperature: float = 1.0,
        beside: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.temperature = temperature
        self.lexicon = lexicon
        width = self.make_tables(
            vocabularies[0], vocabularies[1] if config.use_bigrams else None, (dimensions[0], dimensions[1])
        )
        self.words = WordTable(NUM_SPECIAL + num_found, dimensions[2], lexicon.num_ids - num_found)
        self.composer = WordComposer(len(vocabularies[0]), dimensions[2])
        self.kinds = nn.Embedding(len(tag_set.labels), dimensions[2]) if config.kind_rate else None
        self.character_projection = nn.Linear(width + beside, config.width)
        self.word_projection = nn.Linear(dimensions[2], config.width)
        self.layers = nn.ModuleList(FlatLayer(config) for _ in range(config.num_layers))
        self.make_head(config.width, tag_set)
        for linear in (self.character_projection, self.word_projection, self.emission):
            nn.init.xavier_uniform_(linear.weight)

    @classmethod
    def check(cls, config: FlatConfig) -> None:
        if config.width % config.num_heads or config.width % 2:
            raise RecipeError(
                f"model.width: must be even and a multiple of num_heads ({config.num_heads}), but is {config.width}. Change one."
            )
        if not config.lexicon and not config.vectors:
            raise RecipeError(
                "model.lexicon: must name a list of words where model.vectors is left out, but is empty. Set model.lexicon=[jieba]."
            )

    @classmethod
    def build_with(cls, config: FlatConfig, data: TaggingData, **front: Any) -> Self:
        """See `Model.build`; `front`: more arguments of the class, for what stands in front."""
        cls.check(config)
        vectors = scaled_vectors(config)
        dimension = config.dimension if vectors is None else vectors.dimension
        vocabularies, starts = vocabularies_of(config, data.train, vectors)
        sources = [read_words(name) for name in config.lexicon]
        if not sources and vectors is not None:
            sources = [words_of(vectors)]
        words = Lexicon.of(*sources, max_length=config.max_word_length)
        order, num_found = found_first(words, [document.text for document in data.train])
        lexicon = words.select(order)
        model = cls(
            config,
            TagSet(tuple(data.labels), config.tag_scheme),
            vocabularies,
            [dimension] * 3,
            lexicon,
            num_found,
            **front,
        )
        model.initialise_tables(starts)
        start = torch.cat([model.characters.weight.detach(), model.characters.frozen.float()])
        model.words.initialise(starting_rows(lexicon, num_found, vectors, model.composer, vocabularies[0], start))
        model._initialise_kinds()
        model.weigh_classes(data.train)
        model.inputs = {source.name: source.sha256 for source in sources}
        notes = [note for source in sources for note in source.notes]
        if vectors is not None:
            model.inputs = {**model.inputs, vectors.name: vectors.sha256}
            notes += vectors.notes
        model.notes = (
            *dict.fromkeys(notes),
            f"lexicon: {len(lexicon):,} words, {num_found:,} of them in train; {coverage(lexicon, data.train)}",
        )
        return model

    @classmethod
    def continue_with(cls, config: FlatConfig, previous: Self, data: TaggingData, **front: Any) -> Self:
        """See `Model.continue_from`. No file is read: all words and vectors are in `previous`."""
        cls.require_shape(config, previous)
        old_tags = previous.tag_set
        new_labels = [label for label in data.labels if label not in old_tags.labels]
        vocabularies, rows = previous.extended_vocabularies(config, data.train)
        previous._compose_new()
        num_before = previous.words.num_trained - NUM_SPECIAL
        words = previous.lexicon
        order, num_found = found_first(words, [document.text for document in data.train], range(num_before))
        tag_set = TagSet((*old_tags.labels, *new_labels), config.tag_scheme)
        dimensions = (*previous.dimensions, previous.words.dimension)
        model = cls(
            config, tag_set, vocabularies, dimensions, words.select(order), num_found, previous.temperature, **front
        )
        model.copy_tables(previous, rows)
        places = [np.arange(NUM_SPECIAL), np.array(order, dtype=np.int64) + NUM_SPECIAL]
        model.words.copy_rows(previous.words, np.concatenate(places))
        model.composer.copy(previous.composer, rows[0])
        model._initialise_kinds(previous.kinds)
        for name in ("character_projection", "word_projection", "layers"):
            model.get_submodule(name).load_state_dict(previous.get_submodule(name).state_dict())
        model.fresh = model.copy_head(previous)
        model.weigh_classes(data.train)
        labels = f"{len(old_tags.labels)} labels and {len(new_labels)} new ones"
        words_said = f"{num_before:,} learnt words and {num_found - num_before:,} new ones"
        model.notes = (f"goes on from a trained model: {labels}, {words_said}",)
        return model

    @property
    def reads_kinds(self) -> bool:
        return self.kinds is not None

    @torch.no_grad()
    def _initialise_kinds(self, previous: nn.Embedding | None = None) -> None:
        """Draw the vectors of the kinds, as long as those of words; those of a model that this one goes on from are its own."""
        if self.kinds is None:
            return
        self.kinds.weight.normal_().mul_(self.words.weight[NUM_SPECIAL:].square().mean().sqrt().nan_to_num(1.0))
        if previous is not None:
            self.kinds.weight[: len(previous.weight)] = previous.weight

    # Text to batch.

    def lattice_features(self, item: Document) -> LatticeFeatures:
        """See `Model.featurize`."""
        kept, _ = flatten(item.spans)
        labels = self.tag_set.labels
        found = self.lexicon.matches(item.text)
        self._compose_new()
        return LatticeFeatures(
            *self.rows_of(item.text),
            tags=self.tag_set.encode(len(item.text), kept),
            starts=found.starts,
            ends=found.ends,
            words=found.words + NUM_SPECIAL,
            entities=np.array([(*span[:2], labels.index(span.label)) for span in kept], dtype=np.int64).reshape(-1, 3),
        )

    def _compose_new(self) -> None:
        """Give the words that were added to the lexicon their vectors: that of their kind, or one of their characters."""
        known = self.words.num_trained - NUM_SPECIAL + len(self.words.frozen)
        if known < self.lexicon.num_ids:
            words = [self.lexicon.word(id) for id in range(known, self.lexicon.num_ids)]
            vectors = self.composer(words, self.character_vocabulary)
            rows = {} if self.kinds is None else dict(zip(self.tag_set.labels, self.kinds.weight.detach(), strict=True))
            for place, id in enumerate(range(known, self.lexicon.num_ids)):
                vectors[place] = rows.get(self.lexicon.kind(id) or "", vectors[place])
            self.words.append(vectors)

    def lattice_batch(
        self, features: Sequence[LatticeFeatures], draw: Draw | None = None, item_ids: Sequence[int] = ()
    ) -> LatticeBatch:
        """See `Model.collate`."""
        draws = draws_of(draw, item_ids)
        kinds: list[NDArray[np.int64]] = []
        if draws and self.kinds is not None:
            features, kinds = self._with_kinds(features, draws)
        lengths = [item.length for item in features]
        seq, most = rounded(max(lengths)), rounded(max(len(item.words) for item in features))
        mask = np.arange(seq) < np.array(lengths)[:, None]
        words_mask = np.arange(most) < np.array([len(item.words) for item in features])[:, None]
        character_ids = pad_rows((item.characters for item in features), mask)
        bigram_ids = pad_rows((item.bigrams for item in features), mask) if self.bigrams is not None else None
        word_ids = pad_rows((item.words for item in features), words_mask)
        tables = [ids for ids in (character_ids, bigram_ids) if ids is not None]
        masks = [mask] * len(tables)
        hide([*tables, word_ids], [*masks, words_mask], self.config.unknown_rate, draws)
        return LatticeBatch(
            torch.from_numpy(character_ids),
            None if bigram_ids is None else torch.from_numpy(bigram_ids),
            torch.from_numpy(pad_rows((item.tags for item in features), mask)),
            torch.from_numpy(mask),
            tuple(item_ids),
            words=torch.from_numpy(word_ids),
            positions=Lattice.of(lengths, [(item.starts, item.ends) for item in features], seq, most),
            kinds=torch.from_numpy(pad_rows(kinds, words_mask) - (~words_mask)) if kinds else None,
        )

    def _with_kinds(
        self, features: Sequence[LatticeFeatures], draws: Sequence[np.random.Generator]
    ) -> tuple[Sequence[LatticeFeatures], list[NDArray[np.int64]]]:
        """The features as if some of their entities had been added to the lexicon, and the label that each word is read as, or -1.

        Of half of these entities the characters say nothing, as those of a new name do.
        """
        made, kinds = [], []
        for item, generator in zip(features, draws, strict=True):
            long = item.entities[item.entities[:, 1] - item.entities[:, 0] >= self.lexicon.min_length]
            chosen = long[generator.random(len(long)) < self.config.kind_rate]
            there = {
                span: place for place, span in enumerate(zip(item.starts.tolist(), item.ends.tolist(), strict=True))
            }
            of_words = np.full(len(item.words), -1, dtype=np.int64)
            new = []
            characters, bigrams = item.characters.copy(), item.bigrams.copy()
            for (start, end, label), is_unknown in zip(
                chosen.tolist(), generator.random(len(chosen)) < 0.5, strict=True
            ):
                if (start, end) in there:
                    of_words[there[start, end]] = label
                else:
                    new.append((start, end, label))
                if is_unknown:
                    characters[start:end] = UNKNOWN
                    bigrams[start:end] = UNKNOWN
            starts, ends, labels = np.array(new, dtype=np.int64).reshape(-1, 3).T
            made.append(
                replace(
                    item,
                    characters=characters,
                    bigrams=bigrams,
                    starts=np.concatenate([item.starts, starts]),
                    ends=np.concatenate([item.ends, ends]),
                    words=np.concatenate([item.words, np.full(len(new), UNKNOWN)]),
                )
            )
            kinds.append(np.concatenate([of_words, labels]))
        return made, kinds

    # Batch to emissions; the head makes losses and spans of them.

    def forward(self, batch: Any) -> Tensor:
        """Emissions, (batch, seq, num_tags) float; with several dropout masks one more dimension before them."""
        embedded = self.embed_characters(batch)
        embedded = F.dropout(embedded, self.config.dropout_embedding, self.training)
        words = self.words(batch.words)
        if batch.kinds is not None and self.kinds is not None:
            of_kinds = self.kinds(batch.kinds.clamp(min=0))
            words = torch.where(batch.kinds.unsqueeze(2) < 0, words, of_kinds)
        words = F.dropout(words, self.config.dropout_word, self.training)
        hidden = torch.cat([self.character_projection(embedded), self.word_projection(words)], dim=1)
        for layer in self.layers[:-1]:
            hidden = layer(hidden, batch.positions)
        hidden = self.layers[-1](hidden, batch.positions, batch.positions.seq)  # words are not tagged
        return self.emissions(hidden, self.config.dropout_hidden)

    def embed_characters(self, batch: Any) -> Tensor:
        """(batch, seq, numbers a character)."""
        return self.embed(batch.characters, batch.bigrams)

    def attack_points(self, batch: Any) -> Mapping[str, AttackPoint]:
        rows = torch.arange(batch.mask.shape[0], device=batch.mask.device).unsqueeze(1)
        samples = torch.where(batch.positions.mask, rows, -1)
        of_characters, of_words = samples[:, : batch.positions.seq], samples[:, batch.positions.seq :]
        tables = {
            "characters": (self.characters, of_characters),
            "bigrams": (self.bigrams, of_characters),
            "words": (self.words, of_words),
        }
        return {
            name: AttackPoint(table, samples, table.weight)
            for name, (table, samples) in tables.items()
            if table is not None
        }

    def depth(self, parameter: str) -> int:
        match parameter.split("."):
            case ["characters" | "bigrams" | "words" | "kinds" | "character_projection" | "word_projection", *_]:
                return 0
            case ["layers", number, *_]:
                return 1 + int(number)
            case _:
                return 1 + self.config.num_layers

    # Saving.

    def own_weights(self) -> dict[str, Tensor]:
        self._compose_new()  # words added since the last text was read
        return super().own_weights()

    def description(self) -> dict[str, Any]:
        dimensions = [*self.dimensions, self.words.dimension]
        return super().description() | {"dimensions": dimensions, "num_found": self.words.num_trained - NUM_SPECIAL}

    @classmethod
    def saved_with(cls, config: FlatConfig, description: Mapping[str, Any], folder: Path, **front: Any) -> Self:
        """See `Model.from_description`."""
        saved = FlatDescription.model_validate(dict(description))
        names = ["characters.json", "bigrams.json"][: 1 + config.use_bigrams]
        return cls(
            config,
            TagSet(tuple(saved.labels), config.tag_scheme),
            [Vocabulary.load(folder / name) for name in names],
            saved.dimensions,
            Lexicon.open(folder / LEXICON_FILE),
            saved.num_found,
            saved.temperature,
            **front,
        )

    def save_files(self, folder: Path) -> None:
        self.character_vocabulary.save(folder / "characters.json")
        if self.bigram_vocabulary is not None:
            self.bigram_vocabulary.save(folder / "bigrams.json")
        self.lexicon.save(folder / LEXICON_FILE)
