"""Figures of rankings against plain loops, and queries that do not count."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanzoo.evaluation.retrieval import MEASURES, mean_of, score_rankings
from hanzoo.evaluation.significance import compare
from tests.references import matching_figures as reference

PASSAGES = ["a", "b", "c", "d", "e", "f"]


@given(
    rankings=st.dictionaries(st.sampled_from("123"), st.lists(st.sampled_from(PASSAGES), unique=True, max_size=6)),
    qrels=st.dictionaries(
        st.sampled_from("123"),
        st.dictionaries(st.sampled_from(PASSAGES), st.integers(0, 3), min_size=1, max_size=4),
        min_size=1,
    ).filter(lambda qrels: any(score for judged in qrels.values() for score in judged.values())),
    k=st.integers(1, 7),
)
@settings(max_examples=80, deadline=None)
def test_figures_are_those_of_the_definition(
    rankings: dict[str, list[str]], qrels: dict[str, dict[str, int]], k: int
) -> None:
    found = score_rankings(rankings, qrels, cutoffs=(k, 1))
    expected = reference.retrieval(rankings, qrels, k)
    for measure in MEASURES:
        assert found.figures[f"{measure}@{k}"] == pytest.approx(expected[measure], abs=1e-12)
        assert found.per_query[f"{measure}@{k}"].mean() == pytest.approx(expected[measure], abs=1e-12)
    assert found.figures["mrr@1"] == pytest.approx(found.figures["hit@1"])
    assert len(found.queries) + found.without_relevant == len(qrels)


def test_a_case_by_hand() -> None:
    qrels = {"q": {"a": 1, "b": 1, "z": 0}, "r": {"c": 2, "d": 1}}
    rankings = {"q": ["z", "a", "x", "b"], "r": ["d", "c"]}
    found = score_rankings(rankings, qrels, cutoffs=(1, 2, 10)).figures
    assert found["mrr@10"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["mrr@1"] == pytest.approx((0 + 1) / 2), "the cutoff counts"
    assert found["recall@2"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["hit@2"] == 1.0, "hit is not recall"
    second = 1 / np.log2(3)
    of_q = (second + 1 / np.log2(5)) / (1 + second)
    of_r = (1 + 2 * second) / (2 + second)
    assert found["ndcg@10"] == pytest.approx((of_q + of_r) / 2)
    # A gain of 2^judgement - 1 would be another figure.
    exponential = (1 + 3 * second) / (3 + second)
    assert abs(of_r - exponential) > 1e-3


def test_ties_are_in_the_order_given() -> None:
    qrels = {"q": {"a": 1}}
    assert score_rankings({"q": ["a", "b"]}, qrels).figures["mrr@10"] == 1.0
    assert score_rankings({"q": ["b", "a"]}, qrels).figures["mrr@10"] == 0.5


def test_queries_that_do_not_count_are_counted() -> None:
    qrels = {"q": {"a": 1}, "irrelevant": {"a": 0}, "unranked": {"b": 1}}
    found = score_rankings({"q": ["a"], "irrelevant": ["a"], "other": ["a"]}, qrels)
    assert found.queries == ("q", "unranked")
    assert found.figures["mrr@10"] == 0.5, "a query without a ranking counts as 0, not as nothing"
    assert (found.without_relevant, found.without_judgement, found.without_ranking) == (1, 1, 1)
    said = " ".join(found.describe())
    assert "1 judged queries have no relevant passage" in said
    assert "1 rankings are of queries that are not judged" in said
    assert "1 judged queries have no ranking" in said
    assert json.loads(json.dumps(found.to_json()))["queries"] == 2
    assert score_rankings({"q": ["a"]}, {"q": {"a": 1}}).describe() == []


def test_two_rankings_are_compared_by_query() -> None:
    qrels = {str(k): {"a": 1} for k in range(8)}
    first = score_rankings({query: ["a", "b"] for query in qrels}, qrels)
    second = score_rankings({query: ["b", "a"] for query in qrels}, qrels)
    sides = [np.stack([side.per_query["mrr@10"], np.ones(8)], axis=-1)[None] for side in (first, second)]
    comparison = compare(*sides, mean_of, seed=0, rounds=200)
    assert comparison.difference == pytest.approx(0.5)
    assert comparison.p < 0.05


@pytest.mark.parametrize(
    ("rankings", "qrels", "cutoffs", "said"),
    [
        ({"q": ["a", "a"]}, {"q": {"a": 1}}, (10,), "each passage once, but that of query 'q' repeats one"),
        ({"q": ["a"]}, {"q": {"a": 0}}, (10,), "must hold a query with a relevant passage"),
        ({"q": ["a"]}, {"q": {"a": -1}}, (10,), "at least 0, but query 'q' has -1"),
        ({"q": ["a"]}, {"q": {"a": 1}}, (0,), r"at least 1, but are \(0,\)"),
        ({"q": ["a"]}, {"q": {"a": 1}}, (), r"at least 1, but are \(\)"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    rankings: dict[str, list[str]], qrels: dict[str, dict[str, int]], cutoffs: tuple[int, ...], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        score_rankings(rankings, qrels, cutoffs)
