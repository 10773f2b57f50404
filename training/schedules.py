"""Learning-rate schedules: pure functions of the step, so that resuming needs no schedule state.

`train.schedule` names one; each has its own settings, and a setting of another one is a mistake of the recipe. `factor` says the
share of the peak rate with which a step trains. Steps count from 0, and the first one trains with a factor above 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from hanzoo.models.model import Settings


class Schedule(Settings):
    """What every schedule has.

    Attributes:
        warmup: share of all steps in which the rate goes up in a line, from one step's part of the peak to the peak.
            0.06 to 0.1 is usual for pretrained encoders (Liu et al. 2019; Devlin et al. 2019).
    """

    warmup: float = Field(default=0.05, ge=0.0, lt=1.0)


class ConstantSchedule(Schedule):
    """The peak rate, after the warm-up."""

    name: Literal["constant"] = "constant"


class LinearSchedule(Schedule):
    """Down in a line (Devlin et al. 2019).

    Attributes:
        floor: share of the peak rate that the end comes to.
    """

    name: Literal["linear"] = "linear"
    floor: float = Field(default=0.0, ge=0.0, le=1.0)


class CosineSchedule(Schedule):
    """Down in half a cosine: slowly at first and at the end (Loshchilov and Hutter 2017, equation 5, one cycle).

    Attributes:
        floor: share of the peak rate that the end comes to.
    """

    name: Literal["cosine"] = "cosine"
    floor: float = Field(default=0.0, ge=0.0, le=1.0)


class CosineRestartsSchedule(Schedule):
    """Several such cosines, each beginning at the peak (SGDR: Loshchilov and Hutter 2017, equation 5).

    Differs: cycles are parts of the steps after the warm-up, so that the last one ends with the training.

    Attributes:
        cycles: how many.
        growth: length of a cycle over that of the one before; T_mult of the paper, which favours 2.
        floor: share of the peak rate that each cycle comes down to.
    """

    name: Literal["cosine_restarts"] = "cosine_restarts"
    cycles: int = Field(default=3, ge=1, le=64)
    growth: int = Field(default=1, ge=1, le=16)
    floor: float = Field(default=0.0, ge=0.0, le=1.0)


class CyclicSchedule(Schedule):
    """Down and up again in lines, without end (the "triangular" policy of Smith 2017, section 3.1).

    Differs: it begins at the peak, which the warm-up has led to, and not at the floor.

    Attributes:
        half_period: share of all steps from the peak to the floor, at least one step. Smith takes 2 to 10 epochs.
        floor: the lowest rate as a share of the peak; a third or a quarter in Smith 2017, section 3.3.
    """

    name: Literal["cyclic"] = "cyclic"
    half_period: float = Field(default=0.1, gt=0.0, le=1.0)
    floor: float = Field(default=0.25, ge=0.0, le=1.0)


class PlateauSchedule(Schedule):
    """Lower after evaluations without a better figure on dev, as torch's `ReduceLROnPlateau` does it, on top of the warm-up.

    Attributes:
        factor: what the rate is multiplied by each time.
        patience: evaluations in a row without a better figure after which it is lowered (torch's patience plus one).
        cooldown: evaluations after that which do not count.
        floor: share of the peak rate below which it is not lowered.
    """

    name: Literal["plateau"] = "plateau"
    factor: float = Field(default=0.5, gt=0.0, lt=1.0)
    patience: int = Field(default=2, ge=1)
    cooldown: int = Field(default=0, ge=0)
    floor: float = Field(default=0.0, ge=0.0, le=1.0)


def _name_of(section: object) -> str:
    """Which schedule a section of a recipe means: linear where it gives settings and no name."""
    if isinstance(section, Mapping):
        return str(section.get("name", "linear"))
    return str(getattr(section, "name", ""))


ScheduleSettings = Annotated[
    Annotated[ConstantSchedule, Tag("constant")]
    | Annotated[LinearSchedule, Tag("linear")]
    | Annotated[CosineSchedule, Tag("cosine")]
    | Annotated[CosineRestartsSchedule, Tag("cosine_restarts")]
    | Annotated[CyclicSchedule, Tag("cyclic")]
    | Annotated[PlateauSchedule, Tag("plateau")],
    Discriminator(_name_of),
]


def factor(settings: ScheduleSettings, step: int, num_steps: int, dev_figures: Sequence[float] = ()) -> float:
    """The share of the peak rate with which a step trains, in [0, 1]; above 0 at the first step.

    Args:
        settings: one of the schedules above.
        step: 0-based optimizer step.
        num_steps: steps of the whole training.
        dev_figures: of all evaluations before this step, larger = better; only `plateau` looks at them.
    """
    warmup_steps = round(settings.warmup * num_steps)
    ramp = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if isinstance(settings, PlateauSchedule):
        # a factor on top: the rate may have to be lowered while it still goes up
        return ramp * max(settings.floor, math.pow(settings.factor, times_lowered(settings, dev_figures)))
    if step < warmup_steps:
        return ramp
    total = max(1, num_steps - warmup_steps)
    done = min(step - warmup_steps, total)
    match settings:
        case ConstantSchedule():
            return 1.0
        case LinearSchedule():
            share = (total - done) / total
        case CosineSchedule():
            share = _half_cosine(done / total)
        case CosineRestartsSchedule():
            share = _half_cosine(_share_of_cycle(done, total, settings.cycles, settings.growth))
        case CyclicSchedule():
            half = max(1, round(settings.half_period * num_steps))
            share = abs(1.0 - (done % (2 * half)) / half)
    floor: float = settings.floor
    return floor + (1.0 - floor) * share


def _half_cosine(share: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * share))


def _share_of_cycle(done: int, total: int, cycles: int, growth: int) -> float:
    """How much of its cycle lies behind a step, in whole numbers: rounding would put a restart one step off."""
    if done >= total:
        return 1.0
    lengths: list[int] = [growth**cycle for cycle in range(cycles)]
    position = done * sum(lengths)  # in units of 1 / total of the first cycle's length
    for length in lengths:
        if position < length * total:
            return position / (length * total)
        position -= length * total
    raise AssertionError("a step lies in one of the cycles")


def times_lowered(settings: PlateauSchedule, dev_figures: Sequence[float]) -> int:
    """How often the rate was lowered after these figures."""
    best, waited, resting, lowered = -math.inf, 0, 0, 0
    for figure in dev_figures:
        if figure > best:
            best, waited = figure, 0
        else:
            waited += 1
        if resting:
            resting, waited = resting - 1, 0
        if waited >= settings.patience:
            lowered, waited, resting = lowered + 1, 0, settings.cooldown
    return lowered
