"""What stands in train is counted whichever way it is written, and what is known to leak is refused or said."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanzoo.data.document import Document, Pair, Query, Triple
from hanzoo.data.leakage import (
    ENCODERS_TRAINED_ON,
    LEAKS,
    check_leaks,
    known_leaks,
    leakage,
    leaked_queries,
    text_key,
)
from hanzoo.data.matching_catalogue import MATCHING_SETS
from hanzoo.errors import RecipeError

TRAIN = [
    Pair("花呗", "借呗", 0.0),
    Pair("还款", "怎么还", 1.0),
    Pair("ＡＢ c", "额度", 0.0),
    Pair("额度", "ＡＢ c", 1.0),
]


def test_pairs_are_found_in_either_order() -> None:
    evaluated = [
        Pair("借呗", "花呗", 0.0, "e:1"),  # turned round
        Pair("还款", "怎么还", 0.0, "e:2"),  # with another label
        Pair("额度", "ＡＢ c", 0.0, "e:3"),  # train has both labels
        Pair("\ufeffab“C”", "额 度", 1.0, "e:4"),  # in another writing
        Pair("花呗", "还款", 1.0, "e:5"),  # both texts, not together
        Pair("花呗", "新的", 1.0, "e:6"),
    ]
    report = leakage(TRAIN, evaluated)
    assert (report.pairs, report.pairs_in_train, report.same_label, report.other_label) == (6, 3, 2, 1)
    assert (report.pairs_normalised, report.both_texts_in_train) == (4, 4)
    assert (report.texts, report.texts_in_train) == (9, 6)
    assert report.places == ("e:1", "e:2", "e:3")
    assert report.describe("dev") == [
        "3 of 6 dev pairs stand in train, in either order, 2 of them with the same label; 1 more in another writing",
        "6 of 9 texts in dev stand in train (67%); 4 pairs hold no other text; 2 more in another writing",
    ]
    assert json.loads(json.dumps(report.to_json()))["pairs_in_train"] == 3
    assert leakage(TRAIN, [Pair("全新", "也新", 1.0)]).describe("dev") == []


def test_single_texts_are_in_no_pair() -> None:
    report = leakage([Document("花呗"), Document("ＡＢ c")], [Pair("花呗", "ab C", 1.0), Pair("新的", "花呗", 0.0)])
    assert (report.pairs_in_train, report.texts_in_train, report.texts_normalised) == (0, 1, 2)
    assert report.describe("dev") == [
        "1 of 3 texts in dev stand in train (33%); 0 pairs hold no other text; 1 more in another writing"
    ]


def test_triples_count_as_two_pairs_without_labels() -> None:
    triples = [Triple("花呗", "额度", ("借呗",))]
    report = leakage(triples, TRAIN)
    assert (report.pairs_in_train, report.same_label, report.other_label) == (1, 0, 0)
    assert leakage(TRAIN, triples).pairs == 2
    assert leakage(TRAIN, triples).pairs_in_train == 1


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc"), st.sampled_from((0.0, 1.0))), max_size=8),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_counts_are_those_of_plain_loops(rows: list[tuple[str, str, float]], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(rows)))
    train, evaluated = ([Pair(*row) for row in part] for part in (rows[:cut], rows[cut:]))
    report = leakage(train, evaluated)
    texts = {text for pair in train for text in (pair.first, pair.second)}
    found = [
        [other.label for other in train if {other.first, other.second} == {pair.first, pair.second}]
        for pair in evaluated
    ]
    assert report.pairs_in_train == report.pairs_normalised == sum(map(bool, found))
    assert report.same_label == sum(pair.label in labels for pair, labels in zip(evaluated, found, strict=True))
    assert report.same_label + report.other_label == report.pairs_in_train
    assert report.both_texts_in_train == sum(pair.first in texts and pair.second in texts for pair in evaluated)


def test_queries_are_found_by_id_by_text_and_in_another_writing() -> None:
    train = [Query("a", "花呗"), Query("b", "ＡＢ c")]
    evaluated = [
        Query("a", "花呗"),
        Query("c", "花呗"),
        Query("d", "“ab C”"),
        Query("b", "额度"),
        Query("花呗", "新的"),
    ]
    assert leaked_queries(train, evaluated, "test") == [
        "3 of 5 test queries stand in train, by id or by text; 1 more in another writing"
    ]
    assert leaked_queries(train, evaluated[:1], "dev") == ["1 of 1 dev queries stand in train, by id or by text"]
    assert leaked_queries(train, evaluated[4:], "dev") == []


def test_what_two_writings_have_in_common() -> None:
    assert text_key('"Ａ\u200b b\ufeff」 １') == "ab1"
    assert text_key("花呗。") != text_key("花呗"), "punctuation may change what a sentence says"


def test_training_on_atec_and_scoring_afqmc_is_refused_unless_forced() -> None:
    with pytest.raises(RecipeError, match=r"scored on afqmc must not be trained on atec, but is: every pair of AFQMC"):
        check_leaks(["lcqmc", "atec"], "afqmc")
    said = check_leaks(["atec"], "afqmc", force=True)
    assert said == [
        f"trained on atec, scored on afqmc: {LEAKS[0].what} (forced: the figure means nothing)",
    ]
    assert check_leaks(["afqmc"], "afqmc") == []
    assert check_leaks(["atec"], "lcqmc") == []
    with pytest.raises(RecipeError, match="scored on atec must not be trained on afqmc"):
        check_leaks(["afqmc"], "atec")


def test_other_leaks_are_said() -> None:
    said = check_leaks(["simclue"], "lcqmc", encoder="m3e-small")
    assert len(said) == 3
    assert said[0].startswith("trained on simclue, scored on lcqmc: SimCLUE holds pairs of LCQMC")
    assert said[1] == "the encoder m3e-small was itself trained on lcqmc (train, as its authors say)"
    assert said[2].startswith("the encoder m3e-small was itself trained on simclue")
    assert check_leaks(["stsb"], "pawsx", encoder="m3e-small") == []
    assert check_leaks(["stsb"], "lcqmc", encoder="albert-tiny-zh") == []
    assert known_leaks([], "afqmc") == []


def test_leaks_are_between_known_data_sets() -> None:
    for leak in LEAKS:
        assert {leak.trained_on, leak.scored_on} <= MATCHING_SETS.keys()
        assert leak.source
    for names in ENCODERS_TRAINED_ON.values():
        assert set(names) <= MATCHING_SETS.keys()
