"""EWC, elastic weight consolidation: pull each weight back to where the run started, the harder the more the old data needs it.

Source: Kirkpatrick et al. 2017, equation 3: lambda / 2 of the squared distance to the start, each entry weighted by the diagonal
of the Fisher information, E[(d log p(y | x) / d weight)^2] over old texts x and labels y drawn from the model itself (with gold
labels it would be the "empirical Fisher", which vanishes where the old data is learnt by heart; with the best ones it is neither).
Differs: the Fisher information is divided by its mean, so that `weight` (lambda) is the strength for an average weight, and means
about the same for every model; one drawing of the labels a text, as is usual. What the start did not have (the tags of new
labels) is left free. Where the start itself went on from another run, only the data of the last one counts.
Cost: `num_samples` forward and backward passes over single texts of the old data, once; then two more copies of the weights and one
pass over them a step. Needs `train.start_from` with its run directory, whose data is read again. Not with L2-SP: both hold the
weights in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hanzoo.data.randomness import generator
from hanzoo.models.model import Model, Settings, evaluating
from hanzoo.training.anchors import Pull, kept
from hanzoo.training.distributed import share, sum_tensor
from hanzoo.training.trick import Start


class EWCSettings(Settings):
    """Fields of `train.tricks.ewc`.

    Attributes:
        weight: lambda in the paper: strength of the pull for a weight of average importance; 0 is training without it.
        num_samples: texts of the old train that the Fisher information is estimated from, at most.
    """

    weight: float = Field(default=1.0, ge=0.0)
    num_samples: int = Field(default=1000, ge=1)


class EWC(Pull):
    """The strength of a weight is `settings.weight` times its Fisher information over the mean of all."""

    Settings: ClassVar[type[EWCSettings]] = EWCSettings
    excludes: ClassVar[Mapping[str, str]] = {"l2_sp": "both hold the weights in place"}

    @torch.no_grad()
    def pulls(self, model: Model, start: Start, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        items = start.items()
        chosen = generator(seed, "fisher").permutation(len(items))[: self.settings.num_samples].tolist()
        with start.labelled():
            fisher = fisher_information(model, items, chosen, seed)
        old = kept(model, start)
        total = sum(float(values[old[name]].double().sum()) for name, values in fisher.items())
        mean = total / sum(int(mask.sum()) for mask in old.values())
        factor = self.settings.weight / mean if mean > 0 else 0.0
        anchors = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        return anchors, {name: torch.where(old[name], values * factor, 0.0) for name, values in fisher.items()}


def fisher_information(model: Model, items: Sequence[Any], numbers: Sequence[int], seed: int) -> dict[str, Tensor]:
    """The diagonal of the Fisher information, by parameter name: the mean over texts of squared gradients, one text at a time.

    In evaluation mode, so without dropout, and in the precision of the weights. Ranks share the texts. Collective.

    Args:
        model: its own distribution is what the labels are drawn from.
        items: features.
        numbers: which of them; each also keys its drawing.
        seed: keys the drawings.
    """
    parameters = dict(model.named_parameters())
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    # cuDNN has no backward pass of an LSTM in evaluation mode
    with evaluating(model), torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        for number in share(numbers):
            batch = model.collate([items[number]]).to(model.device)
            output = model(batch)
            drawn = model.sample_targets(output, batch, generator(seed, "fisher", number))
            loss = torch.stack([values.sum() for values in model.losses(output, drawn).values()]).sum()
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for total, gradient in zip(sums.values(), found, strict=True):
                if gradient is not None:
                    total.addcmul_(gradient, gradient)
    return {name: sum_tensor(total).div_(len(numbers)) for name, total in sums.items()}
