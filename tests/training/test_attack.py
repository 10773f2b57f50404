"""FGM, PGD and FreeLB against the plain references, and the laws that they must keep."""

from __future__ import annotations

import json
import math
import re
import signal
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hanzoo.data.batching import plan_epoch
from hanzoo.data.randomness import generator, reseed
from hanzoo.errors import RecipeError, RunError
from hanzoo.models.model import AttackPoint, Model
from hanzoo.recipe import check_recipe
from hanzoo.training.attack import MAX_UNMOVED, MovedTables, Perturbation
from hanzoo.training.trainer import Interrupted, Trainer
from hanzoo.training.trick import MicroBatch, Window, build_tricks, trick_class
from tests import tiny
from tests.references import attack as reference

pytestmark = pytest.mark.usefixtures("deterministic")

BILSTM = {"dimension": 6, "hidden": 5, "unknown_rate": 0.0}
ALL_AT_ONCE = {"batch_size": len(tiny.DOCUMENTS)}


# The references themselves, on functions whose gradient is known.


def test_reference_on_a_linear_function() -> None:
    slope = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    start = [torch.zeros(2, 2)]

    def loss(matrices: Sequence[Tensor]) -> Tensor:
        return (slope * matrices[0]).sum()

    assert torch.allclose(reference.fgm(loss, start, 0.5)[0], slope / 10)
    assert torch.allclose(reference.pgd(loss, start, 0.5, 0.2, 2)[0], slope / 5 * 0.4)  # still inside the ball
    assert torch.allclose(reference.pgd(loss, start, 0.5, 0.2, 9)[0], slope / 10)


def test_reference_turns_with_the_gradient() -> None:
    def loss(matrices: Sequence[Tensor]) -> Tensor:  # gradient (1, x): the second step goes elsewhere than the first
        x, y = matrices[0][0, 0], matrices[1][0, 0]
        return x + x * y

    zeros = [torch.zeros(1, 1), torch.zeros(1, 1)]
    first, second = reference.pgd(loss, zeros, 10.0, 1.0, 2)
    assert first.item() == pytest.approx(1 + 1 / math.sqrt(2))
    assert second.item() == pytest.approx(1 / math.sqrt(2))
    assert reference.fgm(lambda m: 0 * m[0].sum(), zeros, 1.0)[0].item() == 0.0


def test_the_first_step_of_the_reference_is_the_steepest() -> None:
    model = tiny.toy()
    features = model.featurize(tiny.DOCUMENTS[1])
    start = [part.double() for part in embedded_parts(model, features)]
    size = 1e-3

    def rise(perturbation: Sequence[Tensor]) -> float:
        moved = reference.moved(start, perturbation)
        return float(toy_loss(model, moved, features.target) - toy_loss(model, start, features.target))

    best = reference.fgm(lambda parts: toy_loss(model, parts, features.target), start, size)
    slope = reference.norm(reference.gradient(lambda parts: toy_loss(model, parts, features.target), start))
    assert rise(best) == pytest.approx(size * slope, rel=1e-2)  # the most that a step of this length can gain
    assert rise([-part for part in best]) == pytest.approx(-size * slope, rel=1e-2)
    draws = torch.Generator().manual_seed(1)
    others = []
    for share in (0.1, 0.5, 1.0, 1.0, 1.0):  # from close to the best direction to any direction
        for _ in range(20):
            noise = [torch.randn(part.shape, generator=draws, dtype=torch.float64) for part in start]
            scale = share * size / reference.norm(noise)
            mixed = [(1 - share) * one + other * scale for one, other in zip(best, noise, strict=True)]
            length = reference.norm(mixed)
            others.append(rise([part * size / length for part in mixed]))
    assert max(others) < rise(best)
    assert min(others) < 0 < max(others)


def test_reference_of_free_lb_on_a_linear_function() -> None:
    slope = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    first = [torch.tensor([[-0.4, 0.3]], dtype=torch.float64)]  # across the slope
    far = reference.free_lb(lambda m: (slope * m[0]).sum(), [torch.zeros(1, 2)], first, 1.0, 0.0, 3)
    expected = [[-0.4, 0.3], [0.2, 1.1], [0.8, 1.9]]
    assert [perturbation[0].flatten().tolist() for perturbation in far] == [pytest.approx(row) for row in expected]
    near = reference.free_lb(lambda m: (slope * m[0]).sum(), [torch.zeros(1, 2)], first, 1.0, 0.5, 3)
    assert [reference.norm(perturbation) for perturbation in near] == pytest.approx([0.5, 0.5, 0.5])
    ones = reference.uniform_start([torch.ones(2, 3), torch.ones(4, 5)], 0.6)
    assert reference.norm(ones) == pytest.approx(0.6)
    assert reference.norm(ones[:1]) == pytest.approx(reference.norm(ones[1:]))
    assert reference.norm(reference.uniform_start([torch.ones(2, 3), torch.ones(0, 5)], 0.6)) == pytest.approx(0.6)


# The toy, written down again in float64 for one sample.


def toy_loss(model: tiny.Toy, parts: Sequence[Tensor], target: float) -> Tensor:
    weights = {name: p.detach().double() for name, p in model.named_parameters()}
    pooled = torch.tanh(parts[0] @ weights["first.weight"].T + weights["first.bias"]).sum(0)
    pooled = pooled + torch.tanh(parts[1] @ weights["second.weight"].T + weights["second.bias"]).sum(0)
    return (pooled @ weights["output.weight"][0] + weights["output.bias"][0] - target) ** 2


def embedded_parts(model: tiny.Toy, features: tiny.ToyFeatures) -> list[Tensor]:
    return [
        model.characters.weight.detach()[torch.from_numpy(features.characters)],
        model.pairs.weight.detach()[torch.from_numpy(features.pairs)],
    ]


Attack = tuple[str, dict[str, Any]]
FGM: Attack = ("fgm", {"epsilon": 0.7})
PGD: Attack = ("pgd", {"epsilon": 0.7, "step_size": 0.3, "num_steps": 4})


def by_reference(trick: Attack, loss: reference.LossOfMatrices, start: Sequence[Tensor]) -> list[Tensor]:
    name, settings = trick
    if name == "fgm":
        return reference.fgm(loss, start, settings["epsilon"])
    return reference.pgd(loss, start, settings["epsilon"], settings["step_size"], settings["num_steps"])


def run_step(model: Model, folder: Path, trick: Attack | None, **settings: Any) -> dict[str, Tensor]:
    """Take one step and return its gradients."""
    tricks = {trick[0]: trick[1]} if trick else {}
    tiny.trainer(model, folder, tricks=tricks, **settings).fit()
    return tiny.gradients(model)


@pytest.mark.parametrize("trick", [FGM, PGD], ids=["fgm", "pgd"])
def test_perturbation_of_each_sample_equals_the_reference(tmp_path: Path, trick: Attack) -> None:
    model = tiny.toy()
    features = [model.featurize(item) for item in tiny.DOCUMENTS]
    expected = [
        by_reference(trick, lambda parts, item=item: toy_loss(model, parts, item.target), embedded_parts(model, item))
        for item in features
    ]
    starts = [embedded_parts(model, item) for item in features]
    # the plan's order is found again by the clean pass
    run_step(model, tmp_path, trick, **ALL_AT_ONCE)
    clean, attacked = model.seen[0], model.seen[-1]
    assert len(model.seen) == (2 if trick[0] == "fgm" else 5)
    found = [
        next(row for row in range(len(features)) if torch.equal(clean[0][row, : len(start[0])], start[0]))
        for start in starts
    ]
    assert sorted(found) == list(range(len(features)))
    for row, perturbation in zip(found, expected, strict=True):
        for before, after, change in zip(clean, attacked, perturbation, strict=True):
            moved = (after - before)[row].double()
            assert torch.allclose(moved[: len(change)], change, atol=2e-6)
            assert torch.equal(moved[len(change) :], torch.zeros_like(moved[len(change) :]))  # padding
    assert max(float(change.abs().max()) for change in expected[0]) > 0.01


@pytest.mark.parametrize("trick", [FGM, PGD], ids=["fgm", "pgd"])
def test_gradient_is_the_mean_of_clean_and_adversarial(tmp_path: Path, trick: Attack) -> None:
    model = tiny.toy()
    plain = {name: p.detach().double().clone().requires_grad_() for name, p in model.named_parameters()}
    features = [model.featurize(item) for item in tiny.DOCUMENTS]

    def loss(parts: Sequence[Tensor], target: float) -> Tensor:
        pooled = torch.tanh(parts[0] @ plain["first.weight"].T + plain["first.bias"]).sum(0)
        pooled = pooled + torch.tanh(parts[1] @ plain["second.weight"].T + plain["second.bias"]).sum(0)
        return (pooled @ plain["output.weight"][0] + plain["output.bias"][0] - target) ** 2

    total = torch.zeros((), dtype=torch.float64)
    for item in features:
        parts = [
            plain["characters.weight"][torch.from_numpy(item.characters)],
            plain["pairs.weight"][torch.from_numpy(item.pairs)],
        ]
        change = by_reference(trick, lambda p, item=item: toy_loss(model, p, item.target), [p.detach() for p in parts])
        moved = [part + delta for part, delta in zip(parts, change, strict=True)]
        total = total + (loss(parts, item.target) + loss(moved, item.target)) / 2
    (total / len(features)).backward()
    expected = {name: p.grad for name, p in plain.items() if p.grad is not None}
    assert tiny.difference(run_step(model, tmp_path / "1", trick, **ALL_AT_ONCE), expected) < 2e-6
    assert tiny.difference(run_step(tiny.toy(), tmp_path / "2", None, **ALL_AT_ONCE), expected) > 1e-2


@pytest.mark.parametrize("trick", [FGM, PGD], ids=["fgm", "pgd"])
def test_tables_equal_the_reference(tmp_path: Path, trick: Attack) -> None:
    model = tiny.toy()
    features = [model.featurize(item) for item in tiny.DOCUMENTS]
    tables = [model.characters.weight.detach().clone(), model.pairs.weight.detach().clone()]

    def loss(moved: Sequence[Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for item in features:
            parts = [moved[0][torch.from_numpy(item.characters)], moved[1][torch.from_numpy(item.pairs)]]
            total = total + toy_loss(model, parts, item.target)
        return total / len(features)

    expected = reference.moved(tables, by_reference(trick, loss, tables))
    at_passes: list[list[Tensor]] = []
    model.register_forward_pre_hook(
        lambda *_: at_passes.append([model.characters.weight.detach().clone(), model.pairs.weight.detach().clone()])
    )
    name, settings = trick
    run_step(model, tmp_path, (name, {**settings, "target": "table"}), **ALL_AT_ONCE)
    for clean, attacked, wanted in zip(at_passes[0], at_passes[-1], expected, strict=True):
        assert torch.allclose(attacked.double(), wanted, atol=2e-6)
        rows = (attacked != clean).any(1)
        used = torch.zeros(64, dtype=torch.bool)
        key = "characters" if clean.shape[1] == 4 else "pairs"
        for item in features:
            used[torch.from_numpy(getattr(item, key))] = True
        assert torch.equal(rows, used)  # only rows of this batch moved, and all of them did


# FreeLB, and random starts.

FREE_LB = {"epsilon_0": 0.9, "step_size": 0.4, "max_norm": 0.8, "num_steps": 4}


def noise_of(item: int, parts: Sequence[Tensor]) -> list[Tensor]:
    """What the first step of a run with seed 1 draws at an item of the toy."""
    return [
        torch.from_numpy(generator(1, f"attack {name}", 0, item).random(tuple(part.shape), dtype=np.float32)) * 2 - 1
        for name, part in zip(("characters", "pairs"), parts, strict=True)
    ]


def free_lb_passes(model: tiny.Toy, item: int, settings: dict[str, Any] = FREE_LB) -> list[list[Tensor]]:
    features = model.featurize(tiny.DOCUMENTS[item])
    parts = embedded_parts(model, features)
    return reference.free_lb(
        lambda moved: toy_loss(model, moved, features.target), parts,
        reference.uniform_start(noise_of(item, parts), settings["epsilon_0"]),
        settings["step_size"], settings["max_norm"], settings["num_steps"],
    )  # fmt: skip


@pytest.mark.parametrize("max_norm", [0.8, 0.0])
def test_free_lb_sees_what_the_reference_sees(tmp_path: Path, max_norm: float) -> None:
    model = tiny.toy()
    settings = FREE_LB | {"max_norm": max_norm}
    expected = [free_lb_passes(model, item, settings) for item in range(len(tiny.DOCUMENTS))]
    starts = [embedded_parts(model, model.featurize(document)) for document in tiny.DOCUMENTS]
    run_step(model, tmp_path, ("free_lb", settings), **ALL_AT_ONCE)
    assert len(model.seen) == settings["num_steps"]
    (order,) = plan_epoch([len(start[0]) for start in starts], generator(1, "plan", 0), batch_size=len(starts))[0]
    for number, seen in enumerate(model.seen):
        for row, item in enumerate(order):
            for point, (embedded, start) in enumerate(zip(seen, starts[item], strict=True)):
                moved = embedded[row, : len(start)].double() - start.double()
                assert torch.allclose(moved, expected[item][number][point], atol=3e-6)
                assert not embedded[row, len(start) :].any()  # padding
    longest = [max(reference.norm(passes[number]) for passes in expected) for number in range(4)]
    assert 0.4 < longest[0] < 0.7  # about 0.9 / sqrt(3)
    assert longest[-1] == pytest.approx(0.8) if max_norm else longest[-1] > 1.2


def test_gradient_of_free_lb_is_the_mean_over_its_passes(tmp_path: Path) -> None:
    model = tiny.toy()
    plain = {name: p.detach().double().clone().requires_grad_() for name, p in model.named_parameters()}
    total = torch.zeros((), dtype=torch.float64)
    for item, document in enumerate(tiny.DOCUMENTS):
        features = model.featurize(document)
        for change in free_lb_passes(model, item):
            characters = plain["characters.weight"][torch.from_numpy(features.characters)] + change[0]
            pairs = plain["pairs.weight"][torch.from_numpy(features.pairs)] + change[1]
            pooled = torch.tanh(characters @ plain["first.weight"].T + plain["first.bias"]).sum(0)
            pooled = pooled + torch.tanh(pairs @ plain["second.weight"].T + plain["second.bias"]).sum(0)
            value = pooled @ plain["output.weight"][0] + plain["output.bias"][0]
            total = total + (value - features.target) ** 2 / FREE_LB["num_steps"]
    (total / len(tiny.DOCUMENTS)).backward()
    expected = {name: p.grad for name, p in plain.items() if p.grad is not None}
    assert tiny.difference(run_step(model, tmp_path / "1", ("free_lb", FREE_LB), **ALL_AT_ONCE), expected) < 3e-6
    for name, other in (("2", {"num_steps": 3}), ("3", {"epsilon_0": 0.0}), ("4", {"max_norm": 0.0})):
        changed = run_step(tiny.toy(), tmp_path / name, ("free_lb", FREE_LB | other), **ALL_AT_ONCE)
        assert tiny.difference(changed, expected) > 1e-2


def test_free_lb_on_tables_equals_the_reference(tmp_path: Path) -> None:
    model = tiny.toy()
    features = [model.featurize(item) for item in tiny.DOCUMENTS]
    tables = [model.characters.weight.detach().clone(), model.pairs.weight.detach().clone()]

    def loss(moved: Sequence[Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for item in features:
            parts = [moved[0][torch.from_numpy(item.characters)], moved[1][torch.from_numpy(item.pairs)]]
            total = total + toy_loss(model, parts, item.target)
        return total / len(features)

    settings = {"target": "table", "epsilon_0": 0.0, "step_size": 0.5, "max_norm": 0.8, "num_steps": 3}
    nothing = [torch.zeros_like(table, dtype=torch.float64) for table in tables]
    changes = reference.free_lb(loss, tables, nothing, 0.5, 0.8, 3)
    ascents = [reference.gradient(loss, reference.moved(tables, change)) for change in changes]
    at_passes: list[list[Tensor]] = []
    model.register_forward_pre_hook(
        lambda *_: at_passes.append([model.characters.weight.detach().clone(), model.pairs.weight.detach().clone()])
    )
    found = run_step(model, tmp_path, ("free_lb", settings), **ALL_AT_ONCE)
    assert len(at_passes) == 3
    for seen, change in zip(at_passes, changes, strict=True):
        for table, wanted in zip(seen, reference.moved(tables, change), strict=True):
            assert torch.allclose(table.double(), wanted, atol=2e-6)
    assert reference.norm(changes[-1]) == pytest.approx(0.8)
    # the gradient of the tables is the mean of those at the three places
    for point, name in enumerate(("characters.weight", "pairs.weight")):
        mean = sum(ascent[point] for ascent in ascents) / 3
        assert torch.allclose(found[name], mean, atol=1e-5)
        assert not torch.allclose(found[name], ascents[-1][point], atol=1e-3)


def test_pgd_from_a_random_start_equals_the_reference(tmp_path: Path) -> None:
    settings = {"epsilon": 0.7, "step_size": 0.3, "num_steps": 3, "random_start": True}
    model = tiny.toy()
    starts = [embedded_parts(model, model.featurize(document)) for document in tiny.DOCUMENTS]
    run_step(model, tmp_path, ("pgd", settings), **ALL_AT_ONCE)
    assert len(model.seen) == 5
    (order,) = plan_epoch([len(start[0]) for start in starts], generator(1, "plan", 0), batch_size=len(starts))[0]
    for row, item in enumerate(order):
        target = model.featurize(tiny.DOCUMENTS[item]).target
        begin = reference.uniform_start(noise_of(item, starts[item]), 0.7)
        expected = {}
        for name, at in (("random", begin), ("zero", None)):
            fresh = tiny.toy()  # the weights have moved
            loss = partial(toy_loss, fresh, target=target)
            expected[name] = reference.pgd(loss, starts[item], 0.7, 0.3, 3, at)
        for point, start in enumerate(starts[item]):
            assert torch.equal(model.seen[0][point][row, : len(start)], start)  # the clean pass is clean
            moved = model.seen[-1][point][row, : len(start)].double() - start.double()
            assert torch.allclose(moved, expected["random"][point], atol=3e-6)
            assert not torch.allclose(moved, expected["zero"][point], atol=1e-3)


# Laws, on the model of the zoo.


def bilstm(**settings: Any) -> Model:
    return tiny.build("bilstm_crf", {**BILSTM, "dropout_embedding": 0.0, "dropout_hidden": 0.0, **settings})


TARGETS = ["activations", "table"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("trick", [("fgm", {}), ("pgd", {"num_steps": 2})], ids=["fgm", "pgd"])
def test_epsilon_zero_is_the_plain_gradient(tmp_path: Path, trick: Attack, target: str) -> None:
    name, settings = trick
    dropout = {"dropout_embedding": 0.3, "dropout_hidden": 0.3}  # the same masks in all passes
    plain = run_step(bilstm(**dropout), tmp_path / "plain", None, **ALL_AT_ONCE)
    none = (name, {**settings, "epsilon": 0.0, "target": target})
    assert tiny.difference(run_step(bilstm(**dropout), tmp_path / "zero", none, **ALL_AT_ONCE), plain) < 1e-7
    some = (name, {**settings, "epsilon": 0.5, "target": target})
    assert tiny.difference(run_step(bilstm(**dropout), tmp_path / "some", some, **ALL_AT_ONCE), plain) > 1e-4


@pytest.mark.parametrize("target", TARGETS)
def test_free_lb_that_moves_nothing_is_the_plain_gradient(tmp_path: Path, target: str) -> None:
    dropout = {"dropout_embedding": 0.3, "dropout_hidden": 0.3}
    plain = run_step(bilstm(**dropout), tmp_path / "plain", None, **ALL_AT_ONCE)
    none = ("free_lb", {"epsilon_0": 0.0, "step_size": 0.0, "target": target})
    assert tiny.difference(run_step(bilstm(**dropout), tmp_path / "zero", none, **ALL_AT_ONCE), plain) < 1e-6
    some = ("free_lb", {"epsilon_0": 0.0, "step_size": 0.2, "target": target})
    assert tiny.difference(run_step(bilstm(**dropout), tmp_path / "some", some, **ALL_AT_ONCE), plain) > 1e-4


@pytest.mark.parametrize("target", TARGETS)
def test_pgd_of_one_step_is_fgm(tmp_path: Path, target: str) -> None:
    fgm = run_step(bilstm(), tmp_path / "fgm", ("fgm", {"epsilon": 0.5, "target": target}))
    for size in (0.5, 3.0):
        settings = {"epsilon": 0.5, "step_size": size, "num_steps": 1, "target": target}
        assert tiny.difference(run_step(bilstm(), tmp_path / f"{size}", ("pgd", settings)), fgm) < 1e-6
    settings = {"epsilon": 0.5, "step_size": 0.2, "num_steps": 1, "target": target}
    assert tiny.difference(run_step(bilstm(), tmp_path / "less", ("pgd", settings)), fgm) > 1e-4


@pytest.mark.parametrize("target", TARGETS)
def test_adversarial_weight_one_trains_on_the_moved_input_alone(tmp_path: Path, target: str) -> None:
    def at(weight: float) -> dict[str, Tensor]:
        settings = {"epsilon": 0.5, "target": target, "adversarial_weight": weight}
        return run_step(bilstm(), tmp_path / f"{weight}", ("fgm", settings), **ALL_AT_ONCE)

    clean = run_step(bilstm(), tmp_path / "clean", None, **ALL_AT_ONCE)
    half, alone = at(0.5), at(1.0)
    assert tiny.difference(alone, clean) > 1e-3
    assert tiny.difference({name: 2 * half[name] - clean[name] for name in half}, alone) < 1e-5


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the BiLSTM-CRF saw as embedded input, pass by pass."""
    from hanzoo.models import bilstm_crf

    seen: list[Tensor] = []
    plain = bilstm_crf.variational_dropout

    def remember(inputs: Tensor, rate: float, training: bool) -> Tensor:
        if inputs.shape[2] == 2 * BILSTM["dimension"] and training:
            seen.append(inputs.detach().clone())
        return plain(inputs, rate, training)

    monkeypatch.setattr(bilstm_crf, "variational_dropout", remember)
    return seen


@pytest.mark.parametrize(
    "trick",
    [("fgm", {"epsilon": 0.9}), ("pgd", {"epsilon": 0.9, "step_size": 0.6, "num_steps": 3})],
    ids=["fgm", "pgd"],
)
def test_each_sample_moves_by_epsilon_and_padding_by_nothing(
    tmp_path: Path, trick: Attack, embedded: list[Tensor]
) -> None:
    run_step(bilstm(hidden=7), tmp_path, trick, **ALL_AT_ONCE)
    moved = (embedded[-1] - embedded[0]).double()
    real = embedded[0].abs().sum(2) > 0  # the padding row of the table is zero
    assert not real.all()
    assert not moved[~real].any()
    assert torch.allclose(
        moved.square().sum((1, 2)).sqrt(), torch.full((len(moved),), 0.9, dtype=torch.float64), atol=1e-5
    )


@pytest.mark.parametrize(("trick", "num_passes"), [("fgm", 2), ("pgd", 4), ("free_lb", 3)])
def test_dropout_is_the_same_in_all_passes(tmp_path: Path, trick: str, num_passes: int) -> None:
    model = tiny.toy(dropout=0.5)
    tiny.trainer(model, tmp_path, tricks={trick: {}}, batch_size=4, accumulation=3, epochs=2).fit()
    passes = len(model.masks) // 6  # two steps of three micro-batches
    assert passes == num_passes
    by_step = [model.masks[: 3 * passes], model.masks[3 * passes :]]
    for masks in by_step:
        for micro in range(3):
            assert all(torch.equal(masks[micro], masks[micro + 3 * n]) for n in range(passes))
    kinds = {tuple(mask.flatten().tolist()) for mask in model.masks}
    assert len(kinds) == 6  # every micro-batch and every step has its own


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("trick", ["fgm", "pgd", "free_lb"])
def test_attacks_raise_the_loss(tmp_path: Path, trick: str, target: str) -> None:
    model = bilstm(dropout_embedding=0.2, dropout_hidden=0.2, hidden=16)
    size = 0.3 if target == "activations" else 1.0
    lengths: dict[str, Any] = {"epsilon": size}
    if trick == "free_lb":
        lengths = {"step_size": size / 2, "max_norm": size, "epsilon_0": 0.1 if target == "activations" else 0.0}
    tricks = {trick: {**lengths, "target": target}}
    tiny.trainer(model, tmp_path, tricks=tricks, epochs=10, optimizer={"learning_rate": 0.03}).fit()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [record["losses"] for record in records if "losses" in record]
    assert len(losses) == 30
    higher = [each["adversarial crf"] > each["crf"] for each in losses]
    assert sum(higher) >= 0.9 * len(higher)
    epochs = [sum(each["crf"] for each in losses[at : at + 3]) for at in range(0, 30, 3)]
    assert epochs[-1] < epochs[0] / 2  # it learns all the same


@pytest.mark.parametrize("trick", [("fgm", {}), ("pgd", {"step_size": 0.04})], ids=["fgm", "pgd"])
def test_a_relative_norm_is_a_share_of_the_sample_s_own(tmp_path: Path, trick: Attack, embedded: list[Tensor]) -> None:
    name, settings = trick
    run_step(bilstm(), tmp_path, (name, {**settings, "epsilon": 0.05, "norm": "relative"}), **ALL_AT_ONCE)
    norms = embedded[0].double().square().sum((1, 2)).sqrt()
    shares = (embedded[-1] - embedded[0]).double().square().sum((1, 2)).sqrt() / norms
    assert torch.allclose(shares, torch.full_like(shares, 0.05), rtol=1e-5)
    assert norms.max() > 1.5 * norms.min()


def test_a_relative_table_moves_by_a_share_of_its_rows_in_use(tmp_path: Path) -> None:
    model = tiny.toy()
    weights = {"characters": model.characters.weight, "pairs": model.pairs.weight}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    seen: list[dict[str, Tensor]] = []
    model.register_forward_pre_hook(
        lambda *_: seen.append({name: weight.detach().clone() for name, weight in weights.items()})
    )
    run_step(model, tmp_path, ("fgm", {"epsilon": 0.05, "norm": "relative", "target": "table"}), batch_size=2)
    move = rows = whole = 0.0
    for name, table in before.items():
        moved = (seen[1][name] - table).double()
        used = moved.any(dim=1)
        move += float(moved.square().sum())
        rows += float(table[used].double().square().sum())
        whole += float(table.double().square().sum())
    assert math.sqrt(move / rows) == pytest.approx(0.05, rel=1e-4)
    assert rows < 0.7 * whole  # with a share of all rows it would be more


@pytest.mark.parametrize(
    ("trick", "settings", "said"),
    [
        ("fgm", {"norm": "relative"}, "train.tricks.fgm.epsilon must be below 1 where norm is relative"),
        ("pgd", {"norm": "relative", "epsilon": 0.1, "step_size": 2.0}, "train.tricks.pgd.step_size must be below 1"),
        ("pgd", {"random_start": True, "target": "table"}, "train.tricks.pgd.random_start must be false where target"),
        ("free_lb", {"target": "table"}, "train.tricks.free_lb.epsilon_0 must be 0 where target is table, but is 0.1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(trick: str, settings: dict[str, Any], said: str) -> None:
    recipe = {"data": {"name": "bundled"}, "model": {"name": "bilstm_crf"}, "train": {"tricks": {trick: settings}}}
    with pytest.raises(RecipeError, match=re.escape(said)):
        check_recipe(recipe, name="x", place="x.yaml")


# Several points with maps of their own: the words of a lattice.


class Lattice(nn.Module):
    """Three embeddings: characters, bigrams, and words that cover characters; words of all texts may stand in any row."""

    def __init__(self) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(1)
        self.embeddings = nn.ModuleDict({
            name: nn.Embedding.from_pretrained(torch.randn(30, dimension, generator=draws), freeze=False)
            for name, dimension in (("characters", 4), ("bigrams", 3), ("words", 5))
        })  # fmt: skip
        self.mix = nn.ModuleDict({
            name: nn.Linear(table.embedding_dim, 6) for name, table in self.embeddings.items()
        })  # fmt: skip
        for parameter in self.mix.parameters():
            nn.init.normal_(parameter, generator=draws)

    def forward(self, ids: dict[str, Tensor], samples: dict[str, Tensor], num_samples: int) -> Tensor:
        """One loss a sample. Every position is read, padding too: into the next sample's sum, so that a move would be seen."""
        total = torch.zeros(num_samples, 6)
        for name, rows in ids.items():
            values = torch.tanh(self.mix[name](self.embeddings[name](rows))).reshape(-1, 6)
            total = total.index_add(0, samples[name].reshape(-1) % num_samples, values)
        return total.square().sum(dim=1)


CHARACTERS = torch.tensor([[0, 0, 0, 0], [1, 1, -1, -1], [2, 2, 2, -1]])
WORDS = {
    "a row a sample": torch.tensor([[0, 0, 0], [-1, -1, -1], [2, -1, -1]]),  # the second sample matches no word
    "one row for all": torch.tensor([[0, 2, 0, 0, -1]]),
}


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS.keys())
def test_words_count_in_the_norm_of_their_sample(words: Tensor, relative: bool) -> None:
    model = Lattice()
    samples = {"characters": CHARACTERS, "bigrams": CHARACTERS, "words": words}
    ids = {name: torch.arange(rows.numel()).reshape(rows.shape) for name, rows in samples.items()}
    points = {name: AttackPoint(model.embeddings[name], rows) for name, rows in samples.items()}
    with torch.no_grad():
        clean = {name: model.embeddings[name](rows).double() for name, rows in ids.items()}
    epsilon = 0.05 if relative else 0.6
    with Perturbation(points, relative=relative) as move:
        for _ in range(3):
            model(ids, samples, 3).sum().backward()
            directed = move.ascend(epsilon, epsilon)
            assert directed.tolist() == [True, True, True]
    for sample in range(3):
        moved = reference.norm([delta[samples[name] == sample].detach() for name, delta in move.deltas.items()])
        own = reference.norm([clean[name][samples[name] == sample] for name in clean])
        assert moved == pytest.approx(epsilon * (own if relative else 1.0), rel=1e-5)
    of_points = [float(delta[samples[name] == 0].detach().norm()) for name, delta in move.deltas.items()]
    whole = math.sqrt(sum(norm * norm for norm in of_points))
    assert min(of_points) > 0.05 * whole
    assert max(of_points) < 0.99 * whole  # no point has all of it
    for name, delta in move.deltas.items():
        assert not delta[samples[name] < 0].any()


@pytest.mark.parametrize("relative", [False, True])
def test_the_start_is_bounded_at_each_point(relative: bool) -> None:
    model = Lattice()
    samples = {"characters": CHARACTERS, "bigrams": CHARACTERS, "words": WORDS["a row a sample"]}
    ids = {name: torch.arange(rows.numel()).reshape(rows.shape) for name, rows in samples.items()}
    points = {name: AttackPoint(model.embeddings[name], rows) for name, rows in samples.items()}
    shares = []
    for seed in range(20):

        def draw(purpose: str, sample: int, seed: int = seed) -> np.random.Generator:
            return generator(seed, purpose, sample)

        with Perturbation(points, relative=relative, start=0.3, draw=draw) as move:
            model(ids, samples, 3)
        for name, delta in move.deltas.items():
            clean = model.embeddings[name](ids[name]).detach()
            for sample, num_points in ((0, 3), (1, 2), (2, 3)):
                mine = samples[name] == sample
                size = float(clean[mine].norm()) if relative else math.sqrt(1 / num_points)
                if mine.any():
                    shares.append(delta[mine].detach() / (0.3 * size) * math.sqrt(clean[mine].numel()))
            assert not delta[samples[name] < 0].any()
    drawn = torch.cat([share.flatten() for share in shares])
    assert 0.99 < drawn.max() < 1.0001
    assert -1.0001 < drawn.min() < -0.99
    assert drawn.std().item() == pytest.approx(1 / math.sqrt(3), rel=0.05)
    with pytest.raises(RuntimeError, match="draw"), Perturbation(points, start=0.3):
        model(ids, samples, 3)


def test_one_map_for_all_points_would_be_another_norm() -> None:
    model = Lattice()
    samples = {"characters": CHARACTERS, "words": WORDS["a row a sample"]}
    ids = {name: torch.arange(rows.numel()).reshape(rows.shape) for name, rows in samples.items()}
    alone: list[Tensor] = []
    for names in (("characters", "words"), ("characters",)):
        points = {name: AttackPoint(model.embeddings[name], samples[name]) for name in names}
        with Perturbation(points) as move:
            model(ids, samples, 3).sum().backward()
            move.ascend(0.6, 0.6)
        alone.append(move.deltas["characters"].detach().square().sum((1, 2)).sqrt())
    assert torch.allclose(alone[1], torch.full((3,), 0.6))
    assert (alone[0][[0, 2]] < 0.599).all()
    assert alone[0][1].item() == pytest.approx(0.6)  # the sample without words


# Tables come back.


def window_of(model: tiny.Toy) -> Window:
    return [MicroBatch(0, model.collate([model.featurize(item) for item in tiny.DOCUMENTS]))]


def backward_of(model: tiny.Toy, fail_at: int = -1) -> Callable[[Window], None]:
    passes = iter(range(99))

    def backward(window: Window) -> None:
        if next(passes) == fail_at:
            raise KeyboardInterrupt
        for micro in window:
            losses = model.losses(model(micro.batch), micro.batch)
            inputs = None if micro.inputs is None else list(micro.inputs())
            torch.autograd.backward(losses["square"].sum() * micro.weight, inputs=inputs)

    return backward


@pytest.mark.parametrize("fail_at", [-1, 0, 1, 2, 3])
def test_tables_come_back_to_the_same_bits(fail_at: int) -> None:
    model = tiny.toy()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda *_: seen.append(model.characters.weight.detach().clone()))
    pgd = trick_class("pgd")
    settings = pgd.Settings(epsilon=0.31, target="table", num_steps=3, step_size=0.17)
    attacked = pgd(settings=settings).wrap_backward(backward_of(model, fail_at), model)
    if fail_at < 0:
        attacked(window_of(model))
        assert len(seen) == 4
        assert not torch.equal(seen[-1], before["characters.weight"])
    else:
        with pytest.raises(KeyboardInterrupt):
            attacked(window_of(model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_hooks_are_gone_after_an_exception() -> None:
    model = tiny.toy()
    batch = window_of(model)[0].batch

    def cut() -> None:
        with Perturbation(model.attack_points(batch)):
            assert model.characters._forward_hooks
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut()
    assert not model.characters._forward_hooks
    assert not model.pairs._forward_hooks


def test_moved_tables_restore_what_was_changed_inside() -> None:
    draw = torch.Generator().manual_seed(1)
    table = torch.nn.Parameter(torch.randn(5, 3, generator=draw))
    before = table.detach().clone()
    gradient = torch.randn(5, 3, generator=draw)
    move = gradient * (0.1 / gradient.norm())
    assert not torch.equal((before + move) - move, before)  # subtracting what was added would give other bits

    def cut() -> None:
        with MovedTables([table]) as moved:
            moved.ascend([gradient], 0.1, 1.0)
            assert not torch.equal(table, before)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut()
    assert torch.equal(table, before)


# What must not pass in silence.


def test_an_attack_that_moves_nothing_is_an_error() -> None:
    model = tiny.toy()
    (micro,) = window_of(model)
    points = dict(model.attack_points(micro.batch))
    unreached = AttackPoint(torch.nn.Identity(), points["pairs"].samples)
    with Perturbation({**points, "words": unreached}) as moves:
        model.losses(model(micro.batch), micro.batch)["square"].sum().backward()
        with pytest.raises(RuntimeError, match="words"):
            moves.ascend(1.0, 1.0)


def test_samples_without_a_finite_gradient_stay_where_they_are() -> None:
    model = tiny.toy()
    (micro,) = window_of(model)
    factors = torch.ones(len(tiny.DOCUMENTS))
    factors[0], factors[1], factors[2] = 0.0, math.inf, math.nan
    with Perturbation(model.attack_points(micro.batch)) as moves:
        (model.losses(model(micro.batch), micro.batch)["square"] * factors).sum().backward()
        moves.ascend(0.4, 1.0)
    norms = torch.stack([delta.square().sum((1, 2)) for delta in moves.deltas.values()]).sum(0).sqrt()
    assert norms[:3].tolist() == [0.0, 0.0, 0.0]
    assert torch.allclose(norms[3:], torch.full((len(norms) - 3,), 0.4))


def test_padding_is_not_moved_even_where_the_loss_reads_it() -> None:
    embedding = torch.nn.Embedding(9, 3)
    samples = torch.tensor([[0, 0, -1, -1], [1, 1, 1, 1]])
    weights = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1))
    with Perturbation({"words": AttackPoint(embedding, samples)}) as moves:
        (embedding(torch.ones(2, 4, dtype=torch.int64)) * weights).sum().backward()
        assert moves.deltas["words"].grad is not None
        assert moves.deltas["words"].grad[0, 2:].all()
        moves.ascend(0.4, 1.0)
    (delta,) = moves.deltas.values()
    assert not delta[0, 2:].any()
    expected = reference.fgm(lambda m: (m[0] * weights[0, :2]).sum(), [torch.zeros(2, 3)], 0.4)[0]
    assert torch.allclose(delta[0, :2].double(), expected, atol=1e-6)  # nor does padding count in the norm


class Deaf(tiny.Toy):
    """Its loss does not depend on its input at the passes that `deaf` names."""

    deaf: Container[int] = ()

    def losses(self, output: Tensor, batch: tiny.ToyBatch) -> Mapping[str, Tensor]:
        heard = 0.0 if len(self.seen) - 1 in self.deaf else 1.0
        return {"square": (output * heard - batch.target).square() + self.output.bias}


def deaf_toy(passes: Container[int]) -> Deaf:
    reseed(1, "weights")
    model = Deaf(tiny.ToyConfig())
    model.deaf = passes
    return model


def test_an_attack_that_sometimes_moves_nothing_says_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # passes 6 and 12 are the clean ones of steps 4 and 7
    tiny.trainer(deaf_toy((6, 12)), tmp_path / "some", tricks={"fgm": {}}, epochs=12, log_every=5).fit()
    lines = [line for line in capsys.readouterr().err.splitlines() if "nothing moved" in line]
    assert lines == [
        "FGM: in 1 of 5 steps so far nothing moved, since every gradient there was 0 or not finite (said once)"
    ]
    for tricks in ({"fgm": {}}, {"fgm": {"epsilon": 0.0}}):
        passes = () if tricks["fgm"] == {} else range(9999)  # an epsilon of 0 shall move nothing
        tiny.trainer(deaf_toy(passes), tmp_path / f"{len(tricks['fgm'])}", tricks=tricks, epochs=12).fit()
    assert "nothing moved" not in capsys.readouterr().err


def test_single_samples_that_do_not_move_are_not_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Learnt(tiny.Toy):
        def losses(self, output: Tensor, batch: tiny.ToyBatch) -> Mapping[str, Tensor]:
            return {"square": (output - batch.target).square() * (torch.arange(len(batch.target)) > 0)}

    reseed(1, "weights")
    tiny.trainer(Learnt(tiny.ToyConfig()), tmp_path, tricks={"fgm": {}}, epochs=12).fit()
    assert "nothing moved" not in capsys.readouterr().err


def test_two_attacks_are_refused_by_name() -> None:
    sections = {name: trick_class(name).Settings() for name in ("fgm", "pgd")}
    with pytest.raises(RecipeError, match=r"(fgm and pgd|pgd and fgm).*both attack the same input"):
        build_tricks(sections)
    sections = {name: trick_class(name).Settings() for name in ("r_drop", "free_lb")}
    with pytest.raises(RecipeError, match=r"r_drop and free_lb.*clean passes"):
        build_tricks(sections)


@pytest.mark.parametrize("target", ["activations", "table"])
@pytest.mark.parametrize("name", ["fgm", "pgd", "free_lb"])
def test_an_attack_that_moves_nothing_fails(tmp_path: Path, name: str, target: str) -> None:
    def trainer(folder: str, epsilon: float, dead: Sequence[int]) -> Trainer:
        model = tiny.toy()
        model.loss_factors = dict.fromkeys(dead, 0.0)  # a loss of 0 whose gradient is 0 everywhere
        settings = {"epsilon": epsilon}
        if name == "free_lb":
            settings = {"step_size": epsilon, "epsilon_0": 0.0}
        return tiny.trainer(model, tmp_path / folder, tricks={name: {**settings, "target": target}}, epochs=10)

    dead = trainer("dead", 0.5, range(999))
    with pytest.raises(RunError, match=f"in its first {MAX_UNMOVED} steps nothing moved"):
        dead.fit()
    assert dead.progress.step == MAX_UNMOVED
    assert trainer("off", 0.0, range(999)).fit().step == 30
    assert trainer("saturated", 0.5, range(8, 999)).fit().step == 30  # it has moved before: the loss is at its end


def test_a_resumed_attack_knows_that_it_has_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def trainer(folder: str, dead: Container[int], *, resume: bool = False) -> Trainer:
        return tiny.trainer(
            deaf_toy(dead), tmp_path / folder, tricks={"fgm": {}}, epochs=12, log_every=4, resume=resume
        )

    cut = trainer("cut", range(2, 999))  # moves in its first step alone
    passes = iter(range(99))
    cut.model.register_forward_pre_hook(lambda *_: signal.raise_signal(signal.SIGTERM) if next(passes) == 10 else None)
    with pytest.raises(Interrupted):
        cut.fit()
    assert cut.progress.step == 6
    assert capsys.readouterr().err.count("nothing moved") == 1
    assert trainer("cut", range(999), resume=True).fit().step == 36
    assert "nothing moved" not in capsys.readouterr().err
    with pytest.raises(RunError, match="nothing moved"):
        trainer("new", range(999)).fit()


@pytest.mark.parametrize("target", ["activations", "table"])
@pytest.mark.parametrize("name", ["fgm", "pgd"])
def test_a_wholly_adversarial_training_logs_its_clean_loss(tmp_path: Path, name: str, target: str) -> None:
    losses = {}
    for weight in (0.5, 1.0):
        tricks = {name: {"epsilon": 0.5, "target": target, "adversarial_weight": weight}}
        tiny.trainer(tiny.toy(), tmp_path / str(weight), tricks=tricks, **ALL_AT_ONCE).fit()
        losses[weight] = json.loads((tmp_path / str(weight) / "metrics.jsonl").read_text().split("\n")[0])
    assert losses[1.0]["loss"] == losses[0.5]["loss"] > 0
    assert losses[1.0]["loss"] != losses[1.0]["losses"]["adversarial square"]
