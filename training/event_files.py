"""The records of metrics.jsonl as event files, for those who watch a training in TensorBoard.

metrics.jsonl is what counts: it is cut back when a run goes on. The event file is therefore written anew from it whenever a
training starts, and holds every point once, also after a kill, and also where the option was set only later.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hanzoo.data.files import storage_errors
from hanzoo.errors import RunError
from hanzoo.training.checkpoint import GO_ON

SINGLE = ("loss", "learning_rate", "gradient_norm", "items_per_second")


def require_tensorboard() -> None:
    """Raise RunError unless TensorBoard is installed, which writes its files too."""
    if importlib.util.find_spec("tensorboard") is None:
        raise RunError(
            "train.tensorboard: the package tensorboard must be installed, but is not. Install it by "
            "pip install 'hanzoo[tensorboard]', or leave train.tensorboard out."
        )


@contextmanager
def event_files(folder: Path, metrics: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Keep an event file that holds what metrics.jsonl holds so far; gives the function that adds a record.

    The wall-clock times of what was there before are those of now.

    Args:
        folder: emptied first.
        metrics: the run's metrics.jsonl, cut back to where it goes on.

    Raises:
        StorageError: no room, no permission.
    """
    from torch.utils.tensorboard import SummaryWriter  # it takes a second, and few need it

    records = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    with storage_errors(folder, GO_ON):
        shutil.rmtree(folder, ignore_errors=True)
        # a TensorBoard that has been watching drops what it read before
        writer = SummaryWriter(str(folder), purge_step=0)

    def add(*records: Mapping[str, Any]) -> None:
        with storage_errors(folder, GO_ON):
            for record in records:
                for name, value in _points(record):
                    writer.add_scalar(name, value, record["step"])
            writer.flush()

    try:
        add(*map(json.loads, records))
        yield add
    finally:
        with storage_errors(folder, GO_ON):
            writer.close()


def _points(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Names and values: loss, losses/PART, learning_rate ..., dev/FIGURE; what was not finite is null, and no point."""
    figures = {name: record.get(name) for name in SINGLE}
    for group in ("losses", "dev"):
        figures |= {f"{group}/{name.replace(' ', '_')}": value for name, value in record.get(group, {}).items()}
    for name, value in figures.items():
        if isinstance(value, int | float):
            yield name, value
