"""Tables of characters and bigrams: what has a row, what it starts from, how rows are laid into a batch and hidden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hanzoo.data.document import Document
from hanzoo.data.randomness import generator
from hanzoo.data.vocabulary import NUM_SPECIAL, UNKNOWN
from hanzoo.models.layers.character_tables import (
    CharacterConfig,
    CharacterTables,
    draws_of,
    hide,
    pad_rows,
    scaled_vectors,
    vocabularies_of,
)

TRAIN = [Document("南京南京"), Document("北京")]
VECTORS = {"南": [1.0, 2.0], "海": [3.0, 4.0], "南京": [5.0, 6.0], "上海": [-7.0, 8.0], "南京市": [9.0, 9.0]}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CharacterConfig:
    monkeypatch.setenv("HANZOO_CACHE", str(tmp_path / "cache"))
    rows = [f"{word} {' '.join(map(str, vector))}" for word, vector in VECTORS.items()]
    (tmp_path / "some.vec").write_text("\n".join(["5 2", *rows]) + "\n", encoding="utf-8")
    return CharacterConfig(vectors=str(tmp_path / "some.vec"))


def tables(config: CharacterConfig, seed: int = 1) -> CharacterTables:
    torch.manual_seed(seed)
    vocabularies, starts = vocabularies_of(config, TRAIN, scaled_vectors(config))
    made = CharacterTables()
    second = vocabularies[1] if len(vocabularies) > 1 else None
    made.make_tables(vocabularies[0], second, (2, 2))
    made.initialise_tables(starts)
    return made


def row(made: CharacterTables, token: str) -> list[float]:
    table, vocabulary = (made.characters, made.character_vocabulary)
    if len(token) > 1:
        assert made.bigrams is not None
        assert made.bigram_vocabulary is not None
        table, vocabulary = made.bigrams, made.bigram_vocabulary
    found: list[float] = table(torch.from_numpy(vocabulary.encode([token]))).tolist()[0]
    return found


def test_characters_of_train_are_learnt_and_those_of_the_file_frozen(config: CharacterConfig) -> None:
    made = tables(config)
    assert made.character_vocabulary.trained == ("京", "南", "北")
    assert made.character_vocabulary.frozen == ("海",)
    assert made.bigram_vocabulary is not None
    # twice in train, or with a vector; the rest of train's bigrams has no row
    assert made.bigram_vocabulary.trained == ("京</s>", "南京")
    assert made.bigram_vocabulary.frozen == ("上海",)
    for token in ("南", "海", "南京", "上海"):
        assert row(made, token) == VECTORS[token]
    assert row(made, "新") == row(made, "鲜") != row(made, "北")
    characters, pairs = made.rows_of("南海新")
    assert characters.tolist() == [NUM_SPECIAL + 1, NUM_SPECIAL + 3, UNKNOWN]
    assert pairs.tolist() == [UNKNOWN] * 3
    assert made.embed(torch.from_numpy(characters)[None], torch.from_numpy(pairs)[None]).shape == (1, 3, 4)


def test_vectors_are_scaled_all_by_one_factor(config: CharacterConfig) -> None:
    scaled = scaled_vectors(config.model_copy(update={"vector_scale": 0.5}))
    plain = scaled_vectors(config)
    assert plain is not None
    assert scaled is not None
    assert np.sqrt(np.mean(np.square(scaled.matrix))) == pytest.approx(0.5)
    ratios = scaled.matrix / plain.matrix
    assert np.ptp(ratios) < 1e-6
    assert scaled_vectors(CharacterConfig()) is None


def test_without_bigrams_there_is_one_table(config: CharacterConfig) -> None:
    made = tables(config.model_copy(update={"use_bigrams": False}))
    assert made.bigrams is None
    characters, pairs = made.rows_of("南京")
    assert (len(characters), len(pairs)) == (2, 0)
    assert made.embed(torch.from_numpy(characters)[None], None).shape == (1, 2, 2)


def test_other_training_documents_extend_the_tables(config: CharacterConfig) -> None:
    made = tables(config)
    vocabularies, rows = made.extended_vocabularies(config, [Document("海鲜海鲜上海")])
    assert vocabularies[0].trained == ("京", "南", "北", "海", "鲜", "上")
    longer = CharacterTables()
    longer.make_tables(vocabularies[0], vocabularies[1], (2, 2))
    longer.copy_tables(made, rows)
    for token in ("南", "北", "海", "鲜", "上", "南京", "上海", "海鲜"):
        assert row(longer, token) == row(made, token)
    assert longer.bigram_vocabulary is not None
    assert "海鲜" in longer.bigram_vocabulary.trained
    assert "海</s>" not in longer.bigram_vocabulary  # once only


def test_rows_are_laid_one_below_the_other() -> None:
    mask = np.array([[True, True, False], [False] * 3, [True] * 3])
    rows = [np.array([5, 6]), np.array([], dtype=np.int64), np.array([7, 8, 9])]
    assert pad_rows(rows, mask).tolist() == [[5, 6, 0], [0, 0, 0], [7, 8, 9]]
    assert pad_rows(rows[1:2], mask[1:2, :0]).shape == (1, 0)


def test_hidden_ids_are_drawn_an_item_at_a_time() -> None:
    lengths = [200, 80]
    mask = np.arange(200) < np.array(lengths)[:, None]

    def hidden(order: list[int], columns: int = 200, **changed: Any) -> list[list[list[int]]]:
        masks = [np.pad(mask, ((0, 0), (0, columns - 200)))[order]] * 2
        made = [np.where(of, number, 0).astype(np.int64) for of, number in zip(masks, (7, 8), strict=True)]
        arguments: dict[str, Any] = {"rate": 0.25, "draws": draws_of(lambda item: generator(1, "input", item), order)}
        hide(made, masks, **arguments | changed)
        return [[rows[i, : lengths[item]].tolist() for i, item in enumerate(order)] for rows in made]

    plain = hidden([0, 1])
    assert hidden([1, 0]) == [rows[::-1] for rows in plain]
    assert hidden([0, 1], columns=300) == plain
    assert plain[0][0] != [7 if number == 8 else number for number in plain[1][0]]  # each table its own draws
    for rows, number in zip(plain, (7, 8), strict=True):
        flat = [*rows[0], *rows[1]]
        assert set(flat) == {number, UNKNOWN}
        assert 0.15 < flat.count(UNKNOWN) / len(flat) < 0.35
    untouched = [[[number] * length for length in lengths] for number in (7, 8)]
    assert hidden([0, 1], rate=0.0) == hidden([0, 1], draws=draws_of(None, [0, 1])) == untouched


def test_padding_is_never_hidden() -> None:
    mask = np.array([[True] * 3 + [False] * 200])
    ids = np.where(mask, 5, 0).astype(np.int64)
    hide([ids], [mask], 0.99, [generator(1, "input", 0)])
    assert not ids[~mask].any()
    assert (ids[mask] == UNKNOWN).any()
