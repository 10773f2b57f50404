"""Scores of pairs by other libraries, from folders that hanzoo wrote. Run by the other environment, which has no hanzoo.

python open_elsewhere.py JOBS.json PAIRS.json

JOBS.json is a list of [library, folder, case]; PAIRS.json has the pairs of each case. Prints a line of JSON: for each job a list
of a score a pair, or what went wrong.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Pairs = list[list[str]]


def sentence_transformer(folder: str, pairs: Pairs) -> Any:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu", trust_remote_code=False)
    first, second = (model.encode([pair[side] for pair in pairs], show_progress_bar=False) for side in (0, 1))
    return model.similarity_pairwise(first, second)


def multi_vector_encoder(folder: str, pairs: Pairs) -> Any:
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(folder, device="cpu", trust_remote_code=False)
    queries = model.encode_query([pair[0] for pair in pairs], show_progress_bar=False)
    documents = model.encode_document([pair[1] for pair in pairs], show_progress_bar=False)
    return model.similarity_pairwise(queries, documents)


def pylate(folder: str, pairs: Pairs) -> Any:
    from pylate.models import ColBERT
    from pylate.rank import rerank

    model = ColBERT(folder, device="cpu", trust_remote_code=False)
    queries = model.encode([pair[0] for pair in pairs], is_query=True, show_progress_bar=False)
    documents = model.encode([pair[1] for pair in pairs], is_query=False, show_progress_bar=False)
    return [
        rerank(documents_ids=[["0"]], queries_embeddings=[query], documents_embeddings=[[document]])[0][0]["score"]
        for query, document in zip(queries, documents, strict=True)
    ]


def cross_encoder(folder: str, pairs: Pairs) -> Any:
    from sentence_transformers import CrossEncoder

    return CrossEncoder(folder, device="cpu", trust_remote_code=False).predict(pairs, show_progress_bar=False)


def sequence_classification(folder: str, pairs: Pairs) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return [model(**tokenizer(*pair, truncation=True, return_tensors="pt")).logits.item() for pair in pairs]


LIBRARIES: dict[str, Callable[[str, Pairs], Any]] = {
    each.__name__: each
    for each in (sentence_transformer, multi_vector_encoder, pylate, cross_encoder, sequence_classification)
}


def scores_of(library: str, folder: str, pairs: Pairs) -> list[float] | str:
    try:
        return [float(score) for score in LIBRARIES[library](folder, pairs)]
    except Exception as error:  # whatever it is, the test shows it
        return f"{type(error).__name__}: {error}"


def main() -> None:
    jobs, pairs = (json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:])
    sys.stdout.write(json.dumps([scores_of(library, folder, pairs[case]) for library, folder, case in jobs]) + "\n")


if __name__ == "__main__":
    main()
