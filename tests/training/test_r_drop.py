"""R-Drop: its loss and gradient against enumeration, and its laws."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hanzoo.errors import RunError
from hanzoo.models.bilstm_crf import BiLSTMCRF
from hanzoo.training.trick import Loss, trick_class
from tests import tiny
from tests.references.crf import Chain
from tests.references.r_drop import batch_loss

pytestmark = pytest.mark.usefixtures("deterministic")

TEXTS = ("⟨name|王⟩来", "⟨name|李娜⟩⟨name|张⟩", "雨")
DATA = tiny.data([tiny.marked(text) for text in TEXTS], [tiny.marked(TEXTS[0])])
R_DROP = trick_class("r_drop")


def two_passes(alpha: float) -> tuple[Tensor, list[Tensor], Tensor]:
    """The trick's loss on two given outputs, the leaves that it depends on, and the enumerated loss on the same leaves."""
    model = tiny.build("bilstm_crf", {"dimension": 4, "hidden": 3, "use_bigrams": False, "tag_scheme": "BIO"}, of=DATA)
    assert isinstance(model, BiLSTMCRF)
    batch = model.collate([model.featurize(document) for document in DATA.train])
    shape = (*batch.mask.shape, len(model.tag_set.tags))
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.crf.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    outputs = [torch.randn(shape, generator=draw).requires_grad_() for _ in range(2)]
    given = iter(outputs)

    def loss(batch: Any) -> Loss:
        output = next(given)
        return Loss(model.losses(output, batch), output)

    found = R_DROP(settings=R_DROP.Settings(alpha=alpha)).wrap_loss(loss, model)(batch)
    leaves = [*outputs, *model.crf.parameters()]

    tags = [row[keep].tolist() for row, keep in zip(batch.tags, batch.mask, strict=True)]
    chains = [
        [
            Chain(
                output[row, : len(gold)].double(), model.crf.transitions.double(), model.crf.start_transitions.double(),
                model.crf.end_transitions.double(), torch.as_tensor(model.tag_set.legal_transitions),
                torch.as_tensor(model.tag_set.legal_start), torch.as_tensor(model.tag_set.legal_end),
            )
            for row, gold in enumerate(tags)
        ]
        for output in outputs
    ]  # fmt: skip
    return found.values["crf"].mean(), leaves, batch_loss(chains[0], chains[1], tags, alpha)


@pytest.mark.parametrize("alpha", [0.0, 0.7, 4.0])
def test_loss_and_gradient_equal_the_enumerated_ones(alpha: float) -> None:
    found, leaves, expected = two_passes(alpha)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True):
        assert torch.allclose(ours, theirs.float(), atol=2e-5)
        assert theirs.abs().max() > 1e-3


def test_divergence_takes_part() -> None:
    assert two_passes(4.0)[0].item() > two_passes(0.0)[0].item() + 0.1


def gradients(
    folder: Path, tricks: Mapping[str, Mapping[str, Any]], dropout: float, **settings: Any
) -> dict[str, Tensor]:
    model = tiny.build(
        "bilstm_crf",
        {"dimension": 6, "hidden": 5, "unknown_rate": 0.0, "dropout_embedding": dropout, "dropout_hidden": dropout},
    )
    tiny.trainer(model, folder, tricks=tricks, **settings).fit()
    return tiny.gradients(model)


def test_without_dropout_it_is_the_plain_loss(tmp_path: Path) -> None:
    plain = gradients(tmp_path / "plain", {}, 0.0)
    assert tiny.difference(gradients(tmp_path / "twice", {"r_drop": {"alpha": 3.0}}, 0.0), plain) < 1e-6


def test_with_dropout_it_is_not(tmp_path: Path) -> None:
    plain = gradients(tmp_path / "plain", {}, 0.3)
    assert tiny.difference(gradients(tmp_path / "twice", {"r_drop": {"alpha": 3.0}}, 0.3), plain) > 1e-2


def test_the_two_passes_have_other_masks_and_repeat(tmp_path: Path) -> None:
    runs = []
    for name in "ab":
        model = tiny.toy(dropout=0.5)
        tiny.trainer(model, tmp_path / name, tricks={"r_drop": {}}, batch_size=12).fit()
        runs.append(model.masks)
    first, second = runs[0]
    assert not torch.equal(first, second)
    assert torch.equal(first, runs[1][0])
    assert torch.equal(second, runs[1][1])


def test_under_an_attack_both_passes_see_the_same_perturbation(tmp_path: Path) -> None:
    model = tiny.toy(dropout=0.5)
    tiny.trainer(model, tmp_path, tricks={"r_drop": {}, "fgm": {"epsilon": 0.5}}, batch_size=12).fit()
    clean, again, attacked, attacked_again = (characters for characters, _ in model.seen)
    assert torch.equal(clean, again)
    assert torch.equal(attacked, attacked_again)
    assert not torch.equal(clean, attacked)
    assert [torch.equal(model.masks[n], model.masks[n + 2]) for n in (0, 1)] == [True, True]
    assert not torch.equal(model.masks[0], model.masks[1])


def test_units_are_those_of_the_batch(tmp_path: Path) -> None:
    tiny.trainer(tiny.toy(dropout=0.5), tmp_path, tricks={"r_drop": {"alpha": 0.0}}, batch_size=12).fit()
    record = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    model = tiny.toy()
    features = [model.featurize(document) for document in tiny.DOCUMENTS]
    batch = model.collate(features)
    loss = model.losses(model.eval()(batch), batch)["square"].mean().item()
    assert loss / 4 < record["loss"] < loss * 4  # dropout apart: a sum over both passes or the batch would be far off


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_two_passes_that_never_differ_stop_the_training(dropout: float, tmp_path: Path) -> None:
    trainer = tiny.trainer(tiny.toy(dropout=dropout), tmp_path, tricks={"r_drop": {}}, epochs=20, log_every=7)
    if dropout:
        assert trainer.fit().step == 60
        return
    with pytest.raises(RunError, match=r"r_drop: .* must differ, but in the first 51 steps they were the same"):
        trainer.fit()
