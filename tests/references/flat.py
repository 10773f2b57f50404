"""FLAT written down from its equations: one pair of tokens, one head at a time, float64, plain loops, no dropout.

Li et al. 2020, "FLAT: Chinese NER Using Flat-Lattice Transformer" (ACL 2020), section "Relative Position Encoding of Spans". The
tokens of a text are its n characters (head = tail = own position) and then the words found in it (head: position of the first
character, tail: of the last, so both included). For tokens i and j, [.; .] concatenation, vectors of `width` numbers:
    hh = head_i - head_j,  ht = head_i - tail_j,  th = tail_i - head_j,  tt = tail_i - tail_j
    R_ij = ReLU(W_r [p_hh; p_ht; p_th; p_tt] + b)                             the paper writes no b, its code has one
    A*_ij = q_i . k_j + q_i . (W_kR R_ij) + u . k_j + v . (W_kR R_ij)         a head at a time (Dai et al. 2019, Transformer-XL)
    out_i = sum over all characters and words j of softmax_j(A*_ij) value_j
q, k, value are projections of the input, u and v one learnt vector a head each. Then the feed-forward layer; of the last layer
only the characters are used.

The released code differs from the paper; each difference is an option here:
- two positions: R_ij = ReLU(W_r [p_hh; p_tt] + b) ("ff_two"), its default;
- no key projection: k_j is the input itself, cut into heads; leave `key.*` out of the weights;
- A* is not divided by sqrt(head_dim): `scaled=False`;
- no output projection: leave `output.*` out;
- no residual: what it adds to a sublayer's output is that output, and LN(2 y) = LN(y) but for epsilon (that of LN(y) would have
  to be a quarter): `residual=False`, without the factor 2;
- one LayerNorm for both sublayers: `shared_norm=True`.
Its sinusoids stand for distance + M, M the longest sentence: p turned by fixed angles, which W_r takes in. Here, the distance.

W_kR has no constant, though the code has one: with b_r, A*_ij would gain (q_i + v) . b_r, which is the same for all j and cancels
in the softmax. So does key.bias, (q_i + u) . b_k; it is kept because everyone's keys have one, and its gradient is zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

EPSILON = 1e-5  # of LayerNorm, as in torch


def sinusoids(distance: int, width: int) -> Tensor:
    """p of one signed distance, (width,) float64: width / 2 sines, then as many cosines; width even, at least 4.

    The frequencies are 10000^(-k / (width / 2 - 1)), k = 0 .. width / 2 - 1: the last is 1 / 10000, as in tensor2tensor and in
    the released code. The paper has 10000^(-2k / width), sines and cosines in turn.
    """
    half = width // 2
    angles = [distance * 10000.0 ** (-k / (half - 1)) for k in range(half)]
    return torch.tensor(
        [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles], dtype=torch.float64
    )


def relative_encoding(
    head_i: int,
    tail_i: int,
    head_j: int,
    tail_j: int,
    fusion_weight: Tensor,
    fusion_bias: Tensor,
    four_positions: bool,
) -> Tensor:
    """R_ij, (width,): `fusion_weight` is (width, 4 width), or (width, 2 width) for hh and tt only; `fusion_bias` (width,)."""
    distances = [head_i - head_j, head_i - tail_j, tail_i - head_j, tail_i - tail_j]
    if not four_positions:
        distances = [head_i - head_j, tail_i - tail_j]
    width = len(fusion_bias)
    joined = torch.cat([sinusoids(distance, width) for distance in distances])
    return (fusion_weight @ joined + fusion_bias).clamp(min=0)


def linear(vector: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    """W x + b for one vector, with `name`.weight and `name`.bias."""
    return weights[f"{name}.weight"] @ vector + weights[f"{name}.bias"]


def layer_norm(vector: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    """LayerNorm of one vector, with `name`.weight and `name`.bias."""
    centred = vector - vector.mean()
    normed = centred / torch.sqrt((centred * centred).mean() + EPSILON)
    return weights[f"{name}.weight"] * normed + weights[f"{name}.bias"]


def attention(
    hidden: Tensor,
    heads: Sequence[int],
    tails: Sequence[int],
    weights: Mapping[str, Tensor],
    *,
    num_heads: int,
    four_positions: bool,
    scaled: bool,
) -> Tensor:
    """The self-attention of one text over all its tokens.

    Args:
        hidden: (tokens, width) float64, no padding.
        heads: Position of the first character of each token.
        tails: Position of its last character.
        weights: By name: query.weight (width, width), query.bias (width,), the same for value, and for key (without key.weight
            the keys are the input itself) and output (without output.weight there is none); relative.weight (width, width) for
            W_kR; content_bias (num_heads, head_dim) for u, position_bias for v; fusion.weight, fusion.bias for W_r, b.
        num_heads: Head h has the numbers h head_dim .. (h + 1) head_dim - 1 of each projected vector.
        four_positions: All four distances, or hh and tt only.
        scaled: Divide A* by sqrt(head_dim).

    Returns:
        (tokens, width): a row for each query; queries are all tokens.
    """
    tokens, width = hidden.shape
    head_dim = width // num_heads
    queries = [linear(row, weights, "query") for row in hidden]
    keys = [linear(row, weights, "key") if "key.weight" in weights else row for row in hidden]
    values = [linear(row, weights, "value") for row in hidden]
    rows = []
    for i in range(tokens):
        relative = []
        for j in range(tokens):
            encoding = relative_encoding(
                heads[i],
                tails[i],
                heads[j],
                tails[j],
                weights["fusion.weight"],
                weights["fusion.bias"],
                four_positions,
            )
            relative.append(weights["relative.weight"] @ encoding)
        parts = []
        for h in range(num_heads):
            part = slice(h * head_dim, (h + 1) * head_dim)
            q, u, v = queries[i][part], weights["content_bias"][h], weights["position_bias"][h]
            scores = []
            for j in range(tokens):
                k, r = keys[j][part], relative[j][part]
                score = q @ k + q @ r + u @ k + v @ r
                scores.append(score / math.sqrt(head_dim) if scaled else score)
            shares = torch.softmax(torch.stack(scores), dim=0)
            total = torch.zeros(head_dim, dtype=torch.float64)
            for j in range(tokens):
                total = total + shares[j] * values[j][part]
            parts.append(total)
        row = torch.cat(parts)
        rows.append(linear(row, weights, "output") if "output.weight" in weights else row)
    return torch.stack(rows)


def layer(
    hidden: Tensor,
    heads: Sequence[int],
    tails: Sequence[int],
    weights: Mapping[str, Tensor],
    *,
    num_heads: int,
    four_positions: bool,
    scaled: bool,
    residual: bool,
    shared_norm: bool,
) -> Tensor:
    """One layer: attention, LayerNorm, then w1 ReLU(w0 x + b0) + b1, LayerNorm.

    Args:
        hidden: (tokens, width) float64.
        heads: See `attention`.
        tails: See `attention`.
        weights: Those of `attention`; w0.weight (feed_forward_dim, width), w0.bias, w1.weight (width, feed_forward_dim), w1.bias;
            attention_norm.weight, attention_norm.bias, feed_forward_norm.weight, feed_forward_norm.bias, (width,) each.
        num_heads: See `attention`.
        four_positions: See `attention`.
        scaled: See `attention`.
        residual: LN(x + sublayer(x)) as in the paper; else LN(sublayer(x)), which is what the released code comes to.
        shared_norm: attention_norm stands after both sublayers, as in the released code; feed_forward_norm is not read.

    Returns:
        (tokens, width).
    """
    attended = attention(
        hidden, heads, tails, weights, num_heads=num_heads, four_positions=four_positions, scaled=scaled
    )
    rows = []
    for before, output in zip(hidden, attended, strict=True):
        middle = layer_norm(before + output if residual else output, weights, "attention_norm")
        output = linear(linear(middle, weights, "w0").clamp(min=0), weights, "w1")
        norm = "attention_norm" if shared_norm else "feed_forward_norm"
        rows.append(layer_norm(middle + output if residual else output, weights, norm))
    return torch.stack(rows)


def flat(
    characters: Tensor,
    words: Tensor,
    spans: Sequence[tuple[int, int]],
    layers: Sequence[Mapping[str, Tensor]],
    *,
    num_heads: int,
    four_positions: bool,
    scaled: bool,
    residual: bool,
    shared_norm: bool,
) -> Tensor:
    """All layers over characters and words.

    Args:
        characters: (n_characters, width) float64, after their projection.
        words: (n_words, width) float64, after their projection; n_words may be 0.
        spans: (start, end) of each word, half-open, as `matches` gives them: its head is start, its tail end - 1.
        layers: The weights of each layer, see `layer`. The released code has one fusion for all layers: the same two tensors in
            each mapping.
        num_heads: See `attention`.
        four_positions: See `attention`.
        scaled: See `attention`.
        residual: See `layer`.
        shared_norm: See `layer`; one LayerNorm within a layer, not over several.

    Returns:
        (n_characters, width): words are read by every layer, but only characters are tagged.
    """
    heads = [*range(len(characters)), *(start for start, _ in spans)]
    tails = [*range(len(characters)), *(end - 1 for _, end in spans)]
    hidden = torch.cat([characters, words])
    for weights in layers:
        hidden = layer(
            hidden,
            heads,
            tails,
            weights,
            num_heads=num_heads,
            four_positions=four_positions,
            scaled=scaled,
            residual=residual,
            shared_norm=shared_norm,
        )
    return hidden[: len(characters)]


def matches(text: str, words: Iterable[str], min_length: int = 2) -> list[tuple[int, int, str]]:
    """Every (start, end, word) with text[start:end] == word, end excluded, in code points, sorted by start and end.

    All occurrences, overlapping and nested ones too. Words shorter than `min_length` (at least 1) are left out: FLAT has its
    single characters as characters.
    """
    found = []
    for word in set(words):
        for start in range(len(text)):
            if len(word) >= min_length and text[start : start + len(word)] == word:
                found.append((start, start + len(word), word))
    return sorted(found)
