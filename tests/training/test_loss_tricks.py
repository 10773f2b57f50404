"""Focal, Poly-1 and flooding: against the plain forms, one inside the other, beside class weights; and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from hanzoo.errors import RecipeError
from hanzoo.models.model import model_class, model_names
from hanzoo.recipe import check_recipe
from hanzoo.training.trainer import TrainSettings
from hanzoo.training.trick import Loss, build_tricks, trick_class, trick_names
from tests import tiny
from tests.references import losses as reference

pytestmark = pytest.mark.usefixtures("deterministic")

NLL = [1e-4, 0.01, 0.1, 1.0, 5.0, 20.0]
LENGTHS = [3, 1, 20, 7, 12, 30]


class GivenBatch:
    """A batch of which only the lengths are known."""

    unit_lengths: Mapping[str, Tensor] = {"crf": torch.tensor(LENGTHS)}


def wrapped(
    tricks: Mapping[str, Mapping[str, Any]], values: Tensor, weights: Tensor | None = None, hard: Tensor | None = None
) -> Loss:
    """What tricks make of given values."""

    def loss(batch: Any) -> Loss:
        return Loss(
            {"crf": values},
            None,
            None if weights is None else {"crf": weights},
            None if hard is None else {"crf": hard},
        )

    function: Callable[[Any], Loss] = loss
    for trick in build_tricks({name: trick_class(name).Settings(**given) for name, given in tricks.items()}):
        function = trick.wrap_loss(function, tiny.toy())
    return function(GivenBatch())


def check(tricks: Mapping[str, Mapping[str, Any]], plain: Callable[[Tensor, int], Tensor]) -> None:
    """Values and gradients equal the plain form's; float32 as exact as float32 can be; the untouched loss differs."""
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        values = torch.tensor(NLL, dtype=dtype, requires_grad=True)
        exact = torch.tensor(NLL, dtype=torch.float64, requires_grad=True)
        found = wrapped(tricks, values).weighted()["crf"]
        expected = torch.stack([plain(value, length) for value, length in zip(exact, LENGTHS, strict=True)])
        (ours,) = torch.autograd.grad(found.sum(), values)
        (theirs,) = torch.autograd.grad(expected.sum(), exact)
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance * 1e-4)
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance * 1e-4)
        assert not torch.allclose(found, values, rtol=1e-3)
        assert not torch.allclose(ours, torch.ones_like(ours), rtol=1e-3)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("normalise", ["sequence", "token"])
def test_focal(gamma: float, normalise: str) -> None:
    settings = {"gamma": gamma, "normalise": normalise}
    check({"focal": settings}, lambda nll, n: reference.focal(nll, gamma, n if normalise == "token" else 1))


def test_focal_turns_down_what_is_known_by_heart() -> None:
    values = torch.tensor([0.01, 0.1, 1.0, 5.0, 20.0], requires_grad=True)

    def loss(batch: Any) -> Loss:
        return Loss({"crf": values}, None)

    focal = trick_class("focal")(settings=trick_class("focal").Settings())
    (slopes,) = torch.autograd.grad(focal.wrap_loss(loss, tiny.toy())(None).values["crf"].sum(), values)
    assert slopes.tolist() == pytest.approx([0.0003, 0.026, 0.86, 1.05, 1.00], abs=0.005)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_of_a_sure_unit_has_a_gradient(gamma: float) -> None:
    values = torch.tensor([0.0, -1e-6, 1e-12, 1.0, 200.0, 20.0], requires_grad=True)  # rounding may pass 0
    (slopes,) = torch.autograd.grad(wrapped({"focal": {"gamma": gamma}}, values).values["crf"].sum(), values)
    assert slopes.isfinite().all()
    assert slopes[4] == pytest.approx(1.0)


@pytest.mark.parametrize("epsilon", [-0.5, 1.0, 4.0])
def test_poly(epsilon: float) -> None:
    check({"poly": {"epsilon": epsilon}}, lambda nll, _: reference.poly(nll, nll, epsilon))


@pytest.mark.parametrize("level", [0.02, 0.3])
def test_flooding(level: float) -> None:
    check({"flooding": {"level": level}}, lambda nll, n: reference.flooded(nll, level, n))


def test_flooding_turns_the_gradient_of_what_is_below() -> None:
    values = torch.tensor(NLL, requires_grad=True)
    (slopes,) = torch.autograd.grad(wrapped({"flooding": {"level": 0.05}}, values).values["crf"].sum(), values)
    assert slopes.tolist() == [-1.0 if nll / n < 0.05 else 1.0 for nll, n in zip(NLL, LENGTHS, strict=True)]
    assert len(slopes.unique()) == 2


OFF = {"focal": {"gamma": 0.0}, "poly": {"epsilon": 0.0}, "flooding": {"level": 0.0}}


@pytest.mark.parametrize("name", OFF)
def test_each_can_be_set_to_change_nothing(name: str) -> None:
    values = torch.tensor(NLL)
    torch.testing.assert_close(wrapped({name: OFF[name]}, values).values["crf"], values)
    assert not torch.allclose(wrapped({name: {}}, values).values["crf"], values, rtol=1e-3)


ALL = {"flooding": {"level": 0.05}, "poly": {"epsilon": 2.0}, "focal": {"gamma": 2.0}}


def nested(nll: Tensor, length: int) -> Tensor:
    return reference.flooded(reference.poly(reference.focal(nll, 2.0), nll, 2.0), 0.05, length)


@pytest.mark.parametrize("order", list(itertools.permutations(ALL)), ids="-".join)
def test_focal_inside_poly_inside_flooding_with_the_probability_of_the_hard_gold(order: tuple[str, ...]) -> None:
    check({name: ALL[name] for name in order}, nested)
    nll = torch.tensor(0.5, dtype=torch.float64)
    focal = reference.focal(nll, 2.0)
    assert reference.poly(focal, nll, 2.0) != reference.poly(focal, focal, 2.0)  # p of what focal gave is another


def test_poly_takes_the_hard_gold_under_a_smoothed_target() -> None:
    hard, smooth = torch.tensor(NLL), torch.tensor(NLL) + 0.7
    found = wrapped({"poly": {"epsilon": 2.0}}, smooth, hard=hard)
    torch.testing.assert_close(found.values["crf"], smooth + 2.0 * (1 - torch.exp(-hard)))
    torch.testing.assert_close(found.gold()["crf"], hard)


def test_class_weights_multiply_what_they_give() -> None:
    values, weights = torch.tensor(NLL), torch.linspace(0.5, 3.0, len(NLL))
    found = wrapped(ALL, values, weights)
    torch.testing.assert_close(found.weighted()["crf"], wrapped(ALL, values).values["crf"] * weights)
    weighted_first = wrapped(ALL, values * weights).values["crf"]
    assert not torch.allclose(found.weighted()["crf"], weighted_first, rtol=1e-2)


# What is refused.


def mistakes(**sections: Any) -> list[str]:
    given = {"data": {"name": "bundled"}, "model": {"name": "bilstm_crf"}} | sections
    try:
        check_recipe(given, name="x", place="x.yaml")
    except RecipeError as error:
        return str(error).splitlines()
    return []


def crf(**fields: Any) -> dict[str, Any]:
    return {"name": "bilstm_crf", **fields}


def training(*tricks: str, **fields: Any) -> dict[str, Any]:
    return {"tricks": dict.fromkeys(tricks), **fields}


REFUSED = [
    (crf(label_smoothing=0.1), training("focal"), ("train.tricks.focal", "model.label_smoothing")),
    (crf(multi_sample_dropout=3), training("r_drop"), ("train.tricks.r_drop", "model.multi_sample_dropout")),
    (crf(), training("gradient_penalty", precision="float16"), ("train.tricks.gradient_penalty", "train.precision")),
    (crf(), training("gradient_penalty", "fgm"), ("gradient_penalty", "fgm")),
    (crf(), training("pgd", "gradient_penalty"), ("gradient_penalty", "pgd")),
    (crf(), training("flooding", "fgm"), ("flooding", "fgm", "easier")),
    (crf(), training("fgm", "pgd"), ("fgm", "pgd", "both attack the same input")),
]
ALLOWED = [
    (crf(label_smoothing=0.1, multi_sample_dropout=3, class_weights=0.5), training("poly", "flooding")),
    (crf(class_weights=0.5, multi_sample_dropout=3), training("focal")),
    (crf(label_smoothing=0.1), training("r_drop", "gradient_penalty")),
    (crf(), training("gradient_penalty", precision="bfloat16")),
    (crf(), training("r_drop")),
    (crf(label_smoothing=0.0), training("focal", "poly", "flooding", "r_drop", "gradient_penalty", "ema")),
]


@pytest.mark.parametrize(("model", "train", "names"), REFUSED)
def test_what_does_not_go_together_is_refused_by_both_names(
    model: dict[str, Any], train: dict[str, Any], names: tuple[str, ...]
) -> None:
    (message,) = mistakes(model=model, train=train)
    for name in names:
        assert name in message
    assert "must not stand together" in message


@pytest.mark.parametrize(("model", "train"), ALLOWED)
def test_what_goes_together_is_taken(model: dict[str, Any], train: dict[str, Any]) -> None:
    assert mistakes(model=model, train=train) == []


def test_all_conflicts_are_shown_at_once() -> None:
    model = crf(label_smoothing=0.1, multi_sample_dropout=2)
    train = training("focal", "r_drop", "fgm", "gradient_penalty", precision="float16")
    assert len(mistakes(model=model, train=train)) == 4


def test_what_tricks_exclude_exists() -> None:
    named = set()
    for name in trick_names():
        for key, reason in trick_class(name).excludes.items():
            path, _, value = key.partition("=")
            section, dot, field = path.partition(".")
            if dot:
                configs = {"train": [TrainSettings], "model": [model_class(each).Config for each in model_names()]}
                fields = [config.model_fields[field] for config in configs[section] if field in config.model_fields]
                assert fields, key
                assert all(not field.default or value for field in fields), key  # off by default
                named.add(path)
            else:
                assert path in (*trick_names(), "free_lb"), key
            assert not reason.endswith(".")
    assert {"model.label_smoothing", "model.multi_sample_dropout", "train.precision"} <= named
