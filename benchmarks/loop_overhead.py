"""What the trainer's loop costs beside the barest torch loop, on the same model and the same batches; in turns.

    python benchmarks/loop_overhead.py [--rounds 61] [--steps 50] [--save]

Bare is zero_grad, forward, mean of the losses, backward, clip_grad_norm_ and a step of fused AdamW, and nothing else: no
schedule, no draws of its own, no log, no look at the gradient. Ours is `Trainer._step` as a recipe runs it: reseeding before
each pass, division by the units of the window, sums for the log, clipping, the check that the gradient is finite, the schedule,
fused AdamW, and every 50 steps a line in metrics.jsonl and one on standard error (which is a file here). What belongs to an
epoch and not to a step (plan, evaluation, saved state) is left out.

The model is a tagger of the zoo with a dense layer in place of its LSTM and a softmax in place of its CRF, so that a bare step
takes about a millisecond on one thread; batches of 8 sentences of the bundled corpus. Two rows:

- prepared: both sides get batches that `Model.collate` made before, and have the same optimizer: two groups, decayed or not. At
  most 5 % is asked of this one.
- collated: both sides call the same `Model.collate` in the step, as every training must.

First both are checked to be one training: without dropout and at the same rates their weights are the same bits after 20 steps,
and at half the rate they are not. Then each side trains `--steps` steps in turn; an overhead is the median over rounds of
(our seconds / theirs in the same round) - 1, with its middle half and its whole range. Seconds are processor seconds of this
process, so that other work on the machine counts less; wall-clock seconds stand beside them. A line of JSON ends the output;
--save also writes it to benchmarks/results/loop_overhead.json.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed works too

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.report import report  # noqa: E402
from hanzoo.build import load_data  # noqa: E402
from hanzoo.data.randomness import reseed  # noqa: E402
from hanzoo.models.bilstm_crf import BiLSTMCRF  # noqa: E402
from hanzoo.recipe import load_recipe  # noqa: E402
from hanzoo.training.optimizers import build_optimizer  # noqa: E402
from hanzoo.training.trainer import Trainer, TrainSettings  # noqa: E402

BATCH = 8
RATE = 1e-4
DECAY = 0.01
CLIP = 5.0
WARM_UP = 100  # steps of each side before the first round: slots are made, caches filled
ASKED = 0.05
CLOCKS = {"processor": time.process_time, "wall": time.perf_counter}
Side = Callable[[int], None]  # trains that many steps
Windows = list[list[list[int]]]


class Dense(nn.Module):
    """In place of the LSTM."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, hidden)

    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:
        return torch.tanh(self.layer(inputs))


class QuickTagger(BiLSTMCRF):
    """The tagger with a dense layer and a softmax: the loss of a sentence is the sum over its characters.

    Attributes:
        prepared: batches made before, by their items; None: `collate` makes them.
    """

    prepared: Mapping[tuple[int, ...], Any] | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.crf.requires_grad_(False)
        self.lstm = Dense(sum(self.dimensions), 2 * self.config.hidden)  # type: ignore[assignment]

    def collate(self, features: Sequence[Any], draw: Any = None, item_ids: Sequence[int] = ()) -> Any:
        if self.prepared is not None:
            return self.prepared[tuple(item_ids)]
        return super().collate(features, draw, item_ids)

    def depth(self, parameter: str) -> int:
        return 0

    def losses(self, output: Tensor, batch: Any) -> dict[str, Tensor]:
        values = nn.functional.cross_entropy(output.transpose(1, 2), batch.tags, reduction="none")
        return {"crf": (values * batch.mask).sum(dim=1)}


def build_model(data: Any, dropout: float) -> QuickTagger:
    """A new model, the same every time. Its input is not drawn, so that both sides collate alike."""
    reseed(1, "weights")
    rates = {"unknown_rate": 0.0, "dropout_embedding": dropout, "dropout_hidden": dropout}
    config = QuickTagger.Config(dimension=24, hidden=32, **rates)
    return QuickTagger.build(config, data)


def build_trainer(model: QuickTagger, features: Sequence[Any], folder: Path) -> Trainer:
    """So many epochs that the rate stays nearly what it is at first."""
    settings = {"epochs": 1000, "batch_size": BATCH, "clip": CLIP, "schedule": {"warmup": 0.0}, "device": "cpu"}
    chosen = TrainSettings.model_validate({**settings, "optimizer": {"learning_rate": RATE, "weight_decay": DECAY}})
    folder.mkdir(parents=True)
    return Trainer(model, features, chosen, [], lambda model: {}, "f1", folder, {})


def prepare(trainer: Trainer, windows: Windows) -> dict[tuple[int, ...], Any]:
    """The batches of some windows."""
    micros = [numbers for window in windows for numbers in window]
    return {tuple(n): trainer.model.collate([trainer.features[i] for i in n], None, n) for n in micros}


def our_side(trainer: Trainer, windows: Windows) -> Side:
    """The trainer, step by step; the windows come again and again."""
    source = cycle(windows)

    def train(steps: int) -> None:
        for window in islice(source, steps):
            trainer._step(0, window)

    return train


def bare_side(model: QuickTagger, features: Sequence[Any], windows: Windows, optimizer: torch.optim.Optimizer) -> Side:
    """The barest loop."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    source = cycle(windows)
    model.train()

    def train(steps: int) -> None:
        for (numbers,) in islice(source, steps):
            batch = model.collate([features[i] for i in numbers], None, numbers)
            optimizer.zero_grad()
            loss = model.losses(model(batch), batch)["crf"].mean()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()

    return train


def check(data: Any, features: Sequence[Any], folder: Path, steps: int = 20) -> float:
    """Largest difference of both loops' weights at half the rate; fails unless they are the same bits at the same rate."""
    differences = []
    for factor in (1.0, 0.5):
        ours, bare = build_model(data, dropout=0.0), build_model(data, dropout=0.0)
        trainer = build_trainer(ours, features, folder / f"{factor}")
        windows = trainer.plan(0)[:steps]
        optimizer = build_optimizer(bare, trainer.settings.optimizer)
        sides = our_side(trainer, windows), bare_side(bare, features, windows, optimizer)
        for _ in range(steps):
            sides[0](1)
            for group in optimizer.param_groups:  # what the schedule set
                group["lr"] = factor * trainer.optimizer.param_groups[0]["lr"]
            sides[1](1)
        pairs = zip(ours.parameters(), bare.parameters(), strict=True)
        differences.append(max(float((a - b).detach().abs().max()) for a, b in pairs))
    same, other = differences
    assert same == 0.0, f"not the same training: weights differ by {same}"
    assert other > 1e-4, "the check would not notice a difference"
    return other


def in_turn(sides: Mapping[str, Side], rounds: int, steps: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds a step of each side by each clock in each round; the order turns around every other round."""
    found: dict[str, dict[str, list[float]]] = {name: {clock: [] for clock in CLOCKS} for name in sides}
    for train in sides.values():
        train(WARM_UP)
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            start = {clock: read() for clock, read in CLOCKS.items()}
            sides[name](steps)
            for clock, read in CLOCKS.items():
                found[name][clock].append((read() - start[clock]) * 1000 / steps)
    return found


def main() -> None:
    """Measure, print the table and the line."""
    parser = argparse.ArgumentParser(description="The trainer's loop against the barest torch loop.")
    parser.add_argument("--rounds", type=int, default=61)
    parser.add_argument("--steps", type=int, default=50, help="steps of each side a round")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/loop_overhead.json")
    options = parser.parse_args()
    if options.rounds < 2 or options.steps < 1:
        parser.error("--rounds must be at least 2, --steps at least 1")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    data = load_data(load_recipe("demo_bilstm_crf"))
    line: dict[str, object] = {"benchmark": "loop_overhead", "asked": ASKED}
    print(f"{'':24}{'ours, ms/step':>14}{'bare':>8}{'overhead':>10}   middle half, range")
    with tempfile.TemporaryDirectory() as place, (Path(place) / "stderr").open("w", encoding="utf-8") as log:
        features = [build_model(data, 0.0).featurize(document) for document in data.train]
        line["difference_at_half_the_rate"] = check(data, features, Path(place) / "check")
        for row in ("prepared", "collated"):
            models = [build_model(data, dropout=0.5) for _ in range(2)]
            trainer = build_trainer(models[0], features, Path(place) / row)
            windows = [window for epoch in range(10) for window in trainer.plan(epoch)]
            if row != "collated":
                batches = prepare(trainer, windows)
                for model in models:
                    model.prepared = batches
            optimizer = build_optimizer(models[1], trainer.settings.optimizer)
            sides = {"ours": our_side(trainer, windows), "bare": bare_side(models[1], features, windows, optimizer)}
            with contextlib.redirect_stderr(log):
                found = in_turn(sides, options.rounds, options.steps)
            for clock in CLOCKS:
                ratios = sorted(a / b - 1 for a, b in zip(found["ours"][clock], found["bare"][clock], strict=True))
                low, _, high = statistics.quantiles(ratios, n=4)
                ours, bare = (statistics.median(found[side][clock]) for side in ("ours", "bare"))
                name = f"{row}_{clock}"
                line[name] = round(statistics.median(ratios), 4)
                line[f"{name}_half"] = [round(low, 4), round(high, 4)]
                line[f"{name}_range"] = [round(ratios[0], 4), round(ratios[-1], 4)]
                line[f"{name}_ms"] = [round(ours, 4), round(bare, 4)]
                print(
                    f"{f'{row}, {clock} time':24}{ours:14.3f}{bare:8.3f}{statistics.median(ratios):10.1%}   "
                    f"{low:.1%} to {high:.1%}, {ratios[0]:.1%} to {ratios[-1]:.1%}"
                )
    line |= {"rounds": options.rounds, "steps": options.steps, "batch_size": BATCH, "threads": 1}
    line |= {"parameters": sum(p.numel() for p in models[0].parameters()), "torch": str(torch.__version__)}
    line["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    report(line, options.save)


if __name__ == "__main__":
    main()
