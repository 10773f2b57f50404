"""FGM and PGD against the plain references, and the laws that they must keep."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hanzoo.errors import RecipeError, RunError
from hanzoo.models.model import AttackPoint, Model
from hanzoo.training.attack import MAX_UNMOVED, AttackSettings, MovedTables, Perturbation, attack
from hanzoo.training.trainer import Trainer
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


@pytest.mark.parametrize("trick", ["fgm", "pgd"])
def test_dropout_is_the_same_in_all_passes(tmp_path: Path, trick: str) -> None:
    model = tiny.toy(dropout=0.5)
    tiny.trainer(model, tmp_path, tricks={trick: {"epsilon": 0.5}}, batch_size=4, accumulation=3, epochs=2).fit()
    passes = len(model.masks) // 6  # two steps of three micro-batches
    assert passes == (2 if trick == "fgm" else 4)
    by_step = [model.masks[: 3 * passes], model.masks[3 * passes :]]
    for masks in by_step:
        for micro in range(3):
            assert all(torch.equal(masks[micro], masks[micro + 3 * n]) for n in range(passes))
    kinds = {tuple(mask.flatten().tolist()) for mask in model.masks}
    assert len(kinds) == 6  # every micro-batch and every step has its own


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("trick", ["fgm", "pgd"])
def test_attacks_raise_the_loss(tmp_path: Path, trick: str, target: str) -> None:
    model = bilstm(dropout_embedding=0.2, dropout_hidden=0.2, hidden=16)
    tricks = {trick: {"epsilon": 0.3 if target == "activations" else 1.0, "target": target}}
    tiny.trainer(model, tmp_path, tricks=tricks, epochs=10, optimizer={"learning_rate": 0.03}).fit()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [record["losses"] for record in records if "losses" in record]
    assert len(losses) == 30
    higher = [each["adversarial crf"] > each["crf"] for each in losses]
    assert sum(higher) >= 0.9 * len(higher)
    epochs = [sum(each["crf"] for each in losses[at : at + 3]) for at in range(0, 30, 3)]
    assert epochs[-1] < epochs[0] / 2  # it learns all the same


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
    attacked = attack(
        backward_of(model, fail_at), model, AttackSettings(epsilon=0.31, target="table"), num_steps=3, step_size=0.17
    )
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


def test_two_attacks_are_refused_by_name() -> None:
    sections = {name: trick_class(name).Settings() for name in ("fgm", "pgd")}
    with pytest.raises(RecipeError, match=r"fgm and pgd|pgd and fgm"):
        build_tricks(sections)


@pytest.mark.parametrize("target", ["activations", "table"])
@pytest.mark.parametrize("name", ["fgm", "pgd"])
def test_an_attack_that_moves_nothing_fails(tmp_path: Path, name: str, target: str) -> None:
    def trainer(folder: str, epsilon: float, dead: Sequence[int]) -> Trainer:
        model = tiny.toy()
        model.loss_factors = dict.fromkeys(dead, 0.0)  # a loss of 0 whose gradient is 0 everywhere
        return tiny.trainer(model, tmp_path / folder, tricks={name: {"epsilon": epsilon, "target": target}}, epochs=10)

    dead = trainer("dead", 0.5, range(999))
    with pytest.raises(RunError, match=f"in its first {MAX_UNMOVED} steps nothing moved"):
        dead.fit()
    assert dead.progress.step == MAX_UNMOVED - 1
    assert trainer("off", 0.0, range(999)).fit().step == 30
    assert trainer("saturated", 0.5, range(8, 999)).fit().step == 30  # it has moved before: the loss is at its end


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
