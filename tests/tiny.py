"""What the tests of the trainer and of the zoo share: a few sentences, a toy model that shows what it was given, a trainer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from hanzoo.data.catalogue import TaggingData
from hanzoo.data.document import Document, Pair, Span
from hanzoo.data.matching_catalogue import PairData
from hanzoo.data.pair_files import SCALES
from hanzoo.data.randomness import reseed
from hanzoo.data.subwords import quiet
from hanzoo.models.model import AttackPoint, Draw, Matcher, Model, Settings, model_class
from hanzoo.models.objectives.binary import Binary
from hanzoo.tasks.matching import MatchingData
from hanzoo.training.distillation import Distillation, DistillationSettings, describe_targets, ensure_targets
from hanzoo.training.trainer import Trainer, TrainSettings
from hanzoo.training.trick import Start, Trick, build_tricks, trick_class

M = TypeVar("M", bound=Model)

# The marked text: ⟨name|王小明⟩ is an entity of the label name.
SENTENCES = (
    "⟨name|王小明⟩在⟨address|北京⟩工作",
    "⟨company|云山银行⟩上月在⟨address|上海⟩开了三家分行",
    "今天下雨",
    "⟨name|李娜⟩说⟨company|长河科技⟩的电话打不通",
    "他从⟨address|广州⟩来",
    "⟨name|张伟⟩和⟨name|刘洋⟩都在⟨company|云山银行⟩实习过一年多，后来去了⟨address|成都⟩",
    "昨天的会开得太长了，没有人记得最后说了什么",
    "⟨address|杭州⟩的秋天",
    "⟨company|明月书店⟩搬家了",
    "问问⟨name|陈晨⟩吧",
    "去⟨address|西安⟩的票卖完了，⟨name|王小明⟩很着急",
    "⟨company|长河科技⟩招人",
)  # fmt: skip


def marked(text: str, number: int = 0) -> Document:
    """A document from a text with marks."""
    plain, spans = "", []
    while "⟨" in text:
        before, _, rest = text.partition("⟨")
        inside, _, text = rest.partition("⟩")
        label, _, entity = inside.partition("|")
        plain += before
        spans.append(Span(len(plain), len(plain) + len(entity), label))
        plain += entity
    return Document(plain + text, tuple(spans), f"tiny:{number}", number)


DOCUMENTS = tuple(marked(text, number) for number, text in enumerate(SENTENCES, start=1))


# Pairs that match, and pairs that do not, of unlike lengths; the texts are those of the sentences.
_TEXTS = tuple(document.text for document in DOCUMENTS)
PAIRS = tuple(
    Pair(_TEXTS[first], _TEXTS[second], float(label), f"tiny:{number}")
    for number, (first, second, label) in enumerate(
        [(0, 1, 0), (1, 5, 1), (2, 6, 1), (3, 11, 1), (4, 0, 0), (5, 2, 0), (6, 9, 0), (7, 2, 1), (8, 11, 0), (9, 3, 1),
         (10, 8, 0), (11, 4, 1)],
        start=1,
    )
)  # fmt: skip


def matching_data(train: Sequence[Any] = PAIRS, dev: Sequence[Pair] = PAIRS[:6]) -> MatchingData:
    """A data set of a few pairs."""
    scale = SCALES["binary"]
    pairs = PairData(
        name="tiny", scale=scale, train=PAIRS, dev=tuple(dev), test=None, unlabelled=(), hashes={"tiny": "0"}, notes=(),
        official=False, dev_source="dev", test_source="none",
    )  # fmt: skip
    return MatchingData(pairs, "pairs", tuple(train), {"tiny": "0"}, (), ("tiny",))


def data_of(name: str, train: Sequence[Any] | None = None) -> Any:
    """A data set for a model: of these items, or of those that all tests share."""
    if not issubclass(model_class(name), Matcher):
        return data() if train is None else data(train, train)
    return matching_data() if train is None else matching_data(train)


def data(train: Sequence[Document] = DOCUMENTS, dev: Sequence[Document] = DOCUMENTS[:6]) -> TaggingData:
    """A data set of a few sentences."""
    labels = tuple(sorted({span.label for document in train for span in document.spans}))
    return TaggingData(
        name="tiny", view="", train=tuple(train), dev=tuple(dev), test=None, unlabelled=(),
        labels=labels, hashes={"tiny": "0"}, notes=(), official=False,
        dev_source="dev", test_source="none",
    )  # fmt: skip


def build(name: str, settings: Mapping[str, Any], seed: int = 1, of: Any = None) -> Model:
    """A new model of the zoo; a matcher is trained towards the labels of its pairs, one by one."""
    cls = model_class(name)
    reseed(seed, "weights")
    return aimed(cls.build(cls.Config(**settings), data_of(name) if of is None else of))


def aimed(model: M) -> M:
    """The same; a matcher is trained towards the labels of its pairs, one by one."""
    if isinstance(model, Matcher):
        model.objective = Binary(scale=1.0 if type(model).__name__ == "CrossEncoder" else 10.0)
    return model


# Words that the sentences hold, overlapping and nested ones among them; then words that they do not hold.
WORDS = (
    "北京", "上海", "广州", "成都", "西安", "王小明", "小明", "刘洋", "云山", "云山银行", "银行", "长河", "科技", "长河科技",
    "明月", "书店", "工作", "上月", "分行", "下雨", "电话", "打不通", "不通", "实习", "一年", "多后", "后来", "太长", "记得",
    "最后", "秋天", "搬家", "票卖完", "卖完", "着急", "招人",
    "台州", "丙丁", "吃bb", "很多", "很多话", "南京", "南京市", "市长", "长江", "大桥", "长江大桥", "江大桥", "😀𠮷", "北京南",
)  # fmt: skip


def write_lexicon(path: Path) -> None:
    """A word list."""
    path.write_text("".join(word + "\n" for word in WORDS), encoding="utf-8")


def write_encoder(folder: Path, kind: Literal["bert", "albert"] = "bert", **settings: Any) -> Path:
    """A small encoder with random weights as a Hugging Face folder: float16, as many that are published; with a pooler.

    Args:
        folder: is made.
        kind: BERT has layers of their own weights, ALBERT one layer several times.
        settings: of the config.
    """
    from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel

    folder.mkdir(parents=True)
    marks = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = sorted({character for document in DOCUMENTS for character in document.text} | set("abomt12，（Ｔ１#"))
    (folder / "vocab.txt").write_text("\n".join([*marks, *characters, "##a"]) + "\n", encoding="utf-8")
    about = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "model_max_length": 512, "unk_token": "[UNK]",
             "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    shape = {
        "vocab_size": len(marks) + len(characters) + 1, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 24, "max_position_embeddings": 130,
    } | settings  # fmt: skip
    reseed(7, "weights")
    made = BertModel(BertConfig(**shape)) if kind == "bert" else AlbertModel(AlbertConfig(embedding_size=8, **shape))
    with quiet():
        made.half().save_pretrained(folder)
    return folder


def nothing_to_evaluate(model: Model) -> dict[str, float]:
    """A figure that is never better than the first."""
    return {"f1": 0.0}


def trainer(
    model: Model,
    folder: Path,
    *,
    tricks: Mapping[str, Mapping[str, Any]] | None = None,
    items: Sequence[Any] = DOCUMENTS,
    evaluate: Callable[[Model], Mapping[str, Any]] = nothing_to_evaluate,
    resume: bool = False,
    start: Start | None = None,
    identity: Mapping[str, Mapping[str, Any]] | None = None,
    optimizer: Mapping[str, Any] | None = None,
    further: Sequence[Trick] = (),
    **settings: Any,
) -> Trainer:
    """A trainer of `model` on a few sentences, with `further` tricks outside; other settings are those of the `train` section.

    Where a trick needs a trained model that the run goes on from, it is `start`, or `model` as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chosen = {
        "epochs": 1,
        "batch_size": 4,
        "clip": 0.0,
        "schedule": {"warmup": 0.0},
        "log_every": 1,
        "device": "cpu",
    } | settings
    sections = {name: trick_class(name).Settings(**given) for name, given in (tricks or {}).items()}
    built = build_tricks(sections)
    if start is None and any(trick.needs_start for trick in built):
        start = start_of(model, items)
    return Trainer(
        model,
        [model.featurize(item) for item in items],
        TrainSettings.model_validate(chosen | {"optimizer": dict(optimizer or {})}),
        [*built, *further],
        evaluate,
        "f1",
        folder,
        identity or {"exact": {}, "approximate": {}},
        resume,
        start=start,
    )


def start_of(
    model: Model,
    items: Sequence[Any] = DOCUMENTS,
    labelled: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Start:
    """What a run goes on from: the model as it is, trained on these sentences."""
    return Start(model.fresh, lambda: [model.featurize(item) for item in items], labelled)


def distillation(
    folder: Path,
    teachers: Sequence[Model],
    items: Sequence[Document],
    num_labelled: int = len(DOCUMENTS),
    weight: float = 0.5,
    temperature: float = 2.0,
) -> Distillation:
    """The trick, and in `folder/targets` what it reads: what the teachers say of the items. Collective."""
    form = teachers[0].target_form()
    assert form is not None
    names = [str(number) for number in range(len(teachers))]
    facts = describe_targets(form, temperature, names, [item.text for item in items])
    folder.mkdir(parents=True, exist_ok=True)
    ensure_targets(folder / "targets", facts, lambda: teachers, [Document(item.text) for item in items])
    settings = DistillationSettings(teacher="runs/teacher", weight=weight, temperature=temperature)
    return Distillation(settings, folder / "targets", num_labelled)


def gradients(model: Model) -> dict[str, Tensor]:
    """The gradients that the last step left, in float64."""
    return {name: p.grad.double().clone() for name, p in model.named_parameters() if p.grad is not None}


def difference(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """The largest relative L2 distance between tensors of the same name."""
    assert set(first) == set(second)
    assert first
    return max(float((first[name] - second[name]).norm() / second[name].norm().clamp_min(1e-30)) for name in first)


class ToyConfig(Settings):
    """Settings of the toy.

    Attributes:
        dropout: rate of the mask on the pooled vector.
    """

    dropout: float = 0.0


@dataclass(frozen=True)
class ToyFeatures:
    """One text: rows of both tables, and the number to be learnt."""

    characters: np.ndarray
    pairs: np.ndarray
    target: float

    @property
    def length(self) -> int:
        return len(self.characters)


@dataclass(frozen=True)
class ToyBatch:
    """Padded texts: rows of both tables (0 = padding) and targets."""

    characters: Tensor
    pairs: Tensor
    target: Tensor
    item_ids: tuple[int, ...] = ()

    @property
    def num_units(self) -> Mapping[str, int]:
        return {"square": len(self.target)}

    @property
    def unit_lengths(self) -> Mapping[str, Tensor]:
        return {"square": torch.ones_like(self.target, dtype=torch.int64)}

    def to(self, device: torch.device) -> Self:
        assert device.type == "cpu"
        return self


class Toy(Model):
    """Says how many entities a text has: v . mask * sum over positions of tanh(embedded @ W), squared error.

    It is small enough to be written down again by hand, and remembers what its forward passes saw.

    Attributes:
        seen: for each pass the two embedded inputs, as the layers above them got them.
        masks: for each training pass the dropout mask.
        loss_factors: the losses of the pass with that number are multiplied by this.
    """

    Config: ClassVar[type[ToyConfig]] = ToyConfig
    config: ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.characters = nn.Embedding(64, 4, padding_idx=0)
        self.pairs = nn.Embedding(64, 3, padding_idx=0)
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(3, 6)
        self.output = nn.Linear(6, 1)
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.masks: list[Tensor] = []
        self.loss_factors: dict[int, float] = {}

    @classmethod
    def build(cls, config: ToyConfig, data: TaggingData) -> Self:
        return cls(config)

    def featurize(self, item: Document) -> ToyFeatures:
        rows = np.array([ord(character) % 60 + 2 for character in item.text], dtype=np.int64)
        return ToyFeatures(rows, (rows[:-1] + rows[1:]) % 60 + 2, float(len(item.spans)))

    def collate(
        self, features: Sequence[ToyFeatures], draw: Draw | None = None, item_ids: Sequence[int] = ()
    ) -> ToyBatch:
        def pad(rows: list[np.ndarray]) -> Tensor:
            return nn.utils.rnn.pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True)

        return ToyBatch(
            pad([item.characters for item in features]),
            pad([item.pairs for item in features]),
            torch.tensor([item.target for item in features]),
            tuple(item_ids),
        )

    def forward(self, batch: ToyBatch) -> Tensor:
        characters, pairs = self.characters(batch.characters), self.pairs(batch.pairs)
        self.seen.append((characters.detach().clone(), pairs.detach().clone()))
        pooled = (torch.tanh(self.first(characters)) * (batch.characters > 0).unsqueeze(-1)).sum(1)
        pooled = pooled + (torch.tanh(self.second(pairs)) * (batch.pairs > 0).unsqueeze(-1)).sum(1)
        if self.training:
            mask = (torch.rand(pooled.shape) >= self.config.dropout) / (1 - self.config.dropout)
            self.masks.append(mask)
            pooled = pooled * mask
        value: Tensor = self.output(pooled).squeeze(-1)
        return value

    def losses(self, output: Tensor, batch: ToyBatch) -> Mapping[str, Tensor]:
        return {"square": (output - batch.target).square() * self.loss_factors.get(len(self.seen) - 1, 1.0)}

    def divergence(self, first: Tensor, second: Tensor, batch: ToyBatch) -> Mapping[str, Tensor]:
        return {"square": (first - second).square()}

    def attack_points(self, batch: ToyBatch) -> Mapping[str, AttackPoint]:
        def samples(rows: Tensor) -> Tensor:
            return torch.where(rows > 0, torch.arange(len(rows)).unsqueeze(1), -1)

        return {
            "characters": AttackPoint(self.characters, samples(batch.characters), self.characters.weight),
            "pairs": AttackPoint(self.pairs, samples(batch.pairs), self.pairs.weight),
        }

    def description(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_description(cls, config: ToyConfig, description: Mapping[str, Any], folder: Path) -> Self:
        return cls(config)


def toy(seed: int = 1, dropout: float = 0.0) -> Toy:
    """A toy with random weights."""
    reseed(seed, "weights")
    return Toy(ToyConfig(dropout=dropout))
