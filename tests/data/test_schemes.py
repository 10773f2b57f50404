from __future__ import annotations

import itertools
import random
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanzoo.data.document import Span
from hanzoo.data.schemes import (
    SCHEMES,
    Scheme,
    TagSet,
    detect_scheme,
    flatten,
    spans_to_tags,
    split_tag,
    tags_to_spans,
)
from hanzoo.errors import DataError

LABELS = ("PER.NAM", "a-b", "机构")


@st.composite
def disjoint_spans(draw: st.DrawFn) -> tuple[int, list[Span]]:
    """A length and spans that do not overlap; many are neighbours, and many are alike in label."""
    spans = []
    at = 0
    for gap, size, label in draw(
        st.lists(st.tuples(st.sampled_from((0, 0, 1, 3)), st.integers(1, 4), st.sampled_from(LABELS)))
    ):
        spans.append(Span(at + gap, at + gap + size, label))
        at += gap + size
    return at + draw(st.integers(0, 3)), spans


def written(length: int, spans: Iterable[Span], scheme: Scheme) -> list[str]:
    """The tags of spans, as they would stand in a file."""
    spans = list(spans)
    tag_set = TagSet(tuple({span.label for span in spans}), scheme)
    return [tag_set.tags[tag] for tag in tag_set.encode(length, spans)]


@given(disjoint_spans(), st.sampled_from(SCHEMES))
def test_spans_survive_the_way_through_tags(case: tuple[int, list[Span]], scheme: Scheme) -> None:
    length, spans = case
    tags = written(length, reversed(spans), scheme)
    assert tags_to_spans(tags, scheme) == (spans, [])
    tag_set = TagSet(LABELS, scheme)
    ids = tag_set.encode(length, spans)
    assert ids.dtype == np.int64
    assert ids.shape == (length,)
    assert [tag_set.tags[tag] for tag in ids] == tags
    assert tag_set.decode(ids) == tag_set.decode(ids.tolist()) == spans
    assert tag_set.illegal_positions(ids) == []


@given(disjoint_spans(), st.sampled_from(SCHEMES))
def test_the_scheme_found_reads_the_same_spans(case: tuple[int, list[Span]], scheme: Scheme) -> None:
    """Where the letters leave a choice of scheme, the choice makes no difference."""
    length, spans = case
    tags = written(length, spans, scheme)
    assert tags_to_spans(tags, detect_scheme(tags))[0] == spans


def test_neighbours_of_one_label_stay_apart() -> None:
    spans = [Span(0, 2, "x"), Span(2, 3, "x"), Span(3, 5, "x")]
    assert written(5, spans, "BIO") == ["B-x", "I-x", "B-x", "B-x", "I-x"]
    assert written(5, spans, "BMES") == ["B-x", "E-x", "S-x", "B-x", "E-x"]
    assert written(5, spans, "BIOES") == ["B-x", "E-x", "S-x", "B-x", "E-x"]
    assert written(5, spans, "BIOS") == ["B-x", "I-x", "S-x", "B-x", "I-x"]
    assert written(4, [Span(0, 4, "x")], "BMES") == ["B-x", "M-x", "M-x", "E-x"]
    merged = ["B-x", "I-x", "I-x", "I-x", "I-x"]
    assert tags_to_spans(merged, "BIO")[0] == [Span(0, 5, "x")] != spans


@pytest.mark.parametrize(
    ("scheme", "tags", "spans", "mended"),
    [
        ("BIO", "I-x I-x O", [(0, 2, "x")], [0]),  # a stray I opens
        ("BIO", "B-x I-y I-y", [(0, 1, "x"), (1, 3, "y")], [1]),  # a change of label opens
        ("BIO", "B-x I-y I-x", [(0, 1, "x"), (1, 2, "y"), (2, 3, "x")], [1, 2]),
        ("BIO", "O I-x O I-x", [(1, 2, "x"), (3, 4, "x")], [1, 3]),
        ("BMES", "B-x M-x O", [(0, 2, "x")], [1]),  # not closed by E
        ("BMES", "B-x M-x", [(0, 2, "x")], [1]),
        ("BMES", "M-x E-x O", [(0, 2, "x")], [0]),
        ("BMES", "O E-x O", [(1, 2, "x")], [1]),
        ("BMES", "M-x O", [(0, 1, "x")], [0]),  # opened and not closed: one tag, one fault
        ("BMES", "B-x E-y", [(0, 1, "x"), (1, 2, "y")], [0, 1]),
        ("BMES", "B-x B-x E-x", [(0, 1, "x"), (1, 3, "x")], [0]),
        ("BMES", "B-x S-x", [(0, 1, "x"), (1, 2, "x")], [0]),
        ("BMES", "B-x E-x E-x", [(0, 2, "x"), (2, 3, "x")], [2]),
        ("BIOES", "B-x I-x B-x E-x", [(0, 2, "x"), (2, 4, "x")], [1]),
        ("BIOS", "B-x O", [(0, 1, "x")], [0]),  # a single is S
        ("BIOS", "B-x I-x O", [(0, 2, "x")], []),
        ("BIOS", "S-x I-x", [(0, 1, "x"), (1, 2, "x")], [1]),
        ("BIOS", "B-x", [(0, 1, "x")], [0]),
        ("BIO", "B-x", [(0, 1, "x")], []),
        ("BIO", "", [], []),
    ],
)
def test_illegal_sequences_are_mended(
    scheme: Scheme, tags: str, spans: list[tuple[int, int, str]], mended: list[int]
) -> None:
    assert tags_to_spans(tags.split(), scheme) == ([Span(*span) for span in spans], mended)
    tag_set = TagSet(("x", "y"), scheme)
    ids = [tag_set.tags.index(tag) for tag in tags.split()]
    assert tag_set.illegal_positions(ids) == mended


@pytest.mark.parametrize(
    ("scheme", "tags", "spans"),
    [
        ("BIO", "I-x I-x O B-x I-x", [(3, 5, "x")]),
        ("BIO", "B-x I-y I-x", [(0, 1, "x")]),
        ("BMES", "B-x E-x M-x E-x", [(0, 2, "x")]),
        ("BMES", "B-x B-x E-x", [(1, 3, "x")]),
        ("BMES", "B-x M-x M-x O", []),
        ("BIOES", "B-x E-y S-x", [(2, 3, "x")]),
        ("BIOS", "B-x O B-x I-x", [(2, 4, "x")]),
    ],
)
def test_of_an_illegal_sequence_only_what_is_spelt_right_is_decoded(
    scheme: Scheme, tags: str, spans: list[tuple[int, int, str]]
) -> None:
    tag_set = TagSet(("x", "y"), scheme)
    ids = [tag_set.tags.index(tag) for tag in tags.split()]
    assert tag_set.decode(ids) == tag_set.decode(np.array(ids)) == [Span(*span) for span in spans]
    assert tags_to_spans(tags.split(), scheme)[0] != [Span(*span) for span in spans]  # what a file would be mended to


def is_legal(tag_set: TagSet, ids: tuple[int, ...]) -> bool:
    return bool(
        tag_set.legal_start[ids[0]]
        and tag_set.legal_end[ids[-1]]
        and all(tag_set.legal_transitions[pair] for pair in itertools.pairwise(ids))
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_legality_spans_and_encoding_agree_on_every_short_sequence(scheme: Scheme) -> None:
    tag_set = TagSet(("x", "y"), scheme)
    assert tag_set.legal_transitions.shape == (len(tag_set.tags),) * 2
    legal = illegal = 0
    for length in (1, 2, 3, 4):
        spans_seen = set()
        for ids in itertools.product(range(len(tag_set.tags)), repeat=length):
            spans = tag_set.decode(ids)
            again = tuple(tag_set.encode(length, spans).tolist())
            tags = [tag_set.tags[tag] for tag in ids]
            mended = tags_to_spans(tags, scheme)[0]
            assert is_legal(tag_set, ids) == (not tag_set.illegal_positions(ids)) == (again == ids), ids
            assert is_legal(tag_set, again)  # what was left is legal
            assert is_legal(tag_set, tuple(tag_set.encode(length, mended).tolist()))  # what was mended is legal
            assert spans_to_tags(length, spans, scheme) == [tag_set.tags[tag] for tag in again]
            assert set(spans) <= set(mended)
            assert spans == mended or not is_legal(tag_set, ids)
            legal += again == ids
            illegal += again != ids
            spans_seen.add(tuple(spans))
        # A legal sequence for every way to place spans, and no two for one.
        assert len(spans_seen) == sum(
            is_legal(tag_set, ids) for ids in itertools.product(range(len(tag_set.tags)), repeat=length)
        )
    assert legal > 100
    assert illegal > 100


@pytest.mark.parametrize("scheme", SCHEMES)
def test_span_tags_tell_exactly_the_sequences_that_hold_the_span(scheme: Scheme) -> None:
    tag_set = TagSet(("x", "y"), scheme)
    length = 4
    sequences = [ids for ids in itertools.product(range(len(tag_set.tags)), repeat=length) if is_legal(tag_set, ids)]
    needed = False
    for start, end in itertools.combinations(range(length + 1), 2):
        for label in tag_set.labels:
            span = Span(start, end, label)
            ids, forbidden = tag_set.span_tags(span)
            for sequence in sequences:
                carries = sequence[start:end] == ids
                goes_on = end < length and sequence[end] in forbidden
                assert (carries and not goes_on) == (span in tag_set.decode(sequence)), (span, sequence)
                needed |= carries and goes_on
    assert needed == (scheme in ("BIO", "BIOS"))  # there, and only there, the tag after the span decides


def test_tags_are_ordered_by_label() -> None:
    assert TagSet(("b", "a"), "BIO").tags == ("O", "B-b", "I-b", "B-a", "I-a")
    assert TagSet(("b",), "BMES").tags == ("O", "B-b", "M-b", "E-b", "S-b")
    assert TagSet(("b",), "BIOES").tags == ("O", "B-b", "I-b", "E-b", "S-b")
    assert TagSet(("b",), "BIOS").tags == ("O", "B-b", "I-b", "S-b")
    assert TagSet((), "BIO").tags == ("O",)


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        ("O B-x I-x", "BIO"),
        ("O B-x", "BIO"),
        ("O I-x", "BIO"),
        ("O", "BIO"),
        ("", "BIO"),
        ("B-x M-x E-x S-x O", "BMES"),
        ("B-x E-x O", "BMES"),
        ("B-x E-x S-x", "BMES"),
        ("B-x M-x E-x", "BMES"),
        ("B-x I-x E-x S-x", "BIOES"),
        ("B-x I-x E-x", "BIOES"),
        ("B-x I-x S-x O", "BIOS"),
        ("S-x O", "BIOS"),
    ],
)
def test_the_scheme_is_told_from_the_tags(tags: str, scheme: Scheme) -> None:
    assert detect_scheme(tags.split()) == scheme


@pytest.mark.parametrize("tag", ["", "o", "B", "B-", "X-a", "L-a", "-a", "B-a ", "O ", "B_LOC", "ORG-B"])
def test_unknown_tags_are_refused(tag: str) -> None:
    with pytest.raises(DataError, match="a tag must be 'O' or one of B- I- M- E- S-"):
        detect_scheme(["O", tag])


def test_two_letters_for_the_inside_are_refused() -> None:
    with pytest.raises(DataError, match="one scheme"):
        detect_scheme(["B-x", "M-x", "I-x"])
    with pytest.raises(ValueError, match="but is E-x"):
        tags_to_spans(["B-x", "E-x"], "BIO")


def test_only_the_first_hyphen_splits() -> None:
    assert split_tag("B-a-b") == ("B", "a-b")
    assert split_tag("I-PER.NAM") == ("I", "PER.NAM")


def test_what_tags_cannot_say_is_refused() -> None:
    for spans in ([(0, 2, "x"), (1, 3, "x")], [(0, 3, "x"), (1, 2, "y")], [(0, 1, "x"), (0, 1, "y")]):
        with pytest.raises(ValueError, match="overlap"):
            written(3, [Span(*span) for span in spans], "BIO")
    for span in ((-1, 1, "x"), (2, 2, "x"), (2, 4, "x")):
        with pytest.raises(ValueError, match="start < end <= 3"):
            TagSet(("x",), "BIO").encode(3, [Span(*span)])
    with pytest.raises(ValueError, match="a label must be one of x, but is 'z'"):
        TagSet(("x",), "BIO").encode(3, [Span(0, 1, "z")])
    with pytest.raises(ValueError, match="distinct"):
        TagSet(("x", "x"), "BIO")
    with pytest.raises(ValueError, match="scheme"):
        TagSet(("x",), "BILOU")  # type: ignore[arg-type]


def overlap(one: Span, other: Span) -> bool:
    return one.start < other.end and other.start < one.end


@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(1, 6), st.sampled_from("xy")).map(
            lambda drawn: Span(drawn[0], drawn[0] + drawn[1], drawn[2])
        ),
        unique=True,
    ),
    st.randoms(use_true_random=False),
)
def test_flattening_keeps_the_longer_then_the_earlier(spans: list[Span], order: random.Random) -> None:
    kept, dropped = flatten(spans)
    assert sorted(kept + dropped) == sorted(spans)
    assert kept == sorted(kept)
    assert not any(overlap(one, other) for one, other in itertools.combinations(kept, 2))
    for span in dropped:
        rank = (span.start - span.end, span.start, span.label)
        assert any(
            overlap(span, other) and (other.start - other.end, other.start, other.label) < rank for other in kept
        )
    shuffled = list(spans)
    order.shuffle(shuffled)
    assert flatten(shuffled) == (kept, dropped)


def test_flattening_an_example() -> None:
    book, company, other = Span(15, 34, "book"), Span(16, 19, "company"), Span(33, 36, "name")
    assert flatten([company, other, book]) == ([book], [company, other])
    assert flatten([Span(0, 2, "x"), Span(1, 3, "x")]) == ([Span(0, 2, "x")], [Span(1, 3, "x")])
