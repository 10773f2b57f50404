"""What a person reads of a run: the table on the terminal, the learning curve, the card in the run directory.

Figures come in 0-1, as they are stored, and are shown times 100 with two decimals. Several seeds are shown as their mean
and their sample standard deviation (n - 1), one seed as it is.
"""

from __future__ import annotations

import io
import json
import math
import shlex
import statistics
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from hanzoo.data.files import AtomicFile

Figure = float | Sequence[float]  # 0-1; one value, or one value a seed

# ---- the content of results.json -----------------------------------------------------------------------------------


class LabelFigures(TypedDict, total=False):
    """One entity type: figures in 0-1, and how many entities were found, spurious, missed."""

    precision: Figure
    recall: Figure
    f1: Figure
    true_positives: int
    false_positives: int
    false_negatives: int


class SubsetFigures(TypedDict, total=False):
    """Figures in 0-1 on part of a split's sentences."""

    precision: Figure
    recall: Figure
    f1: Figure
    sentences: int


class SplitFigures(TypedDict, total=False):
    """One split: micro precision, recall and F1 on spans, macro F1 (mean of the types' F1), each type.

    `official_macro_f1` is CLUENER's own score, on the strings of the mentions; `f1_interval` the two ends of the 95 %
    bootstrap interval of F1 over sentences; `subsets` maps a description ("not seen in train") to its figures.
    """

    precision: Figure
    recall: Figure
    f1: Figure
    macro_f1: Figure
    official_macro_f1: Figure
    f1_interval: Sequence[float]
    sentences: int
    per_label: Mapping[str, LabelFigures]
    subsets: Mapping[str, SubsetFigures]


class DataRecord(TypedDict, total=False):
    """What a run was trained on.

    Attributes:
        name: the data set's name, or the path of one's own file.
        view: the part of its labels that was used ("nam", "nom"); "" for all.
        sha256: file name -> hash.
        counts: split -> what is counted ("sentences", "entities") -> how many.
        protocol: what was selected on and what is reported on, in words.
        licence, source, cite: the data's terms, where it officially comes from, what to cite; in words.
        notes: what a reader of the figures must know of the data, one sentence each.
    """

    name: str
    view: str
    sha256: Mapping[str, str]
    counts: Mapping[str, Mapping[str, int]]
    protocol: str
    licence: str
    source: str
    cite: str
    notes: Sequence[str]


class Calibration(TypedDict, total=False):
    """What was fitted on half of dev, and how well it does on the rest; `note`: why nothing was fitted.

    Taggers: the temperature; `ece_before` and `ece_after`: expected calibration error (0-1) without and with it, of the predicted
    entities. Matchers: the threshold, what it was `chosen_for` on all of dev; `factor` and `offset` of a score's log-odds, `ece`
    and `brier` with them, and `brier_of_the_share`, of always saying how many pairs match.
    """

    temperature: float
    ece_before: float
    ece_after: float
    sentences_fitted: int
    sentences_measured: int
    entities_measured: int
    threshold: float
    chosen_for: str
    factor: float
    offset: float
    pairs_fitted: int
    pairs_measured: int
    ece: float
    brier: float
    brier_of_the_share: float
    note: str


class Results(TypedDict, total=False):
    """The content of results.json. Any key may be missing: the card leaves out what it does not know.

    Attributes:
        recipe, model: their names.
        splits: "dev", "test" ... -> figures.
        selected_on: what chose the epoch ("dev", "10 % of train").
        metric: the figure that chose it ("f1").
        seed: the seed of the run.
        best_epoch, best_step: where the selected weights come from, both counted from 1.
        data: see DataRecord.
        inputs: other files that went in (vectors, lexicons, encoders): name -> sha256.
        calibration: see Calibration.
        minutes, peak_gb: of the training; peak of the process's resident memory so far (processor) or of allocated memory (GPU).
        machine: in words.
        versions: package -> version.
        weights_sha256: hash of the weights.
    """

    recipe: str
    model: str
    splits: Mapping[str, SplitFigures]
    selected_on: str
    metric: str
    seed: int
    best_epoch: int
    best_step: int
    data: DataRecord
    inputs: Mapping[str, str]
    calibration: Calibration
    minutes: float
    peak_gb: float
    machine: str
    versions: Mapping[str, str]
    weights_sha256: str


# ---- figures as text ------------------------------------------------------------------------------------------------

METRIC_NAMES = {
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "macro_f1": "macro F1",
    "official_macro_f1": "official macro F1",
    "spearman": "Spearman",
    "pearson": "Pearson",
    "auc": "AUC",
    "accuracy": "accuracy",
    "majority": "majority",
    "mrr@10": "MRR@10",
    "ndcg@10": "nDCG@10",
    "recall@10": "recall@10",
    "recall@100": "recall@100",
}


def show_figure(figure: Figure | None, *, count_seeds: bool = False) -> str:
    """A figure in 0-1 as text: "76.12", or "76.12 ± 0.31" for several seeds; "" for None and for no seeds.

    Args:
        figure: one value, or one a seed.
        count_seeds: append the number of seeds: "76.12 ± 0.31 (3)"; one seed in a list is "76.12 (1)".
    """
    if figure is None:
        return ""
    if isinstance(figure, (int, float)):
        return f"{100 * figure:.2f}"
    if not figure:
        return ""
    shown = f"{100 * statistics.fmean(figure):.2f}"
    if len(figure) > 1:
        shown += f" ± {100 * statistics.stdev(figure):.2f}"
    return f"{shown} ({len(figure)})" if count_seeds else shown


def display_width(text: str) -> int:
    """The columns that a text takes on a terminal: two for Chinese and full-width characters, none for combining marks."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def _aligned(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    widths = [max(map(display_width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for number, row in enumerate(rows):
        cells = []
        for cell, width, flush_right in zip(row, widths, right, strict=True):
            blanks = " " * (width - display_width(cell))
            cells.append(blanks + cell if flush_right else cell + blanks)
        lines.append("  ".join(cells).rstrip())
        if number == 0:
            lines.append("  ".join("-" * width for width in widths))
    return "\n".join(lines)


def results_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Several runs as one plain table, aligned on a terminal also where names are Chinese.

    Args:
        rows: one mapping a line, column -> value. A float, or a sequence of floats (one a seed), is a figure in 0-1 and
            shown times 100; anything else is shown as it is, None as nothing. Columns stand in the order in which they
            first come; a row need not have all of them.

    Returns:
        Lines without a final newline; "" where there are no rows.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if not columns:
        return ""
    cells = [[_shown_value(row.get(column)) for column in columns] for row in rows]
    right = [all(not isinstance(row.get(column), str) for row in rows) for column in columns]
    heads = [METRIC_NAMES.get(column, _one_line(column)) for column in columns]
    return _aligned([heads, *cells], right)


def _shown_value(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float) or (isinstance(value, Sequence) and not isinstance(value, str)):
        return show_figure(value)
    return _one_line(str(value))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """A Markdown table; what would break a cell ("|", a line break) is escaped. `right`: columns set flush right."""
    lines = [header, ["---:" if index in right else "---" for index in range(len(header))], *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return _one_line(text).replace("|", "\\|")


def show_difference(difference: float) -> str:
    """A difference of figures in 0-1 as text, times 100 and with its sign: "+0.53"."""
    return f"{100 * difference:+.2f}"


def show_interval(ends: Sequence[float]) -> str:
    """The two ends of an interval of differences: "-0.41 to +1.44"."""
    return f"{show_difference(ends[0])} to {show_difference(ends[1])}"


def show_p(p: float | None) -> str:
    """A p-value with two digits that count: "0.27", "0.0012", "1"; nothing where there is none."""
    return "" if p is None else f"{p:.2g}"


# ---- the learning curve ---------------------------------------------------------------------------------------------

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito: told apart by everyone
_MOST_POINTS = 400  # a line; more cannot be seen at this width and would only make the file large


def learning_curve(
    runs: Sequence[Sequence[Mapping[str, Any]]],
    path: str | Path,
    *,
    title: str,
    names: Sequence[str] = (),
    split: str = "dev",
    metric: str = "f1",
) -> None:
    """Draw training loss and the dev metric against the optimizer step into an SVG of 800 by 450 pixels.

    Equal records give equal bytes. Text stays text in the file, so that a title in Chinese needs no font here.

    Args:
        runs: one line each: the records of a run's metrics.jsonl, in order: {"step", "epoch", "loss", ...} from training and
            {"step", "epoch", SPLIT: {METRIC: 0-1, ...}} from evaluation. Records without these keys, and values that are
            not finite, are passed over.
        path: the file to write; it appears whole or not at all.
        title: the heading, mostly recipe and data; plain text.
        names: the runs' names for the legend ("seed 1", ...); without them there is no legend.
        split: the key of the evaluated split.
        metric: the key of the metric in it; the highest value is marked as best.

    Raises:
        StorageError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import EngFormatter, MaxNLocator

    name = METRIC_NAMES.get(metric, metric)
    settings: dict[Any, Any] = {
        "svg.hashsalt": "hanzoo",  # else each drawing has other ids
        "svg.fonttype": "none",
        "font.family": ["sans-serif"],
        "font.size": 9.0,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e3e3e3",
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
    }
    content = io.BytesIO()
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # The font that measures the text may lack Chinese; the viewer's own font draws it.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure = Canvas(figsize=(800 / 96, 450 / 96), layout="constrained", facecolor="white")
        FigureCanvasSVG(figure)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        figure.suptitle(title, fontsize=11, parse_math=False)
        best_of_all: tuple[float, float, Any] | None = None
        for index, records in enumerate(runs):
            colour = _COLOURS[index % len(_COLOURS)]
            losses = [(record["step"], record["loss"]) for record in records if _is_number(record.get("loss"))]
            steps, values = _thinned(losses)
            lower.plot(steps, values, color=colour, linewidth=1.1)
            scores = [
                (record["step"], 100 * record[split][metric], record.get("epoch"))
                for record in records
                if isinstance(record.get(split), Mapping) and _is_number(record[split].get(metric))
            ]
            upper.plot(
                [step for step, _, _ in scores],
                [score for _, score, _ in scores],
                color=colour,
                linewidth=1.3,
                marker="o",
                markersize=3,
                label=_legend_text(names[index]) if names else None,
            )
            if not scores:
                continue
            best = max(scores, key=lambda point: point[1])  # the first of equals, as the trainer selects
            upper.plot([best[0]], [best[1]], color=colour, marker="*", markersize=13, markeredgecolor="white", zorder=5)
            if best_of_all is None or best[1] > best_of_all[1]:
                best_of_all = best
        upper.set_ylabel(f"{split} {name} (%)", parse_math=False)
        lower.set_ylabel("training loss (per unit)")
        lower.set_xlabel("optimizer step")
        lower.set_ylim(bottom=min(0.0, lower.get_ylim()[0]))
        lower.xaxis.set_major_locator(MaxNLocator(integer=True))
        lower.xaxis.set_major_formatter(EngFormatter(sep=""))
        if best_of_all is not None:
            step, score, epoch = best_of_all
            at = f"step {step:,}" if epoch is None else f"epoch {_short(epoch)}, step {step:,}"
            upper.set_title(f"★ best {split} {name} {score:.2f} at {at}", loc="right", fontsize=9, parse_math=False)
            lower.axvline(step, color="#8a8a8a", linewidth=0.8, linestyle="--")
        else:
            upper.text(
                0.5, 0.5, f"no {split} {name} measured yet", transform=upper.transAxes, ha="center", parse_math=False
            )
        if names and best_of_all is not None:
            upper.legend(loc="lower right", frameon=False, ncols=min(len(runs), 4))
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    with AtomicFile(path) as file:
        file.write(content.getvalue())


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _short(epoch: float) -> str:
    return f"{epoch:.4g}"


def _legend_text(name: str) -> str:
    # matplotlib leaves lines whose name starts with "_" out of a legend, and reads "$...$" as mathematics.
    return name.lstrip("_").replace("$", r"\$")


def _thinned(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """At most 400 points: each the last step and the mean loss of a stretch of equally many records."""
    stretch = max(1, math.ceil(len(points) / _MOST_POINTS))
    parts = [points[start : start + stretch] for start in range(0, len(points), stretch)]
    return [part[-1][0] for part in parts], [statistics.fmean(value for _, value in part) for part in parts]


# ---- the card -------------------------------------------------------------------------------------------------------


TAGGER_CALLS = ('model.predict(["浙商银行企业信贷部叶老桂博士"])[0].entities', "texts.txt --output tagged.jsonl")


def run_card(
    results: Mapping[str, Any],
    recipe: Mapping[str, Any],
    run: str,
    calls: Sequence[str] = TAGGER_CALLS,
    counted: str = "sentences",
) -> str:
    """The README.md of a run directory: what it is, on what, how good, how to load it.

    Args:
        results: the content of results.json: see `Results`. What it does not hold is left out.
        recipe: the resolved recipe; its `model`, `train`, `tricks` and `evaluate` sections are shown.
        run: the run directory as a user would name it in a command ("runs/cluener_bilstm_crf").
        calls: lines of Python on the loaded model, which they call `model`; the last one is what `predict.py` is given.
        counted: what the figures are over, as `splits` counts it: sentences, pairs, queries.

    Returns:
        Markdown, ending in a newline.
    """
    known = cast(Results, results)
    data = known.get("data", {})
    parts = [f"# {Path(run).name}", _summary(known, recipe)]
    if known.get("splits"):
        parts += ["## How good", *_quality(known, counted)]
    if known.get("calibration"):
        parts += ["## Confidence", _confidence(known["calibration"])]
    parts += ["## How to load", _loading(run, calls)]
    if data or known.get("inputs"):
        parts += ["## Data", *_data(data, known.get("inputs", {}))]
    training = _training(known, recipe)
    if training:
        parts += ["## Training", *training]
    return "\n\n".join(parts) + "\n"


def _summary(results: Results, recipe: Mapping[str, Any]) -> str:
    model = results.get("model")
    if not model:
        section = recipe.get("model")
        model = section.get("name") if isinstance(section, Mapping) else section
    what = _code(str(model)) if model else "A model"
    data = results.get("data", {})
    trained_on = f", trained on {_code(_data_name(data))}" if data.get("name") else ""
    return (
        f"{what}{trained_on} with hanzoo. Every figure of this page is in `results.json`, every setting in `recipe.yaml`, "
        "the course of the training in `metrics.jsonl`.\n\n![learning curve](curve.svg)"
    )


def _data_name(data: DataRecord) -> str:
    return f"{data['name']}, {data['view']}" if data.get("view") else data["name"]


def _code(text: str) -> str:
    """Text as inline code, whatever backticks are in it."""
    text = _one_line(text)
    fence = "`"
    while fence in text:
        fence += "`"
    blank = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{blank}{text}{blank}{fence}"


def _quality(results: Results, counted: str) -> list[str]:
    parts = [_protocol(results, counted)]
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for split, figures in results["splits"].items():
        rows.append((split, figures))
        rows += [(f"{split}, {subset}", values) for subset, values in figures.get("subsets", {}).items()]
    metrics = [metric for metric in METRIC_NAMES if any(metric in figures for _, figures in rows)]
    heads = ["split", counted, *(METRIC_NAMES[metric] for metric in metrics)]
    table = [
        [name, _count(figures.get(counted)), *(show_figure(figures.get(m)) for m in metrics)] for name, figures in rows
    ]
    if any(_interval(figures) for _, figures in rows):
        heads.append("F1, 95 % interval")
        table = [[*row, _interval(figures)] for row, (_, figures) in zip(table, rows, strict=True)]
    parts.append(markdown_table(heads, table, right=range(1, len(heads))))
    for split, figures in results["splits"].items():
        if figures.get("per_label"):
            table = [
                [label, *_of_a_label(values), _count(_num_gold(values))]
                for label, values in sorted(figures["per_label"].items())
            ]
            heads = ["type", *(METRIC_NAMES[metric] for metric in _OF_A_LABEL), "gold entities"]
            parts += [f"By type, {split}:", markdown_table(heads, table, right=range(1, len(heads)))]
    return parts


_OF_A_LABEL = ("precision", "recall", "f1")


def _of_a_label(values: LabelFigures) -> list[str]:
    return [show_figure(figure) for figure in (values.get("precision"), values.get("recall"), values.get("f1"))]


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _num_gold(values: LabelFigures) -> int | None:
    if "true_positives" not in values or "false_negatives" not in values:
        return None
    return values["true_positives"] + values["false_negatives"]


def _interval(figures: Mapping[str, Any]) -> str:
    ends = figures.get("f1_interval")
    return "" if not ends else f"{show_figure(ends[0])} to {show_figure(ends[1])}"


def _protocol(results: Results, counted: str) -> str:
    rule = "; an entity counts where start, end and type are right" if counted == "sentences" else ""
    sentences = [f"Figures are times 100{rule}."]
    if results.get("selected_on"):
        metric = f" by {METRIC_NAMES.get(results['metric'], results['metric'])}" if results.get("metric") else ""
        found = [f"epoch {results['best_epoch']}"] if "best_epoch" in results else []
        found += [f"step {results['best_step']:,}"] if "best_step" in results else []
        best = f": {', '.join(found)}" if found else ""
        sentences.append(f"The weights were selected on {results['selected_on']}{metric}{best}.")
    if "seed" in results:
        sentences.append(f"One seed ({results['seed']}): the spread over seeds is not in this page.")
    return " ".join(sentences)


def _probability(calibration: Calibration) -> str:
    threshold, chosen_for = calibration["threshold"], calibration["chosen_for"]
    sentences = [f"Two texts match from a score of {threshold:.4f} on, chosen on dev for the best {chosen_for}."]
    if "factor" in calibration:
        sentences.append(
            f"The log-odds of a match are {calibration['factor']:.3f} x score {calibration['offset']:+.3f}, fitted on one half of "
            f"dev ({calibration['pairs_fitted']:,} pairs)."
        )
    if "ece" in calibration:
        sentences.append(
            f"On the other half ({calibration['pairs_measured']:,}) the expected calibration error is "
            f"{100 * calibration['ece']:.2f} %, the Brier score {calibration['brier']:.4f} (always saying the share of matches: "
            f"{calibration['brier_of_the_share']:.4f})."
        )
    return " ".join(sentences)


def _confidence(calibration: Calibration) -> str:
    if "threshold" in calibration:
        return _probability(calibration)
    if set(calibration) == {"note"}:
        return f"Note: {_one_line(calibration['note'])}."
    sentences = ["An entity's confidence is the probability that exactly this span with this type is an entity."]
    if "temperature" in calibration:
        fitted = f" ({calibration['sentences_fitted']:,} sentences)" if "sentences_fitted" in calibration else ""
        sentences.append(f"A temperature of {calibration['temperature']:.3f} was fitted on one half of dev{fitted}.")
    if "ece_before" in calibration and "ece_after" in calibration:
        measured = (
            f" ({calibration['entities_measured']:,} predicted entities)" if "entities_measured" in calibration else ""
        )
        sentences.append(
            f"On the other half{measured} the expected calibration error is {100 * calibration['ece_after']:.2f} %, "
            f"and {100 * calibration['ece_before']:.2f} % without the temperature."
        )
    if calibration.get("note"):
        sentences.append(f"Note: {_one_line(calibration['note'])}.")
    return " ".join(sentences)


def _loading(run: str, calls: Sequence[str]) -> str:
    *lines, given = calls
    code = "\n".join(["import hanzoo", f"model = hanzoo.load({json.dumps(run, ensure_ascii=False)})", *lines])
    return f"```python\n{code}\n```\n\n```\npython predict.py {shlex.quote(run)} {given}\n```"


def _data(data: DataRecord, inputs: Mapping[str, str]) -> list[str]:
    parts = []
    facts = [f"- Protocol: {data['protocol']}"] if data.get("protocol") else []
    if data.get("source"):
        facts.append(f"- Source: {data['source']}")
    if data.get("name"):
        facts.append(
            f"- Licence of {_code(data['name'])}: {data.get('licence') or 'not known to hanzoo; ask its owner'}"
        )
    if data.get("cite"):
        facts.append(f"- To cite: {data['cite']}")
    facts += [f"- Note: {note}" for note in data.get("notes", ())]
    if facts:
        parts.append("\n".join(map(_one_line, facts)))
    counts = data.get("counts")
    if counts:
        columns = list(dict.fromkeys(column for counted in counts.values() for column in counted))
        rows = [[split, *(_count(counted.get(column)) for column in columns)] for split, counted in counts.items()]
        parts.append(markdown_table(["split", *columns], rows, right=range(1, len(columns) + 1)))
    hashes = [*data.get("sha256", {}).items(), *inputs.items()]
    if hashes:
        parts.append(markdown_table(["file", "sha256"], [[_code(name), _code(value)] for name, value in hashes]))
    return parts


def _training(results: Results, recipe: Mapping[str, Any]) -> list[str]:
    import yaml

    cost = [f"{results['minutes']:.1f} minutes"] if "minutes" in results else []
    cost += [f"{results['peak_gb']:.2f} GB at most"] if "peak_gb" in results else []
    facts = [f"- Cost: {', '.join(cost)}"] if cost else []
    if results.get("machine"):
        facts.append(f"- Machine: {_one_line(results['machine'])}")
    if results.get("versions"):
        facts.append("- Versions: " + ", ".join(f"{name} {version}" for name, version in results["versions"].items()))
    if results.get("weights_sha256"):
        facts.append(f"- Weights: sha256 {_code(results['weights_sha256'])}")
    parts = ["\n".join(facts)] if facts else []
    shown = {section: recipe[section] for section in ("model", "train", "tricks", "evaluate") if recipe.get(section)}
    if shown:
        text = yaml.safe_dump(shown, allow_unicode=True, sort_keys=False).rstrip()
        parts.append(f"From `recipe.yaml`:\n\n````yaml\n{text}\n````")
    return parts
