"""What a reader yields: texts with the entities in them, as positions in the original string."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


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
