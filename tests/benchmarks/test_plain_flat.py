"""The plain relative attention of FLAT against the loop over pairs; and the loop's own parts against figures by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from benchmarks.plain_flat import PlainRelativeAttention, sinusoid_table
from tests.references import flat as reference

WIDTH, HEADS, DIM = 8, 2, 4
TEXT = "南京市长江大桥"
WORDS = ("南京", "南京市", "市长", "长江", "大桥", "长江大桥", "江", "北京")
EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-12}
OPTIONS = list(itertools.product([True, False], repeat=3))  # four_positions, key_projection, scaled


class Batch(NamedTuple):
    """Texts of one batch, with noise at padding: as features and as positions."""

    hidden: Tensor
    heads: Tensor
    tails: Tensor
    mask: Tensor

    def text(self, number: int) -> tuple[Tensor, list[int], list[int]]:
        real = self.mask[number]
        return self.hidden[number, real], self.heads[number, real].tolist(), self.tails[number, real].tolist()


def batch_of(texts: Sequence[str]) -> Batch:
    """Lattices of texts."""
    rows = []
    for text in texts:
        found = reference.matches(text, WORDS)
        own = [(i, i) for i in range(len(text))]
        rows.append(own + [(start, end - 1) for start, end, _ in found])
    longest = max(map(len, rows))
    heads = torch.randint(0, 20, (len(rows), longest))
    tails = torch.randint(0, 20, (len(rows), longest))
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, row in enumerate(rows):
        heads[number, : len(row)] = torch.tensor([head for head, _ in row])
        tails[number, : len(row)] = torch.tensor([tail for _, tail in row])
        mask[number, : len(row)] = True
    return Batch(torch.randn(len(rows), longest, WIDTH, dtype=torch.float64, requires_grad=True), heads, tails, mask)


def build(four_positions: bool, key_projection: bool, scaled: bool) -> PlainRelativeAttention:
    options: dict[str, Any] = {"key_projection": key_projection, "scaled": scaled}
    return PlainRelativeAttention(WIDTH, HEADS, four_positions, **options).double()


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters())


def by_reference(module: PlainRelativeAttention, batch: Batch) -> Tensor:
    """What the loops say of each text, with zeros at padding."""
    output = torch.zeros_like(batch.hidden)
    for number in range(len(batch.mask)):
        hidden, heads, tails = batch.text(number)
        rows = reference.attention(
            hidden,
            heads,
            tails,
            weights_of(module),
            num_heads=HEADS,
            four_positions=module.four_positions,
            scaled=module.scaled,
        )
        output = output.index_put((torch.tensor(number), torch.arange(len(rows))), rows)
    return output


def by_module(module: PlainRelativeAttention, batch: Batch) -> Tensor:
    output: Tensor = module(batch.hidden, batch.heads, batch.tails, batch.mask)
    return output.masked_fill(~batch.mask[..., None], 0)


def gradients(output: Tensor, module: nn.Module, batch: Batch) -> list[Tensor]:
    weighted = (output * torch.linspace(-1, 2, output.numel(), dtype=torch.float64).view_as(output)).sum()
    return list(torch.autograd.grad(weighted, [batch.hidden, *module.parameters()]))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


@pytest.mark.parametrize(("four_positions", "key_projection", "scaled"), OPTIONS)
@pytest.mark.parametrize("texts", [[TEXT], ["长江", TEXT[:4], "北"]], ids=["one text", "padded"])
def test_module_equals_the_loops(texts: list[str], four_positions: bool, key_projection: bool, scaled: bool) -> None:
    module, batch = build(four_positions, key_projection, scaled), batch_of(texts)
    assert bool(batch.mask.all()) == (len(texts) == 1)
    found, wanted = by_module(module, batch), by_reference(module, batch)
    torch.testing.assert_close(found, wanted, **EXACT)
    names = ["hidden", *weights_of(module)]
    for name, a, b in zip(names, gradients(found, module, batch), gradients(wanted, module, batch), strict=True):
        torch.testing.assert_close(a, b, **EXACT)
        if name == "key.bias":  # the same for all keys of a query: it cancels in the softmax
            assert b.abs().max() < 1e-12
        else:
            assert b.abs().max() > 1e-6, f"{name} must have a gradient, else it is not compared"


def test_what_is_compared_depends_on_each_option() -> None:
    """The control: with one thing changed the outputs are far more than the tolerance apart."""
    batch = batch_of([TEXT, "长江"])
    module = build(True, True, True)
    found = by_module(module, batch)
    swapped = batch._replace(heads=batch.tails, tails=batch.heads)
    two, unprojected, unscaled = build(False, True, True), build(True, False, True), build(True, True, False)
    weights = module.state_dict()
    unscaled.load_state_dict(weights)
    unprojected.load_state_dict({name: value for name, value in weights.items() if not name.startswith("key.")})
    halves = {**weights, "fusion.weight": weights["fusion.weight"][:, [*range(WIDTH), *range(3 * WIDTH, 4 * WIDTH)]]}
    two.load_state_dict(halves)
    others = {
        "head and tail swapped": by_module(module, swapped),
        "two positions": by_module(two, batch),
        "no key projection": by_module(unprojected, batch),
        "not scaled": by_module(unscaled, batch),
        "nothing masked": by_module(module, batch._replace(mask=torch.ones_like(batch.mask))) * batch.mask[..., None],
    }
    for name, other in others.items():
        assert (other - found).abs().max() > 1e-4, name


def test_swapped_positions_swap_blocks_of_the_fusion() -> None:
    """Swapping heads and tails of all tokens is the same as reordering W_r: hh with tt, ht with th."""
    module, batch = build(True, True, True), batch_of([TEXT])
    swapped = by_module(module, batch._replace(heads=batch.tails, tails=batch.heads))
    hh, ht, th, tt = module.fusion.weight.detach().view(WIDTH, 4, WIDTH).unbind(dim=1)
    module.fusion.weight.data = torch.cat([tt, th, ht, hh], dim=1)
    torch.testing.assert_close(by_module(module, batch), swapped, **EXACT)
    module.fusion.weight.data = torch.cat([tt, ht, th, hh], dim=1)
    assert (by_module(module, batch) - swapped).abs().max() > 1e-4


def test_a_constant_of_the_relative_projection_would_cancel() -> None:
    module, batch = build(True, True, False), batch_of([TEXT])
    before = by_module(module, batch)
    biased = nn.Linear(WIDTH, WIDTH).double()
    biased.weight = module.relative.weight
    module.relative = biased
    with torch.no_grad():
        biased.bias.normal_()
    torch.testing.assert_close(by_module(module, batch), before, **EXACT)
    with torch.no_grad():
        module.position_bias.add_(biased.bias.view(HEADS, -1))
    assert (by_module(module, batch) - before).abs().max() > 1e-4


def test_float32_stays_finite_and_padding_stays_out() -> None:
    module, batch = build(True, False, False).float(), batch_of([TEXT, "北"])
    output = module(batch.hidden.float(), batch.heads, batch.tails, batch.mask)
    assert output.dtype == torch.float32
    assert output.isfinite().all()
    torch.testing.assert_close(output[1, 0], module.value(batch.hidden[1, 0].float()))  # one token reads itself


@pytest.mark.parametrize(("width", "heads"), [(6, 4), (7, 1), (2, 1), (8, 0)])
def test_sizes_that_cannot_be_are_refused(width: int, heads: int) -> None:
    with pytest.raises(ValueError, match="must"):
        PlainRelativeAttention(width, heads)


def test_sinusoids_by_hand() -> None:
    found = reference.sinusoids(-3, 6)  # frequencies 1, 1/100, 1/10000
    wanted = [-math.sin(3), -math.sin(0.03), -math.sin(0.0003), math.cos(3), math.cos(0.03), math.cos(0.0003)]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), **EXACT)
    table = sinusoid_table(30, 6)
    for distance in (-30, -3, 0, 1, 30):
        torch.testing.assert_close(table[distance + 30], reference.sinusoids(distance, 6), **EXACT)


def test_relative_encoding_takes_the_blocks_in_order() -> None:
    """Each block of W_r alone reads its own distance: query 2..5, key 1..8."""
    constant = torch.full((DIM,), 2.0, dtype=torch.float64)  # above -1: ReLU changes nothing
    blocks = {(True, 0): 1, (True, 1): -6, (True, 2): 4, (True, 3): -3, (False, 0): 1, (False, 1): -3}
    for (four, block), distance in blocks.items():
        fusion = torch.zeros(DIM, (4 if four else 2) * DIM, dtype=torch.float64)
        fusion[:, block * DIM : (block + 1) * DIM] = torch.eye(DIM)
        found = reference.relative_encoding(2, 5, 1, 8, fusion, constant, four)
        torch.testing.assert_close(found, reference.sinusoids(distance, DIM) + 2, **EXACT)
        cut = reference.relative_encoding(2, 5, 1, 8, fusion, constant - 2, four)
        torch.testing.assert_close(cut, reference.sinusoids(distance, DIM).clamp(min=0), **EXACT)


def test_scores_without_positions_are_those_of_ordinary_attention() -> None:
    """W_kR = 0, u = 0: torch's own attention, with an output projection."""
    module, batch = build(True, True, True), batch_of([TEXT])
    weights = {name: value.detach() for name, value in weights_of(module).items()}
    for name in ("relative.weight", "content_bias"):
        weights[name] = torch.zeros_like(weights[name])
    ordinary = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).double()
    weights["output.weight"], weights["output.bias"] = ordinary.out_proj.weight, ordinary.out_proj.bias
    inward = [weights[f"{name}.{kind}"] for kind in ("weight", "bias") for name in ("query", "key", "value")]
    ordinary.in_proj_weight.data, ordinary.in_proj_bias.data = torch.cat(inward[:3]), torch.cat(inward[3:])
    hidden, heads, tails = batch.text(0)
    options: dict[str, Any] = {"num_heads": HEADS, "four_positions": True}
    wanted = ordinary(hidden[None], hidden[None], hidden[None])[0][0]
    torch.testing.assert_close(
        reference.attention(hidden, heads, tails, weights, scaled=True, **options), wanted, **EXACT
    )
    assert (reference.attention(hidden, heads, tails, weights, scaled=False, **options) - wanted).abs().max() > 1e-4


def layer_weights() -> dict[str, Tensor]:
    norms = {"attention_norm": nn.LayerNorm(WIDTH), "feed_forward_norm": nn.LayerNorm(WIDTH)}
    for norm in norms.values():
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    parts = nn.ModuleDict({**norms, "w0": nn.Linear(WIDTH, 12), "w1": nn.Linear(12, WIDTH)}).double()
    return weights_of(parts) | weights_of(build(True, True, True))


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("shared_norm", [True, False])
def test_layer_is_attention_and_feed_forward_with_norms(residual: bool, shared_norm: bool) -> None:
    weights, (hidden, heads, tails) = layer_weights(), batch_of([TEXT[:3]]).text(0)
    options: dict[str, Any] = {"num_heads": HEADS, "four_positions": True, "scaled": True}

    def norm(rows: Tensor, name: str) -> Tensor:
        return nn.functional.layer_norm(rows, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    attended = reference.attention(hidden, heads, tails, weights, **options)
    middle = norm(hidden + attended if residual else attended, "attention_norm")
    inner = torch.relu(middle @ weights["w0.weight"].T + weights["w0.bias"])
    output = inner @ weights["w1.weight"].T + weights["w1.bias"]
    wanted = norm(middle + output if residual else output, "attention_norm" if shared_norm else "feed_forward_norm")

    def found(**changed: bool) -> Tensor:
        kinds = {"residual": residual, "shared_norm": shared_norm} | changed
        return reference.layer(hidden, heads, tails, weights, **options, **kinds)

    torch.testing.assert_close(found(), wanted, **EXACT)
    assert (found(residual=not residual) - wanted).abs().max() > 1e-2
    assert (found(shared_norm=not shared_norm) - wanted).abs().max() > 1e-2


def test_flat_returns_characters_that_have_read_the_words() -> None:
    layers: list[Mapping[str, Tensor]] = [layer_weights(), layer_weights()]
    options: dict[str, Any] = {
        "num_heads": HEADS,
        "four_positions": True,
        "scaled": True,
        "residual": True,
        "shared_norm": False,
    }
    characters, words = torch.randn(4, WIDTH).double(), torch.randn(2, WIDTH).double()
    found = reference.flat(characters, words, [(0, 2), (1, 4)], layers, **options)
    assert found.shape == (4, WIDTH)
    hidden = torch.cat([characters, words])
    for weights in layers:
        hidden = reference.layer(hidden, [0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 1, 3], weights, **options)
    torch.testing.assert_close(found, hidden[:4], **EXACT)
    turned = reference.flat(characters, words.flip(0), [(1, 4), (0, 2)], layers, **options)
    torch.testing.assert_close(turned, found, **EXACT)  # the order of words is nothing
    elsewhere = reference.flat(characters, words, [(0, 2), (2, 4)], layers, **options)
    assert (elsewhere - found).abs().max() > 1e-4
    none = reference.flat(characters, words[:0], [], layers, **options)
    assert none.shape == (4, WIDTH)
    assert (none - found).abs().max() > 1e-4


def test_matches() -> None:
    assert reference.matches(TEXT, WORDS) == [
        (0, 2, "南京"),
        (0, 3, "南京市"),
        (2, 4, "市长"),
        (3, 5, "长江"),
        (3, 7, "长江大桥"),
        (5, 7, "大桥"),
    ]
    assert reference.matches("江江江", ["江", "江江", "江江"]) == [(0, 2, "江江"), (1, 3, "江江")]
    assert reference.matches("江𠮷", ["江", "𠮷"], min_length=1) == [(0, 1, "江"), (1, 2, "𠮷")]
    assert reference.matches("", WORDS) == []
