"""Tokens to rows of a table: characters and character pairs, seen in training or only known from pretrained vectors.

A vocabulary has two zones. The trained zone holds what occurs in the training set; its rows are learnt. The frozen zone
holds the other words of the vector file; its rows keep the file's vector, so a character that training never saw still
means something at inference. Nothing comes from dev or test.

A token without a row of its own is looked up in another form before it counts as unknown, in this order: half-width,
full-width, lower case, half-width lower case, full-width lower case (character by character, one to one). That changes
the row only, never the text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hanzoo.data.files import storage_errors
from hanzoo.data.vectors import Vectors
from hanzoo.errors import DataError, RunError

PADDING = 0
UNKNOWN = 1
NUM_SPECIAL = 2

END = "</s>"
"""The second half of a text's last bigram. It is no single character, so no pair of characters equals such a bigram."""

_FORMAT = 1

# U+FF01..U+FF5E are the full-width forms of U+0021..U+007E, at a fixed distance; the others lie elsewhere.
_HALF_WIDTH = {
    0x3000: 0x20,
    0xFFE0: 0xA2,
    0xFFE1: 0xA3,
    0xFFE2: 0xAC,
    0xFFE3: 0xAF,
    0xFFE4: 0xA6,
    0xFFE5: 0xA5,
    0xFFE6: 0x20A9,
}
_HALF_WIDTH.update((half + 0xFEE0, half) for half in range(0x21, 0x7F))
_FULL_WIDTH = {half: full for full, half in _HALF_WIDTH.items()}
_HAVE_WIDTHS = frozenset(map(chr, (*_HALF_WIDTH, *_FULL_WIDTH)))


def characters(text: str) -> list[str]:
    """Return the code points of a text, one string each."""
    return list(text)


def bigrams(text: str) -> list[str]:
    """Return for each character the pair of it and its successor; the last character's successor is `END`."""
    return [first + second for first, second in zip(text, [*text[1:], END], strict=True)] if text else []


def other_forms(token: str) -> Iterator[str]:
    """Yield the forms in which a token without a row is looked up, in order; forms equal to the token are left out."""
    body, end = (token[:1], END) if len(token) == 1 + len(END) and token.endswith(END) else (token, "")
    if _HAVE_WIDTHS.isdisjoint(body) and body.lower() == body:  # nearly every Chinese token ends here
        return
    half, full = body.translate(_HALF_WIDTH), body.translate(_FULL_WIDTH)
    for form in dict.fromkeys((half, full, _lower(body), _lower(half), _lower(full))):
        if form != body:
            yield form + end


def folded(text: str) -> str:
    """Return the text in half-width lower case, one character for one: what has no form of one character stays."""
    return _lower(text.translate(_HALF_WIDTH))


def _lower(text: str) -> str:
    lowered = [(character, character.lower()) for character in text]
    return "".join(lower if len(lower) == 1 else character for character, lower in lowered)  # İ has two in lower case


class _Rows(dict[str, int]):
    """Token -> row; a token without one gets that of its first known form, or `UNKNOWN`. Misses are not stored: memory
    stays constant over any amount of text."""

    def __missing__(self, token: str) -> int:
        for form in other_forms(token):
            row = self.get(form)
            if row is not None:
                return row
        return UNKNOWN


class Vocabulary:
    """Tokens and their rows: 0 padding, 1 unknown, then the trained tokens, then the frozen ones.

    Args:
        trained: tokens whose rows are learnt, in the order of their rows.
        frozen: tokens whose rows keep their pretrained vector, in the order of their rows.

    Raises:
        ValueError: a token comes twice, or holds a surrogate pair as two code points (JSON has no form for it).
    """

    def __init__(self, trained: Sequence[str], frozen: Sequence[str] = ()) -> None:
        self.trained = tuple(trained)
        self.frozen = tuple(frozen)
        tokens = self.trained + self.frozen
        self._rows = _Rows(zip(tokens, range(NUM_SPECIAL, NUM_SPECIAL + len(tokens)), strict=True))
        if len(self._rows) != len(tokens):
            token = next(token for token, count in Counter(tokens).items() if count > 1)
            raise ValueError(f"vocabulary: a token must come once, but {token!r} is repeated. Remove the repeats.")
        for token in tokens:
            if not _survives_json(token):
                raise ValueError(
                    f"vocabulary: a token must be text, but {token!r} holds a surrogate pair as two code points. "
                    "Leave it out."
                )

    def __len__(self) -> int:
        return NUM_SPECIAL + len(self.trained) + len(self.frozen)

    def __contains__(self, token: str) -> bool:
        """Whether the token has a row of its own."""
        return token in self._rows

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return self.trained == other.trained and self.frozen == other.frozen

    def __hash__(self) -> int:
        return hash((self.trained, self.frozen))

    @property
    def num_trained_rows(self) -> int:
        """Rows of the trained table: padding, unknown, and the trained tokens."""
        return NUM_SPECIAL + len(self.trained)

    @property
    def num_frozen_rows(self) -> int:
        return len(self.frozen)

    def encode(self, tokens: Iterable[str]) -> NDArray[np.int64]:
        """Return the rows of tokens.

        Args:
            tokens: any strings; one without a row of its own is looked up in its other forms, then is unknown.

        Returns:
            (tokens,) int64 in [1, len(self)); rows from `num_trained_rows` on lie in the frozen zone.
        """
        return np.fromiter(map(self._rows.__getitem__, tokens), dtype=np.int64)

    def extended(
        self, train_tokens: Iterable[str] | Mapping[str, int], *, min_count: int = 1
    ) -> tuple[Vocabulary, NDArray[np.int64]]:
        """This vocabulary with trained rows for what another training set holds besides.

        Trained tokens keep their rows. A token that was frozen, or had no row and comes often enough, gets a trained row behind
        them; it starts from the row that it was looked up under until now (its own frozen one, that of another form, or
        "unknown"), so that nothing reads differently before it is learnt.

        Args:
            train_tokens: the tokens of the training set, or the number of occurrences of each.
            min_count: a token that has no row of its own gets one from this number of occurrences on.

        Returns:
            The vocabulary: new trained tokens by falling count, then by code points; and for each of its rows the row of this
            vocabulary that it starts from, (rows,) int64.
        """
        counts, trained = Counter(train_tokens), set(self.trained)
        new = sorted(
            (
                token
                for token, count in counts.items()
                if token not in trained and (count >= min_count or token in self._rows) and _survives_json(token)
            ),
            key=lambda token: (-counts[token], token),
        )
        moved = set(new)
        frozen = [token for token in self.frozen if token not in moved]
        rows = [np.arange(self.num_trained_rows), self.encode(new), self.encode(frozen)]
        return Vocabulary([*self.trained, *new], frozen), np.concatenate(rows)

    def save(self, path: Path) -> None:
        """Write both zones as JSON in ASCII: all else is escaped, so that no character is lost on the way.

        Raises:
            StorageError: the file cannot be written.
        """
        content = {"format": _FORMAT, "trained": self.trained, "frozen": self.frozen}
        with storage_errors(path):
            path.write_text(json.dumps(content), encoding="ascii")

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what `save` wrote.

        Raises:
            RunError: the file is missing, truncated, damaged, or of a newer format.
        """
        try:
            content = json.loads(path.read_bytes())
        except OSError as error:
            raise RunError(
                f"{path}: the vocabulary must be a readable file, but {error.strerror or error}. "
                "Copy the run directory again."
            ) from None
        except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
            raise RunError(
                f"{path}: the vocabulary must be JSON, but is damaged ({error}). Copy the run directory again."
            ) from None
        version = content.get("format") if isinstance(content, dict) else None
        if version != _FORMAT:
            raise RunError(
                f"{path}: the vocabulary's format must be {_FORMAT}, but is {version!r}. "
                "Update hanzoo, or copy the run directory again."
            )
        zones = [content.get("trained"), content.get("frozen")]
        if not all(isinstance(zone, list) and all(isinstance(token, str) for token in zone) for zone in zones):
            raise RunError(
                f"{path}: trained and frozen must be lists of tokens, but are not. Copy the run directory again."
            )
        try:
            return cls(*zones)
        except ValueError as error:
            raise RunError(f"{path}: {error} Copy the run directory again.") from None


@dataclass(frozen=True, eq=False)
class StartingRows:
    """What the rows of a vocabulary's table start from.

    Attributes:
        trained: (num_trained_rows, dimension) float32; a row without a pretrained vector is NaN, that of padding is 0.
        frozen: (num_frozen_rows, dimension) float16, the vectors of the frozen zone.
    """

    trained: NDArray[np.float32]
    frozen: NDArray[np.float16]


def half_precision(rows: NDArray[np.float32], words: Sequence[str], name: str) -> NDArray[np.float16]:
    """Vectors as the frozen zone holds them.

    Args:
        rows: (words, dimension).
        words: whose they are, for the message.
        name: of the file, for the message.

    Raises:
        DataError: a number is too large for float16.
    """
    with np.errstate(over="ignore"):  # an overflow is an error of its own, below
        rest = rows.astype(np.float16)
    too_large = ~np.isfinite(rest).all(axis=1)
    if too_large.any():
        word = words[int(np.argmax(too_large))]
        raise DataError(
            f"{name}: numbers must lie within ±65,504 (float16), but the vector of {word!r} does not. Scale the vectors down."
        )
    return rest


def build_vocabulary(
    train_tokens: Iterable[str] | Mapping[str, int],
    vectors: Vectors | None,
    *,
    length: int,
    min_count: int = 1,
    keep_frozen: bool = True,
) -> tuple[Vocabulary, StartingRows | None]:
    """Build a vocabulary from the training set and the words of a vector file.

    Args:
        train_tokens: the tokens of the training set, or the number of occurrences of each.
        vectors: pretrained vectors; None: there are none.
        length: number of characters of the words taken from `vectors`: 1 for characters, 2 for bigrams.
        min_count: a training token has a row from this number of occurrences on, or if it has a pretrained vector.
        keep_frozen: whether the words that training does not hold get a row in the frozen zone.

    Returns:
        The vocabulary: trained tokens by falling count, then by code points; frozen ones in the order of the file.
        What its rows start from; None without vectors. A trained token without a vector of its own starts from that of
        its first other form that has one.

    Raises:
        DataError: a vector of the frozen zone is too large for float16.
    """
    counts = Counter(train_tokens)
    places = {word: row for row, word in enumerate(vectors.words) if len(word) == length} if vectors else {}
    trained = sorted(
        (token for token, count in counts.items() if (count >= min_count or token in places) and _survives_json(token)),
        key=lambda token: (-counts[token], token),
    )
    if vectors is None:
        return Vocabulary(trained), None

    known = set(trained)
    frozen = [word for word in places if word not in known] if keep_frozen else []
    start = np.full((NUM_SPECIAL + len(trained), vectors.dimension), np.nan, dtype=np.float32)
    start[PADDING] = 0
    for row, token in enumerate(trained, start=NUM_SPECIAL):
        place = next((places[form] for form in (token, *other_forms(token)) if form in places), None)
        if place is not None:
            start[row] = vectors.matrix[place]
    rest = half_precision(vectors.matrix[[places[word] for word in frozen]], frozen, vectors.name)
    return Vocabulary(trained, frozen), StartingRows(start, rest)


def _survives_json(token: str) -> bool:
    """Whether the token comes back from JSON as it was: two surrogates that make a pair come back as one character."""
    return token.isascii() or not any(
        "\ud800" <= first <= "\udbff" and "\udc00" <= second <= "\udfff" for first, second in pairwise(token)
    )
