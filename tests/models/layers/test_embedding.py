"""The table of two zones: what rows start from, what they give, what moves and what does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hanzoo.data.vectors import Vectors
from hanzoo.data.vocabulary import PADDING, UNKNOWN, StartingRows, build_vocabulary
from hanzoo.models.layers.embedding import VocabularyEmbedding

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(num_trained: int = 5, dimension: int = 3, num_frozen: int = 4) -> VocabularyEmbedding:
    """Return a table in which no two rows are equal."""
    embedding = VocabularyEmbedding(num_trained, dimension, num_frozen)
    frozen = torch.randn(num_frozen, dimension, generator=seeded(7)).half().numpy()
    trained = np.full((num_trained, dimension), np.nan, dtype=np.float32)
    embedding.initialise(StartingRows(trained, frozen), seeded())
    return embedding


def reference(embedding: VocabularyEmbedding, ids: Tensor) -> Tensor:
    """Look up row by row in one long float32 table."""
    table = torch.cat([embedding.weight.detach(), embedding.frozen.float()])
    return torch.stack([torch.stack([table[row] for row in line.tolist()]) for line in ids])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "ids", [[[2, 4, 1], [3, 0, 0]], [[2, 8, 5], [6, 0, 0]], [[5, 6, 7], [8, 5, 5]]], ids=["trained", "both", "frozen"]
)
def test_forward_equals_one_long_table(device: str, ids: list[list[int]]) -> None:
    embedding = filled().to(device)
    rows = torch.tensor(ids, device=device)
    output = embedding(rows)
    assert output.dtype == torch.float32
    assert torch.equal(output.cpu(), reference(embedding.cpu(), rows))
    assert torch.equal(output[rows == PADDING], torch.zeros_like(output[rows == PADDING]))


def test_rows_differ_and_outside_is_an_error() -> None:
    embedding = filled()
    every = embedding(torch.arange(9))
    assert len({tuple(row) for row in every.tolist()}) == 9
    with pytest.raises(IndexError):
        embedding(torch.tensor([9]))
    with pytest.raises(IndexError):
        VocabularyEmbedding(5, 3)(torch.tensor([5]))


@pytest.mark.parametrize("device", DEVICES)
def test_gradient_reaches_trained_rows_only_and_is_dense(device: str) -> None:
    embedding = filled().to(device)
    ids = torch.tensor([[2, 2, 8], [1, 0, 0]], device=device)
    (embedding(ids) * torch.arange(1.0, 7.0, device=device).reshape(2, 3, 1)).sum().backward()
    gradient = embedding.weight.grad
    assert gradient is not None
    assert gradient.layout == torch.strided
    expected = torch.zeros(5, 3)
    expected[2], expected[1] = 1 + 2, 4  # padding (5, 6) and the frozen row (3) give nothing
    assert torch.equal(gradient.cpu(), expected)
    assert [name for name, _ in embedding.named_parameters()] == ["weight"]

    short = embedding(torch.tensor([[2, 0, 0]], device=device)).sum()  # without a frozen row
    expected = torch.zeros(5, 3)
    expected[2] = 1
    (gradient,) = torch.autograd.grad(short, embedding.weight)
    assert torch.equal(gradient.cpu(), expected)


def test_padding_and_frozen_rows_do_not_move_in_training() -> None:
    embedding = filled()
    before = {name: value.clone() for name, value in embedding.state_dict().items()}
    optimizer = torch.optim.AdamW(embedding.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        embedding(torch.tensor([[2, 8, 0, 1]])).square().sum().backward()
        optimizer.step()
    assert torch.equal(embedding.weight[PADDING], torch.zeros(3))
    assert torch.equal(embedding.frozen, before["frozen"])
    assert not torch.equal(embedding.weight[UNKNOWN], before["weight"][UNKNOWN])


def test_output_can_be_perturbed_by_a_hook() -> None:
    embedding = filled()
    ids = torch.tensor([[2, 8]])
    delta = torch.zeros(1, 2, 3, requires_grad=True)
    plain = embedding(ids)
    handle = embedding.register_forward_hook(lambda module, arguments, output: output + delta)
    embedding(ids).square().sum().backward()
    handle.remove()
    assert delta.grad is not None
    assert torch.equal(delta.grad, 2 * plain)  # frozen positions are attacked as well


def test_float32_under_autocast_and_float64_on_request() -> None:
    embedding = filled()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert embedding(torch.tensor([[2, 8]])).dtype == torch.float32
    assert embedding.double()(torch.tensor([[2, 8]])).dtype == torch.float64


# ---- what rows start from

VECTORS = Vectors(
    ("中", "国", "犬"),
    np.array([[1.2345678, 2, 3], [3, 2, -1], [0.1, 0.2, 0.3]], dtype=np.float32),
    "0" * 64,
    "some.vec",
)


def test_from_the_file_to_the_output() -> None:
    vocabulary, start = build_vocabulary("中中国魑", VECTORS, length=1)
    embedding = VocabularyEmbedding(vocabulary.num_trained_rows, 3, vocabulary.num_frozen_rows)
    embedding.initialise(start, seeded())
    output = embedding(torch.from_numpy(vocabulary.encode("中国犬魑龘")[None]))[0]
    assert torch.equal(output[:2], torch.from_numpy(VECTORS.matrix[:2]))  # seen in training: exactly the file's vector
    assert torch.equal(output[2], torch.from_numpy(VECTORS.matrix[2]).half().float())  # not seen: rounded to float16
    assert not torch.equal(output[2], torch.from_numpy(VECTORS.matrix[2]))
    assert torch.equal(output[4], torch.from_numpy(VECTORS.matrix[:2].mean(axis=0)))  # unknown: the mean of the known
    assert bool(output[3].any())
    assert not torch.equal(output[3], output[4])
    assert torch.equal(embedding.weight[PADDING], torch.zeros(3))


def test_rows_without_vectors_have_the_spread_of_the_known_ones() -> None:
    trained = np.full((4002, 16), np.nan, dtype=np.float32)
    trained[2:2002] = np.random.default_rng(1).normal(scale=5, size=(2000, 16))
    embedding = VocabularyEmbedding(4002, 16)
    embedding.initialise(StartingRows(trained, np.zeros((0, 16), dtype=np.float16)), seeded())
    drawn = embedding.weight[2002:].detach()
    assert float(drawn.square().mean().sqrt()) == pytest.approx(5, rel=0.02)
    assert float(drawn.abs().max()) <= 5.05 * 3**0.5  # uniform, not normal
    assert torch.equal(embedding.weight[2:2002], torch.from_numpy(trained[2:2002]))


@pytest.mark.parametrize(
    "start", [None, StartingRows(np.full((4002, 16), np.nan, np.float32), np.zeros((0, 16), np.float16))]
)
def test_rows_without_any_vector(start: StartingRows | None) -> None:
    embedding = VocabularyEmbedding(4002, 16)
    embedding.initialise(start, seeded())
    weight = embedding.weight.detach()
    limit = (3 / 16) ** 0.5
    assert 0.99 * limit < float(weight.abs().max()) <= limit
    assert float(weight.square().mean().sqrt()) == pytest.approx(0.25, rel=0.02)
    assert bool(weight[UNKNOWN].any())
    assert not bool(weight[PADDING].any())


def test_vectors_that_are_all_zero_do_not_make_the_others_zero() -> None:
    embedding = VocabularyEmbedding(4, 3)
    trained = np.array([[0] * 3, [np.nan] * 3, [0] * 3, [np.nan] * 3], dtype=np.float32)
    embedding.initialise(StartingRows(trained, np.zeros((0, 3), dtype=np.float16)), seeded())
    assert bool(embedding.weight[3].all())


def test_the_generator_decides() -> None:
    def weight(seed: int) -> Tensor:
        embedding = VocabularyEmbedding(10, 4)
        embedding.initialise(None, seeded(seed))
        return embedding.weight.detach()

    assert torch.equal(weight(1), weight(1))
    assert not torch.equal(weight(1), weight(2))
    state = torch.random.get_rng_state()
    weight(1)
    assert torch.equal(torch.random.get_rng_state(), state)  # torch's own generator is not touched
    VocabularyEmbedding(10, 4).initialise(None)
    assert not torch.equal(torch.random.get_rng_state(), state)  # but is what draws where none is given


def test_state_dict_holds_both_zones() -> None:
    embedding = filled()
    state = embedding.state_dict()
    assert {name: value.dtype for name, value in state.items()} == {"weight": torch.float32, "frozen": torch.float16}
    other = VocabularyEmbedding(5, 3, 4)
    assert not torch.equal(other(torch.arange(9)), embedding(torch.arange(9)))
    other.load_state_dict(state)
    assert torch.equal(other(torch.arange(9)), embedding(torch.arange(9)))


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_trained >= 2 .* but are 1, 3, 0"):
        VocabularyEmbedding(1, 3)
    embedding = VocabularyEmbedding(5, 3, 4)
    trained, frozen = np.zeros((5, 3), dtype=np.float32), np.zeros((4, 3), dtype=np.float16)
    with pytest.raises(ValueError, match=r"trained rows must be of shape \(5, 3\), but are \(4, 3\)"):
        embedding.initialise(StartingRows(trained[:4], frozen))
    with pytest.raises(ValueError, match=r"frozen rows must be of shape \(4, 3\), but are \(1, 3\)"):
        embedding.initialise(StartingRows(trained, frozen[:1]))


def test_deterministic_algorithms_are_enough() -> None:
    embedding = filled()
    torch.use_deterministic_algorithms(True)
    try:
        embedding(torch.tensor([[2, 8, 2]])).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert embedding.weight.grad is not None
