"""Bidirectional LSTM over padded batches, exact on ragged ones, and over sequences of any length.

Source: Hochreiter and Schmidhuber 1997; Graves and Schmidhuber 2005 (bidirectional); Gal and Ghahramani 2016 (dropout masks that
are the same at every step). Initialisation: recurrent matrices orthogonal (Saxe et al. 2014), forget-gate bias 1 (Jozefowicz et
al. 2015).
Differs: no `PackedSequence`. The backward direction reads each row reversed by its own length, so padding always comes last
and never reaches a real position; on CPU two padded passes are faster than one packed pass.
Cost: memory grows with batch x seq x hidden; without gradients a sequence longer than `piece` is run in pieces that carry
their state, so that the working memory of a layer does not grow with the length.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


def variational_dropout(inputs: Tensor, rate: float, training: bool) -> Tensor:
    """Dropout with one mask for all positions of a sequence.

    Args:
        inputs: (batch, seq, hidden) float.
        rate: share of the hidden units set to zero, in [0, 1).
        training: False returns the input.

    Source: Gal and Ghahramani 2016, section 4.
    """
    if not training or rate == 0.0:
        return inputs
    return inputs * F.dropout(inputs.new_ones(inputs.shape[0], 1, inputs.shape[2]), rate, training=True)


def reversal(mask: Tensor) -> Tensor:
    """Positions of the flattened batch that reverse each row by its own length; padding stays where it is.

    Args:
        mask: (batch, seq) bool, True = real, a prefix of each row.

    Returns:
        (batch, seq) int64; it is its own inverse.
    """
    batch, seq = mask.shape
    lengths = mask.sum(dim=1, keepdim=True)
    positions = torch.arange(seq, device=mask.device).expand(batch, seq)
    within = torch.where(positions < lengths, lengths - 1 - positions, positions)
    return within + torch.arange(batch, device=mask.device).unsqueeze(1) * seq


class BiLSTM(nn.Module):
    """Layers of two LSTMs, one for each direction.

    Args:
        input_size: width of the input.
        hidden_size: width of each direction; the output is twice as wide.
        num_layers: layers; each reads both directions of the one below.
        dropout: rate of the variational dropout between layers.
        piece: positions at a time where no gradient is needed.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, dropout: float = 0.0, piece: int = 2048
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.dropout = dropout
        self.piece = piece
        widths = [input_size] + [2 * hidden_size] * (num_layers - 1)
        self.forward_layers = nn.ModuleList(nn.LSTM(width, hidden_size, batch_first=True) for width in widths)
        self.backward_layers = nn.ModuleList(nn.LSTM(width, hidden_size, batch_first=True) for width in widths)
        for lstm in [*self.forward_layers, *self.backward_layers]:
            initialise(lstm)

    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Run all layers.

        Args:
            inputs: (batch, seq, input_size) float.
            mask: (batch, seq) bool, True = real, a prefix of each row.

        Returns:
            (batch, seq, 2 * hidden_size) float: forward states, then backward states. What stands at padding means nothing.
        """
        backwards = reversal(mask)
        run = self._whole if torch.is_grad_enabled() or inputs.shape[1] <= self.piece else self._in_pieces
        hidden = inputs
        for index, (forward, backward) in enumerate(zip(self.forward_layers, self.backward_layers, strict=True)):
            if index:
                hidden = variational_dropout(hidden, self.dropout, self.training)
            hidden = run(forward, backward, hidden, backwards)
        return hidden

    @staticmethod
    def _whole(forward: nn.Module, backward: nn.Module, inputs: Tensor, backwards: Tensor) -> Tensor:
        ahead, _ = forward(inputs)
        behind, _ = backward(_gather(inputs, backwards))
        return torch.cat([ahead, _gather(behind, backwards)], dim=-1)

    def _in_pieces(self, forward: nn.Module, backward: nn.Module, inputs: Tensor, backwards: Tensor) -> Tensor:
        batch, seq, _ = inputs.shape
        output = inputs.new_empty(batch, seq, 2 * self.hidden_size)
        flat = output.view(batch * seq, -1)
        state = None
        for start in range(0, seq, self.piece):
            states, state = forward(inputs[:, start : start + self.piece], state)
            output[:, start : start + self.piece, : self.hidden_size] = states
        state = None
        for start in range(0, seq, self.piece):
            places = backwards[:, start : start + self.piece]
            states, state = backward(_gather(inputs, places), state)
            flat[places.reshape(-1), self.hidden_size :] = states.reshape(-1, self.hidden_size).to(flat.dtype)
        return output


def _gather(inputs: Tensor, places: Tensor) -> Tensor:
    # index_select, not inputs[places]: its backward is deterministic, and faster
    batch, seq, width = inputs.shape
    return inputs.reshape(batch * seq, width).index_select(0, places.reshape(-1)).view(batch, places.shape[1], width)


def initialise(lstm: nn.LSTM) -> None:
    """Input matrices Xavier uniform, recurrent matrices orthogonal a gate, biases 0 but for the forget gate's 1."""
    hidden = lstm.hidden_size
    with torch.no_grad():
        for name, parameter in lstm.named_parameters():
            if name.startswith("weight"):
                for gate in torch.split(parameter, hidden):
                    (nn.init.xavier_uniform_ if name.startswith("weight_ih") else nn.init.orthogonal_)(gate)
            else:
                parameter.zero_()
                if name.startswith("bias_ih"):  # torch adds both biases: 1 in one of them
                    parameter[hidden : 2 * hidden] = 1.0
