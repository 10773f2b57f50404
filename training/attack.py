"""What FGM and PGD share: moving the embeddings of a batch, or the embedding tables, along the gradient of the loss.

Activations: a perturbation is added to the output of each attack point by a forward hook. One norm a sample, over all its
embedded positions and all points together, so it is the same whatever the batch, the accumulation and the padding.
Table: the looked-up weights move, with one norm over all tables and the gradient of the whole window; occurrences of a character
share the move. Weights are restored from a copy, not by subtracting what was added, which would not give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hanzoo.errors import RunError
from hanzoo.models.model import AttackPoint, Model, Settings
from hanzoo.training.distributed import sum_tensor
from hanzoo.training.trick import Backward, Window

MAX_UNMOVED = 20  # steps from the start of a training: as many as may have a gradient that is not finite


class AttackSettings(Settings):
    """Fields that every attack has.

    Attributes:
        epsilon: L2 norm of the perturbation: of a sample (activations), or of all tables together (table).
        target: what moves.
        adversarial_weight: share of the adversarial loss; the clean loss has the rest. 0.5 = their mean.
    """

    epsilon: float = Field(default=1.0, ge=0.0)
    target: Literal["activations", "table"] = "activations"
    adversarial_weight: float = Field(default=0.5, gt=0.0, le=1.0)


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


class Perturbation:
    """Adds a perturbation to the outputs of a batch's attack points while it is entered.

    The first forward pass inside makes perturbations of zero, which take part in the gradient; `ascend` moves them. A model
    that is run twice inside (R-Drop) gets the same perturbation both times.
    """

    def __init__(self, points: Mapping[str, AttackPoint]) -> None:
        self.points = points
        self.deltas: dict[str, Tensor] = {}
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
                self.deltas[name] = torch.zeros_like(output, dtype=_at_least_float32(output), requires_grad=True)
            return output + self.deltas[name].to(output.dtype)

        return add

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
            () bool: whether any sample moved.

        Raises:
            RuntimeError: no forward pass reached an attack point: the attack would be a no-op.
        """
        self._require_reached()
        gradients = {name: delta.grad for name, delta in self.deltas.items()}
        norms = self._norms({name: grad for name, grad in gradients.items() if grad is not None})
        scale = torch.where((norms > 0) & norms.isfinite(), step / norms, torch.zeros_like(norms))
        moved: dict[str, Tensor] = {}
        for name, delta in self.deltas.items():
            gradient = gradients[name]
            if gradient is None:
                raise RuntimeError(f"attack: the loss does not depend on the attack point {name}")
            factor = self._spread(name, scale)
            moved[name] = delta + torch.where(factor > 0, gradient * factor, torch.zeros_like(gradient))
        lengths = self._norms(moved)
        shrink = torch.where(lengths > radius, radius / lengths, torch.ones_like(lengths))
        for name, delta in moved.items():
            self.deltas[name] = (delta * self._spread(name, shrink)).requires_grad_()
        return (scale > 0).any()

    def freeze(self) -> None:
        """Take no more gradients: what is added from now on is a constant."""
        self.deltas = {name: delta.detach() for name, delta in self.deltas.items()}

    def _norms(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return self._squares(tensors).sqrt()

    def _squares(self, tensors: Mapping[str, Tensor]) -> Tensor:
        total: Tensor | None = None
        for name, tensor in tensors.items():
            samples = self.points[name].samples.reshape(-1)
            rows = int(self.points[name].samples.shape[0])
            squares = tensor.to(_at_least_float32(tensor)).square().sum(dim=-1).reshape(-1) * (samples >= 0)
            part = squares.new_zeros(rows).index_add(0, samples.clamp_min(0), squares)
            total = part if total is None else total + part
        assert total is not None
        return total

    def _spread(self, name: str, values: Tensor) -> Tensor:
        samples = self.points[name].samples
        return (values[samples.clamp_min(0)] * (samples >= 0)).unsqueeze(-1)


class MovedTables:
    """Embedding tables that can be moved and come back bit for bit."""

    def __init__(self, tables: Sequence[nn.Parameter]) -> None:
        self.tables = list(tables)
        self._saved: list[Tensor] | None = None

    def __enter__(self) -> MovedTables:
        self._saved = [table.detach().clone() for table in self.tables]
        return self

    def __exit__(self, *_: object) -> None:
        assert self._saved is not None
        with torch.no_grad():
            for table, saved in zip(self.tables, self._saved, strict=True):
                table.copy_(saved)

    @torch.no_grad()
    def ascend(self, gradients: Sequence[Tensor], step: float, radius: float) -> bool:
        """Move all tables by `step` along the gradients (one norm over all), projected to a ball around where they were.

        Returns:
            Whether they moved: not where the gradient is zero or not finite.
        """
        assert self._saved is not None
        norm = torch.stack([gradient.float().square().sum() for gradient in gradients]).sum().sqrt()
        if not torch.isfinite(norm) or norm == 0:
            return False
        moves = [
            table - saved + gradient * (step / norm)
            for table, saved, gradient in zip(self.tables, self._saved, gradients, strict=True)
        ]
        length = torch.stack([move.square().sum() for move in moves]).sum().sqrt()
        shrink = torch.where(length > radius, radius / length, torch.ones_like(length))
        for table, saved, move in zip(self.tables, self._saved, moves, strict=True):
            table.copy_(saved + move * shrink)
        return True


class Watch:
    """Fails an attack that moves nothing from its start on, which would cost its passes and be none.

    A loss that has reached 0 has no direction either, so once something has moved, a step without a move is let pass.
    """

    def __init__(self, epsilon: float) -> None:
        self.waiting = epsilon > 0
        self.unmoved = 0

    def see(self, moved: Tensor | bool) -> None:
        """Take in whether a step moved anything; the first steps read it from the device, later ones do not.

        Raises:
            RunError: none of the first MAX_UNMOVED steps did.
        """
        if not self.waiting:
            return
        self.waiting = not moved
        self.unmoved += 1
        if self.waiting and self.unmoved >= MAX_UNMOVED:
            raise RunError(
                f"train.tricks: an attack must move the embedded input, but in its first {MAX_UNMOVED} steps nothing moved: every "
                "gradient there is 0 or not finite. Lower train.optimizer.learning_rate, set train.precision=float32, or leave "
                "the attack out."
            )


def attack(backward: Backward, model: Model, settings: AttackSettings, *, num_steps: int, step_size: float) -> Backward:
    """Wrap a backward pass by an attack of `num_steps` ascents, each of `step_size`, inside a ball of `settings.epsilon`.

    The clean pass leaves (1 - adversarial_weight) of its gradient in the parameters, the last pass adversarial_weight of
    the one at the moved input; ascents between leave none. Where the clean pass would leave nothing (adversarial_weight 1) it is
    an ascent too (and logged as the clean pass that it is): a loss times 0 has no direction.
    """
    weight = settings.adversarial_weight
    watch = Watch(settings.epsilon)

    def on_activations(window: Window) -> None:
        moves = [Perturbation(model.attack_points(micro.batch)) for micro in window]
        # gradients are scaled by the weight of the pass; the direction is not, since it is normalised
        if weight < 1:
            backward([
                m.inside(move, weight=m.weight * (1 - weight), last=False)
                for m, move in zip(window, moves, strict=True)
            ])  # fmt: skip
        for ascent in range(num_steps):
            if ascent or weight == 1:
                backward([
                    m.inside(move, kind="ascent" if ascent else "clean", inputs=move.leaves, last=False)
                    for m, move in zip(window, moves, strict=True)
                ])  # fmt: skip
            moved = [move.ascend(step_size, settings.epsilon) for move in moves]
            if ascent == 0 and window[0].counted:
                watch.see(torch.stack(moved).any())
        for move in moves:
            move.freeze()
        backward([
            m.inside(move, weight=m.weight * weight, kind="adversarial") for m, move in zip(window, moves, strict=True)
        ])  # fmt: skip

    def on_tables(window: Window) -> None:
        points = [point for micro in window[:1] for point in model.attack_points(micro.batch).values()]
        tables = [point.table for point in points if point.table is not None]
        if not tables:
            raise RuntimeError(
                "attack: target 'table' needs an embedding table, but no attack point of this model has one"
            )
        if weight < 1:
            backward([replace(m, weight=m.weight * (1 - weight), last=False) for m in window])
        with MovedTables(tables) as moved:
            for ascent in range(num_steps):
                kept = [table.grad for table in tables]
                if ascent or weight == 1:
                    for table in tables:
                        table.grad = None
                    kind = "ascent" if ascent else "clean"
                    backward([replace(m, kind=kind, inputs=lambda: tables, last=False) for m in window])
                # of the whole window on all ranks: a direction of one rank's own would move its table elsewhere
                gradients = [
                    sum_tensor(torch.zeros_like(table) if table.grad is None else table.grad) for table in tables
                ]
                for table, gradient in zip(tables, kept, strict=True):
                    table.grad = gradient
                has_moved = moved.ascend(gradients, step_size, settings.epsilon)
                if ascent == 0:
                    watch.see(has_moved)
            backward([replace(m, weight=m.weight * weight, kind="adversarial") for m in window])

    return on_activations if settings.target == "activations" else on_tables
