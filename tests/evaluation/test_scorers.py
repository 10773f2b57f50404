"""Each scorer on sequences where they differ, with the counts that the code it stands for gives; and all on legal ones."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities

from hanzoo.data.document import Document, Span
from hanzoo.data.schemes import Scheme, TagSet, spans_to_tags, tags_to_spans
from hanzoo.errors import DataError, RunError
from hanzoo.evaluation.cluener import LABELS
from hanzoo.evaluation.scorers import SCORERS, Predictions, known_scorers, score
from hanzoo.evaluation.tagging import Counts

SCHEMES: tuple[Scheme, ...] = tuple(scheme for scheme in get_args(Scheme) if scheme != "BIOS")
TEXT = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏"  # no character twice, so no mention either

# Gold, prediction, and "found/spurious/missed" by exact, seqeval, fastnlp and bmes. Rows 1 to 7 are BIO, the others BMES.
CASES = """
B-X I-X O       | I-X I-X O       | 0/0/1 1/0/0 1/0/0 0/0/1
B-X I-X I-X O   | B-X I-Y I-X O   | 0/1/1 0/3/1 0/3/1 0/1/1
B-X I-X O B-X   | B-X I-X O I-X   | 1/0/1 2/0/0 2/0/0 1/0/1
O B-X O O       | O B-X O O       | 1/0/0 1/0/0 1/0/0 1/0/0
B-X I-X B-X I-X | B-X I-X I-X I-X | 0/1/2 0/1/2 0/1/2 0/1/2
B-X I-X         | B-X I-Y         | 0/1/1 0/2/1 0/2/1 0/1/1
B-X I-X O O     | B-X I-X I-Y O   | 1/0/0 1/1/0 1/1/0 1/0/0
B-X M-X E-X O   | B-X M-X M-X O   | 0/0/1 1/0/0 1/0/0 0/1/1
B-X M-X E-X O   | M-X M-X E-X O   | 0/0/1 1/0/0 1/0/0 0/0/1
B-X M-X M-X E-X | B-X O O E-X     | 0/0/1 0/2/1 0/2/1 1/0/0
B-X E-X O       | B-X E-Y O       | 0/0/1 0/2/1 0/2/1 1/0/0
S-X O           | B-X O           | 0/0/1 1/0/0 1/0/0 1/0/0
O S-X           | O B-X           | 0/0/1 1/0/0 1/0/0 1/0/0
B-X E-X B-X E-X | B-X E-X M-X E-X | 1/0/1 2/0/0 2/0/0 1/0/1
B-X E-X O       | E-X E-X O       | 0/0/1 0/2/1 0/2/1 0/0/1
B-X E-X O       | B-X B-X E-X     | 0/1/1 0/2/1 0/2/1 0/2/1
B-X M-X E-X S-Y | B-X M-X E-X M-Y | 1/0/1 2/0/0 2/0/0 1/0/1
B-X E-X O O     | B-X E-X E-X O   | 1/0/0 1/1/0 1/1/0 1/0/0
""".strip().splitlines()


def predictions(tags: Sequence[Sequence[str]], scheme: Scheme) -> Predictions:
    """What a tagger says whose output layer chose these tags."""
    tag_set = TagSet(tuple({tag[2:]: None for row in tags for tag in row if tag != "O"}), scheme)
    spans = [tag_set.decode([tag_set.tags.index(tag) for tag in row]) for row in tags]
    return Predictions(spans, tags, scheme)


def counts(name: str, gold: str, predicted: str, scheme: Scheme) -> Counts:
    """What a scorer finds in one sentence; the gold is legal."""
    spans, faults = tags_to_spans(gold.split(), scheme)
    assert not faults
    document = Document(TEXT[: len(gold.split())], tuple(spans))
    return score(name, [document], predictions([predicted.split()], scheme)).scores.micro


@pytest.mark.parametrize(("row", "case"), list(enumerate(CASES, start=1)))
def test_each_scorer_counts_as_its_code_does(row: int, case: str) -> None:
    gold, predicted, expected = case.split("|")
    scheme: Scheme = "BIO" if row <= 7 else "BMES"
    for name, wanted in zip(("exact", "seqeval", "fastnlp", "bmes"), expected.split(), strict=True):
        assert counts(name, gold, predicted, scheme) == Counts(*map(int, wanted.split("/"))), name
    # Strings alone: what the spans of the strict reading are, for no mention comes twice.
    named = [tags.replace("X", "name").replace("Y", "book") for tags in (gold, predicted)]
    assert counts("clue", *named, scheme) == counts("exact", gold, predicted, scheme)


def test_bmes_and_fastnlp_read_bioes_as_they_read_bmes() -> None:
    for case in CASES[7:]:
        gold, predicted, expected = case.replace("M-", "I-").split("|")
        for name, wanted in zip(("exact", "seqeval", "fastnlp", "bmes"), expected.split(), strict=True):
            assert counts(name, gold, predicted, "BIOES") == Counts(*map(int, wanted.split("/"))), name


def test_seqeval_alone_does_not_know_m() -> None:
    # Row 14 with M as it is: a warning, and a stale beginning. The scorer gives it I, as LEBERT and others do.
    with pytest.warns(UserWarning, match="M-X seems not to be NE tag"):
        assert get_entities(["B-X", "E-X", "M-X", "E-X"]) == [("X", 0, 1), ("X", 0, 3)]
    assert counts("seqeval", "B-X E-X B-X E-X", "B-X E-X M-X E-X", "BMES") == Counts(2, 0, 0)


@pytest.mark.parametrize(
    ("gold", "predicted", "clue", "spans"),
    [
        ([(0, 2, "name"), (3, 5, "name")], [(0, 2, "name")], (1, 0, 0), (1, 0, 1)),
        ([(0, 2, "name")], [(3, 5, "name")], (1, 0, 0), (0, 1, 1)),  # the right string at the wrong place
        ([(0, 2, "name")], [(0, 2, "name"), (3, 5, "name")], (1, 0, 0), (1, 1, 0)),
        ([(0, 2, "name")], [(0, 2, "name"), (0, 2, "book")], (1, 1, 0), (1, 1, 0)),
        ([(0, 2, "name")], [(0, 3, "name")], (0, 1, 1), (0, 1, 1)),
        ([(0, 2, "name"), (3, 5, "name")], [], (0, 0, 1), (0, 0, 2)),
    ],
)
def test_clue_counts_strings(
    gold: list[tuple[int, int, str]],
    predicted: list[tuple[int, int, str]],
    clue: tuple[int, int, int],
    spans: tuple[int, int, int],
) -> None:
    documents = [Document("小明和小明", tuple(Span(*span) for span in gold))]
    said = Predictions([[Span(*span) for span in predicted]])
    assert score("clue", documents, said).scores.micro == Counts(*clue)
    assert score("exact", documents, said).scores.micro == Counts(*spans)


def test_clue_has_all_ten_types_in_its_mean() -> None:
    documents = [Document("小明在北京", (Span(0, 2, "name"), Span(3, 5, "address")))]
    found = Predictions([[Span(0, 2, "name")]])
    assert score("clue", documents, found).scores.macro_f1 == 1 / 10
    assert score("exact", documents, found).scores.macro_f1 == 1 / 2


def test_bmes_looks_for_letters_anywhere_in_a_tag() -> None:
    # E-LAB-X holds "B-": it opens an entity there, and closes none.
    tags = [["B-LAB-X", "E-LAB-X"]]
    documents = [Document("天地", (Span(0, 2, "LAB-X"),))]
    found = score("bmes", documents, predictions(tags, "BMES")).scores
    assert found.micro == Counts(2, 0, 0)
    assert set(found.per_label) == {"LAB-X", "E-LAX"}
    assert score("exact", documents, predictions(tags, "BMES")).scores.micro == Counts(1, 0, 0)


def test_labels_that_differ_in_case_are_one_for_two_scorers() -> None:
    documents = [Document("天地", (Span(0, 2, "name"),))]
    said = predictions([["B-NAME", "E-NAME"]], "BMES")
    found = {name: score(name, documents, said).scores.micro for name in ("exact", "bmes", "fastnlp", "seqeval")}
    assert found["exact"] == found["seqeval"] == Counts(0, 1, 1)
    assert found["bmes"] == found["fastnlp"] == Counts(1, 0, 0)


# Legal sequences, and any.


@st.composite
def flat_spans(draw: st.DrawFn, length: int) -> list[Span]:
    spans, at = [], 0
    while at < length:
        size = draw(st.integers(0, min(4, length - at)))
        if size:
            spans.append(Span(at, at + size, draw(st.sampled_from(LABELS[:4]))))
        at += max(size, 1)
    return spans


@st.composite
def legal_cases(draw: st.DrawFn) -> tuple[list[Document], Predictions]:
    """A few texts with flat gold, and legal tags; often right and often almost right."""
    scheme = draw(st.sampled_from(SCHEMES))
    documents, said = [], []
    for length in draw(st.lists(st.integers(1, 12), min_size=1, max_size=4)):
        gold = draw(flat_spans(length))
        documents.append(Document(TEXT[:length], tuple(gold)))
        said.append(gold if draw(st.booleans()) else draw(flat_spans(length)))
    tags = [spans_to_tags(len(d.text), spans, scheme) for d, spans in zip(documents, said, strict=True)]
    return documents, Predictions(said, tags, scheme)


@settings(max_examples=60)
@given(case=legal_cases(), made_of_spans=st.booleans())
def test_all_agree_on_legal_sequences(case: tuple[list[Document], Predictions], made_of_spans: bool) -> None:
    documents, said = case
    assert said.legal == 1.0
    if made_of_spans:
        said = Predictions(said.spans)
    found = {name: score(name, documents, said) for name in SCORERS}
    exact = found["exact"].scores
    for name, other in found.items():
        assert other.scores.micro == exact.micro, name
        assert other.scores.f1 == exact.f1, name
        assert other.gold_left_out == 0
        if name != "clue":
            assert {label.lower(): c for label, c in other.scores.per_label.items()} == exact.per_label, name
            assert other.scores.macro_f1 == exact.macro_f1, name
    assert 10 * found["clue"].scores.macro_f1 == pytest.approx(len(exact.per_label) * exact.macro_f1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_they_differ_on_illegal_sequences(scheme: Scheme) -> None:
    # The control of the test above, on tags drawn at random.
    generator = random.Random(scheme)
    names = TagSet(LABELS[:2], scheme).tags
    documents, tags = [], []
    for _ in range(300):
        ends = sorted(generator.sample(range(9), 4))
        gold = (Span(ends[0], ends[1], LABELS[0]), Span(ends[2], ends[3], LABELS[1]))
        documents.append(Document(TEXT[:8], gold))
        tags.append([generator.choice(names) for _ in range(8)])
    said = predictions(tags, scheme)
    assert said.legal is not None
    assert said.legal < 0.1
    found = {name: score(name, documents, said).scores.micro for name in SCORERS}
    alike = [{"exact", "clue"}, {"fastnlp", "seqeval"}, {"bmes"}]  # no mention comes twice, no label has capitals
    if scheme == "BIO":
        alike = [{"exact", "clue", "bmes"}, {"fastnlp", "seqeval"}]
    assert [{name for name in found if found[name] == found[next(iter(group))]} for group in alike] == alike


@settings(max_examples=60)
@given(data=st.data(), scheme=st.sampled_from(SCHEMES))
def test_seqeval_is_seqeval_whatever_the_tags(data: st.DataObject, scheme: Scheme) -> None:
    names = st.sampled_from(TagSet(("人", "a-b"), scheme).tags)
    lengths = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=3))
    tags = [data.draw(st.lists(names, min_size=length, max_size=length)) for length in lengths]
    gold = [tags_to_spans(data.draw(st.lists(names, min_size=n, max_size=n)), scheme)[0] for n in lengths]
    documents = [Document(TEXT[:length], tuple(spans)) for length, spans in zip(lengths, gold, strict=True)]
    found = score("seqeval", documents, predictions(tags, scheme)).scores
    pair = [
        [[f"I{tag[1:]}" if tag.startswith("M") else tag for tag in row] for row in rows]
        for rows in ([spans_to_tags(n, spans, scheme) for n, spans in zip(lengths, gold, strict=True)], tags)
    ]
    if found.num_gold + found.num_predicted == 0:  # it cannot take the mean of nothing
        assert found.f1 == 0.0
        return
    assert found.precision == pytest.approx(precision_score(*pair, zero_division=0), abs=1e-12)
    assert found.recall == pytest.approx(recall_score(*pair, zero_division=0), abs=1e-12)
    assert found.f1 == pytest.approx(f1_score(*pair, zero_division=0), abs=1e-12)
    assert found.macro_f1 == pytest.approx(f1_score(*pair, average="macro", zero_division=0), abs=1e-12)


def test_no_scorer_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in SCORERS:
            nothing = score(name, [Document("天地")], predictions([["O", "O"]], "BMES")).scores
            assert (nothing.precision, nothing.recall, nothing.f1, nothing.macro_f1) == (0.0, 0.0, 0.0, 0.0)
            counts(name, "B-name M-name E-name", "B-name M-name E-name", "BMES")


# Nested gold, overlapping predictions, what cannot be scored.


def test_nested_gold_is_flattened_for_those_that_read_tags() -> None:
    documents = [Document("浙商银行行长", (Span(0, 4, "company"), Span(0, 6, "position"), Span(4, 6, "name")))]
    said = predictions([spans_to_tags(6, [Span(0, 6, "position")], "BIOES")], "BIOES")
    assert {name: score(name, documents, said).gold_left_out for name in SCORERS} == {
        "exact": 0, "bmes": 2, "fastnlp": 2, "seqeval": 2, "clue": 0,
    }  # fmt: skip
    assert (
        score("exact", documents, said).scores.micro == score("clue", documents, said).scores.micro == Counts(1, 0, 2)
    )
    assert score("seqeval", documents, said).scores.micro == Counts(1, 0, 0)


def test_overlapping_predictions_are_refused_by_those_that_read_tags() -> None:
    documents = [Document("浙商银行行长", (Span(0, 4, "company"),))]
    said = Predictions([[Span(0, 4, "company"), Span(0, 6, "position")]])
    assert said.legal is None
    for name in ("bmes", "fastnlp", "seqeval"):
        with pytest.raises(
            RunError, match=rf"scorer {name}: .* \(0, 4, 'company'\) of '浙商银行行长' overlaps .* exact"
        ):
            score(name, documents, said)
    for name in ("exact", "clue"):
        assert score(name, documents, said).scores.micro == Counts(1, 1, 0)
    twice = Predictions([[Span(0, 4, "company"), Span(0, 4, "company")]])
    assert {score(name, documents, twice).scores.f1 for name in SCORERS} == {1.0}


def test_clue_refuses_labels_that_it_does_not_count() -> None:
    with pytest.raises(DataError, match=r"scorer clue: .* CLUENER's ten .* is 'LOC'"):
        score("clue", [Document("天地", (Span(0, 1, "LOC"),))], Predictions([[]]))


def test_bios_is_refused_by_those_that_do_not_read_it() -> None:
    said = predictions([["B-name", "I-name"]], "BIOS")
    documents = [Document("天地", (Span(0, 2, "name"),))]
    for name in ("bmes", "fastnlp", "seqeval"):
        with pytest.raises(RunError, match=rf"scorer {name}: tags must be in BIO, BMES or BIOES, .* but are in BIOS"):
            score(name, documents, said)
    assert {score(name, documents, said).scores.f1 for name in ("exact", "clue")} == {1.0}


def test_names() -> None:
    assert known_scorers(["bmes", "exact", "bmes"]) == ["bmes", "exact"]
    with pytest.raises(
        RunError, match=r"scorer: a name must be one of exact, bmes, .* is 'seqval'. Did you mean 'seqeval'\?"
    ):
        known_scorers(["exact", "seqval"])
    with pytest.raises(RunError, match="'conlleval'"):
        score("conlleval", [], Predictions([]))


def test_documents_and_predictions_must_be_as_many() -> None:
    for name in SCORERS:
        with pytest.raises(ValueError, match=r"must hold one entry|argument"):
            score(name, [Document("天")], Predictions([]))
