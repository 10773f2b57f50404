"""The bundled corpus: what its README promises holds in the files."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib.resources import files
from typing import Any

import pytest

SIZES = {"train": 400, "dev": 100, "test": 100}
LABELS = {
    "address",
    "book",
    "company",
    "game",
    "government",
    "movie",
    "name",
    "organization",
    "position",
    "scene",
}


def read(name: str) -> str:
    return (files("hanzoo.data.corpora") / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def corpus() -> dict[str, list[dict[str, Any]]]:
    return {split: [json.loads(line) for line in read(f"{split}.jsonl").splitlines()] for split in SIZES}


@pytest.mark.parametrize("split", SIZES)
def test_sizes(corpus: dict[str, list[dict[str, Any]]], split: str) -> None:
    assert len(corpus[split]) == SIZES[split]


@pytest.mark.parametrize("split", SIZES)
def test_offsets_name_the_mention(corpus: dict[str, list[dict[str, Any]]], split: str) -> None:
    for line in corpus[split]:
        end = 0
        for entity in line["entities"]:
            assert line["text"][entity["start"] : entity["end"]] == entity["text"], line["id"]
            assert end <= entity["start"] < entity["end"], f"{line['id']}: out of order, overlapping or empty"
            end = entity["end"]


@pytest.mark.parametrize("split", SIZES)
def test_every_type_is_in_every_split(corpus: dict[str, list[dict[str, Any]]], split: str) -> None:
    mentions = Counter(entity["label"] for line in corpus[split] for entity in line["entities"])
    assert set(mentions) == LABELS
    assert min(mentions.values()) >= 8, mentions


def test_no_sentence_and_no_id_twice(corpus: dict[str, list[dict[str, Any]]]) -> None:
    lines = [line for split in corpus.values() for line in split]
    # Blanks and punctuation aside: a sentence with another full stop is the same sentence.
    texts = Counter(re.sub(r"\W", "", line["text"]) for line in lines)
    assert [text for text, count in texts.items() if count > 1] == []
    assert len({line["id"] for line in lines}) == len(lines)


@pytest.mark.parametrize("split", SIZES)
def test_some_sentences_have_no_entities(corpus: dict[str, list[dict[str, Any]]], split: str) -> None:
    share = sum(not line["entities"] for line in corpus[split]) / len(corpus[split])
    assert 0.1 <= share <= 0.3


@pytest.mark.parametrize("split", SIZES)
def test_lengths_vary(corpus: dict[str, list[dict[str, Any]]], split: str) -> None:
    lengths = [len(line["text"]) for line in corpus[split]]
    assert min(lengths) <= 10
    assert max(lengths) >= 60


def test_titles_keep_their_marks(corpus: dict[str, list[dict[str, Any]]]) -> None:
    for line in (line for split in corpus.values() for line in split):
        for entity in line["entities"]:
            assert entity["text"].count("《") == entity["text"].count("》"), line["id"]
            before, after = line["text"][: entity["start"]][-1:], line["text"][entity["end"] :][:1]
            assert (before, after) != ("《", "》"), f"{line['id']}: the marks belong to the span"


def test_samples_are_in_no_split(corpus: dict[str, list[dict[str, Any]]]) -> None:
    samples = read("samples.txt").splitlines()
    assert len(samples) == len(set(samples)) == 5
    assert all(samples)
    assert not set(samples) & {line["text"] for split in corpus.values() for line in split}


def test_readme_counts(corpus: dict[str, list[dict[str, Any]]]) -> None:
    table = dict(re.findall(r"^\| (\w[\w ]*) \| ((?:\d+ \| ){3}\d+) \|$", read("README.md"), flags=re.M))
    counts: dict[str, list[int]] = {"sentences": [len(split) for split in corpus.values()]}
    counts["without entities"] = [sum(not line["entities"] for line in split) for split in corpus.values()]
    counts["entities"] = [sum(len(line["entities"]) for line in split) for split in corpus.values()]
    for label in LABELS:
        counts[label] = [
            sum(entity["label"] == label for line in split for entity in line["entities"]) for split in corpus.values()
        ]
    assert table == {row: " | ".join(map(str, [*numbers, sum(numbers)])) for row, numbers in counts.items()}
