"""One loop for every model. It knows `Model`, and neither a model nor a trick by name.

    for step in range(start, num_steps):
        window = the step's micro-batches                       # known beforehand: the plan = f(seed, epoch, lengths)
        units  = per part: sum of batch.num_units over the window
        backward(window)                                        # wrapped by FGM, PGD
            for micro in window:
                reseed(seed, step, micro.index)
                values = loss(micro.batch)                      # wrapped by R-Drop
                (sum over parts: micro.weight * values.sum() / units[part]).backward()
        clip, optimizer, after_step
        at the end of an epoch: evaluate, keep the best, save; every `save_every` steps: save

Resuming needs the step number, weights, optimizer slots and the best so far: nothing random has a state. A half-done window is
never saved; it is done again in full.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from hanzoo.data.batching import num_windows, plan_epoch
from hanzoo.data.randomness import generator, reseed
from hanzoo.errors import RunError
from hanzoo.models.model import Model, Settings
from hanzoo.training.checkpoint import read_state, storage_error, write_folder, write_state
from hanzoo.training.optimizers import OptimizerSettings, build_optimizer
from hanzoo.training.progress import Reporter
from hanzoo.training.schedules import linear
from hanzoo.training.trick import Backward, Loss, LossFunction, MicroBatch, Trick, Window


class TrainSettings(Settings):
    """The `train` section of a recipe.

    Attributes:
        epochs: passes over train; the schedule reaches 0 after the last.
        batch_size: sentences (or pairs) a micro-batch.
        accumulation: micro-batches an optimizer step; N of them equal one big batch.
        clip: largest global L2 norm of the gradient; 0 = no clipping.
        warmup: share of all steps until the peak rate.
        patience: epochs without a better dev figure after which training stops; 0 = never.
        precision: float32, or bfloat16 autocast (weights, gradients, optimizer and the CRF stay float32).
        seed: of everything random.
        device: auto takes CUDA where it is there, else the CPU.
        threads: of torch on the CPU; 0 leaves its choice. Part of what exact resume needs.
        log_every: steps between two records of the training loss.
        save_every: steps between two saved states; 0 = after each epoch only.
        optimizer: see there.
        tricks: by file name in training/tricks/.
    """

    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=32, ge=1)
    accumulation: int = Field(default=1, ge=1)
    clip: float = Field(default=5.0, ge=0.0)
    warmup: float = Field(default=0.05, ge=0.0, lt=1.0)
    patience: int = Field(default=0, ge=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = Field(default=1, ge=0)
    device: str = "auto"
    threads: int = Field(default=0, ge=0, le=1024)
    log_every: int = Field(default=50, ge=1)
    save_every: int = Field(default=0, ge=0)
    optimizer: OptimizerSettings = OptimizerSettings()
    tricks: dict[str, dict[str, Any] | None] = Field(default_factory=dict)


class Interrupted(Exception):  # noqa: N818 - not an error: the run is saved and can go on
    """Ctrl-C or SIGTERM: the step was finished and saved.

    Attributes:
        signal_number: 2 or 15; the exit code is 128 + it.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by signal {signal_number}")
        self.signal_number = signal_number


@dataclass
class Progress:
    """Where a training stands: all of it is saved and comes back.

    Attributes:
        step: optimizer steps done.
        best: the selecting metric at its best; None before the first evaluation.
        best_step: step and
        best_epoch: epochs done when it was reached.
        waited: evaluations since.
        nonfinite: steps that were left out because the gradient was not finite.
        seconds: spent in training and evaluation, over all starts.
        training_seconds: spent in steps alone, all but the first, which compiles;
        trained_units: units trained in them.
        losses: sums of the current log period, by "part" or "kind part".
        units: units of the current log period, likewise.
        metrics_bytes: length of metrics.jsonl.
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    best_epoch: int = 0
    waited: int = 0
    nonfinite: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    trained_units: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)
    metrics_bytes: int = 0


def _finite(value: Any) -> Any:
    """The same JSON value with null for numbers that JSON has no form for."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


MAX_NONFINITE = 20  # steps in all: more means that the training has diverged


class Trainer:
    """Trains a model in a run directory.

    Args:
        model: on the device it shall train on.
        features: of the training items.
        settings: the recipe's `train` section.
        tricks: in the order in which they wrap.
        evaluate: figures of the model on dev; `metric` is one of them, larger = better.
        metric: what selects the best epoch.
        folder: the run directory: metrics.jsonl, model/ and state/ are written there.
        identity: what a resumed run must agree in (data hashes, versions, threads); exact keys are refused when they differ.
        resume: go on from the newest state.
    """

    def __init__(
        self,
        model: Model,
        features: Sequence[Any],
        settings: TrainSettings,
        tricks: Sequence[Trick],
        evaluate: Callable[[Model], Mapping[str, Any]],
        metric: str,
        folder: Path,
        identity: Mapping[str, Mapping[str, Any]],
        resume: bool = False,
    ) -> None:
        self.model = model
        self.features = features
        self.settings = settings
        self.evaluate = evaluate
        self.tricks = tricks
        self.metric = metric
        self.folder = folder
        self.identity = identity
        self.optimizer = build_optimizer(model, settings.optimizer)
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.steps_per_epoch = num_windows(
            len(features), batch_size=settings.batch_size, accumulation=settings.accumulation
        )
        self.num_steps = settings.epochs * self.steps_per_epoch
        self.reporter = Reporter(self.num_steps, settings.log_every)
        self.progress = Progress()
        self.best_weights: dict[str, Tensor] = {}
        self.saved_step = -1
        self._signal = 0
        self._sums: dict[str, Tensor] = {}
        self._log_started = time.monotonic()
        self._log_units = 0
        self._warm = False

        self.loss: LossFunction = self._loss
        for trick in tricks:
            self.loss = trick.wrap_loss(self.loss, model)
        self.backward: Backward = self._backward
        for trick in tricks:
            self.backward = trick.wrap_backward(self.backward, model)
        if resume:
            self._restore()

    # The loop.

    def fit(self) -> Progress:
        """Train to the end; the model then has its best weights.

        Raises:
            Interrupted: a signal came; the state is saved.
            StorageError: no room; the last good state is still there.
        """
        started = time.monotonic() - self.progress.seconds
        with self.reporter, self._signals():
            while self.progress.step < self.num_steps and not self._patience_is_over():
                epoch, first = divmod(self.progress.step, self.steps_per_epoch)
                for window in self._plan(epoch)[first:]:
                    self._step(epoch, window)
                    self.progress.seconds = time.monotonic() - started
                    end_of_epoch = self.progress.step % self.steps_per_epoch == 0
                    if end_of_epoch:
                        self._evaluate(epoch + 1)
                    save_every = self.settings.save_every
                    signal_number = (
                        self._signal
                    )  # read once: it may come at any moment, also between saving and stopping
                    if end_of_epoch or signal_number or (save_every and self.progress.step % save_every == 0):
                        self._save()
                    if signal_number:
                        raise Interrupted(signal_number)
        self.model.load_state_dict(self.best_weights, strict=False)
        self.model.eval()
        return self.progress

    def _step(self, epoch: int, items: list[list[int]]) -> None:
        step, started = self.progress.step, time.monotonic()
        self.model.train()
        window = [
            MicroBatch(index, self._collate(step, index, numbers).to(self.model.device))
            for index, numbers in enumerate(items)
        ]
        self._units = {part: sum(micro.batch.num_units[part] for micro in window) for part in window[0].batch.num_units}
        self.optimizer.zero_grad(set_to_none=True)
        self.backward(window)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip or float("inf"))
        rate = self.settings.optimizer.learning_rate * linear(
            step, self.num_steps, round(self.settings.warmup * self.num_steps)
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        if torch.isfinite(norm):
            self.optimizer.step()
            for trick in self.tricks:
                trick.after_step(self.model)
        else:
            self._count_nonfinite()
        self.model.after_step()
        self.progress.step += 1
        self._log_units += max(self._units.values())
        if self._warm:
            self.progress.training_seconds += time.monotonic() - started
            self.progress.trained_units += max(self._units.values())
        self._warm = True
        if self.progress.step % self.settings.log_every == 0:
            self._log(epoch, rate, float(norm))

    def _backward(self, window: Window) -> None:
        for micro in window:
            reseed(self.settings.seed, "dropout", self.progress.step, 0, micro.index)
            with ExitStack() as contexts:
                for context in micro.contexts:
                    contexts.enter_context(context)
                values = self.loss(micro.batch).values
                total = torch.stack([values[part].sum() / self._units[part] for part in values]).sum()
                # after the forward pass: an attack's leaves exist only now
                torch.autograd.backward(
                    total * micro.weight, inputs=None if micro.inputs is None else list(micro.inputs())
                )
            for part, value in values.items():
                name = part if micro.kind == "clean" else f"{micro.kind} {part}"
                self._sums[name] = self._sums.get(name, 0.0) + value.detach().sum().double()
                self.progress.units[name] = self.progress.units.get(name, 0) + len(value)

    def _loss(self, batch: Any) -> Loss:
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            output = self.model(batch)
        return Loss(self.model.losses(output, batch), output)

    def _collate(self, step: int, index: int, numbers: list[int]) -> Any:
        def draw(item: int) -> Any:
            return generator(self.settings.seed, "input", step, index, item)

        return self.model.collate([self.features[i] for i in numbers], draw, numbers)

    def _plan(self, epoch: int) -> list[list[list[int]]]:
        return plan_epoch(
            [item.length for item in self.features],
            generator(self.settings.seed, "plan", epoch),
            batch_size=self.settings.batch_size,
            accumulation=self.settings.accumulation,
        )

    def _patience_is_over(self) -> bool:
        return bool(self.settings.patience) and self.progress.waited >= self.settings.patience

    def _count_nonfinite(self) -> None:
        self.progress.nonfinite += 1
        self.reporter.say(f"step {self.progress.step}: the gradient is not finite; the step is left out")
        if self.progress.nonfinite > MAX_NONFINITE:
            raise self._diverged("the gradient must be finite")

    def _diverged(self, what: str) -> RunError:
        return RunError(
            f"{self.folder}: {what}, but the training has diverged ({self.progress.nonfinite} of {self.progress.step} steps had "
            "a gradient that is not finite). Lower train.optimizer.learning_rate or set train.clip."
        )

    # Figures.

    def _log(self, epoch: int, rate: float, norm: float) -> None:
        self._gather_sums()
        now = time.monotonic()
        speed = self._log_units / max(now - self._log_started, 1e-9)
        losses = {name: total / self.progress.units[name] for name, total in self.progress.losses.items()}
        main = sum(value for name, value in losses.items() if " " not in name)
        record = {"step": self.progress.step, "epoch": epoch + 1, "loss": main, "losses": losses, "learning_rate": rate,
                  "gradient_norm": norm, "units_per_second": round(speed, 1)}  # fmt: skip
        self._record(record)
        self.reporter.step(self.progress.step, loss=main, rate=rate, units_per_second=speed, epoch=epoch + 1)
        self.progress.losses, self.progress.units = {}, {}
        self._log_started, self._log_units = now, 0

    def _gather_sums(self) -> None:
        for name, total in self._sums.items():
            self.progress.losses[name] = self.progress.losses.get(name, 0.0) + float(total)
        self._sums = {}

    def _evaluate(self, epoch: int) -> None:
        started = time.monotonic()
        with ExitStack() as weights:
            for trick in self.tricks:
                weights.enter_context(trick.evaluation_weights(self.model))
            self._judge(epoch)
        self._log_started += time.monotonic() - started  # not training time

    def _judge(self, epoch: int) -> None:
        finite = all(bool(parameter.isfinite().all()) for parameter in self.model.parameters())
        if not finite or self.progress.nonfinite >= self.progress.step:
            raise self._diverged("the weights must be finite" if not finite else "a step must change the weights")
        figures = dict(self.evaluate(self.model))
        value = float(figures[self.metric])
        better = self.progress.best is None or value > self.progress.best
        self._record({"step": self.progress.step, "epoch": epoch, "dev": figures, "best": better})
        shown = " ".join(f"{name} {figure:.4f}" for name, figure in figures.items() if isinstance(figure, float))
        self.reporter.say(f"epoch {epoch}/{self.settings.epochs} dev {shown}{' (best)' if better else ''}")
        if better:
            self.progress.best, self.progress.best_step, self.progress.best_epoch = value, self.progress.step, epoch
            self.progress.waited = 0
            self.best_weights = {name: p.detach().clone() for name, p in self.model.named_parameters()}
            write_folder(self.folder / "model", self.model.save)
        else:
            self.progress.waited += 1

    def _record(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n"
        path = self.folder / "metrics.jsonl"
        try:
            with path.open("ab") as file:
                file.write(line.encode())
        except OSError as error:
            raise storage_error(path, error) from error
        self.progress.metrics_bytes += len(line.encode())

    # Saving and going on.

    def _save(self) -> None:
        if self.saved_step == self.progress.step:
            return
        self._gather_sums()
        tensors = {f"weights/{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self.best_weights.items()}
        tensors |= {f"training/{name}": tensor for name, tensor in self.model.training_state().items()}
        for trick in self.tricks:
            tensors |= {f"tricks/{type(trick).__name__}/{name}": tensor for name, tensor in trick.state().items()}
        for parameter, slots in self.optimizer.state.items():
            for slot, tensor in slots.items():
                if isinstance(tensor, Tensor):
                    tensors[f"optimizer/{self.names[id(parameter)]}/{slot}"] = tensor
        values = {"progress": asdict(self.progress), "identity": self.identity}
        write_state(self.folder / "state" / f"{self.progress.step:08d}", tensors, values)
        self.saved_step = self.progress.step

    def _restore(self) -> None:
        loaded = read_state(self.folder / "state", self.reporter.say)
        metrics = self.folder / "metrics.jsonl"
        if loaded is None:
            self.reporter.say("no state was saved yet: starting from the beginning")
            metrics.unlink(missing_ok=True)
            return
        tensors, values = loaded
        self._compare(values["identity"])
        self.progress = Progress(**values["progress"])
        self.saved_step = self.progress.step
        groups: dict[str, dict[str, Tensor]] = {
            "weights": {},
            "best": {},
            "training": {},
            "optimizer": {},
            "tricks": {},
        }
        for name, tensor in tensors.items():
            group, _, rest = name.partition("/")
            groups[group][rest] = tensor
        self.model.load_state_dict(groups["weights"])
        self.best_weights = {name: tensor.to(self.model.device) for name, tensor in groups["best"].items()}
        for name, tensor in self.model.training_state().items():
            tensor.copy_(groups["training"][name])
        for trick in self.tricks:
            prefix = f"{type(trick).__name__}/"
            own = {name.removeprefix(prefix): t for name, t in groups["tricks"].items() if name.startswith(prefix)}
            trick.load_state(own, self.model)
        parameters = dict(self.model.named_parameters())
        for name, tensor in groups["optimizer"].items():
            parameter, _, slot = name.rpartition("/")
            self.optimizer.state[parameters[parameter]][slot] = tensor.to(self.model.device)
        length = 0
        if metrics.exists():
            with metrics.open("r+b") as file:
                # whole lines only: a power cut may have taken the end of a file that is appended to
                length = file.read(self.progress.metrics_bytes).rfind(b"\n") + 1
                file.truncate(length)
        self.progress.metrics_bytes = length
        self.reporter.say(f"going on from step {self.progress.step} of {self.num_steps}")

    def _compare(self, saved: Mapping[str, Mapping[str, Any]]) -> None:
        for name, value in saved["exact"].items():
            if self.identity["exact"].get(name) != value:
                raise RunError(
                    f"{self.folder}: {name} must be what the run began with ({value}), but is "
                    f"{self.identity['exact'].get(name)}. Restore it, or start another run with --run."
                )
        for name, value in saved["approximate"].items():
            if self.identity["approximate"].get(name) != value:
                self.reporter.say(
                    f"{name} was {value} and is {self.identity['approximate'].get(name)} now: "
                    "going on, but not to the same bits"
                )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def remember(number: int, frame: FrameType | None) -> None:
            if self._signal:  # asked twice: the person means it
                raise KeyboardInterrupt
            self._signal = number
            self.reporter.say("finishing the step and saving (once more: stop at once)")

        try:
            before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: no handlers, the caller's stay
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
