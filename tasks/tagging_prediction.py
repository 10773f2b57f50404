"""What `predict.py` does with a tagger: texts from a file or a stream, each written with its entities."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hanzoo.data.document import Entity
from hanzoo.data.html_page import HTMLPage
from hanzoo.data.text_streams import ENTITIES, Row, open_writer, read_rows
from hanzoo.errors import DataError, RunError
from hanzoo.models.model import Tagger
from hanzoo.tasks.streams import found_in
from hanzoo.tasks.task import Say
from hanzoo.training.distributed import rank

PREDICT_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "--html": {"type": Path, "help": "also write a page that shows the entities in the texts"},
    "--text-column": {"help": "the column (or JSON key) that holds the text"},
    "--lexicon": {
        "action": "append",
        "default": [],
        "metavar": "FILE",
        "help": "a list of words that the model's lexicon gains for this call, a word a line; may be given several times",
    },
    "--labels": {"help": "only these of the model's labels take part, e.g. name,address; default: all"},
}


def tag_file(model: Tagger, arguments: argparse.Namespace, say: Say) -> int:
    """Tag the texts of `arguments.file`, and write them with their entities. Returns how many could not be read.

    Raises:
        HanzooError: an option does not fit the model, or a file cannot be read or written.
    """
    if arguments.labels is not None:
        model.restrict(arguments.labels.split(","))
    for name in arguments.lexicon:
        if model.lexicon is None:
            raise RunError(
                f"--lexicon: the model must have a lexicon, but {arguments.run} holds {type(model).__name__}, which has none. "
                "Leave it out."
            )
        known = model.lexicon.num_ids
        new = model.lexicon.load(name)
        say(f"{name}: {new:,} words more in the lexicon, {len(model.lexicon):,} in all")
        of_labels = sum(model.lexicon.kind(id) in model.labels for id in range(known, model.lexicon.num_ids))
        if model.reads_kinds:
            say(f"{name}: {of_labels:,} of them have a label as their kind, and are read as that")
        elif of_labels:
            say(f"{name}: that a kind is a label says nothing to this model, which was trained with a kind_rate of 0")
    column = "text" if arguments.text_column is None else arguments.text_column
    refused = 0
    with ExitStack() as open_files:
        rows = open_files.enter_context(read_rows(arguments.file, text_column=column))
        if rank():  # works for the first one, which writes
            return sum(entities is None for _, entities in _tagged(model, rows))
        writer = open_files.enter_context(open_writer(arguments.output, rows, ENTITIES))
        if arguments.html:
            _refuse_same(arguments.html, arguments.file, arguments.output)
        title = "standard input" if arguments.file == "-" else str(arguments.file)
        page = open_files.enter_context(HTMLPage(arguments.html, title=title)) if arguments.html else None
        for row, entities in _tagged(model, rows):
            refused += entities is None
            writer.write(row, entities)
            if page:
                page.write(row.text, entities or (), error=row.error)
    return refused


def _refuse_same(page: Path, *others: str | None) -> None:
    for other in others:
        if other not in (None, "-") and page.resolve() == Path(str(other)).resolve():
            raise DataError(f"--html: the page must be another file than {other}, but is the same. Name another one.")


def _tagged(model: Tagger, rows: Iterator[Row]) -> Iterator[tuple[Row, tuple[Entity, ...] | None]]:
    return found_in(rows, lambda row: len(row.text or ""), lambda chunk: _entities(model, chunk))


def _entities(model: Tagger, rows: Sequence[Row]) -> list[tuple[Entity, ...] | None]:
    good = iter(model.predict_stream(row.text for row in rows if row.text is not None))
    return [None if row.text is None else next(good).entities for row in rows]
