"""Optimizers and their parameter groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from hanzoo.errors import RecipeError, nearest
from hanzoo.models.layers.crf import CRF
from hanzoo.models.model import Model, Settings, is_table


class OptimizerSettings(Settings):
    """The `train.optimizer` section.

    Attributes:
        name: adamw (Loshchilov and Hutter 2019), adamax (Kingma and Ba 2015, section 7.1), or sgd.
        learning_rate: at the peak of the schedule.
        rates: factor of the rate for parts of the model, by the names of its modules, e.g. {crf: 5.0, characters: 0.5}; the
            longest name that fits counts. A low one for embedding tables keeps the pretrained vectors of train's words near
            those of the words that train does not hold; a CRF on a pretrained encoder wants a high one.
        layer_decay: factor of the rate from each layer to the one below it; 1 = none. ELECTRA: 0.8 (Clark et al. 2020).
        weight_decay: decoupled in adamw, added to the gradient in adamax and sgd; not for biases, normalisation, embedding
            tables and CRF scores.
        momentum: of sgd; 0 = none.
        beta2: second-moment decay of adamw, decay of the infinity norm in adamax.
        sgd_from_epoch: from this epoch on (1 = the first) sgd, which begins without momentum, takes the place of the other
            optimizer (Keskar and Socher 2017; they find the moment, here it is given); None = never.
        sgd_learning_rate: its rate at the peak of the schedule, which goes on.
    """

    name: Literal["adamw", "adamax", "sgd"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0.0)
    rates: dict[str, Annotated[float, Field(ge=0.0)]] = Field(default_factory=dict)
    layer_decay: float = Field(default=1.0, gt=0.0, le=1.0)
    weight_decay: float = Field(default=0.01, ge=0.0)
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    beta2: float = Field(default=0.999, gt=0.0, lt=1.0)
    sgd_from_epoch: int | None = Field(default=None, ge=2)
    sgd_learning_rate: float | None = Field(default=None, gt=0.0)

    @model_validator(mode="after")
    def _switch_is_complete(self) -> Self:
        if (self.sgd_from_epoch is None) != (self.sgd_learning_rate is None):
            missing = "sgd_learning_rate" if self.sgd_learning_rate is None else "sgd_from_epoch"
            raise ValueError(f"{missing} must stand beside the other of the two, but is missing. Set both, or neither.")
        if self.sgd_from_epoch is not None and self.name == "sgd":
            raise ValueError("sgd_from_epoch must follow adamw or adamax, but name is 'sgd'. Leave it out.")
        return self

    def in_epoch(self, epoch: int) -> OptimizerSettings:
        """What holds in an epoch (0 = the first): these settings, or from the switch on those of its sgd."""
        if self.sgd_from_epoch is None or epoch + 1 < self.sgd_from_epoch:
            return self
        changes = {"name": "sgd", "learning_rate": self.sgd_learning_rate}
        return self.model_copy(update=changes | {"sgd_from_epoch": None, "sgd_learning_rate": None})


@dataclass
class ParameterGroup:
    """Parameters with one rate and one decay.

    Attributes:
        factor: of the learning rate.
        weight_decay: theirs.
        parameters: in the order of the model's modules.
        names: theirs.
    """

    factor: float
    weight_decay: float
    parameters: list[nn.Parameter] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    @property
    def parts(self) -> str:
        """The modules that they belong to, as short as may be."""
        children: dict[str, list[str]] = {}
        for name in self.names:
            child, _, rest = name.partition(".")
            children.setdefault(child, []).append(rest)
        return ", ".join(".".join([child, *_common_modules(rests)]) for child, rests in children.items())


def _common_modules(names: Sequence[str]) -> list[str]:
    """The modules that all these parameters lie in."""
    common = []
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return common


def parameter_groups(model: Model, settings: OptimizerSettings) -> list[ParameterGroup]:
    """A group for each pair of rate and decay; each trainable parameter is in exactly one, a tied one where it comes first.

    What is not decayed is told by what a parameter is, not by its name: vectors and scalars, embedding tables and all parameters
    of a CRF. The rate is told by its place: `rates` by the modules it lies in, `layer_decay` by its depth.

    Raises:
        RecipeError: `rates` names a module that the model does not train.
    """
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    _check_rates(settings.rates, trained)
    top = max((model.depth(name) for name in trained), default=0)
    groups: dict[tuple[float, float], ParameterGroup] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        spared = is_table(module) or isinstance(module, CRF | nn.LayerNorm)
        for own, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            name = f"{path}.{own}" if path else own
            factor = _rate_of(name, settings.rates) * settings.layer_decay ** (top - model.depth(name))
            decay = 0.0 if spared or parameter.ndim <= 1 else settings.weight_decay
            group = groups.setdefault((factor, decay), ParameterGroup(factor, decay))
            group.parameters.append(parameter)
            group.names.append(name)
    if sorted(name for group in groups.values() for name in group.names) != sorted(trained):
        raise AssertionError("each trainable parameter must be in exactly one group")
    return list(groups.values())


def _modules_of(name: str) -> list[str]:
    """A parameter's name and the modules it lies in, longest first: a.b.weight, a.b, a."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _rate_of(name: str, rates: Mapping[str, float]) -> float:
    return next((rates[module] for module in _modules_of(name) if module in rates), 1.0)


def _check_rates(rates: Mapping[str, float], trained: Sequence[str]) -> None:
    known = {module for name in trained for module in _modules_of(name)}
    children = list(dict.fromkeys(name.partition(".")[0] for name in trained))
    for name in rates:
        if name not in known:
            raise RecipeError(
                f"train.optimizer.rates: a name must be a part of the model that is trained, but is {name!r}."
                f"{nearest(name, known)} Known: {', '.join(children)}, and what lies in them."
            )


def build_optimizer(model: Model, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """The optimizer, fused where torch can. A group's `factor` times the schedule's rate is its rate.

    Raises:
        RecipeError: `rates` names a module that the model does not train.
    """
    options = [
        {"params": group.parameters, "factor": group.factor, "weight_decay": group.weight_decay}
        for group in parameter_groups(model, settings)
    ]
    match settings.name:
        case "sgd":
            return torch.optim.SGD(options, lr=settings.learning_rate, momentum=settings.momentum, fused=True)
        case "adamax":  # torch has no fused one
            return torch.optim.Adamax(options, lr=settings.learning_rate, betas=(0.9, settings.beta2))
        case "adamw":
            return torch.optim.AdamW(options, lr=settings.learning_rate, betas=(0.9, settings.beta2), fused=True)


def describe_groups(groups: Sequence[ParameterGroup], learning_rate: float) -> list[str]:
    """The table of groups, as a person reads it; rates are those at the peak of the schedule."""
    rows = [("group", "rate", "decay", "tensors", "parameters")]
    for group in groups:
        numbers = (len(group.parameters), sum(parameter.numel() for parameter in group.parameters))
        rate = f"{learning_rate * group.factor:.3g}"
        rows.append((group.parts, rate, f"{group.weight_decay:g}", f"{numbers[0]:,}", f"{numbers[1]:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def scaled_rate(name: str, learning_rate: float, size: int, chosen_for: int) -> float:
    """The rate that a step over `size` rows suggests where `learning_rate` was chosen for one over `chosen_for`.

    Linear for sgd (Goyal et al. 2017, section 2.1). The square root for optimizers that divide by the size of the gradient
    (Krizhevsky 2014, section 5; Malladi et al. 2022, definition 5.1).
    Differs: Malladi et al. scale 1 - beta and epsilon too.
    """
    ratio = size / chosen_for
    return learning_rate * (ratio if name == "sgd" else math.sqrt(ratio))
