"""EWC and L2-SP: what they add to a gradient, the Fisher information against a list of all tag sequences, what a run keeps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hanzoo.data.randomness import reseed
from hanzoo.models.model import Model, Tagger
from hanzoo.training.checkpoint import tensors_sha256
from hanzoo.training.tricks.ewc import fisher_information
from tests import tiny
from tests.references import fisher as reference

pytestmark = pytest.mark.usefixtures("deterministic")

SETTINGS = {
    "dimension": 4, "hidden": 3, "use_bigrams": False, "tag_scheme": "BIO", "unknown_rate": 0.0,
    "dropout_embedding": 0.5, "dropout_hidden": 0.5,
}  # fmt: skip
OLD = [tiny.marked(text) for text in ("⟨name|王明⟩", "雨⟨name|李⟩", "下雨")]
NEW = [tiny.marked(text) for text in ("去⟨city|北京⟩", "⟨city|上海⟩人")]


def continued(seed: int = 1) -> Tagger:
    """A model of OLD, made to go on with NEW."""
    old = tiny.build("bilstm_crf", SETTINGS, seed, tiny.data(OLD, OLD))
    reseed(seed, "weights")
    model = type(old).continue_from(old.config, old, tiny.data(NEW, NEW))
    assert isinstance(model, Tagger)
    assert set(model.fresh) == {
        "emission.weight", "emission.bias", "crf.transitions", "crf.start_transitions", "crf.end_transitions",
    }  # fmt: skip
    return model


def copies(model: Model) -> dict[str, Tensor]:
    return {name: parameter.detach().double() for name, parameter in model.named_parameters()}


def step_gradients(model: Tagger, folder: Path, tricks: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Tensor]]:
    """The gradients of two steps of plain SGD: at the start, and one step away from it."""
    model.restrict(["city"])
    found = []
    trained = tiny.trainer(
        model, folder, tricks=tricks, items=NEW, epochs=2, start=tiny.start_of(model, OLD, lambda: model.restricted(["name"])),
        optimizer={"name": "sgd", "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.5},
    )  # fmt: skip
    model.after_step = lambda: found.append(tiny.gradients(model))  # type: ignore[method-assign]
    trained.fit()
    return found


@pytest.mark.parametrize("name", ["l2_sp", "ewc"])
def test_what_is_added_to_the_gradient(name: str, tmp_path: Path) -> None:
    settings = {"l2_sp": {"alpha": 0.7, "beta": 0.2}, "ewc": {"weight": 0.7, "num_samples": 2}}[name]
    plain = step_gradients(continued(), tmp_path / "plain", {})
    model = continued()
    first = copies(model)
    fresh = {key: model.fresh.get(key, torch.zeros_like(value)).bool() for key, value in first.items()}
    pulled = step_gradients(model, tmp_path / "pulled", {name: settings})
    state = load_file(sorted((tmp_path / "pulled" / "state").iterdir())[-1] / "tensors.safetensors")
    trick = "EWC" if name == "ewc" else "L2SP"
    strengths = {key: state[f"tricks/{trick}/strengths/{key}"].double() for key in first}
    for key, value in first.items():
        if name == "l2_sp":
            assert torch.equal(strengths[key], torch.where(fresh[key], 0.2, 0.7).double().float().double())
            assert torch.allclose(pulled[0][key] - plain[0][key], torch.where(fresh[key], 0.2 * value, 0.0), atol=1e-6)
        else:
            assert not strengths[key][fresh[key]].any()
            assert torch.equal(pulled[0][key], plain[0][key])  # at the start nothing pulls
    if name == "ewc":  # "weight" is the strength of an average weight
        kept = torch.cat([strengths[key][~fresh[key]] for key in first])
        assert float(kept.mean()) == pytest.approx(0.7, rel=1e-5)
        away = {key: value - 0.5 * plain[0][key] for key, value in first.items()}  # one step of SGD
        for key, value in first.items():
            added = strengths[key] * (away[key] - value)
            assert torch.allclose(pulled[1][key] - plain[1][key], added, atol=1e-5)
        assert max(float((strengths[key] * (away[key] - first[key])).abs().max()) for key in first) > 1e-2


@pytest.mark.parametrize("name", ["l2_sp", "ewc"])
def test_strength_zero_is_training_without_it(name: str, tmp_path: Path) -> None:
    off = {"l2_sp": {"alpha": 0.0, "beta": 0.0}, "ewc": {"weight": 0.0, "num_samples": 2}}[name]
    plain, without, with_it = (
        tensors_sha256(dict(enumerate_steps(step_gradients(continued(), tmp_path / folder, tricks))))
        for folder, tricks in (("plain", {}), ("off", {name: off}), ("on", {name: {}}))
    )
    assert plain == without
    assert plain != with_it


def enumerate_steps(steps: list[dict[str, Tensor]]) -> list[tuple[str, Tensor]]:
    return [(f"{number} {name}", tensor) for number, step in enumerate(steps) for name, tensor in step.items()]


def test_fisher_information_equals_the_sum_over_all_tag_sequences() -> None:
    model = continued().double()
    model.train()  # must not matter: no dropout in what is measured
    item = model.featurize(OLD[1])
    drawings = 1500
    with model.restricted(["name"]):
        estimated = fisher_information(model, [item] * drawings, range(drawings), seed=1)
        assert model.training
        model.eval()
        batch = model.collate([item])
        parameters = dict(model.named_parameters())
        exact = reference.fisher_information(model(batch)[0], model.get_submodule("crf"), parameters)
        gold = torch.autograd.grad(model.losses(model(batch), batch)["crf"].sum(), list(parameters.values()))
    together = [torch.cat([values[name].flatten() for name in parameters]) for values in (exact, estimated)]
    empirical = torch.cat([gradient.flatten() ** 2 for gradient in gold])
    assert float((together[1] - together[0]).norm() / together[0].norm()) < 0.05
    assert float(together[1].sum()) == pytest.approx(float(together[0].sum()), rel=0.05)
    assert float((empirical - together[0]).norm() / together[0].norm()) > 0.3  # gold labels are another quantity
    for name, missing in model.fresh.items():
        assert not exact[name][missing].any()  # new labels take no part
        assert not estimated[name][missing].any()


def test_one_text_at_a_time() -> None:
    """The square of a sum of gradients, which a batch would give, is not the sum of squares."""
    model = continued()
    items = [model.featurize(document) for document in OLD]
    three = fisher_information(model, items, [0, 1, 2], seed=1)
    apart = [fisher_information(model, items, [number], seed=1) for number in range(3)]
    mean = {name: sum(each[name] for each in apart) / 3 for name in three}
    assert tiny.difference(three, mean) < 1e-6
    assert tiny.difference(three, apart[0]) > 0.1


@pytest.mark.parametrize("name", ["l2_sp", "ewc"])
def test_a_run_goes_on_without_what_it_started_from(name: str, tmp_path: Path) -> None:
    def run(folder: Path, epochs_cut: bool = False, resume: bool = False) -> str:
        model = continued()
        model.restrict(["city"])
        begins = []

        def items() -> list[Any]:
            begins.append(1)
            return [model.featurize(item) for item in OLD]

        start = tiny.start_of(model)
        trained = tiny.trainer(
            model, folder, tricks={name: {}}, items=NEW, epochs=4, save_every=1, resume=resume,
            start=type(start)(start.fresh, items, start.labelled), evaluate=lambda _: {"f1": float(trained.progress.step)},
        )  # fmt: skip
        if epochs_cut:
            plain = trained._step

            def step(epoch: int, window: list[list[int]]) -> None:
                if trained.progress.step == 0:
                    raise KeyboardInterrupt
                plain(epoch, window)

            trained._step = step  # type: ignore[method-assign]
            with pytest.raises(KeyboardInterrupt):
                trained.fit()
            assert [path.name for path in (folder / "state").iterdir()] == ["00000000"]
            return ""
        trained.fit()
        assert begins == ([] if resume or name == "l2_sp" else [1])
        return tensors_sha256(model.state_dict())

    whole = run(tmp_path / "whole")
    run(tmp_path / "cut", epochs_cut=True)
    assert run(tmp_path / "cut", resume=True) == whole
