"""Negatives of all ranks: two real processes train what one trains with the whole batch, forward and gradient."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hanzoo.data.document import Document, Pair, Triple
from hanzoo.data.randomness import reseed
from hanzoo.models.layers.gathering import SharedBatch, standing_in
from hanzoo.models.model import model_class, objective_class
from hanzoo.training.distributed import rank
from tests import tiny
from tests.models.objectives.test_objectives import CUT
from tests.training.test_distributed import two

pytestmark = pytest.mark.usefixtures("deterministic", "encoders")

TEXTS = [document.text for document in tiny.DOCUMENTS]
PAIRS = [Pair(TEXTS[number % 12], TEXTS[(5 * number + 3) % 12], label=float(number * 7 % 4)) for number in range(26)]
TRIPLES = [
    Triple(TEXTS[number % 12], TEXTS[(5 * number + 3) % 12], (TEXTS[(7 * number + 4) % 12], TEXTS[number % 11]))
    for number in range(26)
]
SINGLE = [Document(text) for text in [*TEXTS, *TEXTS[:2], *(text[1:] for text in TEXTS)]]
WHOLE = 12  # items a step: 26 are 12, 12 and 2, and the second of two ranks has nothing to do in one of the steps


@dataclass(frozen=True)
class Case:
    """A training of a matcher."""

    model: str
    objective: str
    items: Sequence[Any]
    settings: dict[str, Any] = field(default_factory=dict)
    tricks: dict[str, dict[str, Any]] = field(default_factory=dict)
    epochs: int = 1


FGM = {"fgm": {"epsilon": 0.5}}
CASES = {
    "pairs": Case("bi_encoder", "info_nce", PAIRS),
    "triples": Case("bi_encoder", "info_nce", TRIPLES),
    "triples both ways": Case("bi_encoder", "info_nce", TRIPLES, {"both_directions": True}),
    "texts": Case("bi_encoder", "info_nce", SINGLE, {"repetition": 0.3}),
    "colbert": Case("colbert", "info_nce", TRIPLES, {"both_directions": True, "temperature": 1.0}),
    "cosent": Case("bi_encoder", "cosent", PAIRS[:22]),
    "cosent cross": Case("cross_encoder", "cosent", PAIRS, {"temperature": 0.5}),
    "arccse": Case("bi_encoder", "arccse", SINGLE, {"triplet_weight": 1.0, "least_pieces": 6}),
    "fgm": Case("bi_encoder", "info_nce", TRIPLES, {"both_directions": True}, FGM),
    "fgm cosent": Case("bi_encoder", "cosent", PAIRS, {}, FGM),
    "r_drop": Case("bi_encoder", "info_nce", PAIRS, {"both_directions": True}, {"r_drop": {"alpha": 1.0}}),
    "penalty": Case("bi_encoder", "info_nce", PAIRS, {}, {"gradient_penalty": {"strength": 0.001}}),
    "momentum": Case("bi_encoder", "info_nce", SINGLE, {"momentum_queue": {"capacity": 17, "momentum": 0.5}}),
    "memory": Case("bi_encoder", "info_nce", PAIRS, {"cross_batch_memory": {"capacity": 15}}, FGM),
}
ONE_STEP = ("triples both ways", "texts", "colbert", "cosent", "cosent cross", "arccse")


def matcher(case: Case, **settings: Any) -> Any:
    """A tiny matcher with random weights, and what it is trained towards; float64, but where it computes in float32."""
    own: dict[str, Any] = {"encoder": "tiny-bert", "encoder_dropout": 0.0}
    own |= {"colbert": {"document_marker": "#"}, "cross_encoder": {"dropout": 0.0}}.get(case.model, {})
    cls = model_class(case.model)
    data = SimpleNamespace(train=case.items)
    reseed(1, "weights")
    model: Any = cls.build(cls.Config(**(own | settings)), data)
    model.double()
    objective = objective_class(case.objective)
    model.objective = objective.build(objective.Settings(**case.settings), model, data)
    return model


def fit(folder: Path, case: Case, **sizes: int) -> dict[str, Tensor]:
    """Train: the losses of all steps, the last gradients, the weights, and what is kept of the training."""
    model = matcher(case)
    trainer = tiny.trainer(
        model, folder, items=case.items, tricks=case.tricks, optimizer={"name": "sgd", "learning_rate": 0.05},
        epochs=case.epochs, **sizes,
    )  # fmt: skip
    trainer.fit()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = {f"gradients/{name}": value for name, value in tiny.gradients(model).items()}
    found |= {f"weights/{name}": value.detach().double() for name, value in model.named_parameters()}
    found |= {f"training/{name}": value.double() for name, value in model.training_state().items() if value.dim()}
    return found | {"losses/": torch.tensor([record["loss"] for record in records if "loss" in record])}


def one_step(case: Case) -> Case:
    return replace(case, items=case.items[: WHOLE - 2], epochs=1)  # 6 and 4


def alone(rows: Tensor) -> SharedBatch:
    """What a rank would think that asks nobody."""
    return SharedBatch((len(rows),), 0)


def work(folder: Path) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    both = {name: (case, SharedBatch.of) for name, case in CASES.items()}
    both |= {f"one step {name}": (one_step(CASES[name]), SharedBatch.of) for name in ONE_STEP}
    both |= {f"control {name}": (one_step(CASES[name]), alone) for name in ONE_STEP}
    for name, (case, agree) in both.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SharedBatch, "of", agree)
            found = fit(folder / name, case, batch_size=WHOLE // 2)
        if rank() == 0:
            save_file(found, folder / f"{name}.safetensors")
    save_file(gathered(), folder / f"gathered-{rank()}.safetensors")


def gathered() -> dict[str, Tensor]:
    """Two rows of the first rank, none of the second, which stands in with one."""
    rows = torch.arange(6.0).view(2, 3)[: 2 - rank()].clone().requires_grad_()
    with standing_in() if rank() else torch.enable_grad():
        shared = SharedBatch.of(rows)
    everyone = shared.gather(rows)
    (everyone.square().sum() * (rank() + 1)).backward()  # type: ignore[no-untyped-call]
    return {
        "rows": everyone.detach(),
        "gradient": rows.grad if rows.grad is not None else torch.empty(0),
        "places": shared.places(rows),
        "mask": shared.gather_tokens(torch.ones(len(rows), 3 + rank(), dtype=torch.bool)),
    }


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, encoders: Path) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    script = (
        "from pathlib import Path; from hanzoo.training.distributed import joined;"
        "from tests.training import test_gathering as t\n"
        f"with joined('cpu'): t.work(Path({str(folder)!r}))"
    )
    for process in two(["-c", script], folder):
        assert process.returncode == 0, process.stderr
    return folder


def apart(own: dict[str, Tensor], other: dict[str, Tensor], kind: str) -> float:
    """The greatest difference, as a share of the greatest number: some gradients are 0 but for rounding (keys' biases)."""
    assert set(own) == set(other)
    names = [name for name in own if name.startswith(kind)]
    first, second = (torch.cat([side[name].flatten() for name in names]) for side in (own, other))
    return float((first - second).abs().max() / second.abs().max())


@pytest.mark.parametrize("name", ONE_STEP)
def test_the_gradient_is_that_of_the_whole_batch(together: Path, tmp_path: Path, name: str) -> None:
    whole = fit(tmp_path, one_step(CASES[name]), batch_size=WHOLE)
    found = load_file(together / f"one step {name}.safetensors")
    assert apart(found, whole, "losses") < 1e-6
    assert apart(found, whole, "gradients") < 1e-6
    control = load_file(together / f"control {name}.safetensors")  # each rank by itself
    assert apart(control, whole, "losses") > 1e-3
    assert apart(control, whole, "gradients") > 1e-2


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_what_one_trains(together: Path, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    whole = fit(tmp_path / "whole", case, batch_size=WHOLE)
    found = load_file(together / f"{name}.safetensors")
    for kind in ("losses", "weights", *(["training"] if "momentum_queue" in case.settings else [])):
        assert apart(found, whole, kind) < 1e-5
    control = fit(tmp_path / "control", case, batch_size=WHOLE // 2)
    assert apart(control, whole, "weights") > 1e-4


def test_rows_and_their_gradients(together: Path) -> None:
    first, second = (load_file(together / f"gathered-{number}.safetensors") for number in range(2))
    rows = torch.arange(6.0).view(2, 3)
    for found in (first, second):
        assert torch.equal(found["rows"], rows)
        assert found["mask"].tolist() == [[True, True, True, False]] * 2
    assert torch.equal(first["gradient"], 2 * rows * 3)  # of both ranks' losses
    assert second["gradient"].tolist() == [[0.0, 0.0, 0.0]]
    assert (first["places"].tolist(), second["places"].tolist()) == ([0, 1], [0])


def test_a_process_alone_gathers_what_it_has() -> None:
    rows = torch.ones(3, 2, requires_grad=True)
    shared = SharedBatch.of(rows)
    assert shared.is_alone
    assert shared.counts == (3,)
    assert torch.equal(shared.gather(rows), rows)
    assert torch.equal(shared.gather_tokens(rows), rows)
    assert shared.places(rows).tolist() == [0, 1, 2]


def test_every_objective_whose_batch_may_not_be_cut_is_walked() -> None:
    assert {case.objective for case in CASES.values()} == {name for name, may_be in CUT.items() if not may_be}
