from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from torch import Tensor

import hanzoo
from hanzoo import build, cli
from hanzoo.data.document import Document, Span
from hanzoo.data.readers.spans import write as write_spans
from hanzoo.errors import RunError
from hanzoo.evaluation.cluener import LABELS
from hanzoo.evaluation.report import show_figure
from hanzoo.evaluation.scorers import Predictions
from hanzoo.models.bilstm_crf import BiLSTMCRF
from hanzoo.models.layers.character_tables import CharacterBatch
from hanzoo.models.model import Tagger
from hanzoo.recipe import bundled_recipes
from hanzoo.recipes.figures import read_results
from hanzoo.tasks import tagging_report
from hanzoo.training.trainer import Trainer
from tests import tiny
from tests.fixtures import (
    ROOT,
    contents,
    corpus,
    json_lines,
    jsonl,
    recipe_of,
    run_command,
    trained_run,
    write_cluener,
    write_corpus,
    write_recipe,
)

pytestmark = pytest.mark.usefixtures("deterministic")


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory)


@pytest.fixture
def recipe(run: Path) -> str:
    return str(run.parent / "tiny.yaml")


@pytest.fixture(scope="module")
def seeds_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    recipe = write_recipe(folder / "tiny.yaml", recipe_of(write_corpus(folder / "corpus"), epochs=2))
    assert cli.train([str(recipe), "--run", str(folder / "run"), "--seeds", "1,2"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def weak_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds that have learnt little of the same corpus."""
    folder = tmp_path_factory.mktemp("weak")
    recipe = write_recipe(folder / "weak.yaml", recipe_of(write_corpus(folder / "corpus"), epochs=1))
    settings = ["train.optimizer.learning_rate=0.05"]
    assert cli.train([str(recipe), *settings, "--run", str(folder / "run"), "--seeds", "1,2"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def cluener_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on files in the form of CLUENER; $HANZOO_DATA must be the folder beside it."""
    folder = tmp_path_factory.mktemp("cluener")
    write_cluener(folder / "data" / "cluener")
    recipe = write_recipe(folder / "small.yaml", recipe_of({"name": "cluener"}, epochs=5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HANZOO_DATA", str(folder / "data"))
        assert cli.train([str(recipe), "--run", str(folder / "run")]) == 0
    return folder / "run"


Tagged = tuple[int, list[dict[str, Any]], str]


@pytest.fixture
def tag(monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Tagged]:
    """Run predict in this process; returns exit code, the objects on standard output, and standard error."""

    def predict(arguments: Sequence[str | Path], stdin: str | bytes = b"") -> Tagged:
        given = stdin.encode("utf-8") if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))
        capsysbinary.readouterr()
        code = cli.predict([str(argument) for argument in arguments])
        out, err = capsysbinary.readouterr()
        return code, json_lines(out), err.decode("utf-8")

    return predict


# --- train -----------------------------------------------------------------------------------------------------------


def test_train_leaves_a_run_directory(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert names == {"recipe.yaml", "metrics.jsonl", "results.json", "curve.svg", "README.md", "model", "state"}
    assert {path.name for path in (run / "model").iterdir()} == {
        "hanzoo.json", "hanzoo.safetensors", "characters.json", "bigrams.json",
    }  # fmt: skip
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert results["splits"]["test"]["f1"] == 1.0  # else no test of what the model finds would mean anything
    assert results["command"].startswith("python train.py ")
    assert results["seed"] == 1
    assert results["data"]["counts"]["train"] == {"sentences": 120, "entities": 144}
    assert set(results["data"]["sha256"]) == {"train.jsonl", "dev.jsonl", "test.jsonl"}
    assert 0 < results["calibration"]["temperature"] < 100
    metrics = json_lines((run / "metrics.jsonl").read_text(encoding="utf-8"))
    assert [record["epoch"] for record in metrics if "dev" in record] == [1, 2, 3, 4]
    assert str(run) in (run / "README.md").read_text(encoding="utf-8")
    assert (run / "curve.svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")


def test_train_prints_only_the_figures_on_standard_output(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert cli.train([recipe, "train.epochs=1", "--run", str(run), "train.log_every=5", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split() == ["run", "split", "precision", "recall", "F1", "macro", "F1"]
    assert [line.split()[:2] for line in lines[2:]] == [[str(run), "dev"], [str(run), "test"]]
    assert "train.jsonl: 120 sentences" in err
    assert "step 5/15 epoch 1 loss " in err
    assert f"python predict.py {run} texts.txt" in err
    saved = (run / "recipe.yaml").read_text(encoding="utf-8")
    assert "epochs: 1\n" in saved
    assert "log_every: 5\n" in saved
    command = json.loads((run / "results.json").read_text(encoding="utf-8"))["command"]
    assert "train.epochs=1" in command
    assert "train.log_every=5" in command
    assert command.endswith(" --device cpu")


def test_the_same_seed_gives_the_same_bits_and_another_does_not(recipe: str, tmp_path: Path) -> None:
    hashes = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert cli.train([recipe, "train.epochs=1", f"train.seed={seed}", "--run", str(tmp_path / name)]) == 0
        results = json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8"))
        hashes.append(results["weights_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_train_writes_to_runs_under_the_recipes_name(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.train([recipe, "train.epochs=1"]) == 0
    assert (tmp_path / "runs" / "tiny" / "results.json").is_file()


def test_an_existing_run_is_refused_and_a_finished_one_is_not_trained_again(
    run: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run)
    capsys.readouterr()
    assert cli.train([recipe, "--run", str(run)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "--resume" in err
    assert "--run" in err
    assert cli.train([recipe, "--run", str(run), "--resume"]) == 0
    out, err = capsys.readouterr()
    assert "is finished already" in err
    assert "100.00" in out
    assert cli.train([recipe, "--run", str(run), "--resume", "train.epochs=9"]) == 2
    assert "train.epochs (was 4, is 9)" in capsys.readouterr().err
    assert contents(run) == before


def test_resume_needs_a_run(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.train([recipe, "--run", str(tmp_path / "none"), "--resume"]) == 2
    assert "Start it without --resume" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_is_saved_and_goes_on_to_the_same_bits(
    run: Path,
    recipe: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
) -> None:
    step = Trainer._step

    def interrupted(self: Trainer, *arguments: Any) -> None:
        step(self, *arguments)
        if self.progress.step == 20:
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupted)
        assert cli.train([recipe, "--run", str(tmp_path / "run")]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "saved; go on with --resume" in err
    assert (tmp_path / "run" / "state" / "00000020").is_dir()
    assert not (tmp_path / "run" / "results.json").exists()
    assert cli.train([recipe, "--run", str(tmp_path / "run"), "--resume"]) == 0
    assert "going on from step 20 of 60" in capsys.readouterr().err
    ends = [json.loads((folder / "results.json").read_text(encoding="utf-8")) for folder in (tmp_path / "run", run)]
    assert ends[0]["weights_sha256"] == ends[1]["weights_sha256"]


def test_seeds_give_one_run_each_and_one_line_together(seeds_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {path.name for path in seeds_run.iterdir()} == {"seed-1", "seed-2", "results.json", "curve.svg"}
    results = json.loads((seeds_run / "results.json").read_text(encoding="utf-8"))
    assert results["seeds"] == [1, 2]
    hashes = {seed: run["weights_sha256"] for seed, run in results["runs"].items()}
    assert hashes["1"] != hashes["2"]
    before = contents(seeds_run)
    recipe = str(seeds_run.parent / "tiny.yaml")
    capsys.readouterr()
    assert cli.train([recipe, "--run", str(seeds_run), "--seeds", "1,2"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert cli.train([recipe, "--run", str(seeds_run), "--seeds", "1,2", "--resume"]) == 0
    out, err = capsys.readouterr()
    assert err.count("is finished already") == 2
    assert " ± " in out.splitlines()[2]
    assert contents(seeds_run) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a recipe is needed"),
        (["x", "--seeds", "1,1"], "must be different numbers"),
        (["x", "--seeds", "1,b"], "must be numbers like 1,2,3"),
        (["x", "--seeds", ""], "must be numbers like 1,2,3"),
        (["x", "--sed", "1"], "unrecognized arguments"),
        (["x", "--see", "1"], "unrecognized arguments"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.train(arguments)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


def test_list_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.train(["--list"]) == 0
    assert capsys.readouterr().out.split() == bundled_recipes()
    for command in (cli.train, cli.evaluate, cli.predict):
        with pytest.raises(SystemExit) as stop:
            command(["--version"])
        assert stop.value.code == 0
        assert capsys.readouterr().out == f"hanzoo {hanzoo.__version__}\n"


def test_standard_output_that_cannot_hold_a_text_or_is_closed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", narrow)
        cli.answer("公司 90.00\n")
    narrow.seek(0)
    assert narrow.read() == "\\u516c\\u53f8 90.00\n"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert cli.train(["--list"]) == 2
    assert capsys.readouterr().err.startswith("standard output: must be open")
    cli.answer("公司\n")
    assert capsys.readouterr().out == "公司\n"


def test_further_seeds_join_the_curve(seeds_run: Path, tmp_path: Path) -> None:
    several = shutil.copytree(seeds_run, tmp_path / "several")
    shutil.rmtree(several / "seed-2")
    recipe = str(seeds_run.parent / "tiny.yaml")
    assert cli.train([recipe, "--run", str(several), "--seeds", "2", "--resume"]) == 0
    curve = (several / "curve.svg").read_text(encoding="utf-8")
    assert "seed 1" in curve
    assert "seed 2" in curve
    assert json.loads((several / "results.json").read_text(encoding="utf-8"))["seeds"] == [2, 1]


# --- evaluate --------------------------------------------------------------------------------------------------------


def test_evaluate_puts_several_runs_into_one_table(
    run: Path, seeds_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.evaluate([str(run), str(seeds_run), str(seeds_run / "seed-2")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0].split()[:2] == ["run", "split"]
    assert [line.split()[0] for line in lines[2:5]] == [str(run), str(seeds_run), str(seeds_run / "seed-2")]
    assert [line.split()[1] for line in lines[2:5]] == ["test"] * 3
    assert ["±" in line for line in lines[2:5]] == [False, True, False]
    assert "100.00" in lines[2]
    assert "legal tag sequences: 100.00 %" in out
    assert "not seen in train" in out


def test_evaluate_says_what_training_said(run: Path) -> None:
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    for split in ("dev", "test"):
        assert hanzoo.evaluate(run, split=split)["f1"] == results["splits"][split]["f1"]
    assert hanzoo.evaluate(run)["split"] == "test"


def test_evaluate_as_json_by_label_and_with_errors(
    run: Path, seeds_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.evaluate([str(run), str(seeds_run), "--json", "--split", "dev"]) == 0
    one, several = json_lines(capsys.readouterr().out)
    assert (one["run"], one["split"], one["f1"]) == (str(run), "dev", 1.0)
    assert len(several["f1"]) == 2
    assert [row["label"] for row in one["per_label"]] == ["company", "name"]
    assert cli.evaluate([str(run), "--per-label", "--errors"]) == 0
    out = capsys.readouterr().out
    assert out.count("company") >= 2
    for kind in ("boundary", "type", "missed", "spurious", "entity length", "seen"):
        assert kind in out
    assert "30 texts, 36 gold, 36 predicted, 36 right" in out


ALL_SCORERS = "exact,bmes,fastnlp,seqeval,clue"


def test_evaluate_counts_as_others_do(run: Path, weak_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert cli.evaluate([str(run), str(weak_run), "--scorer", ALL_SCORERS]) == 0
    table = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    assert table[0].split()[:2] == ["run", "scorer"]
    assert [line.split()[:2] for line in table[2:]] == [
        [str(folder), name] for folder in (run, weak_run) for name in ALL_SCORERS.split(",")
    ]
    for name, words in {"bmes": "Lattice LSTM", "fastnlp": "FLAT", "seqeval": "LEBERT", "clue": "leaderboard"}.items():
        assert all(words in line for line in table if line.split()[1] == name)
    assert cli.evaluate([str(weak_run), "--scorer", ALL_SCORERS, "--json"]) == 0
    (told,) = json_lines(capsys.readouterr().out)
    assert told == hanzoo.evaluate(weak_run, scorers=ALL_SCORERS.split(","))
    assert list(told["scorers"]) == ALL_SCORERS.split(",")
    assert told["legal"] == [1.0, 1.0]
    for name, figures in told["scorers"].items():  # a CRF with constraints says nothing illegal
        assert figures["f1"] == told["f1"], name
        assert figures["gold_left_out"] == [0, 0]
    assert told["scorers"]["clue"]["macro_f1"] == [pytest.approx(2 / 10 * value) for value in told["macro_f1"]]
    assert "scorers" not in hanzoo.evaluate(run)


def test_scorers_differ_where_the_output_layer_has_no_constraints(
    weak_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def best_of_each(model: BiLSTMCRF, output: Tensor, batch: CharacterBatch) -> list[np.ndarray]:
        lengths = batch.mask.sum(1).tolist()
        return [row[:length].numpy() for row, length in zip(output.argmax(2), lengths, strict=True)]

    monkeypatch.setattr(BiLSTMCRF, "tag_sequences", best_of_each)
    told = hanzoo.evaluate(weak_run / "seed-1", scorers=ALL_SCORERS.split(","))
    assert 0 < told["legal"] < 1
    figures = {name: values["f1"] for name, values in told["scorers"].items()}
    assert figures["exact"] == figures["clue"] == told["f1"]
    assert len({figures["exact"], figures["bmes"], figures["seqeval"]}) == 3
    capsys.readouterr()
    recorded = tmp_path / "weak.json"
    assert cli.evaluate([str(weak_run), "--scorer", "exact,bmes", "--record", str(recorded)]) == 0
    legal = show_figure(json.loads(recorded.read_text(encoding="utf-8"))["legal"])
    rows = capsys.readouterr().out.split("\n\n")[-1].splitlines()[2:]
    assert all(legal in row for row in rows)
    (result,) = read_results(tmp_path)
    assert result.scorers["exact"]["f1"] == result.metrics["f1"] != result.scorers["bmes"]["f1"]


def test_scorers_of_a_model_that_says_spans_without_tags(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def spans(model: BiLSTMCRF, output: Tensor, batch: CharacterBatch) -> list[list[Span]]:
        return [[Span(0, 2, "name"), *overlapping] for _ in output]

    def predict(model: Tagger, documents: Sequence[Document]) -> Predictions:
        with monkeypatch.context() as patch:
            patch.setattr(model, "featurize", build.load(run).featurize)
            patch.setattr(model, "tag_set", None)
            return with_tags(model, documents)

    overlapping: list[Span] = []
    with_tags = tagging_report.predict
    monkeypatch.setattr(BiLSTMCRF, "decode", spans)
    monkeypatch.setattr(tagging_report, "predict", predict)
    told = hanzoo.evaluate(run, scorers=ALL_SCORERS.split(","))
    assert "legal" not in told
    found = [values["true_positives"] + values["false_positives"] for values in told["scorers"].values()]
    assert found == [30] * 5
    capsys.readouterr()
    assert cli.evaluate([str(run), "--scorer", "seqeval"]) == 0
    assert "legal tag sequences" not in capsys.readouterr().out
    overlapping = [Span(1, 3, "name")]
    assert cli.evaluate([str(run), "--scorer", "exact,seqeval"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("scorer seqeval: predictions must not overlap")
    assert cli.evaluate([str(run), "--scorer", "exact"]) == 0


def test_an_unknown_scorer_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.evaluate([str(run), "--scorer", "exact,fastnpl"])
    assert stop.value.code == 2
    assert "is 'fastnpl'. Did you mean 'fastnlp'?" in capsys.readouterr().err
    with pytest.raises(RunError, match="a name must be one of exact, bmes, fastnlp, seqeval, clue, but is 'all'"):
        hanzoo.evaluate(run, scorers=["all"])


def test_evaluate_on_a_file_of_ones_own(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("叶 B-name\n老 I-name\n桂 I-name\n到 O\n了 B-name\n", encoding="utf-8")
    capsys.readouterr()
    assert cli.evaluate([str(run), "--file", str(path), "--json"]) == 0
    report = json_lines(capsys.readouterr().out)[0]
    assert report["split"] == str(path)
    assert (report["precision"], report["recall"]) == (1.0, 0.5)
    with pytest.raises(SystemExit):
        cli.evaluate([str(run), "--file", str(path), "--split", "dev"])


def test_the_cluener_submission(
    cluener_run: Path,
    run: Path,
    seeds_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HANZOO_DATA", str(cluener_run.parent / "data"))
    capsys.readouterr()
    path = tmp_path / "cluener_predict.json"
    assert cli.evaluate([str(cluener_run), "--submission", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "official macro F1" in out.splitlines()[0]
    assert out.splitlines()[2].split()[1] == "dev"  # the test set has no labels
    assert f"{path}: written" in err
    lines = json_lines(path.read_bytes())
    assert [line["id"] for line in lines] == list(range(10))
    found = 0
    given = json_lines((cluener_run.parent / "data" / "cluener" / "test.json").read_bytes() + b"\n")
    for line, text in zip(lines, given, strict=True):
        for label, mentions in line["label"].items():
            assert label in LABELS
            for mention, places in mentions.items():
                for first, last in places:
                    assert text["text"][first : last + 1] == mention
                    found += 1
    assert found >= 5
    results = json.loads((cluener_run / "results.json").read_text(encoding="utf-8"))
    assert results["data"]["name"] == "cluener-unofficial"
    assert cli.evaluate([str(run), "--submission", str(tmp_path / "other.json")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "needs the unlabelled test sentences of cluener" in err
    assert [item.name for item in tmp_path.iterdir()] == ["cluener_predict.json"]
    assert cli.evaluate([str(seeds_run), "--submission", str(tmp_path / "other.json")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"{seeds_run}: a submission must be of one run" in err
    assert f"Name one of them: {seeds_run / 'seed-1'}" in err


@contextmanager
def changed(path: Path, **values: Any) -> Iterator[None]:
    """A JSON file with other values, for a while."""
    before = path.read_bytes()
    path.write_text(json.dumps(json.loads(before) | values), encoding="utf-8")
    try:
        yield
    finally:
        path.write_bytes(before)


def test_the_recorded_figure_is_what_the_table_of_figures_reads(
    run: Path, seeds_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.few.json").write_text(
        json.dumps({"published": {"value": 0.9, "source": "a paper"}, "headline": True, "asked": "at least 1"}),
        encoding="utf-8",
    )
    arguments = [str(seeds_run), "--record", str(tmp_path / "tiny.few.json"), "--variant", "few", "--split", "dev"]
    assert cli.evaluate(arguments) == 0
    first, second = seeds_run / "seed-1" / "results.json", seeds_run / "seed-2" / "results.json"
    with changed(first, commit="1234567890ab"), changed(second, commit="1234567890ab+"):
        capsys.readouterr()
        assert cli.evaluate(arguments) == 0
        err = capsys.readouterr().err
        assert (
            f"{tmp_path / 'tiny.few.json'}: a figure must come from a commit, but this one's code was 1234567890ab+"
            in err
        )
    with changed(run / "results.json", commit="1234567890ab"):
        capsys.readouterr()
        assert cli.evaluate([str(run), "--record", str(tmp_path / "tiny.json")]) == 0
        assert "must come from a commit" not in capsys.readouterr().err
    few, plain = read_results(tmp_path)
    assert (few.recipe, few.variant, few.split, few.seeds) == ("tiny", "few", "dev", [1, 2])
    assert (few.headline, few.asked) == (True, "at least 1")
    assert few.published is not None
    assert few.published.value == 0.9
    trained = json.loads((seeds_run / "results.json").read_text(encoding="utf-8"))["runs"]
    assert few.metrics["f1"] == [trained[seed]["splits"]["dev"]["f1"] for seed in ("1", "2")]
    assert few.command.endswith("--seeds 1,2")
    assert few.selected_on == "dev.jsonl"
    assert (plain.variant, plain.split, plain.metrics["f1"], plain.headline) == ("", "test", [1.0], False)
    assert plain.data_sha256 == few.data_sha256
    assert (few.inputs, few.minutes >= 0, few.peak_gb > 0) == ({}, True, True)
    capsys.readouterr()
    assert cli.evaluate([str(run), str(seeds_run), "--record", str(tmp_path / "two.json")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "--record: must have one run, but has 2" in err


def test_a_recorded_command_names_the_seeds_that_are_recorded(seeds_run: Path, tmp_path: Path) -> None:
    assert cli.evaluate([str(seeds_run / "seed-2"), "--record", str(tmp_path / "tiny.json")]) == 0
    trained = json.loads((seeds_run / "seed-2" / "results.json").read_text(encoding="utf-8"))["command"]
    assert trained.endswith(" --seeds 1,2")
    (one,) = read_results(tmp_path)
    assert (one.seeds, one.command) == ([2], trained.removesuffix("1,2") + "2")
    words = "python train.py 'a b.yaml' x=1 --seeds 1,2,3 --device cpu"
    assert build.with_seeds(words, [1, 3]) == "python train.py 'a b.yaml' x=1 --seeds 1,3 --device cpu"
    assert build.with_seeds("python train.py  a.yaml train.seed=2", [2]) == "python train.py  a.yaml train.seed=2"


def test_evaluate_against_another_run(run: Path, weak_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = weak_run / "seed-1", weak_run / "seed-2"
    capsys.readouterr()
    assert cli.evaluate([str(run), str(one), "--against", str(other)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    figures, differences = out.split(f"against {other}, 30 sentences\n")
    assert [line.split()[0] for line in figures.splitlines()[2:5]] == [str(run), str(one), str(other)]
    lines = differences.splitlines()
    assert lines[0].split() == ["run", "F1", "difference", "95", "%", "interval", "p"]
    told = {folder: hanzoo.evaluate(folder, against=other) for folder in (run, one)}
    for line, folder in zip(lines[2:4], (run, one), strict=True):
        said = told[folder]["against"]
        low, high = said["interval"]
        shown = [f"{100 * value:+.2f}" for value in (said["difference"], low, high)]
        assert line.split() == [str(folder), shown[0], shown[1], "to", shown[2], f"{said['p']:.2g}"]
        assert said["run"] == str(other)
        assert said["difference"] == told[folder]["f1"] - hanzoo.evaluate(other)["f1"]
        assert low < said["difference"] < high
    assert told[run]["against"]["difference"] > 0.1
    assert told[run]["against"]["p"] < 0.01, "a model that has learnt the corpus, against one that has not yet"
    assert "paired approximate randomisation over sentences, two-sided, 10000 rounds" in differences
    assert cli.evaluate([str(run), "--against", str(other), "--json"]) == 0
    assert json_lines(capsys.readouterr().out) == [json.loads(json.dumps(told[run]))]
    assert "against" not in hanzoo.evaluate(run)


def test_several_seeds_are_compared_by_their_means(
    seeds_run: Path, weak_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.evaluate([str(seeds_run), str(weak_run), "--against", str(weak_run)]) == 0
    out = capsys.readouterr().out
    assert f"against {weak_run}, 30 sentences, means over 2 seeds\n" in out
    assert out.index(f"against {weak_run}") > out.index("±")
    assert len([line for line in out.splitlines() if line.startswith(f"{weak_run} ")]) == 2, "not shown twice a table"
    assert re.search(rf"\n{weak_run} +\+0\.00 +\+0\.00 to \+0\.00 +1\n", out), "it does not differ from itself"
    said = hanzoo.evaluate(seeds_run, against=weak_run)
    means = [sum(hanzoo.evaluate(folder)["f1"]) / 2 for folder in (seeds_run, weak_run)]
    assert said["against"]["difference"] == pytest.approx(means[0] - means[1], abs=1e-12)
    for number in (1, 2):  # the same seeds in the other order
        shutil.copytree(weak_run / f"seed-{number}", tmp_path / "turned" / f"seed-{3 - number}")
    turned = hanzoo.evaluate(tmp_path / "turned", against=weak_run)["against"]
    assert turned["difference"] == pytest.approx(0.0, abs=1e-12)
    assert turned["p"] == 1.0


def test_runs_that_cannot_be_compared_are_one_clear_error(
    run: Path, seeds_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: Path | str) -> str:
        capsys.readouterr()
        assert cli.evaluate([str(argument) for argument in arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        return err

    said = error(run, "--against", seeds_run)
    assert said.startswith(
        f"{run}: seeds must be as many as in {seeds_run} (2), but are 1. Train those that are missing: "
    )
    assert "but are 2. " in error(seeds_run, "--against", run)
    assert "must be a run directory" in error(run, "--against", tmp_path / "nothing")

    documents = corpus(30, 407)
    changed = {
        "text": [*documents[:4], documents[5], *documents[5:]],
        "entities": [*documents[:4], Document(documents[4].text), *documents[5:]],
        "number": documents[:29],
    }
    changed["entities"][3] = Document(documents[3].text, (Span(0, 1, "name"),))
    found = {}
    for name, test in changed.items():
        other = shutil.copytree(run, tmp_path / name)
        write_spans(tmp_path / f"{name}.jsonl", test)
        recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
        recipe["data"]["test"] = str(tmp_path / f"{name}.jsonl")
        write_recipe(other / "recipe.yaml", recipe)
        found[name] = error(run, "--against", other)
        assert found[name].startswith(f"{run}: test must hold the sentences and entities of test in {other}")
        assert "Compare runs of the same data" in found[name]
        assert cli.evaluate([str(run), "--against", str(other), "--split", "dev"]) == 0, "these are the same"
        assert cli.evaluate([str(run), "--against", str(other), "--file", str(tmp_path / "text.jsonl")]) == 0
    assert f"but sentence 5 is {documents[4].text!r} instead of {documents[5].text!r}. " in found["text"]
    assert f"but sentence 4, {documents[3].text!r}, has other entities. " in found["entities"]
    assert "(29 sentences), but holds 30 sentences. " in found["number"]


def test_a_figure_is_recorded_with_what_it_was_compared_with(
    run: Path, weak_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, base = weak_run / "seed-1", tmp_path / "weak.few.json"
    figure = [str(run), "--against", str(one), "--record", str(tmp_path / "tiny.json")]
    assert (
        cli.evaluate([str(one), "--variant", "dev", "--split", "dev", "--record", str(tmp_path / "weak.dev.json")]) == 0
    )
    capsys.readouterr()
    assert cli.evaluate(figure) == 2
    assert (
        f"{one}: what a figure is compared with must be recorded in {tmp_path}, but is not. " in capsys.readouterr().err
    )
    assert not (tmp_path / "tiny.json").exists()
    assert cli.evaluate([str(one), "--variant", "few", "--record", str(base)]) == 0
    assert cli.evaluate(figure) == 0
    (against,) = [result.against for result in read_results(tmp_path) if result.recipe == "tiny"]
    assert against is not None
    assert (against.recipe, against.variant) == ("weak", "few")
    told = hanzoo.evaluate(run, against=one)["against"]
    recorded = {"difference": against.difference, "interval": list(against.interval), "p": against.p}
    assert {"run": str(one), **recorded, "rounds": against.rounds} == told
    assert cli.evaluate([str(run), "--record", str(tmp_path / "tiny.json")]) == 0
    assert [result.against for result in read_results(tmp_path)] == [None] * 3


# --- predict ---------------------------------------------------------------------------------------------------------


def test_predict_writes_one_line_a_text(run: Path, tmp_path: Path, tag: Callable[..., Tagged]) -> None:
    code, lines, err = tag([run], "叶老桂在浙商银行工作\r\n\n今天没有人来")
    assert (code, err) == (0, "")
    assert [line["text"] for line in lines] == ["叶老桂在浙商银行工作", "", "今天没有人来"]
    assert [list(line) for line in lines] == [["text", "entities"]] * 3
    first, second = lines[0]["entities"]
    assert {key: first[key] for key in ("start", "end", "label", "text")} == {
        "start": 0, "end": 3, "label": "name", "text": "叶老桂",
    }  # fmt: skip
    assert (second["start"], second["end"], second["label"]) == (4, 8, "company")
    assert 0.5 < first["confidence"] <= 1
    assert lines[1]["entities"] == lines[2]["entities"] == []
    assert tag([run / "model", "-"], "叶老桂在浙商银行工作\n")[1] == lines[:1]
    (tmp_path / "a.txt").write_bytes("叶老桂在浙商银行工作\n".encode())
    assert tag([run, tmp_path / "a.txt"])[1] == lines[:1]


def test_predict_keeps_the_columns_of_every_format(run: Path, tmp_path: Path, tag: Callable[..., Tagged]) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = [document.text for document in corpus(7)]
    expected = [line["entities"] for line in tag([run], jsonl([]) + "\n".join(texts) + "\n")[1]]
    assert sum(map(len, expected)) >= 6
    records: list[Mapping[str, Any]] = [{"no": index, "body": text} for index, text in enumerate(texts)]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(jsonl(records))
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ["no", "body"])
        table.writeheader()
        table.writerows(records)
    parquet.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    for name in ("a.jsonl.gz", "a.csv", "a.parquet"):
        code, lines, err = tag([run, tmp_path / name, "--text-column", "body"])
        assert (code, err) == (0, "")
        assert [line["entities"] for line in lines] == expected
        assert [(int(line["no"]), line["body"]) for line in lines] == list(enumerate(texts))
        output = tmp_path / f"out-{name}"
        code, lines, err = tag([run, tmp_path / name, "--text-column", "body", "--output", output])
        assert (code, lines, err) == (0, [], "")
    with (tmp_path / "out-a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [json.loads(row["entities"]) for row in rows] == expected
    assert [row["body"] for row in rows] == texts
    back = parquet.read_table(tmp_path / "out-a.parquet").to_pylist()
    assert [row["entities"] for row in back] == expected
    assert [row["no"] for row in back] == list(range(7))
    with gzip.open(tmp_path / "out-a.jsonl.gz", "rb") as packed:
        assert [line["entities"] for line in json_lines(packed.read())] == expected


def test_predict_shows_a_page(run: Path, tmp_path: Path, tag: Callable[..., Tagged]) -> None:
    code, lines, _ = tag([run, "--html", tmp_path / "page.html"], "叶老桂在浙商银行工作\n<b>\n".encode() + b"\xff\n")
    assert code == 1
    assert len(lines) == 3
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "叶老桂" in page
    assert page.partition("</ol>")[0].count("<mark") == 2
    assert "&lt;b&gt;" in page
    assert "must be UTF-8" in page


def test_an_empty_input_gives_an_empty_output(run: Path, tag: Callable[..., Tagged]) -> None:
    assert tag([run], b"") == (0, [], "")


# --- as a person starts them -----------------------------------------------------------------------------------------


def test_a_mistake_at_the_shell(tmp_path: Path) -> None:
    done = run_command([ROOT / "train.py", "cluener_bilstm_cfr"], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Did you mean 'cluener_bilstm_crf'" in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_enough_ends_predict_quietly(run: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text(("叶老桂在浙商银行工作" * 20 + "\n") * 500, encoding="utf-8")
    command = [sys.executable, str(ROOT / "predict.py"), str(run), str(tmp_path / "texts.txt")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = json.loads(process.stdout.readline())
        assert [entity["label"] for entity in first["entities"]] == ["name", "company"] * 20
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(60) == 0
    assert err == b""


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
def test_without_its_dependencies_a_command_names_make_demo(command: str) -> None:
    done = run_command(["-S", ROOT / f"{command}.py"])  # -S: no site-packages
    assert done.returncode != 0
    assert done.stdout == b""
    assert b"make demo" in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"is not installed for" in done.stderr


# --- loading ---------------------------------------------------------------------------------------------------------


def test_load_from_a_run_and_from_its_model(run: Path, tmp_path: Path) -> None:
    text = "叶老桂在浙商银行工作"
    found = hanzoo.load(run).predict([text])
    assert found[0].entities
    assert hanzoo.load(str(run / "model")).predict([text]) == found
    shutil.copytree(run / "model", tmp_path / "elsewhere")  # a model needs nothing around it
    assert hanzoo.load(tmp_path / "elsewhere").predict([text]) == found


def test_a_run_of_several_seeds_is_no_model(seeds_run: Path) -> None:
    with pytest.raises(RunError, match=r"must be one run, but holds seed-1, seed-2\. Name one of them: .*seed-1"):
        hanzoo.load(seeds_run)
    assert hanzoo.load(seeds_run / "seed-2").predict([""])[0].entities == ()


@pytest.mark.usefixtures("lexicons")
def test_words_from_the_shell_reach_a_model_with_a_lexicon(
    run: Path, tmp_path: Path, tag: Callable[..., Tagged]
) -> None:
    settings = {"lexicon": ["tiny-words"], "dimension": 8, "width": 16, "num_heads": 2, "feed_forward": 24}
    model = tiny.build("flat", settings).eval()
    assert isinstance(model, Tagger)
    assert model.lexicon is not None
    (tmp_path / "model").mkdir()
    model.save(tmp_path / "model")
    text = "他在绝区零里遇到了王小明，去了北京"
    words, more = tmp_path / "words.txt", tmp_path / "more.txt"
    words.write_text("绝区零\n王小明\n", encoding="utf-8")
    more.write_text("北京去\n遇到了\n", encoding="utf-8")

    def answers() -> list[dict[str, Any]]:
        assert isinstance(model, Tagger)
        return [dataclasses.asdict(entity) for entity in model.predict([text])[0].entities]

    plain = answers()
    model.lexicon.add(["绝区零", "王小明", "北京去", "遇到了"])
    assert answers() != plain
    code, lines, err = tag([tmp_path / "model", "--lexicon", words, "--lexicon", more], text + "\n")
    assert (code, lines[0]["entities"]) == (0, answers())
    assert f"{more}: 2 words more in the lexicon, {len(model.lexicon)} in all" in err
    assert tag([tmp_path / "model"], text + "\n")[1][0]["entities"] == plain  # the folder is as it was

    more.write_text("北京去\tcompany\n遇到了\tplace\n", encoding="utf-8")
    assert (
        "a kind is a label says nothing to this model" in tag([tmp_path / "model", "--lexicon", more], text + "\n")[2]
    )
    knows = tiny.build("flat", settings | {"kind_rate": 0.1})
    (tmp_path / "knows").mkdir()
    knows.save(tmp_path / "knows")
    err = tag([tmp_path / "knows", "--lexicon", more, "--lexicon", words], text + "\n")[2]
    assert f"{more}: 1 of them have a label as their kind, and are read as that" in err
    assert f"{words}: 0 of them have a label as their kind" in err

    code, lines, err = tag([run, "--lexicon", words], text + "\n")
    assert (code, lines) == (2, [])
    assert err.startswith("--lexicon: the model must have a lexicon, but")
    code, lines, err = tag([tmp_path / "model", "--lexicon", tmp_path / "none.txt"], text + "\n")
    assert (code, lines) == (2, [])
    assert "none.txt" in err


def test_predict_wants_strings(run: Path) -> None:
    tagger = hanzoo.load(run)
    with pytest.raises(TypeError, match="texts must be strings, but text 1 is int"):
        tagger.predict(["叶老桂", 1])
    with pytest.raises(TypeError, match="one string"):
        tagger.predict("叶老桂")
