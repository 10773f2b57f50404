"""Independent tags are the CRF without constraints whose scores are all 0; each method is held against it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hanzoo.data.document import Span
from hanzoo.data.schemes import TagSet
from hanzoo.models.layers.crf import CRF
from hanzoo.models.layers.softmax_tagger import IndependentTags, SoftmaxTagger
from tests import tiny

TAGS = TagSet(("A", "B"), "BIO")
NUM_TAGS = len(TAGS.tags)


@pytest.fixture(params=["all tags", "some tags"])
def both(request: pytest.FixtureRequest) -> tuple[IndependentTags, CRF]:
    softmax, crf = IndependentTags(NUM_TAGS), CRF(NUM_TAGS, batch_first=True)
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.zero_()
    if request.param == "some tags":
        for each in (softmax, crf):
            each.restrict(TAGS.tags_of(["A"]))
    return softmax, crf


def inputs(restricted: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    first, second = torch.randn(2, 4, 7, NUM_TAGS)
    mask = torch.arange(7) < torch.tensor([[7], [1], [4], [6]])
    tags = torch.randint(0, 3, (4, 7)) * mask
    return first, second, tags, mask


def test_it_says_what_that_crf_says(both: tuple[IndependentTags, CRF]) -> None:
    first, second, tags, mask = inputs()
    targets = both[1].marginals(second, mask)
    answers = [
        {
            "likelihood": each.log_likelihood(first, tags, mask),
            "smoothing": each.label_smoothing(first, tags, mask, 0.2),
            "divergence": each.divergence(first, second, mask),
            "marginals": each.marginals(first, mask, 2.0),
            "distillation": each.marginal_divergence(first, targets, mask, 2.0),
            "best": each.viterbi_decode(first, mask)[0],
        }
        for each in both
    ]
    for name, value in answers[0].items():
        assert torch.allclose(value, answers[1][name], atol=1e-5), name
        assert value.abs().max() > 1e-3, name


def test_gradients_are_those_of_that_crf(both: tuple[IndependentTags, CRF]) -> None:
    first, second, tags, mask = inputs()
    found = []
    for each in both:
        leaf = first.clone().requires_grad_()
        values = -each.log_likelihood(leaf, tags, mask) + each.divergence(leaf, second, mask)
        values.sum().backward()
        assert leaf.grad is not None
        found.append(leaf.grad)
    assert torch.allclose(found[0], found[1], atol=1e-5)
    assert not found[0][~mask].any()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_posterior_of_a_span(both: tuple[IndependentTags, CRF], temperature: float) -> None:
    first, _, _, mask = inputs()
    spans = [[Span(1, 3, "A"), Span(5, 7, "A")], [Span(0, 1, "A")], [], [Span(2, 5, "A")]]
    wanted = [[(span.start, span.end, *TAGS.span_tags(span)) for span in row] for row in spans]
    softmax, crf = (each.span_log_posteriors(first, mask, wanted, temperature) for each in both)
    assert [len(row) for row in softmax] == [2, 1, 0, 1]
    for mine, theirs in zip(softmax, crf, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6)


def test_samples_have_the_frequencies_of_the_marginals(both: tuple[IndependentTags, CRF]) -> None:
    first, _, _, mask = inputs()
    draws = np.random.default_rng(1).random((3000, 4, 7))
    counts = torch.stack([both[0].sample(first, mask, draw) for draw in draws])
    assert not counts[:, ~mask].any()
    share = torch.nn.functional.one_hot(counts, NUM_TAGS).float().mean(0)[mask]
    assert torch.allclose(share, both[0].marginals(first, mask)[mask], atol=0.05)
    assert int(both[0].sample(first, mask, np.full((4, 7), 1 - 1e-16)).max()) < (3 if both[0]._restricted else 5)


def test_what_it_chooses_may_be_illegal_and_spans_are_the_legal_ones() -> None:
    tag_set = TagSet(("A",), "BIOES")
    softmax = IndependentTags(len(tag_set.tags))
    path = [tag_set.tags.index(tag) for tag in ("B-A", "E-A", "O", "I-A", "S-A", "B-A")]
    emissions = 5 * torch.nn.functional.one_hot(torch.tensor([path]), len(tag_set.tags)).float()
    (found,) = softmax.viterbi_decode(emissions, torch.ones(1, 6, dtype=torch.bool))[0].tolist()
    assert found == path
    assert tag_set.illegal_positions(found)
    assert tag_set.decode(found) == [Span(0, 2, "A"), Span(4, 5, "A")]


def test_a_tag_that_takes_no_part_is_refused() -> None:
    first, _, _, mask = inputs()
    softmax = IndependentTags(NUM_TAGS)
    softmax.restrict(TAGS.tags_of(["A"]))
    with pytest.raises(ValueError, match="illegal"):
        softmax.log_likelihood(first, torch.full((4, 7), NUM_TAGS - 1), mask)
    for allowed in ([False] * NUM_TAGS, [True]):
        with pytest.raises(ValueError, match="allowed must be"):
            softmax.restrict(allowed)


def test_its_part_of_the_loss_has_its_name(encoders: object) -> None:
    model = tiny.build("encoder_softmax", {"encoder": "tiny-bert", "label_smoothing": 0.1, "class_weights": 1.0})
    assert isinstance(model, SoftmaxTagger)
    batch = model.collate([model.featurize(document) for document in tiny.DOCUMENTS])  # type: ignore[attr-defined]
    output = model(batch)
    for values in (model.losses(output, batch), model.smoothing(output, batch), model.unit_weights(batch)):
        assert values is not None
        assert list(values) == ["softmax"] == list(batch.num_units)
    assert "softmax" not in " ".join(name for name, _ in model.named_parameters())
