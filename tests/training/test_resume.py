"""Real kills of real processes: whatever the moment, --resume ends in the bits of a run that nobody disturbed.

`benchmarks/kill_matrix.py` does the same with every trick, both precisions and two ranks; here are the other ways to stop. One
process imports and compiles once, and every start is a fork of it; the undisturbed run is `python train.py`, as a person starts it.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.fork_server import ENVIRONMENT, ForkServer, is_saving, last_step, records, results
from hanzoo.data.randomness import generator

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
data: {name: bundled}
model: {name: bilstm_crf, dimension: 8, hidden: 8, unknown_rate: 0.1}
train: {epochs: 3, batch_size: 20, log_every: 1, save_every: 2, threads: 1, device: cpu}
evaluate: {calibrate: false}
"""
NUM_STEPS = 60


class Server:
    """Starts the recipe again and again without importing and compiling again."""

    def __init__(self, folder: Path, recipe: Path) -> None:
        self.recipe = recipe
        self.log = folder / "log"
        warm_up = [str(recipe), "train.epochs=1", "train.tricks={r_drop: {}}", "--run", str(folder / "warm")]
        self.forks = ForkServer(folder, warm_up)

    def train(
        self,
        run: Path,
        *settings: str,
        when: Callable[[], bool] | None = None,
        send: int = signal.SIGKILL,
        largest_file: int = resource.RLIM_INFINITY,
    ) -> int:
        """Start or go on with a run, send it a signal as soon as `when` holds; returns its exit code."""
        arguments = [str(self.recipe), *settings, "--run", str(run), *(["--resume"] if run.exists() else [])]
        return self.forks.wait(
            self.forks.start(arguments, self.log, largest_file=largest_file), when=when, send=send, limit=120
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    started = Server(folder, folder / "tiny.yaml")
    yield started
    started.forks.close()


def reached(run: Path, step: int) -> Callable[[], bool]:
    """Whether a run has recorded that step."""
    return lambda: last_step(run) >= step


def saving(run: Path, step: int) -> Callable[[], bool]:
    """Whether a run is writing a folder, after that step."""
    return lambda: last_step(run) >= step and is_saving(run)


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
