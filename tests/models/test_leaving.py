"""A matcher's folder as other libraries read it, as far as that shows without them (with them: tests/interop)."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hanzoo.data.document import Pair
from hanzoo.data.randomness import reseed
from hanzoo.data.subwords import find_encoder, quiet
from hanzoo.models.bi_encoder import BiEncoder
from hanzoo.models.colbert import ColBERT
from hanzoo.models.cross_encoder import CrossEncoder

pytestmark = pytest.mark.usefixtures("deterministic", "encoders")

PAIRS = [("王小明在北京工作", "今天下雨"), ("昨天的会开得太长了", "a㊣ b[SEP]"), ("好" * 300, "，。"), ("张伟", "张伟")]
DATA = SimpleNamespace(train=[Pair(*pair) for pair in PAIRS])


def saved(cls: type[Any], folder: Path, **settings: Any) -> Any:
    reseed(1, "weights")
    own = {"document_marker": "#"} if cls is ColBERT else {}
    model = cls.build(cls.Config(**({"encoder": "tiny-bert"} | own | settings)), DATA).eval()
    if cls is CrossEncoder:
        model.output.weight.data *= 100  # else random ones say nearly the same of all pairs
    folder.mkdir(exist_ok=True)
    model.save(folder)
    return model


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def modules(folder: Path) -> list[tuple[str, str]]:
    """Each module's folder and class; all folders are there."""
    found = [(module["path"], module["type"]) for module in read(folder / "modules.json")]
    assert all((folder / path).is_dir() for path, _ in found)
    assert [module["idx"] for module in read(folder / "modules.json")] == list(range(len(found)))
    return found


@pytest.mark.parametrize(
    ("pooling", "between", "mode"),
    [
        ("mean", [], "mean_tokens"),
        ("cls", [], "cls_token"),
        ("first_last", ["WeightedLayerPooling"], "mean_tokens"),
        ("pooler", [], "cls_token"),
    ],
)
def test_a_bi_encoder_is_a_sentence_transformer(tmp_path: Path, pooling: str, between: list[str], mode: str) -> None:
    model = saved(BiEncoder, tmp_path, pooling=pooling, max_pieces=40)
    names = ["Transformer", *between, "Pooling", *(["Dense"] if pooling == "pooler" else []), "Normalize"]
    found = modules(tmp_path)
    assert [kind for _, kind in found] == [f"sentence_transformers.models.{name}" for name in names]
    assert found[0][0] == "encoder"
    ways = read(tmp_path / f"{1 + len(between)}_Pooling" / "config.json")
    assert [name for name, value in ways.items() if value is True and name != "include_prompt"] == [
        f"pooling_mode_{mode}"
    ]
    assert ways["word_embedding_dimension"] == model.encoder.width
    about = read(tmp_path / "encoder" / "sentence_bert_config.json")
    assert about["max_seq_length"] == 40
    assert ("config_args" in about) == (pooling == "first_last")
    assert "output_hidden_states" not in read(tmp_path / "encoder" / "config.json")
    if pooling == "pooler":
        dense = load_file(tmp_path / "2_Dense" / "model.safetensors")
        assert torch.equal(dense["linear.weight"], model.encoder.model.pooler.dense.weight)
    assert np.array_equal(BiEncoder.load(tmp_path).scores(PAIRS), model.scores(PAIRS))


def test_the_layers_of_first_last_are_weighed_alike(tmp_path: Path) -> None:
    saved(BiEncoder, tmp_path, pooling="first_last")
    weights = load_file(tmp_path / "1_WeightedLayerPooling" / "model.safetensors")["layer_weights"]
    assert weights.tolist() == [1.0, 1.0]
    assert read(tmp_path / "1_WeightedLayerPooling" / "config.json")["layer_start"] == 1


def test_a_pooler_of_another_kind_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanzoo.models.layers.interchange.pooler_of", lambda model: None)
    model = saved(BiEncoder, tmp_path, pooling="pooler")
    assert not (tmp_path / "modules.json").exists()
    assert "opens in hanzoo alone" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert np.array_equal(BiEncoder.load(tmp_path).scores(PAIRS), model.scores(PAIRS))


def test_colbert_is_one_of_pylate(tmp_path: Path) -> None:
    model = saved(ColBERT, tmp_path, expansion=32.0, max_pieces=60)
    assert modules(tmp_path) == [
        ("encoder", "sentence_transformers.models.Transformer"),
        ("1_Dense", "pylate.models.Dense.Dense"),
    ]
    about = read(tmp_path / "config_sentence_transformers.json")
    shown = {name: about[name] for name in ("query_prefix", "document_prefix", "query_length", "document_length")}
    assert shown == {"query_prefix": "[unused1]", "document_prefix": "#", "query_length": 32, "document_length": 60}
    numbers = [model.subwords.number(word) for word in about["skiplist_words"]]
    assert numbers
    assert model.subwords.unknown not in numbers
    assert sorted(numbers) == model._skipped.tolist()
    dense = load_file(tmp_path / "1_Dense" / "model.safetensors")
    assert torch.equal(dense["linear.weight"], model.projection.weight)
    assert np.array_equal(ColBERT.load(tmp_path).scores(PAIRS), model.scores(PAIRS))


@pytest.mark.parametrize(
    ("settings", "expands", "differs"),
    [
        ({}, True, True),
        ({"expansion": 28.0}, True, False),
        ({"expansion": 27.0}, True, True),
        ({"expansion": 0.0}, False, False),
        ({"expansion": 28.0, "max_pieces": 20}, True, True),  # then a query has at most 21 pieces before them
    ],
)
def test_where_colbert_reads_queries_otherwise_it_is_said(
    tmp_path: Path, settings: dict[str, Any], expands: bool, differs: bool
) -> None:
    model = saved(ColBERT, tmp_path, **settings)
    assert read(tmp_path / "config_sentence_transformers.json")["do_query_expansion"] is expands
    assert ("scores differ" in (tmp_path / "README.md").read_text(encoding="utf-8")) is differs
    if expands and "max_pieces" not in settings:
        lengths = {len(model.query_row(row).pieces) for row in model.read_texts(["北", "北京" * 40])}
        assert (lengths != {32}) is differs


@pytest.mark.parametrize("encoder", ["tiny-bert", "tiny-albert"])
@pytest.mark.parametrize("max_pieces", [None, 21])
def test_a_cross_encoder_is_a_sequence_classification(tmp_path: Path, encoder: str, max_pieces: int | None) -> None:
    model = saved(CrossEncoder, tmp_path, encoder=encoder, max_pieces=max_pieces)
    expected = model.scores(PAIRS)
    assert np.array_equal(CrossEncoder.load(tmp_path).scores(PAIRS), expected)
    with quiet():
        classifier, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert classifier.config.sentence_transformers["activation_fn"].endswith("Identity")
    classifier.eval()
    with torch.inference_mode():
        found = [classifier(**tokenizer(*pair, truncation=True, return_tensors="pt")).logits.item() for pair in PAIRS]
    assert np.allclose(found, expected, atol=1e-5)
    assert np.ptp(expected) > 1e-2


def test_a_pair_that_the_tokenizer_joins_otherwise_stays_in_hanzoo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hanzoo.data.word_pieces.WordPieces.pair", lambda self, *texts: ([1, 2, 3], None))
    model = saved(CrossEncoder, tmp_path)
    assert (tmp_path / "encoder" / "config.json").is_file()
    assert not (tmp_path / "config.json").exists()
    assert "opens in hanzoo alone" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert np.array_equal(CrossEncoder.load(tmp_path).scores(PAIRS), model.scores(PAIRS))


@pytest.mark.parametrize("cls", [BiEncoder, ColBERT, CrossEncoder])
def test_a_folder_can_be_an_encoder_again(tmp_path: Path, cls: type[Any]) -> None:
    first = saved(cls, tmp_path / "one")
    again = saved(BiEncoder, tmp_path / "two", encoder=str(tmp_path / "one"))
    weights = again.encoder.model.state_dict()
    for name, weight in first.encoder.model.state_dict().items():
        assert torch.equal(weights[name], weight)
    kinds = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors", ".txt", ".md"}


@pytest.mark.parametrize(
    "kind", ["sentence_transformers.models.Transformer", "sentence_transformers.base.modules.transformer.Transformer"]
)
def test_the_encoder_of_a_sentence_transformers_folder_is_found(tmp_path: Path, encoders: Path, kind: str) -> None:
    (tmp_path / "0_Transformer").symlink_to(encoders / "tiny-bert")
    assert "modules.json" not in {path.name for path in (encoders / "tiny-bert").iterdir()}
    listed = [{"path": "0_Transformer", "type": kind}, {"path": "1_Pooling", "type": "x.Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    place = find_encoder(str(tmp_path))
    assert (place / "config.json").is_file()


@pytest.mark.parametrize("content", ["no json", "[]", '[{"path": 3}]', "{}"])
def test_a_strange_list_of_modules_is_not_looked_at(tmp_path: Path, encoders: Path, content: str) -> None:
    for path in (encoders / "tiny-bert").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "modules.json").write_text(content)
    assert find_encoder(str(tmp_path)) == tmp_path
