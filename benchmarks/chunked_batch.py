"""Peak memory of training a batch of 1,024 texts in chunks, against one of 64 texts.

    HANZOO_DATA=... HANZOO_ENCODERS=... python benchmarks/chunked_batch.py [--rows 64] [--steps 1] [--save]

Each batch is trained in a fresh process, as the recipe stsb_bi_encoder trains (albert-tiny-zh, sentences of STS-B's train), towards
info_nce on single texts (SimCSE: two views, so 1,024 texts are 2,048 rows); a batch holds the longest texts, so all are as wide.
Peak resident memory is the process's own, start, libraries, weights and data included, as the system counts it.

ratio          1,024 texts in chunks against 64 texts at once; asked: at most 1.3
above_start    the same of what lies above the memory before the first step, which the two have in common
with_fgm       ratio with FGM, of which both have the perturbation of all rows
without        256 texts without chunks against 64: what a larger batch would cost

Seconds a step are wall-clock ones, and say something only where the machine has nothing else to do. A line of JSON ends the output;
--save also writes it to benchmarks/results/chunked_batch.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# No torch here: a child's peak counts the memory of the process that it was forked from.
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed works too

from benchmarks.report import report  # noqa: E402

ASKED = 1.3

TRAIN = """
import json, resource, sys, tempfile, time
from pathlib import Path
import torch
from hanzoo.build import commit, describe_machine, prepare, versions
from hanzoo.recipe import load_recipe

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6

torch.use_deterministic_algorithms(True)
torch.utils.deterministic.fill_uninitialized_memory = False
recipe = load_recipe("stsb_bi_encoder", sys.argv[2:])
torch.set_num_threads(recipe.train.threads)
with tempfile.TemporaryDirectory() as folder:
    device = torch.device("cpu")
    trainer = prepare(recipe, Path(folder), False, device, lambda line: None).trainer
    trainer.begin()
    longest = sorted(range(len(trainer.lengths)), key=trainer.lengths.__getitem__)[-recipe.train.batch_size:]
    before, steps = peak(), int(sys.argv[1])
    seconds = sum(trainer.rehearse([longest]) for _ in range(steps))
print(json.dumps({
    "megabytes": round(peak(), 1), "before": round(before, 1), "seconds_a_step": round(seconds / steps, 2),
    "pieces": trainer.lengths[longest[-1]], "machine": describe_machine(device), "commit": commit(), **versions(),
}))
"""


def measure(steps: int, *settings: str) -> dict[str, Any]:
    """What a fresh process that trains so many steps says of itself."""
    shared = (
        "data.items=texts",
        "objective={name: info_nce}",
        "model.encoder_dropout=0.1",
        "train.threads=1",
        "train.device=cpu",
    )
    command = [sys.executable, "-c", TRAIN, str(steps), *shared, *settings]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    said: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return said


def main() -> None:
    """Measure, print the table and the line."""
    parser = argparse.ArgumentParser(description="Peak memory of a batch of 1,024 texts in chunks, against one of 64.")
    parser.add_argument("--rows", type=int, default=64, help="rows of a chunk")
    parser.add_argument("--steps", type=int, default=1, help="steps of each process")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/chunked_batch.json")
    options = parser.parse_args()
    chunks, fgm = f"model.rows_at_once={options.rows}", "train.tricks={fgm: {}}"
    cases = {
        "64": ("train.batch_size=64",),
        "1,024 in chunks": ("train.batch_size=1024", chunks),
        "256": ("train.batch_size=256",),
        "64, FGM": ("train.batch_size=64", fgm),
        "1,024 in chunks, FGM": ("train.batch_size=1024", chunks, fgm),
    }
    found: dict[str, dict[str, Any]] = {}
    print(f"{'texts a batch':24}{'peak, MB':>10}{'before':>10}{'widest':>8}{'seconds a step':>16}")
    for name, settings in cases.items():
        found[name] = said = measure(options.steps, *settings)
        shown = f"{said['megabytes']:10.0f}{said['before']:10.0f}{said['pieces']:8}{said['seconds_a_step']:16.2f}"
        print(f"{name:24}{shown}", flush=True)

    def ratio(one: str, other: str) -> float:
        return round(found[one]["megabytes"] / found[other]["megabytes"], 3)

    def above(name: str) -> float:
        return float(found[name]["megabytes"] - found[name]["before"])

    facts = ("megabytes", "before", "seconds_a_step", "pieces")
    line = {
        "benchmark": "chunked_batch",
        "asked": ASKED,
        "ratio": ratio("1,024 in chunks", "64"),
        "above_start": round(above("1,024 in chunks") / above("64"), 3),
        "with_fgm": ratio("1,024 in chunks, FGM", "64, FGM"),
        "without": ratio("256", "64"),
        "rows_at_once": options.rows,
        "steps": options.steps,
        "cases": {name: {fact: said[fact] for fact in facts} for name, said in found.items()},
        **{name: value for name, value in found["64"].items() if name not in facts},
    }
    report(line, options.save)


if __name__ == "__main__":
    main()
