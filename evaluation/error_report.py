"""Where a tagger errs: every wrong and every missed entity in exactly one class, with the text around it.

How gold and predictions are paired, sentence by sentence, each used at most once:

1. the same borders and the same label: right;
2. the same borders, another label: `type`;
3. overlapping borders, most characters in common first (then the same label, then the shorter rest, then the order of
   position): `boundary` where the label is the same, `both` where it is not;
4. gold that is left is `missed`, a prediction that is left `spurious`. Mostly nothing of the other side touches it; where
   one long prediction covers two gold entities, it is paired with one, and the other is missed.

So false negatives = boundary + type + both + missed, and false positives = boundary + type + both + spurious.

Source: the classes of MUC-5 (Chinchor and Sundheim 1993) without partial credit.
Differs: its "incorrect" is split into type, boundary and both.
Cost: linear in the number of entities, but for step 3, which looks at the overlapping pairs of what is left.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field
from typing import Any

from hanzoo.data.document import Document, Span
from hanzoo.evaluation.tagging import Counts

KINDS = ("boundary", "type", "both", "missed", "spurious")
SEEN = "in train with this label"
SEEN_OTHERWISE = "in train with another label"
UNSEEN = "not in train"

_ENTITY_LENGTHS = ((1, "1"), (2, "2"), (4, "3-4"), (8, "5-8"), (None, "9+"))
_SENTENCE_LENGTHS = ((19, "0-19"), (39, "20-39"), (79, "40-79"), (249, "80-249"), (None, "250+"))
_CONTEXT = 10  # characters of text on each side of an example


@dataclass(frozen=True, slots=True)
class EntityError:
    """One error.

    Attributes:
        kind: one of `KINDS`.
        gold: the gold entity; None for a spurious prediction.
        predicted: the prediction; None for missed gold.
    """

    kind: str
    gold: Span | None
    predicted: Span | None

    @property
    def place(self) -> Span:
        """Where the error is, and the label it is counted under: the gold entity, or the spurious prediction."""
        place = self.gold if self.gold is not None else self.predicted
        assert place is not None
        return place


@dataclass(frozen=True, slots=True)
class Example:
    """An error in its text, for people to read: characters that a terminal cannot show are replaced.

    Attributes:
        source: "file:line", as the document gives it.
        excerpt: the text around, with the place of gold and prediction together in 【】.
        gold: the gold mention, or None.
        predicted: the predicted mention, or None.
    """

    source: str
    excerpt: str
    gold: str | None
    predicted: str | None


@dataclass(frozen=True, slots=True)
class Confusion:
    """All errors of one kind between the same two labels.

    Attributes:
        kind: one of `KINDS`.
        gold_label: the label of the gold entities; None for spurious predictions.
        predicted_label: the label of the predictions; None for missed gold.
        count: how many.
        examples: the first few, in the order of the documents.
    """

    kind: str
    gold_label: str | None
    predicted_label: str | None
    count: int
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """What `error_report` found. Each `Counts` table splits the same entities, so that its rows sum to `counts`.

    Attributes:
        counts: right, wrong and missed entities, as `score_entities` counts them.
        kinds: how many errors of each of `KINDS`.
        by_label: for each label the number of gold entities, the right ones and the errors of each kind; errors stand
            under the gold label, spurious ones under the predicted one.
        label_confusion: gold label -> predicted label -> how many pairs (right ones and those of other borders included).
        by_entity_length: counts by number of characters, of gold and of predictions each by its own.
        by_sentence_length: counts by number of characters of the text.
        by_seen: counts by whether train holds the mention (`SEEN`, `SEEN_OTHERWISE`, `UNSEEN`), of gold and of predictions
            each by its own; empty where nothing is known of train.
        confusions: all errors by kind and labels, most frequent first.
        sentences: how many texts were looked at.
    """

    counts: Counts
    kinds: dict[str, int]
    by_label: dict[str, dict[str, int]]
    label_confusion: dict[str, dict[str, int]]
    by_entity_length: dict[str, Counts]
    by_sentence_length: dict[str, Counts]
    by_seen: dict[str, Counts]
    confusions: tuple[Confusion, ...]
    sentences: int

    def to_json(self) -> dict[str, Any]:
        """Everything as numbers and strings by name, ready for `json.dumps`; figures in [0, 1]."""
        return {
            "sentences": self.sentences,
            "counts": self.counts.to_json(),
            "kinds": self.kinds,
            "by_label": self.by_label,
            "label_confusion": self.label_confusion,
            "by_entity_length": _table_to_json(self.by_entity_length),
            "by_sentence_length": _table_to_json(self.by_sentence_length),
            "by_seen": _table_to_json(self.by_seen),
            "confusions": [asdict(confusion) for confusion in self.confusions],
        }

    def render(self, confusions: int = 10) -> str:
        """Return the report as tables in plain text, figures times 100.

        Args:
            confusions: how many of the most frequent confusions to show with their examples.
        """
        counts = self.counts
        num_gold = counts.true_positives + counts.false_negatives
        num_predicted = counts.true_positives + counts.false_positives
        figures = f"P {_percent(counts.precision)}  R {_percent(counts.recall)}  F1 {_percent(counts.f1)}"
        parts = [
            f"{self.sentences} texts, {num_gold} gold, {num_predicted} predicted, {counts.true_positives} right: {figures}",
            _table(
                ("errors", "count", "per 100 gold"),
                [(kind, str(n), _percent(n / num_gold if num_gold else 0.0)) for kind, n in self.kinds.items()],
            ),
            _table(
                ("label", "gold", "right", *KINDS),
                [
                    (label, *(str(row[column]) for column in ("gold", "right", *KINDS)))
                    for label, row in self.by_label.items()
                ],
            ),
            _counts_table("entity length", self.by_entity_length),
            _counts_table("text length", self.by_sentence_length),
        ]
        if self.by_seen:
            parts.append(_counts_table("mention", self.by_seen))
        shown = self.confusions[:confusions]
        if shown:
            parts.append("\n".join(line for confusion in shown for line in _confusion_lines(confusion)))
        return "\n\n".join(parts) + "\n"


def classify_errors(gold: Iterable[Span], predicted: Iterable[Span]) -> tuple[list[Span], list[EntityError]]:
    """Pair the gold and the predicted entities of one text by the rule at the head of this file.

    Args:
        gold: gold spans, in any order; repeats count once.
        predicted: predicted spans, in any order; repeats count once.

    Returns:
        The right entities, and the errors in order of position. The result does not depend on the order of the input.
    """
    expected, given = set(gold), set(predicted)
    right = sorted(expected & given)
    gold_left, predicted_left = sorted(expected - given), sorted(given - expected)
    pairs = _pair_by_borders(gold_left, predicted_left) + _pair_by_overlap(gold_left, predicted_left)
    errors = [
        *(EntityError(_kind(wanted, found), wanted, found) for wanted, found in pairs),
        *(EntityError("missed", wanted, None) for wanted in gold_left),
        *(EntityError("spurious", None, found) for found in predicted_left),
    ]
    return right, sorted(errors, key=lambda error: error.place)


def mentions_in(documents: Iterable[Document]) -> frozenset[tuple[str, str]]:
    """Return every (mention, label) of the documents' gold: what `error_report` wants to know of train."""
    return frozenset(
        (document.text[start:end], label) for document in documents for start, end, label in document.spans
    )


def error_report(
    documents: Sequence[Document],
    predicted: Sequence[Iterable[Span]],
    train_mentions: AbstractSet[tuple[str, str]] | None = None,
    *,
    examples: int = 3,
) -> ErrorReport:
    """Sort all errors into classes and count them from several sides.

    Args:
        documents: the texts with their gold.
        predicted: the predicted spans of each text.
        train_mentions: every (mention, label) of train, from `mentions_in`; None where train is not known.
        examples: how many examples to keep of each confusion.

    Returns:
        The report. The same input gives the same report, examples included.

    Raises:
        ValueError: `documents` and `predicted` differ in length.
    """
    if len(documents) != len(predicted):
        raise ValueError(f"predicted must hold one entry a document ({len(documents)}), but holds {len(predicted)}.")
    by_entity_length = _Tally(label for _, label in _ENTITY_LENGTHS)
    by_sentence_length = _Tally(label for _, label in _SENTENCE_LENGTHS)
    by_seen = _Tally((SEEN, SEEN_OTHERWISE, UNSEEN))
    seen_mentions = frozenset(mention for mention, _ in train_mentions or ())
    by_label: dict[str, Counter[str]] = {}
    label_confusion: dict[str, Counter[str]] = {}
    confusion_counts: Counter[tuple[str, str | None, str | None]] = Counter()
    confusion_examples: dict[tuple[str, str | None, str | None], list[Example]] = {}

    def seen(text: str, span: Span) -> str:
        mention = text[span.start : span.end]
        if train_mentions and (mention, span.label) in train_mentions:
            return SEEN
        return SEEN_OTHERWISE if mention in seen_mentions else UNSEEN

    for document, spans in zip(documents, predicted, strict=True):
        right, errors = classify_errors(document.spans, spans)
        outcomes = [(span, "true_positives") for span in right]
        outcomes += [(error.gold, "false_negatives") for error in errors if error.gold is not None]
        outcomes += [(error.predicted, "false_positives") for error in errors if error.predicted is not None]
        for span, outcome in outcomes:
            by_entity_length.add(_bucket(_ENTITY_LENGTHS, span.end - span.start), outcome)
            by_sentence_length.add(_bucket(_SENTENCE_LENGTHS, len(document.text)), outcome)
            by_seen.add(seen(document.text, span), outcome)
        for span in right:
            by_label.setdefault(span.label, Counter()).update(gold=1, right=1)
            label_confusion.setdefault(span.label, Counter())[span.label] += 1
        for error in errors:
            gold_label = error.gold.label if error.gold else None
            predicted_label = error.predicted.label if error.predicted else None
            row = by_label.setdefault(error.place.label, Counter())
            row[error.kind] += 1
            row["gold"] += error.gold is not None
            if gold_label is not None and predicted_label is not None:
                label_confusion.setdefault(gold_label, Counter())[predicted_label] += 1
            key = (error.kind, gold_label, predicted_label)
            confusion_counts[key] += 1
            kept = confusion_examples.setdefault(key, [])
            if len(kept) < examples:
                kept.append(_example(document, error))

    # Most frequent first; among equals the order of kinds and labels, which does not hang on the order of the texts.
    ordered = sorted(
        confusion_counts, key=lambda key: (-confusion_counts[key], KINDS.index(key[0]), key[1] or "", key[2] or "")
    )
    kinds = {kind: sum(n for key, n in confusion_counts.items() if key[0] == kind) for kind in KINDS}
    return ErrorReport(
        counts=by_entity_length.total(),
        kinds=kinds,
        by_label={
            label: {column: by_label[label][column] for column in ("gold", "right", *KINDS)}
            for label in sorted(by_label)
        },
        label_confusion={label: dict(sorted(row.items())) for label, row in sorted(label_confusion.items())},
        by_entity_length=by_entity_length.counts(),
        by_sentence_length=by_sentence_length.counts(),
        by_seen=by_seen.counts() if train_mentions is not None else {},
        confusions=tuple(Confusion(*key, confusion_counts[key], tuple(confusion_examples[key])) for key in ordered),
        sentences=len(documents),
    )


@dataclass(slots=True)
class _Tally:
    """Counts by row; every row is there from the start, in its order."""

    rows: Iterable[str]
    outcomes: dict[str, Counter[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.outcomes = {row: Counter() for row in self.rows}

    def add(self, row: str, outcome: str) -> None:
        self.outcomes[row][outcome] += 1

    def counts(self) -> dict[str, Counts]:
        return {row: Counts(**outcomes) for row, outcomes in self.outcomes.items()}

    def total(self) -> Counts:
        together: Counter[str] = Counter()
        for outcomes in self.outcomes.values():
            together.update(outcomes)
        return Counts(**together)


def _pair_by_borders(gold_left: list[Span], predicted_left: list[Span]) -> list[tuple[Span, Span]]:
    """Take out of both lists the pairs with the same borders, in order of the labels."""
    waiting: dict[tuple[int, int], list[Span]] = {}
    for found in predicted_left:
        waiting.setdefault(found[:2], []).append(found)
    pairs = [(wanted, waiting[wanted[:2]].pop(0)) for wanted in gold_left if waiting.get(wanted[:2])]
    _take_out(pairs, gold_left, predicted_left)
    return pairs


def _pair_by_overlap(gold_left: list[Span], predicted_left: list[Span]) -> list[tuple[Span, Span]]:
    """Take out of both lists the overlapping pairs, most characters in common first."""
    starts = [found.start for found in predicted_left]
    longest = max((found.end - found.start for found in predicted_left), default=0)
    candidates = []
    for wanted in gold_left:
        # Only what starts in this window can overlap: a long text with thousands of entities stays quick.
        window = slice(bisect_left(starts, wanted.start - longest), bisect_left(starts, wanted.end))
        for found in predicted_left[window]:
            common = min(wanted.end, found.end) - max(wanted.start, found.start)
            if common > 0:
                rest = (wanted.end - wanted.start) + (found.end - found.start) - 2 * common
                candidates.append((-common, wanted.label != found.label, rest, wanted, found))
    gold_used: set[Span] = set()
    predicted_used: set[Span] = set()
    pairs = []
    for *_, wanted, found in sorted(candidates):
        if wanted not in gold_used and found not in predicted_used:
            gold_used.add(wanted)
            predicted_used.add(found)
            pairs.append((wanted, found))
    _take_out(pairs, gold_left, predicted_left)
    return pairs


def _take_out(pairs: list[tuple[Span, Span]], gold_left: list[Span], predicted_left: list[Span]) -> None:
    gold_used = {wanted for wanted, _ in pairs}
    predicted_used = {found for _, found in pairs}
    gold_left[:] = [span for span in gold_left if span not in gold_used]
    predicted_left[:] = [span for span in predicted_left if span not in predicted_used]


def _kind(wanted: Span, found: Span) -> str:
    if wanted[:2] == found[:2]:
        return "type"
    return "boundary" if wanted.label == found.label else "both"


def _bucket(buckets: Iterable[tuple[int | None, str]], length: int) -> str:
    return next(label for last, label in buckets if last is None or length <= last)


def _example(document: Document, error: EntityError) -> Example:
    text = document.text
    spans = [span for span in (error.gold, error.predicted) if span is not None]
    start, end = min(span.start for span in spans), max(span.end for span in spans)
    before, after = text[max(0, start - _CONTEXT) : start], text[end : end + _CONTEXT]
    excerpt = f"{'…' if start > _CONTEXT else ''}{before}【{_shortened(text, start, end)}】{after}"
    return Example(
        source=document.source,
        excerpt=_shown(excerpt + ("…" if end + _CONTEXT < len(text) else "")),
        gold=_shown(_shortened(text, error.gold.start, error.gold.end)) if error.gold else None,
        predicted=_shown(_shortened(text, error.predicted.start, error.predicted.end)) if error.predicted else None,
    )


def _shortened(text: str, start: int, end: int) -> str:
    """The characters from start to end; of more than 40 the first 20 and the last 19."""
    return text[start:end] if end - start <= 40 else f"{text[start : start + 20]}…{text[end - 19 : end]}"


def _shown(text: str) -> str:
    """Replace what would break a line, move the cursor or not be written at all: an example is for the eye."""
    return "".join(
        character if character.isprintable() else " " if character.isspace() else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def _confusion_lines(confusion: Confusion) -> list[str]:
    labels = " -> ".join(label for label in (confusion.gold_label, confusion.predicted_label) if label is not None)
    if confusion.kind == "boundary":
        labels = str(confusion.gold_label)
    lines = [f"{confusion.kind} {labels}: {confusion.count}"]
    for example in confusion.examples:
        sides = [
            f"{name} {mention}"
            for name, mention in (("gold", example.gold), ("predicted", example.predicted))
            if mention is not None
        ]
        place = f"{example.source}: " if example.source else ""
        lines.append(f"    {place}{example.excerpt}  ({', '.join(sides)})")
    return lines


def _table_to_json(table: Mapping[str, Counts]) -> dict[str, dict[str, float]]:
    return {row: counts.to_json() for row, counts in table.items()}


def _counts_table(title: str, table: Mapping[str, Counts]) -> str:
    return _table(
        (title, "gold", "predicted", "right", "P", "R", "F1"),
        [
            (
                row,
                str(counts.true_positives + counts.false_negatives),
                str(counts.true_positives + counts.false_positives),
                str(counts.true_positives),
                _percent(counts.precision),
                _percent(counts.recall),
                _percent(counts.f1),
            )
            for row, counts in table.items()
        ],
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a table: the first column to the left, numbers to the right, in columns of a terminal."""
    lines = [header, *rows]
    widths = [max(_width(line[column]) for line in lines) for column in range(len(header))]
    laid_out = []
    for line in lines:
        cells = [line[0] + " " * (widths[0] - _width(line[0]))]
        cells += [" " * (width - _width(cell)) + cell for cell, width in zip(line[1:], widths[1:], strict=True)]
        laid_out.append("  ".join(cells).rstrip())
    return "\n".join(laid_out)


def _width(text: str) -> int:
    """How many columns of a terminal a string takes: two for a Chinese character, none for a combining mark."""
    return sum(
        0
        if unicodedata.category(character) in ("Mn", "Me", "Cf")
        else 2
        if unicodedata.east_asian_width(character) in ("W", "F")
        else 1
        for character in text
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
