"""The three commands: train, evaluate, predict.

Exit codes: 0 done; 1 done, but some inputs were refused; 2 wrong input, usage, or no room; 130 and 143 interrupted and saved.
Standard output carries results only; all else goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hanzoo import __version__, build
from hanzoo.dry_run import dry_run
from hanzoo.errors import DataError, HanzooError, RunError, StorageError
from hanzoo.evaluation.report import METRIC_NAMES, results_table, show_difference, show_interval, show_p
from hanzoo.recipe import bundled_recipes, load_recipe
from hanzoo.tasks.catalogue import known_options, require_options, task_for_file
from hanzoo.tasks.task import Report, Task
from hanzoo.training.distributed import joined, num_ranks, restarts
from hanzoo.training.trainer import Interrupted

USAGE = 2


def say(line: str) -> None:
    """A line for people, on standard error; of several ranks the first one speaks."""
    if int(os.environ.get("RANK", "0")):
        return
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _run(command: Callable[[argparse.Namespace], int], arguments: argparse.Namespace, device: str | None = None) -> int:
    """Run a command, and give its exit code. `device`: of the ranks, where the command does not join them itself."""
    warnings.filterwarnings("ignore")  # libraries' warnings are not for the person at the shell; tests make them errors
    try:
        if device is None:
            return command(arguments)
        with joined(device):
            return command(arguments)
    except HanzooError as error:
        say(str(error))
        return USAGE
    except Interrupted as stop:
        say("saved; go on with --resume")
        return 128 + stop.signal_number
    except BrokenPipeError:  # the reader of our output has gone, as `head` does: nothing is wrong
        return 0
    except KeyboardInterrupt:
        say("stopped")
        return 130
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        say(
            f"memory: there must be room for the model and a batch, but: {str(error).splitlines()[0]}. Make either smaller."
        )
        return USAGE
    except OSError as error:  # a folder that may not be read, a file where a folder must be
        say(f"{error.filename or 'input or output'}: must be usable, but: {error.strerror or error}. Check the path.")
        return USAGE


def answer(text: str) -> None:
    """A result, on standard output; of several ranks the first one speaks. What its encoding lacks goes out as an escape.

    Raises:
        StorageError: standard output is closed.
    """
    if int(os.environ.get("RANK", "0")):
        return
    if sys.stdout is None:
        raise StorageError("standard output: must be open, but is closed. Open it, or send it to a file.")
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=name, description=description, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"hanzoo {__version__}")
    return parser


def _add_options_of_tasks(parser: argparse.ArgumentParser, command: str) -> None:
    for option, how in known_options(command).items():
        parser.add_argument(option, **how)


def _options_of_tasks(arguments: argparse.Namespace, command: str) -> dict[str, Any]:
    """The options of tasks that were given, with their values."""
    values = {option: vars(arguments)[option[2:].replace("-", "_")] for option in known_options(command)}
    return {option: value for option, value in values.items() if value not in (None, False, [])}


# train


def train(argv: Sequence[str] | None = None) -> int:
    """`train.py RECIPE [key.sub=value ...]`: returns the exit code."""
    parser = _parser("train", "Train a recipe, evaluate it, and leave a run directory with the model.")
    parser.add_argument("recipe", nargs="?", help="a YAML file, or the name of a bundled recipe")
    parser.add_argument("settings", nargs="*", metavar="key.sub=value", help="settings that replace the recipe's")
    parser.add_argument("--run", type=Path, help="run directory (default: runs/<recipe>)")
    parser.add_argument("--resume", action="store_true", help="go on with the run that is there, to the same bits")
    parser.add_argument(
        "--dry-run", action="store_true", help="build all, train two steps, say what would be trained; write nothing"
    )
    parser.add_argument("--seeds", type=_seeds, help="train one run a seed, e.g. 1,2,3")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--list", action="store_true", help="list the bundled recipes")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.list:
        return _run(_list, arguments)
    if arguments.recipe is None:
        parser.error("a recipe is needed; --list names the bundled ones")
    if arguments.dry_run and arguments.resume:
        parser.error("--dry-run shows a training from its first step on: leave --resume out")
    return _run(_train, arguments)


def _list(arguments: argparse.Namespace) -> int:
    answer("".join(f"{name}\n" for name in bundled_recipes()))
    return 0


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers like 1,2,3, but is {text!r}") from None
    if len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise argparse.ArgumentTypeError(f"must be different numbers from 0, but is {text!r}")
    return seeds


def _train(arguments: argparse.Namespace) -> int:
    settings = list(arguments.settings)
    if arguments.device:
        settings.append(f"train.device={arguments.device}")
    recipe = load_recipe(arguments.recipe, settings)
    folder = arguments.run or Path("runs") / recipe.name
    if arguments.dry_run:
        answer(dry_run(recipe, run=folder, seeds=arguments.seeds or (), say=say) + "\n")
        return 0
    words = ["python", "train.py", arguments.recipe, *arguments.settings]
    if arguments.seeds:
        words += ["--seeds", ",".join(map(str, arguments.seeds))]
    if arguments.device:
        words += ["--device", arguments.device]
    # torchrun starts all ranks again with the same words after one of them died
    resume = arguments.resume or (restarts() > 0 and not build.is_new(folder))
    told: dict[str, Any] = {"run": folder, "resume": resume, "command": shlex.join(words), "say": say}
    if arguments.seeds:
        runs = list(build.train_seeds(recipe, arguments.seeds, **told)["runs"].values())
    else:
        runs = [build.train(recipe, **told)]
    rows = [
        {"run": str(folder), "split": split, **_averaged(recipe.task, [run["splits"][split] for run in runs])}
        for split in runs[0]["splits"]
    ]
    answer(results_table(rows) + "\n")
    say(f"evaluate: python evaluate.py {folder}   {recipe.task.next_step.format(run=folder)}")
    return 0


def _averaged(task: Task, figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The columns of the table: a list of one value a seed, or the value."""
    known = [name for name in task.columns if name in figures[0]]
    if len(figures) == 1:
        return {name: figures[0][name] for name in known}
    return {name: [each[name] for each in figures] for name in known}


# evaluate


def evaluate(argv: Sequence[str] | None = None) -> int:
    """`evaluate.py RUN [RUN ...]`: returns the exit code."""
    parser = _parser("evaluate", "Figures of runs on a split of their data, or on a file, in one table.")
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run directories; one with several seeds counts as one"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--split", choices=["train", "dev", "test"], help="default: test where it has labels, else dev")
    where.add_argument("--file", type=Path, help="a labelled file of your own instead of the run's data")
    parser.add_argument(
        "--data",
        help="a data set by name, or a recipe with one, instead of the run's data; of a tagger only its labels take part",
    )
    parser.add_argument("--format", help="of --file, for a tagger: cluener, columns, weibo, spans; default: recognised")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="RUN",
        help="also compare each with this run: difference of the main figure (F1, Spearman, MRR@10), its interval, p-value",
    )
    _add_options_of_tasks(parser, "evaluate")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object a run instead of a table; what else is asked for goes to standard error",
    )
    parser.add_argument("--record", type=Path, help="write the figure of the one run as a file of recipes/results/")
    parser.add_argument("--variant", default="", help="what --record names the figure apart from its recipe")
    return _run(_evaluate, parser.parse_args(argv), "cpu")


def _evaluate(arguments: argparse.Namespace) -> int:
    if arguments.record and len(arguments.runs) != 1:
        raise RunError(f"--record: must have one run, but has {len(arguments.runs)}. Record them one by one.")
    if arguments.data and arguments.file:
        raise RunError("--data: must stand without --file, but both are given. Leave one out.")
    if arguments.submission:  # first: where it cannot be, no table is lost by it
        build.write_submission(arguments.runs[0], arguments.submission)
        say(f"{arguments.submission}: written")
    where = {"split": arguments.split, "file": arguments.file, "format": arguments.format, "data_of": arguments.data}
    where["say"] = say
    options = _options_of_tasks(arguments, "evaluate")
    against = build.evaluate_run(arguments.against, **where, options=options) if arguments.against else None
    reports: list[Report] = []
    for folder in arguments.runs:
        reports.append(build.evaluate_run(folder, **where, against=against, options=options))
        build.require_kind(reports[-1].task, folder, reports[0])
    task = reports[0].task
    shown = [*reports, against] if against and arguments.against not in arguments.runs else reports
    rows = [
        {"run": str(report.subject.run), "split": report.subject.place, **_averaged(task, report.figures)}
        for report in shown
    ]
    if arguments.record:
        if arguments.file:
            raise RunError("--record: a figure must be of the run's own data, but --file names another. Leave one out.")
        build.record_figure(reports[0], arguments.record, arguments.variant, say)
        say(f"{arguments.record}: written")
    if arguments.json:
        for report in reports:
            answer(json.dumps(report.to_json(), ensure_ascii=False) + "\n")
    else:
        answer(results_table(rows) + "\n")
        for report in reports:
            for line in report.remarks():
                answer(line + "\n")
        if against:
            answer(f"\n{_differences(reports, against)}\n")
    for block in task.details(reports, arguments):
        if arguments.json:  # whose lines a program reads
            say(f"\n{block}")
        else:
            answer(f"\n{block}\n")
    return 0


def _differences(reports: Sequence[Report], against: Report) -> str:
    """How runs differ from one, and what has been tested."""
    task = against.task
    found = [(report.subject.run, report.against[1]) for report in reports if report.against]
    rows = [
        {
            "run": str(folder),
            f"{METRIC_NAMES.get(task.figure, task.figure)} difference": show_difference(comparison.difference),
            "95 % interval": show_interval(comparison.interval),
        }
        | ({} if comparison.p is None else {"p": show_p(comparison.p)})
        for folder, comparison in found
    ]
    seeds, rounds = len(against.figures), found[0][1].rounds
    means = f", means over {seeds} seeds" if seeds > 1 else ""
    how = f"interval: paired bootstrap over {task.items}"
    if any(comparison.p is not None for _, comparison in found):
        how = f"p: paired approximate randomisation over {task.items}, two-sided, {rounds} rounds; {how}"
    return (
        f"against {against.subject.run}, {len(against.subject.items)} {task.items}{means}\n{results_table(rows)}\n"
        f"{how}. Both are of the models as trained; how much other seeds change, the spread over seeds says."
    )


# predict


def predict(argv: Sequence[str] | None = None) -> int:
    """`predict.py RUN [FILE | -]`: returns the exit code."""
    parser = _parser(
        "predict",
        "Tag texts, or score pairs of texts: .txt, .tsv, .jsonl, .csv, .parquet (also .gz), or lines from standard input.",
    )
    parser.add_argument("run", type=Path, help="a run directory, or its model/")
    parser.add_argument("file", nargs="?", default="-", help="texts, or pairs of texts; - or nothing: standard input")
    parser.add_argument("--output", help="where to write; default: JSON lines to standard output")
    _add_options_of_tasks(parser, "predict")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N")
    arguments = parser.parse_args(argv)
    return _run(_predict, arguments, arguments.device)


def _predict(arguments: argparse.Namespace) -> int:
    model = build.load(arguments.run, arguments.device)
    task = task_for_file(type(model), arguments.file)
    if arguments.file != "-" and not Path(arguments.file).exists():
        raise DataError(f"{arguments.file}: must exist, but does not. Check the path.")
    require_options(task, "predict", _options_of_tasks(arguments, "predict"), arguments.run, arguments.file)
    if arguments.file == "-" and num_ranks() > 1:
        raise RunError("standard input: must be a file where several ranks read it, but is a stream. Name a file.")
    refused = task.predict(model, arguments, say)
    if refused:
        say(f"{refused} of the inputs could not be read: see the field `error` of each")
    return 1 if refused else 0
