"""Files: whole or not there, whatever is killed, full or in the way; and the one error for it."""

from __future__ import annotations

import errno
import gzip
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hanzoo.data import files
from hanzoo.data.files import AtomicFile, beside, expanded, reason_of, write_file
from hanzoo.errors import StorageError

ROOT = Path(__file__).resolve().parents[2]


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def test_a_file_that_is_cut_is_the_old_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    outcomes = []
    for point in range(9):
        path.write_text("old")
        calls: list[str] = []

        def counted(owner: Any, name: str, at: int = point, calls: list[str] = calls) -> Any:
            plain = getattr(owner, name)

            def call(*arguments: Any, **named: Any) -> Any:
                calls.append(name)
                if len(calls) - 1 == at:
                    raise Killed
                return plain(*arguments, **named)

            return call

        with monkeypatch.context() as patch:
            for owner, name in ((Path, "touch"), (Path, "open"), (os, "fsync"), (Path, "replace")):
                patch.setattr(owner, name, counted(owner, name))
            try:
                write_file(path, "new")
            except Killed:
                outcomes.append(path.read_text())
            else:
                break
    assert path.read_text() == "new"
    assert calls == ["touch", "open", "fsync", "replace", "fsync"]  # on the disk before the rename, the rename after it
    assert outcomes == ["old", "old", "old", "old", "new"]
    assert left(tmp_path) == ["results.json"]


KILLED = """
import sys, time
from hanzoo.data.files import AtomicFile
with AtomicFile(sys.argv[1]) as file:
    file.write(b"half")
    file.stream.flush()
    print("written", flush=True)
    time.sleep(60)
"""


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    assert path.read_text() == "old"
    (remains,) = (name for name in left(tmp_path) if name != "a.txt")
    assert remains.startswith(".a.txt.")
    assert remains.endswith(files.PARTIAL)
    write_file(path, "new")
    assert path.read_text() == "new"


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_no_room_is_one_error_and_the_old_file_stays(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_file(path, "old")
    before = path.read_bytes()
    noise = "".join(map(str, range(9_999)))
    with largest_file(50), pytest.raises(StorageError) as caught:
        write_file(path, noise)
    assert str(caught.value).startswith(f"{path}: must be written, but the disk is full (")
    assert str(caught.value).endswith("What was there before is still there. Make room, or name another place.")
    assert path.read_bytes() == before
    assert left(tmp_path) == [name]


def test_an_error_of_the_caller_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(KeyError), AtomicFile(path) as file:
        file.write(b"half")
        raise KeyError("x")
    assert path.read_text() == "old"
    assert left(tmp_path) == ["a"]


def test_compressed_files_of_equal_content_are_equal(tmp_path: Path) -> None:
    write_file(tmp_path / "a.gz", "内容")
    time.sleep(1.1)  # gzip keeps whole seconds
    write_file(tmp_path / "b.gz", "内容")
    assert gzip.decompress((tmp_path / "a.gz").read_bytes()).decode() == "内容"
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_links_and_permissions(tmp_path: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_file(tmp_path / "link", "one")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o666 & ~mask
    (tmp_path / "real").chmod(0o600)
    write_file(tmp_path / "link", "two")
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o600
    with beside(tmp_path / "other") as partial:  # what a library does that puts a file of its own there
        partial.unlink()
        partial.write_text("x")
        partial.chmod(0o600)
    assert (tmp_path / "other").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_place_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"the folder .*nowhere does not exist"):
        write_file(tmp_path / "nowhere" / "a", "x")
    with pytest.raises(StorageError, match="it is a folder"):
        write_file(tmp_path, "x")
    assert left(tmp_path) == []


def test_reasons() -> None:
    assert reason_of(OSError(errno.ENOSPC, "No space left")) == "the disk is full (No space left)"
    assert reason_of(ValueError("I/O error: (os error 28)")) == "the disk is full (I/O error: (os error 28))"
    assert reason_of(PermissionError(errno.EACCES, "Permission denied")) == "Permission denied"
    assert reason_of(ValueError("odd")) == "odd"


def test_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert expanded("~/x") == Path("/somewhere/x")
    assert expanded("a/~") == Path("a/~")
    assert expanded("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
