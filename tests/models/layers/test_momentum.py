"""Weights that follow a module's: how fast, what they give, what they leave as it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hanzoo.models.layers.momentum import MomentumWeights


def module(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))


def moved(followed: nn.Module, seed: int) -> nn.Module:
    """The module with other weights."""
    followed.load_state_dict(module(seed).state_dict())
    return followed


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_they_follow_as_the_momentum_says(momentum: float) -> None:
    followed = module(0)
    weights = MomentumWeights(followed, momentum)
    expected = {name: parameter.detach().double() for name, parameter in followed.named_parameters()}
    start = {name: tensor.clone() for name, tensor in weights.weights().items()}
    for seed in (1, 2):
        weights.follow(moved(followed, seed))
        for name, parameter in followed.named_parameters():
            expected[name] = momentum * expected[name] + (1 - momentum) * parameter.detach().double()
    for name, tensor in weights.weights().items():
        assert torch.allclose(tensor.double(), expected[name], rtol=0, atol=1e-6), name
        if momentum == 1:
            assert torch.equal(tensor, start[name])
        elif momentum == 0:
            assert torch.equal(tensor, followed.get_parameter(name))
        else:
            assert not torch.allclose(tensor, start[name], rtol=0, atol=1e-3)
            assert not torch.allclose(tensor, followed.get_parameter(name), rtol=0, atol=1e-3)


def test_a_run_has_no_dropout_no_gradient_and_leaves_the_module_as_it_is() -> None:
    followed = module(0).train()
    followed[2].eval()  # a part that is not in training, as a frozen one
    weights = MomentumWeights(followed)
    inputs = torch.randn(5, 3)
    expected = module(0).eval()(inputs)
    moved(followed, 1)
    found = weights.run(followed, inputs)
    assert torch.equal(found, expected)
    assert not found.requires_grad
    assert [each.training for each in followed.modules()] == [True, True, True, False]
    assert torch.equal(followed[0].weight, module(1)[0].weight)
    assert not torch.allclose(module(1).eval()(inputs), expected, rtol=0.1)  # the control


def test_a_run_that_fails_leaves_the_module_in_training() -> None:
    followed = module(0).train()
    with pytest.raises(RuntimeError):
        MomentumWeights(followed).run(followed, torch.randn(5, 7))
    assert followed.training
    assert followed[1].training


def test_they_go_on_from_their_state_and_are_no_part_of_a_model() -> None:
    followed = module(0)
    weights, resumed = MomentumWeights(followed), MomentumWeights(moved(module(0), 5))
    weights.follow(moved(followed, 1))
    for name, tensor in resumed.training_state().items():  # as the trainer does
        tensor.copy_(weights.training_state()[name])
    for each in (weights, resumed):
        each.follow(moved(followed, 2))
    for name, tensor in weights.weights().items():
        assert torch.equal(resumed.weights()[name], tensor), name
    assert not list(weights.parameters())
    assert not weights.state_dict()


def test_a_wrong_momentum_is_refused() -> None:
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\], but is 1.5"):
        MomentumWeights(module(0), 1.5)
