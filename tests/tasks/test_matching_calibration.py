"""Threshold and probabilities of a matcher: fitted on dev, saved, said; the worst pairs of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import hanzoo
from hanzoo import cli
from hanzoo.data.document import Pair
from hanzoo.data.pair_files import SCALES
from hanzoo.errors import RunError
from hanzoo.evaluation.calibration import brier, expected_calibration_error, fit_platt
from hanzoo.evaluation.matching import choose_threshold
from hanzoo.models.bi_encoder import BiEncoder
from hanzoo.tasks import matching
from hanzoo.tasks.matching import Matching, MatchingEvaluateSettings
from hanzoo.tasks.matching_errors import worst_pairs
from tests.fixtures import write_recipe

BINARY, GRADED = (SimpleNamespace(scale=SCALES[name]) for name in ("binary", "sts"))

pytestmark = pytest.mark.usefixtures("encoders")

WORDS = ["今天", "北京", "上海", "银行", "工作", "下雨", "实习", "电话"]


def pairs(number: int) -> list[Pair]:
    """Pairs of which a third match: two texts that begin with the same word."""
    draw = np.random.default_rng(number)
    found = []
    for index in range(number):
        first, second, third = draw.choice(WORDS, 3, replace=False)
        match = index % 3 == 0
        found.append(
            Pair(first + second, (first if match else third) + third, float(match), f"x/pairs.tsv:{index + 2}")
        )
    return found


class Scored:
    """What the task needs of a matcher: scores are given."""

    def __init__(self, scores: np.ndarray) -> None:
        self.given = scores
        self.threshold: float | None = None
        self.thresholds: dict[str, float] = {}
        self.calibration: tuple[float, float] | None = None

    calibrated = BiEncoder.calibrated


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[Pair]]:
    items = pairs(300)
    draw = np.random.default_rng(1)
    gold = np.array([pair.label for pair in items])
    model = Scored(0.2 * gold + draw.normal(0.5, 0.15, len(items)))
    monkeypatch.setattr(matching, "scores_of", lambda model, items: model.given)
    return model, items


@pytest.mark.parametrize("chosen_for", ["accuracy", "f1"])
def test_the_threshold_is_the_best_for_what_the_recipe_says(scored: tuple[Any, list[Pair]], chosen_for: Any) -> None:
    model, items = scored
    gold = np.array([pair.label for pair in items])
    facts = Matching().calibrate(model, items, MatchingEvaluateSettings(chosen_for=chosen_for), BINARY)
    expected = choose_threshold(gold, model.given, chosen_for)
    assert (facts["threshold"], facts["chosen_for"], facts["on_dev"]) == (expected.value, chosen_for, expected.figure)
    assert model.threshold == expected.value
    other = choose_threshold(gold, model.given, "f1" if chosen_for == "accuracy" else "accuracy")
    assert other.value != expected.value
    assert model.thresholds == {chosen_for: expected.value, other.chosen_for: other.value}
    figures = Matching._figures(model, gold, model.given, True)
    for one in (expected, other):  # each at its own, whichever is that of `match`
        assert figures[one.chosen_for] == pytest.approx(one.figure)
    model.thresholds = {}  # a model that was saved before there were two
    figures = Matching._figures(model, gold, model.given, True)
    assert figures["accuracy_threshold"] == figures["f1_threshold"] == expected.value


def test_probabilities_are_fitted_on_one_half_and_judged_on_the_other(scored: tuple[Any, list[Pair]]) -> None:
    model, items = scored
    facts = Matching().calibrate(model, items, MatchingEvaluateSettings(), BINARY)
    gold = np.array([pair.label for pair in items]) == 1.0
    fitted = np.zeros(len(gold), dtype=bool)
    seen = {True: 0, False: 0}
    for index, match in enumerate(gold.tolist()):
        fitted[index] = seen[match] % 2 == 0
        seen[match] += 1
    assert model.calibration == fit_platt(model.given[fitted], gold[fitted])
    assert (facts["pairs_fitted"], facts["pairs_measured"]) == (150, 150)
    rest = model.calibrated(model.given[~fitted])
    assert facts["ece"] == expected_calibration_error(rest, gold[~fitted])
    assert facts["brier"] == brier(rest, gold[~fitted])
    assert facts["brier"] < facts["brier_of_the_share"] - 0.01
    assert model.calibration != fit_platt(model.given, gold)  # the control: all of dev gives another curve


def test_a_graded_scale_has_neither(scored: tuple[Any, list[Pair]]) -> None:
    model, items = scored
    graded = [Pair(pair.first, pair.second, float(index % 6)) for index, pair in enumerate(items)]
    assert set(Matching().calibrate(model, graded, MatchingEvaluateSettings(), BINARY)) == {"note"}
    # 0 and 1 of 5 are no classes either
    assert set(Matching().calibrate(model, items, MatchingEvaluateSettings(), GRADED)) == {"note"}
    assert model.threshold is None
    with pytest.raises(RunError, match="must have been calibrated on a dev set of two classes"):
        model.calibrated(model.given)


def test_the_worst_pairs() -> None:
    items = [Pair(f"一{number}", f"二{number}", float(number % 2), f"some/where.tsv:{number}") for number in range(30)]
    scores = np.linspace(0, 1, 30)
    low, high = worst_pairs(items, scores, 0.5, True)
    assert low.startswith("matches with the lowest scores; 7 of 15 are on the wrong side of 0.5000\n")
    assert [line.split()[2] for line in low.split("\n")[3:]] == [f"where.tsv:{number}" for number in range(1, 20, 2)]
    assert high.startswith("no matches, with the highest scores; 7 of 15")
    assert [line.split()[2] for line in high.split("\n")[3:]] == [f"where.tsv:{n}" for n in range(28, 9, -2)]
    (graded,) = worst_pairs(items[:4], np.array([0.9, 0.1, 0.2, 0.8]), None, False)
    assert "where.tsv:0" in graded.split("\n")[3]
    assert "+0.62" in graded.split("\n")[3]  # place 4 by score, 1.5 by label


@pytest.mark.parametrize("chosen_for", ["f1"])
def test_a_run_says_and_keeps_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], chosen_for: str) -> None:
    for split, number in (("train", 60), ("dev", 48), ("test", 47)):
        rows = "".join(f"{pair.first}\t{pair.second}\t{pair.label:g}\n" for pair in pairs(number))
        (tmp_path / f"{split}.tsv").write_text(f"first\tsecond\tlabel\n{rows}", encoding="utf-8")
    recipe = {
        "data": {split: str(tmp_path / f"{split}.tsv") for split in ("train", "dev", "test")},
        "model": {"name": "bi_encoder", "encoder": "tiny-bert"},
        "objective": {"name": "cosent"},
        "train": {"epochs": 2, "batch_size": 16, "device": "cpu", "optimizer": {"learning_rate": 0.01}},
        "evaluate": {"chosen_for": chosen_for},
    }
    run = tmp_path / "run"
    assert cli.train([str(write_recipe(tmp_path / "tiny.yaml", recipe)), "--run", str(run)]) == 0
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert results["calibration"]["chosen_for"] == chosen_for
    assert {"ece", "brier"} <= set(results["splits"]["test"])
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "Two texts match from a score of" in card
    assert "the Brier score" in card
    model = hanzoo.load(run)
    assert model.calibration == (results["calibration"]["factor"], results["calibration"]["offset"])
    score = model.score("今天北京", "今天上海")
    expected = 1 / (1 + np.exp(-(model.calibration[0] * score + model.calibration[1])))
    assert model.probability("今天北京", "今天上海") == pytest.approx(expected)
    capsys.readouterr()
    assert cli.evaluate([str(run), "--errors"]) == 0
    out = capsys.readouterr().out
    assert "matches with the lowest scores" in out
    assert "test.tsv:" in out
