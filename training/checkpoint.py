"""Writing folders so that a kill, a full disk or a power cut leaves the old one or the new one, never half of either.

A folder is written beside its place under a dotted name, every file is fsynced, and it is renamed into place. Where a folder
stands there already the two are exchanged by two renames; `recover`, called at every start, finishes or undoes a cut exchange.
A state folder also holds MANIFEST.json with the size and SHA-256 of every file: safetensors notices a truncated file, but not a
flipped bit.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from hanzoo.data.files import PARTIAL, storage_error, storage_errors, sync
from hanzoo.errors import RunError
from hanzoo.models.model import read_tensors

MANIFEST = "MANIFEST.json"
STATES_KEPT = 2
LOCK = ".lock"
STATE_FORMAT = 2  # raised with every change of what a state holds
GO_ON = "What was there before is still there. Make room, and go on with --resume where the run has begun."


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Make `folder` hold exactly what `write` writes, or leave it as it was.

    Args:
        folder: its parent is made if need be.
        write: gets an empty folder.

    Raises:
        StorageError: no room, no permission; nothing half-written is left.
    """
    beside = folder.with_name(f".{folder.name}.new")
    old = folder.with_name(f".{folder.name}.old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        recover(folder)
        beside.mkdir()
        write(beside)
        for path in beside.rglob("*"):
            sync(path)
        sync(beside)
        if folder.exists():
            folder.rename(old)
        beside.rename(folder)
        sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        recover(folder)
        if isinstance(error, OSError | SafetensorError):
            raise storage_error(folder, error, GO_ON) from error
        raise


def recover(folder: Path) -> None:
    """Finish or undo an exchange of `folder` that was cut, and clear what was half-written beside it."""
    old = folder.with_name(f".{folder.name}.old")
    if old.exists():
        if folder.exists():
            shutil.rmtree(old)
        else:
            old.rename(folder)
    beside = folder.with_name(f".{folder.name}.new")
    if beside.exists():
        shutil.rmtree(beside)


def clear_leftovers(run: Path) -> None:
    """Finish or undo what a killed training left half-done in its run directory."""
    recover(run / "model")
    recover(run / "start")
    recover(run / "targets")
    for path in [*run.glob("state/.*.old"), *run.glob("state/.*.new")]:
        recover(path.with_name(path.name[1:-4]))
    for path in run.glob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run directory for this process alone, made if need be; what was made and is still empty is removed at the end.

    The lock is one of the system (flock) on the file .lock, so it ends with the process, however that ends. A file system
    without locks does without.

    Raises:
        RunError: another process trains there.
        StorageError: it cannot be written to.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with storage_errors(folder):
        handle = _take_lock(folder)
    try:
        yield
    finally:
        with suppress(OSError):  # who is so quick as to open it now sees that it is no longer in the folder
            (folder / LOCK).unlink()
            for path in made:
                path.rmdir()
        os.close(handle)


def _take_lock(folder: Path) -> int:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), (folder / LOCK).stat()):
                os.truncate(handle, 0)
                os.write(handle, str(os.getpid()).encode())
                return handle
        except BlockingIOError:
            holder = os.read(handle, 20).decode(errors="replace")
            os.close(handle)
            raise RunError(
                f"{folder}: one process at a time must train in a run directory, but process {holder} is at it. "
                "Wait for it, or name another by --run."
            ) from None
        except FileNotFoundError:  # whoever held it has just ended and removed it
            pass
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                return handle
            os.close(handle)
            raise
        os.close(handle)


def write_state(folder: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write a state folder: tensors.safetensors, state.json, MANIFEST.json; then drop later ones, and all but STATES_KEPT.

    Args:
        folder: `state/<step>` with the step in eight digits.
        tensors: by name; stored contiguous, on the CPU.
        values: JSON values, but for "format". Floats come back as the same bits.
    """

    def write(target: Path) -> None:
        packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(packed, target / "tensors.safetensors")
        content = {"format": STATE_FORMAT, **values}
        (target / "state.json").write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(target.iterdir())}
        (target / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")

    write_folder(folder, write)
    # a later one is damaged, or counts the steps of another number of ranks: the training went on from before it
    later: list[Path] = []
    known: list[Path] = []
    for path in state_folders(folder.parent):
        (later if int(path.name) > int(folder.name) else known).append(path)
    for surplus in (*later, *known[STATES_KEPT:]):
        shutil.rmtree(surplus, ignore_errors=True)


def state_folders(states: Path) -> list[Path]:
    """The state folders of a run, newest first."""
    if not states.is_dir():
        return []
    return sorted(
        (path for path in states.iterdir() if path.name.isdigit()), key=lambda path: int(path.name), reverse=True
    )


def read_state(states: Path, warn: Callable[[str], None]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest complete state of a run; None where none was ever saved.

    Raises:
        RunError: there are states, but none of them is whole, or the newest is of another version.
    """
    broken: list[str] = []
    for folder in state_folders(states):
        problem = _problem(folder)
        if problem is None:
            if broken:
                warn(f"{broken[0]}; going on from {folder.name} instead")
            values = json.loads((folder / "state.json").read_text("utf-8"))
            written = values.pop("format", None)
            if written != STATE_FORMAT:
                raise RunError(
                    f"{folder / 'state.json'}: format must be {STATE_FORMAT}, but is {written!r}: another version of hanzoo wrote "
                    "it. Go on with that version, or start another run (--run)."
                )
            return read_tensors(folder / "tensors.safetensors"), values
        broken.append(problem)
    if broken:
        raise RunError(
            f"{states}: one state must be whole, but none is: {'; '.join(broken)}. Start again in another directory (--run)."
        )
    return None


def _problem(folder: Path) -> str | None:
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        if set(files) != {"tensors.safetensors", "state.json"}:
            return f"{folder / MANIFEST}: names other files than a state has"
        for name, facts in files.items():
            path = folder / name
            if path.stat().st_size != facts["bytes"] or sha256(path) != facts["sha256"]:
                return f"{path}: is damaged (size or SHA-256 differ from its manifest)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{folder}: is incomplete ({error})"
    return None


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """One SHA-256 over named tensors: their names, dtypes, shapes and bytes. Two runs with equal weights have equal ones."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
