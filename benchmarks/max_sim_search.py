"""Queries per second of exact MaxSim over a corpus: our store of tokens on the disk, against the plain einsum over padded texts.

    HANZOO_DATA=... HANZOO_ENCODERS=... python benchmarks/max_sim_search.py [--texts 0] [--threads 2] [--rounds 7] [--save]

The corpus is STARD's (`--texts`: only the first so many; 0 = all), encoded by an untrained ColBERT on `--encoder`: for speed any
tokens do. Both sides hold the same vectors of float16 and give the same scores, which is checked first, with a control that must
differ. Plain is what one writes in an afternoon: all texts padded to the longest in one float32 tensor in memory, one einsum with a
query, -inf where there is padding, the maximum, the sum. Asked: at least 3 times as many queries a second, in a tenth of the
anonymous memory.

Speed: in turns in one process, one query at a time on both sides, the order turning around every other round; the ratio is the
median over rounds, its range the smallest and the largest. `together` is ours with all queries of a round at once. Memory: a
fresh process a side, the most that was anonymous while it opened its corpus and answered the queries, less what it had before;
the corpus on the disk is not anonymous: the system drops and reads it as it likes. A line of JSON ends the output; --save also
writes it to benchmarks/results/max_sim_search.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed works too

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.report import report  # noqa: E402
from hanzoo.build import describe_machine  # noqa: E402
from hanzoo.data.document import Document  # noqa: E402
from hanzoo.data.matching_catalogue import load_retrieval  # noqa: E402
from hanzoo.data.randomness import reseed  # noqa: E402
from hanzoo.models.colbert import ColBERT  # noqa: E402
from hanzoo.models.search.index import META_FILE  # noqa: E402
from hanzoo.models.search.tokens import TokenStore  # noqa: E402

QUERIES_FILE = "queries.npz"
Side = Callable[[Tensor], Tensor]  # (query_tokens, dimension) -> (texts,) scores


def anonymous_bytes() -> int:
    """Memory of this process that is no mapped file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status must say RssAnon: run this on Linux")


def open_store(folder: Path) -> TokenStore:
    facts = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
    return TokenStore.open(folder, facts["texts"], facts["dimension"])


def our_side(folder: Path) -> Side:
    store = open_store(folder)
    return lambda query: store.scores([query])[0]


def plain_side(folder: Path, shift: int = 0) -> Side:
    """Everything padded, in memory. `shift` = 1 takes one token too few of each text: the control."""
    store = open_store(folder)
    padded = torch.zeros(len(store.places), int(store.lengths.max()), store.tokens.shape[1])
    real = torch.zeros(padded.shape[:2], dtype=torch.bool)
    for number, (place, length) in enumerate(zip(store.places.tolist(), store.lengths.tolist(), strict=True)):
        start = int(store.starts[number])
        kept = length - shift
        padded[place, :kept] = torch.from_numpy(store.tokens[start : start + kept]).float()
        real[place, :kept] = True

    def scores(query: Tensor) -> Tensor:
        similarities = torch.einsum("id,njd->nij", query, padded)
        return similarities.masked_fill(~real.unsqueeze(1), float("-inf")).amax(-1).sum(-1)

    return scores


SIDES = {"ours": our_side, "plain": plain_side}


def read_queries(folder: Path) -> list[Tensor]:
    with np.load(folder / QUERIES_FILE, allow_pickle=False) as found:
        return [torch.from_numpy(found[name]) for name in sorted(found.files)]


def peak_of(side: str, folder: Path, threads: int) -> int:
    """The most anonymous memory that a side takes, in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--index", str(folder), "--threads", str(threads)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


@torch.inference_mode()
def measure_memory(side: str, folder: Path) -> int:
    queries = read_queries(folder)
    before, most, done = anonymous_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    scores = SIDES[side](folder)
    for query in queries[:3]:
        scores(query)
    done.set()
    watcher.join()
    return most - before


def build_index(folder: Path, encoder: str, max_pieces: int, texts: int, queries: int) -> None:
    """Encode the corpus and some queries of its test split."""
    data = load_retrieval(name="stard")
    reseed(1, "weights")
    config = ColBERT.Config(encoder=encoder, max_pieces=max_pieces, query_pieces=64)
    model = ColBERT.build(config, SimpleNamespace(train=[Document("字")])).eval()
    model.index(data.corpus[: texts or None], folder)
    asked = [query.text for query in data.queries_of("test")[:queries]]
    named = {f"{number:04d}": tokens.numpy() for number, tokens in enumerate(model.query_tokens(asked))}
    np.savez(folder / QUERIES_FILE, **named)  # type: ignore[arg-type]  # arrays by name


@torch.inference_mode()
def compare(folder: Path, rounds: int, queries_a_round: int) -> dict[str, object]:
    """Check that both sides agree, then ask them in turns."""
    queries = read_queries(folder)
    sides = {name: make(folder) for name, make in SIDES.items()}
    wanted, found = sides["plain"](queries[0]), sides["ours"](queries[0])
    difference = float((wanted - found).abs().max())
    assert difference < 1e-3, f"not the same scores: they differ by {difference}"
    control = float((plain_side(folder, shift=1)(queries[0]) - found).abs().max())
    assert control > 0.01, "the check would not notice a difference"
    store = open_store(folder)
    speeds: dict[str, list[float]] = {name: [] for name in (*sides, "together")}
    for number in range(rounds):
        chosen = [queries[(number * queries_a_round + at) % len(queries)] for at in range(queries_a_round)]
        for name in list(speeds)[:: 1 if number % 2 == 0 else -1]:
            start = time.perf_counter()
            if name == "together":
                store.scores(chosen)
            else:
                for query in chosen:
                    sides[name](query)
            speeds[name].append(len(chosen) / (time.perf_counter() - start))
        shown = "  ".join(f"{name} {speed[-1]:.2f}/s" for name, speed in speeds.items())
        print(f"round {number + 1}/{rounds}: {shown}", file=sys.stderr, flush=True)
    measured: dict[str, object] = {"score_difference": difference, "control_difference": control}
    for name in ("ours", "together"):
        ratios = [a / b for a, b in zip(speeds[name], speeds["plain"], strict=True)]
        ending = "" if name == "ours" else "_together"
        measured[f"ratio{ending}"] = round(statistics.median(ratios), 2)
        measured[f"range{ending}"] = [round(min(ratios), 2), round(max(ratios), 2)]
    measured["queries_per_second"] = {name: round(statistics.median(speed), 2) for name, speed in speeds.items()}
    measured["texts"], measured["tokens"] = len(store.places), len(store.tokens)
    measured["longest"], measured["mean_length"] = int(store.lengths.max()), round(float(store.lengths.mean()), 1)
    return measured


def main() -> None:
    """Measure, print the table and the line."""
    parser = argparse.ArgumentParser(description="Exact MaxSim search against the plain einsum over padded texts.")
    parser.add_argument("--texts", type=int, default=0, help="the first so many; 0 = all")
    parser.add_argument("--encoder", default="albert-tiny-zh")
    parser.add_argument("--max-pieces", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--queries", type=int, default=4, help="a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--index", type=Path, help="where the index is, or is to be kept; default: it is thrown away")
    parser.add_argument("--side", choices=list(SIDES), help="only say the memory of a side over --index, in bytes")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/max_sim_search.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.side:
        print(measure_memory(options.side, options.index))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.index or Path(temporary) / "index"
        if not folder.exists():
            build_index(folder, options.encoder, options.max_pieces, options.texts, 8 * options.queries)
        memory = {name: peak_of(name, folder, options.threads) for name in SIDES}
        measured = compare(folder, options.rounds, options.queries)
    line: dict[str, object] = {
        "benchmark": "max_sim_search", "asked": 3, **measured, "memory_mb": {k: round(v / 1e6, 1) for k, v in memory.items()},
        "memory_share": round(memory["ours"] / memory["plain"], 4), "memory_share_asked": 0.1, "encoder": options.encoder,
        "max_pieces": options.max_pieces, "rounds": options.rounds, "queries_a_round": options.queries,
        "torch": str(torch.__version__), "machine": describe_machine(torch.device("cpu")),
    }  # fmt: skip
    report(line, options.save)


if __name__ == "__main__":
    main()
