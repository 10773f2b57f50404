"""Schedules: their values against the papers' formulas and torch's own schedulers, and that a run follows them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch.optim import lr_scheduler

from hanzoo.models.model import Model
from hanzoo.training.checkpoint import tensors_sha256
from hanzoo.training.schedules import PlateauSchedule, ScheduleSettings, factor, times_lowered
from hanzoo.training.trainer import Trainer, TrainSettings
from tests import tiny

NAMES = ("constant", "linear", "cosine", "cosine_restarts", "cyclic", "plateau")
SECTION: TypeAdapter[Any] = TypeAdapter(ScheduleSettings)


def schedule(name: str, **settings: Any) -> Any:
    return SECTION.validate_python({"name": name, "warmup": 0.0} | settings)


def factors(settings: Any, num_steps: int, figures: Sequence[float] = ()) -> list[float]:
    return [factor(settings, step, num_steps, figures) for step in range(num_steps)]


def of_torch(num_steps: int, make: Any, rate: float = 1.0) -> list[float]:
    """The rates of one of torch's schedulers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler = make(optimizer)
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


# Values.


def test_linear() -> None:
    settings = schedule("linear", warmup=0.2)
    expected = [0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0.0, 0.0]
    assert [factor(settings, step, 10) for step in range(12)] == pytest.approx(expected)
    assert factors(schedule("linear"), 4) == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert factors(schedule("linear", floor=0.2), 4) == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_constant() -> None:
    assert factors(schedule("constant", warmup=0.5), 6) == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0, 1.0, 1.0])


def test_cosine_is_that_of_torch() -> None:
    for floor in (0.0, 0.1):
        ours = factors(schedule("cosine", floor=floor), 17)
        theirs = of_torch(17, lambda optimizer, low=floor: lr_scheduler.CosineAnnealingLR(optimizer, 17, low))
        assert ours == pytest.approx(theirs, abs=1e-12)
    assert factors(schedule("cosine", warmup=0.5), 8)[4:] == pytest.approx(factors(schedule("cosine"), 4))
    assert factors(schedule("cosine"), 17) != pytest.approx(factors(schedule("linear"), 17), abs=1e-2)


@pytest.mark.parametrize(("cycles", "growth", "first"), [(1, 1, 12), (3, 1, 7), (3, 2, 5), (2, 3, 4)])
def test_restarts_are_those_of_torch(cycles: int, growth: int, first: int) -> None:
    num_steps = first * sum(growth**cycle for cycle in range(cycles))
    ours = factors(schedule("cosine_restarts", cycles=cycles, growth=growth, floor=0.05), num_steps)
    theirs = of_torch(
        num_steps, lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, first, growth, 0.05)
    )
    assert ours == pytest.approx(theirs, abs=1e-12)
    assert ours.count(1.0) == cycles  # exactly at the peak, not a step beside it
    other = factors(schedule("cosine_restarts", cycles=cycles + 1, growth=growth, floor=0.05), num_steps)
    assert ours != pytest.approx(other, abs=1e-2)


def test_cycles_that_do_not_divide_the_steps() -> None:
    """½(1 + cos(π ((c p) mod 1))), written down."""
    ours = factors(schedule("cosine_restarts", cycles=3), 10)
    assert ours == pytest.approx([0.5 * (1 + math.cos(math.pi * (3 * step % 10) / 10)) for step in range(10)])


def test_cyclic_is_that_of_torch_from_its_peak_on() -> None:
    half, floor = 4, 0.25
    ours = factors(schedule("cyclic", half_period=0.1, floor=floor), 40)

    def make(optimizer: Any) -> Any:
        return lr_scheduler.CyclicLR(optimizer, floor, 1.0, step_size_up=half, cycle_momentum=False)

    assert ours == pytest.approx(of_torch(40 + half, make)[half:], abs=1e-9)
    assert (max(ours), min(ours)) == (1.0, floor)
    assert ours != pytest.approx(factors(schedule("cyclic", half_period=0.2, floor=floor), 40))


FIGURES = st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5, math.nan]), max_size=30)


@given(FIGURES, st.integers(1, 4), st.integers(0, 3), st.sampled_from([0.0, 0.2]))
def test_plateau_is_that_of_torch(figures: list[float], patience: int, cooldown: int, floor: float) -> None:
    settings = schedule("plateau", factor=0.5, patience=patience, cooldown=cooldown, floor=floor)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=patience - 1, threshold=0.0, threshold_mode="abs",
        cooldown=cooldown, min_lr=floor, eps=0.0,
    )  # fmt: skip
    for seen, figure in enumerate(figures, start=1):
        theirs.step(figure)
        assert factor(settings, 50, 100, figures[:seen]) == optimizer.param_groups[0]["lr"]


def test_plateau_by_hand() -> None:
    figures = [0.3, 0.2, 0.3, 0.1, 0.1, 0.4, 0.1, 0.1]  # equal is not better
    assert [times_lowered(PlateauSchedule(patience=2), figures[:seen]) for seen in range(9)] == [
        0, 0, 0, 1, 1, 2, 2, 2, 3,
    ]  # fmt: skip
    assert times_lowered(PlateauSchedule(patience=2, cooldown=2), figures) == 2
    warming = schedule("plateau", warmup=0.5, factor=0.5, patience=1)
    assert factors(warming, 4) == [0.5, 1.0, 1.0, 1.0]
    assert factors(warming, 4, [0.3, 0.2]) == [0.25, 0.5, 0.5, 0.5]  # on top of the warm-up


@given(st.sampled_from(NAMES), st.integers(1, 200), st.floats(0.0, 0.99))
def test_every_schedule_warms_up_and_never_begins_at_zero(name: str, num_steps: int, warmup: float) -> None:
    rates = factors(schedule(name, warmup=warmup), num_steps)
    assert all(0.0 <= rate <= 1.0 for rate in rates)
    assert rates[0] > 0.0
    steps = round(warmup * num_steps)
    assert rates[:steps] == pytest.approx([(step + 1) / steps for step in range(steps)])
    assert steps == num_steps or rates[steps] == 1.0
    assert rates == factors(schedule(name, warmup=warmup), num_steps)


# Settings.


@pytest.mark.parametrize("name", NAMES)
def test_each_schedule_has_its_own_settings_alone(name: str) -> None:
    every = {"floor", "cycles", "growth", "half_period", "factor", "patience", "cooldown"}
    own = set(type(schedule(name)).model_fields) - {"name", "warmup"}
    assert own < every
    for setting in every - own:
        with pytest.raises(ValidationError, match="extra_forbidden"):
            schedule(name, **{setting: 1})
    default = SECTION.validate_python({"name": name})
    assert SECTION.validate_python(default.model_dump()) == default
    assert default.warmup == 0.05


def test_settings_without_a_name_are_of_the_linear_one() -> None:
    assert TrainSettings().schedule == TrainSettings.model_validate({"schedule": {}}).schedule
    assert TrainSettings.model_validate({"schedule": {"warmup": 0.1}}).schedule == schedule("linear", warmup=0.1)
    assert TrainSettings.model_validate({"schedule": {"name": "cosine"}}).schedule != TrainSettings().schedule


# In a run.


def rates_of(folder: Path) -> list[float]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["learning_rate"] for record in found if "loss" in record]


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("name", NAMES)
def test_rates_of_a_run_follow_the_schedule(tmp_path: Path, name: str) -> None:
    settings = {"name": name, "warmup": 0.25}
    tiny.trainer(tiny.toy(), tmp_path, epochs=4, schedule=settings, optimizer={"learning_rate": 0.02}).fit()
    figures = {step: [0.0] * (step // 3) for step in range(12)}  # nothing_to_evaluate, after each three steps
    expected = [0.02 * factor(schedule(**settings), step, 12, figures[step]) for step in range(12)]
    assert rates_of(tmp_path) == pytest.approx(expected)
    assert name in ("constant", "plateau") or len(set(rates_of(tmp_path)[3:])) > 1
    assert name != "plateau" or rates_of(tmp_path)[-3:] == pytest.approx([0.01] * 3)


class Killed(BaseException):
    pass


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("at", [1, 5, 6, 8, 9, 13, 17])
def test_a_plateau_goes_on_to_the_same_bits(tmp_path: Path, at: int) -> None:
    by_epoch = [0.3, 0.2, 0.1, 0.4, 0.2, 0.2]

    def make(folder: Path, resume: bool, falls: bool = True) -> Trainer:
        def evaluate(model: Model) -> dict[str, float]:
            return {"f1": by_epoch[made.progress.step // 3 - 1] if falls else float(made.progress.step)}

        made = tiny.trainer(
            tiny.toy(dropout=0.4), folder, epochs=6, save_every=2, resume=resume, evaluate=evaluate,
            schedule={"name": "plateau", "patience": 1, "factor": 0.3}, optimizer={"learning_rate": 0.05},
        )  # fmt: skip
        return made

    whole = make(tmp_path / "whole", False)
    assert whole.fit().dev_figures == by_epoch
    cut = make(tmp_path / "cut", False)
    passes = iter(range(99))

    def stop(*_: object) -> None:
        if next(passes) == at:
            raise Killed

    cut.model.register_forward_pre_hook(stop)
    with pytest.raises(Killed):
        cut.fit()
    resumed = make(tmp_path / "cut", True)
    assert resumed.fit().dev_figures == by_epoch
    assert last_state(tmp_path / "cut") == last_state(tmp_path / "whole")
    assert rates_of(tmp_path / "cut") == rates_of(tmp_path / "whole")
    assert rates_of(tmp_path / "whole")[-1] == pytest.approx(0.05 * 0.3**3)
    make(tmp_path / "rising", False, falls=False).fit()
    assert last_state(tmp_path / "rising") != last_state(tmp_path / "whole")


def last_state(folder: Path) -> str:
    """The hash of all that the newest state holds: weights, slots, the best so far."""
    from safetensors.torch import load_file

    return tensors_sha256(load_file(max((folder / "state").iterdir()) / "tensors.safetensors"))
