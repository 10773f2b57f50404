"""ArcCSE against angles by arccos: margin, its end at 180 degrees, gradients at 0 degrees, triplets, R-Drop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hanzoo.errors import RecipeError
from hanzoo.models.objectives.arccse import ArcCSE
from hanzoo.models.objectives.info_nce import InfoNCE
from tests.models.objectives.agreement import agree, differ, random_numbers
from tests.references import matching as reference

TEMPERATURE = 0.2
DEGREE = math.pi / 180


def by_loops(cosines: Tensor, margin: float) -> Tensor:
    return torch.stack([reference.arccon(list(row), i, margin, TEMPERATURE) for i, row in enumerate(cosines)])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(0, 3), st.sampled_from([0.0, 10 * DEGREE, 0.4]))
def test_arccon_is_that_of_the_angles(rows: int, more: int, margin: float) -> None:
    if rows + more < 2:
        return
    cosines = random_numbers(rows, rows + more, bound=0.9)
    objective = ArcCSE(margin, TEMPERATURE)
    agree(lambda c: objective.losses(c)["arccon"], lambda c: by_loops(c, margin), cosines)


def test_without_a_margin_it_is_info_nce() -> None:
    cosines = random_numbers(4, 4)
    cosines[0, 0], cosines[1, 1], cosines[2, 2] = 1.0, -1.0, 0.9999999
    plain = InfoNCE(0.05).losses(cosines)["info_nce"]
    assert torch.equal(ArcCSE(margin=0.0).losses(cosines)["arccon"], plain)
    assert (ArcCSE().losses(cosines)["arccon"] > plain).all()


def test_the_positive_alone_bears_the_margin() -> None:
    """At 30 degrees and a margin of 10 the positive's logit falls by 2.000."""
    cosines = torch.tensor([[math.cos(30 * DEGREE), 0.2], [0.1, 0.3]], dtype=torch.float64)
    turned = ArcCSE().with_margin(cosines[0, 0])
    assert ((cosines[0, 0] - turned) / 0.05).item() == pytest.approx(2.0, abs=1e-3)
    # two views of each of two texts: the own one is no candidate, and the margin is at the other view, not on the diagonal
    views = random_numbers(4, 4, bound=0.9)
    twins, itself = torch.tensor([2, 3, 0, 1]), torch.eye(4, dtype=torch.bool)
    found = ArcCSE(0.3, TEMPERATURE).losses(views, twins, itself)["arccon"]
    for row in range(4):
        kept = [place for place in range(4) if place != row]
        expected = reference.arccon([views[row, j] for j in kept], kept.index(int(twins[row])), 0.3, TEMPERATURE)
        assert found[row].item() == pytest.approx(expected.item(), abs=1e-10)


def test_the_gradient_is_finite_where_vectors_are_one() -> None:
    cosines = torch.tensor([[1.0, 0.2], [0.1, -1.0]], requires_grad=True)
    ArcCSE().losses(cosines)["arccon"].sum().backward()
    assert cosines.grad is not None
    assert cosines.grad.isfinite().all()
    assert cosines.grad.all()


def test_beyond_180_degrees_the_logit_goes_on_falling() -> None:
    objective = ArcCSE(margin=0.5)
    cosines = torch.cos(torch.linspace(0, math.pi, 400, dtype=torch.float64))
    found = objective.with_margin(cosines)
    assert (found.diff() < 0).all()
    bare = torch.cos(torch.arccos(cosines) + 0.5)  # the control: it rises again
    assert not (bare.diff() < 0).all()
    assert torch.allclose(found[:300], bare[:300], rtol=0, atol=1e-3)
    assert (ArcCSE(margin=math.radians(129.9)).with_margin(cosines).diff() < 0).all()
    objective.margin = math.radians(140)  # the control: what is refused would rise at the seam
    assert not (objective.with_margin(cosines).diff() < 0).all()


@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_triplets_learn_only_where_the_order_is_wrong(margin: float) -> None:
    less, more = random_numbers(6, seed=1), random_numbers(6, seed=2)
    assert (more > less).any()
    assert (more < less - margin).any()
    pairs = random_numbers(2, 2)
    objective = ArcCSE(triplet_weight=0.3, triplet_margin=margin)

    def values(near: Tensor, far: Tensor) -> Tensor:
        return objective.losses(pairs, less_masked=near, more_masked=far)["triplet"]

    def expected(near: Tensor, far: Tensor) -> Tensor:
        rows = [reference.nested_triplet(one, other, margin) for one, other in zip(near, far, strict=True)]
        return 0.3 * torch.stack(rows)

    agree(values, expected, less, more)
    differ(values, lambda near, far: values(far, near), less, more)
    assert set(objective.losses(pairs)) == {"arccon"}


def test_divergence_is_that_of_the_rows_without_the_margin() -> None:
    first, second = random_numbers(3, 3, seed=1), random_numbers(3, 3, seed=2)
    objective = ArcCSE(temperature=TEMPERATURE)

    def expected(one: Tensor, other: Tensor) -> Tensor:
        rows = []
        for p, q in zip(one, other, strict=True):
            softened = [reference.softmax([value / TEMPERATURE for value in row]) for row in (p, q)]
            rows.append(reference.half_symmetric_kl(softened[0], softened[1]))
        return torch.stack(rows)

    agree(lambda p, q: objective.divergence(p, q)["arccon"], expected, first, second)
    own = torch.eye(3, dtype=torch.bool)  # as equal ids mark it: it stays
    agree(lambda p, q: objective.divergence(p, q, None, own)["arccon"], expected, first, second)
    marked = own | own.roll(1, dims=1)
    differ(lambda p, q: objective.divergence(p, q, None, marked)["arccon"], expected, first, second)
    triplets = (
        (random_numbers(4, seed=3), random_numbers(4, seed=4)),
        (random_numbers(4, seed=5), random_numbers(4, seed=6)),
    )
    values = objective.divergence(first, second, first_triplets=triplets[0], second_triplets=triplets[1])
    assert set(values) == {"arccon", "triplet"}
    by_hand = [((a - c) ** 2 + (b - d) ** 2) / 2 for a, b, c, d in zip(*triplets[0], *triplets[1], strict=True)]
    assert torch.allclose(values["triplet"], objective.triplet_weight * torch.stack(by_hand), rtol=0, atol=1e-12)


def test_what_cannot_teach_and_what_cannot_be_is_refused() -> None:
    with pytest.raises(RecipeError, match="arccse: a batch must hold 2 candidates or more, but holds 1"):
        ArcCSE().losses(random_numbers(1, 1))
    with pytest.raises(ValueError, match="candidates must be at least 3, one a row, but are 2"):
        ArcCSE().losses(random_numbers(3, 2))
    with pytest.raises(ValueError, match=r"false_negatives must have shape \(2, 2\), but has \(2,\)"):
        ArcCSE().losses(random_numbers(2, 2), None, torch.zeros(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="must be given together"):
        ArcCSE().losses(random_numbers(2, 2), less_masked=random_numbers(2))
    with pytest.raises(ValueError, match=r"margin must lie in \[0, 2\.269\) radians, but is 2\.3"):
        ArcCSE(margin=2.3)
    with pytest.raises(ValueError, match="temperature must be above 0, but is 0"):
        ArcCSE(temperature=0)
