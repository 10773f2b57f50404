"""Any text comes back whole: any character, any length, any order, any batch, and `text[start:end]` is the entity."""

from __future__ import annotations

import io
import itertools
import json
import random
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import hanzoo
from hanzoo import cli
from hanzoo.data.document import Document, TaggedText
from hanzoo.models import model as model_module
from hanzoo.models.bilstm_crf import BiLSTMCRF
from hanzoo.models.model import Tagger
from tests.fixtures import corpus, json_lines, trained_run

pytestmark = pytest.mark.usefixtures("deterministic")

SAYING = "叶老桂在浙商银行工作"
FAMILY = "👨\u200d👩\u200d👧\u200d👦"  # one picture, seven code points
TEXTS = {
    "plain": SAYING,
    "empty": "",
    "spaces": "  叶老桂  在 浙商银行 工作  ",
    "tabs": "\t叶老桂\t在\t浙商银行\t工作\t",
    "ideographic space": "\u3000叶老桂\u3000在浙商银行\u3000工作",
    "line ends inside": "叶老桂\r在浙商银行\u2028工作\u2029叶老桂\x85在浙商银行\x0b工作\x0c",
    "NUL": "\x00叶老桂在\x00浙商银行工作\x00",
    "emoji": f"😀{FAMILY}叶老桂在🇨🇳浙商银行👍🏽工作{FAMILY}",
    "full width": "叶老桂在ＡＢＣ社工作！１２３",
    "beyond the basic plane": "𠮷野在浙商银行𪚥工作𝒜",
    "combining marks": "e\u0301叶老桂在浙商银行n\u0303工作\u20e3",
    "variation selectors": "叶\ufe00老桂在浙\ufe0f商银行工作\U000e0100",
    "right to left": "叶老桂在\u202eשלום\u202c浙商银行工作 مرحبا",
    "byte order mark inside": "\ufeff叶老桂在浙商银行\ufeff工作",
    "mixed English": "José在open AI工作, Tom说:Hello 叶老桂 from 浙商银行 Ltd.",
    "lone surrogates": "\ud83d叶老桂在\udc00浙商银行工作\ud800",
    "a pair as two code points": "\ud83d\ude00叶老桂在浙商银行工作",
    "private use": "\ue000叶老桂在\U0010ffff浙商银行工作\ufffe",
    "nothing but spaces": "   \t ",
    "one character": "叶",
}


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory)


@pytest.fixture
def tagger(run: Path) -> Tagger:
    model = hanzoo.load(run)
    assert isinstance(model, Tagger)
    return model


def check_whole(given: str, tagged: TaggedText) -> None:
    assert tagged.text == given
    position = 0
    for entity in tagged.entities:
        assert position <= entity.start < entity.end <= len(given)
        assert given[entity.start : entity.end] == entity.text
        assert entity.confidence is not None
        assert 0.0 <= entity.confidence <= 1.0
        position = entity.end


def assert_same(first: TaggedText, second: TaggedText) -> None:
    assert first.text == second.text
    assert [entity.span for entity in first.entities] == [entity.span for entity in second.entities]
    confidences = [[entity.confidence for entity in tagged.entities] for tagged in (first, second)]
    np.testing.assert_allclose(np.array(confidences[0], float), np.array(confidences[1], float), rtol=0, atol=1e-5)


# --- every character -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXTS)
def test_positions_are_those_of_the_string_that_was_given(tagger: Tagger, name: str) -> None:
    text = TEXTS[name]
    (tagged,) = tagger.predict([text])
    check_whole(text, tagged)
    assert all(type(entity.start) is int and type(entity.end) is int for entity in tagged.entities)


def test_the_entities_are_found_between_strange_characters(tagger: Tagger) -> None:
    """Else the test above could pass with nothing found."""
    found = {name: [entity.text for entity in tagger.predict([text])[0].entities] for name, text in TEXTS.items()}
    assert found["plain"] == ["叶老桂", "浙商银行"]
    assert found["empty"] == []
    hits = [name for name, entities in found.items() if "叶老桂" in entities or "浙商银行" in entities]
    assert {"emoji", "lone surrogates", "NUL", "beyond the basic plane"} <= set(hits)
    assert len(hits) >= 12
    learnt = [entity.text for tagged in tagger.predict([d.text for d in corpus(240)]) for entity in tagged.entities]
    assert {"中国 石油", "👨‍👩‍👧‍👦家", "open\tAI", "𠮷野", "Ｔｏｍ", "😀明", "José"} <= set(learnt)


def test_random_strings(tagger: Tagger) -> None:
    draw = random.Random(5)
    alphabet = "".join(TEXTS.values()) + "".join(map(chr, range(0x20, 0x100)))
    texts = ["".join(draw.choices(alphabet, k=draw.randrange(60))) for _ in range(200)]
    results = tagger.predict(texts)
    for text, tagged in zip(texts, results, strict=True):
        check_whole(text, tagged)
    assert sum(len(tagged.entities) for tagged in results) > 50


def test_json_lines_through_the_command(
    run: Path, tagger: Tagger, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """JSON carries every string but a surrogate pair as two code points, which comes back as the character it means."""
    texts = [text for name, text in TEXTS.items() if name != "a pair as two code points"]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text, "no": no}) + "\n" for no, text in enumerate(texts)), "ascii")
    capsysbinary.readouterr()
    assert cli.predict([str(run), str(path)]) == 0
    out = capsysbinary.readouterr().out
    out.decode("utf-8")  # valid, lone surrogates and all
    lines = json_lines(out)
    assert [line["text"] for line in lines] == texts
    assert [line["no"] for line in lines] == list(range(len(texts)))
    for line, tagged in zip(lines, tagger.predict(texts), strict=True):
        assert [(e["start"], e["end"], e["label"]) for e in line["entities"]] == [e.span for e in tagged.entities]
        for entity in line["entities"]:
            assert line["text"][entity["start"] : entity["end"]] == entity["text"]
    path.write_text('{"text": "\\ud83d\\ude00\\u53f6\\u8001\\u6842\\u5230\\u4e86"}\n', "ascii")
    assert cli.predict([str(run), str(path)]) == 0
    (line,) = json_lines(capsysbinary.readouterr().out)
    assert line["text"] == "😀叶老桂到了"
    assert [line["text"][e["start"] : e["end"]] for e in line["entities"]] == [e["text"] for e in line["entities"]]


def test_lines_through_standard_input(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    r"""Only "\n" ends a line; what UTF-8 can hold comes back as it was."""
    texts = [text for name, text in TEXTS.items() if "surrogate" not in name and "pair" not in name]
    given = "".join(text + "\n" for text in texts).encode("utf-8")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))
    capsysbinary.readouterr()
    assert cli.predict([str(run)]) == 0
    lines = json_lines(capsysbinary.readouterr().out)
    assert [line["text"] for line in lines] == texts
    assert sum(len(line["entities"]) for line in lines) > 10


# --- order, batches, streams -----------------------------------------------------------------------------------------


def test_batched_equals_one_by_one_in_any_order(tagger: Tagger) -> None:
    texts = [*TEXTS.values(), *(document.text for document in corpus(60)), SAYING * 40, "今天没有人来" * 100]
    alone = [tagger.predict([text])[0] for text in texts]
    together = tagger.predict(texts)
    order = random.Random(3).sample(range(len(texts)), len(texts))
    shuffled = tagger.predict([texts[i] for i in order])
    for first, second in zip(alone, together, strict=True):
        assert_same(first, second)
    for index, second in zip(order, shuffled, strict=True):
        assert_same(alone[index], second)
    with pytest.raises(AssertionError):
        assert_same(alone[0], alone[2])


def test_each_confidence_belongs_to_its_own_entity(tagger: Tagger) -> None:
    texts = [TEXTS["mixed English"], TEXTS["right to left"], "", SAYING, "叶林在中国腾讯石油老"]
    spread = 0.0
    for text, tagged in zip(texts, tagger.predict(texts), strict=True):
        if not tagged.entities:
            continue
        batch = tagger.collate([tagger.featurize(Document(text))])
        with torch.inference_mode():
            output = tagger(batch)
            alone = [
                tagger.confidences(output, batch, [[entity.span]], tagger.temperature)[0][0]
                for entity in tagged.entities
            ]
        given = [entity.confidence for entity in tagged.entities]
        np.testing.assert_allclose(np.array(given, float), np.array(alone), rtol=0, atol=1e-5)
        spread = max(spread, max(alone) - min(alone))
    assert spread > 1e-3  # else they could be exchanged unnoticed


def test_batches_hold_no_more_than_they_may(tagger: Tagger) -> None:
    lengths = [3, 0, 70_000, 5, 16_384, 8, 8_192, 8_192, 1]
    batches = list(tagger.batches_by_length(lengths))
    assert sorted(itertools.chain.from_iterable(batches)) == [0, 2, 3, 4, 5, 6, 7, 8]
    for batch in batches:
        padded = len(batch) * max(lengths[index] for index in batch)
        assert padded <= model_module.POSITIONS_A_BATCH or len(batch) == 1


class Text(str):
    """A string that can be watched."""

    __slots__ = ("__weakref__",)


def test_a_stream_is_read_lazily_and_let_go(tagger: Tagger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "TEXTS_A_CHUNK", 8)
    alive: weakref.WeakSet[Text] = weakref.WeakSet()
    read = 0

    def many() -> Iterator[str]:
        nonlocal read
        for number in range(2_000):  # as good as endless, and an eager reader still ends
            text = Text(f"{number}叶老桂到了")
            alive.add(text)
            read += 1
            yield text
            del text

    stream = tagger.predict_stream(many())
    assert read == 0
    for number, tagged in enumerate(itertools.islice(stream, 100)):
        assert tagged.text == f"{number}叶老桂到了"
        assert number < read <= number + 8
        del tagged
        assert len(alive) <= 2 * 8
    assert read == 104


def test_a_chunk_ends_by_characters_too(tagger: Tagger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "CHARACTERS_A_CHUNK", 100)
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield SAYING * 4

    stream = tagger.predict_stream(texts())
    next(stream)
    assert read == 3


def test_predict_takes_a_list_of_strings(tagger: Tagger) -> None:
    assert tagger.predict([]) == []
    with pytest.raises(TypeError, match=r"Write predict\(\[text\]\)"):
        tagger.predict("叶老桂")
    was_training = tagger.train()
    tagger.predict([SAYING])
    assert was_training.training


# --- long texts ------------------------------------------------------------------------------------------------------


def test_a_text_of_20_000_characters(tagger: Tagger) -> None:
    text = (SAYING + "，今天没有人来。") * (20_000 // 18 + 1)
    (tagged,) = tagger.predict([text])
    check_whole(text, tagged)
    assert len(tagged.entities) > 2_000
    (short,) = tagger.predict([text[:3600]])
    inner = [entity.span for entity in tagged.entities if entity.end <= 3000]
    assert inner == [entity.span for entity in short.entities if entity.end <= 3000]


def test_pieces_that_carry_their_state_equal_the_whole(tagger: Tagger) -> None:
    assert isinstance(tagger, BiLSTMCRF)
    text = "".join(document.text for document in corpus(500))
    batch = tagger.collate([tagger.featurize(Document(text)), tagger.featurize(Document(text[:700]))])
    with torch.inference_mode():
        tagger.lstm.piece = 1_000_000
        whole = tagger(batch)
        tagger.lstm.piece = 256
        pieces = tagger(batch)
        cut = tagger(tagger.collate([tagger.featurize(Document(text[256:]))]))
    assert len(text) > 4 * 256
    real = batch.mask
    torch.testing.assert_close(pieces[real], whole[real], rtol=0, atol=1e-5)
    assert not torch.allclose(cut[0, :50], whole[0, 256:306], rtol=0, atol=1e-5)  # without the state: other numbers
