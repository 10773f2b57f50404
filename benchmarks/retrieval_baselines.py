"""What a search finds in STARD without any training: BM25, an encoder as it comes, and the encoder ranking BM25's candidates.

    HANZOO_DATA=... HANZOO_ENCODERS=... python benchmarks/retrieval_baselines.py [--encoder m3e-small] [--candidates-only] [--save]

BM25 is bm25s over jieba's words, twice: over all that jieba gives, punctuation and line breaks included, as the baseline is
mostly published (MRR@10 0.348, recall@100 0.625 for this folder; passages that stand twice tie, and their order moves it between
0.347 and 0.348), and over words alone, which is better and what `first_stage="bm25"` is. The encoder is a bi-encoder, mean
pooling, nothing trained. Ranking the first 100 of BM25 its cosine is mixed with BM25's score 0.7 : 0.3, once both normalised over
a query's candidates to [0, 1], as `Staged` does it, once as it is beside BM25 over its highest (published: 0.391).

`--candidates-only` leaves out the search in the whole corpus by the encoder, and so three quarters of the time. A line of JSON
ends the output; --save also writes it to benchmarks/results/retrieval_baselines.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed works too

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.report import report  # noqa: E402
from hanzoo.build import describe_machine  # noqa: E402
from hanzoo.data.document import Document  # noqa: E402
from hanzoo.data.matching_catalogue import load_retrieval  # noqa: E402
from hanzoo.evaluation.report import results_table  # noqa: E402
from hanzoo.evaluation.retrieval import score_rankings  # noqa: E402
from hanzoo.models.bi_encoder import BiEncoder  # noqa: E402
from hanzoo.models.search.bm25 import BM25Index  # noqa: E402
from hanzoo.models.search.index import Index, Ranking, Staged, best_places  # noqa: E402
from hanzoo.models.search.vectors import VectorIndex  # noqa: E402

CANDIDATES, WEIGHT, RANKED = 100, 0.7, 100
FIGURES = ("mrr@10", "ndcg@10", "recall@10", "recall@100")


def over_the_highest(first: Index, second: Index, queries: Sequence[str]) -> list[Ranking]:
    """0.7 x the encoder's cosine + 0.3 x BM25's score over its highest, of BM25's candidates."""
    found = list(first.rankings(queries, CANDIDATES))
    cosines = second.scores_of(queries, [ranking.places for ranking in found])
    mixed = []
    for ranking, scores in zip(found, cosines, strict=True):
        total = WEIGHT * scores + (1 - WEIGHT) * ranking.scores / max(ranking.scores.max(initial=0.0), 1e-9)
        order = np.argsort(ranking.places)
        best = order[best_places(total[order], RANKED)]
        mixed.append(Ranking(ranking.places[best], total[best]))
    return mixed


def main() -> None:
    """Measure, print the table and the line."""
    parser = argparse.ArgumentParser(description="BM25 and untrained encoders on STARD.")
    parser.add_argument("--encoder", default="m3e-small")
    parser.add_argument("--max-pieces", type=int, default=256)
    parser.add_argument("--split", default="test", choices=["train", "dev", "test"])
    parser.add_argument("--queries", type=int, default=0, help="the first so many; 0 = all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--candidates-only", action="store_true")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/retrieval_baselines.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = load_retrieval(name="stard")
    queries = data.queries_of(options.split)[: options.queries or None]
    qrels = {query.id: data.judged(options.split)[query.id] for query in queries}
    texts = [query.text for query in queries]
    found: dict[str, dict[str, Any]] = {}
    start = time.monotonic()

    def judge(name: str, rankings: Sequence[Ranking]) -> None:
        ids = {
            query.id: [data.corpus[place].id for place in ranking.places]
            for query, ranking in zip(queries, rankings, strict=True)
        }
        figures = score_rankings(ids, qrels).figures
        found[name] = {figure: round(figures[figure], 4) for figure in FIGURES}
        print(f"{time.monotonic() - start:6.0f} s  {name}: MRR@10 {figures['mrr@10']:.4f}", file=sys.stderr, flush=True)

    stages = {
        "BM25, all that jieba gives": BM25Index.build(data.corpus, punctuation=True),
        "BM25, words": BM25Index.build(data.corpus),
    }
    for name, first in stages.items():
        judge(name, list(first.rankings(texts, RANKED)))
    config = BiEncoder.Config(encoder=options.encoder, max_pieces=options.max_pieces)
    model = BiEncoder.build(config, SimpleNamespace(train=[Document("字")])).eval()
    passages = [passage.full_text for passage in data.corpus]
    needed = range(len(passages))
    if options.candidates_only:
        rows = [ranking.places for first in stages.values() for ranking in first.rankings(texts, CANDIDATES)]
        needed = np.unique(np.concatenate(rows)).tolist()
    vectors = np.zeros((len(passages), model.width), dtype=np.float32)
    vectors[list(needed)] = model.encode([passages[place] for place in needed])
    second = VectorIndex(model, [passage.id for passage in data.corpus], vectors)
    if not options.candidates_only:
        judge(options.encoder, list(second.rankings(texts, RANKED)))
    for name, first in stages.items():
        judge(f"{options.encoder} ranking {name}", list(Staged(first, second, CANDIDATES).rankings(texts, RANKED)))
        mixed = Staged(first, second, CANDIDATES, WEIGHT)
        judge(f"{options.encoder} mixed with {name}", list(mixed.rankings(texts, RANKED)))
        judge(f"{options.encoder} + {name} over its highest", over_the_highest(first, second, texts))
    print(results_table([{"search": name, **figures} for name, figures in found.items()]))
    line = {
        "benchmark": "retrieval_baselines", "data": data.name, "split": options.split, "queries": len(queries),
        "passages": len(passages), "encoder": options.encoder, "max_pieces": options.max_pieces, "candidates": CANDIDATES,
        "weight": WEIGHT, "figures": found, "minutes": round((time.monotonic() - start) / 60, 1),
        "machine": describe_machine(torch.device("cpu")),
    }  # fmt: skip
    report(line, options.save)


if __name__ == "__main__":
    main()
