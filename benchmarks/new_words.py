"""Do words that are added after training help? Ten product names that neither train nor the lexicon holds, each in a sentence.

    HANZOO_DATA=... python benchmarks/new_words.py --run RUN [--save]

The names and their sentences are in `new_words.json`, written before any model was asked. Refused where a name is in the run's
train or in its lexicon. A name is found where one of the entities has exactly its place; its label is said beside it. Each
sentence is tagged before and after all ten names were added, and the entities of all other places are counted in both: once they
are added as words alone (`lexicon.add(names)`), once with what they are (`lexicon.add(names, kinds=...)`: all are games).

entities of dev   the same with all entities of dev that are no words of the lexicon, a dictionary that knows them all: recall of
                  these entities, and F1 of dev, before, added as words, added with their labels

A word that a text does not hold changes nothing: the emissions of 200 sentences of dev that hold none of the names must be the same
to the bit before and after. The control: those of the ten sentences must not be.

A line of JSON ends the output; --save also writes it to benchmarks/results/new_words.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed works too

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.report import report  # noqa: E402
from hanzoo.build import commit, load, load_data, read_json  # noqa: E402
from hanzoo.data.document import Document  # noqa: E402
from hanzoo.errors import RunError  # noqa: E402
from hanzoo.models.model import Tagger  # noqa: E402
from hanzoo.recipe import load_recipe  # noqa: E402

NAMES = Path(__file__).with_suffix(".json")
UNTOUCHED = 200  # sentences of dev


def found(model: Tagger, cases: Sequence[dict[str, str]]) -> tuple[dict[str, str], int]:
    """The label of each name that is found at its place, and the number of other entities."""
    labels, others = {}, 0
    for case, tagged in zip(cases, model.predict([case["text"] for case in cases]), strict=True):
        start = case["text"].index(case["word"])
        for entity in tagged.entities:
            if (entity.start, entity.end) == (start, start + len(case["word"])):
                labels[case["word"]] = entity.label
            else:
                others += 1
    return labels, others


@torch.inference_mode()
def emissions(model: Tagger, texts: Sequence[str]) -> list[Tensor]:
    """Of one text after the other, so that nothing but the text and the lexicon decides them."""
    return [model(model.collate([model.featurize(Document(text))])) for text in texts]


def measure(
    model: Tagger, cases: Sequence[dict[str, str]], untouched: Sequence[str], with_kinds: bool
) -> dict[str, Any]:
    """Names found before and after, and whether what holds none of them is the same to the bit."""
    assert model.lexicon is not None
    texts = [case["text"] for case in cases]
    (before, others_before), still, moved = found(model, cases), emissions(model, untouched), emissions(model, texts)
    kinds = [case["kind"] for case in cases] if with_kinds else None
    added = model.lexicon.add([case["word"] for case in cases], kinds=kinds)
    assert added == len(cases)
    (after, others_after), still_after, moved_after = (
        found(model, cases),
        emissions(model, untouched),
        emissions(model, texts),
    )
    assert all(not torch.equal(one, other) for one, other in zip(moved, moved_after, strict=True)), "no word was seen"
    return {
        "found_before": len(before),
        "found_after": len(after),
        "before": before,
        "after": after,
        "other_entities": [others_before, others_after],
        "untouched": len(untouched),
        "untouched_equal": all(torch.equal(one, other) for one, other in zip(still, still_after, strict=True)),
    }


def entities_of_dev(run: Path, dev: Sequence[Document]) -> dict[str, Any]:
    """Recall of the entities of dev that the lexicon lacks, and F1 of dev, without them, with them, and with their labels."""
    plain, as_words, with_labels = models = [load(run) for _ in range(3)]
    labels: dict[str, str] = {}
    lacking = set()
    for number, document in enumerate(dev):
        for span in document.spans:
            word = document.text[span.start : span.end]
            if len(word) > 1 and word not in plain.lexicon:
                labels.setdefault(word, span.label)
                lacking.add((number, span.start, span.end, span.label))
    as_words.lexicon.add(list(labels))
    with_labels.lexicon.add(list(labels), kinds=list(labels.values()))
    gold = {(number, *span) for number, document in enumerate(dev) for span in document.spans}
    table: dict[str, Any] = {"words": len(labels), "entities": len(lacking), "recall": [], "f1": []}
    for model in models:
        tagged = model.predict([document.text for document in dev])
        said = {(number, e.start, e.end, e.label) for number, text in enumerate(tagged) for e in text.entities}
        table["recall"].append(len(said & lacking) / len(lacking))
        table["f1"].append(2 * len(said & gold) / (len(said) + len(gold)))
    return table


def main() -> None:
    """Measure, print the table and the line."""
    parser = argparse.ArgumentParser(description="Names that are added to a model's lexicon after training.")
    parser.add_argument(
        "--run", type=Path, required=True, help="a run directory of a model with a lexicon, of one seed"
    )
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/new_words.json")
    options = parser.parse_args()
    cases = json.loads(NAMES.read_text(encoding="utf-8"))
    model = load(options.run)
    recipe = load_recipe(options.run / "recipe.yaml")
    data = load_data(recipe)
    if model.lexicon is None:
        raise RunError(f"{options.run}: the model must have a lexicon, but has none. Give a run of flat.")
    for case in cases:
        assert case["word"] in case["text"]
        if case["word"] in model.lexicon or any(case["word"] in document.text for document in data.train):
            raise RunError(f"{options.run}: {case['word']} must be new to the model, but is in its train or lexicon.")
    untouched = [
        document.text
        for document in data.dev
        if document.text and not any(case["word"] in document.text for case in cases)
    ]
    as_words = measure(model, cases, untouched[:UNTOUCHED], False)
    with_kinds = measure(load(options.run), cases, untouched[:UNTOUCHED], True)
    print(f"{'name':12}{'before':>14}{'as a word':>14}{'as a game':>14}")
    for case in cases:
        columns = (as_words["before"], as_words["after"], with_kinds["after"])
        print(f"{case['word']:12}" + "".join(f"{column.get(case['word'], '-'):>14}" for column in columns))
    of_dev = entities_of_dev(options.run, data.dev)
    print(f"{of_dev['entities']:,} entities of dev that are no words, before / as words / with labels:")
    for figure in ("recall", "f1"):
        print(f"{figure:12}" + "".join(f"{100 * value:14.2f}" for value in of_dev[figure]))
    line = {
        "benchmark": "new_words",
        "asked": {"after": 8, "before": 3},
        "recipe": str(read_json(options.run / "results.json")["recipe"]),
        "words": len(cases),
    }
    line |= {"kind_rate": recipe.model.kind_rate, "commit": commit()}
    line |= {"as_words": as_words, "with_kinds": with_kinds, "entities_of_dev": of_dev}
    report(line, options.save)


if __name__ == "__main__":
    main()
