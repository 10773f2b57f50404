"""From a recipe to a finished run: what is checked before training, and what stands in the folder after a cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from hanzoo import build
from hanzoo.errors import RecipeError
from tests.fixtures import write_corpus

pytestmark = pytest.mark.usefixtures("deterministic")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    splits = write_corpus(tmp_path / "corpus")
    lines = [f"  {split}: {path}" for split, path in splits.items()]
    text = "data:\n" + "\n".join(lines) + "\nmodel: {name: bilstm_crf, dimension: 4, hidden: 4}\n"
    (tmp_path / "tiny.yaml").write_text(text + "train: {epochs: 1, device: cpu}\n", encoding="utf-8")
    return tmp_path / "tiny.yaml"


def test_a_metric_that_the_data_does_not_have_is_refused_before_training(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"evaluate.metric must be f1 or macro_f1 .*official_macro_f1"):
        build.train(recipe, "evaluate.metric=official_macro_f1", run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_rate_for_a_part_that_the_model_does_not_have_is_refused_before_anything_is_written(
    recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"rates: a name must be a part .* is 'carf'. Did you mean 'crf'\?"):
        build.train(recipe, "train.optimizer.rates={carf: 5.0}", run=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    build.train(recipe, "train.optimizer.rates={crf: 5.0}", run=tmp_path / "run")


def test_a_rate_is_suggested_and_not_set(recipe: Path, tmp_path: Path) -> None:
    said: list[str] = []
    build.train(recipe, "train.batch_size=128", run=tmp_path / "run", say=said.append)
    (line,) = (line for line in said if "a step has" in line)
    assert "a step has 128 rows" in line
    assert line.endswith(" train.optimizer.learning_rate=0.002")
    assert build.read_recipe(tmp_path / "run").train.optimizer.learning_rate == 0.001
    build.train(recipe, run=tmp_path / "again", say=said.append)
    assert sum("a step has" in line for line in said) == 1


def test_a_run_is_finished_when_all_of_it_is_there(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "write_report", killed)
        with pytest.raises(KeyboardInterrupt):
            build.train(recipe, run=run)
    assert not (run / "results.json").exists()
    results = build.train(recipe, run=run, resume=True)
    assert {"README.md", "curve.svg", "results.json"} <= {path.name for path in run.iterdir()}
    assert build.train(recipe, run=run, resume=True) == results
