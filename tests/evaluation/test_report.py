from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import yaml

from hanzoo.errors import StorageError
from hanzoo.evaluation.report import display_width, learning_curve, markdown_table, results_table, run_card, show_figure

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("figure", "plain", "counted"),
    [
        (None, "", ""),
        ([], "", ""),
        (0.76125, "76.12", "76.12"),
        (1, "100.00", "100.00"),
        ([0.5], "50.00", "50.00 (1)"),
        ([0.75, 0.76, 0.77], "76.00 ± 1.00", "76.00 ± 1.00 (3)"),  # with n instead of n - 1 it were 0.82
    ],
)
def test_figures_are_shown_times_100_with_the_sample_deviation(figure: Any, plain: str, counted: str) -> None:
    assert show_figure(figure) == plain
    assert show_figure(figure, count_seeds=True) == counted


def test_the_table_is_aligned_where_names_are_wide() -> None:
    table = results_table(
        [
            {"run": "runs/浙商", "split": "dev", "f1": [0.75, 0.76, 0.77], "macro_f1": 0.7},
            {"run": "runs/cluener_bilstm_crf", "split": "ｔest", "f1": 0.0512, "sentences": 1345},
        ]
    )
    head, rule, first, second = table.splitlines()
    assert head.split() == ["run", "split", "F1", "macro", "F1", "sentences"]
    assert set(rule) == {"-", " "}
    assert first.split() == ["runs/浙商", "dev", "76.00", "±", "1.00", "70.00"]
    assert second.split() == ["runs/cluener_bilstm_crf", "ｔest", "5.12", "1345"]

    def end_of(line: str, part: str) -> int:
        return display_width(line[: line.index(part) + len(part)])

    assert end_of(first, "± 1.00") == end_of(second, "5.12") == end_of(head, " F1")
    assert display_width(first[: first.index("dev")]) == display_width(second[: second.index("ｔest")])
    assert first.index("dev") != second.index("ｔest"), "the control: counted in characters they are not aligned"
    assert results_table([]) == ""


def test_width_of_text() -> None:
    assert [display_width(text) for text in ("ab", "中文", "ｆ", "e\u0301", "😀")] == [2, 4, 2, 1, 2]


def test_a_markdown_cell_cannot_break_its_table() -> None:
    table = markdown_table(["a", "b"], [["x|y", "two\nlines"]], right=[1])
    assert table == "| a | b |\n| --- | ---: |\n| x\\|y | two lines |"


# The learning curve


def records(best: int = 4, *, num_steps: int = 60) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for step in range(1, num_steps + 1):
        made.append({"step": step, "epoch": 1 + step // 10, "loss": 30 / step, "items_per_second": 100.0})
        if step % 10 == 0:
            epoch = step // 10
            made.append({"step": step, "epoch": epoch, "dev": {"f1": 0.75 - 0.01 * abs(epoch - best)}, "best": True})
    return made


def texts_of(path: Path) -> list[str]:
    return ["".join(element.itertext()).strip() for element in ET.parse(path).iter(f"{SVG}text")]


def test_the_curve_names_its_axes_and_marks_the_best(tmp_path: Path) -> None:
    path = tmp_path / "curve.svg"
    learning_curve([records()], path, title="cluener_bilstm_crf $x_1$ 在中文数据上")
    texts = texts_of(path)
    assert {"dev F1 (%)", "training loss (per unit)", "optimizer step"} <= set(texts)
    assert "cluener_bilstm_crf $x_1$ 在中文数据上" in texts
    assert "★ best dev F1 75.00 at epoch 4, step 40" in texts
    root = ET.parse(path).getroot()
    assert (root.get("width"), root.get("height")) == ("600pt", "337.5pt"), "800 by 450 pixels"


def test_equal_records_give_equal_bytes_and_nothing_global_changes(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    for name, best in (("a", 4), ("b", 4), ("c", 3)):
        learning_curve([records(best)], tmp_path / name, title="t")
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c
    assert not re.search(rb"<dc:date>|Matplotlib v", a)
    assert dict(matplotlib.rcParams) == before


def test_several_seeds_are_several_lines_with_their_names(tmp_path: Path) -> None:
    learning_curve(
        [records(4), records(5), records(2)], tmp_path / "c.svg", title="t", names=["seed 1", "_种子", "a$b$"]
    )
    texts = texts_of(tmp_path / "c.svg")
    assert {"seed 1", "种子", "a$b$"} <= set(texts)
    assert "★ best dev F1 75.00 at epoch 4, step 40" in texts
    learning_curve([records()], tmp_path / "one.svg", title="t")
    assert "seed 1" not in texts_of(tmp_path / "one.svg")


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [[]],
        [[{"step": 1, "epoch": 1, "loss": 2.0}]],
        [[{"step": 1, "epoch": 1, "dev": {"f1": math.nan}}, {"step": 2, "loss": math.inf}]],
    ],
)
def test_a_curve_without_measurements_says_so(tmp_path: Path, runs: list[list[dict[str, Any]]]) -> None:
    learning_curve(runs, tmp_path / "c.svg", title="t", names=["seed 1"] * len(runs))
    assert "no dev F1 measured yet" in texts_of(tmp_path / "c.svg")


def test_another_metric_and_a_long_run(tmp_path: Path) -> None:
    made = [{"step": step, "epoch": 1, "loss": 1.0 + step % 2} for step in range(1, 50_001)]
    made.append({"step": 50_000, "epoch": 1, "dev": {"f1": 0.1, "macro_f1": 0.2}})
    learning_curve([made], tmp_path / "c.svg", title="t", metric="macro_f1")
    assert "★ best dev macro F1 20.00 at epoch 1, step 50,000" in texts_of(tmp_path / "c.svg")
    assert (tmp_path / "c.svg").stat().st_size < 60_000


def test_a_curve_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"c\.svg: must be written"):
        learning_curve([records()], tmp_path / "nowhere" / "c.svg", title="t")


# The card

RESULTS: dict[str, Any] = {
    "recipe": "cluener_bilstm_crf",
    "model": "bilstm_crf",
    "seed": 7,
    "selected_on": "dev",
    "metric": "f1",
    "best_epoch": 12,
    "best_step": 4032,
    "data": {
        "name": "weibo",
        "view": "nam",
        "sha256": {"train.json": "a" * 64},
        "counts": {"train": {"sentences": 10748, "entities": 23338}, "dev": {"sentences": 1343}},
        "protocol": "selected on dev, reported on dev",
        "licence": "none stated",
        "source": "somewhere | else",
        "cite": "",
        "notes": ["3 spans are nested"],
    },
    "inputs": {"zh.64d.vec.gz": "b" * 64},
    "splits": {
        "dev": {
            "precision": 0.74,
            "recall": 0.78,
            "f1": 0.76,
            "macro_f1": 0.75,
            "official_macro_f1": 0.79,
            "f1_interval": [0.75, 0.77],
            "sentences": 1343,
            "legal": 1.0,
            "num_gold": 3072,
            "per_label": {
                "a|b": {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "true_positives": 1, "false_negatives": 3},
            },
            "subsets": {"not seen in train": {"sentences": 230, "f1": 0.541}},
        }
    },
    "calibration": {
        "temperature": 1.25,
        "ece_before": 0.05,
        "ece_after": 0.0123,
        "sentences_fitted": 672,
        "sentences_measured": 671,
        "entities_measured": 1500,
    },
    "minutes": 12.345,
    "peak_gb": 1.5,
    "machine": "2 cores",
    "versions": {"hanzoo": "0.1.0", "torch": "2.13.0"},
    "weights_sha256": "c" * 64,
}


def test_the_card_says_what_how_good_and_how_to_load() -> None:
    recipe = {"model": {"name": "bilstm_crf", "hidden": 256}, "train": {"note": "中文"}, "data": {"path": "secret"}}
    card = run_card(RESULTS, recipe, "runs/x y")
    assert card.startswith("# x y\n\n`bilstm_crf`, trained on `weibo, nam` with hanzoo.")
    assert "![learning curve](curve.svg)" in card
    assert "| split | sentences | precision | recall | F1 | macro F1 | official macro F1 | F1, 95 % interval |" in card
    assert "| dev | 1,343 | 74.00 | 78.00 | 76.00 | 75.00 | 79.00 | 75.00 to 77.00 |" in card
    assert "| dev, not seen in train | 230 |  |  | 54.10 |  |  |  |" in card
    assert "| a\\|b | 50.00 | 25.00 | 33.33 | 4 |" in card
    assert "The weights were selected on dev by F1: epoch 12, step 4,032." in card
    assert "One seed (7)" in card
    assert "A temperature of 1.250 was fitted on one half of dev (672 sentences)." in card
    assert (
        "On the other half (1,500 predicted entities) the expected calibration error is 1.23 %, and 5.00 % without"
        in card
    )
    assert 'model = hanzoo.load("runs/x y")' in card
    assert "python predict.py 'runs/x y' texts.txt" in card
    assert "- Licence of `weibo`: none stated" in card
    assert "- Note: 3 spans are nested" in card
    assert "| train | 10,748 | 23,338 |\n| dev | 1,343 |  |" in card
    assert f"| `train.json` | `{'a' * 64}` |\n| `zh.64d.vec.gz` | `{'b' * 64}` |" in card
    assert "- Cost: 12.3 minutes, 1.50 GB at most" in card
    assert "- Versions: hanzoo 0.1.0, torch 2.13.0" in card
    shown = re.search(r"````yaml\n(.*?)\n````", card, re.DOTALL)
    assert shown is not None
    assert yaml.safe_load(shown[1]) == {"model": recipe["model"], "train": recipe["train"]}
    assert card.endswith("````\n")


@pytest.mark.parametrize("missing", [*RESULTS, *(f"data.{key}" for key in RESULTS["data"])])
def test_the_card_does_without_any_part(missing: str) -> None:
    section, _, key = missing.partition(".")
    results = {name: value for name, value in RESULTS.items() if key or name != section}
    if key:
        results["data"] = {name: value for name, value in RESULTS["data"].items() if name != key}
    whole, less = run_card(RESULTS, {}, "runs/x"), run_card(results, {}, "runs/x")
    assert "None" not in less
    assert less == whole if missing in ("recipe", "data.cite") else less != whole


@pytest.mark.parametrize("part", ["splits", "calibration"])
def test_the_card_does_without_the_figures_of_a_part(part: str) -> None:
    inside = RESULTS[part]["dev"] if part == "splits" else RESULTS[part]
    for key in inside:
        fewer = {name: value for name, value in inside.items() if name != key}
        assert "None" not in run_card({**RESULTS, part: {"dev": fewer} if part == "splits" else fewer}, {}, "runs/x")


def test_the_smallest_card() -> None:
    card = run_card({}, {}, "runs/x")
    assert card.startswith("# x\n\nA model with hanzoo.")
    assert "## How good" not in card
    assert "## How to load" in card
