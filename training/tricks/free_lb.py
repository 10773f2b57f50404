"""FreeLB, "free" large-batch adversarial training: train on the mean of the losses along an ascent that starts at a random place.

Source: Zhu et al. 2020, algorithm 1, and the authors' code: the start is U(-1, 1) * epsilon_0 / sqrt(n d) at each of the n d
numbers of a sample; each of the num_steps passes leaves 1 / num_steps of its gradient in the parameters; between two passes the
perturbation ascends by step_size along its normalised gradient; the dropout masks are the same in all passes.
Differs: where a model embeds a sample at several points, their numbers share one norm.
Cost: num_steps forward and backward passes a step, none of them clean. Not with FGM or PGD: they move the same input. Not with
R-Drop: it pulls two clean passes with other masks together, and here there is no clean pass, and all masks are equal.
In the log, the loss by its plain name is the one where the ascent starts, the "adversarial" one that of the last pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import ClassVar, Self

from pydantic import Field, model_validator

from hanzoo.models.model import Model
from hanzoo.training.attack import SAME_INPUT, Attack, InputAttackSettings, MovedTables, gradients_of
from hanzoo.training.trick import Backward, Window


class FreeLBSettings(InputAttackSettings):
    """Fields of `train.tricks.free_lb`.

    Attributes:
        num_steps: passes; 1 is training with random noise.
        step_size: norm of one ascent.
        epsilon_0: size of the random start, whose expected norm is epsilon_0 / sqrt(3); 0 = start at the input. Activations only:
            which rows of a table a window uses is known only after its first pass.
        max_norm: radius of the ball that the perturbation is projected to; 0 = none.
    """

    lengths: ClassVar[tuple[str, ...]] = ("step_size", "epsilon_0", "max_norm")

    num_steps: int = Field(default=3, ge=1)
    step_size: float = Field(default=0.1, ge=0.0)
    epsilon_0: float = Field(default=0.1, ge=0.0)
    max_norm: float = Field(default=0.3, ge=0.0)

    @model_validator(mode="after")
    def _tables_start_where_they_are(self) -> Self:
        if self.epsilon_0 and self.target == "table":
            raise ValueError(f"epsilon_0 must be 0 where target is table, but is {self.epsilon_0!r}. Set it to 0.")
        return self


class FreeLB(Attack):
    """step_size 0 and epsilon_0 0 are training without it."""

    Settings: ClassVar[type[FreeLBSettings]] = FreeLBSettings
    excludes: ClassVar[Mapping[str, str]] = {
        "fgm": SAME_INPUT,
        "pgd": SAME_INPUT,
        "r_drop": "R-Drop compares clean passes, and FreeLB has none",
    }

    def wrap_backward(self, backward: Backward, model: Model) -> Backward:
        settings = self.settings
        radius = settings.max_norm or math.inf

        def passes(window: Window) -> Iterator[Window]:
            """The window of each pass; ranks add their gradients in the last one."""
            for number in range(settings.num_steps):
                last = number == settings.num_steps - 1
                kind = "clean" if number == 0 else "adversarial" if last else "ascent"
                yield [
                    replace(m, weight=m.weight / settings.num_steps, kind=kind, last=m.last and last) for m in window
                ]

        def on_activations(window: Window) -> None:
            moves = self.perturbations(window, model, settings.epsilon_0)
            for number, micros in enumerate(passes(window)):
                if number:
                    self.move_activations(window, moves, settings.step_size, radius, first=number == 1)
                backward([micro.inside(move) for micro, move in zip(micros, moves, strict=True)])

        def on_tables(window: Window) -> None:
            tables = self.tables(window, model)
            *ascents, final = passes(window)
            with MovedTables(tables, relative=settings.norm == "relative") as moved:
                for number, micros in enumerate(ascents):
                    kept = [table.grad for table in tables]
                    for table in tables:
                        table.grad = None  # the direction is that of this pass alone
                    backward(micros)
                    gradients = gradients_of(tables)
                    for table, before, own in zip(tables, kept, gradients, strict=True):
                        table.grad = own if before is None else before + own
                    self.move_tables(moved, gradients, settings.step_size, radius, first=number == 0)
                backward(final)  # on top of the others: what the ranks add is the sum of all passes

        return on_activations if settings.target == "activations" else on_tables
