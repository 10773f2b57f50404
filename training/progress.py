"""What a person sees of a training: a progress bar on a terminal, plain lines in a pipe. All on standard error."""

from __future__ import annotations

import resource
import sys
import time
from types import TracebackType
from typing import Self

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


def peak_gigabytes(device: torch.device | None = None) -> float:
    """Peak memory so far, in GB: of a GPU what was allocated on it, else what was resident of this process since its start."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


class Reporter:
    """Says how a training goes.

    Args:
        num_steps: steps of the whole training.
        log_every: steps between two plain lines in a pipe.
        quiet: say nothing: another rank does.
    """

    def __init__(self, num_steps: int, log_every: int, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
        self.num_steps = num_steps
        self.log_every = log_every
        self._bar: Progress | None = None
        if self.console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[facts]}"),
                TimeRemainingColumn(), console=self.console,
            )  # fmt: skip
            self._task = self._bar.add_task("training", total=num_steps, facts="")
        self._started = time.monotonic()
        self._first: int | None = None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, line: str) -> None:
        """A line for people."""
        self.console.print(line, markup=False)

    def step(self, step: int, *, loss: float, rate: float, items_per_second: float, epoch: int) -> None:
        """Report the figures of the last `log_every` steps, `step` of them all being done."""
        if self._first is None:
            self._first = step
            self._started = time.monotonic()  # from here on: the first period compiles
        if self._bar:
            facts = f"epoch {epoch} loss {loss:.4f} rate {rate:.2e} {items_per_second:.0f}/s {peak_gigabytes():.1f} GB"
            self._bar.update(self._task, completed=step, facts=facts)
            return
        elapsed = time.monotonic() - self._started
        done = step - self._first
        left = f"{elapsed / done * (self.num_steps - step) / 60:.1f} min left" if done else "..."
        self.say(
            f"step {step}/{self.num_steps} epoch {epoch} loss {loss:.4f} rate {rate:.2e} "
            f"{items_per_second:.0f} items/s {peak_gigabytes():.2f} GB {left}"
        )
