"""Saved folders: whole or not there, whatever is cut, damaged or full."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from hanzoo.data import files
from hanzoo.errors import RunError, StorageError
from hanzoo.training import checkpoint
from hanzoo.training.checkpoint import (
    read_state,
    recover,
    state_folders,
    tensors_sha256,
    write_folder,
    write_state,
)

NUMBER = 0.1 + 0.2  # not a short decimal: its bits must come back


def save(states: Path, step: int) -> None:
    tensors = {"weights/a": torch.full((3, 4), float(step)), "optimizer/a/step": torch.tensor(float(step))}
    write_state(states / f"{step:08d}", tensors, {"step": step, "best": NUMBER, "text": "汉字"})


@pytest.fixture
def states(tmp_path: Path) -> Path:
    """The states of steps 9 and 10."""
    folder = tmp_path / "state"
    for step in (8, 9, 10):
        save(folder, step)
    return folder


def read(states: Path) -> tuple[int, list[str]]:
    """The step whose state is taken, and what was said."""
    said: list[str] = []
    loaded = read_state(states, said.append)
    assert loaded is not None
    tensors, values = loaded
    assert values == {"step": values["step"], "best": NUMBER, "text": "汉字"}
    assert torch.equal(tensors["weights/a"], torch.full((3, 4), float(values["step"])))
    assert tensors["optimizer/a/step"].item() == values["step"]
    return values["step"], said


def test_newest_state_is_taken_and_one_older_kept(states: Path) -> None:
    assert read(states) == (10, [])
    assert [folder.name for folder in state_folders(states)] == ["00000010", "00000009"]
    assert sorted(path.name for path in states.iterdir()) == ["00000009", "00000010"]


def test_no_state_is_none(tmp_path: Path) -> None:
    assert read_state(tmp_path / "state", pytest.fail) is None
    (tmp_path / "state").mkdir()
    assert read_state(tmp_path / "state", pytest.fail) is None


def test_a_state_of_another_version_is_refused(states: Path) -> None:
    path = states / "00000010" / "state.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {"format": content["format"] + 1}), encoding="utf-8")
    manifest = states / "00000010" / "MANIFEST.json"
    facts = json.loads(manifest.read_text(encoding="utf-8"))
    facts["files"]["state.json"] = {"bytes": path.stat().st_size, "sha256": checkpoint.sha256(path)}
    manifest.write_text(json.dumps(facts), encoding="utf-8")
    known = checkpoint.STATE_FORMAT
    with pytest.raises(RunError, match=rf"state\.json: format must be {known}, but is {known + 1}: another version of"):
        read(states)


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "a pickle": lambda path: path.write_bytes(b"\x80\x02}q\x00."),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "MANIFEST.json"])
def test_a_damaged_state_gives_way_to_the_older_one(states: Path, name: str, damage: str) -> None:
    DAMAGES[damage](states / "00000010" / name)
    step, said = read(states)
    assert step == 9
    assert len(said) == 1
    assert "00000010" in said[0]
    assert "00000009" in said[0]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "MANIFEST.json"])
def test_no_flipped_bit_gets_through(states: Path, name: str) -> None:
    path = states / "00000010" / name
    whole = path.read_bytes()
    older = 0
    for bit in range(0, 8 * len(whole), 11):
        flip(path, bit)
        step, said = read(states)  # which compares the content with what was saved
        older += step == 9
        assert (step == 9) == bool(said)
        path.write_bytes(whole)
    bits = len(range(0, 8 * len(whole), 11))
    # white space in the manifest means nothing; all else does
    assert older >= 0.8 * bits if name == "MANIFEST.json" else older == bits


def test_all_damaged_is_an_error_that_names_them(states: Path) -> None:
    for folder in state_folders(states):
        (folder / "state.json").unlink()
    with pytest.raises(RunError, match=r"00000010.*00000009.*--run"):
        read_state(states, pytest.fail)


# Kills. A process that was killed tidies nothing up: from then on every call that changes a folder fails.


class Killed(BaseException):
    pass


@contextmanager
def killed_at(point: int, patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Kill before the call with this number of those that change folders; gives the names of the calls tried."""
    calls: list[str] = []

    def counted(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            calls.append(name)
            if len(calls) - 1 == point and name == "rmtree" and Path(arguments[0]).is_dir():  # cut in the middle
                for path in sorted(Path(arguments[0]).rglob("*"))[:1]:
                    path.unlink()
            if len(calls) - 1 >= point:
                raise Killed
            return plain(*arguments, **named)

        return call

    with patch.context() as inner:
        for owner, name in ((Path, "mkdir"), (Path, "rename"), (Path, "replace"), (Path, "write_text")):
            inner.setattr(owner, name, counted(name, getattr(owner, name)))
        inner.setattr(files.os, "fsync", counted("fsync", os.fsync))
        inner.setattr(checkpoint.shutil, "rmtree", counted("rmtree", shutil.rmtree))
        inner.setattr(checkpoint, "save_file", counted("save_file", checkpoint.save_file))
        yield calls


def content_of(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_cut_exchange_is_finished_or_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    old, new = {"a": "old", "b": "old"}, {"a": "new", "c": "new"}

    def writer(content: dict[str, str]) -> Callable[[Path], None]:
        return lambda target: [(target / name).write_text(text) for name, text in content.items()] and None

    outcomes = []
    for point in range(99):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        write_folder(folder, writer(old))
        try:
            with killed_at(point, monkeypatch) as calls:
                write_folder(folder, writer(new))
        except Killed:
            recover(folder)
            assert [path.name for path in tmp_path.iterdir()] == ["model"]
            outcomes.append(content_of(folder))
            assert outcomes[-1] in (old, new), calls
            write_folder(folder, writer(new))  # and the next save goes through
            assert content_of(folder) == new
        else:
            break
    assert content_of(folder) == new
    assert calls.count("rename") == 2
    assert old in outcomes
    assert new in outcomes


def test_a_killed_save_leaves_a_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = tmp_path / "state"
    taken = set()
    for point in range(99):
        shutil.rmtree(states, ignore_errors=True)
        for step in (1, 2):
            save(states, step)
        try:
            with killed_at(point, monkeypatch):
                save(states, 3)
        except Killed:
            step, said = read(states)
            assert step in (2, 3)
            assert not said
            taken.add(step)
            save(states, 3)
            save(states, 4)
            assert read(states) == (4, [])
            assert sorted(path.name for path in states.iterdir()) == ["00000003", "00000004"]
        else:
            break
    assert taken == {2, 3}


def test_a_broken_state_that_is_being_replaced(states: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # going on from 9 after 10 was damaged, step 10 is saved again, over the damaged one
    for point in range(99):
        shutil.rmtree(states)
        for step in (9, 10):
            save(states, step)
        (states / "00000010" / "state.json").unlink()
        assert read(states)[0] == 9
        try:
            with killed_at(point, monkeypatch):
                save(states, 10)
        except Killed:
            assert read(states)[0] in (9, 10)
            save(states, 10)
            assert read(states) == (10, [])
            assert sorted(path.name for path in states.iterdir()) == ["00000009", "00000010"]
        else:
            break
    assert point > 5


# No room. The limit on the size of a file is what a full disk is to a test that may not fill one.


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 40, 150, 250])
def test_a_full_disk_is_one_error_and_the_old_state_stays(states: Path, size: int) -> None:
    before = {path: path.read_bytes() for path in states.rglob("*") if path.is_file()}
    with largest_file(size), pytest.raises(StorageError, match=r"00000011: must be written, but .*--resume"):
        save(states, 11)
    assert {path: path.read_bytes() for path in states.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in states.iterdir()) == ["00000009", "00000010"]
    assert read(states) == (10, [])
    save(states, 11)  # there is room again
    assert read(states) == (11, [])


def test_a_full_disk_says_so(tmp_path: Path) -> None:
    with largest_file(10), pytest.raises(StorageError, match="the disk is full"):
        write_folder(tmp_path / "model", lambda target: (target / "a").write_text("x" * 99) and None)
    with largest_file(10), pytest.raises(StorageError, match="the disk is full"):
        save(tmp_path / "state", 1)
    assert not (tmp_path / "model").exists()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="must be written"):
        write_folder(tmp_path / "file" / "model", lambda target: None)


# Hashes.


def test_hash_of_tensors() -> None:
    first = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2)}
    known = tensors_sha256(first)
    assert tensors_sha256(dict(reversed(first.items()))) == known
    assert tensors_sha256({**first, "a": first["a"].T.contiguous().T}) == known  # the same numbers, laid out otherwise
    others = [
        {**first, "a": first["a"].reshape(3, 2)},
        {**first, "a": first["a"].double()},
        {**first, "b": torch.tensor([0.0, -0.0])},
        {"a": first["b"], "b": first["a"]},
        {"a": first["a"]},
    ]
    assert len({known, *map(tensors_sha256, others)}) == 6


def test_nothing_is_a_pickle(states: Path) -> None:
    header = int.from_bytes((states / "00000010" / "tensors.safetensors").read_bytes()[:8], "little")
    assert set(json.loads((states / "00000010" / "tensors.safetensors").read_bytes()[8 : 8 + header])) > {"weights/a"}
    assert sorted(path.suffix for path in (states / "00000010").iterdir()) == [".json", ".json", ".safetensors"]
