"""Tag schemes and spans: from one to the other without loss, and which sequences of tags are legal.

Four schemes are known. An entity of label x over several tokens, and over one token, is written as

    scheme   several tokens       one token
    BIO      B-x I-x ... I-x      B-x           (also called IOB2)
    BMES     B-x M-x ... E-x      S-x
    BIOES    B-x I-x ... E-x      S-x           (BMES with I for M)
    BIOS     B-x I-x ... I-x      S-x           (no E; a lone B-x is illegal)

Everything outside entities is "O". Tags live in files, here, and in the models; everything else speaks of spans.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeGuard, get_args

import numpy as np
import numpy.typing as npt

from hanzoo.data.document import Span
from hanzoo.errors import DataError, nearest

Scheme = Literal["BIO", "BMES", "BIOES", "BIOS"]

SCHEMES: tuple[Scheme, ...] = get_args(Scheme)

_LETTERS: dict[Scheme, str] = {"BIO": "BI", "BMES": "BMES", "BIOES": "BIES", "BIOS": "BIS"}
_ENDS_WITH_E: frozenset[Scheme] = frozenset(("BMES", "BIOES"))
_OUTSIDE = ("O", "")


LABEL_RULE = "printable text without blanks around it"


def is_label(label: object) -> TypeGuard[str]:
    """Whether this may name a kind of entity: a string that is not empty, can be printed, and has no blanks around it.

    Anything else could not stand in a tag, a line of a table, or a file of columns.
    """
    return isinstance(label, str) and bool(label) and label == label.strip() and label.isprintable()


@functools.lru_cache(maxsize=4096)
def split_tag(tag: str) -> tuple[str, str]:
    """Split a tag into its letter and its label: "B-PER.NAM" is ("B", "PER.NAM"), "O" is ("O", "").

    Only the first hyphen splits, so labels may hold hyphens and dots.

    Raises:
        DataError: the tag is neither "O" nor one of B, I, M, E, S with a hyphen and a label. The message names no
            place: who reads a file puts it in front.
    """
    if tag == "O":
        return _OUTSIDE
    letter, hyphen, label = tag.partition("-")
    if letter not in ("B", "I", "M", "E", "S") or not hyphen or not is_label(label):
        hint = " In BILOU write E for L and S for U." if hyphen and letter in ("L", "U") else ""
        raise DataError(f"a tag must be 'O' or one of B- I- M- E- S- and a label, but is {tag!r}.{hint} Mend the tag.")
    return letter, label


def detect_scheme(tags: Iterable[str]) -> Scheme:
    """Tell the scheme from the tags of a whole file (repeats are harmless).

    M tells BMES; I with E tells BIOES; I with S tells BIOS; S without E tells BIOS. Where the letters leave a choice,
    every candidate reads the tags in the same way, and the choice is: E without I or M is BMES, only B, only I, or
    nothing but O is BIO. (A file that has only I-, or B- only between neighbours, is IO or IOB1: read as BIO its
    entities come out right, each opening I- counted as mended.)

    Raises:
        DataError: a tag has an unknown form, or both M- and I- occur.
    """
    letters = {split_tag(tag)[0] for tag in set(tags)}
    if "M" in letters:
        if "I" in letters:
            raise DataError(
                "the tags of a file must follow one scheme, but both M- (BMES) and I- (BIO, BIOES, BIOS) occur. "
                "Write one letter for the inside of an entity."
            )
        return "BMES"
    if "E" in letters:
        return "BIOES" if "I" in letters else "BMES"
    return "BIOS" if "S" in letters else "BIO"


def _scan(pieces: Iterable[tuple[str, str]], scheme: Scheme) -> tuple[list[Span], list[int]]:
    """Read spans from (letter, label) pairs in one pass, mending what is illegal; see `tags_to_spans`."""
    spans: list[Span] = []
    mended: list[int] = []
    ends_with_e = scheme in _ENDS_WITH_E
    lone_b_is_illegal = scheme == "BIOS"
    start, label, index = -1, "", -1
    # The tag after the last is an O, so that an open entity is closed there and nowhere else.
    for index, (letter, here) in enumerate((*pieces, _OUTSIDE)):
        if start >= 0:
            if here == label and letter in ("I", "M"):
                continue
            if here == label and letter == "E":
                spans.append(Span(start, index + 1, label))
                start = -1
                continue
            if (ends_with_e or (lone_b_is_illegal and index - start == 1)) and not (mended and mended[-1] == index - 1):
                mended.append(index - 1)
            spans.append(Span(start, index, label))
            start = -1
        if letter == "O":
            continue
        if letter == "S":
            spans.append(Span(index, index + 1, here))
        elif letter == "E":
            mended.append(index)
            spans.append(Span(index, index + 1, here))
        else:
            if letter != "B":
                mended.append(index)
            start, label = index, here
    return spans, mended


def tags_to_spans(tags: Sequence[str], scheme: Scheme) -> tuple[list[Span], list[int]]:
    """Read the spans of one sentence from its tags, and mend what is illegal.

    A stray I-x, M-x or E-x opens an entity; a change of label inside an entity opens a new one; an entity that lacks
    its E (or, in BIOS, a B-x that no I-x follows) is closed where it stops.

    Args:
        tags: one tag a token.
        scheme: what the tags follow.

    Returns:
        The spans in positions of tokens, in order, and the indices of the tokens whose tag was at fault, in order,
        without repeats: the stray tag itself, or the last token of an entity that was not closed.

    Raises:
        DataError: a tag has an unknown form.
        ValueError: the letter of a tag is not one of the scheme's.
    """
    pieces = [split_tag(tag) for tag in tags]
    allowed = _LETTERS[scheme] + "O"
    for letter, label in pieces:
        if letter not in allowed:
            raise ValueError(
                f"tags: a letter must be one of {', '.join(allowed)} in {scheme}, but is {letter}-{label}."
            )
    return _scan(pieces, scheme)


def _letters_of(length: int, scheme: Scheme) -> str:
    """The letters of an entity of `length` tokens."""
    if scheme == "BIO":
        return "B" + "I" * (length - 1)
    if length == 1:
        return "S"
    if scheme == "BIOS":
        return "B" + "I" * (length - 1)
    return "B" + ("M" if scheme == "BMES" else "I") * (length - 2) + "E"


def _ordered(length: int, spans: Iterable[Span]) -> list[Span]:
    """Sort spans and refuse what a flat tag sequence of `length` cannot say."""
    ordered = sorted(spans)
    reached = 0
    for start, end, label in ordered:
        if not 0 <= start < end <= length:
            raise ValueError(f"spans: 0 <= start < end <= {length} must hold, but a span is {(start, end, label)}.")
        if start < reached:
            raise ValueError(
                f"spans: must not overlap, but {(start, end, label)} begins before {reached}. Use flatten()."
            )
        reached = end
    return ordered


def spans_to_tags(length: int, spans: Iterable[Span], scheme: Scheme) -> list[str]:
    """Write spans as the tags of a sentence, one a token.

    Raises:
        ValueError: spans overlap (see `flatten`), or one lies outside the text.
    """
    tags = ["O"] * length
    for start, end, label in _ordered(length, spans):
        tags[start:end] = [f"{letter}-{label}" for letter in _letters_of(end - start, scheme)]
    return tags


def flatten(spans: Iterable[Span]) -> tuple[list[Span], list[Span]]:
    """Choose spans that do not overlap: the longer first, then the earlier, then the label first in order.

    Returns:
        The spans kept and the spans dropped, each sorted. Together they are the spans given.
    """
    kept: list[Span] = []  # sorted and disjoint at any moment
    dropped: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start - span.end, span.start, span.label)):
        at = bisect_left(kept, span)
        if (at > 0 and kept[at - 1].end > span.start) or (at < len(kept) and kept[at].start < span.end):
            dropped.append(span)
        else:
            kept.insert(at, span)
    return kept, sorted(dropped)


@dataclass(frozen=True)
class TagSet:
    """What the output layer of a tagger means: tag 0 is "O", then each label's tags in order.

    Attributes:
        labels: the entity labels, without repeats.
        scheme: the scheme the model predicts in; it need not be the scheme of any file.

    Raises:
        ValueError: a label is empty or given twice, or the scheme is unknown.
    """

    labels: tuple[str, ...]
    scheme: Scheme

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ValueError(f"scheme: must be one of {', '.join(SCHEMES)}, but is {self.scheme!r}.")
        if len(set(self.labels)) != len(self.labels) or "" in self.labels:
            raise ValueError(f"labels: must be distinct and not empty, but are {self.labels}.")

    @functools.cached_property
    def tags(self) -> tuple[str, ...]:
        """All K tags; the index of a tag here is its id."""
        return ("O", *(f"{letter}-{label}" for label in self.labels for letter in _LETTERS[self.scheme]))

    @functools.cached_property
    def _pieces(self) -> tuple[tuple[str, str], ...]:
        return tuple(split_tag(tag) for tag in self.tags)

    @functools.cached_property
    def _first_id(self) -> dict[str, int]:
        size = len(_LETTERS[self.scheme])
        return {label: 1 + size * index for index, label in enumerate(self.labels)}

    def _ids_of(self, length: int, label: str) -> list[int]:
        if label not in self._first_id:
            hint = nearest(label, self.labels)
            raise ValueError(f"spans: a label must be one of {', '.join(self.labels)}, but is {label!r}.{hint}")
        letters = _LETTERS[self.scheme]
        first = self._first_id[label]
        return [first + letters.index(letter) for letter in _letters_of(length, self.scheme)]

    def encode(self, length: int, spans: Iterable[Span]) -> npt.NDArray[np.int64]:
        """Write spans as tag ids, shape (length,), int64.

        Raises:
            ValueError: spans overlap (see `flatten`), one lies outside the text, or has a label not in `labels`.
        """
        ids = np.zeros(length, dtype=np.int64)
        for start, end, label in _ordered(length, spans):
            ids[start:end] = self._ids_of(end - start, label)
        return ids

    def decode(self, tag_ids: Sequence[int] | npt.NDArray[np.integer]) -> list[Span]:
        """Read the entities that a sequence of tag ids spells as the scheme says; what is illegal in it yields nothing.

        So the spans of a model whose output layer may break the scheme are those that the strict score counts. (Tags in
        a file are mended instead, by `tags_to_spans`: there an annotator meant something by them.)
        """
        ids: Sequence[int] = tag_ids.tolist() if isinstance(tag_ids, np.ndarray) else tag_ids
        spans, mended = self._scan_ids(ids)
        if not mended:
            return spans
        return [
            span
            for span in spans
            if list(ids[span.start : span.end]) == self._ids_of(span.end - span.start, span.label)
        ]

    def illegal_positions(self, tag_ids: Sequence[int] | npt.NDArray[np.integer]) -> list[int]:
        """Say where a sequence of tag ids is illegal: the indices of `tags_to_spans`; none if it is legal."""
        return self._scan_ids(tag_ids.tolist() if isinstance(tag_ids, np.ndarray) else tag_ids)[1]

    def _scan_ids(self, ids: Sequence[int]) -> tuple[list[Span], list[int]]:
        if not any(ids):  # nothing but O, which is most of what a tagger says of ordinary text
            return [], []
        pieces = self._pieces
        return _scan([pieces[tag] for tag in ids], self.scheme)

    def tags_of(self, labels: Iterable[str]) -> npt.NDArray[np.bool_]:
        """Which tags are "O" or of one of these labels: bool, shape (K,)."""
        wanted = {*labels, ""}
        return np.array([label in wanted for _, label in self._pieces], dtype=np.bool_)

    @functools.cached_property
    def legal_transitions(self) -> npt.NDArray[np.bool_]:
        """Which tag may follow which: bool, shape (K, K), `[from, to]`."""
        legal = np.zeros((len(self.tags), len(self.tags)), dtype=np.bool_)
        for source, (letter, label) in enumerate(self._pieces):
            # An entity is open after B, and after I and M; it may stop there only where no E is to come.
            goes_on = letter in ("B", "I", "M")
            may_stop = letter in ("O", "E", "S") or self._may_end(letter)
            for target, (next_letter, next_label) in enumerate(self._pieces):
                if next_letter in ("O", "B", "S"):
                    legal[source, target] = may_stop
                else:
                    legal[source, target] = goes_on and label == next_label
        return legal

    def _may_end(self, letter: str) -> bool:
        """Whether an entity of several tokens, or of one, may have this letter last."""
        return letter in {"BIO": "BI", "BMES": "ES", "BIOES": "ES", "BIOS": "IS"}[self.scheme]

    @functools.cached_property
    def legal_start(self) -> npt.NDArray[np.bool_]:
        """Which tags may come first: bool, shape (K,)."""
        return np.array([letter in ("O", "B", "S") for letter, _ in self._pieces], dtype=np.bool_)

    @functools.cached_property
    def legal_end(self) -> npt.NDArray[np.bool_]:
        """Which tags may come last: bool, shape (K,)."""
        return np.array([letter == "O" or self._may_end(letter) for letter, _ in self._pieces], dtype=np.bool_)

    def span_tags(self, span: Span) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Say what a sequence must hold for exactly this span to be an entity, among the legal sequences.

        The event "exactly this span with this label" is: the positions of the span carry the first ids, and the tag
        right after the span, if there is one, is none of the second. Only I-x can lengthen an entity: after BIO's B-x
        and I-x, and BIOS's I-x. After E-x and S-x no legal sequence goes on, so nothing need be forbidden; and the
        tag before needs no condition, for the span begins with B-x or S-x.

        Returns:
            The tag ids of the span, one a position, and the tag ids forbidden right after it.

        Raises:
            ValueError: the label is unknown or the span is empty.
        """
        if span.end <= span.start:
            raise ValueError(f"span: start must be below end, but it is {tuple(span)}.")
        ids = self._ids_of(span.end - span.start, span.label)
        letters = _LETTERS[self.scheme]
        goes_on = self.scheme == "BIO" or (self.scheme == "BIOS" and len(ids) > 1)
        return tuple(ids), ((self._first_id[span.label] + letters.index("I"),) if goes_on else ())
