"""The kill matrix: a sample of it with real kills; that it takes in every trick, fails where it must, and goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import kill_matrix
from benchmarks.kill_matrix import (
    CONTROLS,
    NUM_PAIRS,
    PRECISIONS,
    RANKS,
    RECIPES,
    TRICKS,
    Outcome,
    all_cells,
    all_trainings,
    identities,
    make_cell,
    pairs,
    places,
    run_cells,
    summary,
    trick_settings,
)
from hanzoo.recipe import load_recipe
from hanzoo.training.trick import trick_names

KILLS = 2
SHORT = "train.epochs=3"
SAMPLE = [
    make_cell("fgm+r_drop", (*trick_settings("fgm"), *trick_settings("r_drop"), SHORT), "float32", 1),
    make_cell("pgd+ema", (*trick_settings("pgd"), *trick_settings("ema"), SHORT), "bfloat16", 2),
    make_cell("ema", (*trick_settings("ema"), SHORT), "float32", 1, "forget_average"),
]


def run_sample(folder: Path) -> list[Outcome]:
    return run_cells(SAMPLE, folder, KILLS, seed=1, say=lambda line: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the sample was run."""
    folder = tmp_path_factory.mktemp("matrix")
    run_sample(folder)
    return folder


@pytest.fixture
def outcomes(finished: Path, monkeypatch: pytest.MonkeyPatch) -> list[Outcome]:
    """What the sample came to, from the file: nothing is run again."""
    monkeypatch.delattr(kill_matrix, "Matrix")
    return run_sample(finished)


def test_killed_runs_end_in_the_same_bits(outcomes: list[Outcome]) -> None:
    for cell, outcome in zip(SAMPLE[:2], outcomes[:2], strict=True):
        assert (outcome.name, outcome.precision, outcome.ranks) == cell[:3]
        assert set(outcome.equal) >= {"weights", "optimizer", "tricks", "best", "model", "metrics"}
        assert all(outcome.equal.values()), outcome
        assert outcome.is_right
        assert len(outcome.killed_at) == KILLS
        assert outcome.killed_at == sorted(set(outcome.killed_at))
        assert all(
            0 <= source <= at < outcome.steps
            for source, at in zip(outcome.resumed_from, outcome.killed_at, strict=True)
        )
    assert summary(outcomes[:2])["right"]


def test_an_average_that_is_not_restored_is_seen(outcomes: list[Outcome]) -> None:
    control = outcomes[2]
    assert control.equal["weights"]
    assert control.equal["optimizer"]
    assert not control.equal["tricks"]
    assert not control.equal["model"]
    assert control.is_right  # as a control; as a cell of the matrix it would be wrong:
    assert not replace(control, control="").is_right
    assert not summary([replace(control, control="")])["right"]
    assert not summary([replace(outcomes[0], control="forget_average")])["right"]


def test_two_cells_with_the_same_bits_are_no_two_trainings(outcomes: list[Outcome]) -> None:
    same = replace(outcomes[1], sha256=outcomes[0].sha256)
    assert not summary([outcomes[0], same])["right"]


def test_only_what_is_the_same_is_kept(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcomes: list[Outcome]
) -> None:
    lines = (finished / "cells.jsonl").read_bytes()
    (tmp_path / "cells.jsonl").write_bytes(lines[: len(lines) - 9])  # the last line was cut off
    kept = kill_matrix.read_finished(tmp_path / "cells.jsonl")
    assert len(kept) == len(SAMPLE) - 1
    names = set(identities(SAMPLE, KILLS, 1).values())
    assert set(kept) < names
    other = SAMPLE[0]._replace(settings=(*SAMPLE[0].settings, "train.seed=2"))
    assert not set(identities([other], KILLS, 1).values()) & names
    assert not set(identities(SAMPLE, KILLS + 1, 1).values()) & names
    monkeypatch.setattr(kill_matrix, "code_sha256", lambda: "another")
    assert not set(identities(SAMPLE, KILLS, 1).values()) & names


def test_every_trick_is_in_every_row_and_column() -> None:
    with_controls = all_cells()
    cells = [cell for cell in with_controls if not cell.control]
    assert len(cells) == len(all_trainings()) * len(PRECISIONS) * len(RANKS) == len(set(cells))
    assert set(trick_names()) < set(all_trainings())
    assert set(TRICKS) <= set(trick_names())
    assert {cell.control for cell in with_controls} - {""} == {control.__name__ for control in CONTROLS.values()}
    assert len({cell.key for cell in with_controls}) == len(with_controls)


def test_pairs_go_together_and_leave_no_trick_out() -> None:
    chosen = pairs(trick_names())
    assert len(chosen) == len({frozenset(pair) for pair in chosen}) == NUM_PAIRS
    assert {name for pair in chosen for name in pair} == set(trick_names())
    for first, second in chosen:
        assert not places(first) & places(second)
    assert places("ema") == {"after_step"}
    assert places("fgm") == {"wrap_backward"}
    assert pairs(["fgm", "pgd"]) == []
    assert pairs(["ema", "fgm", "pgd"]) == [("ema", "fgm"), ("ema", "pgd")]


def test_every_cell_is_a_recipe(tmp_path: Path) -> None:
    for name, content in RECIPES.items():
        (tmp_path / f"{name}.yaml").write_text(content, encoding="utf-8")
    assert {cell.recipe for cell in all_cells()} == set(RECIPES)
    for cell in all_cells():
        train = load_recipe(tmp_path / f"{cell.recipe}.yaml", cell.settings).train
        assert train.precision == cell.precision
        assert train.batch_size * train.accumulation * cell.ranks == kill_matrix.WINDOW
