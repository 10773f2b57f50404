"""The diagonal of the Fisher information of a tagger with a CRF, by listing every tag sequence: slow, obvious, float64.

F = sum over sequences y of p(y | x) * (d log p(y | x) / d weight)^2.

Source: Kirkpatrick et al. 2017, section 2 (after Pascanu and Bengio 2014).
Cost: a backward pass for each of up to num_tags ** seq paths.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tests.references import crf as reference


def fisher_information(emissions: Tensor, crf: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """By parameter name, for one text.

    Args:
        emissions: (seq, num_tags) float64, with the graph back to the parameters.
        crf: transitions, start_transitions, end_transitions, legal_transitions, legal_start, legal_end.
        parameters: what to differentiate by.
    """
    chain = reference.Chain(
        emissions, crf.transitions, crf.start_transitions, crf.end_transitions,
        crf.legal_transitions, crf.legal_start, crf.legal_end,
    )  # fmt: skip
    paths = reference.paths_of(chain)
    logarithms = reference.path_scores(chain, paths).log_softmax(0)
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for logarithm in logarithms:
        found = torch.autograd.grad(logarithm, list(parameters.values()), retain_graph=True, allow_unused=True)
        for name, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                total[name] += logarithm.exp().detach() * gradient**2
    assert len(paths) > 1
    return total
