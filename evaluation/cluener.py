"""CLUENER's own counting, and the file that its leaderboard takes.

The official figure does not look at positions: for each of the ten types the unit is (sentence, mention string), and
the result is the plain mean of the ten F1. A mention that occurs twice in a sentence counts once, and counts as found
wherever in the sentence it was found. It is therefore no substitute for `hanzoo.evaluation.tagging`, but stands beside.

Source: `score.py` of the CLUENER2020 repository; Xu et al. 2020 (CLUENER2020), section 3.
Differs: predictions and gold are paired by the caller and must be equally many (the script pairs lines and cuts the
longer file); where the script divides by zero (a type without a right prediction) F1 is 0.
Cost: linear in the number of spans.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanzoo.data.document import Span
from hanzoo.data.files import write_file
from hanzoo.errors import DataError
from hanzoo.evaluation.tagging import Counts

LABELS = (
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
)

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class OfficialScores:
    """What `official_scores` found.

    Attributes:
        per_type: counts of mention strings by type; always all ten types, in alphabetical order.
    """

    per_type: dict[str, Counts]

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the ten types, in [0, 1]: a type that does not occur counts as 0."""
        return sum(counts.f1 for counts in self.per_type.values()) / len(LABELS)

    def to_json(self) -> dict[str, Any]:
        """All figures (0-1) and counts, ready for `json.dumps`."""
        return {
            "macro_f1": self.macro_f1,
            "per_type": {label: counts.to_json() for label, counts in self.per_type.items()},
        }


def official_scores(
    texts: Sequence[str], gold: Sequence[Iterable[Span]], predicted: Sequence[Iterable[Span]]
) -> OfficialScores:
    """Score predictions as CLUENER's leaderboard does.

    Args:
        texts: the original strings.
        gold: the gold spans of each text.
        predicted: the predicted spans of each text.

    Returns:
        Counts by type and their macro F1. Labels beside the ten have no part in it, as in the official script.

    Raises:
        ValueError: the three differ in length, or a span does not lie in its text.
    """
    _require_same_length(len(texts), gold=len(gold), predicted=len(predicted))
    right = dict.fromkeys(LABELS, 0)
    wrong = dict.fromkeys(LABELS, 0)
    missed = dict.fromkeys(LABELS, 0)
    for text, gold_spans, predicted_spans in zip(texts, gold, predicted, strict=True):
        expected = {(span.label, _mention(text, span)) for span in gold_spans if span.label in right}
        given = {(span.label, _mention(text, span)) for span in predicted_spans if span.label in right}
        for label, _ in given & expected:
            right[label] += 1
        for label, _ in given - expected:
            wrong[label] += 1
        for label, _ in expected - given:
            missed[label] += 1
    return OfficialScores({label: Counts(right[label], wrong[label], missed[label]) for label in LABELS})


def write_submission(
    path: str | os.PathLike[str],
    ids: Sequence[int | str | None],
    texts: Sequence[str],
    predicted: Sequence[Iterable[Span]],
) -> None:
    r"""Write predictions as the leaderboard takes them: one JSON object a line, in the order given.

    A line reads `{"id": 0, "label": {"name": {"叶老桂": [[9, 11], [32, 34]]}}}`: positions count characters from 0 and
    INCLUDE the last one; all places of a mention stand under its string; `label` is `{}` where nothing was found.
    The file is UTF-8; half a surrogate pair, which UTF-8 cannot hold, is written as its JSON escape (`\ud800`).
    It is written beside `path` and renamed into place: at any moment `path` holds the old file or the whole new one.

    Args:
        path: the file to write; an existing one is replaced.
        ids: the `id` of each text, as the test file gives it; integers.
        texts: the original strings, in the order of the test file.
        predicted: the predicted spans of each text.

    Raises:
        ValueError: the three differ in length, or a span does not lie in its text.
        DataError: an id is not an integer.
        StorageError: the file cannot be written.
    """
    _require_same_length(len(texts), ids=len(ids), predicted=len(predicted))
    target = Path(path)
    lines: list[str] = []
    for number, (identifier, text, spans) in enumerate(zip(ids, texts, predicted, strict=True), start=1):
        if not isinstance(identifier, int) or isinstance(identifier, bool):
            raise DataError(
                f"{target}: the id of text {number} must be an integer, but is {identifier!r}. "
                "Tag the official test file, whose lines carry `id`."
            )
        label: dict[str, dict[str, list[list[int]]]] = {}
        for span in sorted(set(spans)):
            places = label.setdefault(span.label, {}).setdefault(_mention(text, span), [])
            places.append([span.start, span.end - 1])
        line = json.dumps({"id": identifier, "label": label}, ensure_ascii=False)
        lines.append(_LONE_SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", line) + "\n")
    write_file(target, "".join(lines))


def _mention(text: str, span: Span) -> str:
    if not 0 <= span.start < span.end <= len(text):
        raise ValueError(f"a span must lie in its text of {len(text)} characters, but is {tuple(span)}.")
    return text[span.start : span.end]


def _require_same_length(expected: int, **given: int) -> None:
    for name, length in given.items():
        if length != expected:
            raise ValueError(f"{name} must hold one entry a text ({expected}), but holds {length}.")
