"""Distillation: the soft loss against enumeration, how it is mixed, what is kept of the teachers, and what is refused."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hanzoo import build
from hanzoo.data.document import Document
from hanzoo.data.readers.spans import write as write_spans
from hanzoo.errors import DataError, RecipeError, RunError
from hanzoo.models.bilstm_crf import BiLSTMCRF
from hanzoo.models.layers import crf as crf_layer
from hanzoo.models.layers.crf import CRF
from hanzoo.models.model import Model, TargetForm
from hanzoo.recipe import load_recipe
from hanzoo.training import distillation
from hanzoo.training.distillation import (
    Distillation,
    SoftTargets,
    common_form,
)
from hanzoo.training.trainer import Trainer
from hanzoo.training.trick import Loss, trick_class, trick_names
from tests import tiny
from tests.fixtures import corpus, recipe_of, trained_run, write_recipe
from tests.references.crf import Chain
from tests.references.distillation import soft_loss

pytestmark = pytest.mark.usefixtures("deterministic")

TEXTS = ("⟨name|王⟩来", "⟨name|李娜⟩⟨name|张⟩", "雨")
SMALL = tiny.data([tiny.marked(text) for text in TEXTS], [tiny.marked(TEXTS[0])])
UNLABELLED = [Document(text) for text in ("王小明去了长河科技", "雨", "云山银行的李娜说今天下雨，没有人去成都")]


def tagger(
    seed: int = 1, scheme: str = "BIOES", dropout: float = 0.0, of: Any = None, scale: float = 3.0, **more: Any
) -> BiLSTMCRF:
    """A small model whose transitions and emissions are far from uniform."""
    chosen = {"dimension": 6, "hidden": 5, "unknown_rate": 0.0, "tag_scheme": scheme} | more
    model = tiny.build(
        "bilstm_crf", chosen | {"dropout_embedding": dropout, "dropout_hidden": dropout}, seed, of or tiny.data()
    )
    assert isinstance(model, BiLSTMCRF)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.emission.weight.mul_(scale)
        for parameter in model.crf.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return model


def chain(model: BiLSTMCRF, emissions: Tensor) -> Chain:
    crf = model.crf
    return Chain(
        emissions.double(), crf.transitions.double(), crf.start_transitions.double(), crf.end_transitions.double(),
        torch.as_tensor(model.tag_set.legal_transitions), torch.as_tensor(model.tag_set.legal_start),
        torch.as_tensor(model.tag_set.legal_end),
    )  # fmt: skip


# The loss.


def soft_and_enumerated(
    dtype: torch.dtype, temperature: float, taught_at: float | None = None
) -> tuple[Tensor, list[Tensor], Tensor]:
    """The model's soft losses, the leaves they depend on, and the enumerated ones on the same leaves."""
    teacher, student = (tagger(seed, "BIO", of=SMALL).to(dtype) for seed in (1, 2))
    batch = student.collate([student.featurize(document) for document in SMALL.train])
    draw = torch.Generator().manual_seed(3)
    shape = (*batch.mask.shape, len(student.tag_set.tags))
    taught, output = (2 * torch.randn(shape, generator=draw, dtype=dtype) for _ in range(2))
    output.requires_grad_()
    targets = [row.detach() for row in teacher.soft_targets(taught, batch, taught_at or temperature)]
    found = student.soft_losses(output, targets, batch, temperature)["crf"]
    lengths = batch.mask.sum(1).tolist()
    expected = [
        soft_loss(chain(teacher, taught[row, :length]), chain(student, output[row, :length]), temperature)
        for row, length in enumerate(lengths)
    ]
    return found, [output, *student.crf.parameters()], torch.stack(expected)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0, 5.0])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_loss_and_gradient_equal_the_enumerated_ones(temperature: float, dtype: torch.dtype, close: float) -> None:
    found, leaves, expected = soft_and_enumerated(dtype, temperature)
    assert torch.allclose(found.double(), expected, rtol=close, atol=close)
    assert expected.min() > 0.01
    for ours, theirs in zip(
        torch.autograd.grad(found.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
    ):
        assert torch.allclose(ours.double(), theirs.double(), atol=close)
        assert theirs.abs().max() > 1e-2


def test_temperature_is_that_of_the_targets_too() -> None:
    found, _, expected = soft_and_enumerated(torch.float64, 2.0, taught_at=1.0)
    assert not torch.allclose(found, expected, rtol=1e-2)


def test_a_student_that_is_sure_of_something_else_has_the_gradient_of_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(1)
    crf = CRF(4, batch_first=True)
    with torch.no_grad():
        for parameter, value in zip(crf.parameters(), (torch.zeros(4), torch.zeros(4), 12 * torch.eye(4)), strict=True):
            parameter.copy_(value)
    mask = torch.arange(40) < torch.tensor([[40], [33]])
    targets = (2 * torch.randn(2, 40, 4, generator=draw)).softmax(2)
    sure = 6 * torch.randn(2, 40, 4, generator=draw)

    def gradient(dtype: torch.dtype) -> Tensor:
        emissions = sure.to(dtype).requires_grad_()
        value = crf.marginal_divergence(emissions, targets.to(dtype), mask)
        assert torch.isfinite(value).all()
        (found,) = torch.autograd.grad(value.sum(), emissions)
        return found.double()

    exact = gradient(torch.float64)
    assert (gradient(torch.float32) - exact).norm() < 1e-6 * exact.norm()
    monkeypatch.setattr(crf_layer, "_RATIO_FELT", 1e-25)
    assert (gradient(torch.float32) - exact).norm() > 1e-4 * exact.norm()


def test_several_dropout_masks_learn_by_the_mean_of_their_emissions() -> None:
    model = tagger(1, "BIO", of=SMALL, multi_sample_dropout=3)
    batch = model.collate([model.featurize(document) for document in SMALL.train])
    output = model.train()(batch)
    assert output.shape[0] == 3
    targets = [row.detach() for row in model.eval().soft_targets(model(batch), batch, 2.0)]
    found = model.soft_losses(output, targets, batch, 2.0)["crf"]
    assert torch.allclose(found, model.soft_losses(output.mean(0), targets, batch, 2.0)["crf"])
    assert not torch.allclose(found, model.soft_losses(output[0], targets, batch, 2.0)["crf"], rtol=1e-2)


def test_only_a_prefix_of_targets_is_looked_at_and_shapes_are_checked() -> None:
    crf = CRF(3, batch_first=True)
    emissions, mask = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(1)), torch.ones(1, 4).bool()
    mask[0, 2:] = False
    targets = torch.full((1, 4, 3), 1 / 3)
    expected = crf.marginal_divergence(emissions, targets, mask)
    targets[0, 2:] = float("nan")
    assert torch.equal(crf.marginal_divergence(emissions, targets, mask), expected)
    with pytest.raises(ValueError, match="targets must have shape"):
        crf.marginal_divergence(emissions, targets[:, :3], mask)


# How it is mixed.


def targets_of(
    folder: Path, teachers: Sequence[Model], documents: Sequence[Document], temperature: float = 2.0
) -> SoftTargets:
    return tiny.distillation(folder, teachers, documents, temperature=temperature).targets


def distilling(
    folder: Path, model: Model, teacher: Model, *, weight: float = 0.5, unlabelled: Sequence[Document] = UNLABELLED,
    **settings: Any,
) -> Trainer:  # fmt: skip
    """A trainer of `model` on the tiny sentences, and others without gold."""
    documents = [*tiny.DOCUMENTS, *unlabelled]
    trick = tiny.distillation(folder, [teacher], documents, weight=weight)
    return tiny.trainer(model, folder, items=documents, further=[trick], **settings)


def test_labelled_texts_have_both_losses_and_the_others_the_soft_one(tmp_path: Path) -> None:
    model, teacher = tagger(2), tagger(1)
    documents = [*tiny.DOCUMENTS[:3], *UNLABELLED]
    weights = torch.tensor([2.0, 1.0, 0.5, 7.0, 7.0, 7.0])
    outputs: list[Any] = []

    def hard(batch: Any) -> Loss:
        outputs.append(model(batch))
        return Loss(model.losses(outputs[-1], batch), outputs[-1], {"crf": weights})

    batch = model.collate([model.featurize(document) for document in documents], None, range(6))
    found = tiny.distillation(tmp_path, [teacher], documents, 3, weight=0.3).wrap_loss(hard, model)(batch)
    (output,) = outputs
    taught = teacher.soft_targets(teacher(batch), batch, 2.0)
    soft = model.soft_losses(output, taught, batch, 2.0)["crf"]
    plain = model.losses(output, batch)["crf"] * weights
    expected = torch.cat((0.7 * plain[:3] + 0.3 * soft[:3], 0.3 * soft[3:]))
    assert found.weights is None
    assert found.output is output
    assert torch.allclose(found.values["crf"], expected, rtol=1e-5)
    assert soft.min() > 0.1
    assert plain[3:].min() > 0.1  # the made-up gold of a text without gold has a loss, which is not felt


def gradients(folder: Path, dropout: float = 0.0, **settings: Any) -> dict[str, Tensor]:
    model = tagger(2, dropout=dropout)
    distilling(folder, model, tagger(1), **settings).fit()
    return tiny.gradients(model)


@pytest.mark.parametrize(
    "tricks",
    [{}, {"fgm": {"epsilon": 0.5}}, {"fgm": {"epsilon": 0.5}, "r_drop": {}}, {"focal": {}, "gradient_penalty": {}}],
    ids="+".join,
)
def test_accumulation_equals_one_big_batch(tmp_path: Path, tricks: Mapping[str, Mapping[str, Any]]) -> None:
    big = gradients(tmp_path / "big", tricks=tricks, batch_size=15)
    small = gradients(tmp_path / "small", tricks=tricks, batch_size=4, accumulation=4)
    assert tiny.difference(small, big) < 3e-6
    assert tiny.difference(gradients(tmp_path / "part", tricks=tricks, batch_size=4), big) > 1e-2


def test_weight_0_is_training_without_it(tmp_path: Path) -> None:
    model = tagger(2)
    tiny.trainer(model, tmp_path / "plain", batch_size=12).fit()
    plain = tiny.gradients(model)
    assert tiny.difference(gradients(tmp_path / "0", weight=0.0, unlabelled=(), batch_size=12), plain) == 0.0
    assert tiny.difference(gradients(tmp_path / "1", weight=0.1, unlabelled=(), batch_size=12), plain) > 1e-3


def test_the_gold_means_nothing_at_weight_1(tmp_path: Path) -> None:
    first = gradients(tmp_path / "1", weight=1.0, batch_size=15)
    other = tagger(2)
    trained = distilling(tmp_path / "2", other, tagger(1), weight=1.0, batch_size=15)
    trained.features = [replace(item, tags=np.zeros_like(item.tags)) for item in trained.features]
    trained.fit()
    assert tiny.difference(tiny.gradients(other), first) == 0.0


def test_a_student_of_itself_has_nothing_to_learn(tmp_path: Path) -> None:
    model = tagger(1)
    found = distilling(tmp_path, model, tagger(1), weight=1.0, batch_size=15, log_every=1)
    found.fit()
    record = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert abs(record["loss"]) < 1e-4
    assert record["gradient_norm"] < 1e-4


def test_r_drop_and_attacks_leave_the_targets_alone(tmp_path: Path) -> None:
    model, teacher = tagger(2, dropout=0.3), tagger(1)
    trained = distilling(tmp_path, model, teacher, tricks={"r_drop": {}, "fgm": {"epsilon": 0.5}}, batch_size=15)
    seen, learnt = [], model.soft_losses

    def remember(output: Tensor, targets: Sequence[Tensor], batch: Any, temperature: float) -> Mapping[str, Tensor]:
        seen.append((output, torch.cat(list(targets))))
        return learnt(output, targets, batch, temperature)

    model.soft_losses = remember  # type: ignore[method-assign]
    trained.fit()
    clean, attacked = seen  # one soft loss a pass of FGM, though R-Drop runs each twice
    assert torch.equal(clean[1], attacked[1])
    assert not torch.equal(clean[0], attacked[0])


class Judge(tiny.Toy):
    """Says yes or no of a text: a model that is no tagger, with one distribution a text."""

    def target_form(self) -> TargetForm:
        return TargetForm("class distributions", ("no", "yes"))

    def soft_targets(self, output: Tensor, batch: Any, temperature: float) -> list[Tensor]:
        yes = (output / temperature).sigmoid()
        return list(torch.stack((1 - yes, yes), dim=1).unsqueeze(1))

    def soft_losses(
        self, output: Tensor, targets: Sequence[Tensor], batch: Any, temperature: float
    ) -> Mapping[str, Tensor]:
        taught = torch.cat(list(targets))
        own = torch.cat(self.soft_targets(output, batch, temperature))
        return {"square": temperature**2 * (taught * (taught / own).log()).sum(1)}


def test_what_is_no_tagger_learns_as_well(tmp_path: Path) -> None:
    teacher, other, student, misled = (tiny.toy(seed) for seed in (1, 3, 2, 2))
    for model in (teacher, other, student, misled):
        model.__class__ = Judge
        with torch.no_grad():
            model.output.weight.mul_(2.0)
    assert common_form(student, "runs/a", teacher).kind == "class distributions"
    with pytest.raises(RecipeError, match="teaches token marginals; the student learns class distributions"):
        common_form(student, "runs/b", tagger(1))

    @torch.no_grad()
    def distance(model: tiny.Toy) -> float:
        batch = model.collate([model.featurize(document) for document in UNLABELLED])
        return float((model.eval()(batch).sigmoid() - teacher.eval()(batch).sigmoid()).abs().mean())

    epochs = itertools.count()

    def later_is_better(model: Model) -> dict[str, Any]:
        return {"f1": float(next(epochs))}

    settings: dict[str, Any] = {"weight": 1.0, "epochs": 20, "evaluate": later_is_better}
    settings["optimizer"] = {"learning_rate": 0.03}
    distilling(tmp_path / "taught", student, teacher, **settings).fit()
    distilling(tmp_path / "misled", misled, other, **settings).fit()
    assert distance(student) < 0.05
    assert distance(misled) > 0.2


def test_outside_of_all_that_wraps_the_hard_loss() -> None:
    ranks = [trick_class(name).rank for name in trick_names() if "wrap_loss" in vars(trick_class(name))]
    assert ranks
    assert max(ranks) < Distillation.rank


# What is kept of the teachers.


def test_targets_are_what_the_teacher_says_and_several_are_averaged(tmp_path: Path) -> None:
    documents = [*tiny.DOCUMENTS, *UNLABELLED]
    teachers = [tagger(seed).train() for seed in (1, 2)]
    targets = targets_of(tmp_path, teachers, documents)
    assert len(targets) == len(documents)
    for item in (0, 7, 14):
        said = []
        for teacher in teachers:
            batch = teacher.collate([teacher.featurize(documents[item])])
            with torch.no_grad():
                said += teacher.eval().soft_targets(teacher(batch), batch, 2.0)
        (found,) = targets.of([item], torch.device("cpu"))
        assert torch.allclose(found, (said[0] + said[1]) / 2, atol=1e-6)
        assert not torch.allclose(found, said[0], atol=1e-3)
        assert found.shape[0] == len(documents[item].text)
    files = sorted(path.name for path in (tmp_path / "targets").iterdir())
    assert files == ["places.npy", "targets.bin", "targets.json"]


def test_dropout_of_the_teacher_is_off(tmp_path: Path) -> None:
    first = targets_of(tmp_path / "1", [tagger(1, dropout=0.5).train()], tiny.DOCUMENTS)
    second = targets_of(tmp_path / "2", [tagger(1)], tiny.DOCUMENTS)
    for one, other in zip(*(each.of(range(12), torch.device("cpu")) for each in (first, second)), strict=True):
        assert torch.equal(one, other)


def test_targets_are_used_again_or_made_again_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, teacher = tmp_path / "targets", tagger(1)
    targets_of(tmp_path, [teacher], tiny.DOCUMENTS)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def again() -> dict[str, bytes]:
        targets_of(tmp_path, [teacher], tiny.DOCUMENTS)
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    with monkeypatch.context() as patch:
        patch.setattr(distillation, "_rounds", lambda *_: pytest.fail("made again"))
        patch.setattr(teacher, "featurize", lambda _: pytest.fail("the teacher is not needed"))
        assert again() == before
    with (folder / "targets.bin").open("r+b") as file:
        file.seek(100)
        file.write(b"\x00\x01")
    assert again() == before
    (folder / "targets.json").write_text("{")
    assert again() == before
    (folder / "places.npy").unlink()
    assert again() == before
    folder.rename(folder.with_name(".targets.new"))  # cut before the exchange
    assert again() == before
    assert not list(tmp_path.glob(".*"))


def test_ranks_share_the_work_and_the_bits_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "batches_by_length", lambda self, lengths: iter([[3, 1], [0, 4, 2], [5]]))
    teacher, documents = tagger(1), tiny.DOCUMENTS[:6]
    targets_of(tmp_path, [teacher], documents)
    facts = json.loads((tmp_path / "targets" / "targets.json").read_text())
    shares = []
    for number in range(2):  # what each rank gives to the others in each round
        with monkeypatch.context() as patch:
            patch.setattr(distillation, "num_ranks", lambda: 2)
            patch.setattr(distillation, "rank", lambda number=number: number)
            features = [[teacher.featurize(document) for document in documents]]
            shares.append([found for (found,) in distillation._rounds([teacher], features, 2.0)])
    assert [[len(found) for found in share] for share in shares] == [[2, 1], [3, 0]]
    (tmp_path / "two").mkdir()
    distillation._write(tmp_path / "two", facts, iter([list(found) for found in zip(*shares, strict=True)]))
    for path in (tmp_path / "targets").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_targets_of_others_are_refused(tmp_path: Path) -> None:
    targets_of(tmp_path, [tagger(1)], tiny.DOCUMENTS)
    with pytest.raises(RunError, match="temperature of the soft targets must be what the run began with"):
        targets_of(tmp_path, [tagger(1)], tiny.DOCUMENTS, temperature=3.0)
    with pytest.raises(RunError, match="texts, items of the soft targets"):
        targets_of(tmp_path, [tagger(1)], tiny.DOCUMENTS[:5])
    with pytest.raises(RunError, match="teachers of the soft targets"):
        targets_of(tmp_path, [tagger(1), tagger(2)], tiny.DOCUMENTS)


def test_a_teacher_without_probabilities_is_refused(tmp_path: Path) -> None:
    teacher = tagger(1)
    with torch.no_grad():
        teacher.emission.bias.fill_(float("nan"))
    with pytest.raises(RunError, match=r"distillation.teacher: must give finite probabilities"):
        targets_of(tmp_path, [teacher], tiny.DOCUMENTS)
    assert not list(tmp_path.iterdir())


# What cannot be taught.


def test_other_labels_schemes_and_kinds_are_refused_by_name() -> None:
    student = tagger(1)
    assert common_form(student, "runs/a", tagger(2, hidden=9)) == student.target_form()
    with pytest.raises(RecipeError, match=r"runs/b \(BiLSTMCRF\).*only the student has E-address.*model.tag_scheme"):
        common_form(student, "runs/b", tagger(1, "BIO"))
    with pytest.raises(RecipeError, match=r"learns token marginals over 5 classes.*only the teacher has B-address"):
        common_form(tagger(1, "BIO", of=replace(SMALL, labels=("company", "name"))), "runs/a", student)
    with pytest.raises(RecipeError, match=r"runs/c \(Toy\).*nothing that can be learnt"):
        common_form(student, "runs/c", tiny.toy())
    with pytest.raises(RecipeError, match=r"the student \(Toy\).*the student learns nothing"):
        common_form(tiny.toy(), "runs/a", student)
    spans = tagger(1)
    form = replace(spans.target_form(), kind="span scores")
    spans.target_form = lambda: form  # type: ignore[method-assign]
    with pytest.raises(RecipeError, match="teaches span scores; the student learns token marginals"):
        common_form(student, "runs/d", spans)


# A whole run.


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory)


@pytest.fixture
def recipe(teacher: Path, tmp_path: Path) -> Path:
    """A smaller student of the trained run, with texts of its own."""
    data = load_recipe(teacher / "recipe.yaml").data.model_dump(exclude_none=True)
    texts = ["另：" + document.text for document in corpus(20, 500)]
    texts += [corpus(1, 211)[0].text, "", "很长" * 600]
    (tmp_path / "more.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    sections = recipe_of(data, epochs=2, save_every=3, log_every=1)
    sections["model"] |= {"hidden": 8, "dimension": 8, "dropout_hidden": 0.2}
    sections["evaluate"] = {"calibrate": False}
    sections["distillation"] = {"teacher": str(teacher), "unlabelled": str(tmp_path / "more.txt")}
    return write_recipe(tmp_path / "student.yaml", sections)


class Killed(BaseException):
    pass


def killed_at(monkeypatch: pytest.MonkeyPatch, number: int, start: Callable[[], Any]) -> None:
    plain = Trainer._step

    def step(self: Trainer, *arguments: Any) -> None:
        if self.progress.step == number:
            raise Killed
        plain(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", step)
        with pytest.raises(Killed):
            start()


def test_a_killed_student_ends_in_the_same_bits(
    recipe: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    tricks = "train.tricks={fgm: {epsilon: 0.3}, ema: {decay: 0.9}}"
    whole = build.train(recipe, tricks, run=tmp_path / "whole", say=said.append)
    assert any("left out that stand in dev or test" in line for line in said)
    assert whole["distillation"]["labelled"] == 120
    assert whole["distillation"]["unlabelled"] == 20 + 1  # with the long one, without the one of dev and the blank line
    assert whole["inputs"]["teacher 1"] == json.loads((teacher / "results.json").read_text())["weights_sha256"]
    assert whole["inputs"]["unlabelled 1 (more.txt)"]
    run = tmp_path / "run"
    killed_at(monkeypatch, 11, lambda: build.train(recipe, tricks, run=run))
    shutil.rmtree(run / "targets")  # they are made again
    killed_at(monkeypatch, 25, lambda: build.train(recipe, tricks, run=run, resume=True))
    again = build.train(recipe, tricks, run=run, resume=True)
    assert again["weights_sha256"] == whole["weights_sha256"]
    files = [tmp_path / name / "targets" / "targets.bin" for name in ("whole", "run")]
    assert files[0].read_bytes() == files[1].read_bytes()
    alone = build.train(recipe, tricks, "distillation=null", run=tmp_path / "alone")
    assert alone["weights_sha256"] != whole["weights_sha256"]
    assert "distillation" not in alone


def test_a_run_does_not_go_on_with_another_teacher(
    recipe: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "teacher"
    shutil.copytree(teacher, own)
    override, run = f"distillation.teacher={own}", tmp_path / "run"
    killed_at(monkeypatch, 5, lambda: build.train(recipe, override, run=run))
    shutil.rmtree(own / "model")
    other = tagger(1, of=build.load_data(load_recipe(recipe)))
    (own / "model").mkdir()
    other.save(own / "model")
    with pytest.raises(RunError, match="inputs must be what the run began with"):
        build.train(recipe, override, run=run, resume=True)
    shutil.rmtree(own)
    with pytest.raises(RunError, match="must be a run directory, but there is none"):
        build.train(recipe, override, run=run, resume=True)


def test_a_teacher_of_several_seeds_is_several_teachers(recipe: Path, teacher: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        shutil.copytree(teacher, tmp_path / "many" / f"seed-{seed}")
    found = build.train(recipe, f"distillation.teacher={tmp_path / 'many'}", "train.epochs=1", run=tmp_path / "run")
    assert len(found["distillation"]["teachers"]) == 2


def test_a_teacher_that_knows_the_answers_is_refused(recipe: Path, tmp_path: Path) -> None:
    for split, documents in {"train": corpus(60), "dev": corpus(20, 20), "test": corpus(9, 300)}.items():
        write_spans(tmp_path / f"{split}.jsonl", documents)
    fewer = [f"data.train={tmp_path / 'test.jsonl'}", f"data.dev={tmp_path / 'dev.jsonl'}", "data.test=null"]
    with pytest.raises(
        RecipeError, match=r"must not have been trained on the student's dev, but .* on 1[0-9] of its 20"
    ):
        build.train(recipe, *fewer, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_the_teacher_was_trained_on_may_be_unknown(recipe: Path, teacher: Path, tmp_path: Path) -> None:
    said: list[str] = []
    override = f"distillation.teacher={teacher / 'model'}"
    build.train(recipe, override, "train.epochs=1", run=tmp_path / "run", say=said.append)
    assert any("what the teacher was trained on is not known here" in line for line in said)


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("distillation.techer=runs/x", RecipeError, "distillation.techer is not a setting"),
        ("distillation={weight: 0.5}", RecipeError, "distillation.teacher: field required"),
        ("distillation.weight=1.5", RecipeError, "distillation.weight: .*less than or equal to 1"),
        ("distillation.teacher=runs/none", RunError, "runs/none: must be a run directory"),
        ("distillation.unlabelled=none.txt", DataError, "none.txt: the file must exist"),
        ("distillation.format=tsv", DataError, "format: must be one of text"),
        ("model.tag_scheme=BIO", RecipeError, "only the teacher has E-company"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    recipe: Path, tmp_path: Path, override: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build.train(recipe, override, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_texts_that_are_all_judged_are_refused(recipe: Path, tmp_path: Path) -> None:
    dev = load_recipe(recipe).data.dev
    with pytest.raises(DataError, match="must hold texts that are not in dev or test"):
        build.train(recipe, f"distillation.unlabelled={dev}", run=tmp_path / "run")
