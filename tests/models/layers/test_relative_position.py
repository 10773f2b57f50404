"""Relative attention over a lattice against the loops over pairs: values, gradients, blocks, padding, precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from hanzoo.data.lattice import Lattice
from hanzoo.models.layers import relative_position as module
from hanzoo.models.layers import relative_products as products
from hanzoo.models.layers.relative_position import RelativeAttention
from hanzoo.models.layers.relative_products import relative_scores
from tests.references import flat as reference

WIDTH, HEADS = 12, 2  # six numbers a head
TEXTS = ("南京市长江大桥", "长江", "北市长")  # seven words, one, one
WORDS = ("南京", "南京市", "市长", "长江", "大桥", "长江大桥", "江大桥", "北京")
OPTIONS: list[dict[str, bool]] = [
    {},
    {"four_positions": False},
    {"key_projection": False},
    {"output_projection": False},
    {"scaled": False},
    {"four_positions": False, "key_projection": False, "output_projection": False, "scaled": False},  # the release
]
Values = dict[str, Tensor]


class Lattices(NamedTuple):
    """Texts of one batch: what stands in their columns, with noise at padding, and where."""

    hidden: Tensor
    positions: Lattice
    spans: list[list[tuple[int, int]]]
    lengths: list[int]


def lattices(
    texts: Sequence[str] = TEXTS, words: Sequence[str] = WORDS, seq: int = 0, most: int = 0, move: int = 0
) -> Lattices:
    """The lattices of texts; a character or word has the same vector in however many columns.

    Args:
        texts: of the batch.
        words: that are looked for.
        seq, most: columns for characters and words; 0 = as many as are needed.
        move: characters that the last word of the first text stands further right.
    """
    spans = [[(start, end) for start, end, _ in reference.matches(text, words)] for text in texts]
    if move:
        start, end = spans[0][-1]
        spans[0][-1] = (start + move, end + move)
    lengths = [len(text) for text in texts]
    seq, most = seq or max(lengths), most or max(map(len, spans))
    arrays = [np.array(row, dtype=np.int64).reshape(-1, 2).T for row in spans]
    positions = Lattice.of(lengths, [(starts, ends) for starts, ends in arrays], seq, most)
    generator = torch.Generator().manual_seed(11)
    hidden = torch.randn(len(texts), 40, WIDTH, generator=generator, dtype=torch.float64)
    hidden = torch.cat([hidden[:, :seq], hidden[:, 20 : 20 + most]], dim=1)
    return Lattices(hidden.requires_grad_(), positions, spans, lengths)


def in_float32(batch: Lattices) -> Lattices:
    return batch._replace(hidden=batch.hidden.detach().float().requires_grad_())


def attention(heads: int = HEADS, **options: Any) -> RelativeAttention:
    torch.manual_seed(3)
    made = RelativeAttention(WIDTH, heads, **options).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def by_module(made: RelativeAttention, batch: Lattices, num_queries: int | None = None) -> Tensor:
    """What the layer says, zeros at padding."""
    output: Tensor = made(batch.hidden, batch.positions, num_queries)
    return output.masked_fill(~batch.positions.mask[:, : output.shape[1], None], 0)


def by_reference(made: RelativeAttention, batch: Lattices, num_queries: int | None = None) -> Tensor:
    """What the loops say of each text, zeros at padding."""
    weights = dict(made.named_parameters())
    if made.key is not None:
        weights["key.bias"] = torch.zeros(WIDTH, dtype=torch.float64)  # type: ignore[assignment]
    seq, rows = batch.positions.seq, []
    for hidden, spans, length in zip(batch.hidden, batch.spans, batch.lengths, strict=True):
        places = [*range(length), *range(seq, seq + len(spans))]
        found = reference.attention(
            hidden[places],
            [*range(length), *(start for start, _ in spans)],
            [*range(length), *(end - 1 for _, end in spans)],
            weights,
            num_heads=made.num_heads,
            four_positions=made.four_positions,
            scaled=made.scale != 1.0,
        )
        rows.append(found.new_zeros(len(hidden), WIDTH).index_put((torch.tensor(places),), found))
    return torch.stack(rows)[:, :num_queries]


def with_gradients(output: Tensor, made: RelativeAttention, batch: Lattices) -> Values:
    """The output, and what hidden states and parameters get from a weighted sum of it."""
    weights = torch.linspace(-1, 2, output.numel(), dtype=torch.float64).view_as(output)
    wanted = {"hidden": batch.hidden} | dict(made.named_parameters())
    grads = torch.autograd.grad((output * weights).sum(), list(wanted.values()))
    return {"output": output.detach()} | dict(zip(wanted, grads, strict=True))


def results(made: RelativeAttention, batch: Lattices, num_queries: int | None = None) -> Values:
    return with_gradients(by_module(made, batch, num_queries), made, batch)


def expected_of(made: RelativeAttention, batch: Lattices, num_queries: int | None = None) -> Values:
    return with_gradients(by_reference(made, batch, num_queries), made, batch)


def apart(first: Values, second: Values) -> float:
    """The largest distance of two tensors of the same name, relative to the second's largest number."""
    assert set(first) == set(second)
    return max(
        float((first[name].double() - other.double()).abs().max() / other.double().abs().max())
        for name, other in second.items()
    )


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Lattices], list[int]]:
    """Sets how many queries a block has; what it gives back lists the first query of each block that is computed from now on."""

    def set_to(queries: int, batch: Lattices) -> list[int]:
        monkeypatch.setattr(
            module, "SCORES_A_BLOCK", queries * len(batch.lengths) * HEADS * batch.hidden.shape[1] + HEADS
        )
        seen: list[int] = []
        plain = RelativeAttention._attend_from

        def watched(self: RelativeAttention, first: int, *arguments: Any) -> Tensor:
            seen.append(first)
            return plain(self, first, *arguments)

        monkeypatch.setattr(RelativeAttention, "_attend_from", watched)
        return seen

    return set_to


# Equal to the loops.


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "paper")
@pytest.mark.parametrize("texts", [TEXTS[:1], TEXTS], ids=["one text", "padded"])
@pytest.mark.parametrize("only_characters", [True, False], ids=["characters ask", "all ask"])
def test_equals_the_loops(texts: Sequence[str], options: dict[str, bool], only_characters: bool) -> None:
    made, batch = attention(**options), lattices(texts)
    assert bool(batch.positions.mask.all()) == (len(texts) == 1)
    assert batch.positions.lengths == (0, 1, 2, 3)
    num_queries = batch.positions.seq if only_characters else None
    expected = expected_of(made, batch, num_queries)
    assert min(float(value.abs().max()) for value in expected.values()) > 1e-3  # nothing is compared with zeros
    assert apart(results(made, batch, num_queries), expected) < 1e-10
    assert apart(results(made.float(), in_float32(batch), num_queries), expected) < 1e-5


@pytest.mark.parametrize("only_characters", [True, False])
@pytest.mark.parametrize("most", [0, 2])
def test_equals_the_loops_where_no_text_has_a_word(most: int, only_characters: bool) -> None:
    made, batch = attention(), lattices(["北京市", "长"], words=(), most=most)
    num_queries = batch.positions.seq if only_characters else None
    assert apart(results(made, batch, num_queries), expected_of(made, batch, num_queries)) < 1e-10


@pytest.mark.parametrize("heads", [1, 3, 4, 6])  # of 12, 4, 3, 2 numbers: with and without the loop over four at once
def test_equals_the_loops_with_heads_of_any_width(heads: int) -> None:
    made, batch = attention(heads), lattices(TEXTS[:1])
    assert apart(results(made, batch), expected_of(made, batch)) < 1e-10


def test_what_is_compared_depends_on_everything() -> None:
    """The control: with one thing changed, the outputs are far more than the tolerance apart."""
    made, batch = attention(), lattices()
    found = by_module(made, batch)
    weights = made.state_dict()
    hh, ht, th, tt = weights["fusion.weight"].view(WIDTH, 4, WIDTH).unbind(1)

    def of_other(without: str = "nothing", fusion: Sequence[Tensor] = (hh, ht, th, tt), **options: bool) -> Tensor:
        other = attention(**options)
        kept = {name: value for name, value in weights.items() if not name.startswith(without)}
        other.load_state_dict(kept | {"fusion.weight": torch.cat(list(fusion), dim=1)})
        return by_reference(other, batch)

    assert torch.allclose(of_other(), found, rtol=0, atol=1e-10)
    others = {
        "head and tail swapped": of_other(fusion=[tt, th, ht, hh]),
        "head-tail for tail-head": of_other(fusion=[hh, th, ht, tt]),
        "a word moved by a character": by_reference(made, lattices(move=-1)),
        "two positions": of_other(fusion=[hh, tt], four_positions=False),
        "keys not projected": of_other("key", key_projection=False),
        "output not projected": of_other("output", output_projection=False),
        "not scaled": of_other(scaled=False),
        "by the layer, a word moved": by_module(made, lattices(move=-1)),
    }
    for name, other in others.items():
        assert (other - found).abs().max() > 1e-2, name


def test_few_columns_ask_as_all_do() -> None:
    made, batch = attention(), lattices()
    whole = by_module(made, batch)
    for number in (1, 4, batch.positions.seq, batch.positions.seq + 2, batch.hidden.shape[1]):
        found = by_module(made, batch, number)
        assert found.shape[1] == number
        assert torch.allclose(found, whole[:, :number], rtol=0, atol=1e-12)


# Blocks of queries.


@pytest.mark.parametrize("queries", [1, 3, 5])
@pytest.mark.parametrize("only_characters", [True, False])
def test_blocks_change_nothing(
    blocks: Callable[[int, Lattices], list[int]], queries: int, only_characters: bool
) -> None:
    made, batch = attention(), lattices()
    num_queries = batch.positions.seq if only_characters else None
    whole = results(made, batch, num_queries)
    seen = blocks(queries, batch)
    found = results(made, batch, num_queries)
    firsts = list(range(0, num_queries or batch.hidden.shape[1], queries))
    assert seen[: len(firsts)] == firsts
    assert sorted(seen) == sorted(firsts * 2)  # each once more for the backward pass
    assert apart(found, whole) < 1e-12

    seen.clear()
    with torch.no_grad():
        once = by_module(made, batch, num_queries)
    assert seen == firsts
    assert torch.allclose(once, whole["output"], rtol=0, atol=1e-12)


def test_blocks_draw_the_same_dropout_again(blocks: Callable[[int, Lattices], list[int]]) -> None:
    made, batch = attention(dropout=0.5, output_projection=False), lattices()
    with torch.no_grad():
        made.value.bias.zero_()
    seen = blocks(3, batch)

    def run(seed: int) -> Values:
        torch.manual_seed(seed)
        return results(made.train(), batch)

    first, again, other = run(5), run(5), run(6)
    assert max(seen) > 0
    for name, value in first.items():
        assert torch.equal(again[name], value), name
        assert value.isfinite().all(), name
    assert apart(other, first) > 0.1
    assert apart(results(made.eval(), batch), first) > 0.1

    # The output is linear in the values: <W, dL/dW> = L, if the backward pass has the masks of the forward pass.
    def product(of: Values) -> float:
        return float((made.value.weight.detach() * of["value.weight"]).sum())

    def loss(of: Values) -> float:
        return float((of["output"].flatten() * torch.linspace(-1, 2, of["output"].numel(), dtype=torch.float64)).sum())

    assert product(first) == pytest.approx(loss(first), rel=1e-9)
    assert product(other) != pytest.approx(loss(first), rel=1e-3)


def test_second_derivatives_through_blocks(blocks: Callable[[int, Lattices], list[int]]) -> None:
    """The gradient of the gradient's length, as a gradient penalty takes it."""
    made, batch = attention(), lattices(TEXTS[1:])

    def penalty() -> list[Tensor]:
        (of_hidden,) = torch.autograd.grad(by_module(made, batch).square().sum(), batch.hidden, create_graph=True)
        return list(torch.autograd.grad(of_hidden.square().sum(), list(made.parameters())))

    whole = penalty()
    seen = blocks(2, batch)
    for found, wanted in zip(penalty(), whole, strict=True):
        assert torch.allclose(found, wanted, rtol=0, atol=1e-10 * float(wanted.abs().max()))
        assert wanted.any()
    assert max(seen) > 0


# The products.


@pytest.fixture(params=["matrices", "rows", "some rows, small blocks"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How products with words are made: as they come, or each way for all; in blocks of two queries, or one block."""
    common, queries = {"matrices": (100, 16), "rows": (0, 16), "some rows, small blocks": (11, 2)}[request.param]
    monkeypatch.setattr(products, "COMMON", common)
    monkeypatch.setattr(products, "QUERIES_A_BLOCK", queries)
    return str(request.param)


def pairs(several: bool, first: int, num_queries: int) -> tuple[Tensor, Tensor, Lattice]:
    """Queries of the columns from `first` on, a table of random numbers, and where they stand."""
    batch = lattices()
    positions = batch.positions
    generator = torch.Generator().manual_seed(4)
    kinds = len(positions.lengths)
    shape = (kinds if several else 1, kinds, 2 * positions.seq - 1, HEADS, WIDTH // HEADS)
    queries = torch.randn(3, HEADS, num_queries, WIDTH // HEADS, generator=generator, dtype=torch.float64)
    table = torch.randn(shape, generator=generator, dtype=torch.float64)
    return queries.requires_grad_(), table.requires_grad_(), positions


several_lengths = pytest.mark.parametrize("several", [True, False], ids=["words ask too", "characters ask"])


def test_the_ways_differ(ways: str) -> None:
    _, _, positions = pairs(True, 0, 14)
    blocks = products.plan(positions, 0, 14).blocks
    assert len(positions.lengths) == 4
    by_rows = {"matrices": 0, "rows": 3, "some rows, small blocks": 1}[ways]
    assert {len(block.keys) for block in blocks} == {4 - by_rows}
    assert any(len(block.rows) for block in blocks) == (by_rows > 0)
    assert (len(blocks) > 4) == ("small" in ways)


OF_CHARACTERS = [(0, 7), (2, 3), (4, 3)]
OF_WORDS_TOO = [(0, 14), (5, 6), (9, 2)]


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize(
    ("several", "first", "num_queries"),
    [(several, *columns) for several in (True, False) for columns in OF_CHARACTERS]
    + [(True, *columns) for columns in OF_WORDS_TOO],
)
def test_scores_are_those_by_hand(several: bool, first: int, num_queries: int) -> None:
    queries, table, positions = pairs(several, first, num_queries)
    columns = positions.mask[:, first : first + num_queries]
    real = (columns[:, None, :, None] & positions.mask[:, None, None]).expand(-1, HEADS, -1, -1)
    rows = []
    for b, h, i, j in real.nonzero().tolist():
        shift = int(positions.starts[b, j] - positions.starts[b, first + i]) + positions.seq - 1
        kind = int(positions.kinds[b, first + i]), int(positions.kinds[b, j])
        rows.append(queries[b, h, i] @ table[kind[0], kind[1], shift, h])
    by_hand = torch.stack(rows)
    weights = torch.linspace(-1, 2, len(rows), dtype=torch.float64)
    expected = torch.autograd.grad((by_hand * weights).sum(), [queries, table])
    scores = relative_scores(queries, table, positions, first)
    assert scores.isfinite().all()
    found = scores[real]
    assert torch.allclose(found, by_hand, rtol=0, atol=1e-12)
    grads = torch.autograd.grad((found * weights).sum(), [queries, table])
    for of_found, of_hand in zip(grads, expected, strict=True):
        assert torch.allclose(of_found, of_hand, rtol=0, atol=1e-11)
        assert of_hand.abs().max() > 1
    if first:
        assert not torch.allclose(relative_scores(queries, table, positions, first - 1)[real], by_hand)


@several_lengths
@pytest.mark.usefixtures("ways")
def test_first_and_second_derivatives_of_scores(several: bool) -> None:
    first, num_queries = (5, 6) if several else (3, 4)
    queries, table, positions = pairs(several, first, num_queries)

    def scores(queries: Tensor, table: Tensor) -> Tensor:
        return relative_scores(queries, table, positions, first)

    assert torch.autograd.gradcheck(scores, (queries, table), fast_mode=True)
    assert torch.autograd.gradgradcheck(scores, (queries, table), fast_mode=True)
    assert scores(queries, table).any()


# Padding, lengths, precision.


def test_the_content_of_padding_means_nothing() -> None:
    made, batch = attention(), lattices()
    mask = batch.positions.mask
    plain = results(made, batch)
    other = batch.hidden.detach().clone()
    other[~mask] = other[~mask] * -100 + 7
    starts, kinds = batch.positions.starts.clone(), batch.positions.kinds.clone()
    starts[~mask], kinds[~mask] = 2, 1
    starts[:, :7] = batch.positions.starts[:, :7]
    kinds[:, :7] = 0
    moved = Lattice(starts, kinds, mask, batch.positions.lengths, 7)
    changed = results(made, batch._replace(hidden=other.requires_grad_(), positions=moved))
    for name, value in plain.items():
        assert torch.equal(changed[name], value), name
    assert not changed["hidden"][~mask].any()
    assert not mask.all()

    real = batch.hidden.detach().clone()
    real[0, 0] += 0.1
    assert (by_module(made, batch._replace(hidden=real)) - plain["output"]).abs().max() > 1e-3


@pytest.mark.parametrize(("seq", "most"), [(9, 7), (7, 11), (20, 20)])
def test_the_number_of_columns_means_nothing(seq: int, most: int) -> None:
    made, batch, wide = attention(), lattices(), lattices(seq=seq, most=most)
    columns = [*range(7), *range(seq, seq + 7)]
    assert torch.equal(wide.hidden[:, columns], batch.hidden)
    found, plain = by_module(made, wide), by_module(made, batch)
    assert torch.allclose(found[:, columns], plain, rtol=0, atol=1e-12)


def test_a_text_alone_as_in_company() -> None:
    made, batch = attention(), lattices()
    together = by_module(made, batch)
    for number in range(len(TEXTS)):
        alone = lattices(TEXTS[number : number + 1])
        columns = [*range(alone.lengths[0]), *range(7, 7 + len(alone.spans[0]))]
        output = by_module(made, alone._replace(hidden=batch.hidden[number : number + 1, columns]))
        assert torch.allclose(output[0], together[number, columns], rtol=0, atol=1e-12)


def test_the_order_of_words_means_nothing() -> None:
    made, batch = attention(), lattices(TEXTS[:1])
    starts, ends = np.array(batch.spans[0][::-1]).T
    positions = Lattice.of(batch.lengths, [(starts, ends)], 7, len(starts))
    expected = by_module(made, batch)
    output = made(torch.cat([batch.hidden[:, :7], batch.hidden[:, 7:].flip(1)], dim=1), positions)
    assert torch.allclose(output[:, :7], expected[:, :7], rtol=0, atol=1e-12)
    assert torch.allclose(output[:, 7:], expected[:, 7:].flip(1), rtol=0, atol=1e-12)
    assert (made(batch.hidden, positions) - expected).abs().max() > 1e-2


def test_a_text_longer_than_any_before() -> None:
    """Positions are made on the fly; what the table of a short text has, that of a long one has too."""
    made, length = attention(), 1_500
    by_module(made, lattices(TEXTS[:1]))
    words = np.arange(0, length - 40, 10)
    positions = Lattice.of([length], [(words, words + 31)], length, len(words))
    short = Lattice.of([40], [(np.array([1]), np.array([32]))], 40, 1)
    hidden = torch.randn(1, length + len(words), WIDTH, dtype=torch.float64, requires_grad=True)
    output = made(hidden, positions, length)
    assert output.shape == (1, length, WIDTH)
    assert output.isfinite().all()
    (gradient,) = torch.autograd.grad(output.square().sum(), hidden)
    assert gradient.isfinite().all()
    with torch.no_grad():
        table, of_short = made.table(positions, words_ask=True), made.table(short, words_ask=True)
    assert torch.allclose(table[:, :, length - 40 : length + 39], of_short, rtol=0, atol=1e-12)
    assert not torch.allclose(table[:, :, length - 39 : length + 40], of_short)


def test_bfloat16_comes_close() -> None:
    made, batch = attention().float(), in_float32(lattices())
    plain = results(made, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = by_module(made, batch)
    assert output.dtype == torch.bfloat16
    found = with_gradients(output, made, batch)
    assert all(value.isfinite().all() for value in found.values())
    assert 1e-5 < apart(found, plain) < 0.1


def test_positions_of_texts() -> None:
    batch = lattices(["长江大桥", "北", "江大桥"], seq=5, most=5)
    positions = batch.positions
    assert batch.spans == [[(0, 2), (0, 4), (1, 4), (2, 4)], [], [(0, 3), (1, 3)]]
    assert positions.lengths == (0, 1, 2, 3)
    assert positions.seq == 5
    assert positions.mask[:, : positions.seq].sum(1).tolist() == [4, 1, 3]
    assert positions.mask[:, positions.seq :].sum(1).tolist() == [4, 0, 2]
    assert positions.starts[:, :5].tolist() == [[0, 1, 2, 3, 4]] * 3
    assert positions.starts[:, 5:].tolist() == [[0, 0, 1, 2, 0], [0] * 5, [0, 1, 0, 0, 0]]
    assert positions.kinds[:, :5].tolist() == [[0] * 5] * 3
    assert positions.kinds[:, 5:].tolist() == [[1, 3, 2, 1, 0], [0] * 5, [2, 1, 0, 0, 0]]
    assert positions.mask[:, :5].sum(1).tolist() == [4, 1, 3]
    assert positions.mask[:, 5:].sum(1).tolist() == [4, 0, 2]
    assert positions.mask[0].tolist() == [True] * 4 + [False] + [True] * 4 + [False]
    assert positions.to(torch.device("cpu")) is positions


def test_sinusoids_are_those_of_the_reference() -> None:
    table = module.sinusoids(9, WIDTH, torch.zeros(1, dtype=torch.float64))
    assert table.shape == (19, WIDTH)
    for row, distance in enumerate(range(9, -10, -1)):
        assert torch.allclose(table[row], reference.sinusoids(distance, WIDTH), rtol=0, atol=1e-12)
    assert module.sinusoids(1, 2, torch.zeros(1)).isfinite().all()


@pytest.mark.parametrize(("width", "heads"), [(12, 5), (9, 3)])
def test_sizes_that_cannot_be_are_refused(width: int, heads: int) -> None:
    with pytest.raises(ValueError, match="width must be even and a multiple of num_heads"):
        RelativeAttention(width, heads)
