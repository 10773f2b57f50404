"""ColBERT's late interaction: for each token of a query the best similarity to any token of a document, summed.

Source: Khattab and Zaharia 2020 (ColBERT), section 3.3, equation 3.
Differs: what does not count (padding, skipped punctuation) is -inf before the maximum; released code that multiplies by 0 lets it
win where all similarities are negative. The mean over the query's tokens is offered beside the sum, for thresholds that must
not depend on a query's length. Similarities and sums are float32 at least, also under autocast: near 32 the numbers of bfloat16
stand 0.125 apart.
Cost: documents are scored in blocks. A block's similarities are let go at once, for the backward pass only the place of each
maximum is kept: one int64 a query token and document, where the similarities would be document_seq floats.
"""

from __future__ import annotations

import torch
from torch import Tensor

SIMILARITIES_A_BLOCK = 2**23  # 32 MiB of float32: what a block of documents may hold, if it is more than one


def max_sim(
    queries: Tensor,
    documents: Tensor,
    query_mask: Tensor,
    document_mask: Tensor,
    *,
    mean: bool = False,
    documents_a_block: int | None = None,
) -> Tensor:
    """Scores of all queries against all documents.

    Args:
        queries: (queries, query_seq, hidden) float, unit length along hidden where the mask is True, finite elsewhere.
        documents: (documents, document_seq, hidden) float, likewise.
        query_mask: (queries, query_seq) bool, True = a token that counts; at least one a row.
        document_mask: (documents, document_seq) bool, True = a token that may be the best; at least one a row.
        mean: divide by the number of a query's tokens: scores in [-1, 1] instead of [-tokens, tokens].
        documents_a_block: scored at once; None = as many as SIMILARITIES_A_BLOCK holds. It changes no result.

    Returns:
        (queries, documents) float32, or float64 for float64 vectors; [i, j] scores query i against document j.

    Raises:
        ValueError: a query or a document has no token that counts, or a shape is wrong.
    """
    _check(queries, query_mask, "query")
    _check(documents, document_mask, "document")
    if documents_a_block is None:
        documents_a_block = max(1, SIMILARITIES_A_BLOCK // max(1, query_mask.numel() * documents.shape[1]))
    elif documents_a_block < 1:
        raise ValueError(f"max_sim: documents_a_block must be at least 1, but is {documents_a_block}.")
    dtype = _precision(queries, documents)
    flat = queries.to(dtype).flatten(0, 1)
    scores = []
    with torch.autocast(queries.device.type, enabled=False):
        blocks = torch.split(documents, documents_a_block), torch.split(document_mask, documents_a_block)
        for block, mask in zip(*blocks, strict=True):
            similarities = flat @ block.to(dtype).flatten(0, 1).T  # (queries * query_seq, block * document_seq)
            best = _best(similarities.view(*query_mask.shape, *mask.shape), mask)  # (queries, query_seq, block)
            scores.append(torch.where(query_mask.unsqueeze(2), best, 0.0).sum(1))
    total = torch.cat(scores, dim=1)
    return total / query_mask.sum(1, keepdim=True) if mean else total


def paired_max_sim(
    queries: Tensor, documents: Tensor, query_mask: Tensor, document_mask: Tensor, *, mean: bool = False
) -> Tensor:
    """Scores of query i against document i alone, (pairs,); see `max_sim`."""
    _check(queries, query_mask, "query")
    _check(documents, document_mask, "document")
    if len(queries) != len(documents):
        raise ValueError(f"max_sim: documents must be {len(queries)}, one a query, but are {len(documents)}.")
    dtype = _precision(queries, documents)
    with torch.autocast(queries.device.type, enabled=False):
        similarities = queries.to(dtype) @ documents.to(dtype).mT  # (pairs, query_seq, document_seq)
        best = _best(similarities, document_mask.unsqueeze(1))
    total = torch.where(query_mask, best, 0.0).sum(1)
    return total / query_mask.sum(1) if mean else total


def _best(similarities: Tensor, mask: Tensor) -> Tensor:
    # max with its places, not amax: it is what lets the similarities go before the backward pass
    return similarities.masked_fill(~mask, float("-inf")).max(-1).values


def _precision(queries: Tensor, documents: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(queries.dtype, documents.dtype), torch.float32)


def _check(vectors: Tensor, mask: Tensor, name: str) -> None:
    if vectors.dim() != 3 or mask.shape != vectors.shape[:2]:
        raise ValueError(
            f"max_sim: {name}_mask must have shape {tuple(vectors.shape[:2])} for vectors of three dimensions, but has "
            f"{tuple(mask.shape)} for {vectors.dim()}."
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"max_sim: {name}_mask must be bool, but is {mask.dtype}. Give True for tokens that count.")
    empty = (~mask.any(1)).nonzero()
    if len(empty):
        raise ValueError(
            f"max_sim: {name} {int(empty[0])} must have a token that counts, but has none. Keep at least [CLS]."
        )
