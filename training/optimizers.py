"""Optimizers and their parameter groups."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from hanzoo.models.layers.crf import CRF
from hanzoo.models.layers.embedding import VocabularyEmbedding
from hanzoo.models.model import Model, Settings


class OptimizerSettings(Settings):
    """The `train.optimizer` section.

    Attributes:
        name: adamw (Loshchilov and Hutter 2019) or sgd.
        learning_rate: at the peak of the schedule.
        embedding_factor: the embedding tables' rate as a share of it. Low values keep the pretrained vectors of train's
            words near those of the words that train does not hold.
        weight_decay: decoupled in adamw, added to the gradient in sgd; not for biases, normalisation, embedding tables and
            CRF scores.
        momentum: of sgd.
        beta2: second-moment decay of adamw.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0.0)
    embedding_factor: float = Field(default=1.0, ge=0.0)
    weight_decay: float = Field(default=0.01, ge=0.0)
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    beta2: float = Field(default=0.999, gt=0.0, lt=1.0)


def build_optimizer(model: Model, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """The optimizer, fused, with a group for each pair of rate and decay.

    Groups are made by what a parameter is, not by its name: vectors and scalars, embedding tables and all parameters of a CRF
    are not decayed. A group's `factor` times the schedule's rate is its rate.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for module in model.modules():
        is_table = isinstance(module, VocabularyEmbedding | nn.Embedding)
        factor = settings.embedding_factor if is_table else 1.0
        spared = is_table or isinstance(module, CRF | nn.LayerNorm)
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                decay = 0.0 if spared or parameter.ndim <= 1 else settings.weight_decay
                groups.setdefault((factor, decay), []).append(parameter)
    options = [
        {"params": parameters, "factor": factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]
    if settings.name == "sgd":
        return torch.optim.SGD(options, lr=settings.learning_rate, momentum=settings.momentum, fused=True)
    return torch.optim.AdamW(options, lr=settings.learning_rate, betas=(0.9, settings.beta2), fused=True)
