"""A small corpus, its recipe, and a model that has learnt it: what the tests of the commands share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from hanzoo import build, cli
from hanzoo.data.document import Document, Span
from hanzoo.data.readers.spans import write as write_spans
from hanzoo.evaluation.cluener import LABELS
from hanzoo.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("叶老桂", "沈知秋", "林若溪", "陈立", "😀明", "José", "𠮷野", "Ｔｏｍ")
COMPANIES = ("浙商银行", "腾讯", "中国 石油", "👨‍👩‍👧‍👦家", "ＡＢＣ社", "open\tAI")
PATTERNS = (
    "{name}在{company}工作",
    "{company}的{name}说:好",
    "昨天{name}到了",
    "听说{company}也来了\u3000",
    "今天没有人\u2028来",
)


def corpus(number: int, start: int = 0) -> list[Document]:
    """Sentences with names and companies, every `len(PATTERNS)`-th without any."""
    documents = []
    for index in range(start, start + number):
        pattern = PATTERNS[index % len(PATTERNS)]
        words = {"name": NAMES[index // 2 % len(NAMES)], "company": COMPANIES[index // 3 % len(COMPANIES)]}
        text, spans = "", []
        for part in pattern.replace("}", "{").split("{"):
            if part in words:
                spans.append(Span(len(text), len(text) + len(words[part]), part))
            text += words.get(part, part)
        documents.append(Document(text, tuple(sorted(spans))))
    return documents


def write_corpus(folder: Path) -> dict[str, str]:
    """Write train, dev and test; returns the `data` section that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, documents in {"train": corpus(120), "dev": corpus(30, 211), "test": corpus(30, 407)}.items():
        write_spans(folder / f"{split}.jsonl", documents)
    return {split: str(folder / f"{split}.jsonl") for split in ("train", "dev", "test")}


def write_cluener(folder: Path) -> None:
    """Write $HANZOO_DATA/cluener in the official form, with all ten labels, much too small to be the official one."""
    folder.mkdir(parents=True)
    mentions = ["成都路", "围城", "浙商银行", "魔兽", "市政府", "流浪", "叶老桂", "足协", "行长", "长城"]
    lines = []
    for index in range(40):
        first, second = index % 10, (index + 1) % 10
        text = f"{mentions[first]}和{mentions[second]}"
        label = {}
        for which, at in ((first, 0), (second, len(mentions[first]) + 1)):
            label[LABELS[which]] = {mentions[which]: [[at, at + len(mentions[which]) - 1]]}
        lines.append(json.dumps({"text": text, "label": label}, ensure_ascii=False))
    (folder / "train.json").write_text("\n".join(lines), encoding="utf-8")
    (folder / "dev.json").write_text("\n".join(lines[:10]), encoding="utf-8")
    tests = [{"id": index, "text": f"{mention}来了"} for index, mention in enumerate(mentions)]
    (folder / "test.json").write_text("\n".join(json.dumps(line) for line in tests), encoding="utf-8")


def recipe_of(data: Mapping[str, Any], **train: Any) -> dict[str, Any]:
    """The sections of a recipe for a model so small that a training takes a second."""
    return {
        "data": dict(data),
        "model": {"name": "bilstm_crf", "dimension": 16, "hidden": 16, "dropout_embedding": 0.0, "dropout_hidden": 0.0},
        "train": {"epochs": 4, "batch_size": 8, "device": "cpu", "optimizer": {"learning_rate": 0.03}} | train,
    }


def write_recipe(path: Path, sections: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(dict(sections), allow_unicode=True), encoding="utf-8")
    return path


_trained: list[Path] = []


def trained_run(factory: pytest.TempPathFactory) -> Path:
    """The run directory of a model that has learnt the corpus. Trained once; tests must not change it."""
    if not _trained:
        folder = factory.mktemp("trained")
        recipe = write_recipe(folder / "tiny.yaml", recipe_of(write_corpus(folder / "corpus")))
        assert cli.train([str(recipe), "--run", str(folder / "run")]) == 0
        _trained.append(folder / "run")
    return _trained[0]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes, and every empty folder: equal before and after where nothing was touched."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
        if path.is_file() or not any(path.iterdir())
    }


def run_command(
    arguments: Sequence[str | Path], *, stdin: bytes = b"", cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run `python <arguments>` as a person would at the shell."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=120,
        check=False,
    )


def json_lines(content: str | bytes) -> list[dict[str, Any]]:
    """The objects of JSON lines; lines end at "\\n" alone."""
    lines = (content.decode("utf-8") if isinstance(content, bytes) else content).split("\n")
    assert lines[-1] == ""
    return [json.loads(line) for line in lines[:-1]]


def jsonl(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def train_until_saved(recipe: Path, run: Path) -> None:
    """Train, and be killed as soon as a state is saved."""

    class Killed(BaseException):
        pass

    plain = Trainer._save

    def save(self: Trainer) -> None:
        plain(self)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_save", save)
        with pytest.raises(Killed):
            build.train(recipe, run=run)
