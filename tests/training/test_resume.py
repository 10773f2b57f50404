"""Real kills of real processes: whatever the moment, --resume ends in the bits of a run that nobody disturbed.

`benchmarks/kill_resume.py` does the same with more kills and every trick, each start being a process of its own. Here one process
imports and compiles once, and every start is a fork of it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hanzoo.data.randomness import generator

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
data: {name: bundled}
model: {name: bilstm_crf, dimension: 8, hidden: 8, unknown_rate: 0.1}
train: {epochs: 3, batch_size: 20, log_every: 1, save_every: 2, threads: 1, device: cpu}
evaluate: {calibrate: false}
"""
NUM_STEPS = 60
SERVER = """
import json, os, resource, sys

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from hanzoo import cli

assert cli.train(json.loads(sys.argv[1])) == 0  # compiles
print("ready", file=answers, flush=True)
for line in sys.stdin:
    arguments, log, size = json.loads(line)
    child = os.fork()
    if child == 0:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        code = 70
        try:
            code = cli.train(arguments)
            sys.stdout.flush()
        finally:
            os._exit(code)
    print(child, file=answers, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
"""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


class Server:
    """Starts `train` again and again without importing and compiling again."""

    def __init__(self, folder: Path, recipe: Path) -> None:
        self.recipe = recipe
        self.log = folder / "log"
        warm_up = [str(recipe), "train.epochs=1", "train.tricks={r_drop: {}}", "--run", str(folder / "warm")]
        with (folder / "server").open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVER, json.dumps(warm_up)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT,
                env={**os.environ, **ENVIRONMENT},
            )  # fmt: skip
        answer = self._answer()
        assert answer == "ready", (folder / "server").read_text()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def train(
        self,
        run: Path,
        *settings: str,
        when: Callable[[], bool] = lambda: False,
        send: int = signal.SIGKILL,
        largest_file: int = resource.RLIM_INFINITY,
    ) -> int:
        """Start or go on with a run, send it a signal as soon as `when` holds; returns its exit code."""
        arguments = [str(self.recipe), *settings, "--run", str(run), *(["--resume"] if run.exists() else [])]
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([arguments, str(self.log), largest_file]) + "\n")
        self.process.stdin.flush()
        child = int(self._answer())
        deadline = time.monotonic() + 120
        while _alive(child):
            if when() or time.monotonic() > deadline:
                os.kill(child, send)
                break
            time.sleep(0.001)
        return int(self._answer())

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(60)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    started = Server(folder, folder / "tiny.yaml")
    yield started
    started.close()


def lines(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def reached(run: Path, step: int) -> Callable[[], bool]:
    """Whether a run has recorded that step (evaluations count as lines too: close enough)."""
    return lambda: lines(run) >= step


def saving(run: Path, step: int) -> Callable[[], bool]:
    """Whether a run is writing a state, after that step."""
    return lambda: lines(run) >= step and any(run.glob("state/.*"))


def results(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "results.json").read_text())
    return content


def records(run: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says, but for the speed."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "units_per_second"} for record in found]


@pytest.fixture(scope="module")
def undisturbed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `python train.py`, as a person starts it."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    command = [sys.executable, "train.py", str(server.recipe), "--run", str(run)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert results(run)["steps"] == NUM_STEPS
    return run


def test_kills_and_signals_end_in_the_same_bits(server: Server, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    draws = generator(1, "kills")
    begins = list(range(2, 50, 9))  # six stretches of training, a stop in each
    stops = [int(begin + draws.integers(1, 8)) for begin in begins]
    codes = [
        server.train(run, when=reached(run, stops[0])),
        server.train(run, when=saving(run, stops[1])),
        server.train(run, when=reached(run, stops[2]), send=signal.SIGTERM),
        server.train(run, when=saving(run, stops[3])),
        server.train(run, when=reached(run, stops[4]), send=signal.SIGINT),
        server.train(run, when=reached(run, stops[5])),
    ]
    assert codes == [-9, -9, 143, -9, 130, -9]
    assert "saved; go on with --resume" in server.log.read_text()
    assert not (run / "results.json").exists()
    assert server.train(run) == 0
    assert results(run)["weights_sha256"] == results(undisturbed)["weights_sha256"]
    assert results(run)["splits"] == results(undisturbed)["splits"]
    assert records(run) == records(undisturbed)
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in undisturbed.iterdir())
    assert not list(run.rglob(".*"))


def test_kills_under_an_attack(server: Server, undisturbed: Path, tmp_path: Path) -> None:
    settings = ("train.epochs=2", "train.tricks={pgd: {num_steps: 2}}")
    assert server.train(tmp_path / "whole", *settings) == 0
    run = tmp_path / "run"
    assert server.train(run, *settings, when=reached(run, 9)) == -9
    assert server.train(run, *settings, when=saving(run, 25)) == -9
    assert server.train(run, *settings) == 0
    assert results(run)["weights_sha256"] == results(tmp_path / "whole")["weights_sha256"]
    assert results(run)["weights_sha256"] != results(undisturbed)["weights_sha256"]


def test_kills_before_and_after_the_change_to_sgd(server: Server, undisturbed: Path, tmp_path: Path) -> None:
    settings = (
        "train.optimizer={learning_rate: 0.01, sgd_from_epoch: 2, sgd_learning_rate: 0.02}",
        "train.schedule={name: plateau, patience: 1}",
    )
    assert server.train(tmp_path / "whole", *settings) == 0
    run = tmp_path / "run"
    assert server.train(run, *settings, when=reached(run, 17)) == -9
    assert server.train(run, *settings, when=saving(run, 21)) == -9
    assert server.train(run, *settings, when=reached(run, 43)) == -9
    assert server.train(run, *settings) == 0
    assert results(run)["weights_sha256"] == results(tmp_path / "whole")["weights_sha256"]
    assert records(run) == records(tmp_path / "whole")
    assert results(run)["weights_sha256"] != results(undisturbed)["weights_sha256"]


def test_another_seed_ends_in_other_bits(server: Server, undisturbed: Path, tmp_path: Path) -> None:
    assert server.train(tmp_path / "run", "train.seed=2") == 0
    assert results(tmp_path / "run")["weights_sha256"] != results(undisturbed)["weights_sha256"]


def test_a_full_disk_stops_with_one_error_and_resumes(server: Server, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert server.train(run, when=reached(run, 12)) == -9
    size = max(path.stat().st_size for path in run.glob("state/*/tensors.safetensors"))
    before = server.log.read_text()
    assert server.train(run, largest_file=size - 1) == 2
    said = server.log.read_text().removeprefix(before)
    assert said.count("must be written, but the disk is full") == 1
    assert "Traceback" not in said
    assert not list(run.rglob(".*"))
    assert len(list((run / "state").iterdir())) == 2
    assert server.train(run) == 0
    assert results(run)["weights_sha256"] == results(undisturbed)["weights_sha256"]
