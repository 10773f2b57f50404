"""Peak memory of `python predict.py` on many lines and on one very long line.

    HANZOO_DATA=... HANZOO_VECTORS=... python benchmarks/inference_memory.py [--run RUN] [--save]

Peak resident memory is that of a fresh process of the command, start and libraries included, as the system counts it.

many_ratio      one million characters as 20,000 lines of 50 through standard input, against a tenth of them; asked: at most 1.3
long_gb         one line of 100,000 characters; asked: under 1.2
emission_error  largest difference between the emissions of that line run in pieces and run as a whole; asked: at most 1e-5

Without --run the model is the CLUENER recipe's, untrained: of its full size, and with more entities in its output than a trained
one would find. Where HANZOO_DATA or HANZOO_VECTORS is not set, the bundled corpus stands in and the vocabularies are small. The
texts are the bundled corpus's sentences in random order. A line of JSON ends the output; --save also writes it to
benchmarks/results/inference_memory.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# No torch here: a child's peak counts the memory of the process that it was forked from.
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed works too

from benchmarks.report import report  # noqa: E402

BUILD = """
import sys
from pathlib import Path
from hanzoo.build import load_data
from hanzoo.data.randomness import reseed
from hanzoo.models.model import model_class
from hanzoo.recipe import load_recipe

recipe = load_recipe("cluener_bilstm_crf", sys.argv[2:])
reseed(recipe.train.seed, "weights")
model_class(recipe.model_name).build(recipe.model, load_data(recipe)).save(Path(sys.argv[1]))
"""

COMPARE = """
import sys
from pathlib import Path
import torch
import hanzoo
from hanzoo.data.document import Document

model = hanzoo.load(sys.argv[1])
text, piece = Path(sys.argv[2]).read_text("utf-8").rstrip(), model.lstm.piece
batch, rest = (model.collate([model.featurize(Document(part))]) for part in (text, text[piece:]))
with torch.inference_mode():
    pieces = model(batch)
    assert piece < batch.mask.shape[1], "the text must be longer than a piece"
    model.lstm.piece = batch.mask.shape[1]
    whole, cut = model(batch), model(rest)
assert (cut[:, :5] - whole[:, piece : piece + 5]).abs().max() > 1e-4, "a state that is not carried would not be noticed"
print(float((pieces - whole).abs().max()))
"""


def texts(lines: int, length: int) -> str:
    """Lines of so many characters, from the sentences of the bundled corpus in random order."""
    corpus = (ROOT / "data" / "corpora" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    sentences = [json.loads(line)["text"] for line in corpus]
    draw = random.Random(1)
    made = []
    for _ in range(lines):
        line = ""
        while len(line) < length:
            line += draw.choice(sentences)
        made.append(line[:length])
    return "\n".join(made) + "\n"


def python(script: str, *arguments: str | Path) -> str:
    """Run a script in a process of its own; returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def peak_of_predict(run: Path, given: Path) -> tuple[float, float, int]:
    """Peak memory in GB, seconds, and entities found, of one process that tags the lines of a file from standard input."""
    with given.open("rb") as source, tempfile.TemporaryFile() as output:
        start = time.monotonic()
        process = subprocess.Popen([sys.executable, str(ROOT / "predict.py"), str(run)], stdin=source, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - start
        if process.returncode != 0:
            raise RuntimeError(f"predict.py ended with {process.returncode}")
        output.seek(0)
        lines = entities = 0
        for line in output:
            lines += 1
            entities += len(json.loads(line)["entities"])
        wanted = given.read_bytes().count(b"\n")
        assert lines == wanted, f"{wanted} lines must come back, but {lines} did"
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9, seconds, entities


def main() -> None:
    """Measure, print the table and the line."""
    parser = argparse.ArgumentParser(description="Peak memory of predict.py on many lines and on one very long line.")
    parser.add_argument("--run", type=Path, help="a run directory or a model; default: one of the recipe's size")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/inference_memory.json")
    options = parser.parse_args()
    full = bool(os.environ.get("HANZOO_DATA") and os.environ.get("HANZOO_VECTORS"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run = options.run
        if run is None:
            run = folder / "model"
            run.mkdir()
            python(BUILD, run, *([] if full else ["data.name=bundled", "model.vectors=null"]))
        cases = {"one": (1, 50), "tenth": (2_000, 50), "many": (20_000, 50), "long": (1, 100_000)}
        measured: dict[str, tuple[float, float, int]] = {}
        print(f"{'':8}{'lines':>8}{'characters':>12}{'peak, GB':>10}{'seconds':>9}{'entities':>10}")
        for name, (lines, length) in cases.items():
            (folder / name).write_text(texts(lines, length), encoding="utf-8")
            measured[name] = peak_of_predict(run, folder / name)
            peak, seconds, entities = measured[name]
            print(f"{name:8}{lines:8}{length:12}{peak:10.3f}{seconds:9.1f}{entities:10}", flush=True)
        error = float(python(COMPARE, run, folder / "long"))
        model = run / "model" if (run / "model").is_dir() else run
        line: dict[str, object] = {
            "benchmark": "inference_memory",
            "many_ratio": round(measured["many"][0] / measured["tenth"][0], 3),
            "long_gb": round(measured["long"][0], 3),
            "emission_error": error,
            **{f"{name}_gb": round(measured[name][0], 3) for name in ("one", "tenth", "many")},
            "many_characters_per_second": round(1_000_000 / measured["many"][1]),
            "entities": {name: measured[name][2] for name in cases},
            "model_mb": round(sum(path.stat().st_size for path in model.rglob("*")) / 1e6, 1),
            "trained": options.run is not None,
            "full_vocabularies": full or options.run is not None,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        }
    print(f"long line, emissions in pieces against the whole: {error:.1e}")
    report(line, options.save)


if __name__ == "__main__":
    main()
