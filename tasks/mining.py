"""Negatives that a trained bi-encoder finds for pairs that match, once, before a training.

What was found lies in `negatives/` of the run directory: triples.jsonl, and facts.json, which says from what it was found. A
resumed run trains on it; where it is damaged it is found again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from hanzoo.models.search.index import QUERIES_AT_ONCE, best_places
from hanzoo.training.checkpoint import recover, sha256, tensors_sha256, write_folder

FOLDER, TRIPLES_FILE, FACTS_FILE = "negatives", "triples.jsonl", "facts.json"


class MiningSettings(Settings):
    """Fields of `data.mining`.

    Attributes:
        finder: a run directory, or a model folder, of a bi-encoder.
        number: negatives of each pair.
        depth: texts nearest to the first text of a pair that are looked at: second texts of train.
        skip: of those that are no match, the nearest that are passed over.
        ratio: a text whose cosine is above this share of the pair's own is taken for a match that nobody marked; None = none is.
        margin: likewise one whose cosine is not this much below the pair's own.
    """

    finder: str
    number: int = Field(default=1, ge=1)
    depth: int = Field(default=100, ge=1)
    skip: int = Field(default=0, ge=0)
    ratio: float | None = Field(default=0.95, gt=0.0, le=1.0)
    margin: float | None = Field(default=None, ge=0.0)

    def located(self) -> MiningSettings:
        """The same with an absolute path."""
        return self.model_copy(update={"finder": str(expanded(self.finder).absolute())})


@dataclass(frozen=True)
class Mined:
    """What was found.

    Attributes:
        triples: one a pair, in order.
        facts: from what: settings, digests of the finder's weights and of the pairs; how many were drawn at random.
    """

    triples: tuple[Triple, ...]
    facts: Mapping[str, Any]

    @property
    def finder(self) -> str:
        """The digest of the finder's weights."""
        return str(self.facts["finder"])

    def describe(self) -> str:
        """A line for people."""
        number = self.facts["settings"]["number"] * len(self.triples)
        drawn = self.facts["drawn"]
        at_random = f", {drawn:,} of them at random: nothing else was left" if drawn else ""
        return f"{number:,} negatives found for {len(self.triples):,} pairs{at_random}"

    def keep(self, folder: Path) -> None:
        """Have it in the run directory `folder`."""
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

        write_folder(place, write)


def mine(
    pairs: Sequence[Pair],
    matching: Sequence[Pair],
    settings: MiningSettings,
    folder: Path,
    load: Callable[[Path], Model],
) -> Mined:
    """Negatives for pairs that match: those that are kept in the run directory `folder`, or found anew.

    Args:
        pairs: all of train, with labels; their second texts are looked through.
        matching: those of them that match.
        settings: of the recipe.
        folder: nothing is written.
        load: the matcher of a run directory, on the device that it shall run on.

    Raises:
        RecipeError: the finder is no bi-encoder.
        RunError: it cannot be loaded, or what is kept was found by another one, or for other pairs.
        DataError: train holds too few texts.
    """
    finder = load(Path(settings.finder))
    if not isinstance(finder, BiEncoder):
        raise RecipeError(
            f"data.mining.finder: must hold a bi_encoder, but {settings.finder} holds {type(finder).__name__}. Name another run."
        )
    facts = {
        "finder": tensors_sha256(finder.state_dict()),
        "settings": settings.model_dump(exclude={"finder"}),
        "pairs": _digest(pairs),
        "matching": _digest(matching),
    }
    kept = _kept(folder / FOLDER, facts)
    return kept if kept is not None else _found(pairs, matching, settings, finder, facts)


def _found(
    pairs: Sequence[Pair], matching: Sequence[Pair], settings: MiningSettings, finder: BiEncoder, facts: dict[str, Any]
) -> Mined:
    corpus = list(dict.fromkeys(pair.second for pair in pairs))
    anchors = list(dict.fromkeys(pair.first for pair in matching))
    vectors = finder.encode(corpus)
    rows = {anchor: row for row, anchor in enumerate(anchors)}
    of_pairs = np.array([rows[pair.first] for pair in matching])
    columns = {text: column for column, text in enumerate(corpus)}
    queries = finder.encode(anchors)
    candidates, scores = _nearest(queries, vectors, settings.depth)
    own = np.array([queries[rows[pair.first]] @ vectors[columns[pair.second]] for pair in matching])
    known = known_matches(matching)
    try:
        chosen, drawn = choose_negatives(
            candidates[of_pairs],
            scores[of_pairs],
            highest_scores(own, settings.ratio, settings.margin),
            [known[pair.first] | {text_key(pair.second)} for pair in matching],
            corpus,
            number=settings.number,
            skip=settings.skip,
            draw=lambda row: generator(0, "negatives", row),
        )
    except ValueError as error:
        raise DataError(
            f"data.mining.number: train must hold {settings.number} texts for each pair that do not match it, but does not "
            f"({error}). Lower it, or data.mining.ratio."
        ) from error
    triples = [
        Triple(pair.first, pair.second, tuple(corpus[place] for place in places), pair.source, pair.id)
        for pair, places in zip(matching, chosen.tolist(), strict=True)
    ]
    return Mined(tuple(triples), {**facts, "drawn": drawn})


def _nearest(
    queries: NDArray[np.float32], corpus: NDArray[np.float32], depth: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The places in the corpus, and the products, of the vectors with the highest ones, (queries, depth) each."""
    places, products = [], []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        for row in queries[start : start + QUERIES_AT_ONCE] @ corpus.T:
            places.append(best_places(row, depth))
            products.append(row[places[-1]])
    return np.stack(places), np.stack(products)


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


def _digest(pairs: Sequence[Pair]) -> str:
    digest = hashlib.sha256()
    for pair in pairs:
        for text in (pair.first, pair.second):
            content = text.encode("utf-8", "surrogatepass")
            digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()
