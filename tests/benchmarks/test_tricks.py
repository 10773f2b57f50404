"""The table of tricks: nothing is left out, and the page is what the file says."""

from __future__ import annotations

from typing import Any

from benchmarks.report import last
from benchmarks.tricks import PAGE, best_two, page, rows, rows_of_cluener
from hanzoo.recipe import load_recipe
from hanzoo.training.trick import trick_names


def record(row: str, *f1: float, **more: Any) -> dict[str, Any]:
    return {"row": row, "settings": [f"set {row}"], "f1": list(f1), **more}


def test_every_trick_has_a_row_that_is_a_recipe() -> None:
    found = rows()
    assert set(trick_names()) - set(found) == {"ewc", "l2_sp"}
    for settings in found.values():
        load_recipe("weibo_bilstm_crf", settings)
    assert load_recipe("weibo_bilstm_crf", found["plain"]).tricks == {}


def test_the_best_two_may_stand_together() -> None:
    weibo = [
        record("plain", 0.9),
        record("fgm, table", 0.9),
        record("ema", 0.6),
        record("fgm", 0.7),
        record("pgd", 0.7),
    ]
    assert set(best_two(weibo)) == {"ema", "fgm"} or set(best_two(weibo)) == {"ema", "pgd"}
    assert set(best_two([record("fgm", 0.5), record("r_drop", 0.6), record("ema", 0.4)])) == {"fgm", "r_drop"}
    assert list(rows_of_cluener(("fgm", "ema"))) == ["plain", "fgm", "ema", "fgm + ema"]


def test_the_page() -> None:
    against = {"difference": 0.012, "interval": [-0.001, 0.025], "p": 0.06}
    line = {
        "tables": {
            "weibo": [record("plain", 0.6, 0.62), record("ema", 0.62, 0.63, **against)],
            "resume": [record("plain", 0.94)],
        },
        "protocol": {"weibo": {"recipe": "weibo_bilstm_crf", "epochs": 20, "seeds": [1, 2]}},
        "speed": {"ema": [0.98, 0.9, 0.99]},
        "machine": "2 cores",
        "missing": ["ema on resume"],
    }
    text = page(line)
    assert "| plain | `set plain` | 61.00 ± 1.41 (2) |  |  | 94.00 (1) |  |  |  |\n" in text
    assert "| ema | `set ema` | 62.50 ± 0.71 (2) | +1.20 (-0.10 to +2.50) | 0.06 |  |  |  | 0.98 |\n" in text
    assert "Not trained yet: ema on resume." in text
    assert "CLUENER" not in text
    line["tables"] |= {"cluener": [record("plain", 0.75), record("ema", 0.76, **against)]}
    assert "| ema | 76.00 (1) | +1.20 (-0.10 to +2.50) | 0.06 |\n" in page(line)


def test_the_committed_page_is_that_of_the_committed_file() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(last("tricks"))
