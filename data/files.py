"""Files that appear whole or not at all: written beside their place, brought to the disk, renamed into it; and one error for
what cannot be written."""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

from hanzoo.errors import StorageError

MAKE_ROOM = "What was there before is still there. Make room, or name another place."
PARTIAL = ".partial"  # how a file that is being written ends

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def expanded(path: str | Path) -> Path:
    """A path with `~` put in full; where there is no such home folder, `~` is a name like any other."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def reason_of(error: Exception) -> str:
    """Why the system would not write, in words; a full disk is named as such, also where a library wraps the error."""
    full = getattr(error, "errno", None) in _FULL or any(f"(os error {number})" in str(error) for number in _FULL)
    said = getattr(error, "strerror", None) or str(error)
    return f"the disk is full ({said})" if full else said


def storage_error(place: str | Path, error: Exception, cure: str = MAKE_ROOM) -> StorageError:
    """The one error for what could not be written to `place`."""
    return StorageError(f"{place}: must be written, but {reason_of(error)}. {cure}")


@contextlib.contextmanager
def storage_errors(place: str | Path, cure: str = MAKE_ROOM) -> Iterator[None]:
    """Turn the system's refusal to write into one StorageError. A closed pipe stays a BrokenPipeError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise storage_error(place, error, cure) from error


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Give a path to write instead of `path`; it takes the place of `path` when the block ends, and is removed where it raises.

    The new file has the permissions of the old one, or those of any new file. Two threads or processes may do this to one
    path at the same time: the later one stays.

    Raises:
        OSError: it cannot be written or renamed; `path` is then as it was.
    """
    partial = path.with_name(f".{path.name}.{threading.get_native_id()}{PARTIAL}")
    try:
        partial.touch()
        if path.exists():
            shutil.copymode(path, partial)
        mode = stat.S_IMODE(partial.stat().st_mode)
        yield partial
        partial.chmod(mode)  # a library may have put a file of its own there (safetensors: for the owner alone)
        sync(partial)  # or a crash after the rename could leave an empty file under the final name
        partial.replace(path)
        sync(path.parent)  # the rename itself
    finally:
        partial.unlink(missing_ok=True)


class AtomicFile:
    """A file to write bytes to that appears whole or not at all; a context manager.

    Where its name ends in .gz it is compressed, equal content to equal bytes. A target that is no regular file (/dev/stdout, a
    named pipe) is written straight into; one that is a link is followed.

    Attributes:
        path: as it was given.
        stream: what to write to, for who wants a stream.

    Raises:
        StorageError: it cannot be created, written, flushed or renamed: no room, no permission, no such folder.
        BrokenPipeError: the target is a pipe and its reader has gone.
    """

    def __init__(self, path: str | Path, cure: str = MAKE_ROOM) -> None:
        self.path = Path(path)
        self.cure = cure
        target = Path(os.path.realpath(self.path))
        with storage_errors(self.path, cure), contextlib.ExitStack() as opening:
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a folder")
            if not target.parent.is_dir():
                raise FileNotFoundError(errno.ENOENT, f"the folder {self.path.parent} does not exist")
            regular = not target.exists() or stat.S_ISREG(target.stat().st_mode)
            opened = opening.enter_context(beside(target)) if regular else target
            self.stream: IO[bytes] = opening.enter_context(opened.open("wb"))
            if target.suffix.lower() == ".gz":
                packed = gzip.GzipFile(filename="", mode="wb", fileobj=self.stream, mtime=0)
                self.stream = cast("IO[bytes]", opening.enter_context(packed))
            self._opened = opening.pop_all()  # closed from the last to the first: compressed, flushed, renamed

    def write(self, content: bytes) -> None:
        with storage_errors(self.path, self.cure):
            self.stream.write(content)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            with storage_errors(self.path, self.cure):
                self._opened.close()
            return
        with contextlib.suppress(OSError):  # what could not be written before cannot be now, and is thrown away
            self._opened.__exit__(kind, error, trace)


def write_file(path: Path, content: str, cure: str = MAKE_ROOM) -> None:
    """Replace a text file as a whole. Raises StorageError; the old content is then still there."""
    with AtomicFile(path, cure) as file:
        file.write(content.encode("utf-8"))
