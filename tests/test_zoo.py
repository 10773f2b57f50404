"""What every model of the zoo must do, whatever it is: each is found by its file and walked through the same tests.

A new model needs one entry in SETTINGS, a new trick one in TRICKS; without it these tests fail.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from hanzoo.data.document import Pair
from hanzoo.data.randomness import generator, reseed
from hanzoo.errors import RecipeError, RunError
from hanzoo.models.model import Matcher, Model, Tagger, load_model, model_class, model_names
from hanzoo.models.objectives.binary import Binary
from hanzoo.models.objectives.info_nce import InfoNCE
from hanzoo.tasks.tagging import Tagging, TaggingEvaluateSettings
from hanzoo.training.checkpoint import tensors_sha256
from hanzoo.training.distillation import common_form
from hanzoo.training.trick import build_tricks, trick_class, trick_names
from tests import tiny

pytestmark = pytest.mark.usefixtures("deterministic", "encoders", "lexicons")

# Windows of 16 characters, so that the longer sentences of `tiny` need two or three.
SETTINGS: dict[str, dict[str, Any]] = {
    "bi_encoder": {"encoder": "tiny-bert"},
    "bilstm_crf": {"dimension": 8, "hidden": 12, "num_layers": 2, "unknown_rate": 0.1},
    "colbert": {"encoder": "tiny-bert", "dimension": 8, "document_marker": "#", "query_pieces": 12, "mean": True},
    "cross_encoder": {"encoder": "tiny-bert"},
    "encoder_crf": {"encoder": "tiny-bert", "window": 16, "lstm_hidden": 16},
    "encoder_flat": {
        "encoder": "tiny-bert",
        "window": 16,
        "lexicon": ["tiny-words"],
        "dimension": 8,
        "width": 16,
        "num_heads": 2,
        "feed_forward": 24,
        "unknown_rate": 0.1,
        "kind_rate": 0.3,
    },
    "encoder_softmax": {"encoder": "tiny-albert", "window": 16},
    "flat": {
        "lexicon": ["tiny-words"],
        "dimension": 8,
        "width": 16,
        "num_heads": 2,
        "num_layers": 2,
        "feed_forward": 24,
        "unknown_rate": 0.1,
        "kind_rate": 0.3,
        "dropout_attention": 0.1,
    },
    "global_pointer": {"encoder": "tiny-bert", "window": 16, "dimension": 8},
}
NO_RANDOMNESS: dict[str, dict[str, Any]] = {
    "bi_encoder": {"encoder_dropout": 0.0},
    "bilstm_crf": {"dropout_embedding": 0.0, "dropout_hidden": 0.0, "unknown_rate": 0.0},
    "colbert": {"encoder_dropout": 0.0},
    "cross_encoder": {"encoder_dropout": 0.0, "dropout": 0.0},
    "encoder_crf": {"encoder_dropout": 0.0, "dropout_hidden": 0.0},
    "encoder_flat": {
        "encoder_dropout": 0.0,
        "dropout_embedding": 0.0,
        "dropout_word": 0.0,
        "dropout_feed_forward": 0.0,
        "dropout_hidden": 0.0,
        "unknown_rate": 0.0,
        "kind_rate": 0.0,
    },
    "encoder_softmax": {"encoder_dropout": 0.0, "dropout_hidden": 0.0},
    "flat": {
        "dropout_embedding": 0.0,
        "dropout_word": 0.0,
        "dropout_feed_forward": 0.0,
        "dropout_attention": 0.0,
        "dropout_hidden": 0.0,
        "unknown_rate": 0.0,
        "kind_rate": 0.0,
    },
    "global_pointer": {"encoder_dropout": 0.0, "dropout_hidden": 0.0},
}
TRICKS: dict[str, list[dict[str, Any]]] = {
    "fgm": [{"epsilon": 0.3}, {"epsilon": 1.0, "target": "table"}],
    "pgd": [{"epsilon": 0.3, "step_size": 0.2, "num_steps": 2}, {"num_steps": 2, "target": "table"}],
    "free_lb": [
        {"epsilon_0": 0.3, "step_size": 0.2, "max_norm": 0.0, "num_steps": 2},
        {"epsilon_0": 0.0, "step_size": 0.2, "num_steps": 2, "target": "table"},
    ],
    "r_drop": [{"alpha": 1.0}],
    "ema": [{"decay": 0.9}],
    "focal": [{"gamma": 1.0, "normalise": "token"}],
    "poly": [{"epsilon": 2.0}],
    "flooding": [{"level": 1.65}],
    "gradient_penalty": [{"strength": 0.5}],
    "swa": [{"start": 0.5}, {"start": 0.2, "every": 2}],
    "l2_sp": [{"alpha": 0.5}],
    "ewc": [{"weight": 0.5, "num_samples": 4}],
}

every_model = pytest.mark.parametrize("name", model_names())


def test_every_model_and_every_trick_is_walked() -> None:
    assert set(SETTINGS) == set(NO_RANDOMNESS) == set(model_names())
    assert set(TRICKS) == set(trick_names())
    assert model_names()
    assert trick_names()


def has_distribution(name: str) -> bool:
    """Whether a model says how likely its targets are, which EWC needs."""
    return model_class(name).sample_targets is not Model.sample_targets


def items_of(model: Model | str) -> Sequence[Any]:
    """What a model is trained on."""
    matcher = issubclass(model_class(model), Matcher) if isinstance(model, str) else isinstance(model, Matcher)
    return tiny.PAIRS if matcher else tiny.DOCUMENTS


def quiet(name: str, seed: int = 1) -> Model:
    """A model that draws nothing."""
    return tiny.build(name, SETTINGS[name] | NO_RANDOMNESS[name], seed)


def losses_of(model: Model, items: Sequence[Any], change: Callable[[Any], Any] = lambda batch: batch) -> Tensor:
    """The loss of each item, in float64."""
    model.eval()
    with torch.no_grad():
        batch = change(model.collate([model.featurize(item) for item in items]))
        return torch.stack(list(model.losses(model(batch), batch).values())).sum(0).double()


def predictions(model: Model, texts: Sequence[str]) -> list[Any]:
    if isinstance(model, Matcher):  # of each text with the next
        return model.scores(list(zip(texts, [*texts[1:], TEXTS[0]], strict=True))).tolist()
    assert isinstance(model, Tagger)  # classifiers: what they answer goes here
    return list(model.predict(texts))


def assert_same_predictions(first: Sequence[Any], second: Sequence[Any]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        if isinstance(one, float):
            assert one == pytest.approx(other, abs=1e-5)
            continue
        assert one.text == other.text
        assert [entity.span for entity in one.entities] == [entity.span for entity in other.entities]
        for a, b in zip(one.entities, other.entities, strict=True):
            assert a.confidence == pytest.approx(b.confidence, abs=1e-5)


TEXTS = [document.text for document in tiny.DOCUMENTS]
LONG = tiny.marked("⟨name|王小明⟩" + "说了很多很多话" * 12)


def long_of(name: str) -> Any:
    """An item with a text that is longer than all others."""
    return Pair("今天下雨", LONG.text, 1.0) if issubclass(model_class(name), Matcher) else LONG


@every_model
def test_batched_equals_one_by_one(name: str) -> None:
    model = quiet(name)
    items = items_of(name)
    alone = torch.cat([losses_of(model, [item]) for item in items])
    assert torch.allclose(losses_of(model, items), alone, rtol=1e-5, atol=1e-5)
    assert alone.unique().numel() == len(items)


@every_model
def test_more_padding_changes_nothing(name: str) -> None:
    model = quiet(name)
    padded = losses_of(model, [*items_of(name), long_of(name)])[:-1]
    assert torch.allclose(padded, losses_of(model, items_of(name)), rtol=1e-5, atol=1e-5)


def scrambled(batch: Any) -> Any:
    """The batch with other content at its padding: what stands at real positions, moved."""
    if hasattr(batch, "rows"):
        rows = batch.rows
        real = rows.mask | getattr(
            rows, "scored", torch.zeros_like(rows.mask)
        )  # [MASK] that no piece attends to are scored
        assert not real.all()
        assert rows.mask.any()
        return dataclasses.replace(
            batch, rows=dataclasses.replace(rows, pieces=torch.where(real, rows.pieces, rows.pieces[:, 1:2].flip(0)))
        )
    assert not batch.mask.all()
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor) and value.shape == batch.mask.shape and value.dtype == torch.int64:
            other = value[:, :1].flip(0).expand_as(value)
            changed[field.name] = torch.where(batch.mask, value, other)
    if hasattr(batch, "windows"):
        windows = batch.windows
        assert not windows.mask.all()
        pieces = torch.where(windows.mask, windows.pieces, windows.pieces[:, 1:2].flip(0))
        places = torch.where(batch.mask, windows.places, windows.places[:, :1].flip(0))
        changed["windows"] = dataclasses.replace(windows, pieces=pieces, places=places)
    if hasattr(batch, "words"):
        changed |= scrambled_lattice(batch)
    assert changed
    return dataclasses.replace(batch, **changed)


def scrambled_lattice(batch: Any) -> dict[str, Any]:
    """Other words, of other places and lengths, at the padding behind the words."""
    positions = batch.positions
    real = positions.mask
    of_words = real[:, positions.seq :]
    assert not of_words.all()
    assert len(positions.lengths) > 1
    starts = torch.where(real, positions.starts, positions.starts.flip(1).clamp(max=positions.seq - 2))
    starts[:, : positions.seq] = positions.starts[:, : positions.seq]  # of a character column its own number, always
    kinds = torch.where(real | (torch.arange(real.shape[1]) < positions.seq), positions.kinds, 1)
    return {
        "words": torch.where(of_words, batch.words, batch.words[:, :1].flip(0)),
        "positions": dataclasses.replace(positions, starts=starts, kinds=kinds),
    }


@every_model
def test_the_content_of_padding_means_nothing(name: str) -> None:
    model = quiet(name)
    expected = losses_of(model, items_of(name))
    assert torch.allclose(losses_of(model, items_of(name), scrambled), expected, rtol=1e-6, atol=1e-6)


@every_model
def test_order_of_the_batch_means_nothing(name: str) -> None:
    model, items = quiet(name), items_of(name)
    order = generator(1, "order").permutation(len(items)).tolist()
    shuffled = losses_of(model, [items[i] for i in order])
    assert torch.allclose(shuffled, losses_of(model, items)[order], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(shuffled, losses_of(model, items), rtol=1e-3)


@every_model
def test_what_a_model_teaches_is_what_it_learns(name: str) -> None:
    model = quiet(name)
    form = model.target_form()
    features = [model.featurize(item) for item in items_of(name)]
    batch = model.collate(features)
    assert batch.item_ids == ()
    output = model(batch)
    if isinstance(model, Matcher):  # what it teaches its students' objective learns
        assert common_form(model, "runs/teacher", quiet("cross_encoder")) == form
        with torch.no_grad():
            targets = model.soft_targets(output, batch, 2.0)
        assert [row.shape for row in targets] == [(1, 1)] * len(features)
        expected = model.scores([(pair.first, pair.second) for pair in tiny.PAIRS]) / 2
        assert torch.cat(targets).squeeze(1).tolist() == pytest.approx(expected.tolist(), abs=1e-5)
        return
    if form is None:  # what has no soft targets neither teaches nor learns, with a teacher and with a student that do
        other = quiet("bilstm_crf")
        for student, teacher in ((model, model), (model, other), (other, model)):
            with pytest.raises(RecipeError, match="it has no soft targets"):
                common_form(student, "runs/teacher", teacher)
        with pytest.raises(NotImplementedError, match="has no soft targets"):
            model.soft_targets(output, batch, 2.0)
        with pytest.raises(NotImplementedError, match="learns from no soft targets"):
            model.soft_losses(output, [], batch, 2.0)
        return
    assert common_form(model, "runs/teacher", quiet(name, seed=2)) == form
    targets = [row.detach() for row in model.soft_targets(output, batch, 2.0)]
    if form.kind == "token marginals":
        assert [len(row) for row in targets] == [len(document.text) for document in tiny.DOCUMENTS]
    for value in model.soft_losses(output, targets, batch, 2.0).values():
        assert value.abs().max() < 1e-4
    others = [row.roll(1, 0).roll(1, 1) for row in targets]
    learnt = model.soft_losses(output, others, batch, 2.0)
    assert set(learnt) == set(batch.num_units)
    for value in learnt.values():
        assert value.min() > 1e-3
    for number in (0, 5):  # alone as in company, with the item's place kept
        alone = model.collate([features[number]], None, [number])
        assert list(alone.item_ids) == [number]
        (row,) = model.soft_targets(model(alone), alone, 2.0)
        assert torch.allclose(row, targets[number], atol=1e-5)
        for part, value in model.soft_losses(model(alone), [others[number]], alone, 2.0).items():
            assert torch.allclose(value, learnt[part][number], rtol=1e-4)


@every_model
def test_what_shapes_a_model_cannot_change_when_it_goes_on(name: str) -> None:
    previous = quiet(name)
    config: Any = previous.config
    fields = type(previous).shape_fields
    assert set(fields) <= set(type(config).model_fields)
    for field in fields:
        old = getattr(config, field)
        new = {bool: not old, type(None): "other", str: "other"}.get(type(old), 3)
        with pytest.raises(RecipeError, match=rf"model\.{field}: must be .* is {new!r}\. Set ") as found:
            type(previous).continue_from(config.model_copy(update={field: new}), previous, tiny.data_of(name))
        setting = str(found.value).partition("Set model.")[2].partition(", or train")[0]
        assert yaml.safe_load(setting.replace("=", ": ")) == {field: old}  # as it would stand in a recipe
    assert type(previous).continue_from(config, previous, tiny.data_of(name)).config == config


@every_model
def test_all_parameters_get_gradients(name: str) -> None:
    model = tiny.build(name, SETTINGS[name])
    features = [model.featurize(item) for item in items_of(name)]
    batch = model.collate(features, lambda item: generator(1, "input", item), range(len(features)))  # as in training
    reseed(1, "dropout")
    model.train()
    sum(value.sum() for value in model.losses(model(batch), batch).values()).backward()  # type: ignore[union-attr]
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.any(), parameter_name


def devices_of(value: Any) -> set[str]:
    """Where all tensors of a dataclass are, those of dataclasses within it too."""
    if isinstance(value, Tensor):
        return {value.device.type}
    if dataclasses.is_dataclass(value):
        return set().union(*(devices_of(getattr(value, field.name)) for field in dataclasses.fields(value)))
    return set()


@every_model
def test_a_batch_moves_as_a_whole(name: str) -> None:
    model = tiny.build(name, SETTINGS[name])
    items = items_of(name)
    batch = model.collate([model.featurize(item) for item in items], item_ids=range(len(items)))
    moved = batch.to(torch.device("meta"))
    assert devices_of(batch) == {"cpu"}
    assert devices_of(moved) == {"meta"}
    assert moved.item_ids == batch.item_ids == tuple(range(len(items)))
    assert batch.to(torch.device("cpu")) is batch


@every_model
def test_input_draws_are_keyed_by_item(name: str) -> None:
    model = tiny.build(name, SETTINGS[name])
    features = [model.featurize(item) for item in items_of(name)]
    if isinstance(model, Matcher) and name != "cross_encoder":  # of single texts, which are repeated in part
        model.objective = InfoNCE(repetition=0.3)
        features = [model.featurize(document) for document in tiny.DOCUMENTS]

    def tensors(order: Sequence[int], draw: Callable[[int], Any] | None) -> list[Tensor]:
        batch = model.collate([features[i] for i in order], draw, list(order))
        if isinstance(model, Matcher):  # rows are views of all items, one view after the other
            pieces = batch.rows.pieces.unflatten(0, (-1, len(order))).transpose(0, 1)
            return [pieces, batch.keys, batch.labels.nan_to_num()]
        values = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
        return [value for value in values if isinstance(value, Tensor)]

    def keyed(item: int) -> Any:
        return generator(1, "input", item)

    numbers = list(range(len(features)))
    forth, back = tensors(numbers, keyed), tensors(numbers[::-1], keyed)
    assert all(torch.equal(a, b.flip(0)) for a, b in zip(forth, back, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tensors(numbers, None), tensors(numbers, None), strict=True))


@every_model
def test_the_fisher_information_of_drawn_targets(name: str) -> None:
    """E[gradient of log p] = 0 over targets that come from the model itself, and is not over gold ones."""
    model = quiet(name)
    if isinstance(model, Matcher):
        model.objective = Binary()  # without a scale: cosines of untrained encoders are all near 1
    batch = model.collate([model.featurize(items_of(name)[2])])
    if not has_distribution(name):
        with pytest.raises(RecipeError, match=f"train.tricks: {name} must say how likely its targets are"):
            model.sample_targets(model(batch), batch, generator(1, "targets", 0))
        return
    parameter = list(model.parameters())[-1]

    def gradient(of: Any) -> Tensor:
        return torch.autograd.grad(
            sum(value.sum() for value in model.losses(output, of).values()), parameter, retain_graph=True
        )[0]

    output = model(batch)
    drawn = torch.stack(
        [gradient(model.sample_targets(output, batch, generator(1, "targets", draw))) for draw in range(200)]
    ).double()
    expected = float(drawn.var(0).sum()) / len(drawn)  # of the squared length of a mean whose expectation is 0
    assert float(drawn.mean(0).square().sum()) < 3 * expected
    assert float(gradient(batch).square().sum()) > 30 * expected
    again = gradient(model.sample_targets(output, batch, generator(1, "targets", 3)))
    assert torch.equal(again.double(), drawn[3])


# Learning, saving, predicting.


@pytest.fixture(scope="module", params=model_names())
def learnt(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, encoders: Path, lexicons: Path
) -> Model:
    """A model that has learnt eight sentences, or pairs, by heart."""
    folder = tmp_path_factory.mktemp(request.param)
    model = quiet(request.param)
    trained = tiny.trainer(
        model, folder, items=items_of(model)[:8], epochs=60, batch_size=4, clip=5.0, log_every=2,
        optimizer={"learning_rate": 0.03},
    )  # fmt: skip
    trained.evaluate = lambda _: {"f1": float(trained.progress.step)}  # the last epoch is the best
    trained.fit()
    return model


def test_eight_examples_are_learnt(learnt: Model) -> None:
    items = items_of(learnt)[:8]
    assert losses_of(learnt, items).mean() < 0.02
    untrained = quiet(type(learnt).__module__.rpartition(".")[2])
    assert losses_of(untrained, items).mean() > (0.5 if isinstance(learnt, Matcher) else 2.0)
    if isinstance(learnt, Tagger):
        found = learnt.predict(TEXTS[:8])
        gold = [document.spans for document in tiny.DOCUMENTS[:8]]
        assert [tuple(entity.span for entity in text.entities) for text in found] == gold
        assert all(entity.text == text.text[entity.start : entity.end] for text in found for entity in text.entities)


def test_predictions_do_not_depend_on_the_company(learnt: Model) -> None:
    if isinstance(learnt, Matcher):
        texts = [*TEXTS, LONG.text]
        pairs = list(itertools.permutations(texts, 2))
        found = learnt.scores(pairs).tolist()
        assert_same_predictions(found, [learnt.score(*pair) for pair in pairs])
        assert_same_predictions(learnt.scores(pairs[::-1]).tolist()[::-1], found)
        assert len(set(found)) > len(pairs) / 3
        return
    together = predictions(learnt, [*TEXTS, LONG.text])
    alone = [found for text in [*TEXTS, LONG.text] for found in predictions(learnt, [text])]
    assert_same_predictions(together, alone)
    assert_same_predictions(predictions(learnt, [LONG.text, *TEXTS[::-1]])[::-1], together)
    assert sum(len(found.entities) for found in together) > 8


def test_calibration_reads_each_text_once(learnt: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(learnt, Matcher):
        return
    assert isinstance(learnt, Tagger)
    monkeypatch.setattr(learnt, "temperature", 1.0)
    features = [learnt.featurize(document) for document in tiny.DOCUMENTS]
    at = learnt.tag_at(features)
    plain = learnt.tag(features, with_confidence=True)
    assert at(1.0) == plain
    learnt.temperature = 3.0
    assert at(3.0) == learnt.tag(features, with_confidence=True) != plain

    passes: list[int] = []
    hook = learnt.register_forward_hook(lambda model, inputs, output: passes.append(len(inputs[0].mask)))
    facts = Tagging().calibrate(learnt, tiny.DOCUMENTS, TaggingEvaluateSettings(), None)
    hook.remove()
    assert facts["temperature"] == learnt.temperature
    assert sum(passes) == len(tiny.DOCUMENTS)


def test_a_saved_model_is_the_same_model(learnt: Model, tmp_path: Path) -> None:
    learnt.save(tmp_path)
    loaded = tiny.aimed(load_model(tmp_path))
    assert type(loaded) is type(learnt)
    assert not loaded.training
    assert loaded.config == learnt.config
    assert tensors_sha256(loaded.state_dict()) == tensors_sha256(learnt.state_dict())
    assert torch.equal(losses_of(loaded, items_of(learnt)), losses_of(learnt, items_of(learnt)))
    assert list(map(repr, predictions(loaded, TEXTS))) == list(map(repr, predictions(learnt, TEXTS)))
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors", ".txt", ".md"}  # nothing that runs code when it is read
    again = tmp_path / "again"
    again.mkdir()
    loaded.save(again)
    written = [path for path in sorted(again.rglob("*")) if path.is_file()]
    for path in written:
        assert path.read_bytes() == (tmp_path / path.relative_to(again)).read_bytes()
    assert len(written) == len([path for path in tmp_path.rglob("*") if path.is_file()]) / 2


def test_texts_of_any_content_come_back(learnt: Model) -> None:
    if isinstance(learnt, Matcher):  # which refuses texts of blanks: see tests/models/test_matchers.py
        return
    texts = ["", " ", "\t\n", "😀王小明𠮷", "a" * 3000, "\ud800北京", "Ｔｏｍ在Ｂｅｉｊｉｎｇ", *TEXTS]
    found = predictions(learnt, texts)
    assert [each.text for each in found] == texts
    if isinstance(learnt, Tagger):
        for each in found:
            assert all(each.text[entity.start : entity.end] == entity.text for entity in each.entities)
        assert found[0].entities == ()


def test_going_on_with_the_same_data_changes_no_answer(learnt: Model) -> None:
    name = type(learnt).__module__.rpartition(".")[2]
    model = tiny.aimed(type(learnt).continue_from(learnt.config, learnt, tiny.data_of(name)))
    assert torch.equal(losses_of(model, items_of(model)), losses_of(learnt, items_of(learnt)))
    assert list(map(repr, predictions(model, TEXTS))) == list(map(repr, predictions(learnt, TEXTS)))
    assert model.fresh == {}
    assert not {parameter.data_ptr() for parameter in model.parameters()} & {
        parameter.data_ptr() for parameter in learnt.parameters()
    }


def test_going_on_with_other_data_changes_no_answer_among_the_old_labels(learnt: Model) -> None:
    other = [tiny.marked(text) for text in ("⟨地点|台州⟩的鱼", "⟨name|王小明⟩吃ＢＢ", "丙丁⟨地点|台州⟩台州")]
    reseed(3, "weights")
    if isinstance(learnt, Matcher):
        return
    model = type(learnt).continue_from(learnt.config, learnt, tiny.data(other, other))
    assert set(model.fresh) <= {name for name, _ in model.named_parameters()}
    if isinstance(learnt, Tagger):
        assert isinstance(model, Tagger)
        assert model.labels == (*learnt.labels, "地点")
        texts = [*TEXTS, *(document.text for document in other)]
        free = list(map(repr, predictions(model, texts)))
        with model.restricted(learnt.labels):
            assert list(map(repr, predictions(model, texts))) == list(map(repr, predictions(learnt, texts)))
        assert free != list(map(repr, predictions(learnt, texts)))  # new labels are as yet at random
        assert model.active_labels == model.labels


def test_labels_that_do_not_take_part(learnt: Model) -> None:
    if not isinstance(learnt, Tagger):
        return
    assert {entity.label for text in learnt.predict(TEXTS) for entity in text.entities} == set(learnt.labels)
    free = losses_of(learnt, tiny.DOCUMENTS[2:3])  # a text without entities
    with learnt.restricted(["name"]):
        assert {entity.label for text in learnt.predict(TEXTS) for entity in text.entities} == {"name"}
        assert losses_of(learnt, tiny.DOCUMENTS[2:3]) < free
        batch = learnt.collate([learnt.featurize(tiny.DOCUMENTS[0])])
        with pytest.raises(ValueError, match="illegal"):
            learnt.losses(learnt(batch), batch)  # gold with another label
    assert torch.equal(losses_of(learnt, tiny.DOCUMENTS[2:3]), free)
    for labels in (["nmae"], []):
        with pytest.raises(RunError, match="labels: must be some of address, company, name"), learnt.restricted(labels):
            pass


# Training: the same again, every trick, going on.


def exclude_each_other(first: str, second: str) -> bool:
    return second in trick_class(first).excludes or first in trick_class(second).excludes


# Flooding levels that the loss of three epochs comes down to, where it is another than the one of TRICKS.
FLOODS = {"bi_encoder": 2.5, "colbert": 2.5, "cross_encoder": 0.69, "encoder_softmax": 20.0, "global_pointer": 4.0}

# Every trick and every pair of them is walked on one model a task; on the others what changes a pass most.
ALL_TRICKS = {"bilstm_crf"}
EACH_TRICK = {"cross_encoder"}  # and of another task each trick alone
SOME_TRICKS: list[dict[str, dict[str, Any]]] = [
    {}, {"fgm": TRICKS["fgm"][0]}, {"pgd": TRICKS["pgd"][1]}, {"free_lb": TRICKS["free_lb"][0], "ema": TRICKS["ema"][0]},
    {"r_drop": TRICKS["r_drop"][0]}, {"gradient_penalty": TRICKS["gradient_penalty"][0]},
]  # fmt: skip


def walked() -> list[Any]:
    """Each model with the tricks it is walked with."""
    return [
        pytest.param(name, tricks, id=f"{name}-{identifier(tricks)}")
        for name in model_names()
        for tricks in (
            combinations()
            if name in ALL_TRICKS
            else [each for each in combinations() if len(each) < 2]
            if name in EACH_TRICK
            else SOME_TRICKS
        )
    ]


def combinations() -> list[dict[str, dict[str, Any]]]:
    """No trick, each trick in each of its settings, and every pair that goes together in the last of them."""
    singles = [{name: settings} for name, each in TRICKS.items() for settings in each]
    pairs = []
    for first, second in itertools.combinations(TRICKS, 2):
        if not exclude_each_other(first, second):
            pairs.append({first: TRICKS[first][-1], second: TRICKS[second][-1]})
    return [{}, *singles, *pairs]


def identifier(tricks: Mapping[str, Mapping[str, Any]]) -> str:
    return "+".join(f"{name} {settings.get('target', '')}".strip() for name, settings in tricks.items()) or "plain"


def test_pairs_are_refused_by_name_in_any_order() -> None:
    for first, second in itertools.permutations(TRICKS, 2):
        sections = {name: trick_class(name).Settings() for name in (first, second)}
        if exclude_each_other(first, second):
            (reason,) = {trick_class(a).excludes.get(b) for a, b in ((first, second), (second, first))} - {None}
            with pytest.raises(RecipeError, match=f"(?=.*{first})(?=.*{second})(?=.*{reason})"):
                build_tricks(sections)
        else:
            assert len(build_tricks(sections)) == 2
    together = {frozenset(tricks) for tricks in combinations() if len(tricks) == 2}
    assert {frozenset({"fgm", "r_drop"}), frozenset({"pgd", "r_drop"})} <= together


class Killed(BaseException):
    pass


def figures(model: Model) -> dict[str, float]:
    items = items_of(model) if isinstance(model, Matcher) else items_of(model)[:3]
    return {"f1": -float(losses_of(model, items).sum())}


def train(
    name: str, folder: Path, tricks: Mapping[str, Mapping[str, Any]], *, seed: int = 1, kill_at: int = -1,
    resume: bool = False,
) -> str:  # fmt: skip
    model = tiny.build(name, SETTINGS[name], seed)
    trained = tiny.trainer(
        model, folder, tricks=tricks, seed=seed, epochs=3, batch_size=3, accumulation=2, save_every=3, clip=1.0,
        evaluate=figures, resume=resume, items=items_of(model),
        optimizer={"learning_rate": 0.01} if isinstance(model, Matcher) else None,
    )  # fmt: skip
    if kill_at >= 0:
        plain = trained.optimizer.step

        def step(*arguments: Any) -> Any:
            if trained.progress.step == kill_at:
                raise Killed
            return plain(*arguments)

        trained.optimizer.step = step  # type: ignore[method-assign]
        with pytest.raises(Killed):
            trained.fit()
        return ""
    trained.fit()
    return tensors_sha256(model.state_dict())


@pytest.mark.parametrize(("name", "tricks"), walked())
def test_same_seed_same_run_and_a_killed_run_ends_in_the_same_bits(
    name: str, tricks: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    whole = train(name, tmp_path / "whole", tricks)
    for kill_at in (1, 4):
        cut = tmp_path / f"cut{kill_at}"
        train(name, cut, tricks, kill_at=kill_at)
        assert (
            train(name, cut, tricks, resume=kill_at == 4) == whole
        )  # at 1 nothing is saved: a start from the beginning
    losses = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert all(torch.isfinite(torch.tensor(record["loss"])) for record in losses if "loss" in record)


@every_model
def test_seeds_and_tricks_matter(name: str, tmp_path: Path) -> None:
    plain = train(name, tmp_path / "plain", {})
    others = [train(name, tmp_path / "seed", {}, seed=2)]
    for trick, (settings, *_) in TRICKS.items():
        if trick == "ewc" and not has_distribution(name):
            continue
        if trick == "flooding" and name in FLOODS:
            settings = {"level": FLOODS[name]}
        others.append(train(name, tmp_path / trick, {trick: settings}))
    assert len({plain, *others}) == len(others) + 1


@pytest.mark.parametrize("name", sorted(ALL_TRICKS))
def test_the_order_of_tricks_in_a_recipe_means_nothing(name: str, tmp_path: Path) -> None:
    pairs = [tricks for tricks in combinations() if len(tricks) == 2][:2]
    for number, tricks in enumerate(pairs):
        turned = dict(reversed(tricks.items()))
        assert train(name, tmp_path / f"{number}a", tricks) == train(name, tmp_path / f"{number}b", turned)
