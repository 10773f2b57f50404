"""What a newcomer waits for: `make demo`, `make test` and `make check` in a fresh clone, with an empty home folder.

    python benchmarks/fresh_clone.py [TORCH='torch==2.13.0'] [--save]

The commit that is checked out here is cloned into a temporary folder; changes that are not committed are not measured. The
commands see an empty HOME (no caches, no settings of a person), and of the environment only what says how to reach a registry:
pip's and uv's own keys (PIP_*, UV_*), proxies, certificates. Where pip's settings lie in a file of one's home, name it by
PIP_CONFIG_FILE. Words of the form NAME=VALUE are handed to make, in which they are its variables.

install_minutes  of `make demo`: until everything is installed
demo_minutes     the rest of it: train, evaluate, tag five sentences; asked: under 5
test_minutes     `make test`; asked: under 10
check_minutes    `make check`
tests            what pytest counted

A line of JSON ends the output; --save also writes it to benchmarks/results/fresh_clone.json. Exits with 1 where a command failed;
the end of what it said is then shown, and nothing is saved.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed works too

from benchmarks.report import report  # noqa: E402

KEPT = re.compile(
    r"PATH|TMPDIR|LANG|LC_\w+|TERM|(PIP|UV)_\w+|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|(https?|all|no)_proxy",
    re.IGNORECASE,
)
OUTCOME = re.compile(r"(\d+) (passed|failed|errors?|skipped|deselected|xfailed|xpassed|warnings?)\b")
LINES_SHOWN = 30  # of a command that failed


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        began, ended: seconds since the epoch, which the times of files are held against.
        code: its exit code.
        output: both streams.
    """

    began: float
    ended: float
    code: int
    output: str

    @property
    def minutes(self) -> float:
        return round((self.ended - self.began) / 60, 2)


def clean_environment(environment: Mapping[str, str], home: Path) -> dict[str, str]:
    """What the commands see: the keys that say how to reach a registry, and an empty home."""
    return {name: value for name, value in environment.items() if KEPT.fullmatch(name)} | {"HOME": str(home)}


def run(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Step:
    """Run a command to its end, whatever its exit code."""
    began = time.time()
    done = subprocess.run(
        command, cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
    )  # fmt: skip
    return Step(began, time.time(), done.returncode, done.stdout)


def git(*words: str, folder: Path) -> str:
    """What git says."""
    return subprocess.run(["git", *words], cwd=folder, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def outcomes(output: str) -> dict[str, int]:
    """The counts of pytest's closing line; empty where there is none."""
    for line in reversed(output.splitlines()):
        if found := OUTCOME.findall(line):
            return {name: int(count) for count, name in found}
    return {}


def texts_tagged(output: str) -> int:
    """How many texts the demo has tagged: its lines of JSON."""
    count = 0
    for line in output.splitlines():
        if line.startswith('{"text":'):
            count += "entities" in json.loads(line)
    return count


def measure(source: Path, settings: Sequence[str], environment: Mapping[str, str]) -> tuple[dict[str, Any], bool]:
    """Clone, run the three commands one after the other, and say what they took and whether all went well."""
    commit = git("rev-parse", "--short=12", "HEAD", folder=source)
    if git("status", "--porcelain", folder=source):
        sys.stderr.write(f"{source}: what is not committed is not measured, only {commit}\n")
    with tempfile.TemporaryDirectory() as temporary:
        clone, home = Path(temporary) / "clone", Path(temporary) / "home"
        home.mkdir()
        git("clone", "--quiet", "--no-hardlinks", str(source), str(clone), folder=source)
        git("checkout", "--quiet", "--detach", commit, folder=clone)
        clean = clean_environment(environment, home)
        steps = {}
        print(f"{'':8}{'minutes':>8}  exit code", flush=True)
        for name in ("demo", "test", "check"):
            steps[name] = step = run(["make", name, *settings], clone, clean)
            print(f"{name:8}{step.minutes:8.2f}  {step.code}", flush=True)
            if step.code:
                sys.stderr.write("\n".join(step.output.splitlines()[-LINES_SHOWN:]) + "\n")
            if step.code and name == "demo":
                break  # where this fails there is nothing to test with
        well = all(step.code == 0 for step in steps.values())
        record: dict[str, Any] = {"benchmark": "fresh_clone"}
        demo = steps["demo"]
        installed = clone / ".venv" / ".installed"  # the last thing that the installation touches
        if installed.exists():
            between = installed.stat().st_mtime
            record["install_minutes"] = Step(demo.began, between, 0, "").minutes
            record["demo_minutes"] = Step(between, demo.ended, demo.code, "").minutes
        record |= {f"{name}_minutes": steps[name].minutes for name in ("test", "check") if name in steps}
        if "test" in steps:
            record["tests"] = outcomes(steps["test"].output)
        record["texts_tagged"] = texts_tagged(demo.output)
        results = clone / "runs" / "demo" / "results.json"
        if results.exists():
            record["demo_f1"] = round(json.loads(results.read_text(encoding="utf-8"))["splits"]["dev"]["f1"], 4)
        python = clone / ".venv" / "bin" / "python"
        if python.exists():
            record["python"] = run([str(python), "-V"], clone, clean).output.strip().removeprefix("Python ")
    record |= {
        "installer": "uv" if shutil.which("uv", path=clean.get("PATH")) else "pip",
        "settings": list(settings),
        "commit": commit,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
    }
    return record, well


def main() -> None:
    """Measure, print the table and the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="handed to make, e.g. TORCH=torch==2.13.0")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/fresh_clone.json")
    arguments = parser.parse_intermixed_args()
    for word in arguments.settings:
        if not re.match(r"[A-Z]+=", word):
            parser.error(f"a setting must be NAME=VALUE, but is {word!r}")
    record, well = measure(ROOT, arguments.settings, os.environ)
    report(record, arguments.save and well)
    if not well:
        sys.exit(1)


if __name__ == "__main__":
    main()
