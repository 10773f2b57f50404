"""What of one data set stands in another: counted (`leakage`), and known beforehand (`LEAKS`, `check_leaks`).

A model that was trained on the pairs that it is scored on gets a figure that means nothing. Chinese matching sets were made of one
another, so this is asked of data sets by name, and counted for whatever is at hand.

Two texts are the same here if they are so character by character; beside it stands the count after normalisation (`text_key`),
which also finds copies that were re-written: other width, other case, other blanks and quotes, a lost byte order mark. A pair is
the same in either order.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from hanzoo.data.document import Document, Pair, Query, Triple
from hanzoo.errors import RecipeError

# Blanks, control and format characters (zero-width ones and byte order marks among them), quotes.
_IGNORED = re.compile("[\\s\\x00-\\x1f\\x7f-\\x9f\\xad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\"'“”‘’「」『』`]+")


@dataclass(frozen=True, slots=True)
class Leak:
    """A leak between two data sets that is known.

    Attributes:
        trained_on, scored_on: names of data sets.
        what: what of the one stands in the other.
        refused: whether a figure under it means nothing; else it is said beside the figure.
        source: who found it, where.
    """

    trained_on: str
    scored_on: str
    what: str
    refused: bool
    source: str


_COUNTED = "counted by `leakage` on the official files; a test marked `data` repeats it"
_SIMCLUE = "https://github.com/CLUEbenchmark/SimCLUE (README: the sets that it was mixed from); the sample " + _COUNTED

LEAKS: tuple[Leak, ...] = (
    Leak("atec", "afqmc", "every pair of AFQMC (train, dev and test) stands in ATEC with its label", True, _COUNTED),
    Leak("afqmc", "atec", "AFQMC's train is part of ATEC: a third of the tenth held out", True, _COUNTED),
    Leak(
        "simclue",
        "lcqmc",
        "SimCLUE holds pairs of LCQMC (its sample of 10,000: 2,500 of train, 5 of dev, 2 of test)",
        False,
        _SIMCLUE,
    ),
    Leak(
        "simclue",
        "afqmc",
        "SimCLUE holds pairs of AFQMC (its sample of 10,000: 61 of train, none of dev or test)",
        False,
        _SIMCLUE,
    ),
    Leak("simclue", "atec", "SimCLUE holds pairs of AFQMC, which are pairs of ATEC", False, _SIMCLUE),
    Leak(
        "simclue",
        "ocnli",
        "SimCLUE holds pairs of OCNLI (its sample of 10,000: 143 of train, none of dev or test)",
        False,
        _SIMCLUE,
    ),
    Leak(
        "simclue",
        "stsb",
        "SimCLUE holds pairs of the Chinese STS-B (its sample of 10,000: 13 of train, none of dev or test)",
        False,
        _SIMCLUE,
    ),
)

ENCODERS_TRAINED_ON: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        # The table of training sets in the README of moka-ai/m3e-small (and -base, -large).
        "m3e-small": ("lcqmc", "bq", "ocnli", "simclue"),
        "m3e-base": ("lcqmc", "bq", "ocnli", "simclue"),
        "m3e-large": ("lcqmc", "bq", "ocnli", "simclue"),
    }
)


def known_leaks(trained_on: Iterable[str], scored_on: str) -> list[Leak]:
    """The leaks of `LEAKS` from any of some data sets into one."""
    given = set(trained_on)
    return [leak for leak in LEAKS if leak.trained_on in given and leak.scored_on == scored_on]


def check_leaks(
    trained_on: Iterable[str],
    scored_on: str,
    *,
    encoder: str | None = None,
    force: bool = False,
    cure: str = "Train on other data, or force it by data.allow_leakage",
) -> list[str]:
    """Refuse what leaks so that the figure means nothing, and say the rest.

    Args:
        trained_on: names of the data sets that a model was trained on, in all its stages.
        scored_on: the name of the data set that it is to be scored on.
        encoder: the name of the encoder it began with, whose own training sets are said where they are known.
        force: say also what would be refused.
        cure: what else to do, for the error.

    Returns:
        One sentence a leak, for what stands beside the figure.

    Raises:
        RecipeError: the two must not be brought together, and `force` is False.
    """
    said = []
    for leak in known_leaks(trained_on, scored_on):
        if leak.refused and not force:
            raise RecipeError(
                f"data: a model that is scored on {scored_on} must not be trained on {leak.trained_on}, but is: {leak.what}. "
                f"{cure}: the figure then says so."
            )
        forced = " (forced: the figure means nothing)" if leak.refused else ""
        said.append(f"trained on {leak.trained_on}, scored on {scored_on}: {leak.what}{forced}")
    before = ENCODERS_TRAINED_ON.get(encoder or "", ())
    if scored_on in before:
        said.append(f"the encoder {encoder} was itself trained on {scored_on} (train, as its authors say)")
    said += [
        f"the encoder {encoder} was itself trained on {leak.trained_on}: {leak.what}"
        for leak in known_leaks(before, scored_on)
    ]
    return said


def text_key(text: str) -> str:
    """What two writings of one text have in common: NFKC and case folded, without blanks, control and format characters, quotes."""
    return _IGNORED.sub("", unicodedata.normalize("NFKC", text).casefold())


@dataclass(frozen=True, slots=True)
class LeakageReport:
    """What of some evaluated pairs stands in train.

    Attributes:
        pairs: how many pairs were looked up.
        pairs_in_train: pairs that stand in train, in either order.
        same_label: those of them that train holds with an equal label.
        other_label: those of them that train holds with other labels only. Where one side has no labels, both are 0.
        pairs_normalised: pairs that stand in train after `text_key`, the former included.
        texts: how many distinct texts the pairs hold.
        texts_in_train: how many of the texts stand anywhere in train.
        texts_normalised: texts that stand in train after `text_key`, the former included.
        both_texts_in_train: pairs of which both texts stand in train, together or apart.
        places: "file:line" of the first pairs that stand in train.
    """

    pairs: int
    pairs_in_train: int
    same_label: int
    other_label: int
    pairs_normalised: int
    texts: int
    texts_in_train: int
    texts_normalised: int
    both_texts_in_train: int
    places: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The counts by name, ready for `json.dumps`."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "places"}

    def describe(self, split: str) -> list[str]:
        """Say in lines for people what leaks; none where nothing does."""
        lines = []
        if self.pairs_normalised:
            labels = f", {self.same_label:,} of them with the same label" if self.same_label or self.other_label else ""
            more = self.pairs_normalised - self.pairs_in_train
            rewritten = f"; {more:,} more in another writing" if more else ""
            lines.append(
                f"{self.pairs_in_train:,} of {self.pairs:,} {split} pairs stand in train, in either order{labels}{rewritten}"
            )
        if self.texts_normalised:
            more = self.texts_normalised - self.texts_in_train
            rewritten = f"; {more:,} more in another writing" if more else ""
            lines.append(
                f"{self.texts_in_train:,} of {self.texts:,} texts in {split} stand in train "
                f"({self.texts_in_train / self.texts:.0%}); {self.both_texts_in_train:,} pairs hold no other text{rewritten}"
            )
        return lines


_PLACES_KEPT = 5


def leakage(train: Iterable[Pair | Triple | Document], evaluated: Iterable[Pair | Triple]) -> LeakageReport:
    """Count what of `evaluated` stands in `train`: of another data set, or another split of the same.

    A triple counts as pairs without labels: the anchor with its positive, and with each negative. A single text is in no pair.

    Cost: linear in both; the distinct texts and pairs of `train` are held in memory.
    """
    known: dict[tuple[str, str], set[float | None]] = {}
    known_texts: set[str] = set()
    for item in train:
        if isinstance(item, Document):
            known_texts.add(item.text)
            continue
        for first, second, label, _ in _pairs([item]):
            known.setdefault(_unordered(first, second), set()).add(label)
            known_texts.update((first, second))
    keys = {text: text_key(text) for text in known_texts}  # a text stands in many pairs
    normalised = {_unordered(keys[first], keys[second]) for first, second in known}
    pairs = found = same = other = rewritten = both = 0
    texts: set[str] = set()
    places: list[str] = []
    for first, second, label, source in _pairs(evaluated):
        pairs += 1
        texts.update((first, second))
        both += first in known_texts and second in known_texts
        labels = known.get(_unordered(first, second))
        if labels is not None:
            found += 1
            same += label is not None and label in labels
            other += label is not None and label not in labels and None not in labels
            if len(places) < _PLACES_KEPT:
                places.append(source)
        rewritten += labels is not None or _unordered(text_key(first), text_key(second)) in normalised
    known_keys = set(keys.values())
    alike = sum(text in known_texts or text_key(text) in known_keys for text in texts)
    return LeakageReport(
        pairs, found, same, other, rewritten, len(texts), len(texts & known_texts), alike, both, tuple(places)
    )


def leaked_queries(train: Iterable[Query], evaluated: Sequence[Query], split: str) -> list[str]:
    """Say in lines for people which queries of a split stand in train; none where none do."""
    known: set[tuple[str, str]] = set()
    keys: set[str] = set()
    for query in train:
        known.update((("id", query.id), ("text", query.text)))
        keys.add(text_key(query.text))
    found = [("id", query.id) in known or ("text", query.text) in known for query in evaluated]
    more = sum(not same and text_key(query.text) in keys for same, query in zip(found, evaluated, strict=True))
    if not any(found) and not more:
        return []
    rewritten = f"; {more:,} more in another writing" if more else ""
    return [f"{sum(found):,} of {len(evaluated):,} {split} queries stand in train, by id or by text{rewritten}"]


def _pairs(items: Iterable[Pair | Triple]) -> Iterator[tuple[str, str, float | None, str]]:
    for item in items:
        if isinstance(item, Pair):
            yield item.first, item.second, item.label, item.source
        else:
            for other in (item.positive, *item.negatives):
                yield item.anchor, other, None, item.source


def _unordered(first: str, second: str) -> tuple[str, str]:
    return (first, second) if first <= second else (second, first)
