"""From a recipe to a finished run: what is checked before training, and what stands in the folder after a cut."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from hanzoo import build
from hanzoo.data.catalogue import TaggingData
from hanzoo.errors import DataError, RecipeError, RunError
from hanzoo.recipe import Recipe, load_recipe
from hanzoo.training.checkpoint import LOCK, clear_leftovers, locked
from hanzoo.training.progress import peak_gigabytes
from hanzoo.training.trainer import Trainer
from tests.fixtures import ROOT, contents, write_corpus

pytestmark = pytest.mark.usefixtures("deterministic")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    splits = write_corpus(tmp_path / "corpus")
    lines = [f"  {split}: {path}" for split, path in splits.items()]
    text = (
        "data:\n"
        + "\n".join(lines)
        + "\nmodel: {name: bilstm_crf, dimension: 4, hidden: 4}\nevaluate: {calibrate: false}\n"
    )
    (tmp_path / "tiny.yaml").write_text(text + "train: {epochs: 1, device: cpu}\n", encoding="utf-8")
    return tmp_path / "tiny.yaml"


def test_a_metric_that_the_data_does_not_have_is_refused_before_training(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"evaluate.metric must be f1 or macro_f1 .*official_macro_f1"):
        build.train(recipe, "evaluate.metric=official_macro_f1", run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_rate_for_a_part_that_the_model_does_not_have_is_refused_before_anything_is_written(
    recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"rates: a name must be a part .* is 'carf'. Did you mean 'crf'\?"):
        build.train(recipe, "train.optimizer.rates={carf: 5.0}", run=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    build.train(recipe, "train.optimizer.rates={crf: 5.0}", run=tmp_path / "run")


def test_a_rate_is_suggested_and_not_set(recipe: Path, tmp_path: Path) -> None:
    said: list[str] = []
    build.train(recipe, "train.batch_size=128", run=tmp_path / "run", say=said.append)
    (line,) = (line for line in said if "a step has" in line)
    assert "a step has 128 rows" in line
    assert line.endswith(" train.optimizer.learning_rate=0.002")
    assert build.read_recipe(tmp_path / "run").train.optimizer.learning_rate == 0.001
    build.train(recipe, run=tmp_path / "again", say=said.append)
    assert sum("a step has" in line for line in said) == 1


@pytest.mark.parametrize(
    "capabilities",
    [{"avx512_bf16": False, "amx_bf16": False}, {"avx512_bf16": False, "amx_bf16": True}, {"bf16": False}, {}],
)
def test_a_processor_without_bfloat16_is_told_of(
    capabilities: dict[str, bool], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    said: dict[str, list[str]] = {"float32": [], "bfloat16": []}
    for precision, lines in said.items():
        checked = load_recipe(recipe, [f"train.precision={precision}"])
        build.prepare(checked, tmp_path / "run", False, torch.device("cpu"), lines.append)
    imitated = bool(capabilities) and not any(capabilities.values())
    assert not any("bfloat16" in line for line in said["float32"])
    assert any("Set train.precision=float32" in line for line in said["bfloat16"]) == imitated
    assert ("no bfloat16" in build.describe_machine(torch.device("cpu"))) == imitated


def test_a_run_is_finished_when_all_of_it_is_there(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "write_report", killed)
        with pytest.raises(KeyboardInterrupt):
            build.train(recipe, run=run)
    assert not (run / "results.json").exists()
    results = build.train(recipe, run=run, resume=True)
    assert {"README.md", "curve.svg", "results.json"} <= {path.name for path in run.iterdir()}
    assert build.train(recipe, run=run, resume=True) == results


# One process a run directory.

HOLD = """
import sys, time
from pathlib import Path
from hanzoo.training.checkpoint import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held_by_another(run: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


def stopped(recipe: Path, run: Path, patch: pytest.MonkeyPatch) -> None:
    """Begin a run that ends after its second step."""
    step = Trainer._step

    def until_two(self: Trainer, *arguments: object) -> None:
        if self.progress.step == 2:
            raise KeyboardInterrupt
        step(self, *arguments)  # type: ignore[arg-type]

    with patch.context() as inner:
        inner.setattr(Trainer, "_step", until_two)
        with pytest.raises(KeyboardInterrupt):
            build.train(recipe, "train.save_every=1", run=run)


def test_a_second_training_in_a_run_directory_is_refused_until_the_first_is_gone(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    stopped(recipe, run, monkeypatch)
    assert not (run / LOCK).exists()
    (run / ".model.new").mkdir()  # what the first one is just writing
    with held_by_another(run) as first:
        before = contents(run)
        with pytest.raises(RunError, match=rf"one process at a time .* but process {first.pid} is at it") as caught:
            build.train(recipe, "train.save_every=1", run=run, resume=True)
        assert str(caught.value).startswith(f"{run}: ")
        assert contents(run) == before
    assert (run / LOCK).exists()  # killed by kill -9, it could not remove it
    said: list[str] = []
    build.train(recipe, "train.save_every=1", run=run, resume=True, say=said.append)
    assert {path.name for path in run.iterdir()}.isdisjoint({LOCK, ".model.new"})
    assert (run / "results.json").exists()


def test_a_new_run_directory_is_held_too(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "new"
    with held_by_another(run), pytest.raises(RunError, match="one process at a time"):
        build.train(recipe, run=run)
    assert [path.name for path in run.iterdir()] == [LOCK]
    with pytest.raises(RunError, match="must be there, but is not"):  # a lock alone is no run
        build.train(recipe, run=run, resume=True)
    build.train(recipe, run=run)


def test_a_lock_leaves_nothing(tmp_path: Path, recipe: Path) -> None:
    with locked(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK).read_text() == str(os.getpid())
        with pytest.raises(RunError, match=f"process {os.getpid()} is at it"), locked(tmp_path / "a" / "b"):
            pass
    assert not (tmp_path / "a").exists()
    with pytest.raises(DataError):
        build.train(recipe, f"data.path={tmp_path / 'absent.jsonl'}", run=tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


def test_what_a_kill_left_is_cleared(tmp_path: Path) -> None:
    for name in (
        ".model.old/x",
        "state/.00000003.new/x",
        "state/.00000002.old/x",
        "state/00000002/x",
        "state/00000001/x",
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / ".results.json.77.partial").touch()
    (tmp_path / "own.partial").touch()
    clear_leftovers(tmp_path)
    assert set(contents(tmp_path)) == {"model/x", "state/00000002/x", "state/00000001/x", "own.partial"}


# The caller's process and folder.


def test_a_training_leaves_the_process_as_it_was(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def stop(given: Recipe) -> TaggingData:
        seen.append((torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()))
        torch.rand(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "load_data", stop)
    torch.use_deterministic_algorithms(False)  # the fixture puts it back
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_num_threads(1)
    draws = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        build.train(recipe, "train.threads=2", run=tmp_path / "run")
    assert seen == [(True, 2)]
    assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.equal(torch.get_rng_state(), draws)


def test_a_run_on_a_relative_path_is_evaluated_from_another_folder(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    shutil.copy(tmp_path / "corpus" / "train.jsonl", home / "mine.jsonl")
    monkeypatch.chdir(home)
    results = build.train(recipe, "data.path=mine.jsonl", run="run")
    monkeypatch.chdir(elsewhere)
    assert build.evaluate(home / "run")["f1"] == results["splits"]["dev"]["f1"]
    assert build.train(recipe, f"data.path={home / 'mine.jsonl'}", run=home / "run", resume=True) == results
    monkeypatch.setenv("HOME", str(home))
    assert build.train(recipe, "data.path=~/mine.jsonl", run=home / "run", resume=True) == results
    with pytest.raises(RunError, match=r"data\.path"):
        build.train(recipe, "data.path=mine.jsonl", run=home / "run", resume=True)


def test_the_command_is_kept_also_where_none_was_given(recipe: Path, tmp_path: Path) -> None:
    results = build.train(recipe, "train.seed=2", run=tmp_path / "run")
    assert results["command"] == f"python train.py {recipe} train.seed=2"


# A GPU, as far as it can be shown without one.


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    assert build.choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(RunError, match=r"must be cuda:0 to cuda:1, but is 'cuda:2'"):
        build.choose_device("cuda:2")


def test_peak_memory_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 10**9)
    assert peak_gigabytes(torch.device("cuda")) == 3.0
    assert peak_gigabytes(torch.device("cpu")) == peak_gigabytes() != 3.0


def test_a_file_is_scored_where_the_data_of_the_run_is_gone(recipe: Path, tmp_path: Path) -> None:
    own = shutil.copy(tmp_path / "corpus" / "dev.jsonl", tmp_path / "own.jsonl")
    build.train(recipe, run=tmp_path / "run")
    said: list[str] = []
    with_data = build.evaluate_run(tmp_path / "run", file=Path(own), say=said.append)
    assert said == []
    shutil.rmtree(tmp_path / "corpus")
    without = build.evaluate_run(tmp_path / "run", file=Path(own), say=said.append)
    assert without.figures[0]["f1"] == with_data.figures[0]["f1"]
    assert said == [f"{tmp_path / 'run'}: its data is not there, so nothing is said of what stands in train"]
