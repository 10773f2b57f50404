"""Data sets by name, and files of one's own: found, read, checked against known counts, hashed, split.

A figure is worth nothing if nobody knows what it was measured on. So each named data set is compared with the counts of the
official files, and a copy with other counts gets another name; every file's hash is kept; and what a reader of the figure
should know (a rebuilt file, mended tags, nested entities, test sentences that stand in train, a dev set cut from train) is a
note.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.resources
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeVar

from hanzoo.data.document import Document, Span
from hanzoo.data.files import expanded
from hanzoo.data.readers import ReadingReport, read_documents, tagged_document
from hanzoo.data.schemes import LABEL_RULE, detect_scheme, is_label
from hanzoo.errors import DataError, RecipeError, nearest

Split = Literal["train", "dev", "test"]
Item = TypeVar("Item")

SPLITS: tuple[Split, ...] = ("train", "dev", "test")

HELD_OUT_PARTS = 10
_HELD_OUT = "10 % of train"


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set before it is read.

    Attributes:
        name: how recipes call it.
        format: the reader of its files.
        files: the official file of each split; where there is none for dev, 10 % of train by hash serve.
        counts: sentences and entities of each split as the reader counts them (illegal tags mended, nested entities all
            counted); None where entities are not checked.
        licence, source, cite: facts for the card of a run, and for whoever has to fetch the files.
        views: name of a view to the ending of the labels it keeps.
        unlabelled: splits whose official file has no labels.
    """

    name: str
    format: str
    files: Mapping[Split, str]
    counts: Mapping[Split, tuple[int, int | None]]
    licence: str
    source: str
    cite: str
    views: Mapping[str, str] = field(default_factory=dict)
    unlabelled: frozenset[Split] = frozenset()


DATA_SETS: Mapping[str, DataSet] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            DataSet(
                name="bundled",
                format="spans",
                files={"train": "train.jsonl", "dev": "dev.jsonl", "test": "test.jsonl"},
                counts={"train": (400, None), "dev": (100, None), "test": (100, None)},
                licence="Apache-2.0, as hanzoo",
                source="written for hanzoo, comes with it",
                cite="hanzoo",
            ),
            DataSet(
                name="cluener",
                format="cluener",
                files={"train": "train.json", "dev": "dev.json", "test": "test.json"},
                counts={"train": (10_748, 23_971), "dev": (1_343, 3_072), "test": (1_345, 0)},
                licence="none stated; texts from THUCTC (Sina News RSS)",
                source="CLUENER2020, https://github.com/CLUEbenchmark/CLUENER2020 (links to cluebenchmarks.com)",
                cite="Xu et al. 2020, arXiv:2001.04351",
                unlabelled=frozenset(("test",)),
            ),
            DataSet(
                name="msra",
                format="columns",
                files={"train": "train_dev.char.bmes", "test": "test.char.bmes"},
                counts={"train": (46_364, 74_703), "test": (4_365, 6_181)},
                licence="none stated; research corpus of Microsoft Research Asia, not for redistribution",
                source="https://github.com/v-mipeng/LexiconAugmentedNER data/MSRA (the form of Lattice LSTM)",
                cite="Levow 2006, W06-0115",
            ),
            DataSet(
                name="resume",
                format="columns",
                files={"train": "train.char.bmes", "dev": "dev.char.bmes", "test": "test.char.bmes"},
                counts={"train": (3_821, 13_440), "dev": (463, 1_497), "test": (477, 1_630)},
                licence="none stated; personal data of named persons (Sina Finance), not for redistribution",
                source="https://github.com/jiesutd/LatticeLSTM ResumeNER",
                cite="Zhang and Yang 2018, P18-1144",
            ),
            DataSet(
                name="weibo",
                format="weibo",
                files={split: f"weiboNER_2nd_conll.{split}" for split in SPLITS},
                counts={"train": (1_350, 1_895), "dev": (270, 389), "test": (270, 418)},
                licence="annotations CC BY-SA 3.0; messages under the terms of Sina Weibo",
                source="https://github.com/hltcoe/golden-horse data (second edition)",
                cite="Peng and Dredze 2015, D15-1064; He and Sun 2017, E17-2113 (second edition)",
                views={"nam": ".NAM", "nom": ".NOM"},
            ),
        )
    }
)


@dataclass(frozen=True, kw_only=True)
class SplitData(Generic[Item]):
    """A data set in its splits, read and checked.

    Attributes:
        name: what a figure is filed under: the name asked for if the counts are the official ones, else another.
        train, dev: items with gold; dev is what is selected on.
        test: items with gold that are reported on; None where no labels are known.
        unlabelled: the official test without labels; empty if there is none.
        hashes: file name to the sha256 of its content (of the plain text, where it lies gzipped).
        notes: all a person should be told, one sentence each.
        official: whether all splits have the official counts.
        dev_source, test_source: where the two come from: "dev", "test", "10 % of train", the name of a file of one's own, "none".
        licence, source, cite: facts of a named data set, else "".
    """

    name: str
    train: tuple[Item, ...]
    dev: tuple[Item, ...]
    test: tuple[Item, ...] | None
    unlabelled: tuple[Item, ...]
    hashes: Mapping[str, str]
    notes: tuple[str, ...]
    official: bool
    dev_source: str
    test_source: str
    licence: str = ""
    source: str = ""
    cite: str = ""

    @property
    def protocol(self) -> str:
        """What is selected and reported on, as it stands beside a figure."""
        reported = self.dev_source if self.test is None else self.test_source
        return f"selected on {self.dev_source}, reported on {reported}"

    def split(self, name: str) -> tuple[Item, ...]:
        """Return train, dev or test.

        Raises:
            DataError: the split is unknown, or has no labels.
        """
        if name not in SPLITS:
            raise DataError(f"split: must be one of {', '.join(SPLITS)}, but is {name!r}.{nearest(name, SPLITS)}")
        if name == "test" and self.test is None:
            raise DataError(
                f"split: test must have labels, but {self.name} has no test with labels. Use the split dev."
            )
        items: tuple[Item, ...] = getattr(self, name)
        return items


@dataclass(frozen=True, kw_only=True)
class TaggingData(SplitData[Document]):
    """A data set for taggers: documents with their entities. See `SplitData`.

    Attributes:
        view: the view taken ("" = all labels).
        labels: the labels of train, sorted.
    """

    view: str
    labels: tuple[str, ...]


def is_held_out(text: str, parts: int = HELD_OUT_PARTS) -> bool:
    """Whether a text belongs to the part of train that is held out as dev: one in `parts`.

    The rule is fixed for good: the first 8 bytes of the sha256 of the text's UTF-8 (lone surrogates passed through), read
    as a big-endian integer, are divisible by `parts`. It depends on nothing but the text, so equal texts fall on one side.
    """
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % parts == 0


def seen_in_train(documents: Iterable[Document], train: Iterable[Document]) -> list[bool]:
    """Say of each document whether its text, character by character, is the text of one in train."""
    known = {document.text for document in train}
    return [document.text in known for document in documents]


def plain_sha256(path: Path) -> str:
    """The sha256 of a file's content, of the plain content if its name ends in .gz.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: must be a file that can be read, but: {error}. Check the path.") from error


def find_file(folder: Path, name: str) -> Path | None:
    """Find an official file in the first of its places that has one; None if absent."""
    return next((place for place in places_of(folder, name) if place.is_file()), None)


def places_of(folder: Path, name: str) -> tuple[Path, ...]:
    """Where an official file may be: NAME, NAME.gz, or for "X.EXT" the rebuilt X.rebuilt.EXT, X.rebuilt.EXT.gz."""
    stem, dot, extension = name.rpartition(".")
    rebuilt = f"{stem}.rebuilt.{extension}" if dot else f"{name}.rebuilt"
    return tuple(folder / candidate for candidate in (name, f"{name}.gz", rebuilt, f"{rebuilt}.gz"))


def find_texts(name: str) -> Path:
    """Find a file of texts: as named, or below $HANZOO_DATA (there also as NAME.gz or rebuilt).

    Raises:
        DataError: it is in neither place.
    """
    path = expanded(name)
    if path.is_file():
        return path
    root = os.environ.get("HANZOO_DATA")
    found = find_file(expanded(root) / path.parent, path.name) if root else None
    if found is None:
        where = f"nor in HANZOO_DATA ({root})" if root else "and HANZOO_DATA, where it is looked for too, is not set"
        raise DataError(f"{name}: the file must exist, but does not, {where}. Check the path.")
    return found


@dataclass
class _Parts:
    """What is read so far: the documents of each split, and what is to be said of them."""

    documents: dict[Split, list[Document]] = field(default_factory=dict)
    origin: dict[Split, str] = field(default_factory=dict)  # what a split is called in a protocol
    hashes: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    counts: dict[Split, tuple[int, int]] = field(default_factory=dict)
    unlabelled: list[Document] = field(default_factory=list)

    def add(self, split: Split, documents: list[Document], report: ReadingReport, called: str, origin: str) -> None:
        self.counts[split] = (report.sentences, sum(report.entities.values()))
        self.notes += [f"{called}: {line}" for line in report.describe()]
        if report.unlabelled:
            if split != "test" or report.unlabelled < report.sentences:
                raise DataError(
                    f"{report.unlabelled_place}: a text in {split} must say its entities, an empty list if it has none, "
                    "but says nothing. Add them, or remove the line."
                )
            self.unlabelled = documents
            return
        self.documents[split] = documents
        self.origin[split] = origin


def load_tagging_data(
    *,
    name: str | None = None,
    path: str | Path | None = None,
    view: str = "",
    hub: str | None = None,
    dev_from_train: bool = False,
    format: str | None = None,
    train: str | Path | None = None,
    dev: str | Path | None = None,
    test: str | Path | None = None,
) -> TaggingData:
    """Load a data set for taggers: one of `DATA_SETS`, one from the Hugging Face hub, or files of one's own.

    Args:
        name: a name in `DATA_SETS`; its files are looked for in `$HANZOO_DATA/NAME/`. With `hub`, what the hub's copy is
            held to be: it keeps the name only if its counts are the official ones.
        path: one file of one's own; 10 % of it, by `is_held_out`, become dev. The same as `train`.
        view: for data sets that have views, which labels are kept: weibo has "nam" and "nom".
        hub: ORG/NAME, read through `datasets.load_dataset`.
        dev_from_train: select on 10 % of train. The official dev is then reported on where test has no labels
            ("selected on 10 % of train, reported on dev"), and else not used.
        format: the format of one's own files; None looks at each file's first line.
        train, dev, test: files of one's own. Without dev, 10 % of train by hash serve.

    Raises:
        RecipeError: the arguments contradict each other, or a name or view is unknown.
        DataError: a file is missing or wrong, or dev or test have a label that train has not.
    """
    own = [given for given in (path, train, dev, test) if given is not None]
    if path is not None and train is not None:
        raise RecipeError("data: one of path and train must be given, but both are. Remove one.")
    if own and (name is not None or hub is not None):
        raise RecipeError("data: name or hub, or files of one's own must be given, but both are. Remove one.")
    if not own and name is None and hub is None:
        raise RecipeError("data: name, hub, or path must be given, but none is. Add one.")
    if format is not None and not own:
        raise RecipeError("data.format: is for files of one's own, but name or hub is given. Remove it.")
    entry = None
    if name is not None:
        if name not in DATA_SETS:
            raise RecipeError(
                f"data.name: must be one of {', '.join(DATA_SETS)}, but is {name!r}.{nearest(name, DATA_SETS)} "
                "For a file of your own set data.path."
            )
        entry = DATA_SETS[name]
    if view and (entry is None or view not in entry.views):
        known = ", ".join(entry.views) if entry and entry.views else "none for this data"
        raise RecipeError(f"data.view: must be one of: {known}; but is {view!r}.")

    if hub is not None:
        parts, called = _from_hub(hub), hub
    elif entry is not None:
        parts, called = _from_folder(entry), entry.name
    else:
        main = path if path is not None else train
        if main is None:
            raise RecipeError("data.train: must be given with data.dev or data.test, but is not. Add it.")
        given: dict[Split, Path] = {
            split: Path(file) for split, file in zip(SPLITS, (main, dev, test), strict=True) if file is not None
        }
        parts, called = _from_files(given, format), _own_name(Path(main))
    official = entry is not None and _matches(entry, parts)
    if entry is not None and hub is not None:
        called = entry.name if official else f"{hub} (not the official {entry.name})"
    elif entry is not None and not official:
        called = f"{entry.name}-unofficial"
    if entry is not None and view:
        _take_view(parts, entry.views[view])
        parts.notes.append(f"view {view}: only labels that end in {entry.views[view]}")
    return _assemble(parts, called, view, entry, official, dev_from_train)


def _own_name(path: Path) -> str:
    """Name a file of one's own, never as one of the known data sets."""
    plain = path.name.removesuffix(".gz")
    name = plain.rpartition(".")[0] or plain
    return f"{name} (own file)" if name in DATA_SETS else name


def _from_folder(entry: DataSet) -> _Parts:
    """Read a data set by name, from the package or from $HANZOO_DATA."""
    parts = _Parts()
    if entry.name == "bundled":
        with importlib.resources.as_file(importlib.resources.files("hanzoo.data.corpora")) as folder:
            _read_entry(entry, folder, parts)
        return parts
    root = os.environ.get("HANZOO_DATA")
    if not root:
        first = next(iter(entry.files.values()))
        raise DataError(
            f"HANZOO_DATA: must be the folder that holds {entry.name}/{first}, but is not set. "
            f"{_how_to_get(entry)} Or use data.hub=ORG/NAME."
        )
    _read_entry(entry, Path(root).expanduser() / entry.name, parts)
    return parts


def _how_to_get(entry: DataSet) -> str:
    expected = "; ".join(
        f"{file}: {entry.counts[split][0]:,} sentences"
        + ("" if entry.counts[split][1] is None else f", {entry.counts[split][1]:,} entities")
        for split, file in entry.files.items()
    )
    return (
        f"Get {entry.name} from {entry.source} ({expected}), put it in a folder {entry.name}, "
        "and set HANZOO_DATA to the folder around that."
    )


def _read_entry(entry: DataSet, folder: Path, parts: _Parts) -> None:
    for split, file in entry.files.items():
        found = find_file(folder, file)
        if found is None:
            if split in entry.unlabelled:  # needed for a submission only
                parts.notes.append(f"{file}: absent; it has no labels and is needed for a submission only")
                continue
            raise DataError(
                f"{folder / file}: the file must exist, also as {file}.gz or rebuilt, but does not. {_how_to_get(entry)}"
            )
        documents, report = read_documents(found, entry.format)
        if ".rebuilt." in found.name:
            parts.notes.append(f"{found.name}: read in place of the official {file}: rebuilt, its order may differ")
        parts.hashes[found.name.removesuffix(".gz")] = plain_sha256(found)
        parts.add(split, documents, report, file, split)


def _matches(entry: DataSet, parts: _Parts) -> bool:
    """Compare with the official counts, and say where they differ."""
    official = True
    for split, (sentences, entities) in entry.counts.items():
        if split not in parts.counts:
            if split not in entry.unlabelled:
                official = False
                parts.notes.append(f"not the official {entry.name}: there is no {split}")
            continue
        counted = parts.counts[split]
        if counted != (sentences, counted[1] if entities is None else entities):
            official = False
            wanted = f"{sentences:,} sentences" + ("" if entities is None else f" and {entities:,} entities")
            parts.notes.append(
                f"not the official {entry.name}: {split} has {counted[0]:,} sentences and {counted[1]:,} entities, "
                f"officially {wanted}"
            )
    extra = [split for split in parts.counts if split not in entry.counts]
    if extra:
        official = False
        parts.notes.append(f"not the official {entry.name}: it has a {extra[0]}, the official one has none")
    return official


def _from_files(given: Mapping[Split, Path], format: str | None) -> _Parts:
    parts = _Parts()
    for split, path in given.items():
        documents, report = read_documents(path, format)
        key = path.name.removesuffix(".gz")
        parts.hashes[key if key not in parts.hashes else f"{split}: {key}"] = plain_sha256(path)
        parts.add(split, documents, report, path.name, path.name)
    return parts


_HUB_SPLITS: Mapping[Split, tuple[str, ...]] = {
    "train": ("train",),
    "dev": ("validation", "dev", "valid"),
    "test": ("test",),
}
_HUB_TAGS = ("ner_tags", "tags", "ner", "labels")


def _from_hub(hub: str) -> _Parts:
    """Read ORG/NAME through `datasets`: tokens with ner_tags, or text with entities."""
    import datasets

    try:
        loaded = datasets.load_dataset(hub)
    except Exception as error:  # `datasets` raises its own, its file system's and its HTTP client's errors
        raise DataError(
            f"hub {hub}: `datasets` must be able to load it, but: {type(error).__name__}: {error}. "
            "Check the name and the network, or use files."
        ) from error
    parts = _Parts()
    for split, names in _HUB_SPLITS.items():
        found = next((known for known in names if known in loaded), None)
        if found is None:
            continue
        where = f"hub:{hub}/{found}"
        report = ReadingReport()
        documents = _hub_documents(loaded[found], where, report)
        if not documents:
            raise DataError(f"{where}: must hold at least one sentence, but is empty. Use another data set.")
        content = hashlib.sha256()
        for document in documents:
            content.update(repr((document.text, [tuple(span) for span in document.spans])).encode("utf-8"))
        parts.hashes[where] = content.hexdigest()
        parts.add(split, documents, report, where, split)
    if "train" not in parts.documents:
        raise DataError(f"hub {hub}: must have a split train, but has {', '.join(loaded)}. Use another data set.")
    return parts


def _hub_documents(rows: Any, where: str, report: ReadingReport) -> list[Document]:
    columns = list(rows.column_names)
    if "tokens" in columns:
        column = next((name for name in _HUB_TAGS if name in columns), None)
        if column is not None:
            return _hub_tagged(rows, column, where, report)
    if "text" in columns and "entities" in columns:
        return _hub_spans(rows, where, report)
    raise DataError(
        f"{where}: must have the columns tokens and one of {', '.join(_HUB_TAGS)}, or text and entities, "
        f"but has {', '.join(columns)}. Use another data set."
    )


def _hub_tagged(rows: Any, column: str, where: str, report: ReadingReport) -> list[Document]:
    feature = rows.features[column]
    names = getattr(getattr(feature, "feature", feature), "names", None)
    sentences: list[tuple[int, list[str], list[str]]] = []
    for index, (tokens, given) in enumerate(zip(rows["tokens"], rows[column], strict=True)):
        if len(tokens) != len(given):
            raise DataError(
                f"{where}:{index}: tokens and tags must be equally many, but are {len(tokens)} and {len(given)}. "
                "Use another data set."
            )
        if names is not None and any(not 0 <= tag < len(names) for tag in given):
            raise DataError(
                f"{where}:{index}: tags must be 0 to {len(names) - 1}, but are {given}. Use another data set."
            )
        tags = [names[tag] for tag in given] if names is not None else list(given)
        if not all(isinstance(tag, str) for tag in tags):
            raise DataError(
                f"{where}:{index}: tags must be strings or have names in the data set's features, but are {given}. "
                "Use another data set."
            )
        if tokens:
            sentences.append((index, tokens, tags))
    try:
        scheme = detect_scheme(tag for _, _, tags in sentences for tag in tags)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    documents = []
    for index, tokens, tags in sentences:
        row = ReadingReport()  # of its own: tokens have no lines here, so a mended tag is placed by its row
        document = replace(tagged_document(tokens, tags, scheme, Path(where), 1, row), source=f"{where}:{index}")
        for _ in range(row.mended):
            report.mend(document.source)
        documents.append(report.add(document))
    return documents


def _hub_spans(rows: Any, where: str, report: ReadingReport) -> list[Document]:
    documents = []
    for index, (text, entities) in enumerate(zip(rows["text"], rows["entities"], strict=True)):
        spans = set()
        if isinstance(entities, dict):  # a sequence of structures may come as a structure of sequences
            entities = [dict(zip(entities, values, strict=True)) for values in zip(*entities.values(), strict=True)]
        for entity in entities:
            start, end, label = (entity.get(key) for key in ("start", "end", "label"))
            if not (type(start) is int and type(end) is int and is_label(label)):
                raise DataError(
                    f"{where}:{index}: an entity must have start, end and a label ({LABEL_RULE}), but is {entity}. "
                    "Use another data set."
                )
            if not 0 <= start < end <= len(text):
                raise DataError(
                    f"{where}:{index}: 0 <= start < end <= {len(text)} must hold, but the {label} is {start} to {end}. "
                    "Use another data set."
                )
            spans.add(Span(start, end, label))
        documents.append(report.add(Document(text, tuple(sorted(spans)), f"{where}:{index}")))
    return documents


def _take_view(parts: _Parts, ending: str) -> None:
    for split, documents in parts.documents.items():
        parts.documents[split] = [
            replace(document, spans=tuple(span for span in document.spans if span.label.endswith(ending)))
            for document in documents
        ]


def _labels_of(documents: Iterable[Document]) -> set[str]:
    return {span.label for document in documents for span in document.spans}


def _hold_out(train: Sequence[Document], called: str, notes: list[str]) -> tuple[list[Document], list[Document]]:
    """Cut dev from train by `is_held_out`; a text with a label that the rest lacks stays in train."""
    rest = [document for document in train if not is_held_out(document.text)]
    held = [document for document in train if is_held_out(document.text)]
    known = _labels_of(rest)
    rare = [document for document in held if not _labels_of((document,)) <= known]
    if rare:
        back = {id(document) for document in rare}
        held = [document for document in held if id(document) not in back]
        kept = {id(document) for document in held}
        rest = [document for document in train if id(document) not in kept]
        notes.append(f"{len(rare):,} held-out sentences have a label found nowhere else, and stay in train")
    if not held or not rest:
        raise DataError(
            f"{called}: 10 % of train must hold sentences to serve as dev, but of {len(train)} sentences {len(held)} would. "
            "Give a file for dev, or more sentences."
        )
    notes.append(
        f"dev is {_HELD_OUT} by a hash of the text: {len(held):,} sentences held out, {len(rest):,} left to train on"
    )
    return rest, held


def _assemble(
    parts: _Parts, called: str, view: str, entry: DataSet | None, official: bool, dev_from_train: bool
) -> TaggingData:
    documents, notes = parts.documents, parts.notes
    train = documents["train"]
    dev, test = documents.get("dev"), documents.get("test")
    dev_source, test_source = parts.origin.get("dev", "none"), parts.origin.get("test", "none")
    if dev_from_train and dev is not None:
        if test is None:
            test, test_source = dev, dev_source
            notes.append(f"{dev_source} serves as test: it is reported on, and not selected on")
        else:
            notes.append(f"{dev_source} is not used")
        dev = None
    if dev is None:
        train, dev = _hold_out(train, called, notes)
        dev_source = _HELD_OUT
    labels = tuple(sorted(_labels_of(train)))
    if not labels:
        raise DataError(f"{called}: train must hold entities, but holds none. Check the file and its format.")
    for split, some in (("dev", dev), ("test", test or [])):
        _refuse_unknown_labels(some, split, labels)
        seen = sum(seen_in_train(some, train))
        if seen:
            notes.append(f"{seen:,} of {len(some):,} {split} sentences stand in train")
    return TaggingData(
        name=called,
        view=view,
        train=tuple(train),
        dev=tuple(dev),
        test=None if test is None else tuple(test),
        unlabelled=tuple(parts.unlabelled),
        labels=labels,
        hashes=MappingProxyType(parts.hashes),
        notes=tuple(notes),
        official=official,
        dev_source=dev_source,
        test_source=test_source,
        licence=entry.licence if entry else "",
        source=entry.source if entry else "",
        cite=entry.cite if entry else "",
    )


def _refuse_unknown_labels(documents: Iterable[Document], split: str, labels: Sequence[str]) -> None:
    known = set(labels)
    for document in documents:
        for span in document.spans:
            if span.label not in known:
                raise DataError(
                    f"{document.source}: a label in {split} must be one of train's ({', '.join(labels)}), "
                    f"but is {span.label!r}.{nearest(span.label, labels)} Mend the label, or add examples to train."
                )
