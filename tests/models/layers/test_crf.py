"""The CRF layer against the list of all tag paths, against pytorch-crf, and at the edges of its arithmetic."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torchcrf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hanzoo.models.layers import crf as layer
from hanzoo.models.layers.crf import CRF
from tests.references import crf as reference
from tests.references import losses as loss_reference

Legal = tuple[Tensor, Tensor, Tensor]  # transitions (from, to), start, end

few_examples = settings(max_examples=8, derandomize=True, database=None)


@pytest.fixture(scope="module", params=["numba", "torch"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test through the compiled recursion and through the one in torch, which is what accelerators run."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("log_likelihood", "marginals"):
            patch.setattr(layer, name, functools.partial(getattr(layer, name), backend=request.param))
        yield request.param


both_backends = pytest.mark.usefixtures("backend")


# Problems: a layer with random parameters, a ragged batch, legal gold.


def everything(num_tags: int) -> Legal:
    return (
        torch.ones(num_tags, num_tags, dtype=torch.bool),
        torch.ones(num_tags, dtype=torch.bool),
        torch.ones(num_tags, dtype=torch.bool),
    )


def bio() -> Legal:
    """O, B, I: I follows B or I only."""
    transitions, start, end = everything(3)
    transitions[0, 2] = start[2] = False
    return transitions, start, end


def bies() -> Legal:
    """B, I, E, S, every character inside some entity: all three kinds of constraint bite."""
    opens, inside = [True, False, False, True], [False, True, True, False]
    transitions = torch.tensor([inside, inside, opens, opens])
    return transitions, torch.tensor(opens), torch.tensor([False, False, True, True])


def random_legal(num_tags: int, generator: torch.Generator) -> Legal:
    """Forbid about half of everything; tag 0 alone always makes a legal path."""
    transitions, start, end = (
        torch.rand(*shape, generator=generator) < 0.5 for shape in [(num_tags,) * 2, (num_tags,), (num_tags,)]
    )
    transitions[0, 0] = start[0] = end[0] = True
    return transitions, start, end


@dataclass
class Problem:
    crf: CRF
    legal: Legal
    emissions: Tensor
    mask: Tensor
    tags: Tensor
    lengths: list[int]

    def chain(self, index: int, emissions: Tensor | None = None) -> reference.Chain:
        """Return one sentence of the batch in float64; gradients reach the layer's parameters and the emissions."""
        emissions = self.emissions if emissions is None else emissions
        return reference.Chain(
            emissions[index, : self.lengths[index]].double(),
            self.crf.transitions.double(),
            self.crf.start_transitions.double(),
            self.crf.end_transitions.double(),
            *self.legal,
        )

    def chains(self, emissions: Tensor | None = None) -> list[reference.Chain]:
        return [self.chain(index, emissions) for index in range(len(self.lengths))]

    def gold(self, index: int) -> list[int]:
        return self.tags[index, : self.lengths[index]].tolist()

    def inputs(self) -> list[Tensor]:
        """Return what gradients are taken by."""
        return [self.emissions, self.crf.transitions, self.crf.start_transitions, self.crf.end_transitions]


def make_problem(
    lengths: list[int],
    legal: Legal,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    scale: float = 1.0,
) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    num_tags = len(legal[1])
    crf = CRF(num_tags, batch_first=True, legal_transitions=legal[0], legal_start=legal[1], legal_end=legal[2]).to(
        dtype
    )
    for parameter in crf.parameters():
        nn.init.normal_(parameter, generator=generator)
    batch, seq = len(lengths), max(lengths)
    emissions = scale * torch.randn(batch, seq, num_tags, dtype=dtype, generator=generator)
    mask = torch.arange(seq) < torch.tensor(lengths)[:, None]
    tags = torch.zeros(batch, seq, dtype=torch.int64)
    for index, length in enumerate(lengths):
        tags[index, :length] = torch.tensor(random_path(length, legal, generator))
    return Problem(crf, legal, emissions.requires_grad_(), mask, tags, lengths)


def random_path(length: int, legal: Legal, generator: torch.Generator) -> list[int]:
    """Draw a legal path from the back, among the tags from which the start can still be reached."""
    transitions, start, end = legal
    reachable = [start]
    for _ in range(length - 1):
        reachable.append((reachable[-1][:, None] & transitions).any(0))
    path: list[int] = []
    for i in reversed(range(length)):
        possible = reachable[i] & (transitions[:, path[-1]] if path else end)
        path.append(int(torch.multinomial(possible.double(), 1, generator=generator)))
    return path[::-1]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    seed = draw(st.integers(0, 10_000))
    kind = draw(st.sampled_from(["everything", "bio", "bies", "random"]))
    num_tags = draw(st.integers(1, 4))
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    legal = {
        "everything": lambda: everything(num_tags),
        "bio": bio,
        "bies": bies,
        "random": lambda: random_legal(num_tags, torch.Generator().manual_seed(seed)),
    }[kind]()
    return make_problem(lengths, legal, seed)


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def differs(first: Tensor, second: Tensor) -> bool:
    return not torch.allclose(first, second, rtol=1e-6, atol=1e-6)


def padded(rows: list[Tensor], seq: int) -> Tensor:
    """Stack (length, num_tags) rows to (batch, seq, num_tags), 0 at padding."""
    return torch.stack([nn.functional.pad(row, (0, 0, 0, seq - len(row))) for row in rows])


def gradients_of(value: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Return the gradients of a scalar; zeros by what it does not use, as transitions where each sentence is one tag."""
    return torch.autograd.grad(value, inputs, materialize_grads=True)


def assert_gradients_equal(actual: Tensor, expected: Tensor, inputs: list[Tensor], tolerance: float = 1e-10) -> None:
    """Compare the gradients of two scalars; the scaled one is the control."""
    ours = gradients_of(actual, inputs)
    theirs = gradients_of(expected, inputs)
    for our, their in zip(ours, theirs, strict=True):
        assert_equal(our, their, tolerance)
    assert differs(ours[0], 1.01 * theirs[0] + 0.01)


MIXED = [3, 5, 1, 4]
LEGALS = {
    "everything": everything(4),
    "bio": bio(),
    "bies": bies(),
    "random": random_legal(4, torch.Generator().manual_seed(27)),
}
every_constraint = pytest.mark.parametrize("legal", LEGALS.values(), ids=LEGALS.keys())


# The reference itself.


def test_reference_by_hand() -> None:
    legal = everything(2)
    chain = reference.Chain(
        torch.tensor([[1.0, 2.0], [3.0, 5.0]]).double(),
        torch.tensor([[0.1, 0.2], [0.3, 0.4]]).double(),
        torch.tensor([0.01, 0.02]).double(),
        torch.tensor([0.001, 0.002]).double(),
        *legal,
    )
    scores = [1.01 + 0.1 + 3.001, 1.01 + 0.2 + 5.002, 2.02 + 0.3 + 3.001, 2.02 + 0.4 + 5.002]  # 00, 01, 10, 11
    total = sum(math.exp(score) for score in scores)
    assert reference.log_partition(chain).item() == pytest.approx(math.log(total), abs=1e-6)
    assert reference.log_likelihood(chain, [1, 0]).item() == pytest.approx(scores[2] - math.log(total), abs=1e-6)
    assert reference.viterbi(chain)[0] == [1, 1]
    assert reference.pair_marginals(chain)[0, 0, 1].item() == pytest.approx(math.exp(scores[1]) / total, abs=1e-6)
    legal[0][1, 1] = False
    assert reference.viterbi(chain)[0] == [0, 1]
    assert reference.log_likelihood(chain, [1, 1]).item() == float("-inf")


@every_constraint
def test_recursions_equal_enumeration(legal: Legal) -> None:
    for chain in make_problem(MIXED, legal).chains():
        partition, marginals = reference.log_domain(chain)
        path, score = reference.log_domain_viterbi(chain)
        assert partition == pytest.approx(reference.log_partition(chain).item(), abs=1e-12)
        assert_equal(torch.from_numpy(marginals), reference.marginals(chain).detach(), 1e-12)
        assert path == reference.viterbi(chain)[0]
        assert score == pytest.approx(reference.viterbi(chain)[1], abs=1e-12)


# Values and gradients against enumeration, float64.


@both_backends
@few_examples
@given(problems())
def test_log_partition_equals_enumeration(problem: Problem) -> None:
    expected = torch.stack([reference.log_partition(chain) for chain in problem.chains()])
    actual = problem.crf.log_partition(problem.emissions, problem.mask)
    assert actual.shape == (len(problem.lengths),)
    assert_equal(actual, expected)
    assert differs(problem.crf.log_partition(problem.emissions + 0.01, problem.mask), expected)
    weights = torch.arange(1.0, len(expected) + 1).double()
    assert_gradients_equal(actual @ weights, expected @ weights, problem.inputs())


@both_backends
@few_examples
@given(problems())
def test_log_likelihood_equals_enumeration(problem: Problem) -> None:
    chains = problem.chains()
    expected = torch.stack([reference.log_likelihood(chain, problem.gold(i)) for i, chain in enumerate(chains)])
    actual = problem.crf.log_likelihood(problem.emissions, problem.tags, problem.mask)
    assert_equal(actual, expected)
    assert differs(actual - 0.01, expected)
    assert_equal(problem.crf(problem.emissions, problem.tags, problem.mask, reduction="none"), expected)
    weights = torch.arange(1.0, len(expected) + 1).double()
    assert_gradients_equal(actual @ weights, expected @ weights, problem.inputs())


def test_log_likelihood_belongs_to_its_gold() -> None:
    problem = make_problem(MIXED, bies())
    other = make_problem(MIXED, bies(), seed=1)
    assert problem.tags.tolist() != other.tags.tolist()
    first = problem.crf.log_likelihood(problem.emissions, problem.tags, problem.mask)
    assert differs(first, problem.crf.log_likelihood(problem.emissions, other.tags, problem.mask))


@both_backends
@few_examples
@given(problems())
def test_likelihoods_of_all_paths_sum_to_one(problem: Problem) -> None:
    chain = problem.chain(0)
    paths = torch.tensor(reference.paths_of(chain))
    emissions = problem.emissions[:1, : problem.lengths[0]].expand(len(paths), -1, -1)
    logs = problem.crf.log_likelihood(emissions, paths, torch.ones_like(paths, dtype=torch.bool))
    assert logs.logsumexp(0).item() == pytest.approx(0.0, abs=1e-10)
    assert (logs[1:].exp().sum() < 1 - 1e-12) or len(paths) == 1


@both_backends
@few_examples
@given(problems())
def test_marginals_equal_enumeration(problem: Problem) -> None:
    expected = padded([reference.marginals(chain) for chain in problem.chains()], problem.mask.shape[1])
    actual = problem.crf.marginals(problem.emissions, problem.mask)
    assert_equal(actual, expected)
    assert_equal(actual.sum(2), problem.mask.double())
    assert (actual[~problem.mask] == 0).all()
    assert differs(actual + 0.01, expected)
    weights = torch.randn(actual.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert_gradients_equal((actual * weights).sum(), (expected * weights).sum(), problem.inputs())


@every_constraint
def test_marginals_react_to_emissions(legal: Legal) -> None:
    problem = make_problem([5], legal)
    expected = reference.marginals(problem.chain(0))[None]
    shifted = problem.emissions.detach().clone()
    shifted[0, 2] += torch.arange(shifted.shape[2])
    assert differs(problem.crf.marginals(shifted, problem.mask), expected)
    shifted = problem.emissions + 7.0  # a constant at every tag of a position changes nothing
    assert_equal(problem.crf.marginals(shifted, problem.mask), expected)


@both_backends
@every_constraint
def test_transition_gradient_is_the_sum_of_pair_marginals(legal: Legal) -> None:
    problem = make_problem(MIXED, legal)
    (gradient,) = gradients_of(
        problem.crf.log_partition(problem.emissions, problem.mask).sum(), [problem.crf.transitions]
    )
    expected = torch.stack([reference.pair_marginals(chain).sum(0) for chain in problem.chains()])
    assert_equal(gradient, expected.sum(0))
    assert differs(gradient, expected[:-1].sum(0))


@both_backends
@few_examples
@given(problems(), st.sampled_from([0.0, 0.1, 1.0, 5.0]))
def test_divergence_equals_enumeration(problem: Problem, distance: float) -> None:
    noise = torch.randn(problem.emissions.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    second = (problem.emissions + distance * noise).detach().requires_grad_()
    pairs = zip(problem.chains(), problem.chains(second), strict=True)
    expected = torch.stack([reference.divergence(first, other) for first, other in pairs])
    actual = problem.crf.divergence(problem.emissions, second, problem.mask)
    assert actual.shape == (len(problem.lengths),)
    assert_equal(actual, expected)
    assert differs(actual + 0.01, expected)
    assert_equal(problem.crf.divergence(second, problem.emissions, problem.mask), expected)
    weights = torch.arange(1.0, len(expected) + 1).double()
    assert_gradients_equal(actual @ weights, expected @ weights, [second, *problem.inputs()])


def test_divergence_is_zero_only_between_equals() -> None:
    problem = make_problem(MIXED, bio())
    crf, emissions, mask = problem.crf, problem.emissions, problem.mask
    assert_equal(crf.divergence(emissions, emissions + 3.0, mask), torch.zeros(4).double())
    assert (crf.divergence(emissions, 2 * emissions, mask) > 1e-3).all()


@both_backends
def test_divergence_of_emissions_that_need_no_gradient() -> None:
    problem = make_problem(MIXED, bio())
    constant = 2 * problem.emissions.detach()
    problem.crf.divergence(problem.emissions, constant, problem.mask).sum().backward()
    expected = torch.stack(
        [reference.divergence(*pair) for pair in zip(problem.chains(), problem.chains(constant), strict=True)]
    )
    (gradient,) = gradients_of(expected.sum(), [problem.emissions])
    assert problem.emissions.grad is not None
    assert_equal(problem.emissions.grad, gradient)
    assert constant.grad is None


@few_examples
@given(problems())
def test_viterbi_equals_enumeration(problem: Problem) -> None:
    tags, scores = problem.crf.viterbi_decode(problem.emissions, problem.mask)
    assert tags.shape == problem.mask.shape
    assert tags.dtype == torch.int64
    assert (tags[~problem.mask] == 0).all()
    paths = problem.crf.decode(problem.emissions, problem.mask)
    for i, chain in enumerate(problem.chains()):
        path, score = reference.viterbi(chain)
        assert paths[i] == tags[i, : problem.lengths[i]].tolist() == path
        assert scores[i].item() == pytest.approx(score, abs=1e-10)
        worse = reference.n_best(chain, 2)[1:]
        assert all(paths[i] != other and abs(scores[i].item() - below) > 1e-12 for other, below in worse)


@few_examples
@given(problems(), st.sampled_from([1, 2, 7, 2000]))
def test_n_best_equals_enumeration(problem: Problem, n: int) -> None:
    best = problem.crf.n_best(problem.emissions, problem.mask, n)
    assert len(best) == len(problem.lengths)
    for found, chain in zip(best, problem.chains(), strict=True):
        expected = reference.n_best(chain, n)
        assert [path for path, _ in found] == [path for path, _ in expected]
        assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-10)
        assert len(found) == min(n, len(reference.paths_of(chain)))
        flatter = reference.n_best(problem.chain(0, 0.5 * problem.emissions), n)
        assert chain.emissions.shape[1] == 1 or [score for _, score in found] != [score for _, score in flatter]


def test_n_best_among_ties() -> None:
    crf = CRF(3, batch_first=True).double()
    for parameter in crf.parameters():
        nn.init.zeros_(parameter)
    mask = torch.ones(1, 4, dtype=torch.bool)
    best = crf.n_best(torch.zeros(1, 4, 3, dtype=torch.float64), mask, 50)[0]
    assert len({tuple(path) for path, _ in best}) == 50
    assert {score for _, score in best} == {0.0}
    assert len(crf.n_best(torch.zeros(1, 4, 3, dtype=torch.float64), mask, 100)[0]) == 81


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@every_constraint
def test_span_posteriors_equal_enumeration(legal: Legal, temperature: float) -> None:
    problem = make_problem(MIXED, legal)
    num_tags = len(legal[1])
    generator = torch.Generator().manual_seed(5)
    spans = []
    for index, length in enumerate(problem.lengths):
        row = []
        for start, end in itertools.combinations(range(length + 1), 2):
            path = random_path(length, legal, generator)  # its own tags: the span is possible
            forbidden = torch.randperm(num_tags, generator=generator)[: num_tags // 2].tolist()
            if end < length and path[end] in forbidden:
                forbidden.remove(path[end])
            row.append((start, end, path[start:end], forbidden))
        spans.append(row if index != 1 else row[::-1])
    spans[3] = []
    actual = problem.crf.span_log_posteriors(problem.emissions, problem.mask, spans, temperature)
    control = problem.crf.span_log_posteriors(problem.emissions, problem.mask, spans, 2 * temperature)
    assert [len(row) for row in actual] == [6, 15, 1, 0]
    for chain, row, found in zip(problem.chains(), spans, actual, strict=True):
        expected = [reference.span_log_posterior(chain, *span, temperature) for span in row]
        assert found == pytest.approx(expected, abs=1e-10)
    assert control[1] != pytest.approx(actual[1], abs=1e-6)


def test_span_posterior_looks_at_the_next_tag() -> None:
    problem = make_problem([5], bio())
    span = (1, 3, [1, 2])
    (excluding, including, none), *_ = problem.crf.span_log_posteriors(
        problem.emissions, problem.mask, [[(*span, [2]), (*span, []), (*span, [0, 1])]]
    )
    assert excluding < including
    assert math.exp(excluding) + math.exp(none) == pytest.approx(math.exp(including), abs=1e-10)


def test_posteriors_of_all_spans_at_a_position_sum_to_its_marginal() -> None:
    problem = make_problem([5], bio())
    spans = [(1, end, [1] + [2] * (end - 2), [2]) for end in range(2, 6)]
    (logs,) = problem.crf.span_log_posteriors(problem.emissions, problem.mask, [spans])
    begins = problem.crf.marginals(problem.emissions, problem.mask)[0, 1, 1].item()
    assert sum(map(math.exp, logs)) == pytest.approx(begins, abs=1e-10)
    assert sum(map(math.exp, logs[:-1])) < begins - 1e-6


def test_spans_that_cannot_be() -> None:
    problem = make_problem([4], bio())
    (row,) = problem.crf.span_log_posteriors(problem.emissions, problem.mask, [[(0, 1, [2], []), (1, 3, [0, 2], [])]])
    assert all(math.exp(value) < 1e-30 for value in row)


# First and second derivatives by finite differences.


class Call(nn.Module):
    """A layer's method as a forward, so that parameters can be passed in."""

    def __init__(self, crf: CRF, method: str) -> None:
        super().__init__()
        self.crf, self.method = crf, method

    def forward(self, *arguments: Tensor) -> Tensor:
        return getattr(self.crf, self.method)(*arguments)


def functional(problem: Problem, method: str, *last: Tensor) -> Callable[..., Tensor]:
    """Return the method as a function of transitions, start, end and emissions (one tensor or two)."""
    call = Call(problem.crf, method)
    names = ["crf.transitions", "crf.start_transitions", "crf.end_transitions"]

    def function(transitions: Tensor, start: Tensor, end: Tensor, *emissions: Tensor) -> Tensor:
        parameters = dict(zip(names, (transitions, start, end), strict=True))
        return torch.func.functional_call(call, parameters, (*emissions, *last))

    return function


METHODS = ["log_likelihood", "log_partition", "marginals", "divergence"]


@both_backends
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("legal", [bio(), bies()], ids=["bio", "bies"])
def test_first_and_second_derivatives(legal: Legal, method: str) -> None:
    problem = make_problem([3, 1], legal, seed=4)
    inputs = [tensor.detach().requires_grad_() for tensor in problem.inputs()[1:]] + [problem.emissions]
    if method == "divergence":
        inputs.append((problem.emissions.flip(0) * 0.7).detach().requires_grad_())
    last = (problem.tags, problem.mask) if method == "log_likelihood" else (problem.mask,)
    function = functional(problem, method, *last)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@both_backends
def test_second_derivative_equals_enumeration() -> None:
    problem = make_problem([4], bio())
    weights = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    curvature = []
    for value in [
        problem.crf.log_likelihood(problem.emissions, problem.tags, problem.mask)[0],
        reference.log_likelihood(problem.chain(0), problem.gold(0)),
    ]:
        (gradient,) = torch.autograd.grad(value, [problem.emissions], create_graph=True)
        curvature.append(gradients_of(gradient.flatten() @ weights, problem.inputs()))
    for ours, theirs in zip(*curvature, strict=True):
        assert_equal(ours, theirs)
    assert differs(curvature[0][0], torch.zeros(1, 4, 3).double())


@both_backends
@pytest.mark.parametrize("method", ["log_likelihood", "log_partition", "marginals"])
def test_second_derivatives_of_single_characters(method: str) -> None:
    problem = make_problem([1, 1], bies())
    last = (problem.tags, problem.mask) if method == "log_likelihood" else (problem.mask,)
    inputs = [tensor.detach().requires_grad_() for tensor in problem.inputs()[1:]] + [problem.emissions]
    assert torch.autograd.gradgradcheck(functional(problem, method, *last), inputs)


@both_backends
@pytest.mark.parametrize("frozen", [0, 1, 2, 3])
def test_gradient_where_one_input_is_frozen(frozen: int) -> None:
    problem = make_problem(MIXED, bio())
    full = gradients_of(
        problem.crf.log_likelihood(problem.emissions, problem.tags, problem.mask).sum(), problem.inputs()
    )
    problem.inputs()[frozen].requires_grad_(False)
    problem.crf.log_likelihood(problem.emissions, problem.tags, problem.mask).sum().backward()
    for index, (tensor, expected) in enumerate(zip(problem.inputs(), full, strict=True)):
        if index == frozen:
            assert tensor.grad is None
        else:
            assert tensor.grad is not None
            assert_equal(tensor.grad, expected)


# Constraints.


@both_backends
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forbidden_entries_get_exactly_no_gradient(method: str, dtype: torch.dtype) -> None:
    problem = make_problem([*MIXED, 1], bies(), dtype=dtype, scale=30.0)
    arguments = [problem.emissions, *([0.5 * problem.emissions] if method == "divergence" else [])]
    arguments += [problem.tags, problem.mask] if method == "log_likelihood" else [problem.mask]
    value = getattr(problem.crf, method)(*arguments)
    (value * torch.arange(1, value.numel() + 1).reshape(value.shape)).sum().backward()
    crf, (transitions, start, end) = problem.crf, problem.legal
    for parameter, legal in [
        (crf.transitions, transitions),
        (crf.start_transitions, start),
        (crf.end_transitions, end),
    ]:
        if parameter.grad is None:
            assert method == "divergence"
            continue
        assert (parameter.grad[~legal] == 0).all()
        assert parameter.grad.isfinite().all()
    if method != "divergence":
        assert crf.transitions.grad is not None
        assert (crf.transitions.grad[transitions] != 0).any()


@both_backends
@pytest.mark.parametrize("garbage", [1e4, -1e4, 3e38])
def test_what_stands_at_forbidden_entries_changes_nothing(garbage: float) -> None:
    problem = make_problem(MIXED, bies(), dtype=torch.float32)
    crf, emissions, mask = problem.crf, problem.emissions, problem.mask

    def results() -> list[object]:
        likelihood = crf.log_likelihood(emissions, problem.tags, mask)
        gradients = gradients_of(likelihood.sum(), problem.inputs())
        others = [likelihood, crf.log_partition(emissions, mask), crf.marginals(emissions, mask)]
        spans = [[(0, 1, [3], [])]] * 4
        decoded = [crf.decode(emissions, mask), crf.n_best(emissions, mask, 5)]
        return [
            *(tensor.tolist() for tensor in [*gradients, *others]),
            *decoded,
            crf.span_log_posteriors(emissions, mask, spans),
        ]

    before = results()
    with torch.no_grad():
        for parameter, legal in zip(
            [crf.transitions, crf.start_transitions, crf.end_transitions], problem.legal, strict=True
        ):
            parameter[~legal] = garbage
    assert results() == before
    with torch.no_grad():
        crf.end_transitions[problem.legal[2]] += torch.tensor([0.0, 1.0])
    assert results() != before


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("legal", [bio(), bies(), LEGALS["random"]], ids=["bio", "bies", "random"])
def test_nothing_illegal_is_decoded(legal: Legal, seed: int) -> None:
    problem = make_problem([1, 1, 2, 7, 40], legal, seed, torch.float32, scale=1e4)
    crf, emissions, mask = problem.crf, problem.emissions, problem.mask
    transitions, start, end = legal

    def is_legal(path: list[int]) -> bool:
        return bool(start[path[0]] and end[path[-1]] and all(transitions[a, b] for a, b in itertools.pairwise(path)))

    decoded = crf.decode(emissions, mask)
    best = crf.n_best(emissions, mask, 30)
    for index, paths in enumerate(best):
        assert is_legal(decoded[index])
        assert decoded[index] == paths[0][0]
        assert all(is_legal(path) for path, _ in paths)
        assert all(len(path) == problem.lengths[index] for path, _ in paths)
        assert len({tuple(path) for path, _ in paths}) == len(paths)
        assert [score for _, score in paths] == sorted((score for _, score in paths), reverse=True)
    free = CRF(len(start), batch_first=True)
    free.load_state_dict(crf.state_dict())
    assert not all(is_legal(path) for path in free.decode(emissions, mask))


def test_constraints_lower_the_partition_and_only_that() -> None:
    problem = make_problem(MIXED, bio())
    free = CRF(3, batch_first=True).double()
    free.load_state_dict(problem.crf.state_dict())
    assert (
        problem.crf.log_partition(problem.emissions, problem.mask)[:2]
        < free.log_partition(problem.emissions, problem.mask)[:2]
    ).all()
    score = [
        crf.log_likelihood(problem.emissions, problem.tags, problem.mask)
        + crf.log_partition(problem.emissions, problem.mask)
        for crf in (problem.crf, free)
    ]
    assert_equal(*score)


@both_backends
@pytest.mark.parametrize(
    ("index", "position", "path"),
    [(1, 0, [1, 2, 0, 3, 3]), (1, 2, [0, 2, 1, 1, 2]), (1, 4, [3, 3, 3, 0, 1]), (2, 0, [1]), (2, 0, [2])],
    ids=["start", "inside", "end", "start of one", "no start for one"],
)
def test_illegal_gold_is_refused_with_its_place(index: int, position: int, path: list[int]) -> None:
    problem = make_problem(MIXED, bies())
    problem.crf.log_likelihood(problem.emissions, problem.tags, problem.mask)
    problem.tags[index, : len(path)] = torch.tensor(path)
    for call in (problem.crf.log_likelihood, problem.crf):
        with pytest.raises(ValueError, match=rf"\b{index}\b.*\b{position}\b"):
            call(problem.emissions, problem.tags, problem.mask)


@both_backends
@pytest.mark.parametrize("tag", [-1, 4, 1000])
def test_gold_that_is_no_tag_is_refused(tag: int) -> None:
    problem = make_problem(MIXED, everything(4))
    problem.tags[1, 2] = tag
    with pytest.raises(ValueError, match=str(tag)):
        problem.crf.log_likelihood(problem.emissions, problem.tags, problem.mask)


# Masks, padding, batches.


@pytest.mark.parametrize(
    "row", [[True, False, True], [False, True, True], [False, False, False]], ids=["hole", "left", "empty"]
)
@pytest.mark.parametrize("method", ["forward", "decode", *METHODS, "viterbi_decode", "n_best", "span_log_posteriors"])
def test_masks_that_are_no_prefix_are_refused(method: str, row: list[bool]) -> None:
    crf = CRF(2, batch_first=True)
    emissions, tags = torch.zeros(2, 3, 2), torch.zeros(2, 3, dtype=torch.int64)
    arguments: dict[str, tuple[object, ...]] = {
        "forward": (emissions, tags),
        "log_likelihood": (emissions, tags),
        "divergence": (emissions, emissions),
    }
    last: dict[str, tuple[object, ...]] = {"n_best": (2,), "span_log_posteriors": ([[], []],)}

    def call(mask: Tensor) -> None:
        getattr(crf, method)(*arguments.get(method, (emissions,)), mask, *last.get(method, ()))

    call(torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask"):
        call(torch.tensor([[True, True, True], row]))


def test_shapes_that_do_not_fit_are_refused() -> None:
    problem = make_problem(MIXED, bio())
    crf, emissions, mask, tags = problem.crf, problem.emissions, problem.mask, problem.tags
    with pytest.raises(ValueError, match="mask"):
        crf.log_partition(emissions, mask[:, :-1])
    with pytest.raises(ValueError, match="tags"):
        crf.log_likelihood(emissions, tags[:, :-1], mask)
    with pytest.raises(ValueError, match="emissions"):
        crf.log_partition(emissions[..., :2], mask)
    with pytest.raises(ValueError, match="reduction"):
        crf(emissions, tags, mask, reduction="median")
    with pytest.raises(ValueError, match="legal_transitions"):
        CRF(3, legal_transitions=torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="legal_start"):
        CRF(3, legal_start=torch.ones(2, dtype=torch.bool))


def everything_of(problem: Problem, index: slice | Tensor = slice(None), seq: int | None = None) -> list[list[object]]:
    """Return all results, one list a sentence, for a part of the batch."""
    crf, emissions = problem.crf, problem.emissions[index, :seq]
    mask, tags = problem.mask[index, :seq], problem.tags[index, :seq]
    real = mask.sum(1).tolist()
    second = (emissions * torch.linspace(0.5, 1.5, emissions.shape[2])).detach()
    likelihood = crf.log_likelihood(emissions, tags, mask)
    (gradient,) = gradients_of(likelihood.sum(), [problem.emissions])
    assert (gradient[~problem.mask] == 0).all()
    marginals, divergence = crf.marginals(emissions, mask), crf.divergence(emissions, second, mask)
    spans = [[(length - 1, length, tags[i, length - 1 : length].tolist(), [])] for i, length in enumerate(real)]
    posteriors = crf.span_log_posteriors(emissions, mask, spans)
    viterbi, scores = crf.viterbi_decode(emissions, mask)
    paths, best = crf.decode(emissions, mask), crf.n_best(emissions, mask, 3)
    return [
        [
            likelihood[i].item(),
            crf.log_partition(emissions, mask)[i].item(),
            gradient[index][i, :length].tolist(),
            marginals[i, :length].tolist(),
            divergence[i].item(),
            posteriors[i],
            viterbi[i, :length].tolist(),
            scores[i].item(),
            paths[i],
            [path for path, _ in best[i]],
            [score for _, score in best[i]],
        ]
        for i, length in enumerate(real)
    ]


def close(first: object, second: object) -> bool:
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(close, first, second))
    assert isinstance(first, int | float)
    return first == pytest.approx(second, abs=1e-11)


@both_backends
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), float("-inf"), 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_padding_changes_nothing(garbage: float, dtype: torch.dtype) -> None:
    problem = make_problem(MIXED, bio(), dtype=dtype)
    before = everything_of(problem)
    with torch.no_grad():
        problem.emissions[~problem.mask] = garbage
        problem.tags[~problem.mask] = -100
    assert everything_of(problem) == before
    (first,) = gradients_of(problem.crf.marginals(problem.emissions, problem.mask)[..., 0].sum(), [problem.emissions])
    assert first.isfinite().all()
    assert (problem.crf.marginals(problem.emissions, problem.mask)[~problem.mask] == 0).all()
    with torch.no_grad():
        problem.emissions[0, 0, 0] += 0.5
    assert everything_of(problem) != before


@both_backends
@every_constraint
def test_batched_equals_one_by_one(legal: Legal) -> None:
    problem = make_problem([3, 5, 1, 4, 5, 2], legal)
    together = everything_of(problem)
    alone = [everything_of(problem, torch.tensor([i]), length)[0] for i, length in enumerate(problem.lengths)]
    assert close(together, alone)
    assert not close(together, alone[::-1])
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    assert close(everything_of(problem, order), [together[i] for i in order.tolist()])


@both_backends
def test_longer_padding_changes_nothing() -> None:
    problem = make_problem(MIXED, bio())
    longer = Problem(
        problem.crf,
        problem.legal,
        nn.functional.pad(problem.emissions.detach(), (0, 0, 0, 6)).requires_grad_(),
        nn.functional.pad(problem.mask, (0, 6)),
        nn.functional.pad(problem.tags, (0, 6)),
        problem.lengths,
    )
    assert close(everything_of(longer), everything_of(problem))


@both_backends
def test_inputs_are_left_as_they_were() -> None:
    problem = make_problem(MIXED, bies())
    before = [tensor.detach().clone() for tensor in (*problem.inputs(), problem.tags, problem.mask)]
    everything_of(problem)
    for tensor, kept in zip((*problem.inputs(), problem.tags, problem.mask), before, strict=True):
        assert torch.equal(tensor, kept)


@both_backends
def test_emissions_need_not_lie_in_order() -> None:
    problem = make_problem(MIXED, bio())
    strided = problem.emissions.detach().permute(2, 1, 0).contiguous().permute(2, 1, 0).requires_grad_()
    assert not strided.is_contiguous()
    other = Problem(
        problem.crf,
        problem.legal,
        strided,
        problem.mask.t().contiguous().t(),
        problem.tags.t().contiguous().t(),
        problem.lengths,
    )
    assert close(everything_of(other), everything_of(problem))


@both_backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_bits_twice(dtype: torch.dtype) -> None:
    def bits(seed: int) -> list[list[object]]:
        problem = make_problem([30, 7, 19, 1], bio(), seed, dtype, scale=3.0)
        loss = problem.crf(problem.emissions, problem.tags, problem.mask)
        gradients = gradients_of(loss, problem.inputs())
        return [*everything_of(problem), [gradient.tolist() for gradient in gradients]]

    assert bits(0) == bits(0)
    assert bits(0) != bits(1)


# Arithmetic: float32, extremes, length, autocast.


def as_float64(problem: Problem) -> Problem:
    crf = CRF(
        problem.crf.num_tags,
        batch_first=True,
        legal_transitions=problem.legal[0],
        legal_start=problem.legal[1],
        legal_end=problem.legal[2],
    )
    crf.load_state_dict(problem.crf.state_dict())
    return Problem(
        crf.double(),
        problem.legal,
        problem.emissions.detach().double().requires_grad_(),
        problem.mask,
        problem.tags,
        problem.lengths,
    )


@both_backends
@every_constraint
def test_float32_equals_float64(legal: Legal) -> None:
    single = make_problem([60, 33, 1, 48], legal, dtype=torch.float32, scale=3.0)
    double = as_float64(single)
    results = []
    for problem in (single, double):
        crf, emissions, mask = problem.crf, problem.emissions, problem.mask
        likelihood = crf.log_likelihood(emissions, problem.tags, mask)
        divergence = crf.divergence(emissions, 0.5 * emissions, mask)
        gradients = gradients_of(likelihood.sum(), problem.inputs())
        results.append(
            [likelihood, divergence, crf.log_partition(emissions, mask), crf.marginals(emissions, mask), *gradients]
        )
    for ours, exact in zip(*results, strict=True):
        assert ours.dtype == torch.float32
        scale = exact.abs().max().item()
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5 * max(1.0, scale))
        assert scale == 0 or not torch.allclose(ours.double(), exact * 1.001, rtol=1e-5, atol=1e-5 * max(1.0, scale))
    assert single.crf.decode(single.emissions, single.mask) == double.crf.decode(double.emissions, double.mask)


@both_backends
@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0, 1e4])
@pytest.mark.parametrize("legal", [bio(), LEGALS["random"]], ids=["bio", "random"])
def test_gradients_of_marginals_and_divergence_in_float32(legal: Legal, scale: float) -> None:
    single = make_problem([40, 1, 23], legal, dtype=torch.float32, scale=scale)
    double = as_float64(single)
    direction = torch.randn(single.emissions.shape, generator=torch.Generator().manual_seed(1))
    results = []
    for problem in (single, double):
        weights = direction.to(problem.emissions.dtype)
        marginals = problem.crf.marginals(problem.emissions, problem.mask)
        divergence = problem.crf.divergence(problem.emissions, problem.emissions.detach() + weights, problem.mask)
        results.append(
            [
                gradients_of((marginals * weights).sum(), problem.inputs()),
                gradients_of(divergence @ torch.tensor([1.0, -2.0, 0.5]).to(divergence.dtype), problem.inputs()),
            ]
        )
    for ours, exact in zip(*results, strict=True):
        for our, their in zip(ours, exact, strict=True):
            torch.testing.assert_close(our.double(), their, rtol=1e-4, atol=2e-5)
        assert scale > 30 or differs(ours[0].double(), 1.01 * exact[0])


@both_backends
@pytest.mark.parametrize("method", METHODS)
def test_backward_may_run_twice(method: str) -> None:
    problem = make_problem([9, 4, 9], bies(), dtype=torch.float32)
    with torch.no_grad():
        problem.emissions[2] *= 1e4
    arguments = [problem.emissions, *([problem.emissions.detach() + 1.0] if method == "divergence" else [])]
    arguments += [problem.tags, problem.mask] if method == "log_likelihood" else [problem.mask]
    value = getattr(problem.crf, method)(*arguments)
    value = (value * torch.linspace(0.5, 1.5, value.numel()).reshape(value.shape)).sum()
    first, second = (torch.autograd.grad(value, problem.inputs(), retain_graph=True) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    third = torch.autograd.grad(2 * value, problem.inputs())
    for one, other in zip(first, third, strict=True):
        torch.testing.assert_close(other, 2 * one)


@both_backends
def test_emission_gradient_at_length_512() -> None:
    single = make_problem([512, 300], everything(41), dtype=torch.float32, scale=3.0)
    likelihood = single.crf.log_likelihood(single.emissions, single.tags, single.mask)
    (gradient,) = gradients_of(likelihood.sum(), [single.emissions])
    for i, length in enumerate(single.lengths):
        _, marginals = reference.log_domain(single.chain(i))
        gold = nn.functional.one_hot(single.tags[i, :length], 41)
        exact = gold - torch.from_numpy(marginals)
        assert (gradient[i, :length] - exact).abs().max() < 1e-5
        assert (gradient[i, :length] + torch.from_numpy(marginals)).abs().max() > 0.1


@both_backends
@pytest.mark.parametrize("scale", [300.0, 1e4])
@pytest.mark.parametrize("length", [1, 2, 25])
@every_constraint
def test_extreme_emissions(legal: Legal, length: int, scale: float) -> None:
    problem = make_problem([length, 1], legal, seed=length, dtype=torch.float32)
    generator = torch.Generator().manual_seed(length)
    with torch.no_grad():
        problem.emissions.copy_(scale * (2 * torch.rand(problem.emissions.shape, generator=generator) - 1))
    crf, emissions, mask = problem.crf, problem.emissions, problem.mask
    likelihood, partition = crf.log_likelihood(emissions, problem.tags, mask), crf.log_partition(emissions, mask)
    marginals = crf.marginals(emissions, mask)
    divergence = crf.divergence(emissions, emissions.flip(2), mask)
    gradients = gradients_of((likelihood + divergence + marginals.square().sum((1, 2))).sum(), problem.inputs())
    for tensor in (likelihood, partition, marginals, divergence, *gradients):
        assert tensor.isfinite().all()
    (by_emission,) = gradients_of(crf.log_partition(emissions, mask).sum(), [emissions])
    rounding = 1e-6 * scale * length  # a sum of this size has no finer float32
    for i in range(2):
        expected, exact = reference.log_domain(problem.chain(i))
        seq = problem.lengths[i]
        assert partition[i].item() == pytest.approx(expected, rel=1e-5, abs=rounding)
        gold = reference.path_scores(problem.chain(i), [problem.gold(i)]).item() - expected
        assert likelihood[i].item() == pytest.approx(gold, rel=1e-5, abs=rounding)
        for found in (marginals, by_emission):
            assert (found[i, :seq] - torch.from_numpy(exact)).abs().max() < max(1e-5, rounding)
        path, score = reference.log_domain_viterbi(problem.chain(i))
        assert crf.decode(emissions, mask)[i] == path
        assert crf.viterbi_decode(emissions, mask)[1][i].item() == pytest.approx(score, rel=1e-5, abs=rounding)


@both_backends
@pytest.mark.parametrize("gap", [50.0, 300.0, 1e4])
def test_the_only_legal_path_may_look_hopeless(gap: float) -> None:
    """Tag 1 alone may end, and is reached from itself only: its forward weight beside tag 0 is exp(-gap * i)."""
    transitions, start, end = everything(2)
    transitions[0, 1] = end[0] = False
    crf = CRF(2, batch_first=True, legal_transitions=transitions, legal_start=start, legal_end=end)
    emissions = torch.zeros(1, 30, 2)
    emissions[..., 0] = gap
    emissions.requires_grad_()
    mask, tags = torch.ones(1, 30, dtype=torch.bool), torch.ones(1, 30, dtype=torch.int64)
    partition, likelihood = crf.log_partition(emissions, mask), crf.log_likelihood(emissions, tags, mask)
    expected = crf.start_transitions[1] + 29 * crf.transitions[1, 1] + crf.end_transitions[1]
    assert partition.item() == pytest.approx(expected.item(), abs=1e-4)
    assert likelihood.item() == pytest.approx(0.0, abs=1e-4)
    marginals = crf.marginals(emissions, mask)
    torch.testing.assert_close(marginals[0, :, 1], torch.ones(30), rtol=0, atol=1e-4)
    (gradient,) = gradients_of(partition.sum(), [emissions])
    torch.testing.assert_close(gradient, marginals, rtol=0, atol=1e-4)
    assert crf.decode(emissions, mask) == tags.tolist()
    assert [path for path, _ in crf.n_best(emissions, mask, 3)[0]] == tags.tolist()
    assert crf.divergence(emissions, -emissions, mask).item() == pytest.approx(0.0, abs=1e-3)


@both_backends
@pytest.mark.parametrize("lead", [10.0, 30.0, 60.0, 75.0, 85.0, 100.0, 500.0])
def test_a_late_reversal_is_not_lost(lead: float) -> None:
    """Two paths that never meet: the first half favours one by `lead`, the second half the other by 0.1 more."""
    transitions, start, end = everything(2)
    transitions[0, 1] = transitions[1, 0] = False
    crf = CRF(2, batch_first=True, legal_transitions=transitions, legal_start=start, legal_end=end)
    for parameter in crf.parameters():
        nn.init.zeros_(parameter)
    emissions = torch.zeros(1, 20, 2)
    emissions[0, :10, 0], emissions[0, 10:, 1] = lead / 10, lead / 10 + 0.01
    emissions.requires_grad_()
    mask = torch.ones(1, 20, dtype=torch.bool)
    partition, marginals = crf.log_partition(emissions, mask), crf.marginals(emissions, mask)
    assert partition.item() == pytest.approx(lead + 0.1 + math.log1p(math.exp(-0.1)), abs=1e-3)
    share = 1 / (1 + math.exp(-0.1))
    torch.testing.assert_close(marginals[0, :, 1], torch.full((20,), share), rtol=0, atol=1e-4)
    (gradient,) = gradients_of(partition.sum(), [emissions])
    torch.testing.assert_close(gradient, marginals, rtol=0, atol=1e-4)
    assert crf.decode(emissions, mask) == [[1] * 20]


@both_backends
def test_finite_transitions_may_be_as_good_as_forbidden() -> None:
    """Learned or loaded scores of -1e4 are no constraint: a path through them has a finite score."""
    legal = bies()
    problem = make_problem([12, 3, 7], everything(4), dtype=torch.float32)
    with torch.no_grad():
        problem.crf.transitions[~legal[0]] = -1e4
        problem.crf.start_transitions[~legal[1]] = -1e4
    tags = problem.tags.clone()
    tags[0, :12] = torch.tensor([0, 2, 2, 2] * 3)
    single = Problem(problem.crf, problem.legal, problem.emissions, problem.mask, tags, problem.lengths)
    double = as_float64(single)
    ours = single.crf.log_likelihood(single.emissions, tags, single.mask)
    exact = double.crf.log_likelihood(double.emissions, tags, double.mask)
    assert ours[0] < -5e4
    for i, chain in enumerate(double.chains()):
        partition, _ = reference.log_domain(chain)
        score = reference.path_scores(chain, [single.gold(i)]).item()
        assert ours[i].item() == pytest.approx(score - partition, rel=1e-6)
    pairs = zip(gradients_of(ours.sum(), single.inputs()), gradients_of(exact.sum(), double.inputs()), strict=True)
    for our, their in pairs:
        assert_equal(our.double(), their, 1e-5)


@both_backends
@pytest.mark.parametrize("num_tags", [1, 15, 16, 41])
def test_any_number_of_tags(num_tags: int) -> None:
    problem = make_problem([9, 20, 1], everything(num_tags), dtype=torch.float32, scale=2.0)
    crf, emissions, mask = problem.crf, problem.emissions, problem.mask
    partition = crf.log_partition(emissions, mask)
    (gradient,) = gradients_of(partition.sum(), [emissions])
    for i, (chain, length) in enumerate(zip(problem.chains(), problem.lengths, strict=True)):
        expected, marginals = reference.log_domain(chain)
        assert partition[i].item() == pytest.approx(expected, rel=1e-5)
        assert (gradient[i, :length] - torch.from_numpy(marginals)).abs().max() < 1e-5
        assert num_tags == 1 or (gradient[i, :length].flip(1) - torch.from_numpy(marginals)).abs().max() > 0.01


def test_viterbi_with_more_tags_than_a_byte_holds() -> None:
    problem = make_problem([9, 1, 4], everything(129))
    expected = [reference.log_domain_viterbi(chain)[0] for chain in problem.chains()]
    assert problem.crf.decode(problem.emissions, problem.mask) == expected
    assert [best[0][0] for best in problem.crf.n_best(problem.emissions, problem.mask, 2)] == expected
    assert problem.crf.decode(-problem.emissions, problem.mask) != expected


@both_backends
def test_hard_sentences_leave_the_others_alone() -> None:
    problem = make_problem([20, 20, 3, 20], LEGALS["random"], dtype=torch.float32)
    with torch.no_grad():
        problem.emissions *= torch.tensor([1.0, 1e4, 300.0, 3.0])[:, None, None]
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0])
    likelihood = problem.crf.log_likelihood(problem.emissions, problem.tags, problem.mask)
    together = gradients_of(likelihood @ weights, problem.inputs())
    summed = [torch.zeros_like(tensor) for tensor in together]
    for i, length in enumerate(problem.lengths):
        part = problem.emissions[i : i + 1, :length], problem.tags[i : i + 1, :length], problem.mask[i : i + 1, :length]
        alone = problem.crf.log_likelihood(*part)
        torch.testing.assert_close(alone[0], likelihood[i], rtol=1e-5, atol=1e-5)
        for total, gradient in zip(summed, gradients_of(alone[0] * weights[i], problem.inputs()), strict=True):
            total += gradient
    for ours, expected in zip(together, summed, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)
    assert differs(together[0], -summed[0])


@both_backends
def test_no_number_in_is_no_number_out() -> None:
    problem = make_problem([4, 4], bio(), dtype=torch.float32)
    with torch.no_grad():
        problem.emissions[0, 2, 1] = float("nan")
    likelihood = problem.crf.log_likelihood(problem.emissions, problem.tags, problem.mask)
    assert likelihood.isnan().tolist() == [True, False]
    assert problem.crf.log_partition(problem.emissions, problem.mask).isnan().tolist() == [True, False]
    (gradient,) = gradients_of(likelihood.sum(), [problem.emissions])
    assert gradient[0].isnan().any()
    assert gradient[1].isfinite().all()


@both_backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_minus_infinity_rules_a_tag_out(dtype: torch.dtype) -> None:
    problem = make_problem([6, 4], bio(), dtype=dtype)
    with torch.no_grad():
        problem.emissions[0, 2, 2] = float("-inf")
        problem.emissions[1, :, 1] = float("-inf")
    crf, emissions, mask = problem.crf, problem.emissions, problem.mask
    marginals, partition = crf.marginals(emissions.detach(), mask), crf.log_partition(emissions, mask)
    (gradient,) = gradients_of(partition.sum(), [emissions])
    for i, (chain, length) in enumerate(zip(problem.chains(), problem.lengths, strict=True)):
        expected, exact = reference.log_domain(chain)
        assert partition[i].item() == pytest.approx(expected, rel=1e-5)
        assert (marginals[i, :length] - torch.from_numpy(exact)).abs().max() < 1e-5
        assert (gradient[i, :length] - torch.from_numpy(exact)).abs().max() < 1e-5
        assert crf.decode(emissions, mask)[i] == reference.log_domain_viterbi(chain)[0]


@both_backends
def test_a_length_without_legal_sequences() -> None:
    """B must be followed by E: there is no sentence of one."""
    legal = torch.tensor([[False, True], [True, False]]), torch.tensor([True, False]), torch.tensor([False, True])
    problem = make_problem([4, 2], legal, dtype=torch.float32)
    mask = torch.tensor([[True, True, True, True], [True, False, False, False]])
    with pytest.raises(ValueError, match=r"row 1\b.*length 1\b"):
        problem.crf.decode(problem.emissions, mask)
    partition = problem.crf.log_partition(problem.emissions, mask)
    assert partition.isfinite().tolist() == [True, False]
    assert partition[1].item() == float("-inf")
    assert [len(paths) for paths in problem.crf.n_best(problem.emissions, mask, 3)] == [1, 0]


@both_backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_length_2000(dtype: torch.dtype) -> None:
    problem = make_problem([2000, 1999, 3], bio(), dtype=dtype, scale=2.0)
    crf, emissions, mask = problem.crf, problem.emissions, problem.mask
    partition, marginals = crf.log_partition(emissions, mask), crf.marginals(emissions, mask)
    likelihood = crf.log_likelihood(emissions, problem.tags, mask)
    gradients = gradients_of(likelihood.sum(), problem.inputs())
    assert all(gradient.isfinite().all() for gradient in gradients)
    paths, (_, scores) = crf.decode(emissions, mask), crf.viterbi_decode(emissions, mask)
    tight = dtype == torch.float64
    for i, length in enumerate(problem.lengths):
        expected, exact = reference.log_domain(problem.chain(i))
        assert partition[i].item() == pytest.approx(expected, rel=1e-10 if tight else 1e-5)
        assert partition[i].item() != pytest.approx(expected * 1.0001, rel=1e-10 if tight else 1e-5)
        difference = (marginals[i, :length].double() - torch.from_numpy(exact)).abs().max().item()
        assert difference < (1e-10 if tight else 1e-3)
        gold = nn.functional.one_hot(problem.tags[i, :length], 3).double()
        assert ((gradients[0][i, :length] - gold + torch.from_numpy(exact)).abs() < (1e-10 if tight else 1e-4)).all()
        path, score = reference.log_domain_viterbi(problem.chain(i))
        assert scores[i].item() == pytest.approx(score, rel=1e-10 if tight else 1e-5)
        if tight:
            assert paths[i] == path


def test_span_posterior_deep_inside_a_long_sentence() -> None:
    problem = make_problem([2000], bio(), dtype=torch.float32, scale=2.0)
    spans = [(999, 1002, [1, 2, 2], [2]), (0, 1, [0], []), (1999, 2000, [2], [])]
    (found,) = problem.crf.span_log_posteriors(problem.emissions, problem.mask, [spans])
    chain = problem.chain(0)
    partition, marginals = reference.log_domain(chain)
    assert math.exp(found[1]) == pytest.approx(marginals[0, 0], abs=1e-4)
    assert math.exp(found[2]) == pytest.approx(marginals[1999, 2], abs=1e-4)
    emissions = chain.emissions.detach().clone()
    forced = torch.full_like(emissions[999:1003], float("-inf"))
    for i, tag in enumerate([1, 2, 2]):
        forced[i, tag] = emissions[999 + i, tag]
    forced[3, :2] = emissions[1002, :2]
    emissions[999:1003] = forced
    constrained, _ = reference.log_domain(problem.chain(0, emissions[None]))
    assert found[0] == pytest.approx(constrained - partition, abs=1e-3)


@both_backends
@pytest.mark.parametrize("method", METHODS)
def test_autocast_computes_in_float32(method: str) -> None:
    problem = make_problem([40, 25, 1], bio(), dtype=torch.float32, scale=3.0)
    emissions = problem.emissions.detach().bfloat16().requires_grad_()
    plain = emissions.detach().float().requires_grad_()
    last = (problem.tags, problem.mask) if method == "log_likelihood" else (problem.mask,)

    def call(tensor: Tensor) -> Tensor:
        both = (tensor, tensor.detach().flip(2)) if method == "divergence" else (tensor,)
        return getattr(problem.crf, method)(*both, *last)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = call(emissions)
        again = call(plain)
    expected = call(plain)
    assert cast.dtype == torch.float32
    assert torch.equal(cast, expected)
    assert torch.equal(again, expected)
    assert not torch.equal(call(problem.emissions), expected)
    weights = torch.linspace(0.5, 1.5, expected.numel()).reshape(expected.shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gradients_of((call(emissions) * weights).sum(), [emissions, problem.crf.transitions])
    outside = gradients_of((expected * weights).sum(), [plain, problem.crf.transitions])
    assert inside[0].dtype == torch.bfloat16
    assert torch.equal(inside[0], outside[0].bfloat16())
    assert inside[1].dtype == torch.float32
    assert torch.equal(inside[1], outside[1])


def test_decoding_under_autocast() -> None:
    problem = make_problem([40, 25, 1], bio(), dtype=torch.float32, scale=3.0)
    emissions, mask, crf = problem.emissions.detach().bfloat16(), problem.mask, problem.crf
    spans = [[(2, 3, [0], [])], [], [(0, 1, [1], [])]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tags, scores = crf.viterbi_decode(emissions, mask)
        others = [
            crf.decode(emissions, mask),
            crf.n_best(emissions, mask, 4),
            crf.span_log_posteriors(emissions, mask, spans),
        ]
    expected, exact = crf.viterbi_decode(emissions.float(), mask)
    assert torch.equal(tags, expected)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, exact)
    emissions = emissions.float()
    assert others == [
        crf.decode(emissions, mask),
        crf.n_best(emissions, mask, 4),
        crf.span_log_posteriors(emissions, mask, spans),
    ]


# Drop-in for pytorch-crf 0.7.2.


def both_layers(num_tags: int = 4, batch_first: bool = False) -> tuple[CRF, torchcrf.CRF]:
    original = torchcrf.CRF(num_tags, batch_first=batch_first).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in original.parameters():
        nn.init.normal_(parameter, generator=generator)
    ours = CRF(num_tags, batch_first=batch_first).double()
    ours.load_state_dict(original.state_dict())
    return ours, original


@both_backends
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.uint8, None])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "token_mean"])
def test_parity_with_pytorch_crf(reduction: str, batch_first: bool, mask_dtype: torch.dtype | None) -> None:
    ours, original = both_layers(batch_first=batch_first)
    problem = make_problem(MIXED, everything(4))
    emissions, tags, mask = problem.emissions.detach(), problem.tags, problem.mask
    if not batch_first:
        emissions, tags, mask = emissions.transpose(0, 1), tags.t(), mask.t()
    emissions.requires_grad_()
    whole = torch.ones_like(mask) if mask_dtype is None else mask
    given_mask = None if mask_dtype is None else mask.to(mask_dtype)
    value = ours(emissions, tags, given_mask, reduction=reduction)
    expected = original(emissions, tags, whole, reduction=reduction)
    assert value.shape == expected.shape
    assert_equal(value, expected)
    assert differs(value, original(emissions + 0.1 * torch.arange(4), tags, whole, reduction=reduction))
    weights = torch.linspace(1, 2, expected.numel()).double().reshape(expected.shape)
    gradients = [
        gradients_of((result * weights).sum(), [emissions, *layer.parameters()])
        for result, layer in [(value, ours), (expected, original)]
    ]
    for our, their in zip(*gradients, strict=True):
        assert_equal(our, their)
    assert ours.decode(emissions, given_mask) == original.decode(emissions, whole)
    assert ours.decode(emissions, given_mask) != original.decode(-emissions, whole)


def test_defaults_are_those_of_pytorch_crf() -> None:
    ours, original = both_layers()
    assert isinstance(ours, torchcrf.CRF)
    problem = make_problem([3, 3], everything(4))
    emissions, tags = problem.emissions.transpose(0, 1), problem.tags.t()
    assert_equal(ours(emissions, tags), original(emissions, tags, torch.ones(3, 2, dtype=torch.bool)))
    fresh = list(CRF(40).parameters())
    assert all(parameter.abs().max() <= 0.1 for parameter in fresh)
    assert fresh[2].std() > 0.04
    with pytest.raises(ValueError, match="tags"):
        CRF(0)


def test_checkpoints_go_both_ways() -> None:
    transitions, start, end = bies()
    torch.manual_seed(0)
    original = torchcrf.CRF(4, batch_first=True)
    ours = CRF(4, batch_first=True, legal_transitions=transitions, legal_start=start, legal_end=end)
    assert list(ours.state_dict()) == list(original.state_dict())
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in original.named_parameters()]
    ours.load_state_dict(original.state_dict(), strict=True)
    for parameter, loaded in zip(original.parameters(), ours.parameters(), strict=True):
        assert torch.equal(parameter, loaded)
    torchcrf.CRF(4).load_state_dict(ours.state_dict(), strict=True)
    with pytest.raises(RuntimeError):
        CRF(3).load_state_dict(original.state_dict())


def test_methods_are_batch_first_whatever_the_layout_of_forward() -> None:
    ours, _ = both_layers()
    problem = make_problem(MIXED, everything(4))
    first = CRF(4, batch_first=True).double()
    first.load_state_dict(ours.state_dict())
    assert_equal(
        ours.log_likelihood(problem.emissions, problem.tags, problem.mask),
        first(problem.emissions, problem.tags, problem.mask, reduction="none"),
    )
    assert_equal(ours.marginals(problem.emissions, problem.mask), first.marginals(problem.emissions, problem.mask))


def test_a_gradient_step_raises_the_likelihood() -> None:
    problem = make_problem([9, 5, 7], bio(), dtype=torch.float32)
    problem.emissions.requires_grad_(False)
    optimizer = torch.optim.SGD(problem.crf.parameters(), lr=0.05)
    values = []
    for _ in range(20):
        loss = -problem.crf(problem.emissions, problem.tags, problem.mask, reduction="mean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0] - 0.1


# Label smoothing: a target over sequences around the gold.


def hard_loss(problem: Problem) -> Tensor:
    return -problem.crf.log_likelihood(problem.emissions, problem.tags, problem.mask)


def smoothed_loss(problem: Problem, epsilon: float) -> Tensor:
    extra = problem.crf.label_smoothing(problem.emissions, problem.tags, problem.mask, epsilon)
    return hard_loss(problem) + extra


@few_examples
@given(problems(), st.sampled_from([0.0, 0.05, 0.3, 0.9]))
def test_smoothed_loss_equals_enumeration(problem: Problem, epsilon: float) -> None:
    expected = [
        loss_reference.smoothed(chain, problem.gold(index), epsilon) for index, chain in enumerate(problem.chains())
    ]
    found = smoothed_loss(problem, epsilon)
    assert_equal(found, torch.stack(expected))
    weights = torch.linspace(1, 2, len(expected), dtype=torch.float64)
    assert_gradients_equal(found @ weights, torch.stack(expected) @ weights, problem.inputs())


@every_constraint
def test_smoothing_is_felt_and_nothing_without_epsilon(legal: Legal) -> None:
    problem = make_problem(MIXED, legal)
    assert_equal(smoothed_loss(problem, 0.0), hard_loss(problem))
    assert (smoothed_loss(problem, 0.1) - hard_loss(problem)).abs().max() > 1e-3
    target = torch.stack([
        -torch.special.xlogy(t := loss_reference.path_targets(chain, problem.gold(index), 0.1), t).sum()
        for index, chain in enumerate(problem.chains())
    ])  # fmt: skip
    assert (smoothed_loss(problem, 0.1) >= target - 1e-9).all()  # a cross-entropy: at least the target's own entropy


def test_smoothing_without_constraints_is_the_closed_form() -> None:
    problem = make_problem(MIXED, everything(4))
    for index, chain in enumerate(problem.chains()):
        expected = loss_reference.smoothed_over_all_paths(chain, problem.gold(index), 0.2, forbidden=0.0)
        assert_equal(smoothed_loss(problem, 0.2)[index], expected)


def test_smoothing_does_not_visit_what_is_forbidden() -> None:
    problem = make_problem([5], bies())
    found = smoothed_loss(problem, 0.1)[0]
    (chain,), gold = problem.chains(), problem.gold(0)
    # the closed form with constraints as -1e4: hundreds of nats for moves that the model cannot make
    assert loss_reference.smoothed_over_all_paths(chain, gold, 0.1, forbidden=-1e4) > found + 500
    # what stands at forbidden entries is nothing at all
    for value in (-1e4, math.inf, math.nan):
        with torch.no_grad():
            for name in ("transitions", "start_transitions", "end_transitions"):
                legal = getattr(problem.crf, f"legal_{name.replace('_transitions', '')}")
                getattr(problem.crf, name).masked_fill_(~legal, value)
        assert torch.equal(smoothed_loss(problem, 0.1)[0], found)
    gradients = gradients_of(smoothed_loss(problem, 0.1).sum(), problem.inputs()[1:])
    assert not gradients[0][~problem.crf.legal_transitions].any()
    assert gradients[0][problem.crf.legal_transitions].all()


def test_smoothed_loss_has_a_lower_bound() -> None:
    # all transitions less a constant are the same distribution; the closed form that counts forbidden moves as 0 would reward it
    problem = make_problem([5], bies())
    before = smoothed_loss(problem, 0.1)[0]
    naive = loss_reference.smoothed_over_all_paths(problem.chain(0), problem.gold(0), 0.1, forbidden=0.0)
    with torch.no_grad():
        problem.crf.transitions -= 1000.0
    assert_equal(smoothed_loss(problem, 0.1)[0], before, 1e-9)
    assert loss_reference.smoothed_over_all_paths(problem.chain(0), problem.gold(0), 0.1, forbidden=0.0) < naive - 50


def test_smoothing_in_float32_and_beside_padding() -> None:
    exact = make_problem([40, 7, 1, 23], bies(), scale=3.0)
    single = make_problem([40, 7, 1, 23], bies(), dtype=torch.float32, scale=3.0)
    single.tags.copy_(exact.tags)
    for source, target in zip(exact.inputs(), single.inputs(), strict=True):
        with torch.no_grad():
            target.copy_(source)
            single.emissions[~single.mask] = math.nan
    found = single.crf.label_smoothing(single.emissions, single.tags, single.mask, 0.1)
    expected = exact.crf.label_smoothing(exact.emissions, exact.tags, exact.mask, 0.1)
    assert_equal(found.double(), expected, 1e-4)
    for ours, theirs in zip(
        gradients_of(found.sum(), single.inputs()), gradients_of(expected.sum(), exact.inputs()), strict=True
    ):
        assert_equal(ours.double(), theirs, 1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        under = single.crf.label_smoothing(single.emissions, single.tags, single.mask, 0.1)
    assert torch.equal(under, found)


# Some of the tags alone.


@both_backends
def test_only_allowed_tags_take_part() -> None:
    # of BIO's paths without B only O ... O is left
    for legal, tags in (
        (bio(), torch.tensor([True, False, True])),
        (everything(5), torch.tensor([True, False, True, True, False])),
    ):
        problem = make_problem([1, 4, 3], legal, seed=3)
        restricted = (legal[0] & tags & tags[:, None], legal[1] & tags, legal[2] & tags)
        expected = make_problem([1, 4, 3], restricted, seed=3)
        free = problem.crf.log_partition(problem.emissions, problem.mask)
        problem.crf.restrict(tags)
        results, wanted = [], []
        for each, into in ((problem, results), (expected, wanted)):
            partition = each.crf.log_partition(each.emissions, each.mask)
            nodes = each.crf.marginals(each.emissions, each.mask)
            path, score = each.crf.viterbi_decode(each.emissions, each.mask)
            gradients = torch.autograd.grad(partition.sum() + nodes.square().sum(), each.inputs())
            into.extend([partition.detach(), nodes.detach(), path, score, *gradients])
        assert all(torch.equal(one, other) for one, other in zip(results, wanted, strict=True))
        reference_values = torch.stack([reference.log_partition(chain) for chain in expected.chains()])
        assert torch.allclose(results[0], reference_values)
        assert not torch.allclose(results[0], free)
        assert not results[4][..., ~tags].any()  # exactly no gradient to what takes no part
        assert not results[5][~tags].any()
        assert not results[5][:, ~tags].any()
        smoothing = problem.crf.label_smoothing(problem.emissions, path, problem.mask, 0.2)
        few = CRF(int(tags.sum()), True, legal_transitions=legal[0][tags][:, tags], legal_start=legal[1][tags],
                  legal_end=legal[2][tags]).double()  # fmt: skip
        with torch.no_grad():
            few.transitions.copy_(problem.crf.transitions[tags][:, tags])
            few.start_transitions.copy_(problem.crf.start_transitions[tags])
            few.end_transitions.copy_(problem.crf.end_transitions[tags])
        emissions, numbers = problem.emissions[..., tags], (tags.cumsum(0) - 1)[path]
        assert torch.allclose(few.log_partition(emissions, problem.mask), results[0])
        assert torch.allclose(few.label_smoothing(emissions, numbers, problem.mask, 0.2), smoothing)
        problem.crf.restrict(None)
        assert torch.equal(problem.crf.log_partition(problem.emissions, problem.mask), free)
        assert differs(problem.crf.label_smoothing(problem.emissions, path, problem.mask, 0.2), smoothing)


def test_a_restriction_is_checked_and_not_saved() -> None:
    crf = CRF(3)
    for wrong in ([True, True], [False, False, False]):
        with pytest.raises(ValueError, match="allowed must be 3 values"):
            crf.restrict(wrong)
    before = set(crf.state_dict())
    crf.restrict([True, False, True])
    assert set(crf.state_dict()) == before == set(torchcrf.CRF(3).state_dict())


# Samples.


@pytest.mark.parametrize("legal", [bio(), bies(), everything(3)], ids=["bio", "bies", "all"])
def test_samples_have_the_probabilities_of_the_list(legal: Legal) -> None:
    problem = make_problem([3, 2], legal, seed=5)
    draws = 4000
    generator = np.random.default_rng(1)
    emissions, mask = problem.emissions.repeat(draws, 1, 1), problem.mask.repeat(draws, 1)
    drawn = problem.crf.sample(emissions, mask, generator.random((2 * draws, 3)))
    assert not drawn[1::2, 2].any()
    for index, length in enumerate(problem.lengths):
        paths = reference.paths_of(problem.chain(index))
        expected = reference.probabilities(problem.chain(index)).detach()
        counted = torch.tensor([(drawn[index::2, :length] == torch.tensor(path)).all(1).sum() for path in paths])
        assert int(counted.sum()) == draws  # nothing illegal
        likely = expected * draws > 5
        statistic = float(((counted - draws * expected).square() / (draws * expected))[likely].sum())
        assert statistic < 2 * int(likely.sum()) + 10  # chi square: its mean is the number of cells
        uniform = draws / len(paths)
        assert float(((counted - uniform).square() / uniform).sum()) > 100


def test_a_sample_depends_on_its_own_numbers_alone() -> None:
    problem = make_problem([4, 2, 1], bies(), seed=2)
    uniforms = np.random.default_rng(2).random((3, 4))
    together = problem.crf.sample(problem.emissions, problem.mask, uniforms)
    for row, length in enumerate(problem.lengths):
        cut = slice(row, row + 1), slice(0, length)
        alone = problem.crf.sample(problem.emissions[cut], problem.mask[cut], uniforms[cut])
        assert torch.equal(alone[0], together[row, :length])
    extremes = [problem.crf.sample(problem.emissions, problem.mask, np.full((3, 4), u)) for u in (0.0, 1.0 - 2**-53)]
    for path in extremes:  # the ends of the interval are legal sequences too
        assert torch.isfinite(problem.crf.log_likelihood(problem.emissions, path, problem.mask)).all()
    assert not torch.equal(*extremes)
    with pytest.raises(ValueError, match="uniforms must have shape"):
        problem.crf.sample(problem.emissions, problem.mask, uniforms[:, :3])
