"""What the attacks share: moving the embeddings of a batch, or the embedding tables, along the gradient of the loss.

Activations: a perturbation is added to the output of each attack point by a forward hook. One norm a sample, over all its
embedded positions and all points together, so it is the same whatever the batch, the accumulation and the padding.
Table: the looked-up weights move, with one norm over all tables and the gradient of the whole window; occurrences of a character
share the move. Weights are restored from a copy, not by subtracting what was added, which would not give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from hanzoo.errors import RunError
from hanzoo.models.model import AttackPoint, Model, Settings
from hanzoo.training.distributed import sum_integers, sum_tensor
from hanzoo.training.trick import Backward, SampleDraw, Trick, Window

MAX_UNMOVED = 20  # steps from the start of a training: as many as may have a gradient that is not finite

SAME_INPUT = "both attack the same input"


class InputAttackSettings(Settings):
    """Fields of every attack.

    Attributes:
        target: what moves.
        norm: what the lengths of the attack are measured in. absolute: L2 norms. relative: shares of the L2 norm of the sample's
            own embedding over all its positions (activations), or of the rows that the window uses (table), so that one value
            serves long and short texts and any width and scale of the vectors; 0.02 to 0.1 is usual.
    """

    lengths: ClassVar[tuple[str, ...]] = ()  # the fields that are such norms

    target: Literal["activations", "table"] = "activations"
    norm: Literal["absolute", "relative"] = "absolute"

    @model_validator(mode="after")
    def _shares_are_below_one(self) -> Self:
        for name in self.lengths:
            if self.norm == "relative" and getattr(self, name) >= 1:
                raise ValueError(
                    f"{name} must be below 1 where norm is relative (a share of the embedding's norm), but is "
                    f"{getattr(self, name)!r}. Usual are 0.02 to 0.1."
                )
        return self


class AttackSettings(InputAttackSettings):
    """Fields of the attacks that train on the clean input too.

    Attributes:
        epsilon: norm of the perturbation: of a sample (activations), or of all tables together (table).
        adversarial_weight: share of the adversarial loss; the clean loss has the rest. 0.5 = their mean.
    """

    lengths: ClassVar[tuple[str, ...]] = ("epsilon",)

    epsilon: float = Field(default=1.0, ge=0.0)
    adversarial_weight: float = Field(default=0.5, gt=0.0, le=1.0)


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _num_samples(point: AttackPoint) -> int:
    return len(point.samples) if point.num_samples is None else point.num_samples


class Perturbation:
    """Adds a perturbation to the outputs of a batch's attack points while it is entered.

    The first forward pass inside makes the perturbations, which take part in the gradient; `ascend` moves them. They begin as zero,
    or with a random start: U(-1, 1) * start / sqrt(n d) at each of a sample's n d numbers (Zhu et al. 2020), a norm of about
    start / sqrt(3). Several points share the square of that norm evenly; where it is relative, each has the share of its own
    embedding. A model that is run twice inside (R-Drop) gets the same perturbation both times.

    Args:
        points: where it is added.
        relative: lengths are shares of the norm of each sample's embedding, as the first pass sees it.
        start: length of the random start; 0 = none.
        draw: one generator a sample, for the start.
    """

    def __init__(
        self,
        points: Mapping[str, AttackPoint],
        *,
        relative: bool = False,
        start: float = 0.0,
        draw: SampleDraw | None = None,
    ) -> None:
        self.points = points
        self.relative = relative
        self.deltas: dict[str, Tensor] = {}
        self._start = start
        self._draw = draw
        self._embedded: dict[str, Tensor] = {}  # squares of each sample's clean embedding
        self._num_samples = max((_num_samples(point) for point in points.values()), default=0)
        self._hooks: list[Any] = []

    def __enter__(self) -> Perturbation:
        for name, point in self.points.items():
            self._hooks.append(point.module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *_: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _hook(self, name: str) -> Any:
        def add(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            if name not in self.deltas:
                with torch.no_grad():
                    self._embedded[name] = self._squares_of(name, output)
                    first = self._first(name, output)
                self.deltas[name] = first.requires_grad_()
            return output + self.deltas[name].to(output.dtype)

        return add

    def _first(self, name: str, output: Tensor) -> Tensor:
        """Where the perturbation of a point starts."""
        nothing = torch.zeros_like(output, dtype=_at_least_float32(output))
        if self._start == 0:
            return nothing
        if self._draw is None:
            raise RuntimeError("attack: a random start needs the draw of the micro-batch, but it has none")
        # drawn for the positions of a sample in their order: the same whatever the padding and the company
        samples = self.points[name].samples.reshape(-1).cpu().numpy()
        dimension = output.shape[-1]
        noise = np.zeros((len(samples), dimension), dtype=np.float32)
        for sample in range(self._num_samples):
            places = np.flatnonzero(samples == sample)
            drawn = self._draw(f"attack {name}", sample).random((len(places), dimension), dtype=np.float32)
            noise[places] = drawn * 2 - 1
        counts = {other: self._counts(other) for other in self.points}
        numbers = (counts[name] * dimension).clamp_min(1)
        if self.relative:
            scale = self._start * (self._embedded[name] / numbers).sqrt()
        else:
            sharing = sum((count > 0).to(torch.float32) for count in counts.values())
            scale = self._start / (numbers * sharing).sqrt()
        return torch.from_numpy(noise).to(nothing).reshape(nothing.shape) * self._spread(name, scale)

    def leaves(self) -> list[Tensor]:
        """The perturbations, for a backward pass that shall reach nothing else."""
        return list(self.deltas.values())

    def squared_gradients(self, values: Tensor) -> Tensor:
        """Squared L2 norm of each sample's gradient of the values' sum, (samples,) float; it can be differentiated itself.

        Raises:
            RuntimeError: as `ascend`.
        """
        self._require_reached()
        found = torch.autograd.grad(values.sum(), self.leaves(), create_graph=True, allow_unused=True)
        gradients = dict(zip(self.deltas, found, strict=True))
        for name, gradient in gradients.items():
            if gradient is None:
                raise RuntimeError(f"attack: the loss does not depend on the attack point {name}")
        return self._squares(gradients)

    def _require_reached(self) -> None:
        if set(self.deltas) != set(self.points):
            missing = sorted(set(self.points) - set(self.deltas))
            raise RuntimeError(
                f"attack: these attack points were not reached by the forward pass: {', '.join(missing)}"
            )

    @torch.no_grad()
    def ascend(self, step: float, radius: float) -> Tensor:
        """Move each sample's perturbation by `step` along its gradient, project it to a ball, and forget the gradients.

        Samples whose gradient is zero or not finite stay where they are.

        Returns:
            (samples,) bool: whose gradient had a direction.

        Raises:
            RuntimeError: no forward pass reached an attack point: the attack would be a no-op.
        """
        self._require_reached()
        gradients = {name: delta.grad for name, delta in self.deltas.items()}
        norms = self._norms({name: grad for name, grad in gradients.items() if grad is not None})
        unit = torch.ones_like(norms)
        if self.relative:
            unit = torch.stack(list(self._embedded.values())).sum(dim=0).sqrt()
        directed = (norms > 0) & norms.isfinite()
        scale = torch.where(directed, step * unit / norms, torch.zeros_like(norms))
        moved: dict[str, Tensor] = {}
        for name, delta in self.deltas.items():
            gradient = gradients[name]
            if gradient is None:
                raise RuntimeError(f"attack: the loss does not depend on the attack point {name}")
            factor = self._spread(name, scale)
            moved[name] = delta + torch.where(factor > 0, gradient * factor, torch.zeros_like(gradient))
        lengths = self._norms(moved)
        shrink = torch.where(lengths > radius * unit, radius * unit / lengths, torch.ones_like(lengths))
        for name, delta in moved.items():
            self.deltas[name] = (delta * self._spread(name, shrink)).requires_grad_()
        return directed

    def freeze(self) -> None:
        """Take no more gradients: what is added from now on is a constant."""
        self.deltas = {name: delta.detach() for name, delta in self.deltas.items()}

    def _counts(self, name: str) -> Tensor:
        """Positions of each sample at a point, (samples,) float32."""
        samples = self.points[name].samples.reshape(-1)
        ones = (samples >= 0).to(torch.float32)
        return ones.new_zeros(self._num_samples).index_add_(0, samples.clamp_min(0), ones)

    def _squares_of(self, name: str, tensor: Tensor) -> Tensor:
        """The square of each sample's norm at a point, (samples,) float32."""
        samples = self.points[name].samples.reshape(-1)
        squares = tensor.to(_at_least_float32(tensor)).square().sum(dim=-1).reshape(-1) * (samples >= 0)
        return squares.new_zeros(self._num_samples).index_add(0, samples.clamp_min(0), squares)

    def _squares(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The square of each sample's norm over all points, (samples,) float32 or wider."""
        return torch.stack([self._squares_of(name, tensor) for name, tensor in tensors.items()]).sum(dim=0)

    def _norms(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return self._squares(tensors).sqrt()

    def _spread(self, name: str, values: Tensor) -> Tensor:
        samples = self.points[name].samples
        return (values[samples.clamp_min(0)] * (samples >= 0)).unsqueeze(-1)


class MovedTables:
    """Embedding tables that can be moved and come back bit for bit.

    Args:
        tables: which.
        relative: lengths are shares of the norm of the rows that the first gradients reach.
    """

    def __init__(self, tables: Sequence[nn.Parameter], *, relative: bool = False) -> None:
        self.tables = list(tables)
        self.relative = relative
        self._saved: list[Tensor] | None = None
        self._unit: Tensor | None = None

    def __enter__(self) -> MovedTables:
        self._saved = [table.detach().clone() for table in self.tables]
        return self

    def __exit__(self, *_: object) -> None:
        assert self._saved is not None
        with torch.no_grad():
            for table, saved in zip(self.tables, self._saved, strict=True):
                table.copy_(saved)

    @torch.no_grad()
    def ascend(self, gradients: Sequence[Tensor], step: float, radius: float) -> Tensor:
        """Move all tables by `step` along the gradients (one norm over all), projected to a ball around where they were.

        Returns:
            (1,) bool: whether the gradients had a direction; without one nothing moves.
        """
        assert self._saved is not None
        norm = _norm(gradients)
        if self._unit is None:
            used = [gradient.ne(0).any(dim=1, keepdim=True) for gradient in gradients]
            rows = [torch.where(row, saved, 0.0) for row, saved in zip(used, self._saved, strict=True)]
            self._unit = _norm(rows) if self.relative else torch.ones_like(norm)
        directed = (norm > 0) & norm.isfinite()
        moves = [
            table - saved + torch.where(directed, gradient * (step * self._unit / norm), 0.0)
            for table, saved, gradient in zip(self.tables, self._saved, gradients, strict=True)
        ]
        length = _norm(moves)
        shrink = torch.where(length > radius * self._unit, radius * self._unit / length, torch.ones_like(length))
        for table, saved, move in zip(self.tables, self._saved, moves, strict=True):
            table.copy_(saved + move * shrink)
        return directed.reshape(1)


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norm of all numbers of all tensors."""
    return torch.stack([tensor.to(_at_least_float32(tensor)).square().sum() for tensor in tensors]).sum().sqrt()


class Attack(Trick):
    """What the attacks have in common as tricks: they find what moves, and notice when nothing does."""

    rank: ClassVar[int] = 10

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self._directed: list[Tensor] = []  # for each step not counted yet: how many samples had a direction
        self._steps = 0
        self._unmoved = 0
        self._said = False

    @classmethod
    def excluded_with(cls, settings: Any) -> Mapping[str, str]:
        if settings.target != "table":
            return cls.excludes
        return {**cls.excludes, "model.freeze_epochs": "a frozen table has no gradient to move along"}

    def perturbations(self, window: Window, model: Model, start: float = 0.0) -> list[Perturbation]:
        """One perturbation a micro-batch, not yet made."""
        relative = self.settings.norm == "relative"
        return [
            Perturbation(model.attack_points(micro.batch), relative=relative, start=start, draw=micro.draw)
            for micro in window
        ]

    def move_activations(
        self, window: Window, moves: Sequence[Perturbation], step: float, radius: float, *, first: bool
    ) -> None:
        """Let all perturbations of a window ascend once, for the first time in it or again."""
        directed = [move.ascend(step, radius) for move in moves]
        if first and step > 0 and radius > 0:
            counted = [samples.sum() * micro.counted for micro, samples in zip(window, directed, strict=True)]
            self._directed.append(torch.stack(counted).sum())

    def move_tables(
        self, moved: MovedTables, gradients: Sequence[Tensor], step: float, radius: float, *, first: bool
    ) -> None:
        """Let the tables ascend once along the gradients of this rank's micro-batches."""
        # of the whole window on all ranks: a direction of one rank's own would move its table elsewhere
        directed = moved.ascend([sum_tensor(gradient) for gradient in gradients], step, radius)
        if first and step > 0 and radius > 0:
            self._directed.append(directed.sum())

    def tables(self, window: Window, model: Model) -> list[nn.Parameter]:
        """The tables that can move. Raises RuntimeError where there is none."""
        points = model.attack_points(window[0].batch).values()
        found = [point.table for point in points if point.table is not None and point.table.requires_grad]
        tables = list(dict.fromkeys(found))  # two points may look up one table
        if not tables:
            raise RuntimeError(
                "attack: target 'table' needs an embedding table that is trained, but no attack point of this model has one"
            )
        return tables

    def notes(self) -> list[str]:
        self._read()
        name = type(self).__name__
        # a loss that has reached 0 has no direction either: once something has moved, such a step is let pass
        if self._unmoved == self._steps >= MAX_UNMOVED:
            raise RunError(
                f"train.tricks: {name} must move the embedded input, but in its first {self._steps} steps nothing moved: every "
                "gradient there is 0 or not finite. Lower train.optimizer.learning_rate, set train.precision=float32, or leave "
                "the attack out."
            )
        if self._said or not self._unmoved:
            return []
        self._said = True
        counts = f"{self._unmoved} of {self._steps} steps"
        reason = "every gradient there was 0 or not finite"
        return [f"{name}: in {counts} so far nothing moved, since {reason} (said once)"]

    def state(self) -> Mapping[str, Tensor]:
        self._read()
        return {"moves": torch.tensor([self._steps, self._unmoved, int(self._said)])}

    def load_state(self, tensors: Mapping[str, Tensor], model: Model) -> None:
        steps, unmoved, said = tensors["moves"].tolist()
        self._steps, self._unmoved, self._said = int(steps), int(unmoved), bool(said)

    def _read(self) -> None:
        """Count what has not been counted yet: here and not at each step, where the host would have to wait for the device."""
        directed = sum_integers(torch.stack(self._directed).tolist()) if self._directed else []
        self._directed = []
        self._steps += len(directed)
        self._unmoved += directed.count(0)


class CleanAndAdversarial(Attack):
    """Trains on the input as it is, and on the input after all ascents: FGM, PGD."""

    def attack(
        self, backward: Backward, model: Model, *, num_steps: int, step_size: float, random_start: bool = False
    ) -> Backward:
        """Wrap a backward pass by an attack of `num_steps` ascents, each of `step_size`, inside a ball of `epsilon`.

        The clean pass leaves (1 - adversarial_weight) of its gradient in the parameters, the last pass adversarial_weight of
        the one at the moved input; ascents between leave none. Where the clean pass says no direction (adversarial_weight 1: a
        loss times 0 has none; a random start: the ascent begins elsewhere) one more ascent is made.
        """
        weight, radius = self.settings.adversarial_weight, self.settings.epsilon
        start = radius if random_start else 0.0
        directed = weight < 1 and not random_start
        # where there is no other clean pass, the first ascent is logged as the one that it is
        kinds = ["clean" if weight == 1 and ascent == 0 else "ascent" for ascent in range(num_steps)]

        def on_activations(window: Window) -> None:
            moves = self.perturbations(window, model, start)
            # gradients are scaled by the weight of the pass; the direction is not, since it is normalised
            clean = [replace(m, weight=m.weight * (1 - weight), last=False) for m in window]
            if directed:
                backward([m.inside(move) for m, move in zip(clean, moves, strict=True)])
            elif weight < 1:
                backward(clean)
            for ascent in range(num_steps):
                if ascent or not directed:
                    backward([
                        m.inside(move, kind=kinds[ascent], inputs=move.leaves, last=False)
                        for m, move in zip(window, moves, strict=True)
                    ])  # fmt: skip
                self.move_activations(window, moves, step_size, radius, first=ascent == 0)
            for move in moves:
                move.freeze()
            backward([
                m.inside(move, weight=m.weight * weight, kind="adversarial")
                for m, move in zip(window, moves, strict=True)
            ])  # fmt: skip

        def on_tables(window: Window) -> None:
            tables = self.tables(window, model)
            if weight < 1:
                backward([replace(m, weight=m.weight * (1 - weight), last=False) for m in window])
            with MovedTables(tables, relative=self.settings.norm == "relative") as moved:
                for ascent in range(num_steps):
                    kept = [table.grad for table in tables]
                    if ascent or not directed:
                        for table in tables:
                            table.grad = None
                        backward([replace(m, kind=kinds[ascent], inputs=lambda: tables, last=False) for m in window])
                    gradients = gradients_of(tables)
                    for table, gradient in zip(tables, kept, strict=True):
                        table.grad = gradient
                    self.move_tables(moved, gradients, step_size, radius, first=ascent == 0)
                backward([replace(m, weight=m.weight * weight, kind="adversarial") for m in window])

        return on_activations if self.settings.target == "activations" else on_tables


def gradients_of(tables: Sequence[nn.Parameter]) -> list[Tensor]:
    """The gradients that stand in the tables, zeros where there are none."""
    return [torch.zeros_like(table) if table.grad is None else table.grad for table in tables]
