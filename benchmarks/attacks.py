"""Do the attacks attack? FGM, PGD and FreeLB, on activations and on tables, watched from outside while a BiLSTM-CRF trains.

    python benchmarks/attacks.py [--steps 200] [--hidden 64] [--threads 1] [--save]

Data: Weibo where HANZOO_DATA is set (with the recipe's vectors where HANZOO_VECTORS is set), else the bundled corpus. Each attack
trains a model of its own for `--steps` steps, about five minutes in all. What the model's layers are given is recorded by hooks
of this file, at every pass, and compared with what a clean pass gives; none of the attack's own numbers are used. Asked of every
step:

- higher: the loss of the last pass is higher than at the clean input, with equal weights and dropout masks (on 90 % of steps).
  Beside it, the same for a perturbation of equal norm in a random direction: what moving about alone would do.
- restored: all weights are the same, bit for bit, after the passes of the step as before them.
- padding: at padding the layers are given exactly what they are given without the attack; of tables, the padding row stays.
- tokens (tables): only rows of this batch's tokens moved.
- norm: for activations the norm of each sample's perturbation over all its characters and bigrams together, for tables the one norm
  over both tables, is epsilon to 1e-5: of FGM always; of PGD and FreeLB, which may stay inside their ball, never above it, and how
  many are on it is said.

A line of JSON ends the output; --save also writes it to benchmarks/results/attacks.json. Exits with 1 where one of these fails.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed works too

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.report import report  # noqa: E402
from hanzoo.build import load_data  # noqa: E402
from hanzoo.data.randomness import generator, reseed  # noqa: E402
from hanzoo.models.bilstm_crf import BiLSTMCRF  # noqa: E402
from hanzoo.recipe import Recipe, load_recipe  # noqa: E402
from hanzoo.training.trainer import Trainer  # noqa: E402
from hanzoo.training.trick import Loss, Window, build_tricks, trick_class  # noqa: E402

ASKED = 0.9  # share of steps on which the loss must be higher
TOLERANCE = 1e-5  # of norms, relative
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "fgm": ("fgm", {"epsilon": 1.0}),
    "fgm relative": ("fgm", {"epsilon": 0.05, "norm": "relative"}),
    "pgd": ("pgd", {"epsilon": 1.0, "step_size": 0.6}),
    "pgd random start": ("pgd", {"epsilon": 1.0, "step_size": 0.6, "random_start": True}),
    "free_lb": ("free_lb", {"epsilon_0": 0.3, "step_size": 0.6, "max_norm": 1.0}),
    "fgm table": ("fgm", {"epsilon": 1.0, "target": "table"}),
    "fgm table relative": ("fgm", {"epsilon": 0.05, "norm": "relative", "target": "table"}),
    "pgd table": ("pgd", {"epsilon": 1.0, "step_size": 0.6, "target": "table"}),
    "free_lb table": ("free_lb", {"epsilon_0": 0.0, "step_size": 0.6, "max_norm": 1.0, "target": "table"}),
}


class Given:
    """Records what the layers above the embeddings are given, or adds to it; entered last, so its hooks run after the attack's."""

    def __init__(self, modules: Mapping[str, nn.Module], add: Mapping[str, Tensor] | None = None) -> None:
        self.modules = modules
        self.add = add
        self.outputs: dict[str, Tensor] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> Given:
        for name, module in self.modules.items():
            self._hooks.append(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *_: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _hook(self, name: str) -> Callable[..., Tensor]:
        def record(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            if self.add is not None:
                output = output + self.add[name]
            self.outputs[name] = output.detach().clone()
            return output

        return record


@dataclass
class Seen:
    """What was seen over the steps of one run."""

    steps: int = 0
    higher: int = 0
    higher_at_random: int = 0
    clean: float = 0.0
    rise: float = 0.0
    rise_at_random: float = 0.0
    restored: int = 0
    padding: int = 0
    tokens: int = 0
    norms: list[float] = field(default_factory=list)  # over epsilon


class WatchedTrainer(Trainer):
    """The trainer, with a look at each pass and a clean pass before those of a step."""

    seen: Seen
    epsilon: float
    relative: bool
    on_tables: bool

    def watch(self, epsilon: float, relative: bool, on_tables: bool) -> None:
        """Begin to look."""
        assert isinstance(self.model, BiLSTMCRF)
        assert self.model.bigrams is not None
        self.seen = Seen()
        self.epsilon, self.relative, self.on_tables = epsilon, relative, on_tables
        self.modules = {"characters": self.model.characters, "bigrams": self.model.bigrams}
        self.passes: list[tuple[float, dict[str, Tensor], dict[str, Tensor]]] = []  # loss, given, tables
        attacked = self.backward
        self.backward = lambda window: self._look(attacked, window)

    def _tables(self) -> dict[str, Tensor]:
        return {name: module.weight.detach().clone() for name, module in self.modules.items()}

    def _backward(self, window: Window) -> None:
        (micro,) = window
        given = Given(self.modules)
        super()._backward([micro.inside(given)])
        self.passes.append((self._last_loss, given.outputs, self._tables()))

    def _loss(self, batch: Any) -> Loss:
        loss = super()._loss(batch)
        self._last_loss = float(loss.values["crf"].detach().double().sum())
        return loss

    @torch.no_grad()
    def _loss_at(self, window: Window, add: Mapping[str, Tensor] | None = None) -> tuple[float, dict[str, Tensor]]:
        """The summed loss with the step's weights and dropout masks, and what the layers were given."""
        (micro,) = window
        reseed(self.settings.seed, "dropout", self.progress.step, 0, micro.index)
        with Given(self.modules, add) as given:
            self._loss(micro.batch)
        return self._last_loss, given.outputs

    def _look(self, attacked: Callable[[Window], None], window: Window) -> None:
        (micro,) = window
        state = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        clean, embedded = self._loss_at(window)
        tables = self._tables()
        self.passes = []
        attacked(window)
        loss, given, moved_tables = self.passes[-1]

        seen, mask = self.seen, micro.batch.mask
        seen.steps += 1
        seen.higher += loss > clean
        seen.clean += clean / len(mask)
        seen.rise += (loss - clean) / len(mask)
        restored = self.model.state_dict()
        seen.restored += all(torch.equal(restored[name], tensor) for name, tensor in state.items())
        if self.on_tables:
            noise = self._see_tables(micro.batch, tables, moved_tables)
        else:
            noise = self._see_activations(micro.batch, embedded, given)
        at_random, _ = self._loss_at(window, noise)
        seen.higher_at_random += at_random > clean
        seen.rise_at_random += (at_random - clean) / len(mask)

    def _noise(self, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        draws = generator(self.settings.seed, "benchmark", self.progress.step)
        return {name: torch.from_numpy(draws.standard_normal(tuple(tensor.shape))) for name, tensor in like.items()}

    def _see_activations(self, batch: Any, clean: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
        """Look at padding and norms; returns noise of the same norm in each sample."""
        seen, mask = self.seen, batch.mask
        moves = {name: given[name].double() - clean[name].double() for name in clean}
        seen.padding += all(torch.equal(given[name][~mask], clean[name][~mask]) for name in clean)
        norms = []
        for row, length in enumerate(mask.sum(dim=1).tolist()):  # characters and bigrams of a sample together
            norm = math.sqrt(sum(float(move[row, :length].square().sum()) for move in moves.values()))
            unit = math.sqrt(sum(float(own[row, :length].double().square().sum()) for own in clean.values()))
            seen.norms.append(norm / (self.epsilon * (unit if self.relative else 1.0)))
            norms.append(norm)
        noise = {name: drawn * mask.unsqueeze(2) for name, drawn in self._noise(moves).items()}
        total = torch.stack([drawn.square().sum(dim=(1, 2)) for drawn in noise.values()]).sum(dim=0).sqrt()
        scales = (torch.tensor(norms, dtype=torch.float64) / total).reshape(-1, 1, 1)
        return {name: (drawn * scales).float() for name, drawn in noise.items()}

    def _see_tables(self, batch: Any, clean: dict[str, Tensor], moved: dict[str, Tensor]) -> dict[str, Tensor]:
        """Look at which rows moved, and how far; returns what noise of the same norm in the same rows adds to each position."""
        seen, mask = self.seen, batch.mask
        ids = {"characters": batch.characters, "bigrams": batch.bigrams}
        moves = {name: (moved[name] - clean[name]).double() for name in clean}
        used = {name: torch.zeros(len(table), dtype=torch.bool) for name, table in clean.items()}
        for name, rows in used.items():
            at = ids[name][mask]
            rows[at[at < len(rows)]] = True  # those beyond are frozen and in no table that can move
        seen.tokens += all(not move[~used[name]].any() and bool(move.any()) for name, move in moves.items())
        seen.padding += all(not move[0].any() for move in moves.values())
        norm = math.sqrt(sum(float(move.square().sum()) for move in moves.values()))
        unit = 1.0
        if self.relative:
            unit = math.sqrt(sum(float(clean[name][used[name]].double().square().sum()) for name in clean))
        seen.norms.append(norm / (self.epsilon * unit))
        noise = {name: drawn * used[name].unsqueeze(1) for name, drawn in self._noise(clean).items()}
        scale = norm / math.sqrt(sum(float(drawn.square().sum()) for drawn in noise.values()))
        return {
            name: torch.where(
                (ids[name] < len(drawn)).unsqueeze(2), drawn[ids[name].clamp_max(len(drawn) - 1)] * scale, 0.0
            ).float()
            for name, drawn in noise.items()
        }


def measure(recipe: Recipe, data: Any, run: str, steps: int, folder: Path) -> dict[str, Any]:
    """Train `steps` steps under one attack and watch."""
    name, given = RUNS[run]
    settings = trick_class(name).Settings(**given)
    reseed(recipe.train.seed, "weights")
    assert isinstance(recipe.model, BiLSTMCRF.Config)
    model = BiLSTMCRF.build(recipe.model, data)
    features = [model.featurize(document) for document in data.train if document.text]
    folder.mkdir(parents=True)
    epochs = math.ceil(steps / math.ceil(len(features) / recipe.train.batch_size))
    train = recipe.train.model_copy(update={"epochs": epochs})
    trainer = WatchedTrainer(model, features, train, build_tricks({name: settings}), lambda model: {}, "f1", folder, {})
    trainer.reporter.console.quiet = True
    trainer.watch(given.get("epsilon") or given["max_norm"], given.get("norm") == "relative", "target" in given)
    plan = [(epoch, window) for epoch in range(epochs) for window in trainer._plan(epoch)]
    for epoch, window in plan[:steps]:
        trainer._step(epoch, window)
    seen = trainer.seen
    norms = torch.tensor(seen.norms)
    found: dict[str, Any] = {
        "steps": seen.steps,
        "higher": round(seen.higher / seen.steps, 4),
        "higher_at_random": round(seen.higher_at_random / seen.steps, 4),
        "clean_loss": round(seen.clean / seen.steps, 4),
        "rise": round(seen.rise / seen.steps, 4),
        "rise_at_random": round(seen.rise_at_random / seen.steps, 4),
        "restored": seen.restored / seen.steps,
        "padding": seen.padding / seen.steps,
        "norm_largest": round(float(norms.max()), 7),
        "norm_smallest": round(float(norms.min()), 7),
        "norm_on_the_ball": round(float(((norms - 1).abs() <= TOLERANCE).double().mean()), 4),
    }
    if trainer.on_tables:
        found["tokens"] = seen.tokens / seen.steps
    every = found["restored"] == found["padding"] == found.get("tokens", 1.0) == 1.0
    inside = found["norm_largest"] <= 1 + TOLERANCE and (name != "fgm" or found["norm_on_the_ball"] == 1.0)
    found["holds"] = bool(found["higher"] >= ASKED and every and inside)
    return found


def recipe_of(hidden: int) -> Recipe:
    """What is trained."""
    common = ["train.precision=float32", "train.tricks={}", "train.batch_size=16", f"model.hidden={hidden}"]
    if not os.environ.get("HANZOO_DATA"):
        return load_recipe("demo_bilstm_crf", common)
    vectors = [] if os.environ.get("HANZOO_VECTORS") else ["model.vectors=null"]
    return load_recipe("weibo_bilstm_crf", [*common, *vectors])


def main() -> None:
    """Measure, print the table and the line."""
    parser = argparse.ArgumentParser(description="Do the attacks attack?")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each run")
    parser.add_argument("--hidden", type=int, default=64, help="LSTM units a direction")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/attacks.json")
    options = parser.parse_args()
    if min(options.steps, options.hidden, options.threads) < 1:
        parser.error("--steps, --hidden and --threads must be at least 1")
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    recipe = recipe_of(options.hidden)
    data = load_data(recipe)
    assert isinstance(recipe.model, BiLSTMCRF.Config)
    runs: dict[str, dict[str, Any]] = {}
    print(
        f"{data.name:29}{'higher':>8}{'at random':>11}{'clean loss':>12}"
        f"{'rise':>9}{'at random':>11}{'restored':>10}{'padding':>9}{'tokens':>8}"
        f"{'norm / epsilon':>21}{'on the ball':>13}"
    )
    with tempfile.TemporaryDirectory() as place:
        for run in RUNS:
            found = runs[run] = measure(recipe, data, run, options.steps, Path(place) / run.replace(" ", "_"))
            tokens = f"{found['tokens']:.0%}" if "tokens" in found else "-"
            span = f"{found['norm_smallest']:.6f}-{found['norm_largest']:.6f}"
            print(
                f"{run:29}{found['higher']:8.1%}{found['higher_at_random']:11.1%}{found['clean_loss']:12.4f}"
                f"{found['rise']:9.4f}{found['rise_at_random']:11.4f}{found['restored']:10.0%}{found['padding']:9.0%}{tokens:>8}{span:>21}"
                f"{found['norm_on_the_ball']:13.1%}{'' if found['holds'] else '  FAILS'}",
                flush=True,
            )
    line = {
        "benchmark": "attacks",
        "data": data.name,
        "vectors": recipe.model.vectors,
        "asked": ASKED,
        "holds": all(found["holds"] for found in runs.values()),
        "higher_least": min(found["higher"] for found in runs.values()),
        "higher_at_random_most": max(found["higher_at_random"] for found in runs.values()),
        "restored": all(found["restored"] == 1.0 for found in runs.values()),
        "padding": all(found["padding"] == 1.0 for found in runs.values()),
        "tokens": all(found.get("tokens", 1.0) == 1.0 for found in runs.values()),
        "norm_error_fgm": max(
            max(abs(found["norm_largest"] - 1), abs(found["norm_smallest"] - 1))
            for name, found in runs.items()
            if name.startswith("fgm")
        ),
        "norm_largest": max(found["norm_largest"] for found in runs.values()),
        "settings": {name: {"trick": trick, **given} for name, (trick, given) in RUNS.items()},
        "runs": runs,
        "steps": options.steps,
        "hidden": options.hidden,
        "threads": options.threads,
        "torch": str(torch.__version__),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    report(line, options.save)
    if not line["holds"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
