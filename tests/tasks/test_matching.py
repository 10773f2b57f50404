"""Matching from the shell: trained, evaluated, recorded and used on a tiny encoder; what bad input gets; what leaks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hanzoo
from hanzoo import build, cli
from hanzoo.data.document import Document, Pair, Triple
from hanzoo.data.pair_files import read_triples
from hanzoo.errors import DataError, RecipeError, RunError
from hanzoo.evaluation.matching import alignment, uniformity
from hanzoo.evaluation.report import show_figure
from hanzoo.models.model import Matcher
from hanzoo.recipe import check_recipe, load_recipe
from hanzoo.recipes.figures import full_table, read_results
from hanzoo.tasks.matching import Matching
from hanzoo.training.distillation import SoftTargets
from tests.fixtures import contents, jsonl, train_until_saved, trained_run, write_recipe

pytestmark = pytest.mark.usefixtures("deterministic", "encoders")

SUBJECTS = ("王小明", "李娜", "张伟", "刘洋", "陈晨")
PLACES = ("北京", "上海", "广州", "成都", "杭州", "西安")
SAME = ("{0}在{1}工作", "在{1}工作的{0}", "{0}去{1}了", "问问{0}的{1}")


def pairs(number: int, start: int = 0) -> list[tuple[str, str, int]]:
    """Half of them speak of the same person and place."""
    made = []
    for n in range(start, start + number):
        who, where = SUBJECTS[n % 5], PLACES[n // 2 % 6]
        other = (who, where) if n % 2 else (SUBJECTS[(n + 1) % 5], PLACES[(n // 2 + 1) % 6])
        made.append((SAME[n % 4].format(who, where), SAME[(n // 3 + 1) % 4].format(*other), n % 2))
    return made


def write_pairs(path: Path, rows: list[Any], header: str = "sentence1\tsentence2\tlabel") -> str:
    path.write_text("\n".join([header, *("\t".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return str(path)


def write_triples(path: Path, number: int, negatives: int = 2) -> str:
    rows = []
    for n in range(number):
        who, where = SUBJECTS[n % 5], PLACES[n % 6]
        others = [SAME[k % 4].format(SUBJECTS[(n + k) % 5], PLACES[(n + k) % 6]) for k in range(1, negatives + 1)]
        rows.append(
            {
                "anchor": f"{SAME[0].format(who, where)}了{n}",
                "positive": SAME[1].format(who, where),
                "negatives": others,
            }
        )
    path.write_text(jsonl(rows), encoding="utf-8")
    return str(path)


def sections(folder: Path, model: str = "bi_encoder", objective: Mapping[str, Any] | None = None, **train: Any) -> Any:
    """A recipe on pairs of one's own, so small that a training takes a second."""
    if not (folder / "train.tsv").exists():
        for split, (number, start) in {"train": (60, 0), "dev": (24, 300), "test": (24, 700)}.items():
            write_pairs(folder / f"{split}.tsv", pairs(number, start))
    own = {"document_marker": "#"} if model == "colbert" else {}
    return {
        "data": {split: str(folder / f"{split}.tsv") for split in ("train", "dev", "test")},
        "model": {"name": model, "encoder": "tiny-bert", **own},
        "objective": dict(objective or {"name": "cosent"}),
        "train": {"epochs": 2, "batch_size": 8, "device": "cpu", "optimizer": {"learning_rate": 0.003}} | train,
    }


def refused(
    folder: Path, recipe: Mapping[str, Any], capsys: pytest.CaptureFixture[str], *settings: str, command: str = "train"
) -> str:
    """What the command says of a recipe with which nothing can be done; nothing is left behind."""
    path = write_recipe(folder / "bad.yaml", recipe)
    capsys.readouterr()
    assert cli.train([str(path), "--run", str(folder / "refused"), *settings]) == 2
    out, said = capsys.readouterr()
    assert out == ""
    assert not (folder / "refused" / "recipe.yaml").exists()
    return said


_runs: dict[str, Path] = {}


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bi-encoder's run; not to be changed."""
    return trained(tmp_path_factory, "bi_encoder", {"name": "cosent"})


def trained(factory: pytest.TempPathFactory, model: str, objective: Mapping[str, Any]) -> Path:
    if model not in _runs:
        folder = factory.mktemp(model)
        recipe = write_recipe(folder / "tiny.yaml", sections(folder, model, objective))
        assert cli.train([str(recipe), "--run", str(folder / "run")]) == 0
        _runs[model] = folder / "run"
    return _runs[model]


@pytest.fixture
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder's run; not to be changed."""
    return trained(tmp_path_factory, "cross_encoder", {"name": "binary"})


# From the recipe to the record.


def test_it_is_trained_loaded_evaluated_and_recorded(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert set(results["splits"]) == {"dev", "test"}
    assert {"spearman", "pearson", "auc", "accuracy", "f1", "majority", "accuracy_threshold", "f1_threshold"} <= set(
        results["splits"]["test"]
    )
    assert results["data"]["counts"]["train"] == {"pairs": 60}
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "| split | pairs | " in card
    assert "Spearman" in card
    assert "entity" not in card

    matcher = hanzoo.load(run)
    assert isinstance(matcher, Matcher)
    assert matcher.trained_on == ("train",)
    assert matcher.threshold == results["calibration"]["threshold"] == matcher.thresholds["accuracy"]
    assert matcher.thresholds["f1"] == results["splits"]["test"]["f1_threshold"]
    texts = [(first, second) for first, second, _ in pairs(24, 700)]
    scores = matcher.scores(texts)
    assert [matcher.score(*pair) for pair in texts] == pytest.approx(scores.tolist(), abs=1e-5)

    record = tmp_path / "tiny.json"
    assert cli.evaluate([str(run), "--record", str(record)]) == 0
    out = capsys.readouterr().out
    assert "24 pairs; the highest Spearman with their ties is" in out
    assert "always saying the most frequent label is right in 50.00 %" in out
    assert "alignment of the vectors 0." in out
    assert "uniformity of the vectors -" in out
    recorded = json.loads(record.read_text(encoding="utf-8"))
    assert recorded["metrics"]["spearman"] == [results["splits"]["test"]["spearman"]]
    assert recorded["split"] == "test"
    gold = pairs(24, 700)
    both = [matcher.encode([pair[side] for pair in gold if pair[2] == 1]) for side in (0, 1)]
    assert recorded["vectors"]["alignment"] == pytest.approx([alignment(*both)], abs=1e-6)
    every = list(dict.fromkeys(text for pair in gold for text in pair[:2]))
    assert recorded["vectors"]["uniformity"] == pytest.approx([uniformity(matcher.encode(every))], abs=1e-6)
    table = full_table(read_results(tmp_path))
    assert "Pairs of texts:" in table
    assert f"{show_figure(recorded['metrics']['spearman'], count_seeds=True)} |" in table
    assert hanzoo.evaluate(run)["spearman"] == results["splits"]["test"]["spearman"]

    output = tmp_path / "scores.jsonl"
    assert (
        cli.predict([str(run), write_pairs(tmp_path / "plain.tsv", texts, "text1\ttext2"), "--output", str(output)])
        == 0
    )
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [line["score"] for line in lines] == pytest.approx(scores.tolist(), abs=1e-6)
    assert [line["match"] for line in lines] == [bool(score >= matcher.threshold) for score in scores]


def test_two_runs_are_compared_on_the_same_pairs(
    run: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        cli.evaluate([str(teacher), "--against", str(run), "--file", write_pairs(tmp_path / "o.tsv", pairs(30, 90))])
        == 0
    )
    out = capsys.readouterr().out
    assert f"against {run}, 30 items" in out
    assert "Spearman difference" in out
    assert "randomisation" not in out  # a correlation is no sum over pairs
    assert "pairs stand in train, in either order" in out  # a file may hold what was trained on


def test_a_dry_run_shows_lengths_and_what_leaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = sections(tmp_path)
    write_pairs(tmp_path / "dev.tsv", [*pairs(20, 300), pairs(1)[0], pairs(2)[1]])
    assert (
        cli.train([str(write_recipe(tmp_path / "it.yaml", recipe)), "--run", str(tmp_path / "run"), "--dry-run"]) == 0
    )
    out = capsys.readouterr().out
    assert "in train" in out
    assert "with the same label" in out
    assert "steps of at most 8 items" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["bi_encoder", "colbert", "cross_encoder"])
@pytest.mark.parametrize(
    ("objective", "data"),
    [
        ("triplet", {}),
        ("pairwise_softmax", {}),
        ("info_nce", {}),
        ("info_nce", {"items": "texts"}),
        ("arccse", {"items": "texts"}),
    ],
)
def test_triples_and_single_texts_are_trained_on(
    model: str, objective: str, data: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = sections(tmp_path, model, {"name": objective}, epochs=1)
    recipe["data"] = {"triples": write_triples(tmp_path / "t.jsonl", 40), **data}
    said = {("cross_encoder", "info_nce"): "reads pairs together"}.get((model, objective))
    if objective == "arccse" and model != "bi_encoder":
        said = "must not be arccse for a model without one vector a text"
    if said is not None:
        assert said in refused(tmp_path, recipe, capsys)
        return
    results = build.train(write_recipe(tmp_path / "it.yaml", recipe), run=tmp_path / "run")
    assert results["selected_on"] == "10 % of train"
    assert 0 < results["splits"]["dev"]["auc"] <= 1
    counted = results["data"]["counts"]
    assert counted["dev"]["pairs"] % 3 == 0  # a positive and two negatives each
    if not data:
        assert counted["train"] == {"triples": 40 - counted["dev"]["pairs"] // 3}


def test_triples_are_made_of_pairs_and_judged_by_other_pairs(tmp_path: Path) -> None:
    task = Matching()
    rows = [("甲", "甲一", 1), ("甲", "甲二", 1), ("甲", "乙", 0), ("丙", "丁", 0), ("戊", "己", 1), ("甲", "甲 二", 0)]
    write_pairs(tmp_path / "p.tsv", [*rows, *pairs(40)])
    dev = write_pairs(tmp_path / "d.tsv", pairs(8, 500))
    settings = task.data_settings.model_validate(
        {"train": str(tmp_path / "p.tsv"), "dev": dev, "items": "triples", "most": 6}
    )
    assert [(t.anchor, t.positive, t.negatives) for t in task.load_data(settings).train] == [
        ("甲", "甲一", ("乙",)), ("甲", "甲二", ("乙",)),
    ]  # fmt: skip
    own = task.data_settings.model_validate({"triples": write_triples(tmp_path / "t.jsonl", 12), "dev": dev})
    data = task.load_data(own)
    assert len(data.train) == 12
    assert len(data.dev) == 8
    assert data.dev_source == "d.tsv"
    assert task.describe(data)["view"] == "triples of t"
    assert set(data.hashes) == {"t.jsonl", "d.tsv"}
    texts = task.load_data(own.model_copy(update={"items": "texts"})).train
    assert all(isinstance(item, Document) for item in texts)
    assert len({item.text for item in texts}) == len(texts)
    (triple,) = [item for item in data.train[:1] if isinstance(item, Triple)]
    assert task.text(triple).split("\t") == [triple.anchor, triple.positive, *triple.negatives]
    assert task.without_gold(Pair("a", "b", 1.0)) == Pair("a", "b")


# Teachers.


@pytest.mark.parametrize("objective", ["distillation", "margin_mse"])
def test_a_student_learns_from_a_teacher_that_speaks_once(
    objective: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = sections(tmp_path, "bi_encoder", {"name": objective, "teacher": str(teacher), "teacher_temperature": 2.0})
    recipe["data"] = {"triples": write_triples(tmp_path / "t.jsonl", 40)}
    passes: list[int] = []
    plain = type(hanzoo.load(teacher)).forward

    def counted(self: Any, batch: Any) -> Any:
        passes.append(batch.num_samples)
        return plain(self, batch)

    monkeypatch.setattr(type(hanzoo.load(teacher)), "forward", counted)
    results = build.train(write_recipe(tmp_path / "it.yaml", recipe), run=tmp_path / "run")
    assert sum(passes) == results["data"]["counts"]["train"]["triples"]  # two epochs, one word of the teacher
    assert results["distillation"]["teachers"] == [str(teacher)]
    assert hanzoo.load(tmp_path / "run").trained_on == ("t", "train")
    targets = SoftTargets(tmp_path / "run" / "targets")
    data = Matching().load_data(Matching.data_settings.model_validate(recipe["data"]))
    triple = data.train[5]
    expected = hanzoo.load(teacher).scores([(triple.anchor, text) for text in (triple.positive, *triple.negatives)])
    first, other = targets.of([5, 6], torch.device("cpu"))
    assert first.squeeze(1).tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert other.squeeze(1).tolist() != pytest.approx(expected.tolist(), abs=1e-6)


def test_teachers_that_cannot_teach_are_refused(
    teacher: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = sections(tmp_path, "bi_encoder", {"name": "distillation"})
    recipe["data"] = {"triples": write_triples(tmp_path / "t.jsonl", 40)}
    assert "objective.teacher: field required" in refused(tmp_path, recipe, capsys)
    tagger = trained_run(tmp_path_factory)
    for name, said in ((tmp_path / "none", "there is none"), (tagger, "must hold a matcher, but holds BiLSTMCRF")):
        recipe["objective"]["teacher"] = str(name)
        assert said in refused(tmp_path, recipe, capsys)
    recipe["objective"] = {"name": "cosent"}
    recipe["distillation"] = {"teacher": str(teacher)}
    assert "a matcher learns from a teacher by objective.name=distillation" in refused(tmp_path, recipe, capsys)
    # a teacher that has seen the gold of the student's dev
    recipe = sections(tmp_path, "bi_encoder", {"name": "margin_mse", "teacher": str(teacher)})
    write_pairs(tmp_path / "leaky.tsv", pairs(20))
    recipe["data"] = {"triples": write_triples(tmp_path / "t.jsonl", 40), "dev": str(tmp_path / "leaky.tsv")}
    assert "objective.teacher must not have been trained on the student's dev" in refused(tmp_path, recipe, capsys)


# What cannot be trained.


@pytest.mark.parametrize(
    ("rows", "header", "said"),
    [
        ([("甲", "  ", 1), ("乙", "丙", 0)], "sentence1\tsentence2\tlabel", r"train.tsv:2: the second text must hold a character"),
        ([("甲", 1), ("乙", 0)], "sentence1\tlabel", "train.tsv:1: there must be a column for second"),
        ([("甲", "乙", 1), ("乙", "丙", 7)], "sentence1\tsentence2\tlabel", "train.tsv:3: the label must be one of 0, 1"),
        ([("甲", "乙"), ("乙", "丙")], "sentence1\tsentence2", "a pair in train must have a label where pairs are trained on"),
    ],
)  # fmt: skip
def test_bad_pairs_get_one_error(
    rows: list[Any], header: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = sections(tmp_path)
    write_pairs(tmp_path / "train.tsv", rows, header)
    message = refused(tmp_path, recipe, capsys)
    assert said in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": {"most": 1}}, "the pairs that are trained on must have two labels at least, but all have 0"),
        ({"objective": {"name": "info_nce"}}, "to learn from, but the data's items are pairs"),
        ({"objective": {"name": "arccse"}}, "texts where the data has them, or take another objective: binary, cosent, softmax"),
        ({"objective": {"name": "triplet"}}, "Set data.items=triples"),
        ({"data": {"items": "texts"}, "objective": {"name": "cosent"}}, "take another objective: arccse, info_nce"),
        (
            {"train": {"tricks": {"gradient_penalty": {}}}},
            "train.tricks.gradient_penalty must be left out with the objective cosent: all pairs",
        ),
        (
            {"data": {"items": "triples"}, "objective": {"name": "triplet"}, "train": {"tricks": {"r_drop": {}}}},
            "train.tricks.r_drop must be left out with the objective triplet: it gives no distribution",
        ),
        (
            {"data": {"items": "triples"}, "objective": {"name": "triplet"}, "train": {"tricks": {"focal": {}}}},
            "train.tricks.focal must be left out with the objective triplet: its loss is no probability's",
        ),
        (
            {"data": {"items": "texts"}, "objective": {"name": "arccse"}, "train": {"tricks": {"poly": {}}}},
            "train.tricks.poly must be left out with the objective arccse: a triplet's loss is no probability's",
        ),
        (
            {"data": {"items": "triples"}, "objective": {"name": "margin_mse", "teacher": "x"}, "train": {"tricks": {"poly": {}}}},
            "train.tricks.poly must be left out with the objective margin_mse: its loss is no probability's",
        ),
        (
            {
                "data": {"items": "triples"},
                "objective": {"name": "distillation", "teacher": "x"},
                "train": {"tricks": {"focal": {}}},
            },
            "train.tricks.focal must be left out with the objective distillation: a teacher's distribution",
        ),
        ({"train": {"accumulation": 2}}, "train.accumulation must be 1 with the objective cosent, but is 2"),
        (
            {"data": {"items": "matches"}, "objective": {"name": "info_nce"}, "train": {"batch_size": 1}},
            "train.batch_size must be 2 or more with the objective info_nce, but is 1",
        ),
        (
            {"data": {"items": "texts"}, "objective": {"name": "info_nce"}, "model": {"encoder_dropout": 0.0}},
            "model.encoder_dropout: must be above 0 with single texts",
        ),
        (
            {"data": {"items": "texts"}, "objective": {"name": "arccse"}, "model": {"encoder_dropout": 0.0}},
            "tiny-bert has none. Set model.encoder_dropout=0.1",
        ),
        ({"data": {"items": "matches", "triples": "simclue"}}, "which are what is trained on, but has train and triples"),
    ],
)  # fmt: skip
def test_what_cannot_teach_is_refused_before_anything_is_written(
    change: dict[str, dict[str, Any]], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = sections(tmp_path)
    for section, values in change.items():
        recipe[section] = ({} if section == "objective" else recipe[section]) | values
    assert said in refused(tmp_path, recipe, capsys)


def test_a_frozen_encoder_must_have_something_above_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = sections(tmp_path)
    said = refused(tmp_path, recipe, capsys, "model.freeze_epochs=1")
    assert "model.freeze_epochs: must be 0 where nothing but the encoder has weights to train, but is 1" in said
    recipe = sections(tmp_path, objective={"name": "softmax"})
    path = write_recipe(tmp_path / "head.yaml", recipe)
    assert cli.train([str(path), "--run", str(tmp_path / "run"), "model.freeze_epochs=1"]) == 0


def test_repeated_pieces_stand_in_for_dropout(tmp_path: Path) -> None:
    recipe = sections(tmp_path, objective={"name": "info_nce", "repetition": 0.3}, epochs=1)
    recipe["data"]["items"] = "texts"
    recipe["model"]["encoder_dropout"] = 0.0
    build.train(write_recipe(tmp_path / "it.yaml", recipe), run=tmp_path / "run")


def test_objectives_that_divide_may_be_accumulated(tmp_path: Path) -> None:
    recipe = sections(tmp_path, objective={"name": "binary", "scale": 20.0}, accumulation=2)
    check_recipe(recipe, name="it", place="it.yaml")
    recipe["objective"] = {"name": "cosent"}
    with pytest.raises(RecipeError, match=r"train\.accumulation must be 1"):
        check_recipe(recipe, name="it", place="it.yaml")


def test_a_batch_of_one_label_is_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = sections(tmp_path, batch_size=2, epochs=1)
    write_pairs(tmp_path / "train.tsv", [(a, b, int(n % 8 == 0)) for n, (a, b, _) in enumerate(pairs(60))])
    assert cli.train([str(write_recipe(tmp_path / "it.yaml", recipe)), "--run", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert (
        "of 30 batches held nothing to compare and taught nothing: a larger train.batch_size has fewer of them" in said
    )


def test_where_no_batch_teaches_the_training_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(a, b, int(len(a) > 30)) for a, b, _ in pairs(60)]
    rows[0] = (
        "很" * 40,
        "多" * 41,
        1,
    )  # the longest: its neighbours by length have another label, it has none in its batch
    rows[1] = ("话" * 42, "说" * 42, 1)
    recipe = sections(tmp_path, batch_size=2, epochs=1)
    write_pairs(tmp_path / "train.tsv", rows)
    assert cli.train([str(write_recipe(tmp_path / "it.yaml", recipe)), "--run", str(tmp_path / "run")]) == 2
    assert "batches must hold something to compare, but none of 30 did" in capsys.readouterr().err


def test_a_last_batch_of_one_row_is_joined_with_its_neighbour(tmp_path: Path) -> None:
    recipe = sections(tmp_path, objective={"name": "info_nce"}, epochs=2, batch_size=8)
    recipe["data"]["items"] = "matches"
    write_pairs(tmp_path / "train.tsv", [(f"{a}{n}", b, int(n < 17)) for n, (a, b, _) in enumerate(pairs(60))])
    results = build.train(write_recipe(tmp_path / "it.yaml", recipe), run=tmp_path / "run")
    assert results["steps"] == 4  # 8 and 9 rows


def test_matching_pairs_need_no_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = sections(tmp_path, "bi_encoder", {"name": "info_nce"}, epochs=1)
    alike = [(first, second, 1) for first, second, label in pairs(60) if label]
    for header, rows in (("sentence1\tsentence2\tlabel", alike), ("sentence1\tsentence2", [row[:2] for row in alike])):
        write_pairs(tmp_path / "train.tsv", rows, header)
        for items, number in (("matches", len(alike)), ("texts", len({text for row in alike for text in row[:2]}))):
            recipe["data"]["items"] = items
            data = Matching().load_data(Matching().data_settings.model_validate(recipe["data"]))
            assert len(data.train) == number
    recipe["data"]["items"] = "matches"
    assert build.train(write_recipe(tmp_path / "it.yaml", recipe), run=tmp_path / "run")["splits"]["test"]["auc"] > 0
    recipe["data"]["items"] = "triples"
    assert "must have a label where triples are trained on" in refused(tmp_path, recipe, capsys)


@pytest.mark.parametrize("metric", ["auc", "spearman"])
def test_dev_must_be_able_to_select(metric: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = sections(tmp_path) | {"evaluate": {"metric": metric}}
    write_pairs(tmp_path / "dev.tsv", [("甲", "乙", 1), ("丙", "丁", 1)])
    assert "the 2 pairs of dev (dev.tsv) must have two labels at least" in refused(tmp_path, recipe, capsys)


def test_a_file_is_read_as_the_files_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = sections(tmp_path, epochs=1)
    recipe["data"] |= {"scale": "sts", "columns": {"first": "q", "second": "d", "label": "how"}}
    for split, start in (("train", 0), ("dev", 300), ("test", 700)):
        rows = [(first, second, 2.5 * label + start % 3) for first, second, label in pairs(24, start)]
        write_pairs(tmp_path / f"{split}.tsv", rows, "q\td\thow")
    assert cli.train([str(write_recipe(tmp_path / "it.yaml", recipe)), "--run", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert cli.evaluate([str(tmp_path / "run"), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert cli.evaluate([str(tmp_path / "run"), "--file", str(tmp_path / "test.tsv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["spearman"] == whole["spearman"]
    # 0 and 1 of 5 are no classes, and 1 is no match, whether the run's own data is there or not
    rows = [(first, second, label) for first, second, label in pairs(24, 700)]
    low = write_pairs(tmp_path / "low.tsv", rows, "q\td\thow")
    for gone in (False, True):
        if gone:
            (tmp_path / "train.tsv").unlink()
        assert cli.evaluate([str(tmp_path / "run"), "--file", low, "--json"]) == 0
        figures = json.loads(capsys.readouterr().out)
        assert not {"auc", "accuracy", "alignment"} & set(figures)
        assert "uniformity" in figures


def test_texts_that_are_not_read_whole_are_said(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "好" * 200
    for model, said in (
        ("bi_encoder", "1 of 120 texts have more than 128 pieces"),
        ("colbert", "1 of 60 documents have more than 127 pieces"),
        ("cross_encoder", "1 of 60 pairs have more than 127 pieces"),
    ):
        recipe = sections(tmp_path, model, {"name": "binary"}, epochs=1)
        write_pairs(tmp_path / "train.tsv", [("王小明", long, 0), *pairs(59)])
        path = write_recipe(tmp_path / "it.yaml", recipe)
        assert cli.train([str(path), "--run", str(tmp_path / model), "--dry-run"]) == 0
        assert said in capsys.readouterr().err
    file = write_pairs(tmp_path / "long.tsv", [("王小明", long, 0), *pairs(9, 1)])
    assert cli.evaluate([str(run), "--file", file]) == 0
    assert "1 of 20 texts have more than 128 pieces: the rest of each is not read" in capsys.readouterr().out
    assert cli.predict([str(run), file, "--output", str(tmp_path / "out")]) == 0
    assert "1 of 20 texts have more than 128 pieces" in capsys.readouterr().err


# Leaks.


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$HANZOO_DATA with an ATEC and an AFQMC, much too small to be the official ones."""
    folder = tmp_path / "data"
    (folder / "afqmc").mkdir(parents=True)
    (folder / "atec").mkdir()
    rows = [{"sentence1": a, "sentence2": b, "label": str(label)} for a, b, label in pairs(60)]
    for split in ("train", "dev"):
        (folder / "afqmc" / f"{split}.json").write_text(jsonl(rows), encoding="utf-8")
    monkeypatch.setenv("HANZOO_DATA", str(folder))
    return folder


def test_scoring_what_leaked_into_training_is_refused_unless_forced(
    named: Path, tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matcher = hanzoo.load(run)
    assert isinstance(matcher, Matcher)
    matcher.trained_on = ("atec-unofficial",)
    copy = tmp_path / "atec_run"
    copy.mkdir()
    (copy / "model").mkdir()
    matcher.save(copy / "model")
    for name in ("recipe.yaml", "results.json"):
        (copy / name).write_bytes((run / name).read_bytes())
    capsys.readouterr()
    assert cli.evaluate([str(copy), "--data", "afqmc"]) == 2
    said = capsys.readouterr().err
    assert "a model that is scored on afqmc must not be trained on atec, but is" in said
    assert "--allow-leakage" in said
    assert cli.evaluate([str(copy), "--data", "afqmc", "--allow-leakage"]) == 0
    assert "trained on atec, scored on afqmc" in capsys.readouterr().out
    assert cli.evaluate([str(run), "--data", "afqmc"]) == 0  # the control: this one was trained on something else
    assert "scored on afqmc" not in capsys.readouterr().out

    recipe = sections(tmp_path) | {"data": {"name": "afqmc"}}
    recipe["train"]["start_from"] = str(copy)
    assert "must not be trained on atec" in refused(tmp_path, recipe, capsys)
    recipe["data"]["allow_leakage"] = True
    path = write_recipe(tmp_path / "forced.yaml", recipe)
    assert cli.train([str(path), "--run", str(tmp_path / "forced")]) == 0
    assert "forced: the figure means nothing" in capsys.readouterr().err
    assert set(hanzoo.load(tmp_path / "forced").trained_on) == {"atec-unofficial", "afqmc-unofficial"}


def test_going_on_begins_with_the_same_answers(run: Path, tmp_path: Path) -> None:
    recipe = sections(tmp_path, start_from=str(run), optimizer={"learning_rate": 1e-30}, epochs=1)
    build.train(write_recipe(tmp_path / "it.yaml", recipe), run=tmp_path / "on")
    texts = [(first, second) for first, second, _ in pairs(10)]
    assert np.allclose(hanzoo.load(tmp_path / "on").scores(texts), hanzoo.load(run).scores(texts), atol=1e-6)


def test_runs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is none"):
        hanzoo.load(tmp_path / "none")
    with pytest.raises(DataError, match="must exist"):
        Matching().read_texts(tmp_path / "none.tsv", None)


# Negatives that a model finds.


def mining(folder: Path, finder: Path, **settings: Any) -> Any:
    recipe = sections(folder, objective={"name": "pairwise_softmax", "temperature": 0.05}, epochs=2)
    recipe["data"]["mining"] = {"finder": str(finder), "number": 2, **settings}
    return recipe


def test_bm25_finds_negatives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Second texts that share words with the first; where too few do, others at random, and that is said."""
    own = [
        ("银行 下雨", "银行", 1),
        ("银行 开会", "下雨", 0),
        ("书店", "书店 开会", 1),
        ("下雨", "秋天", 1),
        ("搬家", "工作", 0),
    ]
    recipe = mining(tmp_path, Path("bm25"), ratio=None)
    write_pairs(tmp_path / "train.tsv", own)
    assert cli.train([str(write_recipe(tmp_path / "it.yaml", recipe)), "--run", str(tmp_path / "run")]) == 0
    # of 银行 下雨: 下雨 and one of three; of 书店: two of four; of 下雨: 下雨 is the text itself, two of three
    assert (
        "6 negatives found for 3 pairs, 5 of them at random: none was left among the nearest" in capsys.readouterr().err
    )
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert "finder of negatives" not in results["inputs"]
    triples, _ = read_triples(tmp_path / "run" / "negatives" / "triples.jsonl")
    assert [triple.negatives[0] for triple in triples][:1] == ["下雨"]
    assert all(triple.anchor not in triple.negatives for triple in triples)
    facts = json.loads((tmp_path / "run" / "negatives" / "facts.json").read_text(encoding="utf-8"))
    assert facts["drawn"] == 5
    assert set(facts["versions"]) == {"bm25s", "jieba"}

    # with a limit, also what is drawn lies below it: a positive that shares no word leaves what shares none
    recipe = mining(tmp_path, Path("bm25"), number=1, ratio=0.95)
    assert cli.train([str(write_recipe(tmp_path / "it.yaml", recipe)), "--run", str(tmp_path / "less")]) == 0
    triples, _ = read_triples(tmp_path / "less" / "negatives" / "triples.jsonl")
    (last,) = (triple for triple in triples if triple.anchor == "下雨")
    assert last.negatives[0] in {"银行", "书店 开会", "工作"}


def test_negatives_are_found_kept_and_used_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path / "it.yaml", mining(tmp_path, run))
    assert cli.train([str(path), "--run", str(tmp_path / "dry"), "--dry-run"]) == 0
    assert not (tmp_path / "dry").exists()
    assert cli.train([str(path), "--run", str(tmp_path / "whole")]) == 0
    assert "60 negatives found for 30 pairs" in capsys.readouterr().err
    results = json.loads((tmp_path / "whole" / "results.json").read_text(encoding="utf-8"))
    assert results["data"]["counts"]["train"] == {"triples": 30}
    assert results["data"]["view"] == "matches with mined negatives"
    assert "finder of negatives" in results["inputs"]
    triples, _ = read_triples(tmp_path / "whole" / "negatives" / "triples.jsonl")
    finder = hanzoo.load(run)
    known = {(first, second) for first, second, label in pairs(60) if label}
    seconds = {second for _, second, _ in pairs(60)}
    facts = json.loads((tmp_path / "whole" / "negatives" / "facts.json").read_text(encoding="utf-8"))
    near = 0
    for triple in triples:
        assert (triple.anchor, triple.positive) in known
        assert len(set(triple.negatives)) == 2
        for negative in triple.negatives:
            assert negative in seconds
            assert (triple.anchor, negative) not in known
            near += finder.score(triple.anchor, negative) > 0.95 * finder.score(triple.anchor, triple.positive) + 1e-5
    assert near == 0
    assert cli.evaluate([str(tmp_path / "whole"), "--record", str(tmp_path / "record.json")]) == 0

    # killed after the first epoch, it goes on with what was found; the finder is asked no more
    train_until_saved(path, tmp_path / "cut")
    found = contents(tmp_path / "cut" / "negatives")
    with monkeypatch.context() as patch:
        patch.setattr("hanzoo.tasks.mining._cosines", None)
        again = build.train(path, run=tmp_path / "cut", resume=True)
    assert again["weights_sha256"] == results["weights_sha256"]
    assert contents(tmp_path / "cut" / "negatives") == found
    assert facts["drawn"] >= 0

    # damaged, they are found again; of other settings, refused
    (tmp_path / "cut" / "negatives" / "triples.jsonl").write_text("{}\n", encoding="utf-8")
    data = Matching().load_data(Matching.data_settings.model_validate(mining(tmp_path, run)["data"]))
    made = Matching().ready(
        data,
        Matching.data_settings.model_validate(mining(tmp_path, run)["data"]),
        tmp_path / "cut",
        hanzoo.load,
        lambda line: None,
    )
    assert [triple.negatives for triple in made.train] == [triple.negatives for triple in triples]
    other = Matching.data_settings.model_validate(mining(tmp_path, run, skip=1)["data"])
    with pytest.raises(RunError, match="settings of the negatives must be what the run began with"):
        Matching().ready(data, other, tmp_path / "cut", hanzoo.load, lambda line: None)


def test_what_cannot_find_negatives_is_refused(
    run: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = mining(tmp_path, teacher)
    assert "data.mining.finder: must be bm25 or hold a bi_encoder" in refused(tmp_path, recipe, capsys)
    recipe = mining(tmp_path, run, number=500)
    assert "there must be 500 texts for" in refused(tmp_path, recipe, capsys)
    recipe["data"]["items"] = "texts"
    assert "neither triples nor texts nor other items than matches beside mining" in refused(tmp_path, recipe, capsys)


# Single texts and triples in files of their own.


def simcse(folder: Path) -> dict[str, Any]:
    recipe = sections(folder, objective={"name": "info_nce"}, epochs=1)
    recipe["model"]["encoder_dropout"] = 0.1
    (folder / "texts.txt").write_text(
        "".join(f"{first}\n{second}\n" for first, second, _ in pairs(40)), encoding="utf-8"
    )
    return recipe


@pytest.mark.parametrize("beside", ["files", "name"])
def test_a_file_of_texts_is_trained_on(
    beside: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = simcse(tmp_path)
    recipe["data"] = {"texts": str(tmp_path / "texts.txt")}
    if beside == "files":
        recipe["data"] |= {split: str(tmp_path / f"{split}.tsv") for split in ("dev", "test")}
    else:
        folder = tmp_path / "data" / "afqmc"
        folder.mkdir(parents=True)
        for split, (number, start) in {"train": (60, 0), "dev": (24, 300)}.items():
            rows = [{"sentence1": a, "sentence2": b, "label": str(label)} for a, b, label in pairs(number, start)]
            (folder / f"{split}.json").write_text(jsonl(rows), encoding="utf-8")
        monkeypatch.setenv("HANZOO_DATA", str(tmp_path / "data"))
        recipe["data"] |= {"name": "afqmc"}
    path = write_recipe(tmp_path / "it.yaml", recipe)
    assert cli.train([str(path), "--run", str(tmp_path / "run")]) == 0
    distinct = {text for first, second, _ in pairs(40) for text in (first, second)}
    results = json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))
    assert results["data"]["counts"]["train"] == {"texts": len(distinct)}
    assert results["data"]["view"] == "texts of texts"
    assert "texts.txt" in " ".join(results["data"]["sha256"])
    about = [note for note in results["data"]["notes"] if "stand in train" in note]
    assert about[0].startswith("texts: ")  # of what is trained on, and not of the train of a set that judges
    assert not any("pairs stand in train" in note for note in about)
    assert cli.evaluate([str(tmp_path / "run"), "--split", "train"]) == 2
    assert "split: train must hold labelled pairs" in capsys.readouterr().err
    assert hanzoo.load(tmp_path / "run").trained_on == ("texts",)
    assert cli.train([str(path), "--run", str(tmp_path / "run"), "--resume"]) in (
        0,
        2,
    )  # finished: nothing to go on with
    capsys.readouterr()
    assert cli.evaluate([str(tmp_path / "run"), "--json"]) == 0
    assert "spearman" in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["data.texts=texts.txt"], "data must have labelled pairs beside texts, to select by, but has none"),
        (
            ["data.texts=texts.txt", "data.triples=a.tsv", "data.dev=dev.tsv"],
            "data must have one of train, triples and texts, which are what is trained on, but has triples and texts",
        ),
        (
            ["data.texts=texts.txt", "data.dev=dev.tsv", "data.items=matches"],
            "data must have items texts beside texts, but has matches. Set data.items=texts.",
        ),
        (
            ["data.texts=texts.txt", "data.dev=dev.tsv", "objective.name=cosent"],
            "cosent must have pairs to learn from, but the data's items are texts. Take another objective: arccse, info_nce.",
        ),
        (
            ["data.train=train.tsv", "data.triple_columns={anchor: q}"],
            "data must have triples beside triple_columns, but has none. Name their file (data.triples=my.tsv).",
        ),
        (["data.texts=nothing.txt", "data.dev=dev.tsv"], "nothing.txt"),
        (
            ["data.texts=other.tsv", "data.dev=dev.tsv"],
            "there must be a column for text (one of text, sentence, query)",
        ),
        (
            ["data.texts=texts.txt", "data.dev=dev.tsv", "data.dev_from_train=true"],
            "data must have dev_from_train false beside texts without a data set of pairs, but has true.",
        ),
        (
            ["data.triples=triples.jsonl", "data.dev=dev.tsv", "data.items=texts", "objective.name=triplet"],
            "the data's items are texts. Set data.items=triples, or take another objective: arccse, info_nce.",
        ),
        (
            ["data.train=bare.tsv", "data.dev=dev.tsv", "data.items=triples", "objective.name=triplet"],
            "triples are given by data.triples=FILE.",
        ),
        (
            ["data.train=other.tsv", "data.dev=dev.tsv"],
            "Rename one, or train with data.columns.first=NAME, or, in a file without header, its number from 1.",
        ),
        (
            ["data.triples=other.tsv", "data.dev=dev.tsv"],
            "Rename one, or train with data.triple_columns.anchor=NAME, or",
        ),
    ],
)
def test_texts_and_triples_that_will_not_do(
    settings: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = simcse(tmp_path)
    write_triples(tmp_path / "triples.jsonl", 20)
    write_pairs(tmp_path / "bare.tsv", [pair[:2] for pair in pairs(20)], "first\tsecond")
    write_pairs(tmp_path / "other.tsv", pairs(20), "q\td\thow")
    assert said in refused(tmp_path, recipe, capsys, *settings)


def test_the_columns_of_a_file_are_said_as_the_error_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path / "it.yaml", sections(tmp_path))
    own = write_pairs(tmp_path / "other.tsv", pairs(60), "q\td\thow")
    settings = [f"data.train={own}", "data.columns.first=q", "data.columns.second=d", "data.columns.label=how"]
    assert cli.train([str(recipe), *settings, "--run", str(tmp_path / "run"), "--dry-run"]) == 0


def test_what_is_trained_on_stays_where_other_data_is_named(tmp_path: Path) -> None:
    recipe = simcse(tmp_path)
    recipe["data"] = {"name": "stsb", "items": "texts", "most": 10}
    path = write_recipe(tmp_path / "it.yaml", recipe)
    found = load_recipe(path, [f"data.train={tmp_path / 'train.tsv'}"]).data.model_dump(exclude_none=True)
    assert found["items"] == "texts"
    assert not {"name", "most"} & set(found)
    assert load_recipe(path, ["data.name=bq", "data.items=pairs"]).data.model_dump()["items"] == "pairs"
    with pytest.raises(
        RecipeError, match=r"data\.items: the recipe says 'texts', but the data that the command line names has no"
    ):
        load_recipe(path, ["data.name=stard"])  # of another task, which has none
    with pytest.raises(RecipeError, match="data must have exactly one of name and train"):
        load_recipe(path, ["data.name=bq", "data="])


def test_errors_stay_out_of_what_a_program_reads(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.evaluate([str(run), "--json", "--errors"]) == 0
    out, said = capsys.readouterr()
    assert json.loads(out)["pairs"] == 24
    assert "matches with the lowest scores" in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cluener", "--data: must be data of a matcher, but cluener is of a tagger. Take one of afqmc, "),
        ("nosuch", "--data: must be a recipe or one of afqmc, "),
        ("cluener_flat", "--data: must be data of a matcher, but cluener_flat is of a tagger"),
    ],
)
def test_data_to_judge_by_is_named(name: str, said: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.evaluate([str(run), "--data", name]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert "stard" in message or name == "cluener_flat"
