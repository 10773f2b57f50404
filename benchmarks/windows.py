"""Does it matter how a long text is cut? Entities of trained models with windows of 128, 256 and 510 characters.

    HANZOO_DATA=... python benchmarks/windows.py --run RUN [--run RUN ...] [--windows 128,256,510] [--characters 10000] [--save]

Two sets of texts, both from MSRA: the sentences of more than 250 characters of all splits, and one text of 10,000 characters: the
first sentences of test in the order of the file, joined without anything between them. (510 characters are what BERT's 512
places hold.) For each width the entities are compared with the gold and with those of every other width: the F1 of one's
entities against the other's, over exact spans and labels, which is the same in both directions. Neighbouring windows overlap by
what the run's recipe says, at most by half a window.

A run that trained on MSRA has seen the gold of some of these sentences: F1 against gold is said for test alone too, and only that
is a figure of the model. A model with other labels than MSRA's has no F1 against gold.

Every entity must be what stands at its place, `text[start:end] == entity.text`, and the confidences probabilities: checked, not
measured. A line of JSON ends the output; --save also writes it to benchmarks/results/windows.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed works too

import torch  # noqa: E402

from benchmarks.report import report  # noqa: E402
from hanzoo.build import describe_machine, load, read_json  # noqa: E402
from hanzoo.data.catalogue import TaggingData, load_tagging_data  # noqa: E402
from hanzoo.data.document import Document, Span  # noqa: E402
from hanzoo.errors import RunError  # noqa: E402
from hanzoo.evaluation.tagging import score_entities  # noqa: E402
from hanzoo.models.layers.encoder import EncoderModel  # noqa: E402
from hanzoo.models.model import Tagger  # noqa: E402

LONG = 250  # characters; longer sentences are in the first set
SPLITS = ("train", "dev", "test")


def long_sentences(data: TaggingData) -> dict[str, list[Document]]:
    """The sentences of more than LONG characters by split."""
    splits = {split: data.split(split) for split in SPLITS if split != "test" or data.test}
    return {name: [each for each in split if len(each.text) > LONG] for name, split in splits.items()}


def joined(documents: Sequence[Document], characters: int) -> Document:
    """One text of at least so many characters, from the first documents, with their gold moved to its new place."""
    text, spans = "", []
    for number, document in enumerate(documents, start=1):
        spans += [Span(start + len(text), end + len(text), label) for start, end, label in document.spans]
        text += document.text
        if len(text) >= characters:
            return Document(text, tuple(spans), f"the first {number} sentences of test")
    raise RunError(
        f"--characters: must be at most {len(text):,}, the characters of MSRA's test, but is {characters:,}."
    )


def entities(model: Tagger, documents: Sequence[Document]) -> list[list[Span]]:
    """What users get; each entity is checked to be what stands at its place."""
    found = []
    for document, tagged in zip(documents, model.predict([each.text for each in documents]), strict=True):
        assert tagged.text == document.text
        for entity in tagged.entities:
            assert document.text[entity.start : entity.end] == entity.text
            assert entity.text
            assert entity.confidence is not None
            assert 0.0 <= entity.confidence <= 1.0
        found.append([entity.span for entity in tagged.entities])
    return found


def measure(model: Tagger, sets: dict[str, list[Document]], windows: Sequence[int], labels: set[str]) -> dict[str, Any]:
    """For each set of texts: entities, seconds, F1 against gold a width, and the agreement of each two widths."""
    if not isinstance(model, EncoderModel):
        raise RunError(f"--run: the model must read windows, but {type(model).__name__} reads whole texts.")
    known = set(model.labels) == labels
    told: dict[str, Any] = {}
    for name, documents in sets.items():
        gold = [document.spans for document in documents]
        each: dict[int, list[list[Span]]] = {}
        rows: dict[str, Any] = {}
        for window in windows:
            model.window = window
            start = time.perf_counter()
            each[window] = entities(model, documents)
            rows[str(window)] = {"entities": sum(map(len, each[window])), "seconds": time.perf_counter() - start}
            if known:
                rows[str(window)]["f1"] = score_entities(gold, each[window]).f1
        agreement = {f"{a}/{b}": score_entities(each[a], each[b]).f1 for a, b in combinations(windows, 2)}
        told[name] = {"windows": rows, "agreement": agreement}
    return told


def main() -> None:
    """Measure, print the table and the line."""
    parser = argparse.ArgumentParser(description="Entities of trained models under windows of several widths.")
    parser.add_argument(
        "--run", action="append", required=True, type=Path, help="a run directory; may stand several times"
    )
    parser.add_argument("--windows", default="128,256,510", help="characters a window")
    parser.add_argument("--characters", type=int, default=10_000, help="of the one long text")
    parser.add_argument("--threads", type=int, default=0, help="0 = as torch chooses")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/windows.json")
    options = parser.parse_args()
    windows = [int(width) for width in options.windows.split(",")]
    if options.threads:
        torch.set_num_threads(options.threads)

    data = load_tagging_data(name="msra")
    of_split = long_sentences(data)
    assert data.test is not None
    text = joined(data.test, options.characters)
    sets = {f"sentences over {LONG}": [each for split in of_split.values() for each in split],
            f"of them in test ({len(of_split['test'])})": of_split["test"],
            f"{options.characters:,} characters": [text]}  # fmt: skip
    line: dict[str, Any] = {
        "benchmark": "windows",
        "sentences": {split: len(documents) for split, documents in of_split.items()},
        "longest": max(len(each.text) for documents in of_split.values() for each in documents),
        "text": {"characters": len(text.text), "entities": len(text.spans), "made_of": text.source},
        "runs": [],
    }
    print(f"{'recipe':32}{'texts':>22}{'window':>8}{'entities':>10}{'F1':>8}{'seconds':>9}   agreement")
    for run in options.run:
        model = load(run)
        of_recipe = model.config.model_dump()  # before `measure`, which sets the window
        found = measure(model, sets, windows, set(data.labels))
        results = read_json(run / "results.json") if (run / "results.json").is_file() else {}
        recipe = results.get("recipe") or run.name
        record = {
            "recipe": recipe,
            "data": results.get("data", {}).get("name"),
            "window": of_recipe.get("window"),
            "overlap": of_recipe.get("overlap"),
            "weights_sha256": results.get("weights_sha256"),
            "texts": found,
        }
        line["runs"].append(record)
        for name, each in found.items():
            agreement = "  ".join(f"{pair} {100 * value:.2f}" for pair, value in each["agreement"].items())
            for window, row in each["windows"].items():
                f1 = f"{100 * row['f1']:.2f}" if "f1" in row else ""
                print(
                    f"{recipe:32}{name:>22}{window:>8}{row['entities']:>10}{f1:>8}{row['seconds']:>9.1f}   {agreement}"
                )
                agreement = ""
    line |= {"threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    line["machine"] = describe_machine(torch.device("cpu"))
    report(line, options.save)


if __name__ == "__main__":
    main()
