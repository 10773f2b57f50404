"""The attention of FLAT over given lattices, forward and backward: ours, and the plain one; also what a fresh process runs.

    python -m benchmarks.flat_attention SIDE LATTICES [--threads 2] [--imports]

SIDE is ours or plain, LATTICES a file that `Lattices.save` wrote. One layer is run once, forward and backward; with --imports none
is: what a process takes that has only loaded its libraries.

Nothing is imported here that a layer does not need: the memory of such a process is measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from benchmarks.plain_flat import PlainRelativeAttention
from hanzoo.data.lattice import Lattice
from hanzoo.data.windows import rounded
from hanzoo.models.layers.relative_position import RelativeAttention

WIDTH, HEADS = 160, 8
SIDES = ("ours", "plain")


@dataclass(frozen=True)
class Lattices:
    """Texts of one length and the words found in them.

    Attributes:
        characters: of each text.
        words: of each text the (start, end) of its words, half-open.
    """

    characters: int
    words: Sequence[Sequence[tuple[int, int]]]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps([self.characters, self.words]), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls(*json.loads(path.read_text(encoding="utf-8")))

    @property
    def most(self) -> int:
        """Words of the text that has most."""
        return max(map(len, self.words))


@dataclass(frozen=True)
class Pass:
    """What one forward and backward pass came to.

    Attributes:
        states: (batch, characters, width), of the characters.
        gradients: of the hidden states of the characters, and of W_r of the first layer.
    """

    states: Tensor
    gradients: tuple[Tensor, Tensor]


class OurSide:
    """`RelativeAttention` as the model calls it: columns padded as a batch has them, the last layer for characters alone.

    Args:
        layers: run one behind the other.
        lattices: of the batch.
        hidden: (batch, characters + most words, width): of both, words left-aligned behind the characters.
    """

    def __init__(self, layers: Sequence[RelativeAttention], lattices: Lattices, hidden: Tensor) -> None:
        self.layers = layers
        seq, most = rounded(lattices.characters), rounded(lattices.most)
        words = [np.array(row, dtype=np.int64).reshape(-1, 2) for row in lattices.words]
        batch = len(words)
        self.positions = Lattice.of([lattices.characters] * batch, [(row[:, 0], row[:, 1]) for row in words], seq, most)
        self.characters = lattices.characters
        self.hidden = hidden.new_zeros(batch, seq + most, hidden.shape[2])
        self.hidden[:, : self.characters] = hidden[:, : self.characters]
        self.hidden[:, seq : seq + lattices.most] = hidden[:, self.characters :]

    def __call__(self, gradient: Tensor) -> Pass:
        """Run; `gradient` (batch, characters, width) is that of the states."""
        start = states = self.hidden.detach().requires_grad_()
        for layer in self.layers[:-1]:
            states = layer(states, self.positions)
        states = self.layers[-1](states, self.positions, self.positions.seq)[:, : self.characters]
        return _backward(self.layers, start, states, gradient)


class PlainSide:
    """`PlainRelativeAttention` as the released code calls its own: all columns ask in every layer; the characters are then cut out.

    (That code makes the encodings of pairs once for all layers and has one W_r; here each layer has its own, as ours have.)

    Args:
        layers: run one behind the other.
        lattices: of the batch.
        hidden: (batch, characters + most words, width).
    """

    def __init__(self, layers: Sequence[PlainRelativeAttention], lattices: Lattices, hidden: Tensor) -> None:
        self.layers = layers
        self.hidden = hidden
        self.characters = lattices.characters
        batch, columns, _ = hidden.shape
        self.heads = torch.zeros(batch, columns, dtype=torch.int64)
        self.heads[:, : self.characters] = torch.arange(self.characters)
        self.tails = self.heads.clone()
        self.mask = torch.zeros(batch, columns, dtype=torch.bool)
        for number, row in enumerate(lattices.words):
            words = torch.tensor(row, dtype=torch.int64).view(-1, 2)
            end = self.characters + len(row)
            self.mask[number, :end] = True
            self.heads[number, self.characters : end] = words[:, 0]
            self.tails[number, self.characters : end] = words[:, 1] - 1

    def __call__(self, gradient: Tensor) -> Pass:
        """Run; `gradient` (batch, characters, width) is that of the states."""
        start = states = self.hidden.detach().requires_grad_()
        for layer in self.layers:
            states = layer(states, self.heads, self.tails, self.mask)
        return _backward(self.layers, start, states[:, : self.characters], gradient)


def _backward(
    layers: Sequence[RelativeAttention] | Sequence[PlainRelativeAttention],
    start: Tensor,
    states: Tensor,
    gradient: Tensor,
) -> Pass:
    for layer in layers:
        layer.zero_grad()
    loss = (states * gradient).sum()  # as a training's: with a gradient given, torch loads a library more
    loss.backward()  # type: ignore[no-untyped-call]
    of_hidden, of_fusion = start.grad, layers[0].fusion.weight.grad
    assert of_hidden is not None
    assert of_fusion is not None
    return Pass(states.detach(), (of_hidden[:, : gradient.shape[1]], of_fusion))


def our_layers(number: int) -> list[RelativeAttention]:
    """Layers of the measured size, without an output projection, which the plain ones do not have."""
    return [RelativeAttention(WIDTH, HEADS, output_projection=False) for _ in range(number)]


def plain_layers(number: int) -> list[PlainRelativeAttention]:
    """Layers of the measured size."""
    return [PlainRelativeAttention(WIDTH, HEADS) for _ in range(number)]


def copy_weights(plain: PlainRelativeAttention, ours: RelativeAttention) -> None:
    """Make a plain layer equal to one of ours; its bias of the keys, which softmax removes, becomes 0."""
    weights = {name: value for name, value in ours.state_dict().items() if not name.startswith("output.")}
    if isinstance(plain.key, torch.nn.Linear):
        weights["key.bias"] = torch.zeros_like(plain.key.bias)
    plain.load_state_dict(weights)


def make_inputs(lattices: Lattices) -> tuple[Tensor, Tensor]:
    """Hidden states and the gradient of the outcome: (batch, characters + most words, width), (batch, characters, width)."""
    generator = torch.Generator().manual_seed(1)
    batch = len(lattices.words)
    hidden = torch.randn(batch, lattices.characters + lattices.most, WIDTH, generator=generator)
    return hidden, torch.randn(batch, lattices.characters, WIDTH, generator=generator)


def side(name: str, lattices: Lattices, hidden: Tensor, layers: int) -> Callable[[Tensor], Pass]:
    """A side with fresh weights."""
    if name == "ours":
        return OurSide(our_layers(layers), lattices, hidden)
    return PlainSide(plain_layers(layers), lattices, hidden)


def main() -> None:
    """Run one pass, or none."""
    parser = argparse.ArgumentParser(
        description="One layer of FLAT's attention, forward and backward, in its own process."
    )
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("lattices", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--imports", action="store_true", help="only load the libraries")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.imports:
        return
    lattices = Lattices.load(options.lattices)
    hidden, gradient = make_inputs(lattices)
    side(options.side, lattices, hidden, 1)(gradient)


if __name__ == "__main__":
    main()
