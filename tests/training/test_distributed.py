"""Two real processes: they train what one process with the whole batch trains, and find what one process finds."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed import TCPStore

from hanzoo.training.distributed import gather_objects, merge, num_ranks, on_first, rank, share, sum_integers
from hanzoo.training.trick import trick_names
from tests import tiny
from tests.fixtures import corpus, run_command, trained_run

ROOT = Path(__file__).resolve().parents[2]
NO_DROPOUT = {"dimension": 8, "hidden": 8, "dropout_embedding": 0.0, "dropout_hidden": 0.0, "unknown_rate": 0.2}
SGD = {"name": "sgd", "learning_rate": 0.1}
TRICKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fgm": {"fgm": {"epsilon": 0.5}},
    "pgd": {"pgd": {"epsilon": 0.5, "step_size": 0.3, "num_steps": 2}},
    "fgm table": {"fgm": {"epsilon": 0.5, "target": "table"}},
    "free_lb": {"free_lb": {"epsilon_0": 0.5, "step_size": 0.3}},
    "free_lb table": {"free_lb": {"epsilon_0": 0.0, "step_size": 0.3, "target": "table"}},
    "ema": {"ema": {"decay": 0.9}},
    "r_drop": {"r_drop": {"alpha": 1.0}},
    "focal": {"focal": {"normalise": "token"}},
    "poly": {"poly": {"epsilon": 2.0}},
    "flooding": {"flooding": {"level": 1.5}},
    "gradient_penalty": {"gradient_penalty": {"strength": 5.0}},
    "swa": {"swa": {"start": 0.2}},
    "l2_sp": {"l2_sp": {"alpha": 0.5}},
    "ewc": {"ewc": {"weight": 0.05, "num_samples": 4}},
    "all on the loss": {"focal": {}, "poly": {}, "flooding": {"level": 1.5}, "r_drop": {}, "gradient_penalty": {}},
}
CASES = {name: (tricks, SGD, 10) for name, tricks in TRICKS.items()} | {
    "adamw": ({}, {"name": "adamw", "learning_rate": 0.001}, 10),
    "fields of the head": ({}, SGD, 10),
    "distillation": ({"r_drop": {"alpha": 1.0}}, SGD, 10),
    "one step": ({}, SGD, 1),  # 12 sentences: one window
}
HEAD = {"label_smoothing": 0.1, "class_weights": 1.0, "multi_sample_dropout": 2, "multi_sample_rate": 0.0}
ITEMS = (
    tiny.DOCUMENTS + tiny.DOCUMENTS[:8]
)  # 20: the second window holds 8, fewer than its four micro-batches would take


def fit(folder: Path, case: str, **sizes: int) -> dict[str, torch.Tensor]:
    """Train the tiny model; its weights and last gradients."""
    tricks, optimizer, epochs = CASES[case]
    model = tiny.build("bilstm_crf", NO_DROPOUT | (HEAD if case == "fields of the head" else {}))
    items = tiny.DOCUMENTS if case == "one step" else ITEMS
    further = []
    if case == "distillation":  # the last 8 have no gold
        further = [tiny.distillation(folder, [tiny.build("bilstm_crf", NO_DROPOUT, seed=2)], items)]
    trainer = tiny.trainer(
        model, folder, items=items, tricks=tricks, optimizer=optimizer, further=further, epochs=epochs, **sizes
    )
    trainer.fit()
    weights = {f"weights/{name}": p.detach().double() for name, p in trainer.model.named_parameters()}
    return weights | {f"gradients/{name}": value for name, value in tiny.gradients(model).items()}


def work(folder: Path) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for case in CASES:
        found = fit(folder / case, case, batch_size=3, accumulation=2)
        if rank() == 0:
            save_file(found, folder / f"{case}.safetensors")
    answers = {
        "ranks": gather_objects(rank()),
        "sum": sum_integers([rank() + 1, 10]),
        "merged": merge(gather_objects(share(list(range(7))))),
        "first": on_first(lambda: f"said by {rank()}"),
    }
    (folder / f"answers-{rank()}.json").write_text(json.dumps(answers), encoding="utf-8")


def two(
    arguments: list[str], folder: Path, *, seconds: int = 240, **environment: str
) -> list[subprocess.CompletedProcess[str]]:
    """Run a command in two processes that know of each other, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={
                **os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT),
                "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port), **environment,
            },
        )
        for number in range(2)
    ]  # fmt: skip
    finished = []
    for process in processes:
        output, errors = process.communicate(timeout=seconds)
        finished.append(subprocess.CompletedProcess(arguments, process.returncode, output, errors))
    return finished


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    script = (
        "from pathlib import Path; from hanzoo.training.distributed import joined;"
        "from tests.training import test_distributed as t\n"
        f"with joined('cpu'): t.work(Path({str(folder)!r}))"
    )
    for process in two(["-c", script], folder):
        assert process.returncode == 0, process.stderr
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_what_one_trains(together: Path, tmp_path: Path, case: str) -> None:
    def apart(kind: str) -> float:
        own, other = (
            {name: value for name, value in side.items() if name.startswith(kind)}
            for side in (alone, load_file(together / f"{case}.safetensors"))
        )
        return tiny.difference(other, own)

    alone = fit(tmp_path / "alone", case, batch_size=12)
    if case == "one step":
        assert apart("gradients") < 1e-6
    assert apart("weights") < (1e-4 if case == "adamw" else 1e-5)
    alone = fit(tmp_path / "control", case, batch_size=6)  # another window, another training
    assert apart("weights") > 1e-3


def test_every_trick_is_walked() -> None:
    assert {trick for tricks in TRICKS.values() for trick in tricks} == set(trick_names())


def test_collectives(together: Path) -> None:
    for number in range(2):
        answers = json.loads((together / f"answers-{number}.json").read_text(encoding="utf-8"))
        assert answers == {
            "ranks": [0, 1], "sum": [3, 20], "merged": list(range(7)), "first": "said by 0",
        }  # fmt: skip


def test_a_process_alone_asks_nobody() -> None:
    assert (rank(), num_ranks(), sum_integers([3]), gather_objects("a")) == (0, 1, [3], ["a"])
    assert on_first(lambda: 5) == 5
    assert merge([share([1, 2, 3])]) == [1, 2, 3]
    assert merge([[1, 3], [2]]) == [1, 2, 3]


def test_two_ranks_evaluate_and_predict_what_one_does(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = trained_run(tmp_path_factory)
    texts = tmp_path / "texts.txt"
    lines = [document.text.replace("\u2028", "") for document in corpus(700, 3)]  # more than one chunk
    texts.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for command in (["evaluate.py", str(run), "--json"], ["predict.py", str(run), str(texts)]):
        alone = run_command([ROOT / command[0], *command[1:]], cwd=tmp_path)
        assert alone.returncode == 0, alone.stderr
        first, second = two([str(ROOT / command[0]), *command[1:]], tmp_path)
        assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
        assert second.stdout == ""
        assert first.stdout == alone.stdout.decode("utf-8")
        assert first.stdout.count("\n") == (1 if command[0] == "evaluate.py" else 700)


RECIPE = """
data: {name: bundled}
model: {name: bilstm_crf, dimension: 8, hidden: 8}
train: {epochs: 2, batch_size: 16, accumulation: 2, log_every: 1, save_every: 2, threads: 1, device: cpu, tricks: {ema: {}}}
evaluate: {calibrate: false}
"""


def test_nothing_holds_the_group_when_ranks_part(tmp_path: Path) -> None:
    script = (
        "import gc, weakref; from torch.nn import Linear; from torch.nn.parallel import DistributedDataParallel\n"
        "from hanzoo.training.distributed import joined\n"
        "gc.disable()\n"
        "with joined('cpu'): replica = weakref.ref(DistributedDataParallel(Linear(2, 2)))  # as a training leaves it\n"
        "print(replica() is None)"
    )
    for process in two(["-c", script], tmp_path, seconds=60):
        assert (process.stdout, process.returncode) == ("True\n", 0), process.stderr


def test_ranks_that_come_again_do_not_wait_for_the_dead(tmp_path: Path) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun's, one over all its restarts
    script = (
        "import os, time; from hanzoo.training.distributed import joined, restarts, sum_integers\n"
        "time.sleep(3.0 * restarts() * int(os.environ['RANK']))  # rank 0 looks for rank 1 before it is there\n"
        "with joined('cpu'): print(sum_integers([1]))"
    )
    for attempt in ("0", "1"):
        environment = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": attempt}
        for process in two(["-c", script], tmp_path, seconds=60, MASTER_PORT=str(store.port), **environment):
            assert (process.stdout, process.returncode) == ("[2]\n", 0), process.stderr


def test_a_rank_that_is_killed_is_started_again_by_torchrun(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE, encoding="utf-8")

    def start(run: str) -> subprocess.Popen[bytes]:
        command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "3", "--standalone", "--"]
        with (tmp_path / f"{run}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, *command, str(ROOT / "train.py"), "tiny.yaml", "--run", run],
                cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            )  # fmt: skip

    def wait(process: subprocess.Popen[bytes], run: str) -> dict[str, Any]:
        assert process.wait(240) == 0, (tmp_path / f"{run}.log").read_text()
        return dict(json.loads((tmp_path / run / "results.json").read_text(encoding="utf-8")))

    whole = wait(start("whole"), "whole")
    process = start("cut")
    metrics = tmp_path / "cut" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 8):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(workers.split()[-1]), signal.SIGKILL)
    cut = wait(process, "cut")
    log = (tmp_path / "cut.log").read_text()
    assert "going on from step" in log
    assert cut["weights_sha256"] == whole["weights_sha256"]
    assert cut["splits"] == whole["splits"]
