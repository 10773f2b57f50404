"""InfoNCE against the loop over anchors: directions, negatives of all kinds, masks, the queue, R-Drop."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hanzoo.data.document import Pair, Triple, texts_of
from hanzoo.errors import RecipeError
from hanzoo.models.layers.memory_queue import MemoryQueue
from hanzoo.models.layers.similarity import cosine_similarities
from hanzoo.models.layers.text_matcher import text_number
from hanzoo.models.objectives.info_nce import InfoNCE, known_matches
from tests.models.objectives.agreement import agree, differ, random_numbers
from tests.references import matching as reference

TEMPERATURE = 0.2


def by_loops(scores: Tensor, removed: Tensor | None = None, positives: Tensor | None = None) -> Tensor:
    rows = []
    for number, row in enumerate(scores):
        gone = [] if removed is None else removed[number].nonzero().flatten().tolist()
        positive = number if positives is None else int(positives[number])
        rows.append(reference.info_nce(list(row), positive, TEMPERATURE, gone))
    return torch.stack(rows)


def random_mask(*shape: int, seed: int = 0) -> Tensor:
    return random_numbers(*shape, seed=seed) > 0.3


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 3), st.booleans())
def test_losses_are_those_of_the_loop(rows: int, negatives: int, queued: int, masked: bool) -> None:
    if rows + negatives + queued < 2:
        return
    scores, extra = random_numbers(rows, rows + negatives, seed=1), random_numbers(rows, queued, seed=2)
    removed = random_mask(rows, rows + negatives, seed=3) if masked else None
    counts = ~random_mask(rows, queued, seed=4) if masked else None
    objective = InfoNCE(TEMPERATURE)
    gone = torch.cat([removed, ~counts], dim=1) if removed is not None and counts is not None else None
    if queued:
        agree(
            lambda s, e: objective.losses(s, None, removed, extra=e, extra_mask=counts)["info_nce"],
            lambda s, e: by_loops(torch.cat([s, e], dim=1), gone),
            scores,
            extra,
        )
    elif rows + negatives > 1:
        agree(lambda s: objective.losses(s, None, removed)["info_nce"], lambda s: by_loops(s, removed), scores)


def test_both_directions_are_the_mean_of_both() -> None:
    scores, removed = random_numbers(4, 7), random_mask(4, 7)
    one, both = InfoNCE(TEMPERATURE), InfoNCE(TEMPERATURE, both_directions=True)

    def expected(s: Tensor) -> Tensor:  # hard negatives are candidates of anchors, and ask for none
        return (by_loops(s, removed) + by_loops(s[:, :4].T, removed[:, :4].T)) / 2

    agree(lambda s: both.losses(s, None, removed)["info_nce"], expected, scores)
    differ(
        lambda s: both.losses(s, None, removed)["info_nce"], lambda s: one.losses(s, None, removed)["info_nce"], scores
    )


@pytest.mark.parametrize("both_directions", [False, True])
def test_rows_of_one_rank_are_those_of_the_whole_batch(both_directions: bool) -> None:
    """Two ranks of three rows: each has its own anchors, all documents and, for the way back, all anchors."""
    objective = InfoNCE(TEMPERATURE, both_directions)
    scores, removed = random_numbers(6, 8), random_mask(6, 8)
    whole = objective.losses(scores, None, removed)["info_nce"]
    parts = []
    for first in (0, 3):
        here = slice(first, first + 3)
        back = (scores[:, here].T, removed[:, here].T) if both_directions else (None, None)
        positives = torch.arange(first, first + 3)
        values = objective.losses(
            scores[here], positives, removed[here], reverse=back[0], reverse_false_negatives=back[1]
        )
        parts.append(values["info_nce"])
    assert torch.allclose(torch.cat(parts), whole, rtol=0, atol=1e-12)


def test_all_views_with_each_other_are_nt_xent() -> None:
    scores = random_numbers(6, 6)
    itself, twins = torch.eye(6, dtype=torch.bool), torch.tensor([3, 4, 5, 0, 1, 2])
    objective = InfoNCE(TEMPERATURE)
    agree(
        lambda s: objective.losses(s, twins, itself)["info_nce"],
        lambda s: torch.stack(
            [reference.info_nce(list(row), int(twins[i]), TEMPERATURE, [i]) for i, row in enumerate(s)]
        ),
        scores,
    )
    differ(
        lambda s: objective.losses(s, twins, itself)["info_nce"],
        lambda s: objective.losses(s, twins)["info_nce"],
        scores,
    )


def test_the_own_positive_is_never_removed() -> None:
    objective, scores = InfoNCE(TEMPERATURE), random_numbers(3, 3)
    ids = torch.tensor([7, 7, 9])  # the same text twice
    same = ids[:, None] == ids[None, :]
    found = objective.losses(scores, None, same)["info_nce"]
    assert torch.allclose(found, by_loops(scores, same & ~torch.eye(3, dtype=torch.bool)), rtol=0, atol=1e-12)
    assert not torch.allclose(found[:2], objective.losses(scores)["info_nce"][:2], rtol=1e-3)
    assert torch.equal(found[2], objective.losses(scores)["info_nce"][2])


def test_a_row_without_negatives_is_zero_and_is_named() -> None:
    objective, scores = InfoNCE(TEMPERATURE), random_numbers(3, 3).requires_grad_()
    removed = torch.zeros(3, 3, dtype=torch.bool)
    removed[1] = True
    losses = objective.losses(scores, None, removed)["info_nce"]
    assert losses[1].item() == 0.0
    (gradient,) = torch.autograd.grad(losses.sum(), scores)
    assert gradient.isfinite().all()
    assert not gradient[1].any()
    assert gradient[0].all()


def test_the_queue_gives_negatives_that_are_of_other_texts() -> None:
    queue, objective = MemoryQueue(4, 3), InfoNCE(TEMPERATURE)
    anchors, documents = random_numbers(2, 3, seed=5), random_numbers(2, 3, seed=6)
    past = random_numbers(3, 3, seed=7)
    queue.push(past, torch.tensor([10, 11, 12]))
    scores = cosine_similarities(anchors, documents)
    negatives = queue.negatives_of(torch.tensor([11, 20]))
    found = objective.losses(scores, extra=cosine_similarities(anchors, queue.vectors), extra_mask=negatives)[
        "info_nce"
    ]
    for row, kept in enumerate([[0, 2], [0, 1, 2]]):
        others = cosine_similarities(anchors[row : row + 1], past[kept].float())[0].double()
        expected = reference.info_nce([*scores[row], *others], row, TEMPERATURE)
        assert found[row].item() == pytest.approx(expected.item(), rel=1e-6)
    assert (found > objective.losses(scores)["info_nce"]).all()  # the control: they count


def test_temperature() -> None:
    scores = random_numbers(3, 3)
    assert torch.equal(InfoNCE(0.1).losses(scores)["info_nce"], InfoNCE(1.0).losses(scores / 0.1)["info_nce"])
    assert InfoNCE().temperature == 0.05
    with pytest.raises(ValueError, match="temperature must be above 0, but is 0"):
        InfoNCE(0)


def test_half_precision_is_float32_from_there_on() -> None:
    scores = random_numbers(3, 3).bfloat16()
    found = InfoNCE(0.05).losses(scores)["info_nce"]
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), InfoNCE(0.05).losses(scores.double())["info_nce"], rtol=1e-5, atol=1e-6)


# R-Drop.


def probabilities(row: Tensor, gone: list[int]) -> list[Tensor]:
    return reference.softmax([value / TEMPERATURE for place, value in enumerate(row) if place not in gone])


def test_divergence_is_that_of_the_rows() -> None:
    first, second = random_numbers(3, 5, seed=1), random_numbers(3, 5, seed=2)
    marked = random_mask(3, 5) | torch.eye(3, 5, dtype=torch.bool)  # as equal ids mark it; the own positive stays
    removed = marked & ~torch.eye(3, 5, dtype=torch.bool)
    assert removed.any()
    objective = InfoNCE(TEMPERATURE)

    def expected(one: Tensor, other: Tensor) -> Tensor:
        rows = []
        for p, q, gone in zip(one, other, removed, strict=True):
            out = gone.nonzero().flatten().tolist()
            rows.append(reference.half_symmetric_kl(probabilities(p, out), probabilities(q, out)))
        return torch.stack(rows)

    agree(lambda p, q: objective.divergence(p, q, None, marked)["info_nce"], expected, first, second)
    differ(
        lambda p, q: objective.divergence(p, q, None, marked)["info_nce"],
        lambda p, q: objective.divergence(p, q)["info_nce"],
        first,
        second,
    )
    assert not objective.divergence(first, first, None, marked)["info_nce"].any()


@pytest.mark.parametrize(
    ("keys", "teaches"),
    [
        ([[1, 2], [3, 4]], True),
        ([[1, 2], [1, 2]], False),  # one pair twice
        ([[1, 2], [3, 2]], False),  # two anchors of one text
        ([[1, 2, 5]], True),  # a hard negative
        ([[1], [1]], False),
        ([[1], [2]], True),
    ],
)
def test_a_batch_without_negatives_teaches_nothing(keys: list[list[int]], teaches: bool) -> None:
    batch = SimpleNamespace(keys=torch.tensor(keys))
    assert InfoNCE().teaches(batch) is teaches


# Refusals.


def test_a_row_alone_is_refused() -> None:
    with pytest.raises(RecipeError, match="info_nce: a batch must hold 2 candidates or more, but holds 1"):
        InfoNCE().losses(random_numbers(1, 1))
    assert InfoNCE().losses(random_numbers(1, 2))["info_nce"].shape == (1,)  # a hard negative teaches
    assert InfoNCE().losses(random_numbers(1, 1), extra=random_numbers(1, 1))["info_nce"].shape == (1,)
    with pytest.raises(
        RecipeError, match="info_nce: a batch must hold 2 candidates"
    ):  # no other anchor for the way back
        InfoNCE(both_directions=True).losses(random_numbers(1, 2))


def test_wrong_shapes_are_refused() -> None:
    objective, scores = InfoNCE(), random_numbers(3, 3)
    with pytest.raises(ValueError, match="candidates must be at least 3, one a row, but are 2"):
        objective.losses(scores[:, :2])
    with pytest.raises(ValueError, match=r"false_negatives must have shape \(3, 3\), but has \(3,\)"):
        objective.losses(scores, None, torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"extra must have shape \(3, 4\), but has \(2, 4\)"):
        objective.losses(scores, extra=random_numbers(2, 4))
    with pytest.raises(ValueError, match="reverse must be left out for one direction"):
        objective.losses(scores, reverse=scores.T)


def test_a_match_is_known_from_both_sides() -> None:
    items = [Pair("甲", "乙"), Pair("丙", "甲"), Triple("丁", "丙", ("戊",))]
    matches = known_matches(items)
    keys = torch.tensor([[text_number(text) for text in texts_of(item)[:2]] for item in items])
    # row by row, among 乙, 甲 and 丙: 甲 has 乙, and 丙 by the second pair; 丙 has 甲, and itself; 丁 has 丙 alone
    assert InfoNCE(matches=matches).known(keys, keys).tolist() == [
        [True, True, True],
        [False, True, True],
        [False, False, True],
    ]
    assert known_matches([Pair("甲", "乙"), Pair("丙", "乙")]) is None  # each anchor has its own positive alone
