"""Matchers under every trick: killed and resumed to the same bits, with past vectors; chunks that change no gradient."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hanzoo.data.document import Document, Pair, Triple
from hanzoo.data.pair_files import SCALES
from hanzoo.data.randomness import reseed
from hanzoo.models.layers import text_encoder
from hanzoo.models.model import model_class, objective_class
from hanzoo.training.checkpoint import tensors_sha256
from hanzoo.training.trick import trick_names
from tests import tiny

pytestmark = pytest.mark.usefixtures("deterministic", "encoders")

TEXTS = [document.text for document in tiny.DOCUMENTS]
ITEMS: dict[str, list[Any]] = {
    "texts": [Document(text) for text in TEXTS],
    "pairs": [Pair(TEXTS[number], TEXTS[(number + 5) % 12], label=float(number % 2)) for number in range(12)],
    "triples": [Triple(TEXTS[number], TEXTS[(number + 5) % 12], (TEXTS[(number + 3) % 12],)) for number in range(12)],
}
QUEUE = {"momentum_queue": {"capacity": 7, "momentum": 0.9}, "repetition": 0.3}
MEMORY = {"cross_batch_memory": {"capacity": 7, "start_step": 2}, "both_directions": True}
EMA, RATES = {"ema": {"decay": 0.9}}, {"learning_rate": 0.01}

# What is trained: model, objective and its settings, items; tricks; settings of `train`.
Training = tuple[str, str, dict[str, Any], str, dict[str, Any], dict[str, Any]]
TRAININGS: dict[str, Training] = {
    "queue": ("bi_encoder", "info_nce", QUEUE, "texts", {}, {}),
    "queue fgm ema": ("bi_encoder", "info_nce", QUEUE, "texts", {"fgm": {"epsilon": 0.3}} | EMA, {}),
    "queue r_drop bfloat16": ("bi_encoder", "info_nce", QUEUE, "texts", {"r_drop": {}}, {"precision": "bfloat16"}),
    "memory": ("bi_encoder", "info_nce", MEMORY, "triples", {}, {"optimizer": RATES | {"layer_decay": 0.8}}),
    "memory pgd swa": ("bi_encoder", "info_nce", MEMORY, "pairs", {"pgd": {"num_steps": 2}, "swa": {"start": 0.3}}, {}),
    "memory free_lb": ("bi_encoder", "info_nce", MEMORY, "pairs", {"free_lb": {"num_steps": 2}}, {}),
    "memory r_drop": ("bi_encoder", "info_nce", MEMORY, "pairs", {"r_drop": {}, "fgm": {"target": "table"}}, {}),
    "arccse": ("bi_encoder", "arccse", {"least_pieces": 5}, "texts", {"r_drop": {}, "fgm": {}} | EMA, {}),
    "cosent": ("bi_encoder", "cosent", {}, "pairs", {"r_drop": {}, "pgd": {"num_steps": 2}}, {"batch_size": 6}),
    "triplet": ("bi_encoder", "triplet", {}, "triples", {"fgm": {}, "focal": {}}, {"accumulation": 2}),
    "colbert": ("colbert", "info_nce", {"temperature": 1.0}, "triples", {"r_drop": {}, "fgm": {}} | EMA, {}),
    "colbert free_lb": ("colbert", "info_nce", {}, "pairs", {"free_lb": {"num_steps": 2}, "swa": {"start": 0.3}}, {}),
    "colbert bfloat16": (
        "colbert", "pairwise_softmax", {}, "triples", {"pgd": {"num_steps": 2}, "r_drop": {}},
        {"accumulation": 2, "precision": "bfloat16", "optimizer": RATES | {"layer_decay": 0.8}},
    ),
    "cross_encoder": ("cross_encoder", "binary", {}, "pairs", {"r_drop": {}, "fgm": {}} | EMA, {"accumulation": 2}),
    "cross_encoder bfloat16": (
        "cross_encoder", "pairwise_softmax", {}, "triples", {"free_lb": {"num_steps": 2}, "swa": {"start": 0.3}},
        {"accumulation": 2, "precision": "bfloat16", "optimizer": RATES | {"layer_decay": 0.8}},
    ),
}  # fmt: skip


def matcher(model: str, objective: str, settings: Mapping[str, Any], items: str, **own: Any) -> Any:
    """A tiny matcher with dropout, and what it is trained towards."""
    cls, towards = model_class(model), objective_class(objective)
    data = SimpleNamespace(train=ITEMS[items], scale=SCALES["binary"])
    reseed(1, "weights")
    markers = {"document_marker": "#"} if model == "colbert" else {}
    made: Any = cls.build(cls.Config(**({"encoder": "tiny-bert", "encoder_dropout": 0.1} | markers | own)), data)
    made.objective = towards.build(towards.Settings(**settings), made, data)
    return made


class Killed(BaseException):
    """What ends a training in the midst of a step."""


def train(name: str, folder: Path, *, kill_at: int = -1, resume: bool = False) -> tuple[str, str, list[str]]:
    """Bits of the weights, of what is kept for training, and the losses."""
    model_name, objective, aim, items, tricks, settings = TRAININGS[name]
    model = matcher(model_name, objective, aim, items)
    trainer = tiny.trainer(
        model, folder, items=ITEMS[items], tricks=tricks, resume=resume,
        **({"epochs": 2, "batch_size": 3, "save_every": 3, "optimizer": RATES} | settings),
    )  # fmt: skip
    trainer.evaluate = lambda _: {"f1": float(trainer.progress.step)}  # the last epoch is the best
    if kill_at >= 0:
        plain = trainer.optimizer.step

        def step(*arguments: Any) -> Any:
            if trainer.progress.step == kill_at:
                raise Killed
            return plain(*arguments)

        trainer.optimizer.step = step  # type: ignore[method-assign]
        with pytest.raises(Killed):
            trainer.fit()
    else:
        trainer.fit()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [json.dumps(line["losses"]) for line in lines if "losses" in line]
    assert "NaN" not in "".join(losses)
    assert "null" not in "".join(losses)
    return tensors_sha256(model.state_dict()), tensors_sha256(dict(model.training_state())), losses


@pytest.mark.parametrize("name", TRAININGS)
def test_a_killed_run_ends_in_the_same_bits(name: str, tmp_path: Path) -> None:
    whole = train(name, tmp_path / "whole")
    steps = len(whole[2])
    killed = train(name, tmp_path / "cut", kill_at=steps - 1)
    assert killed[0] != whole[0]
    assert train(name, tmp_path / "cut", resume=True) == whole


def test_what_is_forgotten_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without their state neither kind of past vectors goes on as it was."""
    for name in ("queue", "memory"):
        whole = train(name, tmp_path / name / "whole")
        train(name, tmp_path / name / "cut", kill_at=7)
        with monkeypatch.context() as patch:
            patch.setattr("hanzoo.models.objectives.info_nce.InfoNCE.training_state", lambda self: {})
            forgotten = train(name, tmp_path / name / "cut", resume=True)
        assert forgotten[0] != whole[0]


def test_every_trick_that_needs_no_more_than_a_matcher_is_walked() -> None:
    walked = {trick for training in TRAININGS.values() for trick in training[4]}
    of_other_models = {"ewc", "l2_sp", "flooding", "poly", "gradient_penalty"}  # tests/test_zoo.py
    assert walked == set(trick_names()) - of_other_models


# Chunks.


FGM = {"fgm": {"epsilon": 0.5}}


@pytest.mark.parametrize(("rows", "tricks"), [(1, {}), (7, FGM), (5, FGM | {"r_drop": {}})])
def test_chunks_that_are_read_again_change_no_gradient(
    rows: int, tricks: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the same chunks whose activations are kept: one step of the trainer, with dropout."""

    def gradients(name: str, seed: int = 1) -> Tensor:
        model = matcher("bi_encoder", "info_nce", {}, "texts", rows_at_once=rows)
        trainer = tiny.trainer(
            model, tmp_path / name, items=ITEMS["texts"], tricks=tricks, batch_size=12, seed=seed, optimizer=RATES
        )
        trainer.fit()
        return torch.cat([gradient.flatten() for gradient in tiny.gradients(model).values()])

    def apart(one: Tensor, other: Tensor) -> float:
        return float((one - other).norm() / other.norm())

    again = gradients("again")
    calls: list[int] = []

    def plainly(function: Callable[..., Any], *given: Any, use_reentrant: bool) -> Any:
        calls.append(len(given[0]))
        return function(*given)

    monkeypatch.setattr(text_encoder, "checkpoint", plainly)
    kept = gradients("kept")
    passes = (2 if "fgm" in tricks else 1) * (2 if "r_drop" in tricks else 1)
    assert sum(calls) == 24 * passes
    assert max(calls) == rows
    assert apart(again, kept) < 1e-6
    assert apart(again, gradients("other masks", seed=2)) > 1e-2
    if tricks:
        tricks = tricks | {"fgm": {"epsilon": 0.0}}
        assert apart(again, gradients("no attack")) > 1e-3
