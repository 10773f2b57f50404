"""Starts `train` again and again from one process that has imported and compiled once: every start is a fork of it.

    server = ForkServer(folder, ["tiny.yaml", "--run", "warm"])       # trains that once
    child = server.start(["tiny.yaml", "--run", "run"], log)          # a real process: kill it as you like
    code = server.wait(child)                                         # what it ended with: 0, or -9

The server forks while it has one thread, which it checks, so a fork is as good as a start. What runs in a fork is the command
itself, `hanzoo.cli.train`. Several threads may use one server.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT),
    # or transformers reads weights, and tokenizers texts, in threads that stay
    "HF_DEACTIVATE_ASYNC_LOAD": "1", "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip
LIMIT = 300.0  # seconds that one start may take
PAUSE = 0.001  # seconds between two looks at a run whose moment counts
LONG_PAUSE = 0.01  # and at one that only has to end
GONE = "gone"  # instead of an answer


class ForkServer:
    """The process that is forked, seen from outside.

    Args:
        folder: where it writes what it says.
        warm_up: arguments of a training that it runs first, so that all is imported and compiled.

    Raises:
        RuntimeError: the warm-up failed.
    """

    def __init__(self, folder: Path, warm_up: Sequence[str]) -> None:
        said = folder / "server.log"
        with said.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.fork_server", *warm_up],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT,
                env={**os.environ, **ENVIRONMENT},
                start_new_session=True,  # Ctrl-C is for whoever uses it; it ends when its standard input does
            )  # fmt: skip
        self._turn = threading.Lock()
        if self._answer() != "ready":
            self.close()
            raise RuntimeError(f"the fork server did not start:\n{said.read_text(encoding='utf-8')}")

    def start(
        self,
        arguments: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        largest_file: int = resource.RLIM_INFINITY,
        before: str = "",
    ) -> int:
        """Start `train` with these arguments.

        Args:
            arguments: of the command.
            log: all that it prints is added to this file.
            environment: added to the server's own.
            largest_file: bytes a file may have: a disk that is full for larger ones.
            before: "module:function", called first; how a control breaks something.

        Returns:
            The number of the process.
        """
        child: int = self._ask(
            {
                "arguments": list(arguments), "log": str(log), "environment": dict(environment or {}),
                "largest_file": largest_file, "before": before,
            }
        )  # fmt: skip
        return child

    def code(self, child: int) -> int | None:
        """The exit code of a process that was started here, -9 if it was killed; None while it runs."""
        code: int | None = self._ask(child)
        return code

    def wait(
        self, child: int, *, when: Callable[[], bool] | None = None, send: int = signal.SIGKILL, limit: float = LIMIT
    ) -> int:
        """Wait for a process to end; send it a signal as soon as `when` holds, or kill it after `limit` seconds."""
        deadline = time.monotonic() + limit
        while (code := self.code(child)) is None:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                deadline = float("inf")
            elif when is not None and when():
                os.kill(child, send)
                when = None
            time.sleep(LONG_PAUSE if when is None else PAUSE)
        return code

    def close(self) -> None:
        """End it, and every process that it started."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # it may have been killed, with a question on its way
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)

    def _ask(self, question: Any) -> Any:
        assert self._process.stdin is not None
        with self._turn:
            answer = GONE
            with suppress(BrokenPipeError):  # it was killed
                self._process.stdin.write(json.dumps(question) + "\n")
                self._process.stdin.flush()
                answer = self._answer()
        if answer == GONE:
            raise RuntimeError("the fork server has ended")
        return answer

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else GONE


def last_step(run: Path) -> int:
    """The last optimizer step that a run has recorded; with train.log_every=1 the last one that it has done."""
    path = run / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def is_saving(run: Path) -> bool:
    """Whether a half-written folder stands in a run: it is writing one, or was killed while it did."""
    return any(found for pattern in (".*.new", ".*.old", "state/.*") for found in run.glob(pattern))


def records(run: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says, but for the speed."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in record.items() if name != "items_per_second"} for record in found]


def results(run: Path) -> dict[str, Any]:
    """What results.json of a finished run says."""
    content: dict[str, Any] = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return content


def _serve(warm_up: list[str]) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from hanzoo import cli

    if cli.train(warm_up):
        sys.exit("the warm-up must end well, but did not")
    threads = Path("/proc/self/task")
    if threads.is_dir() and len(list(threads.iterdir())) > 1:
        sys.exit("a process that is forked must have one thread, but has more")
    print('"ready"', file=answers, flush=True)
    codes: dict[int, int | None] = {}  # of each child; None while it runs
    for line in sys.stdin:
        question = json.loads(line)
        if isinstance(question, dict):
            child = os.fork()
            if child == 0:
                _train(**question)
            codes[child] = None
            answer: int | None = child
        else:
            if codes[question] is None:
                ended, status = os.waitpid(question, os.WNOHANG)
                codes[question] = os.waitstatus_to_exitcode(status) if ended else None
            answer = codes[question]
        print(json.dumps(answer), file=answers, flush=True)
    for child, code in codes.items():
        if code is None:
            os.kill(child, signal.SIGKILL)


def _train(arguments: list[str], log: str, environment: dict[str, str], largest_file: int, before: str) -> NoReturn:
    """What a fork does."""
    from hanzoo import cli

    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os.environ.update(environment)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
        if before:
            module, _, name = before.partition(":")
            getattr(importlib.import_module(module), name)()
        code = cli.train(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:  # as an interpreter does
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1:])
