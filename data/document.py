"""What a reader yields: texts with the entities in them, as positions in the original string; pairs and triples of texts; and
what is searched: queries and passages."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import NamedTuple


def is_blank(text: str) -> bool:
    """Whether a text holds nothing to read: blanks, control and format characters (Unicode's Z* and C*), marks (Mn: accents,
    variation selectors) and U+FFFD alone.

    Tokenizers drop them, and leave nothing of such a text; marks those that take off accents, as BERT's for Chinese.
    """
    kinds = map(unicodedata.category, text.replace("\ufffd", ""))
    return all(kind[0] in "CZ" or kind == "Mn" for kind in kinds)


class Span(NamedTuple):
    """A half-open stretch of a text with a label.

    Attributes:
        start: index of the first character (code point, 0-based).
        end: index after the last character; end > start.
        label: the entity type, as written in the data.
    """

    start: int
    end: int
    label: str


@dataclass(frozen=True, slots=True)
class Entity:
    """An entity found in a text; `text[start:end] == entity.text` in the string that was given.

    Attributes:
        start: index of the first character (code point, 0-based).
        end: index after the last character.
        label: the entity type.
        text: the characters themselves.
        confidence: probability in [0, 1] that exactly this span with exactly this label is an entity; None for gold.
    """

    start: int
    end: int
    label: str
    text: str
    confidence: float | None = None

    @property
    def span(self) -> Span:
        return Span(self.start, self.end, self.label)


@dataclass(frozen=True, slots=True)
class Document:
    """One text (mostly one sentence) with its gold entities.

    Attributes:
        text: the original string, every character kept.
        spans: gold spans, sorted by (start, end, label), without repeats. They may nest or overlap: a tagger that cannot
            represent that keeps what it can (`schemes.flatten`), a scorer counts all of them.
        source: "file:line" of the first line it came from.
        id: the identifier that the file gives, if any.
    """

    text: str
    spans: tuple[Span, ...] = ()
    source: str = ""
    id: int | str | None = None


@dataclass(frozen=True, slots=True)
class TaggedText:
    """What a tagger says of one text: the text as given, and its entities in order of position."""

    text: str
    entities: tuple[Entity, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts, and how far they match.

    Attributes:
        first, second: the two texts, every character kept; neither is empty.
        label: a number on the scale of the data set: a score, or the place of a class in order of rising similarity (0 and 1;
            contradiction 0, neutral 1, entailment 2). None where the file has no labels.
        source: "file:line" of the first line it came from.
        id: the identifier that the file gives, if any; not always unique.
    """

    first: str
    second: str
    label: float | None = None
    source: str = ""
    id: int | str | None = None


@dataclass(frozen=True, slots=True)
class Triple:
    """A text, one that matches it, and one or several that do not.

    Attributes:
        anchor, positive: two texts, every character kept; neither is empty.
        negatives: the others, at least one; as many in every triple of a data set.
        source: "file:line" of the first line it came from.
        id: the identifier that the file gives, if any.
    """

    anchor: str
    positive: str
    negatives: tuple[str, ...]
    source: str = ""
    id: int | str | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """What is searched for.

    Attributes:
        id: its identifier, unique among the queries of a data set.
        text: the original string.
        source: "file:line" it came from.
    """

    id: str
    text: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Passage:
    """A text of a corpus that is searched in.

    Attributes:
        id: its identifier, unique in the corpus.
        text: the original string; may be empty where there is a title.
        title: its title, "" where it has none.
        source: "file:line" it came from.
    """

    id: str
    text: str
    title: str = ""
    source: str = ""

    @property
    def full_text(self) -> str:
        """Title and text with a blank between, as BEIR joins them; the one that is there where the other is empty."""
        return f"{self.title} {self.text}" if self.title and self.text else self.title or self.text


def texts_of(item: Pair | Triple | Document) -> tuple[str, ...]:
    """The texts of an item, in order."""
    if isinstance(item, Pair):
        return item.first, item.second
    if isinstance(item, Triple):
        return item.anchor, item.positive, *item.negatives
    return (item.text,)
