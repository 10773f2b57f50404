"""The average of the weights: equal to a plain loop, kept apart from training, and what is evaluated and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hanzoo.models.model import Model
from hanzoo.training.checkpoint import tensors_sha256
from hanzoo.training.trick import trick_class
from tests import tiny

pytestmark = pytest.mark.usefixtures("deterministic")


def run(folder: Path, decay: float | None, **settings: Any) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """The weights after each step, and those that each evaluation saw; the best ones are in the folder's model/."""
    model = tiny.toy(dropout=0.3)
    evaluated: list[dict[str, Tensor]] = []
    steps: list[dict[str, Tensor]] = []

    def weights() -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def evaluate(_: Model) -> dict[str, float]:
        evaluated.append(weights())
        return {"f1": float(len(evaluated))}

    tricks = {} if decay is None else {"ema": {"decay": decay}}
    trained = tiny.trainer(
        model, folder, tricks=tricks, evaluate=evaluate, epochs=4, optimizer={"learning_rate": 0.05}, **settings
    )
    model.after_step = lambda: steps.append(weights())  # type: ignore[method-assign]
    trained.fit()
    steps.append(weights())
    return steps, evaluated


def test_average_equals_a_plain_loop(tmp_path: Path) -> None:
    steps, evaluated = run(tmp_path, 0.9)
    average = {name: weight.double() for name, weight in steps[0].items()}
    for number, weights in enumerate(steps[:-1], start=1):
        decay = min(0.9, (1 + number) / (10 + number))
        average = {name: decay * average[name] + (1 - decay) * weight.double() for name, weight in weights.items()}
        if number % 3 == 0:
            seen = {name: weight.double() for name, weight in evaluated[number // 3 - 1].items()}
            assert tiny.difference(seen, average) < 1e-6
            assert tiny.difference(seen, {name: weight.double() for name, weight in weights.items()}) > 1e-3


def test_training_does_not_change_by_a_bit(tmp_path: Path) -> None:
    with_it, _ = run(tmp_path / "with", 0.9)
    without, _ = run(tmp_path / "without", None)
    assert [tensors_sha256(weights) for weights in with_it[:-1]] == [
        tensors_sha256(weights) for weights in without[:-1]
    ]


def test_decay_zero_is_training_without_it(tmp_path: Path) -> None:
    for decay, folder in ((0.0, tmp_path / "zero"), (None, tmp_path / "without"), (0.9, tmp_path / "with")):
        run(folder, decay)
    kept = [tensors_sha256(load_file(tmp_path / name / "model" / "hanzoo.safetensors")) for name in ("zero", "without")]
    assert kept[0] == kept[1]
    assert tensors_sha256(load_file(tmp_path / "with" / "model" / "hanzoo.safetensors")) != kept[0]


def test_what_is_kept_is_what_was_evaluated(tmp_path: Path) -> None:
    steps, evaluated = run(tmp_path, 0.9)
    best = tensors_sha256(evaluated[-1])
    assert tensors_sha256(steps[-1]) == best  # fit ends with the best weights
    assert tensors_sha256(load_file(tmp_path / "model" / "hanzoo.safetensors")) == best


def test_raw_weights_come_back_after_an_exception() -> None:
    ema = trick_class("ema")
    model = tiny.toy()
    trick = ema(ema.Settings(decay=0.5))
    trick.after_step(model)
    with torch.no_grad():
        model.output.weight.add_(1.0)
    before = tensors_sha256(model.state_dict())

    def cut() -> None:
        with trick.evaluation_weights(model):
            assert tensors_sha256(model.state_dict()) != before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut()
    assert tensors_sha256(model.state_dict()) == before
