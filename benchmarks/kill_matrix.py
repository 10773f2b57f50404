"""`kill -9` at random optimizer steps, resumed until done: does every training end in the bits of one that nobody disturbed?

    python benchmarks/kill_matrix.py [--kills 5] [--seed 1] [--only NAME ...] [--folder DIR] [--save]

A cell is a training in one precision (float32, bfloat16) on one process or two (gloo, three micro-batches a step and rank). There
is a cell for plain training, for every trick alone (each file of training/tricks/ is found), for ten pairs of tricks, and for what
else has to come back: a small BiLSTM-CRF is trained on a part of the bundled corpus; and where vectors of past batches are kept, a
bi-encoder with a small BERT of random weights (one micro-batch a step and rank). Each is trained first undisturbed, then in another
folder with kills: SIGKILL to the process, or to either rank, once a randomly drawn step is done and a further random wait of up to
a step is over; one kill of each cell waits until the run is writing a folder. After each kill it is started with --resume, after
the last one it runs to its end. Every start is a real process that runs `train`, forked from one that has imported once
(fork_server.py). Runs are kept in memory (/dev/shm) where that is there: a process that is killed cannot tell, and it is faster.

Equal must be, by SHA-256: the last weights, the optimizer's state, the tricks' state (EMA's average), the best weights so far; and
metrics.jsonl and the final figures, but for speeds. Controls break resuming on purpose, and must come out as different.

Finished cells are kept in DIR/cells.jsonl (default: runs/kill_matrix) and not run again, as long as code, versions and settings
are the same: a command that was stopped goes on. A line of JSON ends the output; --save also writes it, with all cells, to
benchmarks/results/kill_matrix.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed works too

import numpy as np  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.fork_server import LIMIT, PAUSE, ForkServer, is_saving, last_step, records, results  # noqa: E402
from hanzoo.build import commit, versions  # noqa: E402
from hanzoo.data.files import write_file  # noqa: E402
from hanzoo.data.randomness import reseed  # noqa: E402
from hanzoo.data.subwords import quiet  # noqa: E402
from hanzoo.models.model import read_tensors  # noqa: E402
from hanzoo.models.objectives.info_nce import InfoNCE  # noqa: E402
from hanzoo.training import trainer  # noqa: E402
from hanzoo.training.checkpoint import tensors_sha256  # noqa: E402
from hanzoo.training.trick import Trick, trick_class, trick_names  # noqa: E402
from hanzoo.training.tricks.ema import EMA  # noqa: E402

# The shortest sentences, in 8 windows an epoch, 48 in all. Dev is a part of train and the rate is high, so that F1 moves, and with
# it which epoch is the best so far.
NUM_SENTENCES, NUM_DEV, WINDOW, EPOCHS = 96, 24, 12, 6
RECIPE = f"""
data: {{train: train.jsonl, dev: dev.jsonl}}
model: {{name: bilstm_crf, dimension: 32, hidden: 32, unknown_rate: 0.1}}
train:
  epochs: {EPOCHS}
  optimizer: {{learning_rate: 0.06}}
  log_every: 1
  save_every: 3
  threads: 1
  device: cpu
evaluate: {{calibrate: false}}
"""
# The same sentences as single texts (SimCSE), and as pairs on dev, labelled in turn: what it learns does not matter.
MATCHER_RECIPE = f"""
data: {{train: train.tsv, dev: dev.tsv, items: texts}}
model: {{name: bi_encoder, encoder: tiny-encoder, encoder_dropout: 0.1}}
objective: {{name: info_nce}}
train:
  epochs: {EPOCHS}
  optimizer: {{learning_rate: 0.003}}
  log_every: 1
  save_every: 3
  threads: 1
  device: cpu
evaluate: {{calibrate: false}}
"""
RECIPES = {"tagger": RECIPE, "matcher": MATCHER_RECIPE}
PRECISIONS = ("float32", "bfloat16")
RANKS = {
    1: (f"train.batch_size={WINDOW}",),
    2: (f"train.batch_size={WINDOW // 6}", "train.accumulation=3"),
}
# An objective over the batch goes with no accumulation.
MATCHER_RANKS = {1: (f"train.batch_size={WINDOW}",), 2: (f"train.batch_size={WINDOW // 2}",)}
NUM_PAIRS = 10
TRIES = 3  # of a cell whose run could not be killed in time
ALONE = 10.0  # seconds in which a rank must notice that the other one is gone
CHARACTERS = "CHARACTERS"  # in a setting: so many that some micro-batches are smaller for it
CHARACTERS_OF = {1: "200", 2: "30"}  # by the number of ranks, whose micro-batches are smaller anyway
ENCODER = "tiny-encoder"  # a folder
START = "START"  # in a setting: the directory of a run that has finished, on the same data

# How a trick is set where its defaults would do nothing in a training this short, with whatever else it needs. A trick that is not
# here is trained with its defaults; one that needs a trained model gets it in any case.
TRICKS: dict[str, tuple[str, ...]] = {
    "ema": ("train.tricks.ema={decay: 0.9}",),
    "flooding": ("train.tricks.flooding={level: 0.2}",),
    "ewc": ("train.tricks.ewc={num_samples: 8}",),
    "pgd": ("train.tricks.pgd={num_steps: 2}",),
    "swa": ("train.tricks.swa={start: 0.3}",),
}
# What else has a state, or changes the plan.
OTHERS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "fgm on the table": ("train.tricks.fgm={target: table}",),
    "sgd from epoch": ("train.optimizer={learning_rate: 0.06, sgd_from_epoch: 4, sgd_learning_rate: 0.1}",),
    "sgd momentum": ("train.optimizer={name: sgd, learning_rate: 0.1, momentum: 0.9}",),
    "adamax": ("train.optimizer={name: adamax, learning_rate: 0.06}",),
    "plateau": ("train.schedule={name: plateau, patience: 1, factor: 0.3}",),
    "cosine restarts": ("train.schedule={name: cosine_restarts, cycles: 2}",),
    "label smoothing": ("model.label_smoothing=0.1",),
    "class weights": ("model.class_weights=0.5",),
    "multi-sample dropout": ("model.multi_sample_dropout=3",),
    "oversample": ("train.oversample=0.3",),
    "start from": (f"train.start_from={START}",),
    "distillation": (f"distillation.teacher={START}",),
    "batch characters": (f"train.batch_characters={CHARACTERS}",),
}
# Of the matcher: what is kept of past batches.
QUEUE = "objective.momentum_queue={capacity: 30, momentum: 0.9}"
MATCHERS: dict[str, tuple[str, ...]] = {
    "momentum queue": (QUEUE, "objective.repetition=0.3"),
    "momentum queue+fgm+r_drop": (QUEUE, "train.tricks={fgm: {}, r_drop: {}}"),
    "cross-batch memory": ("objective.cross_batch_memory={capacity: 30, start_step: 5}",),
    "cross-batch memory+r_drop": ("objective.cross_batch_memory={capacity: 30}", "train.tricks={r_drop: {}}"),
}

# Trained once by each server, so that all is imported and compiled.
WARM_UPS = {
    "tagger": ("train.epochs=3", "train.seed=7", "train.tricks={r_drop: {}}", *RANKS[1]),
    "matcher": ("train.epochs=1", "train.seed=7", "train.tricks={r_drop: {}}", *MATCHER_RANKS[1]),
}


# Controls: called in each process of a cell before it trains. An undisturbed run goes on from nothing, so none of them changes it
# but in where dropout draws from. Each breaks what a trainer may well lack.


def forget_average() -> None:
    """EMA begins anew where a run goes on."""
    EMA.load_state = lambda self, tensors, model: None  # type: ignore[method-assign]


def forget_optimizer() -> None:
    """The optimizer's moments are not restored."""
    restore = trainer.Trainer._restore

    def without(self: trainer.Trainer) -> None:
        restore(self)
        self.optimizer.state.clear()

    trainer.Trainer._restore = without  # type: ignore[method-assign]


def forget_randomness() -> None:
    """Dropout draws from one stream that begins with the process, and not from a key of its own a step."""
    trainer.reseed = lambda *key: None  # type: ignore[attr-defined]


def forget_past() -> None:
    """What is kept of past batches is not restored."""
    InfoNCE.training_state = lambda self: {}  # type: ignore[method-assign]


CONTROLS: dict[str, Callable[[], None]] = {
    "ema": forget_average,
    "momentum queue": forget_past,
    "plain": forget_optimizer,
    "r_drop": forget_randomness,
}


class Cell(NamedTuple):
    """One training of the matrix.

    Attributes:
        name: of what is trained.
        precision: float32 or bfloat16.
        ranks: processes.
        settings: of the command line.
        control: the name of a function here that breaks resuming; empty for the matrix itself.
    """

    name: str
    precision: str
    ranks: int
    settings: tuple[str, ...]
    control: str = ""

    @property
    def recipe(self) -> str:
        """The name of its recipe."""
        return "matcher" if self.name in MATCHERS else "tagger"

    @property
    def key(self) -> str:
        """What tells it from all others; also a name for a folder."""
        return " ".join([self.name, self.precision, str(self.ranks), *([self.control] if self.control else [])])


def trick_settings(name: str) -> tuple[str, ...]:
    """The settings that train with a trick."""
    settings = TRICKS.get(name, (f"train.tricks.{name}={{}}",))
    return (*settings, f"train.start_from={START}") if trick_class(name).needs_start else settings


def places(name: str) -> frozenset[str]:
    """Which places of the loop a trick changes."""
    cls = trick_class(name)
    return frozenset(
        method
        for method in ("wrap_loss", "wrap_backward", "before_step", "after_step")
        if getattr(cls, method) is not getattr(Trick, method)
    )


def pairs(names: Iterable[str], number: int = NUM_PAIRS) -> list[tuple[str, str]]:
    """Pairs of tricks that go together and change different places, such that every trick is in about as many."""
    left = [
        (first, second)
        for first, second in combinations(sorted(names), 2)
        if second not in trick_class(first).excludes
        and first not in trick_class(second).excludes
        and not places(first) & places(second)
    ]
    chosen: list[tuple[str, str]] = []
    while left and len(chosen) < number:
        used = [name for pair in chosen for name in pair]
        best = min(left, key=lambda pair: (max(map(used.count, pair)), sum(map(used.count, pair)), pair))
        left.remove(best)
        chosen.append(best)
    return chosen


def make_cell(training: str, settings: Sequence[str], precision: str, ranks: int, control: str = "") -> Cell:
    """The cell of a training in a precision on a number of processes."""
    settings = [setting.replace(CHARACTERS, CHARACTERS_OF[ranks]) for setting in settings]
    sizes = (MATCHER_RANKS if training in MATCHERS else RANKS)[ranks]
    return Cell(training, precision, ranks, (*settings, f"train.precision={precision}", *sizes), control)


def all_trainings() -> dict[str, tuple[str, ...]]:
    """The settings of every training of the matrix."""
    return {
        **OTHERS,
        **MATCHERS,
        **{name: trick_settings(name) for name in trick_names()},
        **{"+".join(pair): (*trick_settings(pair[0]), *trick_settings(pair[1])) for pair in pairs(trick_names())},
    }


def all_cells() -> list[Cell]:
    """The whole matrix, then the controls."""
    trainings = all_trainings()
    cells = [
        make_cell(name, settings, precision, ranks)
        for ranks in RANKS
        for name, settings in trainings.items()
        for precision in PRECISIONS
    ]
    controls = [
        make_cell(name, trainings[name], PRECISIONS[0], 1, broken.__name__) for name, broken in CONTROLS.items()
    ]
    return cells + controls


@dataclass
class Outcome:
    """What one cell came to.

    Attributes:
        name: of the cell; likewise
        precision: and
        ranks: and
        control: .
        steps: of the training.
        killed_at: for each kill the last optimizer step that was recorded.
        resumed_from: for each kill the step of the state that the run went on from.
        killed_ranks: for each kill the rank.
        while_saving: kills that left a half-written folder.
        left_behind: kills after which the other rank did not end by itself, and was killed too.
        equal: what was compared, and whether it was equal.
        sha256: over all that was compared, of the undisturbed run.
        seconds: that the cell took.
    """

    name: str
    precision: str
    ranks: int
    control: str
    steps: int
    killed_at: list[int]
    resumed_from: list[int]
    killed_ranks: list[int]
    while_saving: int
    left_behind: int
    equal: dict[str, bool]
    sha256: str
    seconds: float

    @property
    def is_right(self) -> bool:
        """Whether all is equal; of a control, whether something is not."""
        return all(self.equal.values()) != bool(self.control)

    def row(self) -> str:
        """Its line of the table."""
        different = [name for name, equal in self.equal.items() if not equal]
        name = f"{self.name}, {self.control} (control)" if self.control else self.name
        at, source = (" ".join(map(str, steps)) for steps in (self.killed_at, self.resumed_from))
        verdict = f"DIFFER: {', '.join(different)}" if different else "all equal"
        return (
            f"{name:32} {self.precision:9} {self.ranks:5} {self.steps:5}  {at:18} {source:18} {self.while_saving:9} "
            f"{self.seconds:7}  {verdict}"
        )


HEADING = f"{'':32} {'precision':9} {'ranks':5} {'steps':5}  {'killed at step':18} {'resumed from':18} in a save seconds  compared"


class TooLate(RuntimeError):  # noqa: N818 - no error of the run: it is tried again
    """A run had ended before it could be killed: the machine has other work, and kept us waiting."""


class Matrix:
    """Runs cells of one recipe.

    Args:
        folder: where what trainings print is kept, if they fail.
        kills: of each cell.
        seed: of the steps and moments of kills.
        recipe: the name of that of its cells.
    """

    def __init__(self, folder: Path, kills: int, seed: int, recipe: str) -> None:
        self.folder, self.kills, self.seed = folder, kills, seed
        memory = Path("/dev/shm")
        self._place = tempfile.TemporaryDirectory(
            prefix="kill_matrix-", dir=memory if memory.is_dir() and os.access(memory, os.W_OK) else None
        )
        self.runs = Path(self._place.name)
        corpus = (ROOT / "data" / "corpora" / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        sentences = sorted(corpus, key=lambda line: len(json.loads(line)["text"]))[:NUM_SENTENCES]
        texts = [json.loads(line)["text"] for line in sentences]
        pairs = ["first\tsecond\tlabel\n"]
        pairs += [f"{texts[number]}\t{texts[number + 1]}\t{number // 2 % 2}\n" for number in range(0, len(texts), 2)]
        files = {
            "train.jsonl": sentences, "dev.jsonl": sentences[:NUM_DEV],
            "train.tsv": pairs, "dev.tsv": pairs[:NUM_DEV],
        }  # fmt: skip
        for name, lines in files.items():
            (self.runs / name).write_text("".join(lines), encoding="utf-8")
        content = RECIPES[recipe]
        for name in (*files, ENCODER):
            content = content.replace(name, str(self.runs / name))
        self.recipe = self.runs / "tiny.yaml"
        self.recipe.write_text(content, encoding="utf-8")
        if recipe == "matcher":
            write_encoder(self.runs / ENCODER, texts)
        said = folder / recipe
        said.mkdir(exist_ok=True)
        self.server = ForkServer(said, [str(self.recipe), *WARM_UPS[recipe], "--run", str(self.runs / START)])

    def measure(self, cell: Cell) -> Outcome:
        """Train undisturbed, and with kills, and compare."""
        began = time.monotonic()
        folder = self.runs / cell.key
        folder.mkdir()
        whole, cut = folder / "whole", folder / "cut"
        log = self._log(cell)
        log.unlink(missing_ok=True)
        self._finish(self._start(cell, whole))
        draws = np.random.default_rng([self.seed, zlib.crc32(cell.key.encode())])
        for attempt in range(TRIES):
            try:
                outcome = self._with_kills(cell, whole, cut, draws)
                break
            except TooLate:
                if attempt == TRIES - 1:
                    raise
                shutil.rmtree(cut)
        outcome.seconds = round(time.monotonic() - began, 1)
        shutil.rmtree(folder)
        log.unlink()
        return outcome

    def close(self) -> None:
        """End all processes, and remove what they wrote."""
        self.server.close()
        self._place.cleanup()

    def _log(self, cell: Cell) -> Path:
        return self.folder / f"{cell.key}.log"

    def _with_kills(self, cell: Cell, whole: Path, cut: Path, draws: np.random.Generator) -> Outcome:
        steps = int(results(whole)["steps"])
        killed_at: list[int] = []
        resumed_from: list[int] = []
        killed_ranks: list[int] = []
        while_saving = left_behind = 0
        pace = seconds_a_step(whole)
        # each kill in its own part of the training; some steps are left at the end: a kill after the last would be none
        bounds = np.linspace(1, steps - 4, self.kills + 1).astype(int)
        in_a_save = int(draws.integers(self.kills))
        for number in range(self.kills):
            target = max(int(draws.integers(bounds[number], bounds[number + 1])), last_step(cut) + 1)
            victim = int(draws.integers(cell.ranks))
            ranks = self._start(cell, cut)
            self._await(partial(has_done, cut, target), ranks)
            if number == in_a_save:
                self._await(partial(is_saving, cut), ranks)
            else:
                time.sleep(float(draws.uniform(0, pace)))
            left_behind += self._kill(ranks, victim)
            killed_at.append(last_step(cut))
            killed_ranks.append(victim)
            while_saving += is_saving(cut)
            resumed_from.append(saved_step(cut))
        self._finish(self._start(cell, cut))
        expected, found = fingerprints(whole), fingerprints(cut)
        equal = {name: found[name] == value for name, value in expected.items()}
        equal["metrics"] = records(cut) == records(whole)
        sha256 = hashlib.sha256(json.dumps(expected, sort_keys=True).encode()).hexdigest()
        return Outcome(
            cell.name, cell.precision, cell.ranks, cell.control, steps, killed_at, resumed_from, killed_ranks, while_saving,
            left_behind, equal, sha256, 0.0,
        )  # fmt: skip

    def _start(self, cell: Cell, run: Path) -> list[int]:
        """Start all ranks; goes on with a run that is there."""
        settings = [setting.replace(START, str(self.runs / START)) for setting in cell.settings]
        arguments = [str(self.recipe), *settings, "--run", str(run), *(["--resume"] if run.exists() else [])]
        before = f"benchmarks.kill_matrix:{cell.control}" if cell.control else ""
        environment: dict[str, str] = {}
        if cell.ranks > 1:
            environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(cell.ranks)}
        return [
            self.server.start(
                arguments, self._log(cell), before=before,
                environment={**environment, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if environment else {})},
            )
            for rank in range(cell.ranks)
        ]  # fmt: skip

    def _finish(self, ranks: Sequence[int]) -> None:
        codes = [self.server.wait(child) for child in ranks]
        if any(codes):
            raise RuntimeError(f"train ended with {codes}: see the logs in {self.folder}")

    def _await(self, condition: Callable[[], bool], ranks: Sequence[int]) -> None:
        """Wait until a condition holds of a run that these processes train."""
        deadline = time.monotonic() + LIMIT
        while not condition():
            codes = [self.server.code(child) for child in ranks]
            if any(code is not None for code in codes) or time.monotonic() > deadline:
                if all(code in (None, 0) for code in codes) and 0 in codes:
                    self._finish(ranks)
                    raise TooLate
                for child in ranks:
                    self.server.wait(child, limit=0)
                raise RuntimeError(f"train ended with {codes}: see the logs in {self.folder}")
            time.sleep(PAUSE)

    def _kill(self, ranks: Sequence[int], victim: int) -> int:
        """Kill one rank; returns how many of the others had to be killed too."""
        left_behind = 0
        code = self.server.wait(ranks[victim], limit=0)
        if code == 0:
            self._finish(ranks)
            raise TooLate
        if code != -signal.SIGKILL:
            raise RuntimeError(f"train ended with {code}: see the logs in {self.folder}")
        for other in (child for number, child in enumerate(ranks) if number != victim):
            code = self.server.wait(other, limit=ALONE)
            if code == 0:
                raise TooLate
            left_behind += code == -signal.SIGKILL
        return left_behind


def write_encoder(folder: Path, texts: Iterable[str]) -> None:
    """A small BERT of random weights whose vocabulary is the characters of the texts, as a Hugging Face folder."""
    from transformers import BertConfig, BertModel

    folder.mkdir()
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*marks, *sorted({character for text in texts for character in text})]
    (folder / "vocab.txt").write_text("".join(piece + "\n" for piece in pieces), encoding="utf-8")
    about = {"tokenizer_class": "BertTokenizer", "model_max_length": 128}
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    reseed(1, "encoder")
    shape = BertConfig(
        vocab_size=len(pieces), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=128,
    )  # fmt: skip
    with quiet():
        BertModel(shape).save_pretrained(folder)


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def has_done(run: Path, step: int) -> bool:
    """Whether a run has recorded that step."""
    return last_step(run) >= step


def saved_step(run: Path) -> int:
    """The step of the newest state of a run."""
    return max((int(path.name) for path in run.glob("state/*") if path.name.isdigit()), default=0)


def read_values(run: Path) -> dict[str, Any]:
    """What state.json of the newest state says."""
    content: dict[str, Any] = json.loads((run / "state" / f"{saved_step(run):08d}" / "state.json").read_text("utf-8"))
    return content


def seconds_a_step(run: Path) -> float:
    """How long an optimizer step of a finished run took; the first is not counted."""
    progress = read_values(run)["progress"]
    return float(progress["training_seconds"]) / (int(progress["step"]) - 1)


CLOCKS = ("seconds", "training_seconds", "trained_items", "metrics_bytes")  # parts of the progress that depend on speed


def fingerprints(run: Path) -> dict[str, Any]:
    """SHA-256 of each group of tensors in the last state, and of the model; what else the state and the results say."""
    groups: dict[str, dict[str, Tensor]] = {name: {} for name in ("weights", "optimizer", "tricks", "best", "training")}
    for name, tensor in read_tensors(run / "state" / f"{saved_step(run):08d}" / "tensors.safetensors").items():
        group, _, rest = name.partition("/")
        groups[group][rest] = tensor
    values, ended = read_values(run), results(run)
    values["progress"] = {name: value for name, value in values["progress"].items() if name not in CLOCKS}
    found: dict[str, Any] = {name: tensors_sha256(tensors) for name, tensors in groups.items()}
    return found | {
        "model": ended["weights_sha256"],
        "values": [values, ended["splits"], ended["steps"], ended["best_step"], ended["nonfinite_steps"]],
    }


def code_sha256() -> str:
    """Of all code that a training runs, and of what kills it."""
    total = hashlib.sha256()
    parts = [ROOT / part for part in ("data", "evaluation", "models", "tasks", "training")]
    files = [*(path for part in parts for path in part.rglob("*.py")), *(ROOT / "hanzoo").glob("*.py")]
    for path in [*sorted(files), ROOT / "benchmarks" / "kill_matrix.py", ROOT / "benchmarks" / "fork_server.py"]:
        content = path.read_bytes()
        total.update(f"{path.relative_to(ROOT).as_posix()} {len(content)}\n".encode() + content)
    return total.hexdigest()


def identities(cells: Iterable[Cell], kills: int, seed: int) -> dict[Cell, str]:
    """For each cell what must be the same for it to be kept once it has finished."""
    facts = {"recipes": RECIPES, "kills": kills, "seed": seed, "code": code_sha256(), **versions()}
    return {cell: json.dumps([*cell, facts]) for cell in cells}


def read_finished(path: Path) -> dict[str, Outcome]:
    """The cells that were finished, by their identity."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with suppress(ValueError):  # a line that was cut off
            of, outcome = json.loads(line)
            found[of] = Outcome(**outcome)
    return found


def run_cells(
    cells: Sequence[Cell], folder: Path, kills: int, seed: int, say: Callable[[str], None] = print
) -> list[Outcome]:
    """Run cells side by side, as many as there are cores for; those that were finished in `folder` are not run again.

    Raises:
        RuntimeError: a training ended otherwise than it must. What was finished until then is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cells.jsonl"
    names = identities(cells, kills, seed)
    known = read_finished(path)
    outcomes = {cell: known[name] for cell, name in names.items() if name in known}
    say(HEADING)
    for outcome in outcomes.values():
        say(outcome.row())
    left = [cell for cell in cells if cell not in outcomes]
    if left:
        matrices: dict[str, Matrix] = {}
        try:
            for recipe in dict.fromkeys(cell.recipe for cell in left):
                matrices[recipe] = Matrix(folder, kills, seed, recipe)
            # two ranks wait for each other often enough to leave a core to another cell
            with ThreadPoolExecutor(num_cores()) as lanes:
                running = {lanes.submit(matrices[cell.recipe].measure, cell): cell for cell in left}
                try:
                    for future in as_completed(running):
                        cell = running[future]
                        outcomes[cell] = outcome = future.result()
                        with path.open("a", encoding="utf-8") as file:  # a line that was cut off stays apart
                            file.write(f"\n{json.dumps([names[cell], asdict(outcome)])}\n")
                        say(outcome.row())
                except BaseException:
                    lanes.shutdown(wait=False, cancel_futures=True)
                    raise
        finally:
            for matrix in matrices.values():
                matrix.close()
    return [outcomes[cell] for cell in cells]


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_minutes() -> float:
    """Of this process and of all that it has started."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used) / 60


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What the outcomes come to, for the line of JSON."""
    cells = [outcome for outcome in outcomes if not outcome.control]
    controls = [outcome for outcome in outcomes if outcome.control]
    differ = len({outcome.sha256 for outcome in cells}) == len(cells)  # what is switched on is on
    return {
        "benchmark": "kill_matrix",
        "right": all(outcome.is_right for outcome in outcomes) and differ,
        "cells": len(cells),
        "cells_equal": sum(outcome.is_right for outcome in cells),
        "kills": sum(len(outcome.killed_at) for outcome in cells),
        "kills_while_saving": sum(outcome.while_saving for outcome in cells),
        "fewest_kills": min((len(outcome.killed_at) for outcome in cells), default=0),
        "all_cells_differ": differ,
        "controls": len(controls),
        "controls_differ": sum(outcome.is_right for outcome in controls),
        "ranks_left_behind": sum(outcome.left_behind for outcome in outcomes),
        "trainings": len({outcome.name for outcome in cells}),
        "tricks": trick_names(),
        "pairs": ["+".join(pair) for pair in pairs(trick_names())],
        "minutes_of_cells": round(sum(outcome.seconds for outcome in outcomes) / 60, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5, help="kills a cell")
    parser.add_argument("--seed", type=int, default=1, help="of the steps and moments at which runs are killed")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="trainings to run, e.g. plain fgm+ema; default: all")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "runs" / "kill_matrix", help="where finished cells are kept"
    )
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/kill_matrix.json")
    arguments = parser.parse_args()
    cells = all_cells()
    names = all_trainings()
    for name in arguments.only or ():
        if name not in names:
            parser.error(f"--only: must be of {', '.join(names)}, but is {name!r}")
    if arguments.only:
        cells = [cell for cell in cells if cell.name in arguments.only]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: it ends what it has started
    folder, began = arguments.folder.absolute(), time.monotonic()
    known = set(identities(cells, arguments.kills, arguments.seed).values()) & set(
        read_finished(folder / "cells.jsonl")
    )
    outcomes = run_cells(cells, folder, arguments.kills, arguments.seed)
    record = summary(outcomes) | {
        "cells_of_earlier_calls": len(known),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "processor_minutes": round(processor_minutes(), 1),
        "machine": f"{num_cores()} cores, {platform.machine()}, 1 thread a process",
        "commit": commit(),
        **versions(),
    }
    if arguments.save:
        target = ROOT / "benchmarks" / "results" / "kill_matrix.json"
        lines = ",\n".join(json.dumps(asdict(outcome)) for outcome in outcomes)
        write_file(target, f'{json.dumps(record)[:-1]}, "outcomes": [\n{lines}\n]}}\n')
    print(json.dumps(record))
    if not record["right"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
