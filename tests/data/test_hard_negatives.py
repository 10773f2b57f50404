"""Which texts near an anchor become its negatives, against the rules one by one."""

from __future__ import annotations

import numpy as np
import pytest

from hanzoo.data.document import Pair
from hanzoo.data.hard_negatives import choose_negatives, highest_scores, known_matches
from hanzoo.data.randomness import generator

CORPUS = ["甲", "乙", "丙", "丁", "戊", "己"]
NEAREST = [0, 1, 2, 3]
SCORES = np.array([0.99, 0.9, 0.7, 0.2, 0.1, -np.inf])


def chosen(
    number: int = 1, limit: float = np.inf, matches: frozenset[str] = frozenset(), skip: int = 0, depth: int = 4
) -> list[str]:
    found, drawn = choose_negatives(
        NEAREST[:depth], SCORES, limit, matches, CORPUS, number=number, skip=skip, draw=lambda: generator(0, "negatives"),
    )  # fmt: skip
    assert drawn == sum(place not in NEAREST[:depth][skip:] for place in found)
    return [CORPUS[place] for place in found]


def test_the_nearest_that_are_no_matches() -> None:
    assert chosen() == ["甲"]
    assert chosen(2) == ["甲", "乙"]
    assert chosen(2, limit=0.9) == ["乙", "丙"]
    assert chosen(2, matches=frozenset({"乙"})) == ["甲", "丙"]
    assert chosen(2, limit=0.95, matches=frozenset({"丙"}), skip=1)[0] == "丁"


def test_where_too_few_are_left_others_are_drawn_but_no_matches() -> None:
    assert chosen(3, limit=0.8, matches=frozenset({"戊"})) == ["丙", "丁", "己"]
    with pytest.raises(ValueError, match="there are 3"):  # those that are too near stay out
        chosen(4, limit=0.8, matches=frozenset({"戊"}))


@pytest.mark.parametrize("depth", [1, 2])
def test_what_is_drawn_is_not_too_near_either(depth: int) -> None:
    """All that are looked at are above the limit, and so is one that is not."""
    assert sorted(chosen(3, limit=0.8, depth=depth)) != sorted(CORPUS[1:4])
    assert sorted(chosen(4, limit=0.8, depth=depth)) == sorted(CORPUS[2:])


@pytest.mark.parametrize("number", [3, 4, 5])
def test_there_must_be_enough(number: int) -> None:
    matches = frozenset({"乙", "丙", "丁"})
    if number == 3:
        assert sorted(chosen(3, matches=matches)) == sorted(["甲", "戊", "己"])
        return
    with pytest.raises(ValueError, match="there are 3"):
        chosen(number, matches=matches)


def test_what_is_passed_over_is_not_drawn_while_there_is_something_else() -> None:
    for number in (3, 4):
        assert not {"甲", "乙"} & set(chosen(number, skip=2))
    assert {"甲", "乙"} & set(chosen(5, skip=2))
    assert sorted(chosen(6, skip=2)) == sorted(CORPUS)


def test_the_limit_lies_below_the_positive() -> None:
    positives = np.array([0.8, 0.0, -0.4])
    assert highest_scores(positives, 0.95, None) == pytest.approx([0.76, 0.0, -0.42])
    assert highest_scores(positives, None, 0.1) == pytest.approx([0.7, -0.1, -0.5])
    assert highest_scores(positives, 0.95, 0.1) == pytest.approx([0.7, -0.1, -0.5])
    assert highest_scores(positives, None, None).tolist() == [np.inf] * 3


@pytest.mark.parametrize("ratio", [0.95, 1.0])
def test_a_positive_with_nothing_in_common_leaves_what_has_nothing_either(ratio: float) -> None:
    (limit,) = highest_scores(np.array([-np.inf]), ratio, None).tolist()
    assert chosen(1, limit=limit) == ["己"]


def test_matches_are_known_in_either_order_and_in_any_writing() -> None:
    known = known_matches([Pair("Ａb", "丙"), Pair("丁", "Ａb")])
    assert known["Ａb"] == {"ab", "丙", "丁"}
    assert known["丁"] == {"丁", "ab"}
    assert chosen(1, matches=frozenset(known_matches([Pair("x", "“甲”")])["x"])) == ["乙"]
