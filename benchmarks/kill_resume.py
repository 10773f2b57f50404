"""`kill -9` at random optimizer steps, resumed until done: are the final weights those of a run that nobody disturbed?

    python benchmarks/kill_resume.py [--kills 5] [--seed 1] [--save]

For plain training, FGM, PGD and R-Drop: `python train.py` on the bundled corpus with a small BiLSTM-CRF runs once undisturbed.
Then it is started again in another folder, killed (SIGKILL, the whole process) when metrics.jsonl shows that a randomly drawn
optimizer step was reached, after a further random wait of up to one step so that kills fall inside steps and inside saves alike,
and started with --resume; after all kills it runs to its end. Compared are the SHA-256 of the final weights, and metrics.jsonl
but for speeds. As a control, another seed must end in other weights. A line of JSON ends the output; --save also writes it to
benchmarks/results/kill_resume.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RECIPE = """
data: {name: bundled}
model: {name: bilstm_crf, dimension: 16, hidden: 16}
train: {epochs: 4, batch_size: 20, log_every: 1, save_every: 4, threads: 1, device: cpu}
evaluate: {calibrate: false}
"""
NUM_STEPS = 80
RUNS = {
    "plain": "train.tricks={}",
    "fgm": "train.tricks={fgm: {}}",
    "pgd": "train.tricks={pgd: {}}",
    "r_drop": "train.tricks={r_drop: {}}",
    "swa": "train.tricks={swa: {start: 0.2, every: 3}}",
}
LONGEST_WAIT = 0.03  # seconds: about one step
LIMIT = 600.0  # seconds that one start may take


@dataclass
class Outcome:
    """What one run came to.

    Attributes:
        undisturbed: SHA-256 of the weights of the run that was left alone.
        resumed: of the run that was killed.
        killed_at: for each kill the last optimizer step that was recorded.
        while_saving: kills that left a half-written folder.
        resumed_from: for each resumed start the step it went on from.
        same_metrics: whether both metrics.jsonl say the same but for speeds.
    """

    undisturbed: str
    resumed: str
    killed_at: list[int]
    while_saving: int
    resumed_from: list[int]
    same_metrics: bool


def start(recipe: Path, run: Path, *settings: str) -> subprocess.Popen[str]:
    """Start `python train.py` in a process of its own; goes on with a run that is there."""
    command = [sys.executable, str(ROOT / "train.py"), str(recipe), *settings, "--run", str(run)]
    if run.exists():
        command.append("--resume")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=run.parent, env=environment
    )


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a run to end well."""
    _, errors = process.communicate(timeout=LIMIT)
    if process.returncode:
        raise RuntimeError(f"train.py ended with {process.returncode}:\n{errors}")


def records(run: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl, but for speeds."""
    path = run / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [{name: value for name, value in json.loads(line).items() if name != "units_per_second"} for line in lines]


def last_step(run: Path) -> int:
    """The last optimizer step that a run has recorded."""
    return max((record["step"] for record in records(run)), default=0)


def saved_step(run: Path) -> int:
    """The step of the newest state of a run."""
    return max((int(path.name) for path in run.glob("state/*") if path.name.isdigit()), default=0)


def weights(run: Path) -> str:
    """SHA-256 of the final weights."""
    content = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return str(content["weights_sha256"])


def kill_at(process: subprocess.Popen[str], run: Path, step: int, wait: float) -> None:
    """Kill a run once it has recorded `step`, `wait` seconds later."""
    deadline = time.monotonic() + LIMIT
    while last_step(run) < step:
        if process.poll() is not None or time.monotonic() > deadline:
            _, errors = process.communicate()
            raise RuntimeError(f"train.py ended with {process.returncode} before step {step}:\n{errors}")
        time.sleep(0.005)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"train.py ended with {process.returncode} before it could be killed")


def measure(recipe: Path, folder: Path, setting: str, kills: int, draws: np.random.Generator) -> Outcome:
    """Train undisturbed, and with kills, in two folders."""
    whole, cut = folder / "whole", folder / "cut"
    finish(start(recipe, whole, setting))
    # leave room at the end: a kill that comes after the last step would be none
    steps = sorted(int(step) for step in draws.choice(np.arange(1, NUM_STEPS - 8), size=kills, replace=False))
    killed_at, resumed_from, while_saving = [], [], 0
    for step in steps:
        resumed_from.append(saved_step(cut))
        process = start(recipe, cut, setting)
        kill_at(process, cut, step, float(draws.uniform(0, LONGEST_WAIT)))
        killed_at.append(last_step(cut))
        while_saving += any(cut.rglob(".*"))
    resumed_from.append(saved_step(cut))
    finish(start(recipe, cut, setting))
    return Outcome(
        weights(whole), weights(cut), killed_at, while_saving, resumed_from[1:], records(whole) == records(cut)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5, help="kills a run")
    parser.add_argument("--seed", type=int, default=1, help="of the steps at which runs are killed")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/kill_resume.json")
    arguments = parser.parse_args()
    draws = np.random.default_rng(arguments.seed)
    began = time.monotonic()
    outcomes = {}
    print(f"{'':8} {'weights equal':13} {'metrics equal':13} {'killed at step':24} {'resumed from':24} in a save")
    with tempfile.TemporaryDirectory() as place:
        recipe = Path(place) / "tiny.yaml"
        recipe.write_text(RECIPE, encoding="utf-8")
        for name, setting in RUNS.items():
            (Path(place) / name).mkdir()
            outcomes[name] = outcome = measure(recipe, Path(place) / name, setting, arguments.kills, draws)
            equal = "yes" if outcome.undisturbed == outcome.resumed else "NO"
            same = "yes" if outcome.same_metrics else "NO"
            at, source = (" ".join(map(str, steps)) for steps in (outcome.killed_at, outcome.resumed_from))
            print(f"{name:8} {equal:13} {same:13} {at:24} {source:24} {outcome.while_saving}", flush=True)
        control = Path(place) / "control"
        finish(start(recipe, control, "train.seed=2"))
        differs = weights(control) != outcomes["plain"].undisturbed
    print(f"another seed ends in other weights: {'yes' if differs else 'NO'}")
    hashes = {name: outcome.undisturbed for name, outcome in outcomes.items()}
    record = {
        "benchmark": "kill_resume",
        "hashes_equal": all(outcome.undisturbed == outcome.resumed for outcome in outcomes.values()),
        "metrics_equal": all(outcome.same_metrics for outcome in outcomes.values()),
        "runs": len(outcomes),
        "kills": sum(len(outcome.killed_at) for outcome in outcomes.values()),
        "resumes": sum(len(outcome.resumed_from) for outcome in outcomes.values()),
        "kills_while_saving": sum(outcome.while_saving for outcome in outcomes.values()),
        "killed_at": {name: outcome.killed_at for name, outcome in outcomes.items()},
        "resumed_from": {name: outcome.resumed_from for name, outcome in outcomes.items()},
        "weights_sha256": hashes,
        "hashes_differ_between_runs": len(set(hashes.values())) == len(hashes),
        "other_seed_differs": differs,
        "steps": NUM_STEPS,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, 1 thread a run",
    }
    line = json.dumps(record, ensure_ascii=False)
    if arguments.save:
        target = ROOT / "benchmarks" / "results" / "kill_resume.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(line + "\n", encoding="utf-8")
    print(line)
    if not (record["hashes_equal"] and record["metrics_equal"] and differs):
        sys.exit(1)


if __name__ == "__main__":
    main()
