from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hanzoo.errors import DataError
from hanzoo.recipes.figures import BEGIN, END, TABLES, main, read_results, render_pages, replace_table

ROOT = Path(__file__).resolve().parents[1]

RESULT: dict[str, Any] = {
    "recipe": "cluener_bilstm_crf",
    "variant": "",
    "command": "python train.py recipes/cluener_bilstm_crf.yaml --seeds 1,2,3",
    "data": "cluener",
    "data_sha256": "0" * 64,
    "split": "dev",
    "selected_on": "dev",
    "seeds": [1, 2, 3],
    "metrics": {"f1": [0.75, 0.76, 0.77], "macro_f1": [0.7, 0.7, 0.7], "official_macro_f1": [0.78, 0.78, 0.79]},
    "inputs": {"zh.64d.vec.gz": "1" * 64},
    "minutes": 12.34,
    "peak_gb": 1.5,
    "machine": "2 cores",
    "commit": "abc",
    "headline": True,
}
OTHER: dict[str, Any] = {
    **RESULT,
    "recipe": "weibo_bilstm_crf",
    "variant": "fgm",
    "data": "weibo",
    "split": "test",
    "seeds": [1],
    "metrics": {"f1": [0.56]},
    "published": {"value": 0.5675, "source": "Ma et al. 2020 | table 4"},
    "asked": "at least 55",
    "note": "40 of 270 sentences are in train",
    "subsets": {"not in train": {"f1": [0.5432]}},
    "headline": False,
}


def house(folder: Path, *results: dict[str, Any]) -> Path:
    (folder / "recipes" / "results").mkdir(parents=True)
    for result in results:
        name = ".".join(filter(None, (result["recipe"], result["variant"])))
        (folder / "recipes" / "results" / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")
    for name in TABLES:
        (folder / name).write_text(f"之前\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    return folder


def test_the_tables_are_written_between_the_markers(tmp_path: Path) -> None:
    root = house(tmp_path, OTHER, RESULT)
    assert main(["--root", str(root)]) == 0
    assert (root / "recipes/README.md").read_text(encoding="utf-8") == (
        f"之前\n{BEGIN}\n"
        "| data | split | selected on | recipe | F1, mean ± std (seeds) | macro F1 | official macro F1 | published | asked "
        "| minutes | GB | machine | command |\n"
        "| --- | --- | --- | --- | ---: | ---: | ---: | --- | --- | ---: | ---: | --- | --- |\n"
        "| cluener | dev | dev | `cluener_bilstm_crf` | 76.00 ± 1.00 (3) | 70.00 ± 0.00 | 78.33 ± 0.58 |  |  | 12.3 | 1.50 "
        "| 2 cores | `python train.py recipes/cluener_bilstm_crf.yaml --seeds 1,2,3` |\n"
        "| weibo | test | dev | `weibo_bilstm_crf` (fgm); 40 of 270 sentences are in train | 56.00 (1)<br>not in train: 54.32 "
        "|  |  | 56.75 (Ma et al. 2020 \\| table 4) | at least 55 | 12.3 | 1.50 | 2 cores "
        "| `python train.py recipes/cluener_bilstm_crf.yaml --seeds 1,2,3` |\n"
        f"{END}\nafter\n"
    )
    row = "| cluener | dev | dev | `cluener_bilstm_crf` | 76.00 ± 1.00 (3) |  |\n"
    for name, word in (("README.md", "data"), ("README.zh.md", "数据")):
        text = (root / name).read_text(encoding="utf-8")
        assert text.startswith(f"之前\n{BEGIN}\n| {word} | ")
        assert text.endswith(f"\n{row}{END}\nafter\n")


def test_writing_twice_changes_nothing_and_check_sees_a_changed_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = house(tmp_path, RESULT)
    assert main(["--root", str(root), "--check"]) == 1
    assert "old" in (root / "README.md").read_text(encoding="utf-8"), "--check writes nothing"
    assert main(["--root", str(root)]) == 0
    assert main(["--root", str(root), "--check"]) == 0
    capsys.readouterr()
    better = {**RESULT, "metrics": {"f1": [0.75, 0.76, 0.78]}}
    (root / "recipes/results/cluener_bilstm_crf.json").write_text(json.dumps(better), encoding="utf-8")
    assert main(["--root", str(root), "--check"]) == 1
    shown = capsys.readouterr().err
    assert "-| cluener | dev | dev | `cluener_bilstm_crf` | 76.00 ± 1.00 (3) |" in shown
    assert "+| cluener | dev | dev | `cluener_bilstm_crf` | 76.33 ± 1.53 (3) |" in shown
    assert "make figures" in shown


AGAINST: dict[str, Any] = {
    "recipe": "cluener_bilstm_crf",
    "variant": "",
    "weights_sha256": ["a", "b", "c"],
    "difference": -0.0053,
    "interval": [-0.0141, 0.0044],
    "p": 0.27137,
    "rounds": 10000,
}
COMPARED: dict[str, Any] = {**RESULT, "variant": "ema", "against": AGAINST}


def test_a_difference_stands_below_the_figure(tmp_path: Path) -> None:
    root = house(tmp_path, {**RESULT, "weights_sha256": ["a", "b", "c"]}, COMPARED)
    assert main(["--root", str(root)]) == 0
    cell = "| 76.00 ± 1.00 (3)<br>-0.53 (-1.41 to +0.44), p = 0.27, against `cluener_bilstm_crf` |"
    for name in TABLES:
        text = (root / name).read_text(encoding="utf-8")
        (row,) = (line for line in text.splitlines() if "`cluener_bilstm_crf` (ema)" in line)
        assert cell in row, name
        assert text.count("against") == 1


def test_what_a_first_stage_finds_alone_stands_below_the_figure(tmp_path: Path) -> None:
    figures = {"mrr@10": [0.4, 0.42, 0.44], "ndcg@10": [0.4] * 3, "recall@10": [0.5] * 3, "recall@100": [0.6] * 3}
    keys = ("difference", "interval", "p", "rounds")
    first = {"name": "bm25", "candidates": 100, "weight": 0.7, "figure": 0.4253} | {key: AGAINST[key] for key in keys}
    root = house(tmp_path, {**RESULT, "metrics": figures, "first_stage": first})
    assert main(["--root", str(root)]) == 0
    cell = (
        "| 42.00 ± 2.00 (3)<br>-0.53 (-1.41 to +0.44), p = 0.27, against bm25 alone (42.53), whose first 100 it ranks, its own "
        "score weighing 0.7 |"
    )
    assert cell in (root / "recipes/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("weights", "against", "expected"),
    [
        (
            ["a", "b", "d"],
            {},
            "against must be a comparison with the weights of cluener_bilstm_crf.json, but those were",
        ),
        (
            ["a", "b", "c"],
            {"variant": "fgm"},
            "against must name another figure of the folder, but names cluener_bilstm_crf.fgm",
        ),
        (
            ["a", "b", "c"],
            {"variant": "ema"},
            "against must name another figure of the folder, but names cluener_bilstm_crf.ema",
        ),
        (["a", "b", "c"], {"difference": -5.3}, "against.difference: Input should be greater than or equal to -1"),
        (["a", "b", "c"], {"p": 0}, "against.p: Input should be greater than 0"),
        (["a", "b", "c"], {"interval": [0.1]}, "against.interval.1 must be there"),
        (["a", "b", "c"], {"run": "runs/x"}, "against.run must be a key of a result file, but is not"),
    ],
)
def test_a_comparison_that_does_not_hold_any_more_is_refused(
    tmp_path: Path, weights: list[str], against: dict[str, Any], expected: str
) -> None:
    compared = {**COMPARED, "against": AGAINST | against}
    root = house(tmp_path, {**RESULT, "weights_sha256": weights}, compared)
    with pytest.raises(DataError) as error:
        read_results(root / "recipes" / "results")
    assert str(error.value).startswith(f"{root / 'recipes' / 'results' / 'cluener_bilstm_crf.ema.json'}: ")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def changed(**values: Any) -> dict[str, Any]:
    result = copy.deepcopy(RESULT)
    result.update(values)
    return result


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in RESULT.items() if name != key}


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (without("commit"), "commit must be there, but is missing"),
        (changed(comit="x"), "comit must be a key of a result file, but is not. Did you mean 'commit'?"),
        (changed(metrics={"macro_f1": [0.1] * 3}), "must hold 'f1' or 'spearman' or 'mrr@10', but holds 'macro_f1'"),
        (changed(metrics={"f1": [0.1]}), "metrics.f1 must hold one figure for each of 3 seeds, but holds 1"),
        (changed(subsets={"x": {"f1": [0.1]}}), "x.f1 must hold one figure for each of 3 seeds, but holds 1"),
        (
            changed(metrics={"f1": [0.7, 76.0, 0.7]}),
            "metrics.f1.1: Input should be less than or equal to 1, but is 76.0",
        ),
        (changed(seeds=[1, 1, 2]), "seeds must differ"),
        (changed(minutes="12"), "minutes: Input should be a valid number, but is '12'"),
        (changed(published={"value": 0.9}), "published.source must be there"),
    ],
)
def test_a_result_file_that_is_wrong_is_one_clear_error(
    tmp_path: Path, result: dict[str, Any], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = house(tmp_path)
    path = root / "recipes/results/cluener_bilstm_crf.json"
    path.write_text(json.dumps(result), encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_results(path.parent)
    assert expected in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert main(["--root", str(root)]) == 2
    assert expected in capsys.readouterr().err


def test_all_files_that_are_wrong_are_named_at_once(tmp_path: Path) -> None:
    root = house(tmp_path, RESULT)
    folder = root / "recipes" / "results"
    (folder / "broken.json").write_text("{", encoding="utf-8")
    (folder / "misnamed.json").write_text(json.dumps(OTHER), encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_results(folder)
    first, second = str(error.value).splitlines()
    assert first.startswith(f"{folder / 'broken.json'}: Invalid JSON")
    assert second.startswith(f"{folder / 'misnamed.json'}: the file must be named weibo_bilstm_crf.fgm.json")


@pytest.mark.parametrize("text", ["none", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_page_must_hold_both_markers_once(text: str) -> None:
    with pytest.raises(DataError, match=r"^page\.md: the page must hold"):
        replace_table(text, "table", "page.md")


def test_a_page_that_is_missing(tmp_path: Path) -> None:
    root = house(tmp_path, RESULT)
    (root / "README.zh.md").unlink()
    with pytest.raises(DataError, match=r"README\.zh\.md: the page must exist"):
        render_pages(root)


def test_the_command_runs_as_make_calls_it(tmp_path: Path) -> None:
    root = house(tmp_path, RESULT)
    command = [sys.executable, "-W", "error", "-m", "hanzoo.recipes.figures", "--root", str(root), "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stdout == b""


def test_the_committed_tables_are_those_of_the_committed_files() -> None:
    assert read_results(ROOT / "recipes" / "results")
    for name, (before, after) in render_pages(ROOT).items():
        assert before == after, f"{name} differs from recipes/results: run make figures"
