"""The fields of a CRF's head: smoothed targets, class weights, several dropout masks; and that they end with training."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hanzoo.data.randomness import reseed
from hanzoo.models.bilstm_crf import BiLSTMCRF
from hanzoo.models.layers.crf_tagger import class_weights
from hanzoo.models.model import load_model
from tests import tiny
from tests.references import losses as reference
from tests.references.crf import Chain

pytestmark = pytest.mark.usefixtures("deterministic")

FIELDS: dict[str, dict[str, Any]] = {
    "label smoothing": {"label_smoothing": 0.1},
    "class weights": {"class_weights": 1.0, "class_weight_of": "max"},
    "several masks": {"multi_sample_dropout": 3, "multi_sample_rate": 0.0},
    "all": {"label_smoothing": 0.1, "class_weights": 0.5, "multi_sample_dropout": 2, "multi_sample_rate": 0.0},
}


def tagger(**settings: Any) -> BiLSTMCRF:
    quiet = {"dimension": 6, "hidden": 5, "unknown_rate": 0.0, "dropout_embedding": 0.0, "dropout_hidden": 0.0}
    model = tiny.build("bilstm_crf", quiet | settings)
    assert isinstance(model, BiLSTMCRF)
    return model


def batch_of(model: BiLSTMCRF) -> Any:
    return model.collate([model.featurize(item) for item in tiny.DOCUMENTS])


def trained(folder: Path, tricks: dict[str, Any] | None = None, size: int = 12, every: int = 1, **settings: Any) -> Any:
    """The gradients of one step."""
    model = tagger(**settings)
    tiny.trainer(model, folder, tricks=tricks, batch_size=size, accumulation=every).fit()
    return tiny.gradients(model)


# All fields.


@pytest.mark.parametrize("fields", FIELDS)
def test_accumulation_equals_one_big_batch(tmp_path: Path, fields: str) -> None:
    big = trained(tmp_path / "big", **FIELDS[fields])
    for size, every in ((5, 3), (1, 12)):
        parts = trained(tmp_path / f"{size}", size=size, every=every, **FIELDS[fields])
        assert tiny.difference(parts, big) < 3e-6


@pytest.mark.parametrize("fields", ["label smoothing", "class weights"])
def test_they_are_felt_in_training_and_nowhere_else(tmp_path: Path, fields: str) -> None:
    plain, changed = tagger(), tagger(**FIELDS[fields])
    assert tiny.difference(trained(tmp_path / "b", **FIELDS[fields]), trained(tmp_path / "a")) > 1e-3
    for model in (plain, changed):
        model.eval()
    batch = batch_of(plain)
    assert torch.equal(changed(batch), plain(batch))
    assert torch.equal(changed.losses(changed(batch), batch)["crf"], plain.losses(plain(batch), batch)["crf"])
    assert set(changed.state_dict()) == set(plain.state_dict())


@pytest.mark.parametrize("fields", FIELDS)
def test_a_saved_model_predicts_the_same(tmp_path: Path, fields: str) -> None:
    model = tagger(**FIELDS[fields] | {"multi_sample_rate": 0.5})
    model.save(tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, BiLSTMCRF)
    batch = batch_of(model)
    assert torch.equal(loaded(batch), model.eval()(batch))
    assert loaded(batch).dim() == 3


class Killed(BaseException):
    pass


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_killed_training_goes_on_to_the_same_bits(tmp_path: Path, precision: str) -> None:
    """With all fields: the class weights are in no file, and are made anew from train."""

    def run(name: str, kill_at: int = -1, resume: bool = False, **fields: Any) -> dict[str, Tensor]:
        model = tagger(**FIELDS["all"] | {"multi_sample_rate": 0.5, "class_weight_of": "max"} | fields)
        trainer = tiny.trainer(
            model, tmp_path / name, epochs=2, batch_size=3, save_every=2, precision=precision, resume=resume
        )
        plain = trainer.optimizer.step

        def step(*arguments: Any) -> Any:
            if trainer.progress.step == kill_at:
                raise Killed
            return plain(*arguments)

        trainer.optimizer.step = step  # type: ignore[method-assign]
        try:
            trainer.fit()
        except Killed:
            assert kill_at >= 0
        return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    whole = run("whole")
    run("cut", kill_at=5)
    again = run("cut", resume=True)
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    for name, fields in {
        "s": {"label_smoothing": 0.0},
        "w": {"class_weights": 0.0},
        "m": {"multi_sample_dropout": 0},
    }.items():
        other = run(name, **fields)
        assert not all(torch.equal(other[part], value) for part, value in whole.items())


# Label smoothing.


def test_the_smoothed_loss_of_a_step_is_the_enumerated_one(tmp_path: Path) -> None:
    items = [tiny.marked(text) for text in ("⟨name|王⟩来", "⟨name|李娜⟩⟨name|张⟩", "雨")]
    quiet = {"dimension": 4, "hidden": 3, "use_bigrams": False, "tag_scheme": "BIO", "unknown_rate": 0.0}
    fields = {"dropout_embedding": 0.0, "dropout_hidden": 0.0, "label_smoothing": 0.2}
    model = tiny.build("bilstm_crf", quiet | fields, of=tiny.data(items, items))
    assert isinstance(model, BiLSTMCRF)
    batch = model.collate([model.featurize(item) for item in items])
    emissions = model(batch)
    crf = model.crf
    expected = torch.stack([
        reference.smoothed(
            Chain(
                emissions[row, :length].double(), crf.transitions.double(), crf.start_transitions.double(),
                crf.end_transitions.double(), crf.legal_transitions, crf.legal_start, crf.legal_end,
            ),
            batch.tags[row, :length].tolist(), 0.2,
        )
        for row, length in enumerate(batch.mask.sum(1).tolist())
    ]).mean()  # fmt: skip
    gradients = dict(
        zip(dict(model.named_parameters()), torch.autograd.grad(expected, list(model.parameters())), strict=True)
    )
    trained = tiny.trainer(model, tmp_path, items=items)
    loss = trained.loss(batch)
    assert loss.values["crf"].mean().item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(loss.gold()["crf"], model.losses(emissions, batch)["crf"])
    assert not torch.allclose(loss.values["crf"], loss.gold()["crf"], rtol=1e-2)
    trained.fit()
    assert tiny.difference(tiny.gradients(model), {name: g.double() for name, g in gradients.items()}) < 1e-4


# Class weights.


def test_class_weights_equal_the_formula() -> None:
    counts = Counter(span.label for item in tiny.DOCUMENTS for span in item.spans)
    labels = ("address", "company", "name")
    for tau, cap in ((1.0, 10.0), (0.5, 10.0), (2.0, 1.1)):
        found = class_weights(tiny.DOCUMENTS, labels, tau, cap).tolist()
        every = [counts[label] for label in labels]
        assert found == pytest.approx([reference.class_weight(every, each, tau, cap) for each in range(3)])
    assert class_weights(tiny.DOCUMENTS, labels, 2.0, 1.1).max() == pytest.approx(1.1)
    assert len(class_weights(tiny.DOCUMENTS, labels, 1.0, 10.0).unique()) > 1
    assert class_weights([], labels, 1.0, 10.0).tolist() == [1.0, 1.0, 1.0]
    with_another = class_weights(tiny.DOCUMENTS, (*labels, "unseen"), 1.0, 10.0)
    assert with_another.tolist() == [*class_weights(tiny.DOCUMENTS, labels, 1.0, 10.0).tolist(), 1.0]


@pytest.mark.parametrize("of", ["mean", "max"])
def test_a_sentence_weighs_as_its_classes_do(of: str) -> None:
    model = tagger(class_weights=1.0, class_weight_of=of)
    batch = batch_of(model)
    weights = model.unit_weights(batch)
    assert weights is not None
    counts = Counter(span.label for item in tiny.DOCUMENTS for span in item.spans)
    every = list(counts.values())
    for item, weight in zip(tiny.DOCUMENTS, weights["crf"].tolist(), strict=True):
        classes = sorted({span.label for span in item.spans})
        own = [reference.class_weight(every, list(counts).index(label), 1.0, 10.0) for label in classes] or [1.0]
        assert weight == pytest.approx(sum(own) / len(own) if of == "mean" else max(own))
    assert len({round(weight, 4) for weight in weights["crf"].tolist()}) >= 3
    assert tagger().unit_weights(batch) is None


def test_weights_multiply_the_losses_and_leave_the_units(tmp_path: Path) -> None:
    fields = FIELDS["class weights"]
    model = tagger(**fields)
    batch = batch_of(model)
    weights = model.unit_weights(batch)
    assert weights is not None
    (weights["crf"] * model.losses(model(batch), batch)["crf"]).mean().backward()
    expected = tiny.gradients(model)
    assert tiny.difference(trained(tmp_path / "w", **fields), expected) < 1e-6
    assert float(weights["crf"].mean()) != pytest.approx(1.0, abs=1e-3)  # not divided by their sum


# Several dropout masks.


def test_the_loss_is_the_mean_over_the_masks() -> None:
    model = tagger(multi_sample_dropout=4, multi_sample_rate=0.5, label_smoothing=0.1)
    batch = batch_of(model)
    reseed(1, "dropout")
    output = model.train()(batch)
    assert output.shape[:2] == (4, len(tiny.DOCUMENTS))
    assert len({tuple(row) for row in output[:, 0, 0].tolist()}) == 4
    each = torch.stack([model.losses(emissions, batch)["crf"] for emissions in output])
    found = model.losses(output, batch)["crf"]
    torch.testing.assert_close(found, each.mean(0))
    # the loss of mean emissions is another, smaller one
    assert (model.losses(output.mean(0), batch)["crf"] < found).all()
    smoothing = torch.stack([model.smoothing(emissions, batch)["crf"] for emissions in output])
    torch.testing.assert_close(model.smoothing(output, batch)["crf"], smoothing.mean(0))
    gradients = [torch.autograd.grad(value.sum(), output, retain_graph=True)[0] for value in (found, each.mean(0))]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_masks_that_drop_nothing_are_the_plain_loss(tmp_path: Path) -> None:
    def gradients(**fields: Any) -> dict[str, Tensor]:
        return trained(tmp_path / str(len(list(tmp_path.iterdir()))), **fields)

    plain = gradients()
    assert tiny.difference(gradients(multi_sample_dropout=3, multi_sample_rate=0.0), plain) < 1e-5
    assert tiny.difference(gradients(multi_sample_dropout=3, multi_sample_rate=0.5), plain) > 1e-2


def test_inference_has_no_masks() -> None:
    model = tagger(multi_sample_dropout=3).eval()
    batch = batch_of(model)
    assert torch.equal(model(batch), tagger().eval()(batch))
    assert not torch.equal(model.train()(batch)[0], model.eval()(batch))


def test_tricks_that_run_the_model_twice_take_several_masks(tmp_path: Path) -> None:
    for name, tricks in {"fgm": {"fgm": {}}, "penalty": {"gradient_penalty": {}}, "poly": {"poly": {}}}.items():
        gradients = trained(tmp_path / name, tricks, multi_sample_dropout=2, label_smoothing=0.1)
        assert all(gradient.isfinite().all() for gradient in gradients.values())
