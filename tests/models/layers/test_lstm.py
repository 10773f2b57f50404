"""The padded bidirectional LSTM: equal to the packed one, to itself in pieces, and deaf to padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hanzoo.models.layers.lstm import BiLSTM, reversal, variational_dropout

LENGTHS = [9, 4, 1, 7]
WIDTH, HIDDEN = 6, 5


def ragged(lengths: list[int] = LENGTHS, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Random inputs whose padding is random too, and their mask."""
    inputs = torch.randn(len(lengths), max(lengths), WIDTH, generator=torch.Generator().manual_seed(seed))
    return inputs, torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)


def new(num_layers: int = 2, **settings: int) -> BiLSTM:
    torch.manual_seed(3)
    return BiLSTM(WIDTH, HIDDEN, num_layers, **settings)


def packed_twin(lstm: BiLSTM) -> nn.LSTM:
    """torch's own bidirectional LSTM with the same weights."""
    twin = nn.LSTM(WIDTH, HIDDEN, len(lstm.forward_layers), batch_first=True, bidirectional=True)
    with torch.no_grad():
        for suffix, layers in (("", lstm.forward_layers), ("_reverse", lstm.backward_layers)):
            for number, layer in enumerate(layers):
                for name, parameter in layer.named_parameters():
                    getattr(twin, name.replace("l0", f"l{number}") + suffix).copy_(parameter)
    return twin


def run_packed(twin: nn.LSTM, inputs: Tensor, mask: Tensor) -> Tensor:
    packed = nn.utils.rnn.pack_padded_sequence(inputs, mask.sum(1), batch_first=True, enforce_sorted=False)
    return nn.utils.rnn.pad_packed_sequence(twin(packed)[0], batch_first=True)[0]


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_equals_the_packed_lstm(num_layers: int) -> None:
    lstm = new(num_layers)
    twin = packed_twin(lstm)
    inputs, mask = ragged()
    ours, theirs = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    real = mask.unsqueeze(-1)
    output, expected = lstm(ours, mask) * real, run_packed(twin, theirs, mask) * real
    assert torch.allclose(output, expected, atol=1e-6)

    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(5))
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)
    for suffix, layers in (("", lstm.forward_layers), ("_reverse", lstm.backward_layers)):
        for number, layer in enumerate(layers):
            for name, parameter in layer.named_parameters():
                theirs_grad = getattr(twin, name.replace("l0", f"l{number}") + suffix).grad
                assert torch.allclose(parameter.grad, theirs_grad, atol=1e-6, rtol=1e-5), name

    plain = twin(inputs)[0] * real  # without packing the backward direction reads the padding
    assert not torch.allclose(plain, expected, atol=1e-3)


@pytest.mark.parametrize("gradients", [True, False])
def test_padding_content_changes_nothing(gradients: bool) -> None:
    lstm = new(piece=4)
    inputs, mask = ragged()
    other = torch.where(mask.unsqueeze(-1), inputs, 1e3 * torch.ones_like(inputs))
    with torch.set_grad_enabled(gradients):
        assert torch.equal(lstm(inputs, mask)[mask], lstm(other, mask)[mask])
        inputs[1, 2] += 1.0  # a real position does
        assert not torch.equal(lstm(inputs, mask)[mask], lstm(other, mask)[mask])


def test_more_padding_and_single_rows_give_the_same() -> None:
    lstm = new()
    inputs, mask = ragged()
    with torch.no_grad():
        whole = lstm(inputs, mask)
        wider = lstm(torch.cat([inputs, inputs], 1), torch.cat([mask, torch.zeros_like(mask)], 1))
        assert torch.allclose(wider[:, : mask.shape[1]][mask], whole[mask], atol=1e-6)
        for row, length in enumerate(LENGTHS):
            alone = lstm(inputs[row : row + 1, :length], mask[row : row + 1, :length])
            assert torch.allclose(alone[0], whole[row, :length], atol=1e-6)


@pytest.mark.parametrize("piece", [1, 3, 5, 16])
def test_pieces_equal_the_whole(piece: int) -> None:
    inputs, mask = ragged([40, 16, 1, 33])
    with torch.no_grad():
        whole = new(piece=2048)(inputs, mask)
        pieces = new(piece=piece)(inputs, mask)
    assert torch.allclose(pieces[mask], whole[mask], atol=1e-5)


def test_pieces_carry_their_state() -> None:
    inputs, mask = ragged([12])
    with torch.no_grad():
        lstm = new(num_layers=1, piece=4)
        pieces = lstm(inputs, mask)
        without = torch.cat([lstm(inputs[:, at : at + 4], mask[:, at : at + 4]) for at in range(0, 12, 4)], 1)
    assert torch.allclose(pieces[:, :4, :HIDDEN], without[:, :4, :HIDDEN], atol=1e-6)  # the first piece begins alike
    assert not torch.allclose(pieces[:, 4:], without[:, 4:], atol=1e-3)


def test_start_of_the_weights() -> None:
    lstm = new()
    for layer in [*lstm.forward_layers, *lstm.backward_layers]:
        bias = layer.bias_ih_l0 + layer.bias_hh_l0
        assert torch.equal(bias[HIDDEN : 2 * HIDDEN], torch.ones(HIDDEN))  # torch's gates: input, forget, cell, output
        assert not bias[:HIDDEN].any()
        assert not bias[2 * HIDDEN :].any()
        for gate in torch.split(layer.weight_hh_l0, HIDDEN):
            assert torch.allclose(gate @ gate.T, torch.eye(HIDDEN), atol=1e-5)
        for gate in torch.split(layer.weight_ih_l0, HIDDEN):
            assert gate.abs().max() <= (6 / (HIDDEN + gate.shape[1])) ** 0.5
    drawn = {
        tuple(gate.flatten().tolist()) for layer in lstm.forward_layers for gate in layer.weight_hh_l0.split(HIDDEN)
    }
    assert len(drawn) == 8


def test_reversal_is_its_own_inverse_and_leaves_padding() -> None:
    _, mask = ragged()
    places = reversal(mask)
    flat = places.reshape(-1)
    assert torch.equal(flat[flat], torch.arange(mask.numel()))
    assert places[1].tolist() == [12, 11, 10, 9, 13, 14, 15, 16, 17]
    assert places[2].tolist() == list(range(18, 27))


def test_variational_dropout_has_one_mask_for_all_positions() -> None:
    torch.manual_seed(1)
    inputs = torch.ones(3, 50, 200)
    output = variational_dropout(inputs, 0.25, True)
    assert torch.equal(output, output[:, :1].expand_as(output))
    assert not torch.equal(output[0], output[1])  # but one for each sample
    assert output.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert (output == 0).float().mean().item() == pytest.approx(0.25, abs=0.06)
    assert torch.equal(variational_dropout(inputs, 0.25, False), inputs)
    assert torch.equal(variational_dropout(inputs, 0.0, True), inputs)


def test_dropout_between_layers_acts_in_training_only() -> None:
    torch.manual_seed(3)
    lstm = BiLSTM(WIDTH, HIDDEN, 2, dropout=0.5)
    inputs, mask = ragged()
    with torch.no_grad():
        first, second = lstm.train()(inputs, mask), lstm(inputs, mask)
        assert not torch.equal(first, second)
        assert torch.equal(lstm.eval()(inputs, mask), lstm(inputs, mask))
