"""TensorBoard's own reader finds in the event file what metrics.jsonl holds, each point once, also after a kill."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from hanzoo.errors import RunError, StorageError
from hanzoo.models.model import Model
from hanzoo.training.event_files import event_files, require_tensorboard
from tests import tiny

pytestmark = pytest.mark.usefixtures("deterministic")


def points(run: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of all event files."""
    return [
        (event.step, value.tag, value.simple_value)
        for path in sorted((run / "tensorboard").iterdir())
        for event in LegacyEventFileLoader(str(path)).Load()
        for value in event.summary.value
    ]


def expected(run: Path) -> list[tuple[int, str, float]]:
    """The same, from metrics.jsonl."""
    found = []
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        for name in ("loss", "learning_rate", "gradient_norm", "items_per_second"):
            if name in record:
                found.append((record["step"], name, record[name]))
        for group in ("losses", "dev"):
            found += [(record["step"], f"{group}/{name}", value) for name, value in record.get(group, {}).items()]
    return [(step, name, pytest.approx(value, rel=1e-6)) for step, name, value in found if value is not None]


def evaluate(model: Model) -> Mapping[str, Any]:
    return {"f1": 0.25, "recall": float("nan")}


def test_the_event_file_holds_what_metrics_hold(tmp_path: Path) -> None:
    tiny.trainer(tiny.toy(), tmp_path, epochs=2, tensorboard=True, evaluate=evaluate).fit()
    found = points(tmp_path)
    assert found == expected(tmp_path)
    assert [name for step, name, _ in found if step == 3][-1] == "dev/f1"
    assert not any(name == "dev/recall" for _, name, _ in found)  # not finite: null there, no point here


def test_going_on_leaves_each_point_once(tmp_path: Path) -> None:
    def stopped(model: Model) -> Mapping[str, Any]:
        if evaluations:
            raise KeyboardInterrupt
        evaluations.append(1)
        return {"f1": 0.5}

    evaluations: list[int] = []
    with pytest.raises(KeyboardInterrupt):  # the second epoch is in both files, and in no state
        tiny.trainer(tiny.toy(), tmp_path, epochs=2, tensorboard=True, evaluate=stopped).fit()
    assert max(step for step, _, _ in points(tmp_path)) == 6
    tiny.trainer(tiny.toy(), tmp_path, epochs=2, tensorboard=True, evaluate=evaluate, resume=True).fit()
    found = points(tmp_path)
    assert found == expected(tmp_path)
    assert [step for step, name, _ in found if name == "loss"] == [1, 2, 3, 4, 5, 6]


def test_without_the_setting_there_is_none(tmp_path: Path) -> None:
    tiny.trainer(tiny.toy(), tmp_path).fit()
    assert not (tmp_path / "tensorboard").exists()


def test_a_place_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way", encoding="utf-8")
    with pytest.raises(StorageError, match="tensorboard: must be written, but"):
        tiny.trainer(tiny.toy(), tmp_path, tensorboard=True).fit()


# the library writes in a thread, which says so too before the training hears of it; metrics.jsonl is written first
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_fills_up_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        pytest.raises(StorageError, match="tensorboard: must be written, but the disk is full"),
        event_files(tmp_path / "tensorboard", tmp_path / "metrics.jsonl") as add,
    ):
        add({"step": 1, "loss": 2.0})
        monkeypatch.setattr("tensorboard.compat.tensorflow_stub.io.gfile.LocalFileSystem._write", full)
        add({"step": 2, "loss": 1.0})
        pytest.fail("not said before the training ends")
    for thread in set(threading.enumerate()) - {threading.current_thread()}:
        thread.join(10.0)  # what it says must not fall into the next test


def test_it_is_refused_where_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    require_tensorboard()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"pip install 'hanzoo\[tensorboard\]'"):
        require_tensorboard()
