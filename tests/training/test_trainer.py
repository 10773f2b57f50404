"""The loop: what a step computes, what is logged, what is kept, and what stops it."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hanzoo.data.batching import plan_epoch
from hanzoo.data.document import Document
from hanzoo.data.randomness import generator
from hanzoo.errors import RunError
from hanzoo.models.layers.crf import CRF
from hanzoo.models.layers.embedding import VocabularyEmbedding
from hanzoo.models.model import Matcher, Model
from hanzoo.models.objectives.cosent import CoSENT
from hanzoo.training.checkpoint import tensors_sha256, write_state
from hanzoo.training.optimizers import OptimizerSettings, build_optimizer
from hanzoo.training.trainer import MAX_NONFINITE, Interrupted, Trainer
from tests import tiny

pytestmark = pytest.mark.usefixtures("deterministic")

SGD = {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0}


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps(folder: Path) -> list[dict[str, Any]]:
    return [record for record in records(folder) if "loss" in record]


def bilstm(dropout: float = 0.0, **settings: Any) -> Model:
    chosen = {"dimension": 6, "hidden": 5, "unknown_rate": 0.0}
    return tiny.build("bilstm_crf", chosen | {"dropout_embedding": dropout, "dropout_hidden": dropout} | settings)


# A step.

TRICKS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {},
    "fgm": {"fgm": {"epsilon": 0.5}},
    "pgd": {"pgd": {"epsilon": 0.5, "step_size": 0.3, "num_steps": 2}},
    "pgd random start": {"pgd": {"epsilon": 0.5, "step_size": 0.3, "num_steps": 2, "random_start": True}},
    "free_lb": {"free_lb": {"epsilon_0": 0.5, "step_size": 0.3, "max_norm": 0.5}},
    "r_drop": {"r_drop": {"alpha": 2.0}},
    "fgm table": {"fgm": {"epsilon": 0.5, "target": "table"}},
    "pgd table": {"pgd": {"epsilon": 0.5, "step_size": 0.3, "num_steps": 2, "target": "table"}},
    "free_lb table": {"free_lb": {"epsilon_0": 0.0, "step_size": 0.3, "target": "table"}},
    "fgm relative": {"fgm": {"epsilon": 0.1, "norm": "relative"}},
    "fgm table relative": {"fgm": {"epsilon": 0.1, "norm": "relative", "target": "table"}},
    "free_lb relative": {"free_lb": {"epsilon_0": 0.2, "step_size": 0.1, "norm": "relative"}},
    "fgm r_drop": {"fgm": {"epsilon": 0.5}, "r_drop": {}},
    "focal": {"focal": {"normalise": "token"}},
    "poly": {"poly": {"epsilon": 2.0}},
    "flooding": {"flooding": {"level": 1.5}},  # about half of the sentences are below it
    "gradient_penalty": {"gradient_penalty": {"strength": 50.0}},
    "all on the loss": {"focal": {}, "poly": {}, "flooding": {"level": 1.5}, "r_drop": {}, "gradient_penalty": {}},
}


@pytest.mark.parametrize("tricks", TRICKS)
def test_accumulation_equals_one_big_batch(tmp_path: Path, tricks: str) -> None:
    def gradients(batch_size: int, accumulation: int) -> dict[str, Tensor]:
        model = bilstm()
        folder = tmp_path / f"{batch_size}"
        trained = tiny.trainer(model, folder, tricks=TRICKS[tricks], batch_size=batch_size, accumulation=accumulation)
        assert trained.num_steps == 1
        trained.fit()
        return tiny.gradients(model)

    big = gradients(12, 1)
    for batch_size, accumulation in ((5, 3), (1, 12)):  # 5 + 5 + 2: a mean of means would be wrong
        # the attack's own float32 rounding is felt twice: in the direction, and in what is computed there
        assert tiny.difference(gradients(batch_size, accumulation), big) < (1e-6 if tricks == "plain" else 3e-6)


def test_random_starts_do_not_depend_on_how_a_window_is_cut(tmp_path: Path) -> None:
    def gradients(seed: int, batch_size: int) -> dict[str, Tensor]:
        model = bilstm()
        noise = {"free_lb": {"epsilon_0": 3.0, "num_steps": 1}}
        folder = tmp_path / f"{seed} {batch_size}"
        tiny.trainer(model, folder, tricks=noise, seed=seed, batch_size=batch_size, accumulation=12 // batch_size).fit()
        return tiny.gradients(model)

    assert tiny.difference(gradients(1, 4), gradients(1, 12)) < 1e-6
    assert tiny.difference(gradients(2, 4), gradients(1, 12)) > 1e-3  # all 12 sentences again, with other draws
    window = tiny.trainer(bilstm(), tmp_path / "window")._window(3, [[5, 2], [7]])
    for micro, sample, item in ((0, 0, 5), (0, 1, 2), (1, 0, 7)):
        draw = window[micro].draw
        assert draw is not None
        assert draw("start", sample).random() == generator(1, "start", 3, item).random()


def test_mean_of_means_would_differ(tmp_path: Path) -> None:
    model = bilstm()
    features = [model.featurize(item) for item in tiny.DOCUMENTS]
    tiny.trainer(model, tmp_path, batch_size=12).fit()
    big = tiny.gradients(model)
    model = bilstm()
    (window,) = plan_epoch([f.length for f in features], generator(1, "plan", 0), batch_size=5, micro_batches=3)
    for numbers in window:
        batch = model.collate([features[i] for i in numbers])
        (model.losses(model(batch), batch)["crf"].mean() / len(window)).backward()
    assert tiny.difference(tiny.gradients(model), big) > 1e-2


def test_gradient_is_that_of_the_mean_loss(tmp_path: Path) -> None:
    model = bilstm()
    batch = model.collate([model.featurize(item) for item in tiny.DOCUMENTS])
    model.losses(model(batch), batch)["crf"].mean().backward()
    expected = tiny.gradients(model)
    tiny.trainer(model, tmp_path, batch_size=12).fit()
    assert tiny.difference(tiny.gradients(model), expected) < 1e-6


@pytest.mark.parametrize(
    "norm", [0.3, 0.998, 0.9989999, 0.9999995, 0.99999975, 1.0, 1.0000001, 1.5, 40.0, math.nan, math.inf]
)
@pytest.mark.parametrize("clip", [1.0, 1e-4, 0.0])
def test_clipping_is_that_of_torch(norm: float, clip: float, tmp_path: Path) -> None:
    norm *= clip or 1.0
    trainer = tiny.trainer(bilstm(), tmp_path, clip=clip)
    draw = torch.Generator().manual_seed(1)
    ours, theirs = trainer._trained, [torch.nn.Parameter(parameter.detach().clone()) for parameter in trainer._trained]
    gradients = [torch.rand(parameter.shape, generator=draw) for parameter in ours]
    length = float(torch.nn.utils.get_total_norm(gradients))
    for one, other, gradient in zip(ours, theirs, gradients, strict=True):
        one.grad, other.grad = gradient * (norm / length), gradient * (norm / length)
    said, expected = trainer._clip(), float(torch.nn.utils.clip_grad_norm_(theirs, clip or math.inf))
    assert said == pytest.approx(norm, rel=1e-6, nan_ok=True)
    assert said == expected or (math.isnan(said) and math.isnan(expected))
    if math.isfinite(norm):  # else the step is left out
        pairs = zip(ours, theirs, strict=True)
        assert all(torch.equal(a.grad, b.grad) for a, b in pairs if a.grad is not None and b.grad is not None)
        left = torch.nn.utils.get_total_norm([each.grad for each in ours if each.grad is not None])
        assert float(left) == pytest.approx(min(norm, clip * norm / (norm + 1e-6)) if clip else norm, rel=1e-5)


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    def moved(clip: float) -> float:
        model = tiny.toy()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = {**SGD, "learning_rate": 0.5}
        tiny.trainer(model, tmp_path / f"{clip}", clip=clip, batch_size=12, optimizer=optimizer).fit()
        return math.sqrt(sum(float((p.detach() - before[name]).square().sum()) for name, p in model.named_parameters()))

    norm = steps_norm = None
    for clip in (0.0, 0.25):
        distance = moved(clip)
        steps_norm = steps(tmp_path / f"{clip}")[0]["gradient_norm"]  # of the gradient as it was
        assert distance == pytest.approx(0.5 * (clip or steps_norm), rel=1e-4)
        norm = norm or steps_norm
    assert norm == steps_norm
    assert norm > 1.0


def test_bfloat16_keeps_weights_and_losses_in_float32(tmp_path: Path) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        model = bilstm(hidden=16)
        tiny.trainer(model, tmp_path / precision, precision=precision, batch_size=12).fit()
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        losses[precision] = steps(tmp_path / precision)[0]["loss"]
    assert losses["float32"] != losses["bfloat16"]
    assert losses["float32"] == pytest.approx(losses["bfloat16"], rel=0.02)


# Optimizer. More in test_optimizers.py, the schedules in test_schedules.py.


@pytest.mark.parametrize("name", ["adamw", "adamax", "sgd"])
def test_each_parameter_is_trained_once_and_tables_do_not_decay(name: str) -> None:
    model = bilstm(num_layers=2)
    optimizer = build_optimizer(model, OptimizerSettings(name=name, weight_decay=0.1))  # type: ignore[arg-type]
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    spared = {
        id(parameter) for group in optimizer.param_groups if group["weight_decay"] == 0 for parameter in group["params"]
    }
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            expected = isinstance(module, CRF | VocabularyEmbedding) or parameter.ndim == 1
            assert (id(parameter) in spared) == expected
    assert 0 < len(spared) < len(grouped)


def test_frozen_parameters_are_left_alone() -> None:
    model = tiny.toy()
    model.first.requires_grad_(False)
    optimizer = build_optimizer(model, OptimizerSettings())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 6


@pytest.mark.parametrize("optimizer", [{"name": "adamw"}, {**SGD, "momentum": 0.9}], ids=["adamw", "sgd"])
def test_adamw_and_sgd_learn(tmp_path: Path, optimizer: dict[str, Any]) -> None:
    rate = 0.03 if optimizer["name"] == "adamw" else 0.002
    tiny.trainer(tiny.toy(), tmp_path, epochs=40, clip=5.0, optimizer={**optimizer, "learning_rate": rate}).fit()
    losses = [record["loss"] for record in steps(tmp_path)]
    assert np.mean(losses[-3:]) < 0.1 * np.mean(losses[:3])


# The same again.


def run(folder: Path, seed: int = 1, evaluate: Callable[[Model], Mapping[str, Any]] = tiny.nothing_to_evaluate) -> str:
    model = bilstm(0.3, unknown_rate=0.2)
    tiny.trainer(model, folder, epochs=3, seed=seed, accumulation=2, evaluate=evaluate).fit()
    return tensors_sha256(dict(model.named_parameters()))


def test_same_seed_same_bits(tmp_path: Path) -> None:
    first = run(tmp_path / "1")
    assert run(tmp_path / "2") == first
    assert run(tmp_path / "3", seed=2) != first


def test_what_happens_between_steps_changes_nothing(tmp_path: Path) -> None:
    def noisy(model: Model) -> dict[str, float]:
        model.eval()
        torch.manual_seed(77)
        torch.rand(13)
        return {"f1": 0.0}

    assert run(tmp_path / "noisy", evaluate=noisy) == run(tmp_path / "quiet")


def test_every_epoch_trains_every_item_in_another_order(tmp_path: Path) -> None:
    model = tiny.toy()
    trained: list[list[float]] = []
    model.register_forward_hook(lambda _, inputs, __: trained.append(inputs[0].characters.sum(1).tolist()))
    tiny.trainer(model, tmp_path, epochs=2).fit()
    first, second = trained[:3], trained[3:]
    assert sorted(sum(first, [])) == sorted(sum(second, []))  # noqa: RUF017
    assert len(set(sum(first, []))) == len(tiny.DOCUMENTS)  # noqa: RUF017
    assert first != second


# Evaluation, the best epoch, patience.


def by_epoch(figures: list[float]) -> Callable[[Model], dict[str, float]]:
    given = iter(figures)
    return lambda model: {"f1": next(given), "other": 0.5}


def test_the_best_epoch_is_kept(tmp_path: Path) -> None:
    model = tiny.toy()
    weights: list[str] = []

    def remember(trained: Model) -> None:
        weights.append(tensors_sha256(dict(trained.named_parameters())))

    figures = by_epoch([0.1, 0.4, 0.4, 0.3])

    def evaluate(trained: Model) -> dict[str, float]:
        remember(trained)
        return figures(trained)

    progress = tiny.trainer(model, tmp_path, epochs=4, evaluate=evaluate, optimizer={"learning_rate": 0.1}).fit()
    remember(model)
    assert (progress.best, progress.best_epoch, progress.best_step, progress.step) == (0.4, 2, 6, 12)
    assert len(set(weights[:4])) == 4
    assert weights[4] == weights[1]  # equal figures: the earlier epoch
    found = [record["best"] for record in records(tmp_path) if "dev" in record]
    assert found == [True, True, False, False]
    from safetensors.torch import load_file

    assert tensors_sha256(load_file(tmp_path / "model" / "hanzoo.safetensors")) == weights[1]


@pytest.mark.parametrize(("patience", "epochs"), [(0, 6), (1, 3), (2, 5), (4, 6)])
def test_patience(tmp_path: Path, patience: int, epochs: int) -> None:
    figures = by_epoch([0.1, 0.2, 0.1, 0.3, 0.2] + [0.1] * 9 if patience > 1 else [0.1, 0.2, 0.1, 0.3, 0.2, 0.1])
    if patience == 2:
        figures = by_epoch([0.1, 0.2, 0.3, 0.2, 0.1, 0.4])
    progress = tiny.trainer(tiny.toy(), tmp_path, epochs=6, patience=patience, evaluate=figures).fit()
    assert progress.step == 3 * epochs


# Gradients that are not finite.


def test_a_step_that_is_not_finite_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.toy()
    model.loss_factors = {1: math.nan}
    before: list[str] = []
    model.register_forward_pre_hook(lambda *_: before.append(tensors_sha256(dict(model.named_parameters()))))
    progress = tiny.trainer(model, tmp_path, epochs=2).fit()
    assert progress.nonfinite == 1
    assert progress.step == 6
    assert before[1] == before[2]
    assert before[0] != before[1]
    assert before[2] != before[3]
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert "step 1: the gradient is not finite" in capsys.readouterr().err


def test_a_training_that_diverges_stops(tmp_path: Path) -> None:
    model = tiny.toy()
    model.loss_factors = dict.fromkeys(range(1, 99), math.inf)
    with pytest.raises(RunError, match=r"diverged.*learning_rate"):
        tiny.trainer(model, tmp_path, epochs=20).fit()
    assert len(model.seen) == 1 + MAX_NONFINITE + 1


def test_steps_that_are_not_finite_now_and_then_stop_nothing(tmp_path: Path) -> None:
    """As where float16's scale is raised, every 2,000 steps by default, until a gradient overflows."""
    model = tiny.toy()
    model.loss_factors = dict.fromkeys(range(1, 99, 2), math.inf)
    progress = tiny.trainer(model, tmp_path, epochs=20).fit()
    assert progress.step == 60
    assert progress.nonfinite == 30 > MAX_NONFINITE


def test_a_figure_that_is_no_number_is_worse_than_any(tmp_path: Path) -> None:
    figures = iter([math.nan, 0.5, math.nan, 0.9, 0.7])
    progress = tiny.trainer(tiny.toy(), tmp_path, epochs=5, evaluate=lambda model: {"f1": next(figures)}).fit()
    assert (progress.best, progress.best_epoch) == (0.9, 4)


def test_going_on_where_steps_are_counted_otherwise(tmp_path: Path) -> None:
    """More ranks have fewer steps: what is saved from then on has lower numbers than what was saved before."""
    tiny.trainer(tiny.toy(), tmp_path, epochs=4).fit()
    state = tmp_path / "state"
    assert sorted(path.name for path in state.iterdir()) == ["00000009", "00000012"]
    for path, step in ((state / "00000009", 16), (state / "00000012", 18)):  # as if of a run of fewer ranks
        values = json.loads((path / "state.json").read_text("utf-8"))
        values |= {"ranks": 7, "num_steps": 24, "progress": values["progress"] | {"step": step}}
        del values["format"]
        tensors = load_file(path / "tensors.safetensors")
        shutil.rmtree(path)
        write_state(state / f"{step:08d}", tensors, values)
    going_on = tiny.trainer(tiny.toy(), tmp_path, epochs=4, resume=True)
    assert going_on.progress.step == 9  # 18 of 24
    assert [path.name for path in state.iterdir()] == ["00000009"]
    going_on.fit()
    assert sorted(path.name for path in state.iterdir()) == ["00000009", "00000012"]
    assert tiny.trainer(tiny.toy(), tmp_path, epochs=4, resume=True).progress.step == 12


def test_an_epoch_in_which_nothing_moved_is_not_judged(tmp_path: Path) -> None:
    model = tiny.toy()
    model.loss_factors = dict.fromkeys(range(99), math.nan)
    with pytest.raises(RunError, match=r"diverged.*3 of 3 steps"):
        tiny.trainer(model, tmp_path, epochs=20).fit()
    assert len(model.seen) == 3
    assert not (tmp_path / "model").exists()


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    model = tiny.toy()

    def overflow() -> None:
        with torch.no_grad():
            model.output.bias.fill_(math.inf)

    model.after_step = overflow  # type: ignore[method-assign]
    with pytest.raises(RunError, match=r"weights must be finite.*diverged"):
        tiny.trainer(model, tmp_path, epochs=20, batch_size=12).fit()
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "state").exists()


# What is said and written.


@pytest.mark.parametrize("log_every", [1, 2, 5])
def test_records_are_means_over_their_steps(tmp_path: Path, log_every: int) -> None:
    tiny.trainer(tiny.toy(), tmp_path / "all", epochs=4, batch_size=5).fit()
    tiny.trainer(tiny.toy(), tmp_path / "some", epochs=4, batch_size=5, log_every=log_every).fit()
    each, some = steps(tmp_path / "all"), steps(tmp_path / "some")
    assert [record["step"] for record in some] == list(range(log_every, 13, log_every))
    units = {record["step"]: 5 for record in each}
    model = tiny.toy()
    lengths = [model.featurize(item).length for item in tiny.DOCUMENTS]
    for epoch in range(4):
        for number, ((batch,),) in enumerate(
            [(w,) for w in plan_epoch(lengths, generator(1, "plan", epoch), batch_size=5)]
        ):
            units[3 * epoch + number + 1] = len(batch)
    for record in some:
        within = range(record["step"] - log_every + 1, record["step"] + 1)
        total = sum(each[step - 1]["loss"] * units[step] for step in within)
        assert record["loss"] == pytest.approx(total / sum(units[step] for step in within), rel=1e-6)
        assert record["epoch"] == (record["step"] - 1) // 3 + 1


def test_passes_of_an_attack_are_logged_apart(tmp_path: Path) -> None:
    tiny.trainer(tiny.toy(), tmp_path, tricks={"pgd": {"num_steps": 3}}).fit()
    for record in steps(tmp_path):
        assert set(record["losses"]) == {"square", "ascent square", "adversarial square"}
        assert record["loss"] == record["losses"]["square"]
        assert record["losses"]["square"] < record["losses"]["ascent square"]


def test_lines_go_to_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.trainer(tiny.toy(), tmp_path, epochs=2, log_every=2).fit()
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("step")] == ["2/6", "4/6", "6/6"]
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == ["1/2", "2/2"]


# Going on.


class Killed(BaseException):
    pass


def killed_then_resumed(folder: Path, at: int, make: Callable[[bool], Trainer]) -> Model:
    """Train until forward pass `at`, stop as a kill would, and train on with new objects."""
    trained = make(False)
    passes = iter(range(9999))

    def stop(*_: object) -> None:
        if next(passes) == at:
            raise Killed

    trained.model.register_forward_pre_hook(stop)
    with pytest.raises(Killed):
        trained.fit()
    trained = make(True)
    trained.fit()
    return trained.model


@pytest.mark.parametrize(
    "optimizer",
    [{"name": "adamw"}, {"name": "adamax"}, {**SGD, "momentum": 0.9}, SGD],
    ids=["adamw", "adamax", "momentum", "sgd"],
)
@pytest.mark.parametrize("at", [0, 2, 3, 7, 11, 12, 17])
def test_a_kill_at_any_step_ends_in_the_same_bits(tmp_path: Path, at: int, optimizer: dict[str, Any]) -> None:
    def make(folder: Path, resume: bool) -> Trainer:
        figures = iter([0.1, 0.4, 0.2, 0.3, 0.2, 0.1])

        def evaluate(model: Model) -> dict[str, float]:
            return {"f1": -float(sum(p.detach().abs().sum() for p in model.parameters())) + 0 * next(figures)}

        return tiny.trainer(
            tiny.toy(dropout=0.4), folder, epochs=6, save_every=2, log_every=4, clip=1.0, schedule={"warmup": 0.2}, resume=resume,
            evaluate=evaluate, optimizer={**optimizer, "learning_rate": 0.01},
        )  # fmt: skip

    undisturbed = make(tmp_path / "whole", False)
    undisturbed.fit()
    model = killed_then_resumed(tmp_path / "cut", at, lambda resume: make(tmp_path / "cut", resume))
    assert tensors_sha256(model.state_dict()) == tensors_sha256(undisturbed.model.state_dict())

    def without_time(folder: Path) -> list[dict[str, Any]]:
        return [{k: v for k, v in record.items() if k != "items_per_second"} for record in records(folder)]

    assert without_time(tmp_path / "cut") == without_time(tmp_path / "whole")


def test_speed_is_counted_in_items_whatever_a_loss_is_of(tmp_path: Path, encoders: Path) -> None:
    """A CoSENT loss is one of a batch."""
    model = tiny.build("bi_encoder", {"encoder": "tiny-bert"})
    assert isinstance(model, Matcher)
    model.objective = CoSENT()
    progress = tiny.trainer(model, tmp_path, items=tiny.PAIRS, batch_size=4, epochs=2).fit()
    assert progress.trained_items == 2 * len(tiny.PAIRS) - 4  # the first step, which compiles, is left out


def test_patience_goes_on_where_it_was(tmp_path: Path) -> None:
    def make(folder: Path, figures: list[float], resume: bool) -> Trainer:
        return tiny.trainer(tiny.toy(), folder, epochs=9, patience=3, evaluate=by_epoch(figures), resume=resume)

    whole = make(tmp_path / "whole", [0.3, 0.2, 0.2, 0.2, 0.9], False).fit()
    figures = {False: [0.3, 0.2], True: [0.2, 0.2, 0.9]}
    model = killed_then_resumed(tmp_path / "cut", 7, lambda resume: make(tmp_path / "cut", figures[resume], resume))
    assert whole.step == 12
    assert [record["epoch"] for record in records(tmp_path / "cut") if "dev" in record] == [1, 2, 3, 4]
    assert isinstance(model, tiny.Toy)


def test_metrics_are_cut_back_and_a_missing_file_is_no_harm(tmp_path: Path) -> None:
    tiny.trainer(tiny.toy(), tmp_path, epochs=2).fit()
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 7, "lo')
    tiny.trainer(tiny.toy(), tmp_path, epochs=2, resume=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    # a power cut can take the end of a file that was not fsynced: no zeros may fill the gap
    (tmp_path / "metrics.jsonl").write_bytes(whole[:-30])
    tiny.trainer(tiny.toy(), tmp_path, epochs=3, resume=True).fit()
    assert [record["step"] for record in steps(tmp_path)][-3:] == [7, 8, 9]
    (tmp_path / "metrics.jsonl").unlink()
    tiny.trainer(tiny.toy(), tmp_path, epochs=4, resume=True).fit()
    assert [record["step"] for record in steps(tmp_path)] == [10, 11, 12]


def test_resuming_with_other_data_is_refused_and_other_threads_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    identity = {"exact": {"data": {"train": "aaa"}}, "approximate": {"threads": 1}}
    tiny.trainer(tiny.toy(), tmp_path, identity=identity).fit()
    with pytest.raises(RunError, match="data must be what the run began with"):
        tiny.trainer(tiny.toy(), tmp_path, resume=True, identity={**identity, "exact": {"data": {"train": "bbb"}}})
    capsys.readouterr()
    tiny.trainer(tiny.toy(), tmp_path, resume=True, identity={**identity, "approximate": {"threads": 2}})
    assert "threads was 1 and is 2 now: going on, but not to the same bits" in capsys.readouterr().err


def test_resuming_without_a_state_begins_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.0}\n')
    tiny.trainer(tiny.toy(), tmp_path, resume=True).fit()
    assert "no state was saved yet" in capsys.readouterr().err
    assert [record["step"] for record in steps(tmp_path)] == [1, 2, 3]


def test_a_finished_training_that_is_resumed_has_its_best_weights(tmp_path: Path) -> None:
    first = tiny.toy()
    tiny.trainer(first, tmp_path, epochs=3, evaluate=by_epoch([0.1, 0.5, 0.2])).fit()
    again = tiny.toy(seed=5)
    progress = tiny.trainer(again, tmp_path, epochs=3, resume=True).fit()
    assert (progress.step, progress.best_epoch) == (9, 2)
    assert tensors_sha256(again.state_dict()) == tensors_sha256(first.state_dict())


# Signals.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves(tmp_path: Path, number: signal.Signals) -> None:
    def make(folder: Path, resume: bool) -> Trainer:
        return tiny.trainer(tiny.toy(dropout=0.4), folder, epochs=3, log_every=2, resume=resume)

    whole = make(tmp_path / "whole", False)
    whole.fit()
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    cut = make(tmp_path / "cut", False)
    passes = iter(range(99))
    cut.model.register_forward_pre_hook(lambda *_: signal.raise_signal(number) if next(passes) == 4 else None)
    with pytest.raises(Interrupted) as stopped:
        cut.fit()
    assert stopped.value.signal_number == number
    assert cut.progress.step == 5
    assert [path.name for path in sorted((tmp_path / "cut" / "state").iterdir())] == ["00000003", "00000005"]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    resumed = make(tmp_path / "cut", True)
    resumed.fit()
    assert tensors_sha256(resumed.model.state_dict()) == tensors_sha256(whole.model.state_dict())


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    def twice(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    model = tiny.toy()
    model.register_forward_pre_hook(twice)
    with pytest.raises(KeyboardInterrupt):
        tiny.trainer(model, tmp_path).fit()
    assert not (tmp_path / "state").exists()


def test_an_empty_set_trains_no_steps(tmp_path: Path) -> None:
    nothing: tuple[Document, ...] = ()
    assert tiny.trainer(tiny.toy(), tmp_path, items=nothing).num_steps == 0
