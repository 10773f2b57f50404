"""Texts encoded a second: `encode` of a bi-encoder, against sentence-transformers on the same folder; in turns.

    HANZOO_DATA=... HANZOO_ENCODERS=... python benchmarks/encoding_speed.py [--rounds 7] [--threads 2] [--save]

Needs sentence-transformers 6 beside hanzoo: pip install 'sentence-transformers>=6'. The folder is the `model/` of an untrained
bi-encoder (mean pooling), which both open: for speed any weights do. Both are given texts and give normalised vectors of float32;
sentence-transformers as it comes (batches of 32, sorted by length), and with batches of 128 in the place of 32. Two sets of texts:
those of STS-B's train, of about 20 characters, and articles of STARD's corpus, of about 70. Both sides read at most `--max-pieces`.

First the vectors are compared, with a control that must differ. A ratio is the median over rounds of (our texts/s / theirs in the
same round), against the size of batches with which they are the faster in the median; its range the smallest and the largest.
Asked: at least 1. A line of JSON ends the output; --save also writes it to benchmarks/results/encoding_speed.json, beside those of
other encoders.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed works too

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

import hanzoo  # noqa: E402
from benchmarks.report import last, report  # noqa: E402
from benchmarks.sides import Side, in_turn  # noqa: E402
from hanzoo.build import describe_machine  # noqa: E402
from hanzoo.data.document import Document  # noqa: E402
from hanzoo.data.matching_catalogue import load_pairs, load_retrieval  # noqa: E402
from hanzoo.data.randomness import reseed  # noqa: E402
from hanzoo.data.training_items import texts as texts_of  # noqa: E402
from hanzoo.models.bi_encoder import BiEncoder  # noqa: E402

THEIR_BATCHES = (32, 128)
Encode = Callable[[Sequence[str]], NDArray[np.float32]]


def sides_of(folder: Path) -> dict[str, Encode]:
    """Ours, and theirs by size of batch, of one folder."""
    from sentence_transformers import SentenceTransformer

    ours: Any = hanzoo.load(folder)
    theirs = SentenceTransformer(str(folder), device="cpu")

    def encode(size: int) -> Encode:
        return lambda texts: theirs.encode(
            list(texts), batch_size=size, normalize_embeddings=True, show_progress_bar=False
        )

    return {"ours": ours.encode, **{f"theirs {size}": encode(size) for size in THEIR_BATCHES}}


def side(encode: Encode, texts: Sequence[str]) -> Side:
    """Encodes the next so many texts, from the start again behind the last."""
    supply = cycle(texts)

    def run(number: int) -> int:
        encode(list(islice(supply, number)))
        return number

    return run


def compare(sides: dict[str, Encode], texts: Sequence[str], rounds: int, texts_a_round: int) -> dict[str, Any]:
    """Check that all give the same vectors, then ask them in turns."""
    sample = texts[:64]
    wanted = sides["ours"](sample)
    difference = max(float(np.abs(encode(sample) - wanted).max()) for encode in sides.values())
    assert difference < 1e-5, f"not the same vectors: they differ by {difference}"
    control = float(np.abs(wanted[1:] - wanted[:-1]).max(1).min())
    assert control > 1e-3, "the check would not notice a difference"
    speeds = in_turn(
        {name: side(encode, texts) for name, encode in sides.items()}, rounds, texts_a_round, time.perf_counter
    )
    best = max((name for name in sides if name != "ours"), key=lambda name: statistics.median(speeds[name]))
    ratios = [ours / theirs for ours, theirs in zip(speeds["ours"], speeds[best], strict=True)]
    return {
        "against": best, "ratio": round(statistics.median(ratios), 2), "range": [round(min(ratios), 2), round(max(ratios), 2)],
        "texts_per_second": {name: round(statistics.median(speed), 1) for name, speed in speeds.items()},
        "vector_difference": difference, "control_difference": round(control, 4),
        "mean_characters": round(statistics.mean(map(len, texts)), 1),
    }  # fmt: skip


def main() -> None:
    """Measure, print the table and the line."""
    parser = argparse.ArgumentParser(description="Encoding, against sentence-transformers on the same folder.")
    parser.add_argument("--encoder", default="albert-tiny-zh")
    parser.add_argument("--max-pieces", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--texts", type=int, default=512, help="a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/encoding_speed.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    reseed(1, "weights")
    config = BiEncoder.Config(encoder=options.encoder, max_pieces=options.max_pieces)
    model = BiEncoder.build(config, SimpleNamespace(train=[Document("字")])).eval()
    corpora = {
        "stsb": [document.text for document in texts_of(load_pairs(name="stsb").train)],
        "stard": [passage.full_text for passage in load_retrieval(name="stard").corpus[::10]],
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        folder.mkdir()
        model.save(folder)
        sides = sides_of(folder)
        measured = {name: compare(sides, texts, options.rounds, options.texts) for name, texts in corpora.items()}
    import sentence_transformers

    encoders = last("encoding_speed").get("encoders", {}) if options.save else {}
    encoders[options.encoder] = {
        **measured, "max_pieces": options.max_pieces, "rounds": options.rounds, "texts_a_round": options.texts,
        "threads": options.threads, "sentence_transformers": sentence_transformers.__version__,
        "torch": str(torch.__version__), "machine": describe_machine(torch.device("cpu")),
    }  # fmt: skip
    report({"benchmark": "encoding_speed", "asked": 1, "encoders": encoders}, options.save)


if __name__ == "__main__":
    main()
