"""What bad input gets: one clear error, exit code 2, no traceback, nothing half-written, what was there before intact."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from hanzoo import cli
from hanzoo.training.trainer import Trainer
from tests.fixtures import (
    ROOT,
    contents,
    corpus,
    json_lines,
    recipe_of,
    trained_run,
    write_corpus,
    write_recipe,
)

pytestmark = pytest.mark.usefixtures("deterministic")

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": cli.train,
    "evaluate": cli.evaluate,
    "predict": cli.predict,
}
Refuse = Callable[..., str]


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory)


@pytest.fixture
def broken(run: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, to be broken."""
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Run a command in `tmp_path` that must be refused; returns the error, which must have the form of the house."""
    monkeypatch.chdir(tmp_path)

    def refused(command: str, *arguments: str | Path, where: str, lines: int = 1) -> str:
        before = contents(tmp_path)
        capsys.readouterr()
        assert COMMANDS[command]([str(argument) for argument in arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        message = "\n".join(err.splitlines()[-lines:])
        assert err.count(" must ") == lines, err  # one error (said as so many lines), whatever notes came before it
        for line in message.splitlines():
            assert re.fullmatch(rf"{re.escape(where)}.*\bmust .+[.?]", line), line
        assert contents(tmp_path) == before
        return message

    return refused


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond this size: what a full disk looks like to a program."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def results_of(run: Path) -> Any:
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


# --- recipes ---------------------------------------------------------------------------------------------------------


def test_a_value_of_the_wrong_type(tmp_path: Path, refuse: Refuse) -> None:
    sections = recipe_of({"name": "bundled"}, epochs="three", clip="none")
    path = write_recipe(tmp_path / "mine.yaml", sections)
    message = refuse("train", path, where=str(path), lines=2)
    assert "train.epochs: must be a valid integer, but is 'three'." in message
    assert "train.clip: must be a valid number, but is 'none'." in message


def test_an_unknown_key_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sections = recipe_of({"name": "bundled"})
    sections["model"]["hiden"] = 3
    path = write_recipe(tmp_path / "mine.yaml", sections)
    capsys.readouterr()
    assert cli.train([str(path), "--run", str(tmp_path / "run"), "train.epoch=3"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{path}: model.hiden is not a setting of model. Did you mean 'hidden'?" in err
    assert f"{path}: train.epoch is not a setting of train. Did you mean 'epochs'?" in err
    assert err.count("\n") == 2
    assert [item.name for item in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_recipe_that_is_not_there(tmp_path: Path, refuse: Refuse) -> None:
    assert "Bundled: " in refuse("train", "nowhere.yaml", where="nowhere.yaml")
    (tmp_path / "folder.yaml").mkdir()
    refuse("train", "folder.yaml", where="folder.yaml")


def test_a_device_that_is_not_there(tmp_path: Path, refuse: Refuse, run: Path) -> None:
    path = write_recipe(tmp_path / "mine.yaml", recipe_of({"name": "bundled"}))
    refuse("train", path, "--device", "tpu", where="train.device")
    if not torch.cuda.is_available():
        assert "--device cpu" in refuse("train", path, "--device", "cuda", where="train.device")
        refuse("predict", run, "--device", "cuda", where="")


# --- data ------------------------------------------------------------------------------------------------------------

GOOD = '{"text": "叶老桂到了", "entities": [[0, 3, "name"]]}\n'
BAD_FILES: dict[str, tuple[str, bytes, str, str]] = {
    # name of the case: name of the file, its content, the place in the message, a part of the message
    "empty": ("train.jsonl", b"", "", "is empty"),
    "blank lines only": ("train.jsonl", b"\n\n", "", "only blank lines"),
    "ragged columns": ("train.txt", "叶 B-x\n老 I-x\n桂 I-x I-y\n".encode(), ":3", "2 fields"),
    "a column missing": ("train.txt", "叶 B-x\n老\n".encode(), ":2", "2 fields"),
    "not UTF-8": ("train.txt", "叶 B-x\n".encode() + "老 I-x\n".encode("gb18030"), ":2", "UTF-8"),
    "not UTF-8 as JSON": ("train.jsonl", GOOD.encode() + GOOD.encode("gb18030"), ":2", "UTF-8"),
    "an unknown tag": ("train.txt", "叶 B-x\n老 Q-x\n".encode(), ":2", "Q-x"),
    "a broken JSON line": ("train.jsonl", (GOOD + GOOD[:20] + "\n").encode(), ":2", "one JSON object"),
    "a JSON array": ("train.jsonl", (GOOD + "[1]\n").encode(), ":2", "one JSON object"),
    "no text": ("train.jsonl", (GOOD + '{"entities": []}\n').encode(), ":2", '"text" must be a string'),
    "crossing spans": (
        "train.jsonl",
        (GOOD + '{"text": "叶老桂到了", "entities": [[0, 3, "a"], [2, 5, "b"]]}\n').encode(),
        ":2",
        "must not cross",
    ),
    "a span out of range": (
        "train.jsonl",
        (GOOD + '{"text": "叶老桂到了", "entities": [[3, 6, "a"]]}\n').encode(),
        ":2",
        "0 <= start < end <= 5",
    ),
    "an empty span": (
        "train.jsonl",
        (GOOD + '{"text": "叶老桂到了", "entities": [[3, 3, "a"]]}\n').encode(),
        ":2",
        "0 <= start < end <= 5",
    ),
    "a CLUENER place out of range": (
        "train.json",
        '{"text": "叶老桂", "label": {"name": {"叶老桂": [[0, 3]]}}}\n'.encode(),
        ":1",
        "must lie in 0 to 2",
    ),
    "no entity": ("train.jsonl", '{"text": "叶老桂到了", "entities": []}\n'.encode(), "", "holds none"),
    "a .gz that is none": ("train.jsonl.gz", GOOD.encode(), "", "gzip"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_training_file(case: str, tmp_path: Path, refuse: Refuse) -> None:
    name, content, place, part = BAD_FILES[case]
    (tmp_path / name).write_bytes(content)
    data = {"train": str(tmp_path / name), "dev": str(tmp_path / name)}
    path = write_recipe(tmp_path / "mine.yaml", recipe_of(data))
    where = "train: " if case == "no entity" else f"{tmp_path / name}{place}"
    assert part in refuse("train", path, where=where)


def test_missing_files(tmp_path: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    for data in ({"path": str(tmp_path / "none.jsonl")}, {"train": str(tmp_path / "none.jsonl"), "dev": "x"}):
        path = write_recipe(tmp_path / "mine.yaml", recipe_of(data))
        refuse("train", path, where=f"{tmp_path / 'none.jsonl'}: ")
    path = write_recipe(tmp_path / "mine.yaml", recipe_of({"path": str(tmp_path)}))
    refuse("train", path, where=f"{tmp_path}: ")
    path = write_recipe(tmp_path / "mine.yaml", recipe_of({"name": "msra"}))
    monkeypatch.delenv("HANZOO_DATA", raising=False)
    message = refuse("train", path, where="HANZOO_DATA: ")
    assert "46,364 sentences" in message
    assert "LexiconAugmentedNER" in message
    monkeypatch.setenv("HANZOO_DATA", str(tmp_path))
    assert "set HANZOO_DATA" in refuse("train", path, where=str(tmp_path / "msra" / "train_dev.char.bmes"))


def test_a_label_in_dev_that_train_lacks(tmp_path: Path, refuse: Refuse) -> None:
    data = write_corpus(tmp_path)
    Path(data["dev"]).write_text(GOOD + GOOD.replace('"name"', '"nmae"'), encoding="utf-8")
    message = refuse("train", write_recipe(tmp_path / "mine.yaml", recipe_of(data)), where=f"{data['dev']}:2: ")
    assert "'nmae'. Did you mean 'name'?" in message


@pytest.mark.parametrize(
    ("content", "place", "part"),
    [
        ("3 2\n叶 1 2\n老 3 4\n", ":1: ", "count must be the number of rows"),
        ("2 3\n叶 1 2\n老 3 4\n", ":2: ", "3 numbers"),
        ("2 2\n叶 1 2\n老 3 nan\n", ":3: ", "finite"),
        ("", ": ", "at least one row"),
    ],
)
def test_a_vector_file_that_lies(
    tmp_path: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch, content: str, place: str, part: str
) -> None:
    monkeypatch.setenv("HANZOO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "lie.vec").write_text(content, encoding="utf-8")
    path = write_recipe(tmp_path / "mine.yaml", recipe_of(write_corpus(tmp_path)))
    message = refuse("train", path, f"model.vectors={tmp_path / 'lie.vec'}", where=f"{tmp_path / 'lie.vec'}{place}")
    assert part in message
    monkeypatch.delenv("HANZOO_VECTORS", raising=False)
    assert "Set HANZOO_VECTORS" in refuse("train", path, "model.vectors=none.vec", where="none.vec: ")


# --- run directories -------------------------------------------------------------------------------------------------


def test_an_existing_run_directory_is_refused(broken: Path, run: Path, refuse: Refuse, tmp_path: Path) -> None:
    recipe = run.parent / "tiny.yaml"
    message = refuse("train", recipe, "--run", broken, where=f"{broken}: ")
    assert "--resume" in message
    assert "--run" in message
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    refuse("train", recipe, "--run", tmp_path / "file", where=f"{tmp_path / 'file'}: ")
    refuse("train", recipe, "--run", broken, "--seeds", "1,2", where=f"{broken}")


def test_several_seeds_are_checked_before_the_first_is_trained(tmp_path: Path, run: Path, refuse: Refuse) -> None:
    shutil.copytree(run, tmp_path / "runs" / "seed-2")
    recipe = run.parent / "tiny.yaml"
    message = refuse("train", recipe, "--run", tmp_path / "runs", "--seeds", "1,2", where=f"{tmp_path}/runs/seed-2: ")
    assert "--resume" in message


def test_what_is_no_run_directory(tmp_path: Path, refuse: Refuse) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    for command in ("evaluate", "predict"):
        for name in ("none", "file", "empty"):
            refuse(command, tmp_path / name, where=str(tmp_path / name))


MODEL_FILES = ("hanzoo.json", "hanzoo.safetensors", "characters.json", "bigrams.json")


@pytest.mark.parametrize("name", MODEL_FILES)
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_a_model_with_a_missing_or_truncated_file(broken: Path, refuse: Refuse, name: str, damage: str) -> None:
    path = broken / "model" / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2 if damage == "truncated" else 0])
    for command in ("evaluate", "predict"):
        refuse(command, broken, where=f"{path}: ")
    refuse("predict", broken / "model", where=f"{path}: ")
    path.write_bytes(content)
    assert cli.evaluate([str(broken)]) == 0


class _Mischief:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["torch", "torch, old form", "pickle"])
def test_a_pickle_in_place_of_the_weights_is_never_loaded(
    broken: Path, tmp_path: Path, refuse: Refuse, form: str
) -> None:
    path = broken / "model" / "hanzoo.safetensors"
    content = {"weight": torch.zeros(3), "mischief": _Mischief(tmp_path / "done")}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    for command in ("evaluate", "predict"):
        assert "is a pickle, which could run code and is never loaded" in refuse(command, broken, where=f"{path}: ")
    assert not (tmp_path / "done").exists()
    with path.open("rb") as file:  # the control: it would have run
        pickle.load(file) if form == "pickle" else torch.load(file, weights_only=False)
    assert (tmp_path / "done").exists()


def test_a_model_of_a_newer_format_or_of_other_weights(broken: Path, refuse: Refuse) -> None:
    path = broken / "model" / "hanzoo.json"
    content = json.loads(path.read_text(encoding="utf-8"))

    def predict_with(**changes: Any) -> str:
        path.write_text(json.dumps(content | changes), encoding="utf-8")
        return refuse("predict", broken, where=str(broken / "model"))

    assert "newer hanzoo" in predict_with(format=2)
    assert "model must be one of bi_encoder, bilstm_crf" in predict_with(model="bilstm_cfr")
    predict_with(config=content["config"] | {"hidden": 8})
    predict_with(config=content["config"] | {"hidden": "8"})
    predict_with(config=content["config"] | {"new": 8})
    predict_with(description={})
    predict_with(description=content["description"] | {"labels": ["name"]})
    predict_with(description=content["description"] | {"labels": 3})
    path.write_text("[]", encoding="utf-8")
    refuse("predict", broken, where=f"{path}: ")


def test_a_run_without_its_recipe_or_its_data(
    broken: Path, tmp_path: Path, refuse: Refuse, capsys: pytest.CaptureFixture[str]
) -> None:
    path = broken / "recipe.yaml"
    text = path.read_text(encoding="utf-8")
    path.unlink()
    refuse("evaluate", broken, where=f"{broken}: ")
    path.write_text(text.replace("hidden:", "hiden:"), encoding="utf-8")
    capsys.readouterr()
    assert cli.evaluate([str(broken)]) == 2
    assert "Did you mean 'hidden'?" in capsys.readouterr().err
    moved = text.replace(str(broken.parent), "x").replace("test.jsonl", "gone.jsonl")
    path.write_text(moved, encoding="utf-8")
    refuse("evaluate", broken, where="")
    path.write_text(text, encoding="utf-8")
    (broken / "results.json").write_text('{"recipe": ', encoding="utf-8")
    refuse("evaluate", broken, "--record", tmp_path / "figure.json", where=f"{broken / 'results.json'}: ")
    (broken / "results.json").unlink()
    message = refuse("evaluate", broken, "--record", tmp_path / "figure.json", where=f"{broken}: ")
    assert "results.json" in message


def test_one_broken_run_among_several_prints_no_table(broken: Path, run: Path, refuse: Refuse) -> None:
    (broken / "model" / "hanzoo.safetensors").unlink()
    refuse("evaluate", run, broken, where=str(broken))


def test_loading_leaves_a_training_that_is_under_way_alone(
    broken: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model is written beside the old one and exchanged by two renames; whoever reads must not clear up meanwhile."""

    def predict() -> str:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("叶老桂\n".encode())))
        before = contents(broken)
        capsys.readouterr()
        assert cli.predict([str(broken)]) == 0
        assert contents(broken) == before
        return capsys.readouterr().out

    expected = predict()
    (broken / ".model.new").mkdir()
    (broken / ".model.new" / "hanzoo.json").write_text("{", encoding="utf-8")
    assert predict() == expected
    (broken / "model").rename(broken / ".model.old")
    assert predict() == expected


def test_evaluate_refuses_a_bad_file(run: Path, tmp_path: Path, refuse: Refuse) -> None:
    path = tmp_path / "mine.jsonl"
    refuse("evaluate", run, "--file", path, where=f"{path}: ")
    path.write_text(GOOD + "{\n", encoding="utf-8")
    refuse("evaluate", run, "--file", path, where=f"{path}:2: ")
    path.write_text(GOOD, encoding="utf-8")
    refuse("evaluate", run, "--file", path, "--format", "spams", where="format: ")
    path.write_text('{"text": "叶老桂到了"}\n', encoding="utf-8")
    refuse("evaluate", run, "--file", path, where=f"{path}:1: ")  # no labels: every figure would be 0


@pytest.fixture
def unfinished(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was stopped after 20 of its 60 steps, its newest states those of the steps 15 and 20."""
    step = Trainer._step

    def stopped(self: Trainer, *arguments: Any) -> None:
        step(self, *arguments)
        if self.progress.step == 20:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stopped)
        assert cli.train([str(run.parent / "tiny.yaml"), "--run", str(tmp_path / "unfinished")]) == 143
    return tmp_path / "unfinished"


@pytest.mark.parametrize("damage", ["truncated", "missing", "flipped", "pickle"])
def test_a_damaged_state_falls_back_to_the_one_before(
    unfinished: Path, run: Path, refuse: Refuse, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    recipe = str(run.parent / "tiny.yaml")

    def spoil(path: Path) -> None:
        content = path.read_bytes()
        if damage == "truncated":
            path.write_bytes(content[:-10])
        elif damage == "missing":
            path.unlink()
        elif damage == "flipped":
            path.write_bytes(content[:-10] + bytes([content[-10] ^ 1]) + content[-9:])
        else:
            torch.save({"weights": torch.zeros(3)}, path)

    older, newest = sorted((unfinished / "state").iterdir())
    spoil(newest / "tensors.safetensors")
    kept = older / "tensors.safetensors"
    whole = kept.read_bytes()
    spoil(kept)
    refuse("train", recipe, "--run", unfinished, "--resume", where=f"{unfinished / 'state'}: ")
    kept.write_bytes(whole)
    capsys.readouterr()
    assert cli.train([recipe, "--run", str(unfinished), "--resume"]) == 0
    err = capsys.readouterr().err
    assert "going on from 00000015 instead" in err
    assert "Traceback" not in err
    assert results_of(unfinished)["weights_sha256"] == results_of(run)["weights_sha256"]


def test_a_resumed_run_refuses_other_data(unfinished: Path, run: Path, refuse: Refuse, tmp_path: Path) -> None:
    saved = unfinished / "recipe.yaml"
    files = tmp_path / "other"
    data = write_corpus(files)
    with Path(data["train"]).open("a", encoding="utf-8") as file:
        file.write(GOOD)
    recipe = write_recipe(tmp_path / "tiny.yaml", recipe_of(data))
    refuse("train", recipe, "--run", unfinished, "--resume", where=f"{unfinished}: --resume")
    text = saved.read_text(encoding="utf-8")
    for split, path in data.items():
        text = text.replace(str(run.parent / "corpus" / f"{split}.jsonl"), path)
    saved.write_text(text, encoding="utf-8")
    refuse("train", recipe, "--run", unfinished, "--resume", where=f"{unfinished}: data")


# --- a full disk -----------------------------------------------------------------------------------------------------


def hidden_in(folder: Path) -> list[Path]:
    """What was left half-written: files and folders under names with a dot or of a temporary file."""
    return [path for path in folder.rglob("*") if path.name.startswith(".") or path.suffix in (".part", ".partial")]


@pytest.mark.parametrize("size", [100, 2_000, 20_000, 60_000])
def test_a_disk_that_is_full_while_training(
    unfinished: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    """At any size some file is the first that does not fit: recipe, metrics, model, state."""
    recipe = str(run.parent / "tiny.yaml")
    before = contents(unfinished)
    capsys.readouterr()
    with largest_file(size):
        assert cli.train([recipe, "--run", str(unfinished), "--resume"]) == 2
    out, err = capsys.readouterr()
    after = contents(unfinished)
    assert out == ""
    assert "Traceback" not in err
    assert err.count(" must be written, but the disk is full ") == 1
    assert "--resume" in err.splitlines()[-1]
    assert hidden_in(unfinished) == []
    changed = {name for name in before if after.get(name) != before[name]}
    assert not {name for name in changed if name.startswith("state")}
    assert not {name for name in changed if name.startswith("model")} or size == 60_000
    assert cli.train([recipe, "--run", str(unfinished), "--resume"]) == 0
    assert results_of(unfinished)["weights_sha256"] == results_of(run)["weights_sha256"]

    capsys.readouterr()
    with largest_file(size):
        assert cli.train([recipe, "--run", str(tmp_path / "fresh")]) == 2
    assert hidden_in(tmp_path / "fresh") == []
    assert hidden_in(tmp_path) == []
    assert "Traceback" not in capsys.readouterr().err


def test_a_disk_that_is_full_in_a_process_of_its_own(unfinished: Path, run: Path) -> None:
    states = contents(unfinished / "state")
    model = contents(unfinished / "model")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    arguments = [sys.executable, ROOT / "train.py", run.parent / "tiny.yaml", "--run", unfinished, "--resume"]
    done = subprocess.run(
        arguments,
        capture_output=True,
        preexec_fn=limit,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Traceback" not in done.stderr
    assert done.stderr.count(b"the disk is full") == 1
    assert contents(unfinished / "state") == states
    assert contents(unfinished / "model") == model
    assert hidden_in(unfinished) == []


def test_a_disk_that_is_full_while_predicting(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts.csv"
    texts.write_text("text\n" + "叶老桂在浙商银行工作\n" * 20, encoding="utf-8")
    for name in ("out.jsonl", "out.csv", "out.jsonl.gz", "page.html"):
        output = tmp_path / name
        output.write_text("before", encoding="utf-8")
        before = contents(tmp_path)
        flag = ["--html", str(output), "--output", os.devnull] if name == "page.html" else ["--output", str(output)]
        capsys.readouterr()
        with largest_file(100):
            assert cli.predict([str(run), str(texts), *flag]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert str(output) in err
        assert "must be" in err
        assert contents(tmp_path) == before


def test_a_disk_that_is_full_while_recording(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figure.json"
    path.write_text("{}", encoding="utf-8")
    before = contents(tmp_path)
    capsys.readouterr()
    with largest_file(100):
        assert cli.evaluate([str(run), "--record", str(path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"{path}: must be written, but the disk is full" in err
    assert contents(tmp_path) == before


def test_standard_output_that_is_full(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("叶老桂\n".encode())))
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.predict([str(run)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("standard output: ")
    assert err.count("\n") == 1


# --- predict ---------------------------------------------------------------------------------------------------------


def test_what_is_wrong_with_a_whole_input(run: Path, tmp_path: Path, refuse: Refuse) -> None:
    names = {
        "empty.txt": b"",
        "x.docx": b"x",
        "a.csv": b"body\nx\n",
        "b.parquet": b"PAR1",
        "c.csv": b"text,text\na,b\n",
    }
    for name, content in names.items():
        (tmp_path / name).write_bytes(content)
        refuse("predict", run, tmp_path / name, where=str(tmp_path / name))
    refuse("predict", run, tmp_path / "none.txt", where=str(tmp_path / "none.txt"))
    refuse("predict", run, tmp_path, where=str(tmp_path))
    (tmp_path / "a.txt").write_text("叶老桂\n", encoding="utf-8")
    refuse("predict", run, tmp_path / "a.txt", "--output", tmp_path / "a.txt", where=str(tmp_path / "a.txt"))
    refuse("predict", run, tmp_path / "a.txt", "--output", tmp_path / "none" / "a", where=str(tmp_path / "none"))
    refuse("predict", run, tmp_path / "a.txt", "--output", tmp_path, where=str(tmp_path))


BAD_LINES = {
    "texts.txt": b"{0}\n\xb5\xd8\n{1}\n",
    "texts.jsonl": b'{"text": "{0}"}\n{"text": \n{"text": "{1}"}\n',
    "list.jsonl": b'{"text": "{0}"}\n["text"]\n{"text": "{1}"}\n',
    "number.jsonl": b'{"text": "{0}"}\n{"text": 3, "id": 7}\n{"text": "{1}"}\n',
    "key.jsonl": b'{"text": "{0}"}\n{"txet": "a"}\n{"text": "{1}"}\n',
    "bytes.jsonl": b'{"text": "{0}"}\n{"text": "\xff"}\n{"text": "{1}"}\n',
    "ragged.csv": b"text,id\n{0},1\na,b,c\n{1},2\n",
    "bytes.csv": b"text,id\n{0},1\n\xff,b\n{1},2\n",
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_among_good_ones_comes_back_with_an_error(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    texts = [document.text for document in corpus(2)]
    content = BAD_LINES[name]
    for index, text in enumerate(texts):
        content = content.replace(b"{%d}" % index, text.encode())
    (tmp_path / name).write_bytes(content)
    capsys.readouterr()
    assert cli.predict([str(run), str(tmp_path / name)]) == 1
    out, err = capsys.readouterr()
    first, bad, last = json_lines(out)
    assert [first["text"], last["text"]] == texts
    assert [entity["text"] for entity in first["entities"]] == ["叶老桂", "浙商银行"]
    assert [entity["text"] for entity in last["entities"]] == ["浙商银行", "叶老桂"]
    assert "error" not in first
    assert "error" not in last
    assert "entities" not in bad
    line = 3 if name.endswith(".csv") else 2
    assert bad["error"].startswith(f"{tmp_path / name}:{line}: ")
    assert " must " in bad["error"]
    assert err == "1 of the inputs could not be read: see the field `error` of each\n"
    if name == "number.jsonl":
        assert bad["id"] == 7
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "tagged.jsonl"
    assert cli.predict([str(run), str(tmp_path / name), "--output", str(output)]) == 1
    assert json_lines(output.read_bytes()) == [first, bad, last]
