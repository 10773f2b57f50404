"""The gradient penalty against finite differences in float64; that it is no no-op; what it does not touch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hanzoo.models.bilstm_crf import BiLSTMCRF
from hanzoo.models.layers import encoder
from hanzoo.models.model import AttackPoint
from hanzoo.training.attack import Perturbation
from hanzoo.training.trick import Loss, build_tricks, trick_class
from tests import tiny
from tests.references.gradient_penalty import slope, squared_gradient

pytestmark = pytest.mark.usefixtures("deterministic")

STRENGTH = 3.0
ITEMS = tiny.DOCUMENTS[:5]


def tagger(**settings: Any) -> BiLSTMCRF:
    quiet = {"unknown_rate": 0.0, "dropout_embedding": 0.0, "dropout_hidden": 0.0}
    model = tiny.build("bilstm_crf", {"dimension": 3, "hidden": 4, "num_layers": 2} | quiet | settings)
    assert isinstance(model, BiLSTMCRF)
    with torch.no_grad():
        model.emission.weight *= 6.0  # larger gradients at the input than a fresh model has
    return model


def penalised(model: Any, batch: Any, tricks: Mapping[str, Mapping[str, Any]] | None = None) -> Loss:
    """The loss of a batch under the penalty and further tricks."""

    def loss(batch: Any) -> Loss:
        output = model(batch)
        hard = model.losses(output, batch)
        return Loss(hard, output, model.unit_weights(batch), hard)

    function: Any = loss
    sections = {"gradient_penalty": {"strength": STRENGTH}} | dict(tricks or {})
    for trick in build_tricks({name: trick_class(name).Settings(**given) for name, given in sections.items()}):
        function = trick.wrap_loss(function, model)
    result: Loss = function(batch)
    return result


def batch_of(model: Any, items: Sequence[Any] = ITEMS) -> Any:
    return model.collate([model.featurize(item) for item in items])


def moved_loss(model: BiLSTMCRF, batch: Any) -> tuple[Any, list[Tensor]]:
    """The loss of a batch as a function of what is added to its embeddings, and zeros of their shapes."""
    modules = [model.characters, model.bigrams]
    zeros = [
        torch.zeros_like(module(ids)) for module, ids in zip(modules, (batch.characters, batch.bigrams), strict=True)
    ]  # type: ignore[misc]

    def loss(added: Sequence[Tensor]) -> Tensor:
        hooks = [m.register_forward_hook(lambda _, __, out, d=d: out + d) for m, d in zip(modules, added, strict=True)]  # type: ignore[union-attr,misc]
        try:
            return model.losses(model(batch), batch)["crf"].sum()
        finally:
            for hook in hooks:
                hook.remove()

    return loss, zeros


def test_the_penalty_of_each_sample_equals_finite_differences() -> None:
    model = tagger().double()
    batch = batch_of(model)
    found = penalised(model, batch).values["crf"] - model.losses(model(batch), batch)["crf"]
    for row, item in enumerate(ITEMS):
        alone = batch_of(model, [item])
        loss, zeros = moved_loss(model, alone)
        with torch.no_grad():
            expected = STRENGTH / 2 * squared_gradient(lambda added, loss=loss: float(loss(added)), zeros)
        assert found[row].item() == pytest.approx(expected, rel=1e-6)
    assert found.min() > 1e-3
    assert len(found.unique()) == len(ITEMS)


def test_its_gradient_equals_finite_differences() -> None:
    model = tagger().double()
    items = ITEMS[2:5]
    batches = [batch_of(model, [item]) for item in items]

    def value() -> float:
        """Loss and penalty by first derivatives alone, one sentence at a time."""
        total = 0.0
        for batch in batches:
            loss, zeros = moved_loss(model, batch)
            added = [zero.requires_grad_() for zero in zeros]
            plain = loss(added)
            gradients = torch.autograd.grad(plain, added)
            total += float(plain.detach()) + STRENGTH / 2 * sum(
                float(gradient.square().sum()) for gradient in gradients
            )
        return total

    parameters = list(model.parameters())
    found = torch.autograd.grad(penalised(model, batch_of(model, items)).weighted()["crf"].sum(), parameters)
    batch = batch_of(model, items)
    plain = torch.autograd.grad(model.losses(model(batch), batch)["crf"].sum(), parameters)
    draw = torch.Generator().manual_seed(3)
    names = [name for name, _ in model.named_parameters()]
    for name, parameter, ours, without in zip(names, parameters, found, plain, strict=True):
        direction = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        expected = slope(value, [parameter], [direction], 1e-6)
        assert float((ours * direction).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-7), name
        assert float((without * direction).sum()) != pytest.approx(expected, rel=1e-3, abs=1e-6), name


def test_float32_equals_float64() -> None:
    model = tagger(hidden=16, dimension=8)
    batch = batch_of(model, tiny.DOCUMENTS)
    single = torch.autograd.grad(penalised(model, batch).weighted()["crf"].sum(), list(model.parameters()))
    model.double()
    double = torch.autograd.grad(penalised(model, batch).weighted()["crf"].sum(), list(model.parameters()))
    for ours, theirs in zip(single, double, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


def test_the_usual_snippet_penalises_nothing() -> None:
    """Squaring `.grad` and calling backward again doubles the plain gradient; the penalty turns it elsewhere."""
    model = tagger()
    batch = batch_of(model)
    model.losses(model(batch), batch)["crf"].sum().backward()
    plain = tiny.gradients(model)

    model.zero_grad()
    loss = model.losses(model(batch), batch)["crf"].sum()
    loss.backward(retain_graph=True)
    table = model.characters.weight.grad
    assert table is not None
    (loss + STRENGTH / 2 * table.square().sum()).backward()
    snippet = tiny.gradients(model)
    assert tiny.difference(snippet, {name: 2 * gradient for name, gradient in plain.items()}) < 1e-6

    model.zero_grad()
    penalised(model, batch).weighted()["crf"].sum().backward()
    ours = tiny.gradients(model)
    for name, gradient in ours.items():
        along = float((gradient * plain[name]).sum() / (gradient.norm() * plain[name].norm()))
        assert along < 0.999, name


def test_strength_zero_is_the_plain_gradient(tmp_path: Path) -> None:
    def gradients(strength: float | None) -> dict[str, Tensor]:
        model = tagger()
        tricks = {} if strength is None else {"gradient_penalty": {"strength": strength}}
        tiny.trainer(model, tmp_path / f"{strength}", tricks=tricks, batch_size=12).fit()
        return tiny.gradients(model)

    plain = gradients(None)
    # its forward pass is another kernel's (no cuDNN, zeros added), its CRF another recursion's
    assert tiny.difference(gradients(0.0), plain) < 1e-5
    assert tiny.difference(gradients(1.0), plain) > 1e-2


def test_it_is_of_the_hard_loss_whatever_stands_inside() -> None:
    model = tagger(class_weights=1.0, class_weight_of="max")
    batch = batch_of(model)
    plain = model.losses(model(batch), batch)["crf"]
    weights = model.unit_weights(batch)
    assert weights is not None
    assert len(weights["crf"].unique()) > 1
    penalty = penalised(model, batch).values["crf"] - weights["crf"] * plain
    inside = {"focal": {}, "poly": {}, "flooding": {"level": 0.5}}
    with_all = penalised(model, batch, inside)
    model.eval()

    def only_inside(batch: Any) -> Loss:
        return Loss({"crf": plain}, None, weights)

    function: Any = only_inside
    for trick in build_tricks({name: trick_class(name).Settings(**given) for name, given in inside.items()}):
        function = trick.wrap_loss(function, model)
    torch.testing.assert_close(
        with_all.values["crf"] - function(batch).weighted()["crf"], penalty, rtol=1e-3, atol=1e-3
    )
    assert with_all.weights is None  # they are in the values; the penalty has none


def test_beside_r_drop_it_is_of_the_first_pass() -> None:
    model = tiny.toy(dropout=0.5)
    batch = batch_of(model)
    torch.manual_seed(3)
    both = penalised(model, batch, {"r_drop": {"alpha": 0.0}})
    first, second = model.masks[-2:]
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    alone = penalised(model, batch)
    assert torch.equal(model.masks[-1], first)
    torch.manual_seed(3)
    plain = [model.losses(model(batch), batch)["square"] for _ in range(2)]
    penalty = alone.values["square"] - plain[0]
    torch.testing.assert_close(both.values["square"], 0.5 * (plain[0] + plain[1]) + penalty)
    assert not torch.allclose(plain[0], plain[1])
    assert penalty.abs().max() > 0.1


def test_padding_has_no_part_in_it() -> None:
    model = tagger()
    alone = penalised(model, batch_of(model, ITEMS[:1])).values["crf"]
    torch.testing.assert_close(penalised(model, batch_of(model)).values["crf"][:1], alone, rtol=1e-4, atol=1e-5)


def test_bfloat16_has_the_penalty_of_float32(tmp_path: Path) -> None:
    """What the penalty adds to a step's gradient, through the loop's autocast; float32 is held against float64 above."""

    def gradients(precision: str, strength: float) -> dict[str, Tensor]:
        model = tagger(hidden=16)
        tricks = {"gradient_penalty": {"strength": strength}}
        folder = tmp_path / f"{precision}{strength}"
        tiny.trainer(model, folder, tricks=tricks, precision=precision, batch_size=12).fit()
        return tiny.gradients(model)

    added = {}
    for precision in ("float32", "bfloat16"):
        plain, penalised = gradients(precision, 0.0), gradients(precision, STRENGTH)
        added[precision] = {name: gradient - plain[name] for name, gradient in penalised.items()}
    assert 1e-4 < tiny.difference(added["bfloat16"], added["float32"]) < 0.05
    # neither nothing nor a multiple of the plain gradient would be as near
    for name, expected in added["float32"].items():
        along = plain[name] * (expected * plain[name]).sum() / plain[name].square().sum()
        assert float((along - expected).norm() / expected.norm()) > 0.2, name


def test_points_that_no_pass_reaches_are_an_error() -> None:
    model = tiny.toy()
    other = torch.nn.Embedding(4, 2)
    batch = batch_of(model)
    rows = torch.zeros(len(ITEMS), 1, dtype=torch.int64)
    inputs = Perturbation({"other": AttackPoint(other, rows)})
    with inputs:
        losses = model.losses(model(batch), batch)["square"]
    with pytest.raises(RuntimeError, match="not reached by the forward pass: other"):
        inputs.squared_gradients(losses)


@pytest.mark.usefixtures("encoders")
def test_rows_that_are_read_again_come_out_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where attention has fused kernels, as for long rows and on a GPU: they must stay off when rows are read once more."""
    monkeypatch.setattr(encoder, "SHORT_ROW", 0)

    def gradients(strength: float, rows_at_once: int | None) -> Tensor:
        model = tiny.build("bi_encoder", {"encoder": "tiny-bert", "rows_at_once": rows_at_once, "encoder_dropout": 0.0})
        tricks = {"gradient_penalty": {"strength": strength}}
        folder = tmp_path / f"{strength} {rows_at_once}"
        tiny.trainer(model, folder, tricks=tricks, items=tiny.PAIRS, batch_size=len(tiny.PAIRS)).fit()
        return torch.cat([gradient.flatten() for gradient in tiny.gradients(model).values()])

    whole, parts, without = gradients(STRENGTH, None), gradients(STRENGTH, 2), gradients(0.0, 2)
    assert (parts - whole).norm() < 1e-5 * whole.norm()
    assert (without - whole).norm() > 1e-2 * whole.norm()
