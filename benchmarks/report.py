"""Where a benchmark's last measurement stands, and how its output ends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# No torch here, nor what imports it: a child's peak counts the memory of the process that it was forked from.
FOLDER = Path(__file__).resolve().parent / "results"


def last(name: str) -> dict[str, Any]:
    """The line that benchmark `name` saved last; empty where it never did."""
    file = FOLDER / f"{name}.json"
    line: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return line


def keep(line: Mapping[str, object]) -> str:
    """Makes a line, whose `benchmark` names the script, its last measurement; returns it as JSON."""
    text = json.dumps(line, ensure_ascii=False)
    (FOLDER / f"{line['benchmark']}.json").write_text(text + "\n", encoding="utf-8")
    return text


def report(line: Mapping[str, object], save: bool) -> None:
    """Ends a benchmark's output with its line, which becomes its last measurement too where `save` says so."""
    print(keep(line) if save else json.dumps(line, ensure_ascii=False))
