"""Five scorers for one prediction: ours, and those that published figures were counted with.

All agree on what a legal sequence of tags says (`clue` as far as no mention comes twice in a text). They differ in what they make
of an illegal one, which a model without constraints can produce. Case by case: `tests/evaluation/test_scorers.py`.

    exact     spans: start, end and label; what is not written as the scheme says is no entity
    bmes      B-x opens an entity of type x that the next E, of any type, ends, or that the next B or S cuts off; M, I and O say
              nothing; a B-x that nothing closes counts as S-x; labels in capitals (BIO it reads as exact does)
    fastnlp   a tag that cannot go on opens an entity, a change of label splits one; labels in small letters
    seqeval   the same, with labels as they are; on BIO as conlleval does
    clue      the distinct mention strings of a text and type, wherever they stand; its figure is the macro F1 over ten types

`bmes`, `fastnlp` and `seqeval` read tags. A model that says spans without tags has them turned into tags first, which is possible
only where they do not overlap; nested gold is flattened for these three (the longer entity stays), and what that drops is counted.

Sources: jiesutd/LatticeLSTM, `utils/metric.py`; fastNLP 0.5, `SpanFPreRecMetric`; seqeval 1.2.2, default mode, whose own function
reads the tags; CLUEbenchmark/CLUENER2020, `score.py`.
Differs: 0/0 is 0.0 (the first says -1, the last one stops). fastNLP rounds to 6 digits; no vocabulary here holds its `<pad>` tag.
M is given to seqeval, which does not know it, as I: so do the projects that use it on BMES.
Cost: linear in the number of characters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hanzoo.data.document import Document, Span
from hanzoo.data.schemes import Scheme, flatten, spans_to_tags, tags_to_spans
from hanzoo.errors import DataError, RunError, nearest
from hanzoo.evaluation.cluener import LABELS, official_scores
from hanzoo.evaluation.tagging import Counts, TaggingScores, legal_rate, score_entities


@dataclass(frozen=True)
class Predictions:
    """What a tagger said of texts.

    Attributes:
        spans: of each text.
        tags: of each text, one a character, as the output layer chose them, legal or not; None for a model without tags.
        scheme: of the tags. Legal tags say the same in each, so it does not matter for tags that are made of spans.
    """

    spans: Sequence[Sequence[Span]]
    tags: Sequence[Sequence[str]] | None = None
    scheme: Scheme = "BIOES"

    @property
    def legal(self) -> float | None:
        """The share of tag sequences that the scheme allows, in [0, 1]; None for a model without tags."""
        if self.tags is None:
            return None
        return legal_rate([len(tags_to_spans(row, self.scheme)[1]) for row in self.tags])


@dataclass(frozen=True)
class Score:
    """What a scorer found.

    Attributes:
        scores: counts and figures; their macro F1 is the mean over the labels as this scorer writes them.
        gold_left_out: gold entities that this scorer cannot see, because they overlap a longer one.
    """

    scores: TaggingScores
    gold_left_out: int = 0

    def to_json(self) -> dict[str, float | int]:
        """Figures in [0, 1], and counts."""
        return {
            **self.scores.micro.to_json(),
            "macro_f1": self.scores.macro_f1,
            "gold_left_out": self.gold_left_out,
        }


@dataclass(frozen=True)
class Scorer:
    """A way to count.

    Attributes:
        used_by: whose figures are counted so, in words.
        count: documents with their gold, and predictions, to what was found.
    """

    used_by: str
    count: Callable[[Sequence[Document], Predictions], Score]


def score(name: str, documents: Sequence[Document], predictions: Predictions) -> Score:
    """Score predictions as one of `SCORERS` does.

    Args:
        name: of the scorer.
        documents: the texts with their gold.
        predictions: of the same texts, in the same order.

    Raises:
        RunError: there is no such scorer, or it cannot score these predictions.
        DataError: it cannot score these gold labels.
        ValueError: the numbers of documents and predictions differ.
    """
    (known,) = known_scorers([name])
    return SCORERS[known].count(documents, predictions)


def known_scorers(names: Sequence[str]) -> list[str]:
    """The names, without repeats, once they are known to be scorers' names. Raises RunError where one is not."""
    for name in names:
        if name not in SCORERS:
            hint = nearest(name, SCORERS)
            raise RunError(f"scorer: a name must be one of {', '.join(SCORERS)}, but is {name!r}.{hint}")
    return list(dict.fromkeys(names))


# Scorers of spans.


def _exact(documents: Sequence[Document], predictions: Predictions) -> Score:
    return Score(score_entities([document.spans for document in documents], predictions.spans))


def _clue(documents: Sequence[Document], predictions: Predictions) -> Score:
    strange = {span.label for document in documents for span in document.spans} - set(LABELS)
    if strange:
        raise DataError(
            f"scorer clue: the labels of the gold must be among CLUENER's ten ({', '.join(LABELS)}), but one is "
            f"{min(strange)!r}. Leave clue out."
        )
    gold = [document.spans for document in documents]
    per_label = official_scores([document.text for document in documents], gold, predictions.spans).per_type
    micro = Counts(
        sum(counts.true_positives for counts in per_label.values()),
        sum(counts.false_positives for counts in per_label.values()),
        sum(counts.false_negatives for counts in per_label.values()),
    )
    return Score(TaggingScores(micro, per_label, len(documents)))


# Scorers of tags. Each reads one sequence as what it compares: (start, end, label).

Reader = Callable[[Sequence[str], Scheme], list[Span]]


def _lattice_spans(tags: Sequence[str], scheme: Scheme) -> list[Span]:
    """As Lattice LSTM's code reads tags. It looks for letters anywhere in a tag, and writes labels in capitals.

    A span whose end is its start is one that the code writes without an end: S-x, and what is open after the last tag.
    """
    spans: list[Span] = []
    start, label = 0, ""  # of the entity that is open; no label = none is
    letters = ("B-", "I-") if scheme == "BIO" else ("B-", "S-", "E-")
    for index, tag in enumerate(tag.upper() for tag in tags):
        letter = next((letter for letter in letters if letter in tag), "")
        here = tag.replace(letter, "", 1)
        if letter == "I-" and here == label:
            continue
        if not letter and scheme != "BIO":  # M, I and O say nothing
            continue
        if label:
            spans.append(Span(start, index + 1 if letter == "E-" else index, label))
        if letter == "S-":
            spans.append(Span(index, index, here))
        start, label = index, here if letter == "B-" else ""
    if label:
        spans.append(Span(start, start, label))
    return spans


def _fastnlp_spans(tags: Sequence[str], scheme: Scheme) -> list[Span]:
    """As fastNLP's metric reads tags ("bio", "bmeso", "bioes"): labels in small letters."""
    inside = {"BIO": "i", "BMES": "me", "BIOES": "ie"}[scheme]
    goes_on = ("b", inside[0])
    spans: list[Span] = []
    previous = ""
    for index, tag in enumerate(tag.lower() for tag in tags):
        letter, label = tag[0], tag[2:]
        if letter in inside and previous in goes_on and spans[-1].label == label:
            spans[-1] = Span(spans[-1].start, index + 1, label)
        elif letter != "o":
            spans.append(Span(index, index + 1, label))
        previous = letter
    return spans


def _seqeval_spans(tags: Sequence[str], scheme: Scheme) -> list[Span]:
    """As seqeval reads tags in its default mode."""
    from seqeval.metrics.sequence_labeling import get_entities  # brings scikit-learn, pandas and pyarrow, and a thread

    known = ["I" + tag[1:] if tag[0] == "M" else tag for tag in tags]
    return [Span(first, last + 1, label) for label, first, last in get_entities(known)]


def _by_tags(name: str, read: Reader) -> Callable[[Sequence[Document], Predictions], Score]:
    def count(documents: Sequence[Document], predictions: Predictions) -> Score:
        scheme = predictions.scheme
        if scheme == "BIOS":
            raise RunError(
                f"scorer {name}: tags must be in BIO, BMES or BIOES, which all scorers of tags read, but are in BIOS. "
                "Score by exact."
            )
        flat = [flatten(document.spans) for document in documents]
        gold = [spans_to_tags(len(d.text), kept, scheme) for d, (kept, _) in zip(documents, flat, strict=True)]
        tags = predictions.tags
        if tags is None:
            tags = [_tags_of(name, d, spans, scheme) for d, spans in zip(documents, predictions.spans, strict=True)]
        scores = score_entities([read(row, scheme) for row in gold], [read(row, scheme) for row in tags])
        return Score(scores, sum(len(dropped) for _, dropped in flat))

    return count


def _tags_of(name: str, document: Document, spans: Sequence[Span], scheme: Scheme) -> list[str]:
    _, dropped = flatten(set(spans))
    if dropped:
        raise RunError(
            f"scorer {name}: predictions must not overlap, since it reads tags, but {tuple(dropped[0])} of "
            f"{document.text[:30]!r} overlaps another. Score by exact, or by clue."
        )
    return spans_to_tags(len(document.text), set(spans), scheme)


SCORERS: Mapping[str, Scorer] = {
    "exact": Scorer("hanzoo: every figure that does not say otherwise", _exact),
    "bmes": Scorer("Lattice LSTM, SoftLexicon and others built on that code", _by_tags("bmes", _lattice_spans)),
    "fastnlp": Scorer("FLAT, TENER", _by_tags("fastnlp", _fastnlp_spans)),
    "seqeval": Scorer("LEBERT, examples of Hugging Face; conlleval on BIO", _by_tags("seqeval", _seqeval_spans)),
    "clue": Scorer("CLUENER's leaderboard, by its macro F1", _clue),
}
