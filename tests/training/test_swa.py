"""The equal average of late weights: equal to a plain mean, kept apart from training, and what is evaluated and kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from hanzoo.errors import RunError
from hanzoo.models.model import Model
from hanzoo.training.checkpoint import tensors_sha256
from tests import tiny

pytestmark = pytest.mark.usefixtures("deterministic")

Weights = dict[str, Tensor]


def run(folder: Path, swa: Mapping[str, Any] | None, **settings: Any) -> tuple[list[Weights], list[Weights]]:
    """The raw weights after each step of four epochs of three, and those that each evaluation saw."""
    model = tiny.toy(dropout=0.3)
    evaluated: list[Weights] = []
    steps: list[Weights] = []

    def weights() -> Weights:
        return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def evaluate(_: Model) -> dict[str, float]:
        evaluated.append(weights())
        return {"f1": float(len(evaluated))}

    tricks = {} if swa is None else {"swa": swa}
    trained = tiny.trainer(
        model, folder, tricks=tricks, evaluate=evaluate, epochs=4, optimizer={"learning_rate": 0.05}, **settings
    )
    model.after_step = lambda: steps.append(weights())  # type: ignore[method-assign]
    trained.fit()
    assert trained.num_steps == 12
    return steps, evaluated


def mean(steps: list[Weights], numbers: list[int]) -> Weights:
    """Plain mean of the weights after the steps with these numbers, counted from 1."""
    return {name: sum(steps[number - 1][name].double() for number in numbers) / len(numbers) for name in steps[0]}


@pytest.mark.parametrize(
    ("swa", "averaged"),
    [
        ({"start": 0.5}, {3: [], 6: [6], 9: [6, 9], 12: [6, 9, 12]}),
        ({"start": 0.51}, {6: [], 9: [9], 12: [9, 12]}),
        ({"start": 0.4, "every": 2}, {3: [], 6: [5], 9: [5, 7, 9], 12: [5, 7, 9, 11]}),
        ({"start": 0.0, "every": 1}, {3: [1, 2, 3], 12: list(range(1, 13))}),
        ({}, {6: [], 9: [9], 12: [9, 12]}),
    ],
)
def test_average_equals_a_plain_mean(swa: dict[str, Any], averaged: dict[int, list[int]], tmp_path: Path) -> None:
    steps, evaluated = run(tmp_path, swa)
    for step, numbers in averaged.items():
        seen = {name: weight.double() for name, weight in evaluated[step // 3 - 1].items()}
        assert tiny.difference(seen, mean(steps, numbers or [step])) < 1e-6
        if numbers not in ([], [step]):
            assert tiny.difference(seen, mean(steps, [step])) > 1e-3


def test_training_does_not_change_by_a_bit(tmp_path: Path) -> None:
    with_it, seen = run(tmp_path / "with", {"start": 0.2, "every": 1})
    without, seen_without = run(tmp_path / "without", None)
    assert list(map(tensors_sha256, with_it)) == list(map(tensors_sha256, without))
    assert tensors_sha256(seen[-1]) != tensors_sha256(seen_without[-1])


def test_a_step_that_is_left_out_is_not_averaged(tmp_path: Path) -> None:
    model = tiny.toy()
    model.loss_factors = {4: float("nan")}  # the 5th pass, one a step
    trained = tiny.trainer(model, tmp_path, tricks={"swa": {"start": 0.0, "every": 1}}, epochs=3)
    trained.fit()
    assert trained.progress.nonfinite == 1
    assert int(trained.tricks[0].state()["count"]) == trained.num_steps - 1


def test_what_is_kept_is_the_average(tmp_path: Path) -> None:
    steps, evaluated = run(tmp_path, {"start": 0.5})
    kept = tensors_sha256(load_file(tmp_path / "model" / "hanzoo.safetensors"))
    assert kept == tensors_sha256(evaluated[-1])
    assert kept != tensors_sha256(steps[-1])


@pytest.mark.parametrize(("settings", "epochs"), [({}, 1), ({}, 3), ({"start": 0.9, "every": 9}, 4)])
def test_an_average_of_one_is_refused(settings: dict[str, Any], epochs: int, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="must average the weights of 2 steps or more, but start and every choose 1"):
        tiny.trainer(tiny.toy(), tmp_path, tricks={"swa": settings}, epochs=epochs).fit()
