"""One loop for every model. It knows `Model`, and neither a model nor a trick by name.

    for step in range(start, num_steps):
        window = the step's micro-batches on this rank          # known beforehand: the plan = f(seed, epoch, lengths)
        units  = per part: sum of batch.num_units over the window and all ranks
        backward(window)                                        # wrapped by FGM, PGD, FreeLB
            for micro in window:
                reseed(seed, step, rank, micro.index)
                values = loss(micro.batch)                      # wrapped by focal, Poly, flooding, R-Drop ...
                (sum over parts: micro.weight * values.sum() * ranks / units[part]).backward()
        unscale, before_step, clip, optimizer, after_step
        at the end of an epoch: evaluate, keep the best, save; every `save_every` steps: save

Resuming needs the step number, weights, optimizer slots and the best so far: nothing random has a state. A half-done window is
never saved; it is done again in full. Several ranks add their gradients once a window (DistributedDataParallel averages, hence
the factor `ranks`); the first one alone writes.
"""

from __future__ import annotations

import json
import math
import signal
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hanzoo.data.batching import plan_epoch
from hanzoo.data.files import expanded, storage_errors
from hanzoo.data.randomness import generator, reseed
from hanzoo.errors import RunError
from hanzoo.models.layers.gathering import standing_in
from hanzoo.models.model import Model, Settings
from hanzoo.training.checkpoint import GO_ON, read_state, write_folder, write_state
from hanzoo.training.distributed import gather_objects, num_ranks, on_first, rank, sum_integers
from hanzoo.training.event_files import event_files
from hanzoo.training.optimizers import OptimizerSettings, build_optimizer, describe_groups, parameter_groups
from hanzoo.training.progress import Reporter
from hanzoo.training.schedules import LinearSchedule, PlateauSchedule, ScheduleSettings, factor
from hanzoo.training.trick import Backward, Loss, LossFunction, MicroBatch, SampleDraw, Start, Trick, Window


class TrainSettings(Settings):
    """The `train` section of a recipe.

    Attributes:
        epochs: passes over train; the schedule ends with the last.
        batch_size: sentences (or pairs) a micro-batch at most.
        batch_characters: padded characters a micro-batch at most, 0 = no such limit. Micro-batches of long texts are then smaller.
        accumulation: micro-batches an optimizer step and rank; N of them on M ranks equal one batch of N x M x batch_size.
        oversample: share of the sentences from which on a class is not rare; sentences with rarer ones are trained more often
            (repeat factor sampling); 0 = each once an epoch.
        clip: largest global L2 norm of the gradient; 0 = no clipping.
        patience: epochs without a better dev figure after which training stops; 0 = never.
        precision: float32, or autocast to bfloat16, or on CUDA to float16 with a scaled loss (weights, gradients, optimizer and
            the CRF stay float32).
        seed: of everything random.
        device: auto takes CUDA where it is there, else the CPU.
        threads: of torch on the CPU; 0 leaves its choice. Part of what exact resume needs.
        log_every: steps between two records of the training loss.
        tensorboard: also write the records into the run's tensorboard/; needs the package of that name.
        save_every: steps between two saved states; 0 = after each epoch only.
        start_from: a run (or its model/) whose trained model this one goes on with; None = a new model.
        schedule: of the rate over the steps; see there.
        optimizer: see there.
        tricks: by file name in training/tricks/.
    """

    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=32, ge=1)
    batch_characters: int = Field(default=0, ge=0)
    accumulation: int = Field(default=1, ge=1)
    oversample: float = Field(default=0.0, ge=0.0, le=1.0)
    clip: float = Field(default=5.0, ge=0.0)
    patience: int = Field(default=0, ge=0)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: int = Field(default=1, ge=0)
    device: str = "auto"
    threads: int = Field(default=0, ge=0, le=1024)
    log_every: int = Field(default=50, ge=1)
    tensorboard: bool = False
    save_every: int = Field(default=0, ge=0)
    start_from: str | None = None
    schedule: ScheduleSettings = LinearSchedule()
    optimizer: OptimizerSettings = OptimizerSettings()
    tricks: dict[str, dict[str, Any] | None] = Field(default_factory=dict)

    def located(self) -> Self:
        """The same with an absolute path to what it goes on from."""
        if self.start_from is None:
            return self
        return self.model_copy(update={"start_from": str(expanded(self.start_from).absolute())})

    @model_validator(mode="after")
    def _nothing_comes_too_late(self) -> Self:
        if self.optimizer.sgd_from_epoch is not None and self.optimizer.sgd_from_epoch > self.epochs:
            raise ValueError(
                f"optimizer.sgd_from_epoch must be one of the {self.epochs} epochs, but is {self.optimizer.sgd_from_epoch}. "
                "Lower it, or leave it out."
            )
        if isinstance(self.schedule, PlateauSchedule) and 0 < self.patience <= self.schedule.patience:
            raise ValueError(
                f"schedule.patience must be below train.patience ({self.patience}), but is {self.schedule.patience}: "
                "training would stop before the rate is lowered. Lower it, or raise train.patience."
            )
        return self


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
        dev_figures: the selecting metric of every evaluation, which the schedule may look at.
        nonfinite: steps that were left out because the gradient was not finite.
        nonfinite_in_a_row: since the last one that was not.
        seconds: spent in training and evaluation, over all starts.
        training_seconds: spent in steps alone, all but the first, which compiles;
        trained_items: items trained in them.
        losses: sums of the current log period, by "part" or "kind part".
        units: units of the current log period, likewise.
        metrics_bytes: length of metrics.jsonl.
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    best_epoch: int = 0
    waited: int = 0
    dev_figures: list[float] = field(default_factory=list)
    nonfinite: int = 0
    nonfinite_in_a_row: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    trained_items: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)
    metrics_bytes: int = 0


def _finite(value: Any) -> Any:
    """The same JSON value with null for numbers that JSON has no form for."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


# steps one after the other: more means that the training has diverged; now and then one is how float16's scale is found
MAX_NONFINITE = 20

NOTHING = nullcontext()

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class LossModule(nn.Module):
    """What DistributedDataParallel wraps: its forward is the whole wrapped loss function.

    Args:
        model: whose parameters are trained.
        loss: of a batch, after all tricks.
    """

    def __init__(self, model: Model, loss: LossFunction) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return dict(self._loss(batch).weighted())


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
        repeats: for each item how often an epoch trains it, on average; None = once.
        start: the trained model that this run goes on from; None = a new model.
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
        repeats: Sequence[float] | None = None,
        start: Start | None = None,
    ) -> None:
        self.model = model
        # kept, since a step asks for them again and again
        self.device, self.rank, self.num_ranks = model.device, rank(), num_ranks()
        self.features = features
        self.settings = settings
        self.evaluate = evaluate
        self.tricks = tricks
        self.metric = metric
        self.folder = folder
        self.identity = identity
        self._take_optimizer(settings.optimizer)
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.repeats = repeats
        self.start = start
        self.lengths = [item.length for item in features]
        # the steps at which epochs begin: with a limit on characters, or repeats, every epoch has its own number of windows
        self.epoch_starts = [0, *accumulate(len(self.plan(epoch)) for epoch in range(settings.epochs))]
        self.num_steps = self.epoch_starts[-1]
        self.reporter = Reporter(self.num_steps, settings.log_every, quiet=self.rank > 0)
        self.progress = Progress()
        self._add_event: Callable[[Mapping[str, Any]], None] | None = None
        self.best_weights: dict[str, Tensor] = {}
        self.saved_step = -1
        self._signal = 0
        self._agreed_signal = 0
        self._units: dict[str, int] = {}
        self._values: dict[str, list[Tensor]] = {}  # added when they are logged, not in each step
        self._log_started = time.monotonic()
        self._log_items = 0
        self._warm = False

        for trick in tricks:
            trick.plan(self.epoch_starts)
        self.loss: LossFunction = self._loss
        for trick in tricks:
            self.loss = trick.wrap_loss(self.loss, model)
        self.backward: Backward = self._backward
        for trick in tricks:
            self.backward = trick.wrap_backward(self.backward, model)
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=settings.precision == "float16")
        if resume:
            self._restore()
        self._replica: DistributedDataParallel | None = None
        if self.num_ranks > 1:
            # find_unused_parameters also keeps the buckets as they are, so that a resumed run adds in the same order
            self._replica = DistributedDataParallel(
                LossModule(model, self.loss), forward_sync_buffers=False, find_unused_parameters=True,
                gradient_as_bucket_view=True,
            )  # fmt: skip

    # The loop.

    def fit(self) -> Progress:
        """Train to the end; the model then has its best weights.

        Raises:
            Interrupted: a signal came; the state is saved.
            StorageError: no room; the last good state is still there.
        """
        started = time.monotonic() - self.progress.seconds
        with self.reporter, self._signals(), ExitStack() as files:
            if self.settings.tensorboard:
                on_first(lambda: self._keep_events(files))
            if self.saved_step < 0:
                self.begin()
            self._say_groups()
            while self.progress.step < self.num_steps and not self._patience_is_over():
                epoch = bisect_right(self.epoch_starts, self.progress.step) - 1
                if self._use_optimizer_of(epoch):
                    new = self.optimizer_settings
                    self.reporter.say(f"epoch {epoch + 1}: {new.name} from here on, rate {new.learning_rate:g}")
                self.model.begin_epoch(epoch)
                for window in self.plan(epoch)[self.progress.step - self.epoch_starts[epoch] :]:
                    self._step(epoch, window)
                    self.progress.seconds = time.monotonic() - started
                    end_of_epoch = self.progress.step == self.epoch_starts[epoch + 1]
                    if end_of_epoch:
                        self._evaluate(epoch + 1)
                    save_every = self.settings.save_every
                    # read once: it may come at any moment, also between saving and stopping
                    signal_number = self._signal if self.num_ranks == 1 else self._agreed_signal
                    if end_of_epoch or signal_number or (save_every and self.progress.step % save_every == 0):
                        self._save()
                    if signal_number:
                        raise Interrupted(signal_number)
        self._replica = None  # it must not outlive the group of ranks
        self.model.load_state_dict(self.best_weights, strict=False)
        self.model.eval()
        return self.progress

    def begin(self) -> None:
        """What comes once, before the first step. A run that goes on from another needs that one until here, and no more."""
        for trick in self.tricks:
            trick.begin(self.model, self.start, self.settings.seed)
        if self.start is not None:
            self._save()

    def rehearse(self, items: list[list[int]]) -> float:
        """Train a window out of turn, for whoever wants to see what a step takes; the model is not one to keep then.

        Tricks must have begun (`begin`).

        Args:
            items: one of a `plan`.

        Returns:
            Seconds.
        """
        started = time.monotonic()
        self._step(0, items)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.monotonic() - started

    def _step(self, epoch: int, items: list[list[int]]) -> None:
        step, started = self.progress.step, time.monotonic()
        if not self.model.training:  # it walks over all modules
            self.model.train()
        window = self._window(step, items)
        self._units = self._count_units(window)
        for parameter in self._trained:  # `Optimizer.zero_grad` does more, at each step
            parameter.grad = None
        self.backward(window)
        self.scaler.unscale_(self.optimizer)
        for trick in self.tricks:
            trick.before_step(self.model, step)
        norm = self._clip()
        rate = self.optimizer_settings.learning_rate * factor(
            self.settings.schedule, step, self.num_steps, self.progress.dev_figures
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        if math.isfinite(norm):
            self.progress.nonfinite_in_a_row = 0
            self.scaler.step(self.optimizer)
            for trick in self.tricks:
                trick.after_step(self.model)
        else:
            self._count_nonfinite()
        self.scaler.update()
        with self._autocast():  # a momentum encoder reads the batch
            self.model.after_step()
        self.progress.step += 1
        num_items = sum(map(len, items))  # of all ranks; units are not it: a CoSENT batch is one
        self._log_items += num_items
        if self._warm:
            self.progress.training_seconds += time.monotonic() - started
            self.progress.trained_items += num_items
        self._warm = True
        if self.progress.step % self.settings.log_every == 0:
            self._log(epoch, rate, norm)

    def _clip(self) -> float:
        """Clip the gradient as `clip_grad_norm_` does, bit for bit; its norm from before.

        That one multiplies also where nothing is to be clipped, to spare the host a wait for the device. The step waits for the
        norm anyway.
        """
        gradients = [parameter.grad for parameter in self._trained if parameter.grad is not None]
        total = torch.nn.utils.get_total_norm(gradients)
        norm = float(total)  # a number from here on: the host waits for the device once
        clip = self.settings.clip
        if clip and not norm < clip * 0.999 - 1e-6:  # near the limit torch's factor, with its 1e-6, decides
            torch.nn.utils.clip_grads_with_norm_(self._trained, clip, total)
        return norm

    def _window(self, step: int, items: list[list[int]]) -> Window:
        """This rank's micro-batches of a window: every num_ranks-th, so that those of one moment are about equally long."""
        mine = items[self.rank :: self.num_ranks]
        if not mine:  # all ranks must take part in adding the gradients
            stand_in = self._collate(step, items[0][:1]).to(self.device)
            return [MicroBatch(0, stand_in, weight=0.0, counted=False, draw=self._draw(step, items[0][:1]))]
        return [
            MicroBatch(
                index, self._collate(step, numbers).to(self.device), last=index == len(mine) - 1,
                draw=self._draw(step, numbers),
            )
            for index, numbers in enumerate(mine)
        ]  # fmt: skip

    def _count_units(self, window: Window) -> dict[str, int]:
        """Units a part over the window and all ranks; the ranks agree on signals in the same message."""
        units = {part: number if window[0].counted else 0 for part, number in window[0].batch.num_units.items()}
        for micro in window[1:]:
            for part, number in micro.batch.num_units.items():
                units[part] += number
        if self.num_ranks == 1:
            return units
        interrupts = [int(self._signal == signal.SIGINT), int(self._signal == signal.SIGTERM)]
        *numbers, interrupted, terminated = sum_integers([*units.values(), *interrupts])
        self._agreed_signal = signal.SIGINT if interrupted else signal.SIGTERM if terminated else 0
        return dict(zip(units, numbers, strict=True))

    def _use_optimizer_of(self, epoch: int) -> bool:
        """Begin a new optimizer, without slots, where an epoch has another one than there is; says whether it has."""
        settings = self.settings.optimizer.in_epoch(epoch)
        if settings == self.optimizer_settings:
            return False
        self._take_optimizer(settings)
        return True

    def _take_optimizer(self, settings: OptimizerSettings) -> None:
        self.optimizer_settings = settings
        self.optimizer = build_optimizer(self.model, settings)
        self._trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _say_groups(self) -> None:
        settings = self.optimizer_settings
        for line in describe_groups(parameter_groups(self.model, settings), settings.learning_rate):
            self.reporter.say(line)

    def _backward(self, window: Window) -> None:
        for micro in window:
            reseed(self.settings.seed, "dropout", self.progress.step, self.rank, micro.index)
            with self._inside(micro):
                values = self.loss(micro.batch).weighted() if self._replica is None else self._replica(micro.batch)
                # sum and division lie in the gradients that backward starts from: the graph has no node for them
                scale = micro.weight * self.num_ranks
                starts = [torch.full_like(value, scale / max(1, self._units[part])) for part, value in values.items()]
                # after the forward pass: an attack's leaves exist only now
                torch.autograd.backward(
                    list(values.values()), [self.scaler.scale(start) for start in starts],
                    inputs=None if micro.inputs is None else list(micro.inputs()),
                )  # fmt: skip
            if not micro.counted:
                continue
            for part, value in values.items():
                name = part if micro.kind == "clean" else f"{micro.kind} {part}"
                self._values.setdefault(name, []).append(value.detach())

    def _inside(self, micro: MicroBatch) -> AbstractContextManager[object]:
        """What the passes of a micro-batch run in."""
        contexts = micro.contexts if micro.counted else (standing_in(), *micro.contexts)
        if self._replica is not None and not micro.last:
            contexts = (self._replica.no_sync(), *contexts)
        if not contexts:
            return NOTHING
        with ExitStack() as entered:
            for context in contexts:
                entered.enter_context(context)
            return entered.pop_all()

    def _loss(self, batch: Any) -> Loss:
        with self._autocast():
            output = self.model(batch)
        hard = self.model.losses(output, batch)
        values = hard
        if extra := self.model.smoothing(output, batch):
            values = {part: value + extra[part] if part in extra else value for part, value in hard.items()}
        return Loss(values, output, self.model.unit_weights(batch), hard)

    def _autocast(self) -> AbstractContextManager[object]:
        dtype = AUTOCAST.get(self.settings.precision)
        return NOTHING if dtype is None else torch.autocast(self.device.type, dtype)

    def _collate(self, step: int, numbers: list[int]) -> Any:
        def draw(item: int) -> Any:
            # not of its micro-batch (the 0 stands for the only one of old): the same however a window is cut
            return generator(self.settings.seed, "input", step, 0, item)

        return self.model.collate([self.features[i] for i in numbers], draw, numbers)

    def _draw(self, step: int, numbers: list[int]) -> SampleDraw:
        """What tricks draw at the samples of a micro-batch."""
        return lambda purpose, sample: generator(self.settings.seed, purpose, step, numbers[sample])

    def plan(self, epoch: int) -> list[list[list[int]]]:
        """The windows of an epoch (counted from 0): of each, the items of every micro-batch of every rank."""
        return plan_epoch(
            self.lengths,
            generator(self.settings.seed, "plan", epoch),
            batch_size=self.settings.batch_size,
            micro_batches=self.settings.accumulation * self.num_ranks,
            batch_characters=self.settings.batch_characters,
            repeats=self.repeats,
            least=self.model.least_items,
        )

    def _patience_is_over(self) -> bool:
        return bool(self.settings.patience) and self.progress.waited >= self.settings.patience

    def _count_nonfinite(self) -> None:
        self.progress.nonfinite += 1
        self.progress.nonfinite_in_a_row += 1
        self.reporter.say(f"step {self.progress.step}: the gradient is not finite; the step is left out")
        if self.progress.nonfinite_in_a_row > MAX_NONFINITE:
            raise self._diverged("the gradient must be finite")

    def _diverged(self, what: str) -> RunError:
        return RunError(
            f"{self.folder}: {what}, but the training has diverged ({self.progress.nonfinite} of {self.progress.step} steps had "
            "a gradient that is not finite). Lower train.optimizer.learning_rate or set train.clip."
        )

    # Figures.

    def _say_notes(self) -> None:
        for note in self.model.training_notes():
            self.reporter.say(note)
        for trick in self.tricks:
            for note in trick.notes():
                self.reporter.say(note)

    def _log(self, epoch: int, rate: float, norm: float) -> None:
        self._say_notes()
        self._gather_sums()
        now = time.monotonic()
        speed = self._log_items / max(now - self._log_started, 1e-9)
        losses = {name: total / self.progress.units[name] for name, total in self.progress.losses.items()}
        main = sum(value for name, value in losses.items() if " " not in name)
        record = {"step": self.progress.step, "epoch": epoch + 1, "loss": main, "losses": losses, "learning_rate": rate,
                  "gradient_norm": norm, "items_per_second": round(speed, 1)}  # fmt: skip
        self._record(record)
        self.reporter.step(self.progress.step, loss=main, rate=rate, items_per_second=speed, epoch=epoch + 1)
        self.progress.losses, self.progress.units = {}, {}
        self._log_started, self._log_items = now, 0

    def _gather_sums(self) -> None:
        """Add what was summed since the last time, on all ranks, to the log period."""
        mine = {
            name: (torch.stack([value.sum() for value in values]).tolist(), sum(map(len, values)))
            for name, values in self._values.items()
        }
        for sums in gather_objects(mine):  # not one tensor: a rank that had nothing to do has no names
            for name, (totals, count) in sums.items():
                for total in totals:  # one by one: to gather more often changes no bit
                    self.progress.losses[name] = self.progress.losses.get(name, 0.0) + total
                self.progress.units[name] = self.progress.units.get(name, 0) + count
        self._values = {}

    def _evaluate(self, epoch: int) -> None:
        started = time.monotonic()
        self._say_notes()
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
        best = self.progress.best
        better = best is None or value > best or (math.isnan(best) and not math.isnan(value))
        self.progress.dev_figures.append(value)
        self._record({"step": self.progress.step, "epoch": epoch, "dev": figures, "best": better})
        shown = " ".join(f"{name} {figure:.4f}" for name, figure in figures.items() if isinstance(figure, float))
        self.reporter.say(f"epoch {epoch}/{self.settings.epochs} dev {shown}{' (best)' if better else ''}")
        if better:
            self.progress.best, self.progress.best_step, self.progress.best_epoch = value, self.progress.step, epoch
            self.progress.waited = 0
            self.best_weights = {name: p.detach().clone() for name, p in self.model.named_parameters()}
            on_first(lambda: write_folder(self.folder / "model", self.model.save))
        else:
            self.progress.waited += 1

    def _keep_events(self, files: ExitStack) -> None:
        self._add_event = files.enter_context(event_files(self.folder / "tensorboard", self.folder / "metrics.jsonl"))

    def _record(self, record: Mapping[str, Any]) -> None:
        record = _finite(record)
        line = (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode()
        path = self.folder / "metrics.jsonl"

        def append() -> int:
            with storage_errors(path, GO_ON), path.open("ab") as file:
                file.write(line)
            if self._add_event is not None:
                self._add_event(record)
            return len(line)  # of the first rank's line: speeds differ

        self.progress.metrics_bytes += on_first(append)

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
        values = {
            "progress": asdict(self.progress),
            "ranks": self.num_ranks,
            "num_steps": self.num_steps,
            "scaler": self.scaler.state_dict(),
            "identity": self.identity,
        }
        on_first(lambda: write_state(self.folder / "state" / f"{self.progress.step:08d}", tensors, values))
        self.saved_step = self.progress.step

    def _restore(self) -> None:
        loaded = read_state(self.folder / "state", self.reporter.say)
        if loaded is None:
            self.reporter.say("no state was saved yet: starting from the beginning")
            on_first(lambda: self._cut_metrics(0))
            return
        tensors, values = loaded
        self._compare(values["identity"])
        self.progress = Progress(**values["progress"])
        self.saved_step = self.progress.step
        if values["ranks"] != self.num_ranks:  # other windows, and another number of them: go on at the same share
            self.progress.step = round(self.progress.step / values["num_steps"] * self.num_steps)
        self.scaler.load_state_dict(values["scaler"])
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
        self.best_weights = {name: tensor.to(self.device) for name, tensor in groups["best"].items()}
        for name, tensor in self.model.training_state().items():
            tensor.copy_(groups["training"][name])
        for trick in self.tricks:
            prefix = f"{type(trick).__name__}/"
            own = {name.removeprefix(prefix): t for name, t in groups["tricks"].items() if name.startswith(prefix)}
            trick.load_state(own, self.model)
        # the slots are those of the last step's optimizer; where the next step has another, `fit` begins it
        self._use_optimizer_of(max(0, bisect_right(self.epoch_starts, self.progress.step - 1) - 1))
        parameters = dict(self.model.named_parameters())
        for name, tensor in groups["optimizer"].items():
            parameter, _, slot = name.rpartition("/")
            self.optimizer.state[parameters[parameter]][slot] = tensor.to(self.device)
        self.progress.metrics_bytes = on_first(lambda: self._cut_metrics(self.progress.metrics_bytes))
        self.reporter.say(f"going on from step {self.progress.step} of {self.num_steps}")
        self._save()  # where steps are counted otherwise from here on: a later state of the old count would be taken for newer

    def _cut_metrics(self, length: int) -> int:
        """Cut metrics.jsonl back to `length` bytes, whole lines only: a power cut may have taken the end of the file."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return 0
        with path.open("r+b") as file:
            whole = file.read(length).rfind(b"\n") + 1
            file.truncate(whole)
        return whole

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
            with suppress(RuntimeError):  # it came while something was being said: nothing can be said now
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
