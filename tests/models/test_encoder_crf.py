"""The taggers on an encoder: one tag a character in texts of any length and content, one Viterbi over all windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from hanzoo import build
from hanzoo.data.document import Document
from hanzoo.data.randomness import generator
from hanzoo.errors import DataError, RecipeError
from hanzoo.models.encoder_crf import EncoderCRF
from hanzoo.models.model import load_model
from hanzoo.training.optimizers import OptimizerSettings, parameter_groups
from tests import tiny

pytestmark = pytest.mark.usefixtures("deterministic", "encoders")


def tagger(name: str = "encoder_crf", **settings: Any) -> Any:
    return tiny.build(name, {"encoder": "tiny-bert"} | settings).eval()


def long_text(length: int) -> str:
    """Real characters in any order, with blanks, capitals, emoji and rare ones among them."""
    alphabet = sorted({character for document in tiny.DOCUMENTS for character in document.text}) + list(
        " \t\n\u3000\u200b\0AＡ１é😀\u200d𠮷"
    )
    drawn = generator(1, "text").integers(len(alphabet), size=length)
    return "".join(alphabet[number] for number in drawn)


@pytest.mark.parametrize("name", ["encoder_crf", "encoder_softmax"])
@pytest.mark.parametrize("settings", [{}, {"window": 16, "overlap": 6}, {"window": 50, "lstm_hidden": 5}], ids=str)
def test_offsets_are_exact_in_a_long_text(name: str, settings: dict[str, Any]) -> None:
    model = tagger(name, **settings)
    text = long_text(10_000)
    features = model.featurize(Document(text))
    assert features.length == len(text) == 10_000
    (tags,) = model.predicted_tags([features])
    assert len(tags) == len(text)
    (found,) = model.predict([text])
    assert found.text == text
    assert len(found.entities) > 100
    assert all(text[entity.start : entity.end] == entity.text for entity in found.entities)
    spans = model.tag_set.decode([model.tag_set.tags.index(tag) for tag in tags])
    assert [entity.span for entity in found.entities] == spans


def test_one_viterbi_over_all_windows() -> None:
    """Without context the answer does not depend on the windows: not even where an entity lies across an edge."""
    model = tagger()
    model.encoder.model.encoder.layer = torch.nn.ModuleList()
    with torch.no_grad():
        model.encoder.model.embeddings.position_embeddings.weight.zero_()
    text = long_text(500)

    def entities() -> list[Any]:
        return list(model.predict([text])[0].entities)

    model.window = 128
    expected = entities()
    model.window, model.overlap = 10, 4
    windows = model.windows([model.subwords.encode(text)])
    assert entities() == expected
    edges = set(windows.own_starts.tolist())
    assert any(entity.start < edge < entity.end for entity in expected for edge in edges)
    pieces = [text[start:end] for start, end in zip(windows.own_starts, windows.own_ends, strict=True)]
    apart = [found for each in model.predict(pieces) for found in each.entities]
    assert len(apart) != len(expected)  # the control: a Viterbi a window


def test_with_context_the_windows_are_felt() -> None:
    model = tagger(window=128)
    text = long_text(2_000)
    whole = model.predict([text])[0]
    model.window, model.overlap = 8, 0
    assert model.predict([text])[0] != whole


def test_memory_of_a_long_text_does_not_grow_with_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tagger()
    rows: list[int] = []
    model.encoder.table.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].numel()))
    model.predict([long_text(30_000)])
    assert len(rows) > 2
    assert max(rows) <= 16_384


@pytest.mark.parametrize("name", ["encoder_crf", "encoder_softmax"])
@pytest.mark.parametrize(
    "tricks",
    [{"fgm": {"epsilon": 0.3}}, {"r_drop": {"alpha": 1.0}}, {"gradient_penalty": {}}, {"l2_sp": {}}, {"ewc": {}}],
    ids=str,
)
def test_long_texts_are_trained_and_attacks_work_while_frozen(name: str, tricks: Any, tmp_path: Path) -> None:
    model = tiny.build(name, {"encoder": "tiny-bert", "window": 8, "overlap": 2, "freeze_epochs": 1,
                              "encoder_dropout": 0.0})  # fmt: skip
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    tiny.trainer(model, tmp_path, tricks=tricks, epochs=1).fit()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if not name.startswith("encoder.")}


def test_the_parts_have_their_rates() -> None:
    model = tagger(lstm_hidden=4)
    settings = OptimizerSettings(learning_rate=1e-4, rates={"lstm": 10.0, "crf": 300.0}, layer_decay=0.5)
    factor = {name: group.factor for group in parameter_groups(model, settings) for name in group.names}
    assert factor["crf.transitions"] == 300.0
    assert factor["emission.weight"] == 1.0
    assert factor["lstm.forward_layers.0.weight_ih_l0"] == 10.0
    assert factor["encoder.model.encoder.layer.1.output.dense.weight"] == 0.5
    assert factor["encoder.model.encoder.layer.0.output.dense.weight"] == 0.25
    assert factor["encoder.model.embeddings.word_embeddings.weight"] == 0.125
    decay = {name: group.weight_decay for group in parameter_groups(model, settings) for name in group.names}
    spared = {name for name, rate in decay.items() if not rate}
    assert {name for name in decay if "LayerNorm" in name or "embeddings" in name or name.endswith("bias")} <= spared
    assert "encoder.model.encoder.layer.1.output.dense.weight" not in spared


def test_notes_and_inputs_say_what_went_in() -> None:
    documents = [*tiny.DOCUMENTS, tiny.marked("𠮷" * 9)]
    model = tiny.build("encoder_crf", {"encoder": "tiny-bert"}, of=tiny.data(documents))
    total = sum(len(document.text) for document in documents)
    assert model.notes == (f"tiny-bert: {900 / total:.2f} % of the characters of train (blanks included) are [UNK]",)
    assert list(model.inputs) == ["encoder tiny-bert"]
    assert len(model.inputs["encoder tiny-bert"]) == 64


def test_a_run_says_the_transformers_it_had() -> None:
    approximate = build.identity(tiny.data(), tagger(), {})["approximate"]
    assert approximate["transformers"] == transformers.__version__
    plain = tiny.build("bilstm_crf", {"dimension": 4, "hidden": 4})
    assert approximate.keys() - build.identity(tiny.data(), plain, {})["approximate"].keys() == {
        "transformers", "tokenizers",
    }  # fmt: skip


def test_going_on_keeps_the_shape_and_takes_the_rest() -> None:
    previous = tagger(lstm_hidden=4, encoder_dropout=0.1)
    changed = previous.config.model_copy(update={"encoder_dropout": 0.3, "window": 20, "dropout_hidden": 0.0})
    model = EncoderCRF.continue_from(changed, previous, tiny.data())
    assert model.window == 20
    assert model.encoder.config.hidden_dropout_prob == 0.3
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, previous.get_parameter(name)), name
        assert parameter.data_ptr() != previous.get_parameter(name).data_ptr()
    for name, value in (("encoder", "tiny-albert"), ("lstm_hidden", 0), ("tag_scheme", "BIO")):
        with pytest.raises(RecipeError, match=rf"model\.{name}"):
            EncoderCRF.continue_from(previous.config.model_copy(update={name: value}), previous, tiny.data())


def test_an_encoder_that_is_not_there_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanzoo.data.subwords._from_hub", lambda name: "not asked")
    with pytest.raises(DataError, match="HANZOO_ENCODERS"):
        tagger(encoder="m3e-smal")


def test_a_checkpoint_needs_no_other_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tagger(window=20)
    model.save(tmp_path)
    monkeypatch.delenv("HANZOO_ENCODERS")
    text = long_text(300)
    assert load_model(tmp_path).predict([text]) == model.predict([text])  # type: ignore[attr-defined]


def test_collating_is_of_plain_arrays() -> None:
    model = tagger(window=16, overlap=4)
    features = [model.featurize(document) for document in tiny.DOCUMENTS]
    assert all(isinstance(item.pieces, np.ndarray) for item in features)
    batch = model.collate(features)
    assert batch.mask.shape == batch.tags.shape == batch.windows.places.shape
    assert batch.windows.mask.sum(1).max() == 18
    rows = [-(-max(0, item.length - 16) // 12) + 1 for item in features]
    assert len(batch.windows.pieces) == sum(rows)
    assert batch.windows.texts.tolist() == [number for number, count in enumerate(rows) for _ in range(count)]
