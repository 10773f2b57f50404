"""Vectors of words: composed as a plain ridge regression composes them, learnt ones first, frozen ones in half precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hanzoo.data.lexicon import Lexicon
from hanzoo.data.vectors import Vectors
from hanzoo.data.vocabulary import NUM_SPECIAL, UNKNOWN, StartingRows, Vocabulary
from hanzoo.errors import DataError
from hanzoo.models.layers import word_table as module
from hanzoo.models.layers.word_table import RIDGE, WordComposer, WordTable, found_first, starting_rows

CHARACTERS = Vocabulary("南京市长江大桥北", "海上")
WORDS = ("南京", "南京市", "市长", "长江大桥", "江", "上海", "北京", "大大", "海a")
DIMENSION = 3


def drawn(rows: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, DIMENSION)).astype(np.float32)


def starts() -> torch.Tensor:
    """Vectors of the characters, such as half precision holds exactly."""
    rows = torch.from_numpy(drawn(len(CHARACTERS))).half().float()
    rows[0] = 0
    return rows


def composer(words: tuple[str, ...] = WORDS) -> WordComposer:
    made = WordComposer(len(CHARACTERS), DIMENSION)
    made.fit(CHARACTERS, starts(), words, drawn(len(words), 2))
    return made


def inputs_of(words: tuple[str, ...]) -> NDArray[np.float64]:
    """First, mean, last, 1: a word at a time."""
    table, rows = starts().double().numpy(), []
    for word in words:
        vectors = table[CHARACTERS.encode(word)]
        rows.append(np.concatenate([vectors[0], vectors.mean(0), vectors[-1], [1.0]]))
    return np.array(rows)


@pytest.mark.parametrize("a_pass", [1, 2, 100])
def test_composed_as_by_ridge_regression(a_pass: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORDS_A_PASS", a_pass)
    found = composer()
    inputs, wanted = inputs_of(WORDS), drawn(len(WORDS), 2).astype(np.float64)
    strength = RIDGE * np.mean(np.sum(inputs**2, axis=0))
    # ridge regression as least squares with more rows
    rows = np.concatenate([inputs, np.sqrt(strength) * np.eye(inputs.shape[1])])
    weight = np.linalg.lstsq(rows, np.concatenate([wanted, np.zeros((inputs.shape[1], DIMENSION))]), rcond=None)[0]
    size = np.sqrt(np.mean(wanted**2) / np.mean((inputs @ weight) ** 2))
    np.testing.assert_allclose(found.weight.numpy(), weight * size, rtol=1e-4, atol=1e-5)
    assert abs(size - 1) > 0.01  # the control: without the scaling it would be another one
    others = ("江南", "桥", "京海b上")
    composed = found(others, CHARACTERS)
    assert composed.dtype == torch.float32
    np.testing.assert_allclose(
        composed.numpy(), inputs_of(others) @ found.weight.double().numpy(), rtol=1e-4, atol=1e-5
    )
    assert found([], CHARACTERS).shape == (0, DIMENSION)


def test_composed_words_are_as_large_as_the_others() -> None:
    found = composer()(WORDS, CHARACTERS)
    size = float(found.square().mean().sqrt())
    assert size == pytest.approx(float(np.sqrt(np.mean(drawn(len(WORDS), 2) ** 2))), rel=1e-4)


def test_a_composed_word_depends_on_the_order_of_its_ends() -> None:
    found = composer()(["南京市", "市京南", "南市京", "南南市"], CHARACTERS)
    assert len({tuple(row) for row in found.tolist()}) == 4


def test_without_any_vector_a_word_is_the_mean_of_its_characters() -> None:
    found = composer(())(["南京市", "大大", "北a"], CHARACTERS)
    table = starts()
    wanted = torch.stack(
        [table[torch.from_numpy(CHARACTERS.encode(word))].mean(0) for word in ("南京市", "大大", "北a")]
    )
    assert torch.allclose(found, wanted, atol=1e-6)
    assert table[UNKNOWN].any()


def test_a_copied_composer_composes_the_same() -> None:
    before = composer()
    wider, rows = CHARACTERS.extended("南上丙", min_count=1)
    after = WordComposer(len(wider), DIMENSION)
    after.copy(before, rows)
    words = ["南京", "上海", "丙丁", "江上"]
    assert torch.equal(after(words, wider), before(words, CHARACTERS))
    assert wider.encode("上") != CHARACTERS.encode("上")


def test_append_adds_frozen_rows_behind_all_others() -> None:
    table = WordTable(4, DIMENSION, 2)
    table.initialise(StartingRows(drawn(4), drawn(2, 3).astype(np.float16)), torch.Generator().manual_seed(1))
    before = table(torch.arange(6))
    rows = torch.from_numpy(drawn(3, 5))
    table.append(rows[:1])
    table.append(rows[1:])
    assert torch.equal(table(torch.arange(6)), before)
    assert table.frozen.dtype == torch.float16
    assert torch.equal(table(torch.arange(6, 9)), rows.half().float())
    assert table.state_dict()["frozen"].shape == (5, DIMENSION)
    assert [name for name, _ in table.named_parameters()] == ["weight"]
    with pytest.raises(IndexError):
        table(torch.tensor([9]))


def test_the_words_that_train_holds_come_first() -> None:
    lexicon = Lexicon(["北京", "长江", "上海", "南京", "大桥", "京市"])
    order, number = found_first(lexicon, ["南京市长江大桥", "长江", "", "在长江"])
    assert [lexicon.word(id) for id in order] == ["长江", "南京", "大桥", "京市", "北京", "上海"]
    assert number == 4
    assert found_first(lexicon, []) == ([0, 1, 2, 3, 4, 5], 0)
    assert found_first(Lexicon(), ["南京"]) == ([], 0)


def test_words_learnt_before_stay_in_front_and_removed_ones_do_not_come_back() -> None:
    lexicon = Lexicon(["北京", "长江", "上海", "南京", "大桥"])
    order, number = found_first(lexicon, ["长江大桥"], range(3))
    assert (order, number) == ([0, 1, 2, 4, 3], 4)
    lexicon.remove(["长江", "大桥"])
    assert found_first(lexicon, ["长江大桥"], range(3)) == ([0, 2, 3], 2)
    lexicon.add("长江")
    assert found_first(lexicon, ["长江大桥"], range(3)) == ([0, 2, 5, 3], 3)


def test_starting_rows() -> None:
    """The first row of several forms counts; who has none is composed; the frozen ones are in half precision."""
    lexicon = Lexicon(["大桥", "ＡＢ公司", "上海", "南京", "江北"])
    vectors = Vectors(("上海", "ab公司", "AB公司", "南京", "南"), drawn(5, 7), "0", "some.vec")
    made = WordComposer(len(CHARACTERS), DIMENSION)
    found = starting_rows(lexicon, 2, vectors, made, CHARACTERS, starts())
    assert found.trained.shape == (NUM_SPECIAL + 2, DIMENSION)
    assert np.isnan(found.trained[:NUM_SPECIAL]).all()
    composed = made(["大桥", "江北"], CHARACTERS).numpy()
    np.testing.assert_array_equal(found.trained[NUM_SPECIAL:], [composed[0], vectors.matrix[1]])
    np.testing.assert_array_equal(found.frozen, np.array([*vectors.matrix[[0, 3]], composed[1]], dtype=np.float16))
    assert (
        found.frozen != np.array([*vectors.matrix[[0, 3]], composed[1]])
    ).any()  # the control: half precision is felt

    again = WordComposer(len(CHARACTERS), DIMENSION)
    again.fit(CHARACTERS, starts(), ["ＡＢ公司", "上海", "南京"], vectors.matrix[[1, 0, 3]])
    assert torch.equal(made.weight, again.weight)  # fitted to the words that have a vector, each once


def test_starting_rows_without_vectors() -> None:
    lexicon = Lexicon(["大桥", "上海"])
    made = WordComposer(len(CHARACTERS), DIMENSION)
    found = starting_rows(lexicon, 1, None, made, CHARACTERS, starts())
    wanted = made(["大桥", "上海"], CHARACTERS).numpy()
    np.testing.assert_array_equal(found.trained[NUM_SPECIAL:], wanted[:1])
    np.testing.assert_array_equal(found.frozen, wanted[1:].astype(np.float16))
    assert wanted.any()
    empty = starting_rows(Lexicon(), 0, None, made, CHARACTERS, starts())
    assert (empty.trained.shape, empty.frozen.shape) == ((NUM_SPECIAL, DIMENSION), (0, DIMENSION))


def test_vectors_too_large_for_half_precision_are_refused_by_name() -> None:
    large = Vectors(("甲", "乙", "甲乙"), np.array([[1.0, 0.0], [0.0, 1.0], [7e4, 0.0]], np.float32), "", "large.vec")
    vocabulary = Vocabulary(["甲", "乙"])
    composer = WordComposer(len(vocabulary), 2)
    with pytest.raises(DataError, match=r"large\.vec: .* but the vector of '甲乙' does not"):
        starting_rows(Lexicon(["甲乙"]), 0, large, composer, vocabulary, torch.ones(len(vocabulary), 2))


def test_a_file_of_zeros_composes_zeros() -> None:
    vocabulary = Vocabulary(["甲", "乙"])
    composer = WordComposer(len(vocabulary), 2)
    composer.fit(vocabulary, torch.zeros(len(vocabulary), 2), ["甲乙"], np.zeros((1, 2), np.float32))
    assert composer(["乙甲"], vocabulary).tolist() == [[0.0, 0.0]]
