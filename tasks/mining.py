"""Negatives that BM25 or a trained bi-encoder finds for pairs that match, once, before a training.

What was found lies in `negatives/` of the run directory: triples.jsonl, and facts.json, which says from what it was found. A
resumed run trains on it; where it is damaged it is found again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hanzoo.data.document import Pair, Triple
from hanzoo.data.files import expanded
from hanzoo.data.hard_negatives import choose_negatives, highest_scores, known_matches
from hanzoo.data.leakage import text_key
from hanzoo.data.pair_files import read_triples
from hanzoo.data.randomness import generator
from hanzoo.errors import DataError, RecipeError, RunError
from hanzoo.models.bi_encoder import BiEncoder
from hanzoo.models.model import Model, Settings
from hanzoo.models.search.bm25 import KIND as BM25
from hanzoo.models.search.bm25 import BM25Index
from hanzoo.models.search.index import QUERIES_AT_ONCE, best_places
from hanzoo.tasks.task import Say
from hanzoo.training.checkpoint import recover, sha256, tensors_sha256, write_folder
from hanzoo.training.distributed import on_first

FOLDER, TRIPLES_FILE, FACTS_FILE = "negatives", "triples.jsonl", "facts.json"


class MiningSettings(Settings):
    """Fields of `data.mining`.

    Attributes:
        finder: "bm25", for the words that texts share; or a run directory, or a model folder, of a bi-encoder.
        number: negatives of each pair.
        depth: texts nearest to the first text of a pair that are looked at: second texts of train; of a retrieval set, passages.
        skip: of those that are no match, the nearest that are passed over.
        ratio: a text whose score (cosine, BM25) is above this share of the pair's own is taken for a match that nobody marked;
            None = none is. Of BM25's texts a limit leaves out most where the pair shares few words.
        margin: likewise one whose score is not this much below the pair's own.
    """

    finder: str
    number: int = Field(default=1, ge=1)
    depth: int = Field(default=100, ge=1)
    skip: int = Field(default=0, ge=0)
    ratio: float | None = Field(default=0.95, gt=0.0, le=1.0)
    margin: float | None = Field(default=None, ge=0.0)

    def located(self) -> MiningSettings:
        """The same with an absolute path."""
        if self.finder == BM25:
            return self
        return self.model_copy(update={"finder": str(expanded(self.finder).absolute())})


@dataclass(frozen=True)
class Mined:
    """What was found.

    Attributes:
        triples: one a pair, in order.
        facts: from what: settings, digests of the finder's weights and of the texts; how many were drawn at random.
    """

    triples: tuple[Triple, ...]
    facts: Mapping[str, Any]

    @property
    def inputs(self) -> Mapping[str, str]:
        """What a model that learns from them depends on, and its digest: the finder's weights, where it has any."""
        finder = str(self.facts["finder"])
        return {} if finder == BM25 else {"finder of negatives": finder}

    def describe(self) -> str:
        """A line for people."""
        number = self.facts["settings"]["number"] * len(self.triples)
        drawn = self.facts["drawn"]
        at_random = f", {drawn:,} of them at random: none was left among the nearest" if drawn else ""
        return f"{number:,} negatives found for {len(self.triples):,} pairs{at_random}"

    def keep(self, folder: Path) -> None:
        """Have it in the run directory `folder`. Collective."""
        place = folder / FOLDER

        def write(target: Path) -> None:
            lines = [
                {"anchor": triple.anchor, "positive": triple.positive, "negatives": list(triple.negatives)}
                for triple in self.triples
            ]
            content = "".join(json.dumps(line) + "\n" for line in lines)  # ASCII: lone surrogates come back too
            (target / TRIPLES_FILE).write_text(content, encoding="utf-8")
            facts = {**self.facts, "sha256": sha256(target / TRIPLES_FILE)}
            (target / FACTS_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

        on_first(lambda: write_folder(place, write))


def mine(
    corpus: Sequence[str],
    matching: Sequence[Pair],
    settings: MiningSettings,
    folder: Path,
    load: Callable[[Path], Model],
    say: Say,
) -> Mined:
    """Negatives for pairs that match: those that are kept in the run directory `folder`, or found anew. Collective.

    Args:
        corpus: texts that are looked through, those that stand in it twice once; the pairs' second texts among them.
        matching: the pairs.
        settings: of the recipe.
        folder: nothing is written.
        load: the matcher of a run directory, on the device that it shall run on.
        say: gets a line for people.

    Raises:
        RecipeError: the finder is no bi-encoder.
        RunError: it cannot be loaded, or what is kept was found by another one, or for other texts.
        DataError: the corpus holds too few texts.
    """
    mined = on_first(lambda: _mine(list(dict.fromkeys(corpus)), matching, settings, folder, load))
    say(mined.describe())
    return mined


def _mine(
    corpus: Sequence[str],
    matching: Sequence[Pair],
    settings: MiningSettings,
    folder: Path,
    load: Callable[[Path], Model],
) -> Mined:
    finder = None if settings.finder == BM25 else load(Path(settings.finder))
    if not isinstance(finder, BiEncoder | None):
        raise RecipeError(
            f"data.mining.finder: must be bm25 or hold a bi_encoder, but {settings.finder} holds {type(finder).__name__}. "
            "Name another run."
        )
    facts = {
        "finder": BM25 if finder is None else tensors_sha256(finder.state_dict()),
        "settings": settings.model_dump(exclude={"finder"}),
        "corpus": _digest(corpus),
        "matching": _digest(text for pair in matching for text in (pair.first, pair.second)),
    }
    kept = _kept(folder / FOLDER, facts)
    return kept if kept is not None else _found(corpus, matching, settings, finder, facts)


def _found(
    corpus: Sequence[str],
    matching: Sequence[Pair],
    settings: MiningSettings,
    finder: BiEncoder | None,
    facts: dict[str, Any],
) -> Mined:
    columns = {text: column for column, text in enumerate(corpus)}
    keys = [text_key(text) for text in corpus]
    known = known_matches(matching)
    of_anchors: dict[str, list[int]] = {}
    for number, pair in enumerate(matching):
        of_anchors.setdefault(pair.first, []).append(number)
    rows = _scores_of_words(list(of_anchors), corpus) if finder is None else _cosines(finder, list(of_anchors), corpus)
    chosen: dict[int, list[int]] = {}
    drawn = 0
    for (anchor, pairs), row in zip(of_anchors.items(), rows, strict=True):
        nearest = best_places(row, settings.depth).tolist()
        own = np.array([row[columns[matching[number].second]] for number in pairs])
        for number, limit in zip(pairs, highest_scores(own, settings.ratio, settings.margin).tolist(), strict=True):
            try:
                chosen[number], at_random = choose_negatives(
                    nearest,
                    row,
                    limit,
                    known[anchor] | {text_key(matching[number].second)},
                    keys,
                    number=settings.number,
                    skip=settings.skip,
                    draw=partial(generator, 0, "negatives", number),
                )
            except ValueError as error:
                raise DataError(
                    f"data.mining.number: there must be {settings.number} texts for {anchor[:20]!r} that do not match it, but "
                    f"{error}. Lower it, or raise data.mining.ratio (null: no limit)."
                ) from error
            drawn += at_random
    triples = [
        Triple(pair.first, pair.second, tuple(corpus[place] for place in chosen[number]), pair.source, pair.id)
        for number, pair in enumerate(matching)
    ]
    return Mined(tuple(triples), {**facts, "drawn": drawn} | _versions(finder))


def _versions(finder: BiEncoder | None) -> dict[str, Any]:
    """Of what decides which words texts share."""
    return {} if finder is not None else {"versions": {name: version(name) for name in ("bm25s", "jieba")}}


def _cosines(finder: BiEncoder, anchors: Sequence[str], corpus: Sequence[str]) -> Iterator[NDArray[np.float32]]:
    """(corpus,) the products of an anchor's vector with those of all texts, anchor by anchor."""
    vectors, queries = finder.encode(corpus), finder.encode(anchors)
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        yield from queries[start : start + QUERIES_AT_ONCE] @ vectors.T


def _scores_of_words(anchors: Sequence[str], corpus: Sequence[str]) -> Iterator[NDArray[np.float32]]:
    """(corpus,) BM25 of an anchor with all texts, anchor by anchor; -inf where they share no word."""
    index = BM25Index.build(corpus)
    for anchor in anchors:
        yield from index.scores([anchor])


def _kept(place: Path, facts: Mapping[str, Any]) -> Mined | None:
    """What an earlier start of the run found; None where there is none, or it is damaged."""
    recover(place)
    try:
        found = json.loads((place / FACTS_FILE).read_text(encoding="utf-8"))
        whole = sha256(place / TRIPLES_FILE) == found["sha256"] and isinstance(found["drawn"], int)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    changed = [name for name, value in facts.items() if found.get(name) != value]
    if changed:
        raise RunError(
            f"{place}: {', '.join(changed)} of the negatives must be what the run began with, but differ. "
            "Restore them, or start another run with --run."
        )
    if not whole:
        return None
    triples, _ = read_triples(place / TRIPLES_FILE)
    return Mined(tuple(triples), found)


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()
