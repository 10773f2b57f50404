"""Going on with a trained model on new data, at the shell: what is kept, what is refused, and what a resumed run still needs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hanzoo import build, cli
from hanzoo.data.document import Document, Span
from hanzoo.data.readers.spans import write as write_spans
from hanzoo.errors import RecipeError, RunError
from hanzoo.models.model import Tagger
from hanzoo.training.trainer import Trainer
from tests.fixtures import contents, corpus, json_lines, recipe_of, trained_run, write_recipe

pytestmark = pytest.mark.usefixtures("deterministic")

EWC = "train.tricks.ewc={num_samples: 20, weight: 0.3}"


@pytest.fixture
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that knows name and company; not to be changed."""
    return trained_run(tmp_path_factory)


def cities(number: int, start: int = 0) -> list[Document]:
    """Sentences with cities; names and companies in them are not marked."""
    documents = []
    for index in range(start, start + number):
        city = ("台州", "北京", "鲅鱼圈")[index % 3]
        text = f"{city}的叶老桂到了腾讯" if index % 2 else f"昨天去{city}"
        documents.append(Document(text, (Span(text.index(city), text.index(city) + len(city), "city"),)))
    return documents


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe for the cities, with the sizes of `old`."""
    folder = tmp_path_factory.mktemp("cities")
    files = {split: folder / f"{split}.jsonl" for split in ("train", "dev")}
    write_spans(files["train"], cities(40))
    write_spans(files["dev"], cities(12, 40))
    sections = recipe_of({split: str(path) for split, path in files.items()}, epochs=5, threads=1)
    return write_recipe(folder / "cities.yaml", sections)


@pytest.fixture(scope="module")
def run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("going_on") / "run"
    start = trained_run(tmp_path_factory)
    assert cli.train([str(recipe), f"train.start_from={start}", EWC, "--run", str(folder)]) == 0
    return folder


def f1(run: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.evaluate([str(run), "--json", *arguments]) == 0
    (figures,) = json_lines(capsys.readouterr().out)
    return figures


def test_both_label_sets_are_known_and_each_data_set_has_its_own(
    run: Path, old: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build.load(run)
    assert model.labels == ("company", "name", "city")
    here = f1(run, capsys)
    assert {each["label"] for each in here["per_label"]} == {"city"}
    assert here["f1"] > 0.8
    there = f1(run, capsys, "--data", str(old / "recipe.yaml"), "--split", "dev")
    assert there["split"].endswith(" dev")
    assert {each["label"] for each in there["per_label"]} == {"company", "name"}
    assert there["f1"] > 0.8
    assert build.evaluate(run, "dev", old, str(old / "recipe.yaml"))["f1"] == there["f1"]
    assert cli.evaluate([str(run)]) == 0
    assert "1 of the model's 3 labels take part" in capsys.readouterr().out


def test_predict_takes_all_labels_or_those_that_are_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("台州的叶老桂到了腾讯\n昨天去北京\n", encoding="utf-8")

    def labels(*arguments: str) -> set[str]:
        capsys.readouterr()
        assert cli.predict([str(run), str(texts), *arguments]) == 0
        return {each["label"] for row in json_lines(capsys.readouterr().out) for each in row["entities"]}

    assert labels("--labels", "city") == {"city"}
    assert "city" not in labels("--labels", "name,company")
    assert labels() >= {"city"}
    assert cli.predict([str(run), str(texts), "--labels", "town"]) == 2
    assert "labels: must be some of company, name, city, but are town" in capsys.readouterr().err


def test_without_anything_to_hold_it_the_old_is_forgotten(old: Path, recipe: Path, tmp_path: Path) -> None:
    start = [str(recipe), f"train.start_from={old}", "train.epochs=3", "train.optimizer.learning_rate=0.1"]
    for name, trick in (("free", "train.tricks={}"), ("held", EWC), ("near", "train.tricks.l2_sp.alpha=0.3")):
        assert cli.train([*start, trick, "--run", str(tmp_path / name)]) == 0
    documents = build.load_data(build.read_recipe(old)).dev

    def loss(folder: Path) -> float:
        model = build.load(folder)
        model.restrict(["name", "company"])
        batch = model.collate([model.featurize(document) for document in documents])
        return float(model.losses(model(batch), batch)["crf"].mean())

    free, held, near = (loss(tmp_path / name) for name in ("free", "held", "near"))
    assert held < 0.5 * free
    assert near < 0.5 * free


def test_a_cut_run_goes_on_to_the_same_bits_without_the_old_one(
    run: Path, old: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "old"
    shutil.copytree(old, copy)
    cut = tmp_path / "run"
    arguments = [str(recipe), f"train.start_from={copy}", EWC, "--run", str(cut)]
    plain: Callable[..., None] = Trainer._step

    def killed(self: Trainer, epoch: int, items: list[list[int]]) -> None:
        if self.progress.step == 2:
            raise KeyboardInterrupt
        plain(self, epoch, items)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", killed)
        assert cli.train(arguments) == 130
    shutil.rmtree(copy)
    assert cli.train([*arguments, "--resume"]) == 0
    whole, again = (json.loads((folder / "results.json").read_text()) for folder in (run, cut))
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert again["inputs"] == whole["inputs"] != {}
    assert (cut / "start").is_dir()
    assert build.load(cut / "start").state_dict().keys() == build.load(cut).state_dict().keys()


def test_a_run_that_is_resumed_has_the_class_weights_of_its_data(run: Path) -> None:
    recipe = build.read_recipe(run)
    recipe = replace(recipe, model=recipe.model.model_copy(update={"class_weights": 0.5}))
    data = build.load_data(recipe)
    names = tuple(replace(document, spans=(Span(0, 1, "name"),)) for document in data.train[:5])
    model, _ = build.first_model(recipe, replace(data, train=(*data.train, *names)), run)
    weights = dict(zip(model.labels, model.get_buffer("_label_weights").tolist(), strict=True))
    assert weights["city"] < weights["company"] == 1 < weights["name"]


def test_what_cannot_be_continued_is_refused_by_name(
    old: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(old)
    start = f"train.start_from={old}"
    for setting, name in (("model.hidden=8", "model.hidden"), ("model.tag_scheme=BIO", "model.tag_scheme")):
        with pytest.raises(RecipeError, match=f"{name}: must be .* as in the model of train.start_from"):
            build.train(str(recipe), start, setting, run=tmp_path / "run")
    with pytest.raises(RunError, match=r"nowhere: must be a run directory"):
        build.train(str(recipe), "train.start_from=nowhere", run=tmp_path / "run")
    assert cli.train([str(recipe), EWC, "--run", str(tmp_path / "run")]) == 2
    assert "train.tricks.ewc needs a trained model" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    shutil.copytree(old / "model", tmp_path / "alone" / "model")  # a model without its run says nothing of its data
    alone = f"train.start_from={tmp_path / 'alone' / 'model'}"
    with pytest.raises(RunError, match="has no recipe"):
        build.train(str(recipe), alone, EWC, run=tmp_path / "run")
    settings = ("model.dropout_hidden=0.1", "train.epochs=1", "train.tricks.l2_sp.alpha=0.1")
    assert build.train(str(recipe), alone, *settings, run=tmp_path / "another")["steps"] > 0
    assert contents(old) == before


def test_data_without_a_label_of_the_model_is_refused(
    old: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.evaluate([str(old), "--data", str(recipe)]) == 2
    assert "one of the data's labels (city) must be known to the model" in capsys.readouterr().err
    assert cli.evaluate([str(old), "--data", "cluner"]) == 2
    assert cli.evaluate([str(old), "--data", "cluener", "--file", "x.jsonl"]) == 2


def test_the_loss_on_new_data_says_nothing_of_old_entities(old: Path) -> None:
    previous = build.load(old)
    (text,) = (document for document in corpus(1) if document.spans)
    item = Document(text.text, (Span(0, 1, "city"),))
    data = build.load_data(build.read_recipe(old))
    new = type(data)(**{**vars(data), "train": (item,), "dev": (item,), "labels": ("city",)})
    model = type(previous).continue_from(previous.config, previous, new)
    assert isinstance(model, Tagger)
    batch = model.collate([model.featurize(item)])
    weight = model.get_submodule("emission").weight

    def rows_with_gradient() -> list[bool]:
        model.zero_grad()
        model.losses(model(batch), batch)["crf"].sum().backward()
        return [bool(row) for row in weight.grad.any(1)]

    num_old = len(model.labels[:-1]) * 4
    free = rows_with_gradient()
    model.restrict(["city"])
    assert rows_with_gradient() == [True, *[False] * num_old, *free[-4:]]
    assert all(free[1 : 1 + num_old])
