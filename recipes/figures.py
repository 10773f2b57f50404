"""The tables of figures in recipes/README.md, README.md and README.zh.md, written from recipes/results/*.json.

    python -m hanzoo.recipes.figures            write them (`make figures`)
    python -m hanzoo.recipes.figures --check    say where table and files differ, and exit with 1 if they do

Each result file is one figure, named `<recipe>[.<variant>].json`, and holds the keys of `Result`; the tables stand between
`<!-- figures:begin -->` and `<!-- figures:end -->`. The two READMEs show the rows that have `"headline": true`.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hanzoo.data.files import write_file
from hanzoo.errors import DataError, HanzooError, nearest
from hanzoo.evaluation.report import METRIC_NAMES, markdown_table, show_difference, show_figure, show_interval, show_p

BEGIN = "<!-- figures:begin -->"
END = "<!-- figures:end -->"

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Difference = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Metrics = dict[str, list[Difference]]  # metric -> one figure a seed; a correlation may be below 0


@dataclass(frozen=True)
class Kind:
    """A kind of figures, that has a table of its own.

    Attributes:
        titles: what stands above its table, by language.
        figure: the main metric.
        others: metrics beside it.
    """

    titles: Mapping[str, str]
    figure: str
    others: tuple[str, ...]


# A figure is of the last kind whose main metric it holds: matching has an F1 too.
KINDS = (
    Kind({"en": "Entities:", "zh": "实体："}, "f1", ("macro_f1", "official_macro_f1")),
    Kind({"en": "Pairs of texts:", "zh": "文本对："}, "spearman", ("pearson", "auc", "accuracy", "f1", "majority")),
    Kind({"en": "Search:", "zh": "检索："}, "mrr@10", ("ndcg@10", "recall@10", "recall@100")),
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Published(_Strict):
    """The figure that others report, in 0-1, and where."""

    value: Share
    source: str


class Against(_Strict):
    """How the main figure differs from that of another figure of the folder, on the same items.

    Attributes:
        recipe, variant: the other figure.
        weights_sha256: the hashes of the weights that it was compared with, one a seed: those of the other figure's file.
        difference: this figure (the mean over the seeds) minus the other, in 0-1.
        interval: the two ends of its 95 % bootstrap interval over items.
        p: the two-sided p-value of paired approximate randomisation over items; None where the figure is no sum over items.
        rounds: how many times items were exchanged, and drawn.
    """

    recipe: str = Field(min_length=1)
    variant: str
    weights_sha256: list[str] = Field(min_length=1)
    difference: Difference
    interval: tuple[Difference, Difference]
    p: Annotated[float, Field(gt=0, le=1)] | None
    rounds: int = Field(ge=1)


class FirstStage(_Strict):
    """What found the candidates that a search model ranked, and how the main figure differs from that of its own ranking.

    Attributes:
        name: of the first stage.
        candidates: of a query.
        weight: of the model's score beside the first stage's.
        figure: the main figure of the first stage by itself, in 0-1.
        difference, interval, p, rounds: as in Against.
    """

    name: str = Field(min_length=1)
    candidates: int = Field(ge=1)
    weight: Share
    figure: Share
    difference: Difference
    interval: tuple[Difference, Difference]
    p: Annotated[float, Field(gt=0, le=1)]
    rounds: int = Field(ge=1)


class Result(_Strict):
    """One figure, as a command wrote it.

    Attributes:
        recipe, variant: what was trained; the variant ("" = the recipe as it is) tells apart what was changed.
        command: the command that gives the figure again.
        data, data_sha256: the data set, and the hash of its files (or file -> hash).
        split: what the figure was measured on.
        selected_on: what the epoch was selected on.
        seeds: one figure each in every list of `metrics`.
        metrics: figures in 0-1 (a correlation from -1 on); the main one of a kind must be among them.
        inputs: other files that went in (vectors, lexicons, encoders) -> sha256.
        minutes, peak_gb: of one seed's training, on `machine`.
        machine: in words.
        commit: the version of hanzoo.
        view: the part of the data's labels.
        best_epochs, sentences_per_second, legal, calibration, weights_sha256: a seed: the epoch that was selected, the speed of
            its training, the share of legal tag sequences, what calibration gave, the hash of its weights.
        versions: package -> version.
        against: see Against.
        first_stage: see FirstStage; None where the model searched the whole corpus, or searched nothing.
        published: see Published.
        asked: what was aimed at ("at least 76"), in words.
        note: what a reader of the figure must know, in words.
        subsets: description -> metrics on part of the split ("without sentences seen in train").
        scorers: name of a scorer -> what it gives for the same predictions; see `hanzoo.evaluation.scorers`.
        vectors: "alignment" and "uniformity" of a bi-encoder's vectors, one a seed, which are no shares; see `evaluation.matching`.
        headline: whether the READMEs show it.
    """

    recipe: str = Field(min_length=1)
    variant: str
    command: str = Field(min_length=1)
    data: str = Field(min_length=1)
    data_sha256: str | dict[str, str]
    split: str = Field(min_length=1)
    selected_on: str = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    metrics: Metrics
    inputs: dict[str, str]
    minutes: Amount
    peak_gb: Amount
    machine: str
    commit: str
    view: str = ""
    best_epochs: list[int] = []
    sentences_per_second: list[float] = []
    legal: list[float | None] = []
    calibration: list[dict[str, Any] | None] = []
    weights_sha256: list[str] = []
    versions: dict[str, str] = {}
    against: Against | None = None
    first_stage: FirstStage | None = None
    published: Published | None = None
    asked: str = ""
    note: str = ""
    subsets: dict[str, Metrics] = {}
    scorers: dict[str, Metrics] = {}
    vectors: dict[str, list[Annotated[float, Field(allow_inf_nan=False)]]] = {}
    headline: bool = False

    @field_validator("metrics")
    @classmethod
    def _has_a_main_metric(cls, metrics: Metrics) -> Metrics:
        if not any(kind.figure in metrics for kind in KINDS):
            wanted = " or ".join(repr(kind.figure) for kind in KINDS)
            raise ValueError(f"must hold {wanted}, but holds {', '.join(map(repr, metrics)) or 'nothing'}")
        return metrics

    @model_validator(mode="after")
    def _has_one_figure_a_seed(self) -> Result:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must differ from each other, but are {self.seeds}")
        for where, metrics in {
            "metrics": self.metrics,
            "vectors": self.vectors,
            **self.subsets,
            **self.scorers,
        }.items():
            for metric, values in metrics.items():
                if len(values) != len(self.seeds):
                    raise ValueError(
                        f"{where}.{metric} must hold one figure for each of {len(self.seeds)} seeds, but holds {len(values)}"
                    )
        return self

    @property
    def kind(self) -> Kind:
        return next(kind for kind in reversed(KINDS) if kind.figure in self.metrics)

    @property
    def file_name(self) -> str:
        return _file_name(self)


def _file_name(figure: Result | Against) -> str:
    return f"{figure.recipe}.{figure.variant}.json" if figure.variant else f"{figure.recipe}.json"


def read_results(folder: Path) -> list[Result]:
    """The figures of a folder, by data, split, recipe and variant.

    Raises:
        DataError: files are no result files: all that is wrong with all of them, one line each.
    """
    results: list[Result] = []
    problems: list[str] = []
    for path in sorted(folder.glob("*.json")):
        try:
            result = Result.model_validate_json(path.read_bytes())
        except ValidationError as error:
            problems += [_problem(path, details) for details in error.errors(include_url=False)]
            continue
        except OSError as error:
            problems.append(f"{path}: the file must be readable, but is not: {error.strerror}. Check the file.")
            continue
        if path.name != result.file_name:
            problems.append(
                f"{path}: the file must be named {result.file_name}, as its recipe and variant say, but is not. Rename it."
            )
        results.append(result)
    if not problems:
        problems = [problem for result in results if (problem := _other_figure(folder, result, results))]
    if problems:
        raise DataError("\n".join(problems))
    return sorted(results, key=lambda result: (result.data, result.split, result.recipe, result.variant))


def _other_figure(folder: Path, result: Result, results: Sequence[Result]) -> str:
    """What is wrong with the figure that a figure was compared with; "" if nothing is."""
    if result.against is None:
        return ""
    path, name = folder / result.file_name, _file_name(result.against)
    other = next((other for other in results if other.file_name == name), None)
    if other is None or other is result:
        return f"{path}: against must name another figure of the folder, but names {name}. Record that one first."
    if other.weights_sha256 != result.against.weights_sha256:
        return (
            f"{path}: against must be a comparison with the weights of {name}, but those were recorded again. "
            "Write the file again with evaluate.py --against RUN --record."
        )
    return ""


def _problem(path: Path, details: Any) -> str:
    """One pydantic error in the words of the house."""
    where = ".".join(map(str, details["loc"]))
    if details["type"] == "missing":
        return f"{path}: {where} must be there, but is missing. Write the file again with evaluate.py --record."
    if details["type"] == "extra_forbidden":
        return f"{path}: {where} must be a key of a result file, but is not.{nearest(where, Result.model_fields)} Rename it."
    reason = details["msg"].removeprefix("Value error, ")
    shown = f", but is {details['input']!r}" if where and details["type"] != "value_error" else ""
    return f"{path}: {where + ': ' if where else ''}{reason}{shown}. Correct it."


def full_table(results: Sequence[Result]) -> str:
    """The tables of recipes/README.md: every figure, with its protocol, cost and command; one table a kind."""
    return _by_kind(results, _table_of, "en")


def _by_kind(results: Sequence[Result], table: Callable[[Kind, Sequence[Result]], str], language: str) -> str:
    """A table for each kind that there are figures of, the first one in any case; from the second on under its title."""
    tables: list[str] = []
    for kind in KINDS:
        own = [result for result in results if result.kind is kind]
        if own or kind is KINDS[0]:
            tables += [*([kind.titles[language]] if tables else []), table(kind, own)]
    return "\n\n".join(tables)


def _table_of(kind: Kind, results: Sequence[Result]) -> str:
    header = [
        "data",
        "split",
        "selected on",
        "recipe",
        f"{METRIC_NAMES[kind.figure]}, mean ± std (seeds)",
        *(METRIC_NAMES[metric] for metric in kind.others),
        "published",
        "asked",
        "minutes",
        "GB",
        "machine",
        "command",
    ]
    rows = [
        [
            result.data,
            result.split,
            result.selected_on,
            _recipe(result) + (f"; {result.note}" if result.note else ""),
            _figures(result),
            *(show_figure(result.metrics.get(metric)) for metric in kind.others),
            _published(result),
            result.asked,
            f"{result.minutes:.1f}",
            f"{result.peak_gb:.2f}",
            result.machine,
            f"`{result.command}`",
        ]
        for result in results
    ]
    figures = 1 + len(kind.others)
    return markdown_table(header, rows, right=(*range(4, 4 + figures), 6 + figures, 7 + figures))


_HEADINGS = {
    "en": ("data", "split", "selected on", "recipe", "{}, mean ± std (seeds)", "published"),
    "zh": ("数据", "划分", "选模依据", "配方", "{}，均值 ± 标准差（种子数）", "已发表"),
}


def headline_table(results: Sequence[Result], language: str) -> str:
    """The tables of a README: the headline figures. `language`: "en" or "zh", of the header."""

    def table(kind: Kind, own: Sequence[Result]) -> str:
        header = [heading.format(METRIC_NAMES[kind.figure]) for heading in _HEADINGS[language]]
        rows = [
            [result.data, result.split, result.selected_on, _recipe(result), _figures(result), _published(result)]
            for result in own
        ]
        return markdown_table(header, rows, right=(4,))

    return _by_kind([result for result in results if result.headline], table, language)


def _recipe(result: Result | Against) -> str:
    return f"`{result.recipe}` ({result.variant})" if result.variant else f"`{result.recipe}`"


def _figures(result: Result) -> str:
    main = result.kind.figure
    lines = [show_figure(result.metrics[main], count_seeds=True)]
    lines += [f"{name}: {show_figure(metrics[main])}" for name, metrics in result.subsets.items() if main in metrics]
    if result.against:
        lines.append(f"{_difference(result.against)}, against {_recipe(result.against)}")
    if first := result.first_stage:
        lines.append(
            f"{_difference(first)}, against {first.name} alone ({show_figure(first.figure)}), whose first {first.candidates} it "
            f"ranks, its own score weighing {first.weight:g}"
        )
    return "<br>".join(lines)


def _difference(found: Against | FirstStage) -> str:
    p = "" if found.p is None else f", p = {show_p(found.p)}"
    return f"{show_difference(found.difference)} ({show_interval(found.interval)}){p}"


def _published(result: Result) -> str:
    return "" if result.published is None else f"{show_figure(result.published.value)} ({result.published.source})"


TABLES: Mapping[str, Callable[[Sequence[Result]], str]] = {
    "recipes/README.md": full_table,
    "README.md": lambda results: headline_table(results, "en"),
    "README.zh.md": lambda results: headline_table(results, "zh"),
}


def replace_table(text: str, table: str, where: str) -> str:
    """A page with the table between its two markers replaced.

    Args:
        text: the page.
        table: the new table.
        where: the page's name, for the error.

    Raises:
        DataError: the page does not hold each marker once, in order.
    """
    begin, end = text.find(BEGIN), text.find(END)
    if text.count(BEGIN) != 1 or text.count(END) != 1 or end < begin:
        raise DataError(
            f"{where}: the page must hold {BEGIN} and below it {END}, once each, but does not. "
            "Add the two lines where the table of figures belongs."
        )
    return f"{text[: begin + len(BEGIN)]}\n{table}\n{text[end:]}"


def render_pages(root: Path) -> dict[str, tuple[str, str]]:
    """Each page that holds a table -> its text as it is, and as the result files want it.

    Raises:
        DataError: a result file or a page is missing or not what it must be.
    """
    results = read_results(root / "recipes" / "results")
    pages = {}
    for name, render in TABLES.items():
        path = root / name
        if not path.is_file():
            raise DataError(f"{path}: the page must exist, but does not. Run this in the repository's root.")
        text = path.read_bytes().decode("utf-8")
        pages[name] = (text, replace_table(text, render(results), str(path)))
    return pages


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0 done or equal, 1 different (--check), 2 a file is not what it must be."""
    parser = argparse.ArgumentParser(prog="python -m hanzoo.recipes.figures", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where table and files differ")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository (default: the current folder)")
    arguments = parser.parse_args(argv)
    try:
        pages = render_pages(arguments.root)
        changed = {name: texts for name, texts in pages.items() if texts[0] != texts[1]}
        for name, (before, after) in changed.items():
            if arguments.check:
                wanted = f"{name}, from recipes/results"
                lines = difflib.unified_diff(before.splitlines(), after.splitlines(), name, wanted, n=0, lineterm="")
                sys.stderr.write("\n".join(lines) + "\n")
            else:
                write_file(arguments.root / name, after)
                sys.stderr.write(f"{name}: written\n")
    except HanzooError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if changed and arguments.check:
        sys.stderr.write("Tables and recipes/results differ. Run: make figures\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
