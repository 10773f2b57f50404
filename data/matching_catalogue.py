"""Data sets for matching by name, and files of one's own: found, read, checked against known counts, hashed, split.

As in `catalogue`: a copy with other counts than the official files gets another name, every file's hash is kept, and what a reader
of a figure should know is a note. Three kinds: pairs with labels, triples, and retrieval sets. What one of them leaks into another
is in `leakage`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Generic, Literal, TypeVar

from hanzoo.data.beir import CORPUS, RetrievalData, read_beir
from hanzoo.data.catalogue import SPLITS, Split, SplitData, find_file, is_held_out, plain_sha256
from hanzoo.data.document import Document, Pair, Triple
from hanzoo.data.files import expanded
from hanzoo.data.leakage import leakage
from hanzoo.data.pair_files import (
    SCALES,
    Layout,
    PairReport,
    Scale,
    read_pairs,
    read_texts,
    read_triples,
)
from hanzoo.data.training_items import pairs_of_triples
from hanzoo.errors import DataError, RecipeError, nearest

Kind = Literal["pairs", "triples", "retrieval"]
_HELD_OUT = "10 % of train"
Trained = TypeVar("Trained", Triple, Document)


@dataclass(frozen=True)
class SplitCounts:
    """What an official split holds.

    Attributes:
        rows: rows of its files, those left out included; of a retrieval set, queries that are judged.
        labels: pairs by label, as a number on the scale; empty where the split has no labels. Of a retrieval set, under 1 the
            pairs of query and passage that are relevant.
        left_out: rows without gold, or with an empty text, that are left out.
    """

    rows: int
    labels: Mapping[float, int] = field(default_factory=dict)
    left_out: int = 0


@dataclass(frozen=True)
class MatchingSet:
    """What is known of a data set for matching before it is read.

    Attributes:
        name: how recipes call it.
        kind: pairs, triples, or retrieval.
        files: the official files of each split; of a retrieval set none, its folder is a BEIR folder.
        counts: what each split holds.
        licence, source, cite: facts for the card of a run, and for whoever has to fetch the files.
        scale: what labels mean; None where there are none.
        layout: how lines are cut.
        unlabelled: splits whose official file has no labels.
        without_gold: the label of rows that have none.
        skip_empty: whether the official files have rows with empty texts, which are left out.
        remarks: what a reader of a figure should know and the counts do not say.
        size: passages and queries of a retrieval set.
    """

    name: str
    kind: Kind
    files: Mapping[Split, tuple[str, ...]]
    counts: Mapping[Split, SplitCounts]
    licence: str
    source: str
    cite: str
    scale: Scale | None = None
    layout: Layout | None = None
    unlabelled: frozenset[Split] = frozenset()
    without_gold: str | None = None
    skip_empty: bool = False
    remarks: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)


def _binary(zeros: int, ones: int, left_out: int = 0) -> SplitCounts:
    return SplitCounts(zeros + ones + left_out, {0.0: zeros, 1.0: ones}, left_out)


_NUMBERED: Mapping[str, str | int] = {"id": 1, "first": 2, "second": 3, "label": 4}
_NAMED: Mapping[str, str | int] = {"first": "sentence1", "second": "sentence2"}

MATCHING_SETS: Mapping[str, MatchingSet] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            MatchingSet(
                name="afqmc",
                kind="pairs",
                files={"train": ("train.json",), "dev": ("dev.json",), "test": ("test.json",)},
                counts={
                    "train": _binary(23_761, 10_573),
                    "dev": _binary(2_978, 1_338),
                    "test": SplitCounts(3_861),
                },
                licence="none stated (Ant Financial, through CLUE); academic use",
                source="CLUE, https://github.com/CLUEbenchmark/CLUE (AFQMC)",
                cite="Xu et al. 2020, arXiv:2004.05986",
                scale=SCALES["binary"],
                layout=Layout("json", _NAMED),
                unlabelled=frozenset(("test",)),
            ),
            MatchingSet(
                name="stsb",
                kind="pairs",
                files={split: (f"cnsd-sts-{split}.txt",) for split in SPLITS},
                counts={
                    "train": SplitCounts(5_231, {0: 836, 1: 807, 2: 887, 3: 1_416, 4: 1_033, 5: 252}),
                    "dev": SplitCounts(1_458, {0: 333, 1: 247, 2: 267, 3: 354, 4: 205, 5: 52}),
                    "test": SplitCounts(1_361, {0: 241, 1: 193, 2: 261, 3: 330, 4: 239, 5: 97}),
                },
                licence="academic use only (CNSD)",
                source="https://github.com/pluto-junzeng/CNSD (STS-B)",
                cite="Cer et al. 2017, S17-2001; translated by CNSD",
                scale=SCALES["sts"],
                layout=Layout("||", _NUMBERED),
                remarks=(
                    "machine-translated; scores are whole numbers, so ranks are heavily tied; ids are not unique",
                ),
            ),
            MatchingSet(
                name="atec",
                kind="pairs",
                files={"train": ("atec_nlp_sim_train.csv", "atec_nlp_sim_train_add.csv")},
                counts={"train": _binary(83_792, 18_685)},
                licence="none stated (contest data)",
                source="ATEC 2018 (Ant Financial), https://github.com/IceFlameWorm/NLP_Datasets (ATEC)",
                cite="Ant Financial 2018",
                scale=SCALES["binary"],
                layout=Layout("\t", _NUMBERED),
                remarks=("the contest's test set was never published",),
            ),
            MatchingSet(
                name="bq",
                kind="pairs",
                files={split: (f"{split}.csv",) for split in SPLITS},
                counts={
                    "train": _binary(50_000, 50_000),
                    "dev": _binary(5_000, 5_000),
                    "test": _binary(5_000, 5_000),
                },
                licence="none stated; research use on request (HIT ICRC)",
                source="HIT ICRC, http://icrc.hitsz.edu.cn/Article/show/175.html",
                cite="Chen et al. 2018, D18-1536",
                scale=SCALES["binary"],
                layout=Layout(",", {**_NAMED, "label": "label"}),
            ),
            MatchingSet(
                name="lcqmc",
                kind="pairs",
                files={split: (f"{split}.txt",) for split in SPLITS},
                counts={
                    "train": _binary(100_192, 138_574),
                    "dev": _binary(4_400, 4_402),
                    "test": _binary(6_250, 6_250),
                },
                licence="none stated; research use on request (HIT ICRC)",
                source="HIT ICRC, http://icrc.hitsz.edu.cn/Article/show/171.html",
                cite="Liu et al. 2018, C18-1166",
                scale=SCALES["binary"],
                layout=Layout("\t", {"first": 1, "second": 2, "label": 3}),
            ),
            MatchingSet(
                name="pawsx",
                kind="pairs",
                files={"train": ("train.tsv",), "dev": ("dev_2k.tsv",), "test": ("test_2k.tsv",)},
                counts={
                    "train": _binary(27_445, 21_684, left_out=272),
                    "dev": _binary(1_147, 853),
                    "test": _binary(1_106, 894),
                },
                licence="free for any purpose, acknowledgement appreciated (Google)",
                source="https://github.com/google-research-datasets/paws (PAWS-X, zh)",
                cite="Yang et al. 2019, D19-1382",
                scale=SCALES["binary"],
                layout=Layout("\t", {**_NAMED, "label": "label", "id": "id"}),
                skip_empty=True,
                remarks=(
                    "train is machine-translated, dev and test by people; a sentence that reads NS was not translated",
                ),
            ),
            MatchingSet(
                name="ocnli",
                kind="pairs",
                files={"train": ("train.50k.json",), "dev": ("dev.json",), "test": ("test.json",)},
                counts={
                    "train": SplitCounts(50_486, {0: 16_476, 1: 17_182, 2: 16_779}, 49),
                    "dev": SplitCounts(3_000, {0: 900, 1: 1_103, 2: 947}, 50),
                    "test": SplitCounts(3_000),
                },
                licence="CC BY-NC 2.0",
                source="https://github.com/CLUEbenchmark/OCNLI",
                cite="Hu et al. 2020, 2020.findings-emnlp.314",
                scale=SCALES["nli"],
                layout=Layout("json", _NAMED),
                unlabelled=frozenset(("test",)),
                without_gold="-",
            ),
            MatchingSet(
                name="simclue",
                kind="triples",
                files={"train": ("train_rank_1w.json",)},
                counts={"train": SplitCounts(10_000)},
                licence="none stated",
                source="https://github.com/CLUEbenchmark/SimCLUE datasets (the sample of 10,000)",
                cite="SimCLUE, CLUE 2022",
                layout=Layout("json", {"anchor": "query", "positive": "title", "negative": "neg_title"}),
                remarks=("a mixture of other sets; entailment counts as similar",),
            ),
            MatchingSet(
                name="stard",
                kind="retrieval",
                files={},
                counts={
                    "train": SplitCounts(943, {1: 1_687}),
                    "dev": SplitCounts(200, {1: 339}),
                    "test": SplitCounts(400, {1: 691}),
                },
                licence="MIT (questions); statutes are outside copyright",
                source="questions of https://github.com/oneal2000/STARD over 40,855 articles of law, a BEIR folder made for hanzoo",
                cite="Su et al. 2024, arXiv:2406.15313",
                remarks=(
                    "only the named articles count as relevant: figures are lower bounds",
                    "the paper's corpus is another one (55,348 articles): its figures are not comparable",
                ),
                size=(40_855, 1_543),
            ),
        )
    }
)


@dataclass(frozen=True, kw_only=True)
class PairData(SplitData[Pair]):
    """Pairs for training and evaluation. See `SplitData`.

    Attributes:
        scale: what the labels mean.
    """

    scale: Scale


@dataclass(frozen=True)
class TrainingSet(Generic[Trained]):
    """What is trained on in the place of pairs, read and checked.

    Attributes:
        name: what a figure is filed under.
        train: triples, or texts.
        hashes, notes, official, licence, source, cite: as in `PairData`.
    """

    name: str
    train: tuple[Trained, ...]
    hashes: Mapping[str, str]
    notes: tuple[str, ...]
    official: bool
    licence: str = ""
    source: str = ""
    cite: str = ""


TripleData = TrainingSet[Triple]
TextData = TrainingSet[Document]


def is_pair_held_out(pair: Pair) -> bool:
    """Whether a pair belongs to the tenth of train that is held out; the same whichever text is first.

    The rule is fixed for good: `catalogue.is_held_out` of the two texts in code-point order with a tab between.
    """
    return is_held_out("\t".join(sorted((pair.first, pair.second))))


def load_pairs(
    *,
    name: str | None = None,
    train: str | Path | None = None,
    dev: str | Path | None = None,
    test: str | Path | None = None,
    scale: str | None = None,
    columns: Mapping[str, str | int] | None = None,
    dev_from_train: bool = False,
    judged_only: bool = False,
) -> PairData:
    """Load a data set of pairs: one of `MATCHING_SETS`, or files of one's own.

    Args:
        name: a name of kind "pairs" in `MATCHING_SETS`; its files are looked for in `$HANZOO_DATA/NAME/`.
        train, dev, test: files of one's own (TSV, CSV, JSON lines). Without dev, 10 % of train by `is_pair_held_out` serve.
        scale: what the labels of one's own files mean, a name in `SCALES`; None is "binary".
        columns: which column of one's own files is what; see `pair_files.Layout`.
        judged_only: something else is trained on: train is left out, but for what serves as dev.
        dev_from_train: select on 10 % of train. The official dev is then reported on where test has no labels, and else not used.

    Raises:
        RecipeError: the arguments contradict each other, or a name or scale is unknown.
        DataError: a file is missing or wrong.
    """
    own: dict[Split, Path] = {
        split: expanded(str(file)) for split, file in zip(SPLITS, (train, dev, test), strict=True) if file is not None
    }
    if (name is None) == (not own):
        both = "both are" if own else "none is"
        raise RecipeError(f"data: one of name and files of one's own (train, dev, test) must be given, but {both}.")
    if name is not None and (scale is not None or columns is not None):
        raise RecipeError("data: scale and columns are for files of one's own, but name is given. Remove them.")
    parts = _PairParts()
    if name is not None:
        entry = _entry(name, "pairs")
        assert entry.scale is not None
        meaning = entry.scale
        folder = _folder(entry)
        for split in entry.files:
            _read_official(entry, split, folder, parts)
        official = _matches(entry, parts.reports, parts.notes)
        called = name if official else f"{name}-unofficial"
        parts.notes += [f"{name}: {remark}" for remark in entry.remarks]
        return _assemble(parts, called, meaning, dev_from_train, official, entry, judged_only)
    if "train" not in own:
        raise RecipeError("data.train: must be given with data.dev or data.test, but is not. Add it.")
    meaning = own_scale(scale)
    _add_own(parts, own, meaning, columns)
    return _assemble(parts, _own_name(own["train"]), meaning, dev_from_train, False, None)


def load_triples(
    *, name: str | None = None, train: str | Path | None = None, columns: Mapping[str, str | int] | None = None
) -> TripleData:
    """Load triples to train on: one of `MATCHING_SETS` of kind "triples", or a file of one's own.

    Args:
        name: its file is looked for in `$HANZOO_DATA/NAME/`.
        train: a file of one's own (TSV, CSV, JSON lines).
        columns: which column of it is what; see `pair_files.Layout`.

    Raises:
        RecipeError: not exactly one of name and train is given, or the name is unknown.
        DataError: the file is missing or wrong.
    """
    if (name is None) == (train is None):
        raise RecipeError("data: exactly one of name and train must be given. Add or remove one.")
    if name is None:
        path = expanded(str(train))
        triples, report = read_triples(path, columns=columns)
        notes = tuple(f"{path.name}: {line}" for line in report.describe())
        return TripleData(_own_name(path), tuple(triples), {path.name: plain_sha256(path)}, notes, False)
    if columns is not None:
        raise RecipeError("data.columns: is for files of one's own, but name is given. Remove it.")
    entry = _entry(name, "triples")
    said: list[str] = []
    found = _find_official(entry, entry.files["train"][0], _folder(entry), said)
    triples, report = read_triples(found, layout=entry.layout)
    said += [f"{found.name}: {line}" for line in report.describe()]
    official = _matches(entry, {"train": report}, said)
    said += [f"{name}: {remark}" for remark in entry.remarks]
    return TripleData(
        name if official else f"{name}-unofficial",
        tuple(triples),
        {found.name.removesuffix(".gz"): plain_sha256(found)},
        tuple(said),
        official,
        entry.licence,
        entry.source,
        entry.cite,
    )


def load_texts(train: str | Path) -> TextData:
    """Load texts to train on: a file of one's own, see `pair_files.read_texts`.

    Raises:
        DataError: the file is missing or wrong.
    """
    path = expanded(str(train))
    texts = read_texts(path)
    notes = (f"{path.name}: {len(texts):,} texts",)
    return TextData(_own_name(path), tuple(texts), {path.name: plain_sha256(path)}, notes, False)


def texts_with_pairs(
    data: TextData,
    *,
    dev: str | Path,
    test: str | Path | None = None,
    scale: str | None = None,
    columns: Mapping[str, str | int] | None = None,
) -> PairData:
    """Pairs to judge by what is trained on single texts: files of one's own; see `with_pairs`. There are none in train."""
    meaning = own_scale(scale)
    parts = _PairParts(notes=list(data.notes), hashes=dict(data.hashes))
    _add_own(parts, {"dev": dev, "test": test}, meaning, columns)
    parts.pairs["train"] = []
    return _assemble(parts, _own_name(expanded(str(dev))), meaning, False, False, None)


def with_pairs(
    data: TripleData,
    *,
    dev: str | Path | None = None,
    test: str | Path | None = None,
    scale: str | None = None,
    columns: Mapping[str, str | int] | None = None,
) -> tuple[TripleData, PairData]:
    """Pairs to judge by what is trained on triples, where no data set of pairs stands beside them.

    Args:
        data: the triples.
        dev: a file of pairs with labels. None = a tenth of the triples is held out (`catalogue.is_held_out` of the anchor): each
            is a pair that matches, and one or more that do not.
        test: likewise a file; None = there is none.
        scale: of the labels of these files, a name in `SCALES`; None is "binary".
        columns: of these files; see `pair_files.Layout`.

    Returns:
        The triples that are left to train on, and the pairs; their train are those of the triples.

    Raises:
        RecipeError: the scale is unknown.
        DataError: a file is wrong, or the tenth is empty.
    """
    meaning = own_scale(scale)
    parts = _PairParts()
    parts.notes += data.notes
    parts.hashes |= data.hashes
    train = data.train
    if dev is None:
        held = [triple for triple in data.train if is_held_out(triple.anchor)]
        train = tuple(triple for triple in data.train if not is_held_out(triple.anchor))
        if not held or not train:
            raise DataError(
                f"{data.name}: 10 % of the triples must serve as dev, but of {len(data.train)} they would be {len(held)}. "
                "Give a file of pairs for dev (data.dev), or more triples."
            )
        parts.pairs["dev"], parts.origin["dev"] = pairs_of_triples(held, meaning), _HELD_OUT
        parts.notes.append(
            f"dev is {_HELD_OUT} by a hash of the anchor: {len(held):,} triples held out as pairs, {len(train):,} left to train on"
        )
    _add_own(parts, {"dev": dev, "test": test}, meaning, columns)
    parts.pairs["train"] = pairs_of_triples(train, meaning)
    pairs = _assemble(parts, data.name, meaning, False, data.official, None)
    cited = replace(pairs, licence=data.licence, source=data.source, cite=data.cite)
    return replace(data, train=train), cited


def load_retrieval(
    *, name: str | None = None, folder: str | Path | None = None, splits: Sequence[str] | None = None
) -> RetrievalData:
    """Load a retrieval set: one of `MATCHING_SETS` of kind "retrieval", or a BEIR folder of one's own.

    Args:
        name: its folder is looked for in `$HANZOO_DATA/`.
        folder: a BEIR folder.
        splits: which splits are read, which may be none; None reads all, and wants one at least.

    Raises:
        RecipeError: not exactly one of name and folder is given, or the name is unknown.
        DataError: a file is missing or wrong.
    """
    if (name is None) == (folder is None):
        raise RecipeError("data: exactly one of name and folder must be given. Add or remove one.")
    if name is None:
        data = read_beir(expanded(str(folder)), splits)
        return replace(data, name=_own_name(Path(data.name)))
    entry = _entry(name, "retrieval")
    data = read_beir(_folder(entry), splits)
    notes = list(data.notes)
    official = (len(data.corpus), len(data.queries)) == entry.size
    if not official:
        notes.append(
            f"not the official {name}: {len(data.corpus):,} passages and {len(data.queries):,} queries, "
            f"officially {entry.size[0]:,} and {entry.size[1]:,}"
        )
    for split, judged in data.qrels.items():
        relevant = sum(score > 0 for scores in judged.values() for score in scores.values())
        counts = entry.counts.get(split) if split in SPLITS else None
        if counts is None or (len(judged), relevant) != (counts.rows, counts.labels[1]):
            official = False
            wanted = "there is none" if counts is None else f"{counts.rows:,} and {counts.labels[1]:,}"
            notes.append(
                f"not the official {name}: {split} has {len(judged):,} queries and {relevant:,} relevant pairs, officially {wanted}"
            )
    return replace(
        data,
        name=name if official else f"{name}-unofficial",
        notes=(*notes, *(f"{name}: {remark}" for remark in entry.remarks)),
        official=official,
        licence=entry.licence,
        source=entry.source,
        cite=entry.cite,
    )


@dataclass
class _PairParts:
    """What is read so far: the pairs of each split, and what is to be said of them."""

    pairs: dict[Split, list[Pair]] = field(default_factory=dict)
    unlabelled: list[Pair] = field(default_factory=list)
    origin: dict[Split, str] = field(default_factory=dict)
    reports: dict[Split, PairReport] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, split: Split, pairs: list[Pair], report: PairReport, called: str, origin: str) -> None:
        self.notes += [f"{called}: {line}" for line in report.describe()]
        if report.unlabelled and split == "dev":
            raise DataError(
                f"{pairs[0].source}: a pair in dev must have a label, but has none. Add a column label, or say which it is "
                "(data.columns.label=NAME)."
            )
        if report.unlabelled and split == "test":
            self.unlabelled = pairs
        else:
            self.pairs.setdefault(split, []).extend(pairs)
            self.origin[split] = origin
        if split in self.reports:
            before = self.reports[split]
            report = PairReport(
                before.rows + report.rows,
                before.labels + report.labels,
                before.left_out + report.left_out,
                before.unlabelled + report.unlabelled,
                before.identical + report.identical,
                max(before.longest, report.longest),
            )
        self.reports[split] = report


def own_scale(name: str | None) -> Scale:
    """What the labels of files of one's own mean; None = two classes. Raises RecipeError where the name is unknown."""
    if name is not None and name not in SCALES:
        raise RecipeError(f"data.scale: must be one of {', '.join(SCALES)}, but is {name!r}.{nearest(name, SCALES)}")
    return SCALES[name or "binary"]


def _add_own(
    parts: _PairParts,
    files: Mapping[Split, str | Path | None],
    scale: Scale,
    columns: Mapping[str, str | int] | None,
) -> None:
    """Read files of one's own; None = there is none for that split."""
    for split, file in files.items():
        if file is None:
            continue
        path = expanded(str(file))
        pairs, report = read_pairs(path, scale, columns=columns)
        key = path.name.removesuffix(".gz")
        parts.hashes[key if key not in parts.hashes else f"{split}: {key}"] = plain_sha256(path)
        parts.add(split, pairs, report, path.name, path.name)


def _own_name(path: Path) -> str:
    """Name a file of one's own, never as one of the known data sets."""
    plain = path.name.removesuffix(".gz")
    name = plain.rpartition(".")[0] or plain
    return f"{name} (own file)" if name in MATCHING_SETS else name


def _entry(name: str, kind: Kind) -> MatchingSet:
    known = [other.name for other in MATCHING_SETS.values() if other.kind == kind]
    if name not in MATCHING_SETS:
        raise RecipeError(
            f"data.name: must be one of {', '.join(known)}, but is {name!r}.{nearest(name, known)} "
            "For files of your own name the files."
        )
    entry = MATCHING_SETS[name]
    if entry.kind != kind:
        raise RecipeError(
            f"data.name: must be a data set of {kind} ({', '.join(known)}), but {name} is one of {entry.kind}."
        )
    return entry


def _folder(entry: MatchingSet) -> Path:
    root = os.environ.get("HANZOO_DATA")
    if not root:
        first = next(iter(entry.files.values()), (CORPUS,))[0]
        raise DataError(
            f"HANZOO_DATA: must be the folder that holds {entry.name}/{first}, but is not set. {_how_to_get(entry)}"
        )
    return expanded(root) / entry.name


def _how_to_get(entry: MatchingSet) -> str:
    files = [f"{' + '.join(names)}: {entry.counts[split].rows:,} rows" for split, names in entry.files.items()] or [
        f"a BEIR folder: {entry.size[0]:,} passages, {entry.size[1]:,} queries"
    ]
    return (
        f"Get {entry.name} from {entry.source} ({'; '.join(files)}), put it in a folder {entry.name}, "
        "and set HANZOO_DATA to the folder around that."
    )


def _find_official(entry: MatchingSet, file: str, folder: Path, notes: list[str]) -> Path:
    found = find_file(folder, file)
    if found is None:
        raise DataError(
            f"{folder / file}: the file must exist, also as {file}.gz or rebuilt, but does not. {_how_to_get(entry)}"
        )
    if ".rebuilt." in found.name:
        notes.append(f"{found.name}: read in place of the official {file}: rebuilt, its order may differ")
    return found


def _read_official(entry: MatchingSet, split: Split, folder: Path, parts: _PairParts) -> None:
    assert entry.scale is not None
    for file in entry.files[split]:
        if split in entry.unlabelled and find_file(folder, file) is None:
            parts.notes.append(f"{file}: absent; it has no labels and is needed for a submission only")
            continue
        found = _find_official(entry, file, folder, parts.notes)
        pairs, report = read_pairs(
            found, entry.scale, layout=entry.layout, without_gold=entry.without_gold, skip_empty=entry.skip_empty
        )
        parts.hashes[found.name.removesuffix(".gz")] = plain_sha256(found)
        parts.add(split, pairs, report, file, split)


def _matches(entry: MatchingSet, reports: Mapping[Split, PairReport], notes: list[str]) -> bool:
    """Compare with the official counts, and say where they differ."""
    official = True
    for split, counts in entry.counts.items():
        if split not in reports:  # absent, which only a split without labels may be
            continue
        report = reports[split]
        counted = SplitCounts(report.rows, dict(report.labels), report.left_out.total())
        if counted != counts:
            official = False
            notes.append(f"not the official {entry.name}: {split} has {_said(counted)}, officially {_said(counts)}")
    return official


def _said(counts: SplitCounts) -> str:
    labels = ", ".join(f"{label:g}: {count:,}" for label, count in sorted(counts.labels.items()))
    return f"{counts.rows:,} rows ({labels or 'no labels'}; {counts.left_out:,} left out)"


def _hold_out(train: Sequence[Pair], called: str, notes: list[str]) -> tuple[list[Pair], list[Pair]]:
    rest: list[Pair] = []
    held: list[Pair] = []
    for pair in train:
        (held if is_pair_held_out(pair) else rest).append(pair)
    if not held or not rest:
        raise DataError(
            f"{called}: 10 % of train must hold pairs to serve as dev, but of {len(train)} pairs {len(held)} would. "
            "Give a file for dev, or more pairs."
        )
    notes.append(
        f"dev is {_HELD_OUT} by a hash of the two texts: {len(held):,} pairs held out, {len(rest):,} left to train on"
    )
    return rest, held


def _assemble(
    parts: _PairParts,
    called: str,
    scale: Scale,
    dev_from_train: bool,
    official: bool,
    entry: MatchingSet | None,
    judged_only: bool = False,
) -> PairData:
    notes = parts.notes
    train: Sequence[Pair] = parts.pairs["train"]
    dev, test = parts.pairs.get("dev"), parts.pairs.get("test")
    dev_source, test_source = parts.origin.get("dev", "none"), parts.origin.get("test", "none")
    if dev_from_train and dev is not None:
        if test is None:
            test, test_source = dev, dev_source
            notes.append(f"{dev_source} serves as test: it is reported on, and not selected on")
        else:
            notes.append(f"{dev_source} is not used")
        dev = None
    if dev is None:
        if train[0].label is None:
            raise DataError(
                f"{train[0].source}: a pair must have a label where a tenth of train serves as dev, but has none. Give a file "
                "for data.dev, or add a column label (or say which it is: data.columns.label=NAME)."
            )
        train, dev = _hold_out(train, called, notes)
        dev_source = _HELD_OUT
    if judged_only:
        train = []
    for split, some in (("dev", dev), ("test", test or [])):
        notes += leakage(train, some).describe(split)
    return PairData(
        name=called,
        scale=scale,
        train=tuple(train),
        dev=tuple(dev),
        test=None if test is None else tuple(test),
        unlabelled=tuple(parts.unlabelled),
        hashes=MappingProxyType(parts.hashes),
        notes=tuple(notes),
        official=official,
        dev_source=dev_source,
        test_source=test_source,
        licence=entry.licence if entry else "",
        source=entry.source if entry else "",
        cite=entry.cite if entry else "",
    )
