"""One vector a text from the hidden states of its pieces. None of the ways needs a pretrained pooler.

Source: Reimers and Gurevych 2019 (Sentence-BERT), section 3: the mean over the pieces, or the state of [CLS]. First-last
average: Su et al. 2021 (BERT-whitening); its "first" is the output of the first layer, not the embedding table.
Differs: padding never counts, wherever it stands and whatever it holds; a text without pieces is refused, not made a zero vector.
[CLS] and [SEP] count like other pieces, as in all public Chinese models. Sums are float32 at least.
Cost: one pass over the states.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean_pooling(states: Tensor, mask: Tensor) -> Tensor:
    """The mean of a text's states.

    Args:
        states: (batch, seq, hidden) float.
        mask: (batch, seq) bool, True = real piece; at least one a row.

    Returns:
        (batch, hidden) float32, or float64 for float64 states.

    Raises:
        ValueError: a text has no pieces, or a shape is wrong.
    """
    _check(states, mask)
    states = states.to(torch.promote_types(states.dtype, torch.float32))
    # where, not a product: 0 times what padding holds may be NaN
    sums = torch.where(mask.unsqueeze(2), states, 0.0).sum(1)
    return sums / mask.sum(1, keepdim=True)


def cls_pooling(states: Tensor, mask: Tensor) -> Tensor:
    """The state of a text's first piece, which is [CLS]; see `mean_pooling`."""
    _check(states, mask)
    batch, seq, _ = states.shape
    first = mask.to(torch.uint8).argmax(1) + seq * torch.arange(batch, device=mask.device)
    chosen = states.flatten(0, 1).index_select(0, first)
    return chosen.to(torch.promote_types(states.dtype, torch.float32))


def first_last_pooling(first: Tensor, last: Tensor, mask: Tensor) -> Tensor:
    """The mean over a text's pieces of the mean of two layers' states; see `mean_pooling`.

    Args:
        first: (batch, seq, hidden) float, what the first layer gives (`hidden_states[1]` of transformers).
        last: (batch, seq, hidden) float, what the last layer gives.
        mask: (batch, seq) bool, True = real piece; at least one a row.
    """
    if first.shape != last.shape:
        raise ValueError(f"pooling: first must have shape {tuple(last.shape)}, but has {tuple(first.shape)}.")
    return (mean_pooling(first, mask) + mean_pooling(last, mask)) / 2


def _check(states: Tensor, mask: Tensor) -> None:
    if states.dim() != 3 or mask.shape != states.shape[:2]:
        raise ValueError(
            f"pooling: mask must have shape {tuple(states.shape[:2])} for states of three dimensions, but has "
            f"{tuple(mask.shape)} for {states.dim()}."
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"pooling: mask must be bool, but is {mask.dtype}. Give True for real pieces.")
    empty = (~mask.any(1)).nonzero()
    if len(empty):
        raise ValueError(
            f"pooling: row {int(empty[0])} of mask must have a real piece, but has none. Refuse texts without pieces before."
        )
