"""Tokens to rows: zones, other forms, saving, and building from training tokens and vectors."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanzoo.data.vectors import Vectors
from hanzoo.data.vocabulary import (
    END,
    NUM_SPECIAL,
    PADDING,
    UNKNOWN,
    Vocabulary,
    bigrams,
    build_vocabulary,
    characters,
    other_forms,
)
from hanzoo.errors import DataError, RunError, StorageError

ANY_CHARACTER = st.characters(categories=None, exclude_categories=())  # surrogates, controls and all


def array(values: object, dtype: type = np.float32) -> np.ndarray:
    return np.array(values, dtype=dtype)


def vectors_of(rows: dict[str, list[float]]) -> Vectors:
    return Vectors(tuple(rows), np.array(list(rows.values()), dtype=np.float32), "0" * 64, "some.vec")


# ---- tokens


def test_bigrams_by_hand() -> None:
    assert bigrams("中国人") == ["中国", "国人", "人" + END]
    assert bigrams("中") == ["中" + END]
    assert bigrams("") == []
    assert characters("a\U0001f600\n") == ["a", "\U0001f600", "\n"]


@given(st.text(ANY_CHARACTER, max_size=20))
def test_one_token_a_character_and_the_end_is_no_pair(text: str) -> None:
    pairs = bigrams(text)
    assert len(pairs) == len(characters(text)) == len(text)
    assert [pair[0] for pair in pairs] == list(text)
    assert [len(pair) == 2 for pair in pairs] == [True] * (len(text) - 1) + [False] * bool(text)


# ---- rows


def test_rows_are_padding_unknown_trained_frozen() -> None:
    vocabulary = Vocabulary(["中", "国"], ["人"])
    assert (PADDING, UNKNOWN, NUM_SPECIAL) == (0, 1, 2)
    ids = vocabulary.encode(["人", "中", "国", "犬"])
    assert ids.tolist() == [4, 2, 3, UNKNOWN]
    assert ids.dtype == np.int64
    assert (len(vocabulary), vocabulary.num_trained_rows, vocabulary.num_frozen_rows) == (5, 4, 1)
    assert "人" in vocabulary
    assert "犬" not in vocabulary
    assert vocabulary.encode([]).shape == (0,)
    assert vocabulary.encode([]).dtype == np.int64
    assert Vocabulary([]).encode("中国").tolist() == [UNKNOWN, UNKNOWN]


def test_repeated_token_is_refused() -> None:
    with pytest.raises(ValueError, match="'中' is repeated"):
        Vocabulary(["中"], ["国", "中"])


def test_misses_are_not_stored() -> None:
    vocabulary = Vocabulary(["a"])
    vocabulary.encode(["b", "A"])
    assert "b" not in vocabulary
    assert "A" not in vocabulary


def test_equality() -> None:
    assert Vocabulary(["a"], ["b"]) == Vocabulary(("a",), ("b",))
    assert Vocabulary(["a"], ["b"]) != Vocabulary(["a", "b"])
    assert len({Vocabulary(["a"]), Vocabulary(["a"]), Vocabulary(["b"])}) == 2


# ---- other forms


@pytest.mark.parametrize(
    ("token", "forms"),
    [
        ("Ａ", ["A", "ａ", "a"]),
        ("A", ["Ａ", "a", "ａ"]),
        ("a", ["ａ"]),
        ("\u3000", [" "]),
        ("￥", ["¥"]),
        ("Ａb", ["Ab", "Ａｂ", "ａb", "ab", "ａｂ"]),
        ("中A", ["中Ａ", "中a", "中ａ"]),
        ("A" + END, ["Ａ" + END, "a" + END, "ａ" + END]),
        ("É", ["é"]),
        ("İ", []),  # two code points in lower case
        ("中", []),
        ("中国", []),
        ("中" + END, []),
        ("", []),
    ],
)
def test_other_forms_in_order(token: str, forms: list[str]) -> None:
    assert list(other_forms(token)) == forms


def test_widths_are_those_of_unicode() -> None:
    found = 0
    for code in range(0xFF01, 0xFF5F):
        assert next(other_forms(chr(code))) == unicodedata.normalize("NFKC", chr(code))
        found += 1
    assert found == 94
    for sign in "￠￡￢￤￥￦":
        assert next(other_forms(sign)) == unicodedata.normalize("NFKC", sign)


@given(st.text(ANY_CHARACTER, min_size=1, max_size=2))
def test_forms_keep_the_length_and_differ(token: str) -> None:
    forms = list(other_forms(token))
    assert all(len(form) == len(token) for form in forms)
    assert token not in forms
    assert len(set(forms)) == len(forms)


def test_first_known_form_is_taken() -> None:
    everything = Vocabulary(["a", "ａ", "A"])
    assert everything.encode(["Ａ"]).tolist() == everything.encode(["A"]).tolist()
    assert Vocabulary(["a", "ａ"]).encode(["Ａ"]).tolist() == [3]
    assert Vocabulary(["a"]).encode(["Ａ", "A", "ａ", "b"]).tolist() == [2, 2, 2, UNKNOWN]
    assert Vocabulary(["Ａ", "A"]).encode(["Ａ"]).tolist() == [2]  # its own row comes before all forms
    assert Vocabulary([], ["a"]).encode(["Ａ"]).tolist() == [2]  # a frozen row does as well


# ---- saving

HARD = [
    "\n",
    "\r\n",
    "\u2028",
    "\u0085",
    "\x00",
    "\ud800",
    "\udfff\ud800",
    "\U0001f600",
    "\ufeff",
    '"',
    "\\",
    " ",
    "",
    "中",
]


def test_every_character_survives(tmp_path: Path) -> None:
    vocabulary = Vocabulary(HARD, [token + "x" for token in HARD])
    vocabulary.save(tmp_path / "characters.json")
    again = Vocabulary.load(tmp_path / "characters.json")
    assert again == vocabulary
    assert again.encode(HARD).tolist() == vocabulary.encode(HARD).tolist() == list(range(2, 2 + len(HARD)))
    assert (tmp_path / "characters.json").read_bytes().isascii()


@given(st.lists(st.text(ANY_CHARACTER, max_size=3), unique=True, max_size=5))
def test_what_is_accepted_survives(tmp_path_factory: pytest.TempPathFactory, tokens: list[str]) -> None:
    try:
        vocabulary = Vocabulary(tokens)
    except ValueError:
        assert json.loads(json.dumps(tokens)) != tokens
        return
    path = tmp_path_factory.mktemp("vocabulary") / "some.json"
    vocabulary.save(path)
    assert Vocabulary.load(path) == vocabulary


def test_surrogate_pair_in_two_is_refused_and_never_built() -> None:
    pair = "\ud83d" + "\ude00"
    with pytest.raises(ValueError, match="surrogate pair"):
        Vocabulary([pair])
    vocabulary, _ = build_vocabulary(["\ud83d", pair, "ab"], None, length=2)
    assert vocabulary.trained == ("ab", "\ud83d")
    assert vocabulary.encode([pair]).tolist() == [UNKNOWN]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be JSON, but is damaged"),
        (b'{"format": 1, "trained": ["a"', "must be JSON, but is damaged"),
        (b'\xff\xfe{"format": 1}', "must be JSON, but is damaged"),
        (b"[" * 100_000, "must be JSON, but is damaged"),
        (b"[]", "format must be 1, but is None"),
        (b"{}", "format must be 1, but is None"),
        (b'{"format": 2, "trained": [], "frozen": []}', "format must be 1, but is 2"),
        (b'{"format": 1, "trained": []}', "must be lists of tokens"),
        (b'{"format": 1, "trained": "ab", "frozen": []}', "must be lists of tokens"),
        (b'{"format": 1, "trained": [1], "frozen": []}', "must be lists of tokens"),
        (b'{"format": 1, "trained": ["a"], "frozen": ["a"]}', "'a' is repeated"),
    ],
)
def test_damaged_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "characters.json"
    path.write_bytes(content)
    with pytest.raises(RunError, match=message) as caught:
        Vocabulary.load(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_full_disk(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="No such file"):
        Vocabulary.load(tmp_path / "characters.json")
    with pytest.raises(StorageError, match="No such file"):
        Vocabulary(["a"]).save(tmp_path / "absent" / "characters.json")
    if Path("/dev/full").exists():
        link = tmp_path / "characters.json"  # never the device itself: what renames would replace it
        link.symlink_to("/dev/full")
        with pytest.raises(StorageError, match="No space left"):
            Vocabulary(["a"]).save(link)


# ---- building


def test_build_without_vectors() -> None:
    tokens = list("bbaaccd")
    vocabulary, start = build_vocabulary(tokens, None, length=1)
    assert vocabulary.trained == ("a", "b", "c", "d")  # by falling count, then by code point
    assert vocabulary.frozen == ()
    assert start is None
    assert build_vocabulary(tokens, None, length=1, min_count=2)[0].trained == ("a", "b", "c")


def test_order_does_not_depend_on_the_order_of_the_tokens() -> None:
    tokens = list("中国人中国")
    assert build_vocabulary(tokens, None, length=1)[0] == build_vocabulary(tokens[::-1], None, length=1)[0]
    assert build_vocabulary(tokens, None, length=1)[0] == build_vocabulary(Counter(tokens), None, length=1)[0]


def test_build_with_vectors() -> None:
    vectors = vectors_of({"犬": [9, 9.1], "中": [1, 2], "中国": [3, 4], "国": [5, 6], "猫": [7, 0.1]})
    vocabulary, start = build_vocabulary(list("中中国魑魑"), vectors, length=1, min_count=2)
    assert start is not None
    assert vocabulary.trained == ("中", "魑", "国")  # 国 comes once, but has a vector
    assert vocabulary.frozen == ("犬", "猫")  # in the order of the file, without the word of two characters
    nan = np.nan
    np.testing.assert_array_equal(start.trained, array([[0, 0], [nan, nan], [1, 2], [nan, nan], [5, 6]]))
    np.testing.assert_array_equal(start.frozen, array([[9, 9.1], [7, 0.1]], np.float16))
    assert start.trained.dtype == np.float32
    assert start.frozen.dtype == np.float16
    assert (len(start.trained), len(start.frozen)) == (vocabulary.num_trained_rows, vocabulary.num_frozen_rows)

    pairs, start = build_vocabulary(bigrams("国中"), vectors, length=2)
    assert start is not None
    assert (pairs.trained, pairs.frozen) == (("中" + END, "国中"), ("中国",))
    np.testing.assert_array_equal(start.frozen, array([[3, 4]], np.float16))

    only_trained, start = build_vocabulary(list("中"), vectors, length=1, keep_frozen=False)
    assert start is not None
    assert only_trained.frozen == ()
    assert start.frozen.shape == (0, 2)


def test_trained_token_starts_from_its_other_form() -> None:
    vectors = vectors_of({"a": [1, 2], "Ａ": [3, 4]})
    vocabulary, start = build_vocabulary(["A", "ａ", "B"], vectors, length=1)
    assert start is not None
    assert vocabulary.trained == ("A", "B", "ａ")
    np.testing.assert_array_equal(start.trained[2:], array([[3, 4], [np.nan, np.nan], [1, 2]]))
    rare, _ = build_vocabulary(["A"], vectors, length=1, min_count=2)  # a form's vector gives no row of one's own
    assert rare.trained == ()
    assert rare.encode(["A"]).tolist() == rare.encode(["Ａ"]).tolist()


def test_vector_too_large_for_float16() -> None:
    vectors = vectors_of({"中": [1e5, 1], "国": [1, -1e5]})
    with pytest.raises(DataError, match=r"some\.vec: numbers must lie within .* but the vector of '国' does not"):
        build_vocabulary(["中"], vectors, length=1)
    _, start = build_vocabulary(["中", "国"], vectors, length=1)  # trained rows are float32
    assert start is not None
    assert start.trained[2, 0] == 1e5


def test_an_extended_vocabulary_keeps_its_rows_and_starts_new_ones_from_where_they_were_looked_up() -> None:
    old = Vocabulary(["中", "A", "国"], ["北", "京", "东"])
    counts = {"国": 9, "京": 1, "Ａ": 2, "鱼": 2, "龙": 1, "\ud83d\ude00": 5}
    new, rows = old.extended(counts, min_count=2)
    assert new.trained == ("中", "A", "国", "鱼", "Ａ", "京")  # a frozen token whatever its count; the rest from 2 on
    assert new.frozen == ("北", "东")
    assert rows.tolist() == [0, 1, 2, 3, 4, UNKNOWN, 3, 6, 5, 7]
    tokens = [*old.trained, *old.frozen, *counts, "Ｂ", "a"]
    assert rows[new.encode(tokens)].tolist() == old.encode(tokens).tolist()  # nothing reads differently
    assert new.encode(["鱼"]).tolist() != old.encode(["鱼"]).tolist()
    same, rows = old.extended({"中": 3, "国": 1})
    assert same == old
    assert rows.tolist() == list(range(len(old)))
