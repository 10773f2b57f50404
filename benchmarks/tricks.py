"""What every trick buys and costs: BiLSTM-CRF on Weibo and Resume, the best two and both together on CLUENER.

    HANZOO_DATA=... HANZOO_VECTORS=... python benchmarks/tricks.py --runs DIR [--jobs 2] [--only weibo,speed] [--finished] [--save]

Every row is the table's recipe without its tricks, with one thing added, and the same number of epochs. The runs go to
`DIR/<data>/<row>` and are ordinary run directories; those that are finished are kept, those that were cut go on. Each row stands
beside the first, "plain": the difference of F1 (mean over seeds), its 95 % interval and p-value over the sentences of the test set
(`evaluation/significance.py`). There are more than a dozen rows, so one in twenty has p < 0.05 by chance.

CLUENER's rows follow from Weibo's: the two tricks with the largest mean F1 there that may stand together, each alone and both.

Speed is measured apart, in turns in one process (`--only speed`, on an otherwise idle machine): the sentences/s of a row over
those of "plain" in the same round, median over rounds; one thread, processor seconds.

A line of JSON ends the output; --save also writes it to benchmarks/results/tricks.json, and the page recipes/TRICKS.md made from
it. Parts that were not asked for by --only are taken from there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed works too

import torch  # noqa: E402

from benchmarks.report import last, report  # noqa: E402
from benchmarks.sides import in_turn, our_side  # noqa: E402
from benchmarks.training_speed import build_model  # noqa: E402
from hanzoo.build import describe_machine, evaluate_run, load_data  # noqa: E402
from hanzoo.errors import RecipeError  # noqa: E402
from hanzoo.evaluation.report import markdown_table, show_difference, show_figure, show_interval, show_p  # noqa: E402
from hanzoo.recipe import load_recipe  # noqa: E402
from hanzoo.training.trick import trick_class, trick_names  # noqa: E402

PAGE = ROOT / "recipes" / "TRICKS.md"
PLAIN = "plain"
STEPS = 40  # steps of each row a round, where speed is measured


class Table(NamedTuple):
    """What one part trains: the same recipe, seeds and epochs for every row."""

    recipe: str
    seeds: tuple[int, ...]
    epochs: int


TABLES = {
    "weibo": Table("weibo_bilstm_crf", (1, 2, 3), 20),
    "resume": Table("resume_bilstm_crf", (1,), 8),
    "cluener": Table("cluener_bilstm_crf", (1, 2, 3), 8),
}

# Settings where the defaults are not those of a small model: an embedded sentence of these vectors has a norm of about 70.
SETTINGS: dict[str, dict[str, Any]] = {
    "ema": {"decay": 0.99},
    "fgm": {"epsilon": 1.0},
    "pgd": {"epsilon": 1.0, "step_size": 0.5, "num_steps": 2},
    "free_lb": {"epsilon_0": 0.3, "step_size": 0.6, "max_norm": 1.0},
}

# What is no trick, but a field of the head or of the plan.
FIELDS = {
    "label smoothing": ("model.label_smoothing=0.05",),
    "class weights": ("model.class_weights=0.5",),
    "multi-sample dropout": ("model.multi_sample_dropout=5",),
    "over-sampling": ("train.oversample=0.05",),
}

# Another choice of a trick that is no matter of degree.
VARIANTS = {
    "fgm, table": {"fgm": {"target": "table"}},
}


def with_tricks(tricks: Mapping[str, Any]) -> tuple[str, ...]:
    """The setting that puts these tricks in place of the recipe's."""
    return (f"train.tricks={json.dumps(tricks)}",)


def rows() -> dict[str, tuple[str, ...]]:
    """Each row's name -> its settings: no trick, every trick alone, every field, variants."""
    found = {PLAIN: with_tricks({})}
    for name in trick_names():
        if not trick_class(name).needs_start:  # what holds a model to the one it started from has recipes of its own
            found[name] = with_tricks({name: SETTINGS.get(name, {})})
    found |= {name: with_tricks(tricks) for name, tricks in VARIANTS.items()}
    found |= {name: (*with_tricks({}), *settings) for name, settings in FIELDS.items()}
    return found


def folder_of(runs: Path, table: str, row: str) -> Path:
    """Where a row's runs are."""
    return runs / table / row.replace(", ", "_").replace(" ", "_")


def all_settings(table: Table, settings: Sequence[str]) -> list[str]:
    """A row's settings, and those that all rows of its table have."""
    return ["train.threads=1", f"train.epochs={table.epochs}", *settings]


def is_finished(run: Path) -> bool:
    """Whether all seeds of a row are trained."""
    return (run / "results.json").is_file()


def train(table: Table, settings: Sequence[str], run: Path) -> None:
    """Train a row, or go on with it; the log stands beside the run directory."""
    if is_finished(run):
        return  # whether it is a run of these settings, `compare_all` looks
    run.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "train.py", f"recipes/{table.recipe}.yaml", *all_settings(table, settings)]
    words += ["--seeds", ",".join(map(str, table.seeds)), "--run", str(run)]
    if run.exists():
        words.append("--resume")
    with (run.parent / f"{run.name}.log").open("ab") as log:
        done = subprocess.run(words, cwd=ROOT, stdout=log, stderr=log, check=False)
    if done.returncode:
        raise SystemExit(f"{log.name}: the training of {run} ended with exit code {done.returncode}")
    sys.stderr.write(f"{run}: trained\n")


def train_all(table: str, wanted: Mapping[str, Sequence[str]], runs: Path, jobs: int) -> None:
    """Train the rows of a table, `jobs` at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        each = [
            pool.submit(train, TABLES[table], settings, folder_of(runs, table, row)) for row, settings in wanted.items()
        ]
        for future in each:
            future.result()


def compare_all(table: str, wanted: Mapping[str, Sequence[str]], runs: Path) -> list[dict[str, Any]]:
    """What each row's runs give on the split that is reported, and how they differ from the first's."""
    plain = evaluate_run(folder_of(runs, table, PLAIN))
    found = []
    for row, settings in wanted.items():
        _require_settings(folder_of(runs, table, row), TABLES[table], settings)
        report = plain if row == PLAIN else evaluate_run(folder_of(runs, table, row), against=plain)
        record: dict[str, Any] = {
            "row": row,
            "settings": list(settings),
            "split": report.subject.split,
            "f1": [figures["f1"] for figures in report.figures],
            "best_epochs": [result["best_epoch"] for result in report.subject.results],
            "weights_sha256": [result["weights_sha256"] for result in report.subject.results],
            "commit": report.subject.results[0]["commit"],
        }
        if report.against:
            record |= report.against[1].to_json()
        found.append(record)
        sys.stderr.write(f"{table}: {row}: {show_figure(record['f1'])}\n")
    return found


def _require_settings(run: Path, table: Table, settings: Sequence[str]) -> None:
    for seed in table.seeds:
        trained = load_recipe(run / f"seed-{seed}" / "recipe.yaml").to_dict()
        asked = load_recipe(table.recipe, [*all_settings(table, settings), f"train.seed={seed}"]).to_dict()
        if trained != asked:
            raise SystemExit(f"{run}: must be a run of {table.recipe} with {settings}, but is another. Move it away.")


def best_two(weibo: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The two tricks with the largest sum of mean F1 that may stand together."""
    mean = {record["row"]: statistics.fmean(record["f1"]) for record in weibo if record["row"] in trick_names()}

    def allowed(pair: tuple[str, str]) -> bool:
        try:
            load_recipe(TABLES["cluener"].recipe, with_tricks({name: SETTINGS.get(name, {}) for name in pair}))
        except RecipeError:
            return False
        return True

    return max(filter(allowed, combinations(mean, 2)), key=lambda pair: mean[pair[0]] + mean[pair[1]])


def rows_of_cluener(pair: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Plain, the two tricks alone, and both."""
    sets = ((), *((name,) for name in pair), tuple(pair))
    return {" + ".join(names) or PLAIN: with_tricks({name: SETTINGS.get(name, {}) for name in names}) for names in sets}


def speeds(rounds: int) -> dict[str, list[float]]:
    """Each row's sentences/s on Weibo's recipe over those of "plain" in the same round."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        plain = load_recipe(TABLES["weibo"].recipe, with_tricks({}))
        data = load_data(plain)
        featurize = build_model(plain, data).featurize
        features = [featurize(document) for document in data.train if document.text]
        sides = {}
        for row, settings in rows().items():
            recipe = load_recipe(TABLES["weibo"].recipe, settings)
            sides[row] = our_side(recipe, build_model(recipe, data), features, Path(folder) / row)
        measured = in_turn(sides, rounds, STEPS, time.process_time)
    return {
        row: [round(one / plain, 3) for one, plain in zip(values, measured[PLAIN], strict=True)]
        for row, values in measured.items()
    }


def page(line: Mapping[str, Any]) -> str:
    """recipes/TRICKS.md, from the line of JSON."""
    tables, protocol = line["tables"], line["protocol"]
    by_row = {data: {record["row"]: record for record in tables[data]} for data in tables}
    header, cells = ["added", "settings"], []
    for data in ("weibo", "resume"):
        header += [f"{data} test F1", "difference (95 % interval)", "p"]
    for row in by_row["weibo"]:
        cell = [row, "<br>".join(f"`{setting}`" for setting in by_row["weibo"][row]["settings"])]
        for data in ("weibo", "resume"):
            cell += _compared(by_row[data].get(row))
        ratios = line["speed"].get(row)
        cells.append([*cell, f"{statistics.median(ratios):.2f}" if ratios else ""])
    parts = [HEAD, markdown_table([*header, "sentences/s, plain = 1"], cells, right=(2, 5, 8))]
    if "cluener" in by_row:
        of_cluener = [[row, *_compared(record)] for row, record in by_row["cluener"].items()]
        parts += [
            CLUENER,
            markdown_table(["added", "cluener dev F1", "difference (95 % interval)", "p"], of_cluener, right=(1,)),
        ]
    said = [
        f"{data}: `{table['recipe']}` without its tricks, {table['epochs']} epochs, seeds {', '.join(map(str, table['seeds']))}."
        for data, table in protocol.items()
        if data in tables
    ]
    if line["missing"]:
        said.append(f"Not trained yet: {', '.join(line['missing'])}.")
    return "\n\n".join([*parts, " ".join(said) + f" Machine: {line['machine']}."]) + "\n"


HEAD = """# What every trick buys and costs

Written by `python benchmarks/tricks.py --runs DIR --save`, from `benchmarks/results/tricks.json`. Each row is the recipe without
tricks and with one thing added, in the same number of epochs; nothing was tuned for a row. The difference is that of the mean over
seeds against "plain", with its 95 % interval and p-value over the sentences of the test set; of this many rows one in twenty
has p < 0.05 by chance."""

CLUENER = "The two with the largest mean F1 on Weibo that may stand together, and both at once, on CLUENER:"


def _compared(record: Mapping[str, Any] | None) -> list[str]:
    """F1, difference, p; empty where the row is not there, or is the one that the others are compared with."""
    if record is None:
        return ["", "", ""]
    f1 = show_figure(record["f1"], count_seeds=True)
    if "p" not in record:
        return [f1, "", ""]
    return [f1, f"{show_difference(record['difference'])} ({show_interval(record['interval'])})", show_p(record["p"])]


def main() -> None:
    """Train, compare, print the tables and the line."""
    parser = argparse.ArgumentParser(description="What every trick buys and costs.")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the run directories")
    parser.add_argument(
        "--finished", action="store_true", help="train nothing: leave out the rows that are not trained"
    )
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--only", default="weibo,resume,cluener,speed", help="parts, with commas between")
    parser.add_argument("--rounds", type=int, default=5, help="of the measurement of speed")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/tricks.json")
    options = parser.parse_args()
    parts = options.only.split(",")
    if wrong := set(parts) - {*TABLES, "speed"}:
        parser.error(f"--only: parts must be of {', '.join(TABLES)}, speed, but are {', '.join(sorted(wrong))}")
    if min(options.jobs, options.rounds) < 1:
        parser.error("--jobs and --rounds must be at least 1")
    os.environ["OMP_NUM_THREADS"] = "1"
    before = last("tricks")
    tables: dict[str, Any] = before.get("tables", {})
    line: dict[str, Any] = {
        "benchmark": "tricks",
        "protocol": {name: table._asdict() for name, table in TABLES.items()},
        "tables": tables,
        "speed": before.get("speed", {}),
        "machine": describe_machine(torch.device("cpu")),
    }
    for table in (name for name in TABLES if name in parts):
        wanted = rows() if table != "cluener" else rows_of_cluener(best_two(tables["weibo"]))
        if options.finished:
            wanted = {
                row: settings for row, settings in wanted.items() if is_finished(folder_of(options.runs, table, row))
            }
        train_all(table, wanted, options.runs, options.jobs)
        tables[table] = compare_all(table, wanted, options.runs)
    if "speed" in parts:
        line["speed"] = speeds(options.rounds)
    trained = {name: {record["row"] for record in records} for name, records in tables.items()}
    line["missing"] = [
        f"{row} on {name}" for name in ("weibo", "resume") for row in rows() if row not in trained.get(name, ())
    ]
    if options.save:
        PAGE.write_text(page(line), encoding="utf-8")
    print(page(line))
    report(line, options.save)


if __name__ == "__main__":
    main()
