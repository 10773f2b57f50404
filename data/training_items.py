"""What a matcher is trained on, made of labelled pairs: the matching ones alone, their texts, triples.

Source: for triples of pairs Gao et al. 2021 (SimCSE), section 4: of a premise its entailment is the positive and its contradiction
the hard negative.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from hanzoo.data.document import Document, Pair, Triple, texts_of
from hanzoo.data.hard_negatives import known_matches
from hanzoo.data.leakage import text_key
from hanzoo.data.pair_files import Scale

ItemKind = Literal["pairs", "matches", "triples", "texts"]


def matches(pairs: Iterable[Pair], scale: Scale) -> list[Pair]:
    """The pairs with the highest label of the scale, and those without labels, which a file without negatives has."""
    return [pair for pair in pairs if pair.label is None or pair.label == scale.high]


def texts(items: Iterable[Pair | Triple | Document]) -> list[Document]:
    """Every text once, in the order in which they come."""
    found: dict[str, str] = {}
    for item in items:
        for text in texts_of(item):
            found.setdefault(text, item.source)
    return [Document(text, (), source) for text, source in found.items()]


def triples_of_pairs(pairs: Sequence[Pair], scale: Scale) -> list[Triple]:
    """A triple for each pair with the highest label whose first text also stands in pairs with the lowest.

    The second text of one of those is the negative, unless another pair says that it matches; the matching pairs of one first
    text take them in turn.
    """
    positive = matches(pairs, scale)
    matching = known_matches(positive)
    negatives: dict[str, list[str]] = {}
    for pair in pairs:
        if pair.label == scale.low:
            negatives.setdefault(pair.first, []).append(pair.second)
    made: list[Triple] = []
    taken: dict[str, int] = {}
    for pair in positive:
        known = [text for text in negatives.get(pair.first, []) if text_key(text) not in matching[pair.first]]
        if known:
            number = taken.get(pair.first, 0)
            taken[pair.first] = number + 1
            negative = known[number % len(known)]
            made.append(Triple(pair.first, pair.second, (negative,), pair.source, pair.id))
    return made


def pairs_of_triples(triples: Iterable[Triple], scale: Scale) -> list[Pair]:
    """The anchor with its positive, under the highest label, and with each negative, under the lowest."""
    return [
        Pair(triple.anchor, other, scale.low if number else scale.high, triple.source, triple.id)
        for triple in triples
        for number, other in enumerate((triple.positive, *triple.negatives))
    ]
