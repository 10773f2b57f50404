"""A task of quite another kind goes through recipe, training, dry run and commands, which know nothing of it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import pytest

import hanzoo.models
from hanzoo import build, cli
from hanzoo.errors import DataError, RecipeError, RunError
from hanzoo.evaluation.significance import Comparison
from hanzoo.models.bilstm_crf import BiLSTMCRF
from hanzoo.models.model import Model, model_class
from hanzoo.recipe import check_recipe, load_recipe
from hanzoo.tasks.catalogue import TASKS, task_of
from hanzoo.tasks.tagging import Tagging
from hanzoo.tasks.task import DataSettings, EvaluateSettings, Report, Say, Subject, Task
from hanzoo.training.trick import Start
from tests.fixtures import trained_run, write_recipe

pytestmark = pytest.mark.usefixtures("deterministic")


# A task: points on a line y = slope * x.


class PointSettings(DataSettings):
    sources: ClassVar[tuple[str, ...]] = ("slope",)
    names: ClassVar[tuple[str, ...]] = ()
    slope: float

    def located(self) -> Self:
        return self


class PointMetrics(EvaluateSettings):
    metric: Literal["nearness"] = "nearness"


@dataclass(frozen=True)
class Points:
    name: str
    train: Sequence[Any]
    dev: Sequence[Any]
    slope: float
    test: None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ("points are made, not measured",)
    dev_source: str = "dev"
    test_source: str = "none"

    def split(self, name: str) -> Sequence[Any]:
        return {"train": self.train, "dev": self.dev}[name]


class PointReport(Report):
    def remarks(self) -> list[str]:
        return ["a remark on points"]

    def summary(self) -> dict[str, Any]:
        return {"nearness": self.figures[0]["nearness"]}

    def recorded(self) -> dict[str, Any]:
        return {"metrics": {"nearness": [figures["nearness"] for figures in self.figures]}}

    def compare(self, other: PointReport) -> Comparison:
        return Comparison(self.figures[0]["nearness"] - other.figures[0]["nearness"], (0.0, 0.0), 1.0, 1)


class LineFitting(Task):
    kind = "line"
    predicts = "lines"
    items = "points"
    figure = "nearness"
    columns = ("nearness",)
    next_step = "draw: python predict.py {run}"
    data_settings = PointSettings
    evaluate_settings = PointMetrics
    options: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "evaluate": {"--axes": {"action": "store_true"}},
        "predict": {},
    }

    @property
    def model(self) -> type[Model]:  # type: ignore[override]  # the folder of toys is on the path in a test alone
        return model_class("line")

    def load_data(self, settings: PointSettings) -> Points:
        from hanzoo.models.line import Point

        points = [Point(float(x), settings.slope * x) for x in range(8)]
        return Points("points", tuple(points[:6]), tuple(points[6:]), settings.slope)

    def check(self, settings: PointMetrics, data: Points, place: str) -> None:
        if data.slope == 0:
            raise RecipeError(f"{place}: data.slope must not be 0, but is.")

    def describe(self, data: Points) -> dict[str, Any]:
        return {"name": data.name, "sha256": {}}

    def tables(self, data: Points) -> list[list[dict[str, Any]]]:
        return [[{"slope of the data": str(data.slope)}]]

    def training_items(self, data: Points, say: Say = lambda line: None) -> list[Any]:
        say("the point at 0 says nothing: it is left out")
        return list(data.train[1:])

    def classes(self, item: Any) -> list[str]:
        return ["far" if item.x > 4 else "near"]

    def text(self, item: Any) -> str:
        return str(item.x)

    def without_gold(self, item: Any) -> Any:
        return item._replace(y=None)

    def read_texts(self, path: Path, format: str | None) -> Sequence[Any]:
        raise DataError(f"{path}: points are not read")

    def read_labelled(self, path: Path, format: str | None, settings: Any) -> Sequence[Any]:
        raise DataError(f"{path}: points are not read")

    def restrict(self, model: Any, data: Points) -> None:
        pass

    def start(self, model: Any, old_data: Callable[[], Any]) -> Start:
        raise NotImplementedError

    def dev_evaluation(self, model: Any, items: Sequence[Any], data: Points) -> Callable[[Model], dict[str, Any]]:
        return lambda trained: self.figures(trained, items, data)

    def calibrate(self, model: Any, items: Sequence[Any], settings: Any, data: Points) -> dict[str, Any]:
        return {"fitted": len(items)}

    def figures(self, model: Any, items: Sequence[Any], data: Points) -> dict[str, Any]:
        return {"nearness": 1 / (1 + abs(model.slope.item() - data.slope))}

    def card(self, results: Mapping[str, Any], recipe: Mapping[str, Any], run: str) -> str:
        return "a line\n"

    def report(self, subject: Subject, models: Iterable[Any], options: Mapping[str, Any]) -> Report:
        figures = [self.figures(model, subject.items, subject.data) for model in models]
        return PointReport(task=self, subject=subject, figures=figures)

    def require_same(self, subject: Subject, other: Subject) -> None:
        pass

    def details(self, reports: Sequence[Any], arguments: argparse.Namespace) -> Iterator[str]:
        if arguments.axes:
            yield "axes"

    def write_submission(self, run: Path, model: Any, data: Any, path: Path) -> None:
        raise NotImplementedError

    def predict(self, model: Any, arguments: argparse.Namespace, say: Say) -> int:
        say(f"the slope is {model.slope.item():.1f}")
        return 0


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> LineFitting:
    """The task, beside those that there are; the model `line` is found beside the real ones."""
    monkeypatch.setattr(hanzoo.models, "__path__", [*hanzoo.models.__path__, str(Path(__file__).parent / "models")])
    task = LineFitting()
    for module in ("tasks.catalogue", "recipe"):
        monkeypatch.setattr(f"hanzoo.{module}.TASKS", (*TASKS, task))
    return task


RECIPE: dict[str, Any] = {
    "data": {"slope": 2.0},
    "model": {"name": "line"},
    "train": {"epochs": 30, "device": "cpu", "optimizer": {"name": "sgd", "learning_rate": 0.02}},
}


@pytest.fixture
def recipe(line: LineFitting, tmp_path: Path) -> str:
    return str(write_recipe(tmp_path / "points.yaml", RECIPE))


def test_the_task_follows_from_the_model(line: LineFitting) -> None:
    assert task_of(model_class("line")) is line
    assert isinstance(task_of(BiLSTMCRF), Tagging)
    with pytest.raises(TypeError, match="Model must be one of Tagger, Matcher, Line"):
        task_of(Model)


def test_a_recipe_has_the_sections_of_its_task(recipe: str) -> None:
    assert load_recipe(recipe).evaluate.metric == "nearness"
    assert load_recipe(recipe, ["data.slope=3.0"]).to_dict()["data"] == {"slope": 3.0}
    with pytest.raises(RecipeError) as caught:
        check_recipe(RECIPE | {"data": {"name": "bundled"}, "evaluate": {"metric": "f1"}}, name="it", place="it.yaml")
    assert str(caught.value).split("\n") == [
        "it.yaml: data.slope: field required, but is {'name': 'bundled'}.",
        "it.yaml: data.name is not a setting of data. Known: slope.",
        "it.yaml: evaluate.metric: must be 'nearness', but is 'f1'.",
    ]
    with pytest.raises(RecipeError, match=r"data\.slope is not a setting of data"):
        check_recipe(RECIPE | {"model": {"name": "bilstm_crf"}}, name="it", place="it.yaml")


def test_it_is_trained_shown_evaluated_and_used(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert cli.train([recipe, "--run", str(run), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "slope of the data" in shown
    assert "30 epochs, 30 steps of at most 32 points" in shown
    assert cli.train([recipe, "--run", str(run), "train.oversample=0.5"]) == 0
    out, said = capsys.readouterr()
    assert out.split()[:3] == ["run", "split", "nearness"]
    assert "points are made, not measured\nthe point at 0 says nothing" in said
    assert "points instead of 5" in said
    assert said.endswith(f"evaluate: python evaluate.py {run}   draw: python predict.py {run}\n")
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert results["splits"]["dev"]["nearness"] > 0.9
    assert results["calibration"] == {"fitted": 2}
    assert results["data"] == {"name": "points", "sha256": {}}
    assert (run / "README.md").read_text(encoding="utf-8") == "a line\n"
    assert "best dev nearness" in (run / "curve.svg").read_text(encoding="utf-8")

    record = tmp_path / "points.json"
    assert cli.evaluate([str(run), "--axes", "--record", str(record)]) == 0
    assert capsys.readouterr().out.endswith("a remark on points\n\naxes\n")
    assert json.loads(record.read_text(encoding="utf-8"))["metrics"] == {
        "nearness": [results["splits"]["dev"]["nearness"]]
    }
    assert cli.evaluate([str(run), "--against", str(run)]) == 0
    out = capsys.readouterr().out
    assert "2 points" in out
    assert "nearness difference" in out
    assert cli.predict([str(run)]) == 0
    assert capsys.readouterr().err == "the slope is 2.0\n"


def test_what_its_data_does_not_have_is_refused_before_anything_is_written(recipe: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"points\.yaml: data\.slope must not be 0"):
        build.train(recipe, "data.slope=0.0", run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Two tasks side by side.


@pytest.fixture
def run(recipe: str, tmp_path: Path) -> Path:
    build.train(recipe, run=tmp_path / "run")
    return tmp_path / "run"


def test_an_option_of_another_task_is_refused_by_name(
    run: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(command: Callable[[list[str]], int], *arguments: str) -> str:
        capsys.readouterr()
        assert command([str(run), *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        return err

    submission = tmp_path / "submission.json"
    for option in (["--scorer", "exact"], ["--errors"], ["--per-label"], ["--submission", str(submission)]):
        owners = "tagger or matcher" if option == ["--errors"] else "tagger"
        said = f"{option[0]}: the run must hold a {owners}, but {run} holds a line. Leave it out.\n"
        assert refused(cli.evaluate, *option) == said
    for option in (["--labels", "name"], ["--lexicon", "x"], ["--html", "x.html"], ["--text-column", "text"]):
        said = f"{option[0]}: the run must hold a tagger, but {run} holds a line. Leave it out.\n"
        assert refused(cli.predict, *option) == said
    with pytest.raises(RunError, match="--scorer: the run must hold a tagger"):
        hanzoo.evaluate(run, scorers=["exact"])
    run = trained_run(tmp_path_factory)
    assert "--axes: the run must hold a line, but" in refused(cli.evaluate, "--axes")
    assert cli.evaluate([str(run), "--per-label"]) == 0


def test_runs_of_two_tasks_are_not_mixed(
    run: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    tagger = trained_run(tmp_path_factory)
    for arguments in ([str(run), str(tagger)], [str(tagger), "--against", str(run)]):
        assert cli.evaluate(arguments) == 2
        assert f"{tagger}: must hold a line as {run} does, but holds a tagger" in capsys.readouterr().err
    with pytest.raises(RunError, match="--data: must be data of a line, but demo_bilstm_crf is of a tagger"):
        build.evaluate(run, data="demo_bilstm_crf")
