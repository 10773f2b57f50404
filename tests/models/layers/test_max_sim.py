"""MaxSim against three loops: values, gradients, masks, blocks, memory, precision, refusals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hanzoo.models.layers import max_sim as module
from hanzoo.models.layers.max_sim import max_sim, paired_max_sim
from tests.references import matching as reference

WIDTH = 4


def texts(lengths: Sequence[int], seed: int, against: bool = False) -> list[Tensor]:
    """Unit vectors of texts; those of `against` all point away from those that do not."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in lengths:
        vectors = torch.randn(length, WIDTH, generator=generator, dtype=torch.float64)
        if against:
            vectors = -vectors.abs()
        made.append(vectors / vectors.norm(dim=1, keepdim=True))
    return made


def padded(vectors: Sequence[Tensor], more: int, fill: float = 0.5) -> tuple[Tensor, Tensor]:
    seq = max(map(len, vectors)) + more
    tensor = torch.full((len(vectors), seq, WIDTH), fill, dtype=torch.float64)
    mask = torch.zeros(len(vectors), seq, dtype=torch.bool)
    for row, vector in enumerate(vectors):
        tensor[row, : len(vector)] = vector
        mask[row, : len(vector)] = True
    return tensor.requires_grad_(), mask


def by_loops(queries: Tensor, documents: Tensor, query_mask: Tensor, document_mask: Tensor, mean: bool) -> Tensor:
    rows = []
    for query, kept in zip(queries, query_mask, strict=True):
        for document, real in zip(documents, document_mask, strict=True):
            rows.append(reference.max_sim(list(query[kept]), list(document[real]), mean))
    return torch.stack(rows).view(len(queries), len(documents))


lengths = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@settings(max_examples=20, deadline=None)
@given(lengths, lengths, st.integers(0, 2), st.booleans(), st.booleans(), st.sampled_from([None, 1, 2]))
def test_scores_and_gradients_are_those_of_the_loops(
    query_lengths: list[int], document_lengths: list[int], more: int, against: bool, mean: bool, block: int | None
) -> None:
    queries, query_mask = padded(
        [q.abs() for q in texts(query_lengths, 1)] if against else texts(query_lengths, 1), more
    )
    documents, document_mask = padded(texts(document_lengths, 2, against), more)
    found = max_sim(queries, documents, query_mask, document_mask, mean=mean, documents_a_block=block)
    expected = by_loops(queries, documents, query_mask, document_mask, mean)
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)
    if against:
        assert (found < 0).all()
    weights = torch.linspace(-1, 2, found.numel(), dtype=torch.float64).view(found.shape)
    gradients = torch.autograd.grad((found * weights).sum(), [queries, documents])
    by_hand = torch.autograd.grad((expected * weights).sum(), [queries, documents], retain_graph=True)
    for one, other in zip(gradients, by_hand, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-10)
    narrow = max_sim(queries.float(), documents.float(), query_mask, document_mask, mean=mean, documents_a_block=block)
    assert narrow.dtype == torch.float32
    assert torch.allclose(narrow.double(), expected, rtol=1e-5, atol=1e-6)

    pairs = min(len(queries), len(documents))
    alone = paired_max_sim(queries[:pairs], documents[:pairs], query_mask[:pairs], document_mask[:pairs], mean=mean)
    assert torch.allclose(alone, expected.diagonal()[:pairs], rtol=0, atol=1e-10)
    gradients = torch.autograd.grad((alone * weights.flatten()[:pairs]).sum(), [queries, documents])
    by_hand = torch.autograd.grad((expected.diagonal()[:pairs] * weights.flatten()[:pairs]).sum(), [queries, documents])
    for one, other in zip(gradients, by_hand, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-10)


def test_padding_never_wins_where_all_similarities_are_negative() -> None:
    queries, query_mask = padded([q.abs() for q in texts([3, 2], 1)], 0)
    bare, bare_mask = padded(texts([3, 3], 2, against=True), 0)
    wide, wide_mask = padded(texts([3, 3], 2, against=True), 4, fill=0.0)
    expected = max_sim(queries, bare, query_mask, bare_mask)
    assert torch.equal(max_sim(queries, wide, query_mask, wide_mask), expected)
    assert torch.equal(
        paired_max_sim(queries, wide, query_mask, wide_mask), paired_max_sim(queries, bare, query_mask, bare_mask)
    )
    assert (expected < -0.1).all()
    # the control: what multiplies by 0 says 0 as soon as there is any padding
    wrong = reference.multiplied_max_sim(list(queries[0]), list(wide[0]), wide_mask[0].tolist())
    assert wrong.item() == 0.0
    right = reference.multiplied_max_sim(list(queries[0]), list(bare[0]), bare_mask[0].tolist())
    assert torch.allclose(right, expected[0, 0], rtol=0, atol=1e-10)


def test_tokens_in_the_middle_can_be_skipped() -> None:
    queries, query_mask = padded(texts([3], 1), 0)
    documents, document_mask = padded(texts([4], 2), 0)
    document_mask[0, 1] = False
    found = max_sim(queries, documents, query_mask, document_mask)
    kept, kept_mask = padded([documents.detach()[0, [0, 2, 3]]], 0)
    assert torch.allclose(found, max_sim(queries, kept, query_mask, kept_mask), rtol=0, atol=1e-12)
    document_mask[0, 1] = True
    queries = documents[:, 1:2]  # the best token is the one that was skipped
    assert max_sim(queries, documents, query_mask[:, :1], document_mask).item() == pytest.approx(1.0)


def test_the_mean_does_not_depend_on_the_length_of_a_query() -> None:
    queries, query_mask = padded(texts([2], 1), 0)
    documents, document_mask = padded(texts([4], 2), 0)
    twice, both = torch.cat([queries, queries], dim=1), torch.cat([query_mask, query_mask], dim=1)
    once = max_sim(queries, documents, query_mask, document_mask, mean=True)
    assert torch.allclose(max_sim(twice, documents, both, document_mask, mean=True), once, rtol=0, atol=1e-12)
    assert not torch.allclose(max_sim(twice, documents, both, document_mask), once, rtol=0.1)


# Memory.


class LargestTensor(TorchDispatchMode):
    """How many numbers the largest result of any operation holds."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


def largest(block: int | None) -> tuple[int, int]:
    """The largest tensor of a pass there and back, and the numbers that are kept between the two."""
    queries, query_mask = padded(texts([4] * 6, 1), 0)
    documents, document_mask = padded(texts([8] * 10, 2), 0)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 8
        return tensor

    with LargestTensor() as seen:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            scores = max_sim(queries, documents, query_mask, document_mask, documents_a_block=block)
        scores.sum().backward()
    return seen.numbers, sum(kept.values())


def test_no_tensor_is_larger_than_a_block_and_no_similarity_is_kept() -> None:
    whole = 6 * 4 * 10 * 8
    numbers, kept = largest(1)
    assert numbers <= max(whole // 10, 10 * 8 * WIDTH)  # a block, or the documents themselves
    assert kept < whole / 2
    assert largest(None)[0] == whole  # the control: one block


def test_blocks_are_chosen_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, query_mask = padded(texts([4] * 6, 1), 0)
    documents, document_mask = padded(texts([8] * 10, 2), 0)
    whole = max_sim(queries, documents, query_mask, document_mask)
    monkeypatch.setattr(module, "SIMILARITIES_A_BLOCK", 6 * 4 * 8 * 3)
    with torch.no_grad(), LargestTensor() as seen:
        found = max_sim(queries, documents, query_mask, document_mask)
    assert seen.numbers == 6 * 4 * 8 * 3
    assert torch.allclose(found, whole, rtol=0, atol=1e-12)


def test_second_derivatives() -> None:
    queries, query_mask = padded(texts([2, 3], 1), 0)
    documents, document_mask = padded(texts([3, 2, 1], 2), 0)

    def score(q: Tensor, d: Tensor) -> Tensor:
        return max_sim(q, d, query_mask, document_mask, documents_a_block=2)

    assert torch.autograd.gradgradcheck(score, (queries, documents))


# Precision.


def test_half_precision_and_autocast_are_scored_in_float32() -> None:
    queries, query_mask = padded(texts([30], 1), 0)
    documents, document_mask = padded(texts([40, 20], 2), 0)
    rounded = [queries.detach().bfloat16(), documents.detach().bfloat16()]
    expected = max_sim(rounded[0].double(), rounded[1].double(), query_mask, document_mask)
    found = max_sim(rounded[0], rounded[1], query_mask, document_mask)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, rtol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(max_sim(rounded[0], rounded[1], query_mask, document_mask), found)
        pairs = paired_max_sim(rounded[0], rounded[1][:1], query_mask, document_mask[:1])
    assert torch.allclose(pairs, found[0, :1], rtol=1e-5)
    in_half = (rounded[0] @ rounded[1][0].T).max(-1).values.sum()
    assert not torch.allclose(in_half.double(), expected[0, 0], rtol=1e-5)  # the control


# Refusals.


def test_what_has_no_token_is_refused() -> None:
    queries, query_mask = padded(texts([2, 2], 1), 0)
    documents, document_mask = padded(texts([3, 3], 2), 0)
    for function in (max_sim, paired_max_sim):
        with pytest.raises(ValueError, match="document 1 must have a token that counts, but has none"):
            function(queries, documents, query_mask, document_mask & torch.tensor([[True], [False]]))
        with pytest.raises(ValueError, match="query 0 must have a token that counts, but has none"):
            function(queries, documents, query_mask & torch.tensor([[False], [True]]), document_mask)


def test_wrong_shapes_are_refused() -> None:
    queries, query_mask = padded(texts([2, 2], 1), 0)
    documents, document_mask = padded(texts([3, 3, 3], 2), 0)
    with pytest.raises(ValueError, match=r"document_mask must have shape \(3, 3\)"):
        max_sim(queries, documents, query_mask, document_mask[:, :1])
    with pytest.raises(ValueError, match=r"query_mask must be bool, but is torch.int64"):
        max_sim(queries, documents, query_mask.long(), document_mask)
    with pytest.raises(ValueError, match="documents must be 2, one a query, but are 3"):
        paired_max_sim(queries, documents, query_mask, document_mask)
    with pytest.raises(ValueError, match="documents_a_block must be at least 1, but is 0"):
        max_sim(queries, documents, query_mask, document_mask, documents_a_block=0)
