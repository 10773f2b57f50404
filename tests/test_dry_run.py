"""What a dry run says, against the corpus and the plan counted plainly; and that it leaves nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hanzoo import cli
from hanzoo.data.batching import plan_epoch
from hanzoo.data.randomness import generator
from hanzoo.dry_run import dry_run
from hanzoo.errors import RecipeError, RunError
from hanzoo.models.model import load_model
from hanzoo.recipe import load_recipe
from hanzoo.tasks.tagging import Tagging
from hanzoo.training.trainer import Trainer
from tests.fixtures import contents, corpus, recipe_of, write_corpus, write_recipe

pytestmark = pytest.mark.usefixtures("deterministic")


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    sections = recipe_of(write_corpus(tmp_path / "corpus"), epochs=2, log_every=1, save_every=1, accumulation=2)
    return str(write_recipe(tmp_path / "tiny.yaml", sections))


def rows(text: str, head: str) -> dict[str, list[str]]:
    """The rows of the table whose first column is `head`, by their first cell."""
    block = next(block for block in text.split("\n\n") if block.startswith(head))
    return {line.split()[0]: re.split(r"  +", line.strip())[1:] for line in block.splitlines()[2:]}


def test_it_says_what_would_be_trained_and_writes_nothing(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    before = contents(tmp_path)
    assert cli.train([recipe, "--run", "runs/tiny", "--dry-run"]) == 0
    assert contents(tmp_path) == before
    shown, said = capsys.readouterr()
    assert "step " not in said
    lengths = sorted(len(document.text) for document in corpus(120))
    spans = [span for document in corpus(120) for span in document.spans]
    (sentences, characters, median, _, longest, entities) = rows(shown, "split")["train"]
    assert (int(sentences), int(characters), int(entities)) == (120, sum(lengths), len(spans))
    assert (int(median), int(longest)) == (lengths[59], lengths[-1])
    assert int(rows(shown, "label")["name"][0]) == sum(span.label == "name" for span in spans)
    assert "2 epochs, 16 steps of at most 16 sentences (2 micro-batches of 8 on 1 ranks)" in shown
    assert re.search(r"memory: \d+\.\d\d GB in the longest step", shown)
    assert re.search(r"expected: \d+\.\d minutes, ", shown)
    # what it said is what is then trained
    assert cli.train([recipe, "--run", "runs/tiny"]) == 0
    model = load_model(tmp_path / "runs" / "tiny" / "model")
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert int(rows(shown, "module")["all"][0]) == counted


def test_minutes_are_those_of_all_steps_and_evaluations(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = [len(document.text) for document in corpus(120)]

    def padded(window: list[list[int]]) -> int:
        return sum(len(numbers) * max(lengths[number] for number in numbers) for numbers in window)

    trained: list[int] = []

    def rehearse(trainer: Trainer, window: list[list[int]]) -> float:
        trained.append(padded(window))
        return 3.0 * padded(window)

    clock = [0.0]

    def evaluation(task: Tagging, model: Any, items: Any, data: Any) -> Callable[[Any], None]:
        def evaluate(_: Any) -> None:
            clock[0] += 60.0 * len(items)

        return evaluate

    monkeypatch.setattr(Trainer, "rehearse", rehearse)
    monkeypatch.setattr(Tagging, "dev_evaluation", evaluation)
    monkeypatch.setattr("hanzoo.dry_run.DEV_ITEMS", 10)
    monkeypatch.setattr("hanzoo.dry_run.time.monotonic", lambda: clock[0])
    text = dry_run(load_recipe(recipe), run=tmp_path / "run", seeds=[5, 7], say=lambda line: None)
    costs = [
        padded(window)
        for epoch in range(2)
        for window in plan_epoch(lengths, generator(5, "plan", epoch), batch_size=8, micro_batches=2)
    ]
    assert trained[0] == max(costs)
    assert sorted(costs)[len(costs) // 2 - 1] == trained[1]
    minutes = 3.0 * sum(costs) / 60 + 2 * 30
    assert f"expected: {minutes:.1f} minutes a run, {2 * minutes:.1f} for 2 runs" in text


def test_what_training_would_refuse_is_refused(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def tried(*overrides: str, **where: Any) -> str:
        return dry_run(load_recipe(recipe, overrides), say=lambda line: None, **({"run": tmp_path / "run"} | where))

    with pytest.raises(RecipeError, match="is 'carf'"):
        tried("train.optimizer.rates={carf: 5.0}")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("{}", encoding="utf-8")
    with pytest.raises(RunError, match="the run directory must be new"):
        tried()
    with pytest.raises(RunError, match="holds a single run"):
        tried(seeds=[1, 2])
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".recipe.yaml.123.partial").touch()  # all that a process left that was killed at once
    assert tried(run=tmp_path / "killed")
    (tmp_path / "run").rename(tmp_path / "seed-2")
    with pytest.raises(RunError, match="seed-2: the run directory must be new"):
        tried(run=tmp_path, seeds=[1, 2])
    with pytest.raises(SystemExit, match="2"):
        cli.train([recipe, "--dry-run", "--resume"])
    assert "leave --resume out" in capsys.readouterr().err
