"""How well an encoder's texts match without any training: a bi-encoder as it comes, on the sets that trained ones are tested on.

    HANZOO_DATA=... HANZOO_ENCODERS=... python benchmarks/matching_baselines.py [--encoder albert-tiny-zh ...] [--save]

Cosine of mean-pooled vectors, nothing trained, no layer of random weights: what unsupervised training has to beat. On the test
split of a set where it has one with labels, else on the fixed-hash tenth of its train that serves as dev (ATEC). A line of JSON
ends the output; --save also writes it to benchmarks/results/matching_baselines.json, beside those of other encoders.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed works too

import torch  # noqa: E402

from benchmarks.report import last, report  # noqa: E402
from hanzoo.build import describe_machine  # noqa: E402
from hanzoo.data.document import Document  # noqa: E402
from hanzoo.data.matching_catalogue import load_pairs  # noqa: E402
from hanzoo.evaluation.matching import score_pairs  # noqa: E402
from hanzoo.evaluation.report import results_table  # noqa: E402
from hanzoo.models.bi_encoder import BiEncoder  # noqa: E402
from hanzoo.tasks.matching import labels_of, scores_of  # noqa: E402

SETS = ("stsb", "lcqmc", "bq", "pawsx", "atec")


def main() -> None:
    """Measure, print the table and the line."""
    parser = argparse.ArgumentParser(description="Untrained encoders on pairs of texts.")
    parser.add_argument("--encoder", nargs="+", default=["albert-tiny-zh", "m3e-small"])
    parser.add_argument("--data", nargs="+", default=list(SETS))
    parser.add_argument("--max-pieces", type=int, default=64, help="as the recipes have it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/matching_baselines.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    start = time.monotonic()
    found: dict[str, dict[str, dict[str, float | int | str]]] = {}
    sets = {name: load_pairs(name=name) for name in options.data}
    for encoder in options.encoder:
        config = BiEncoder.Config(encoder=encoder, max_pieces=options.max_pieces)
        model = BiEncoder.build(config, SimpleNamespace(train=[Document("字")])).eval()
        found[encoder] = {}
        for name, data in sets.items():
            pairs = data.test or data.dev
            scores = score_pairs(labels_of(pairs), scores_of(model, pairs), two_classes=data.scale.is_binary)
            found[encoder][name] = {
                "split": "test" if data.test else "dev", "pairs": len(pairs), "spearman": round(scores.spearman, 4),
            }  # fmt: skip
            print(
                f"{time.monotonic() - start:6.0f} s  {encoder} on {name}: {scores.spearman:.4f}",
                file=sys.stderr,
                flush=True,
            )
    print(
        results_table([{"encoder": name} | {k: v["spearman"] for k, v in row.items()} for name, row in found.items()])
    )
    others = last("matching_baselines").get("figures", {}) if options.save else {}
    line = {
        "benchmark": "matching_baselines", "pooling": "mean", "max_pieces": options.max_pieces, "figures": others | found,
        "minutes": round((time.monotonic() - start) / 60, 1), "machine": describe_machine(torch.device("cpu")),
    }  # fmt: skip
    report(line, options.save)


if __name__ == "__main__":
    main()
