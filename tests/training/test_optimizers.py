"""Parameter groups, the optimizers' arithmetic, and the change from Adam to SGD, killed on either side of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from hanzoo.errors import RecipeError
from hanzoo.models.model import Model
from hanzoo.training.checkpoint import tensors_sha256
from hanzoo.training.optimizers import (
    OptimizerSettings,
    ParameterGroup,
    build_optimizer,
    describe_groups,
    parameter_groups,
    scaled_rate,
)
from hanzoo.training.trainer import Trainer, TrainSettings
from tests import tiny

pytestmark = pytest.mark.usefixtures("deterministic")


def bilstm(num_layers: int = 2, **settings: Any) -> Model:
    chosen = {"dimension": 6, "hidden": 5, "num_layers": num_layers, "unknown_rate": 0.0}
    return tiny.build("bilstm_crf", chosen | {"dropout_embedding": 0.0, "dropout_hidden": 0.0} | settings)


def factors(model: Model, **settings: Any) -> dict[str, float]:
    """The factor of each parameter's rate."""
    groups = parameter_groups(model, OptimizerSettings(**settings))
    return {name: group.factor for group in groups for name in group.names}


# Groups.


def test_depth_of_the_bilstm_crf() -> None:
    model = bilstm(num_layers=3)
    depths = {name: model.depth(name) for name, _ in model.named_parameters()}
    assert {depth for name, depth in depths.items() if name.startswith(("characters", "bigrams"))} == {0}
    for layer in range(3):
        for direction in ("forward", "backward"):
            assert depths[f"lstm.{direction}_layers.{layer}.weight_ih_l0"] == 1 + layer
    assert {depth for name, depth in depths.items() if name.startswith(("emission", "crf"))} == {4}


def test_depth_of_a_model_that_says_nothing() -> None:
    model = tiny.toy()
    tables = {"characters.weight", "pairs.weight"}
    for name, _ in model.named_parameters():
        assert model.depth(name) == (0 if name in tables else 1)


def test_each_layer_is_slower_than_the_one_above() -> None:
    found = factors(bilstm(num_layers=2), layer_decay=0.5)
    assert found["crf.transitions"] == found["emission.weight"] == found["emission.bias"] == 1.0
    assert found["lstm.forward_layers.1.weight_hh_l0"] == found["lstm.backward_layers.1.bias_ih_l0"] == 0.5
    assert found["lstm.forward_layers.0.weight_hh_l0"] == 0.25
    assert found["characters.weight"] == found["bigrams.weight"] == 0.125
    assert set(factors(bilstm()).values()) == {1.0}
    both = factors(bilstm(num_layers=2), layer_decay=0.5, rates={"lstm": 3.0})
    assert (both["lstm.forward_layers.0.bias_hh_l0"], both["characters.weight"]) == (0.75, 0.125)


class Encoder(tiny.Toy):
    """A toy with twelve layers between its tables and its output."""

    def __init__(self, config: tiny.ToyConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(12))

    def depth(self, parameter: str) -> int:
        match parameter.split("."):
            case ["layers", layer, *_]:
                return 1 + int(layer)
            case ["output", *_]:
                return 13
        return 0


def test_twelve_layers_have_a_group_each() -> None:
    groups = parameter_groups(Encoder(tiny.ToyConfig()), OptimizerSettings(layer_decay=0.9))
    rates = {name: group.factor for group in groups for name in group.names}
    for layer in range(12):
        assert rates[f"layers.{layer}.weight"] == pytest.approx(0.9 ** (12 - layer))
    assert rates["characters.weight"] == pytest.approx(0.9**13)
    assert len({group.factor for group in groups}) == 14
    table = "\n".join(describe_groups(groups, 1e-3))
    assert "layers.11 " in table


def test_rates_of_parts_and_the_longest_name_counts() -> None:
    rates = {
        "crf": 5.0,
        "lstm": 2.0,
        "lstm.forward_layers": 3.0,
        "lstm.forward_layers.1.bias_ih_l0": 0.0,
        "bigrams": 0.5,
    }
    found = factors(bilstm(), rates=rates)
    assert found["crf.transitions"] == found["crf.start_transitions"] == 5.0
    assert found["lstm.backward_layers.0.weight_ih_l0"] == 2.0
    assert found["lstm.forward_layers.0.weight_ih_l0"] == 3.0
    assert found["lstm.forward_layers.1.bias_ih_l0"] == 0.0
    assert (found["bigrams.weight"], found["characters.weight"], found["emission.weight"]) == (0.5, 1.0, 1.0)


@pytest.mark.parametrize("name", ["carf", "char", "lstm.forward", "crf.", ""])
def test_a_part_that_is_not_there(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build_optimizer(bilstm(), OptimizerSettings(rates={"crf": 2.0, name: 5.0}))
    message = str(caught.value)
    assert f"rates: a name must be a part of the model that is trained, but is {name!r}." in message
    assert "Known: characters, bigrams, lstm, emission, crf, and" in message
    assert name != "carf" or "Did you mean 'crf'?" in message


def test_a_part_that_is_not_trained() -> None:
    model = bilstm()
    model.get_submodule("crf").requires_grad_(False)
    with pytest.raises(RecipeError, match="'crf'"):
        parameter_groups(model, OptimizerSettings(rates={"crf": 2.0}))
    assert "crf.transitions" not in factors(model)


def test_a_tied_parameter_is_trained_once() -> None:
    model = tiny.toy()
    loose = len(factors(model))
    model.output_of_characters = nn.Linear(4, 64, bias=False)
    model.output_of_characters.weight = model.characters.weight
    groups = parameter_groups(model, OptimizerSettings(rates={"characters": 0.5}))
    names = [name for group in groups for name in group.names]
    assert len(names) == len(set(names)) == loose
    (of_table,) = (group for group in groups if "characters.weight" in group.names)
    assert (of_table.factor, of_table.weight_decay) == (0.5, 0.0)  # where it comes first: as a table
    model.output_of_characters.weight = nn.Parameter(torch.zeros(64, 4))
    assert len(factors(model)) == loose + 1


def test_a_rate_moves_its_part_alone(tmp_path: Path) -> None:
    """One step of plain SGD: the distance is the rate times the gradient."""

    def moved(name: str, rates: dict[str, float]) -> dict[str, Tensor]:
        model = bilstm()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.1, "rates": rates}
        tiny.trainer(model, tmp_path / name, batch_size=12, optimizer=optimizer).fit()
        return {name: p.detach() - before[name] for name, p in model.named_parameters()}

    plain, changed = moved("plain", {}), moved("changed", {"crf": 5.0, "characters": 0.0})
    for name, distance in plain.items():
        factor = 5.0 if name.startswith("crf") else 0.0 if name.startswith("characters") else 1.0
        assert torch.allclose(changed[name], factor * distance, rtol=1e-3, atol=1e-6)
        assert float(distance.abs().max()) > 0.0, name


def test_the_table_of_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = bilstm()
    optimizer = {"learning_rate": 0.002, "rates": {"crf": 5.0}}
    tiny.trainer(model, tmp_path, epochs=2, optimizer=optimizer).fit()
    lines = capsys.readouterr().err.splitlines()
    start = lines.index(next(line for line in lines if line.startswith("group")))
    assert lines[start].split() == ["group", "rate", "decay", "tensors", "parameters"]
    table = [line.rsplit(maxsplit=4) for line in lines[start + 1 : start + 4]]
    assert [row[:3] for row in table] == [
        ["characters, bigrams, lstm, emission", "0.002", "0"],
        ["lstm, emission", "0.002", "0.01"],
        ["crf", "0.01", "0"],
    ]
    assert sum(int(row[3]) for row in table) == len(list(model.parameters()))
    assert sum(int(row[4].replace(",", "")) for row in table) == sum(p.numel() for p in model.parameters())
    assert sum(line.startswith("group") for line in lines) == 1


def test_parts_are_named_by_the_modules_that_their_parameters_share() -> None:
    assert ParameterGroup(1.0, 0.0, [], ["a.x.0.weight", "a.x.1.weight"]).parts == "a.x"
    assert ParameterGroup(1.0, 0.0, [], ["a.x.0.weight", "a.x.0.bias"]).parts == "a.x.0"
    assert (
        ParameterGroup(1.0, 0.0, [], ["a.x.weight", "a.y.weight", "b.weight", "temperature"]).parts
        == "a, b, temperature"
    )


# Arithmetic.


def updates(settings: OptimizerSettings, gradients: list[float], rate: float) -> float:
    """Where a weight of 1 ends under these gradients."""
    model = tiny.toy()
    weight = model.first.weight
    with torch.no_grad():
        weight.fill_(1.0)
    optimizer = build_optimizer(model, settings)
    for gradient in gradients:
        weight.grad = torch.full_like(weight, gradient)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return float(weight.detach()[0, 0])


GRADIENTS = [0.3, -0.1, 0.4, 0.2]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd(momentum: float) -> None:
    weight, velocity = 1.0, 0.0
    for gradient in GRADIENTS:
        velocity = momentum * velocity + gradient + 0.1 * weight
        weight -= 0.05 * velocity
    settings = OptimizerSettings(name="sgd", momentum=momentum, weight_decay=0.1)
    assert updates(settings, GRADIENTS, 0.05) == pytest.approx(weight, rel=1e-6)
    other = settings.model_copy(update={"momentum": 0.5})
    assert updates(other, GRADIENTS, 0.05) != pytest.approx(weight, rel=1e-4)


def test_adamax() -> None:
    """Kingma and Ba 2015, algorithm 2; the decay is added to the gradient."""
    weight, first, largest = 1.0, 0.0, 0.0
    for step, raw in enumerate(GRADIENTS, start=1):
        gradient = raw + 0.1 * weight
        first = 0.9 * first + 0.1 * gradient
        largest = max(0.98 * largest, abs(gradient) + 1e-8)
        weight -= 0.05 / (1 - 0.9**step) * first / largest
    settings = OptimizerSettings(name="adamax", beta2=0.98, weight_decay=0.1)
    assert updates(settings, GRADIENTS, 0.05) == pytest.approx(weight, rel=1e-6)
    assert updates(OptimizerSettings(beta2=0.98, weight_decay=0.1), GRADIENTS, 0.05) != pytest.approx(weight, rel=1e-4)


def test_adamw() -> None:
    weight, first, second = 1.0, 0.0, 0.0
    for step, gradient in enumerate(GRADIENTS, start=1):
        first, second = 0.9 * first + 0.1 * gradient, 0.98 * second + 0.02 * gradient**2
        ratio = first / (1 - 0.9**step) / (math.sqrt(second / (1 - 0.98**step)) + 1e-8)
        weight -= 0.05 * (0.1 * weight + ratio)
    assert updates(OptimizerSettings(beta2=0.98, weight_decay=0.1), GRADIENTS, 0.05) == pytest.approx(weight, rel=1e-6)


def test_scaled_rates() -> None:
    assert scaled_rate("sgd", 0.01, 128, 32) == pytest.approx(0.04)
    assert scaled_rate("adamw", 0.01, 128, 32) == pytest.approx(0.02)
    assert scaled_rate("adamax", 0.01, 8, 32) == pytest.approx(0.005)


# From Adam to SGD.


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"optimizer": {"sgd_from_epoch": 3}}, "sgd_learning_rate must stand beside"),
        ({"optimizer": {"sgd_learning_rate": 0.1}}, "sgd_from_epoch must stand beside"),
        ({"optimizer": {"name": "sgd", "sgd_from_epoch": 3, "sgd_learning_rate": 0.1}}, "must follow adamw or adamax"),
        ({"optimizer": {"sgd_from_epoch": 1, "sgd_learning_rate": 0.1}}, "greater than or equal to 2"),
        ({"optimizer": {"sgd_from_epoch": 4, "sgd_learning_rate": 0.1}}, "must be one of the 3 epochs, but is 4"),
    ],
)
def test_a_change_that_cannot_be(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainSettings.model_validate({"epochs": 3} | section)
    TrainSettings.model_validate({"epochs": 3, "optimizer": {"sgd_from_epoch": 3, "sgd_learning_rate": 0.1}})


def changing(
    folder: Path, resume: bool = False, seen: dict[int, dict[str, Tensor]] | None = None, **other: Any
) -> Trainer:
    """Three epochs of AdamW, then three of SGD with momentum; three steps each."""
    optimizer = {"learning_rate": 0.01, "sgd_from_epoch": 4, "sgd_learning_rate": 0.002, "momentum": 0.9} | other

    def evaluate(model: Model) -> dict[str, float]:
        if seen is not None:
            seen[made.progress.step] = {name: p.detach().clone() for name, p in model.named_parameters()}
        return {"f1": -float(sum(p.detach().abs().sum() for p in model.parameters()))}

    made = tiny.trainer(
        tiny.toy(dropout=0.4), folder, epochs=6, save_every=2, clip=1.0, schedule={"warmup": 0.2}, resume=resume,
        evaluate=evaluate, optimizer=optimizer,
    )  # fmt: skip
    return made


def state(folder: Path, step: int | None = None) -> dict[str, Tensor]:
    """The tensors of a saved state; of the newest one if none is named."""
    states = folder / "state"
    return load_file((max(states.iterdir()) if step is None else states / f"{step:08d}") / "tensors.safetensors")


def slots(folder: Path, step: int | None = None) -> set[str]:
    return {name.rpartition("/")[2] for name in state(folder, step) if name.startswith("optimizer/")}


class Killed(BaseException):
    pass


def killed(folder: Path, at: int) -> None:
    """Train until the forward pass of step `at`, and stop there as a kill would."""
    made = changing(folder)
    passes = iter(range(99))

    def stop(*_: object) -> None:
        if next(passes) == at:
            raise Killed

    made.model.register_forward_pre_hook(stop)
    with pytest.raises(Killed):
        made.fit()


@pytest.mark.parametrize("at", [3, 7, 8, 9, 10, 11, 12, 17])
def test_a_kill_on_either_side_of_the_change_ends_in_the_same_bits(tmp_path: Path, at: int) -> None:
    changing(tmp_path / "whole").fit()
    killed(tmp_path / "cut", at)
    # saved after steps 2, 3, 4, 6, 8, 9 (the change), 10, 12 ...: what was saved last at or before the kill
    saved = max(step for step in range(at + 1) if step % 2 == 0 or step % 3 == 0)
    if saved:
        adam = {"step", "exp_avg", "exp_avg_sq"}
        assert slots(tmp_path / "cut", saved) == (adam if saved <= 9 else {"momentum_buffer"})
    changing(tmp_path / "cut", resume=True).fit()
    assert tensors_sha256(state(tmp_path / "cut")) == tensors_sha256(state(tmp_path / "whole"))
    assert slots(tmp_path / "cut") == {"momentum_buffer"}


def test_another_moment_of_the_change_ends_in_other_bits(tmp_path: Path) -> None:
    changing(tmp_path / "whole").fit()
    for name, other in (("later", {"sgd_from_epoch": 5}), ("slower", {"sgd_learning_rate": 0.001})):
        changing(tmp_path / name, **other).fit()
        assert tensors_sha256(state(tmp_path / name)) != tensors_sha256(state(tmp_path / "whole"))


def test_sgd_begins_at_its_own_rate_without_momentum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first step after the change is that of an SGD that knows nothing of the steps before."""
    whole: dict[int, dict[str, Tensor]] = {}
    changing(tmp_path / "whole", seen=whole).fit()
    said = capsys.readouterr().err
    assert said.count("epoch 4: sgd from here on, rate 0.002") == 1
    rates = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    rates = [record["learning_rate"] for record in rates if "loss" in record]
    shares = [
        min((step + 1) / 4, (18 - step) / 14) for step in range(18)
    ]  # the schedule goes on: 20 % of 18 are 4 steps
    peaks = [0.01] * 9 + [0.002] * 9
    assert rates == pytest.approx([peak * share for peak, share in zip(peaks, shares, strict=True)])

    plain: dict[int, dict[str, Tensor]] = {}
    changing(tmp_path / "plain", seen=plain, momentum=0.0).fit()
    for name, tensor in whole[9].items():
        assert torch.equal(tensor, plain[9][name])  # Adam has no part in the momentum of the sgd
    assert not any(torch.equal(whole[12][name], plain[12][name]) for name in ("first.weight", "output.weight"))
    assert slots(tmp_path / "plain") == set()


def test_adamax_before_the_change_too(tmp_path: Path) -> None:
    changing(tmp_path / "whole", name="adamax").fit()
    changing(tmp_path / "adamw").fit()
    assert tensors_sha256(state(tmp_path / "whole")) != tensors_sha256(state(tmp_path / "adamw"))
    only = tiny.trainer(tiny.toy(), tmp_path / "only", epochs=2, optimizer={"name": "adamax"})
    only.fit()
    assert slots(tmp_path / "only") == {"step", "exp_avg", "exp_inf"}
