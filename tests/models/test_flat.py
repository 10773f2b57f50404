"""FLAT as a user has it: a lexicon that can be changed at any time, texts of any length and content, going on, saving."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hanzoo.data.document import Document
from hanzoo.data.lexicon import Lexicon
from hanzoo.data.randomness import generator, reseed
from hanzoo.data.vocabulary import NUM_SPECIAL, UNKNOWN
from hanzoo.errors import DataError, RecipeError
from hanzoo.models.flat import Flat
from hanzoo.models.layers.flat_tagger import LEXICON_FILE, FlatLayer
from hanzoo.models.model import load_model
from hanzoo.training.optimizers import OptimizerSettings, parameter_groups
from tests import tiny
from tests.references import flat as reference

pytestmark = pytest.mark.usefixtures("deterministic", "lexicons")

SMALL: dict[str, Any] = {"lexicon": ["tiny-words"], "dimension": 8, "width": 16, "num_heads": 2, "feed_forward": 24}
QUIET = dict.fromkeys(
    ["dropout_embedding", "dropout_word", "dropout_feed_forward", "dropout_hidden", "unknown_rate"], 0.0
)
RELEASE = {
    "four_positions": False, "key_projection": False, "output_projection": False, "scaled": False, "residual": False,
    "shared_norm": True,
}  # fmt: skip
TEXTS = [document.text for document in tiny.DOCUMENTS]


def model_of(**settings: Any) -> Flat:
    made = tiny.build("flat", SMALL | settings)
    assert isinstance(made, Flat)
    return made.eval()


def batch_of(model: Flat, *texts: str) -> Any:
    return model.collate([model.featurize(Document(text)) for text in texts])


@torch.no_grad()
def emissions(model: Flat, text: str) -> Tensor:
    """(length, tags) of one text."""
    found: Tensor = model(batch_of(model, text))[0, : len(text)]
    return found


def words_of(model: Flat, text: str) -> list[str]:
    """The words found in a text, by their rows."""
    features = model.featurize(Document(text))
    found = [model.lexicon.word(row - NUM_SPECIAL) for row in features.words.tolist()]
    for word, start, end in zip(found, features.starts.tolist(), features.ends.tolist(), strict=True):
        assert model.lexicon.form(text[start:end]) == model.lexicon.form(word)
    return found


def vector(model: Flat, word: str) -> Tensor:
    """What the word table says of a word."""
    return model.words(torch.tensor(model.lexicon.id_of(word) + NUM_SPECIAL)).detach()


def trained(model: Flat, folder: Path, epochs: int = 2, items: Iterable[Document] = tiny.DOCUMENTS, **how: Any) -> Flat:
    items = list(items)
    made = tiny.trainer(model, folder, items=items, epochs=epochs, optimizer={"learning_rate": 0.03}, **how)
    made.evaluate = lambda _: {"f1": float(made.progress.step)}  # the last epoch is the best
    made.fit()
    return model.eval()


@pytest.fixture(scope="module")
def learnt(lexicons: Path, tmp_path_factory: pytest.TempPathFactory) -> Flat:
    """A model that has learnt the sentences; tests leave it as it is, or take a copy."""
    return trained(model_of(**QUIET), tmp_path_factory.mktemp("learnt"), 25)


@pytest.fixture
def saved(learnt: Flat, tmp_path: Path) -> Callable[[], Flat]:
    """Gives copies of it, loaded from a folder."""
    folder = tmp_path / "saved"
    folder.mkdir()
    learnt.save(folder)

    def load() -> Flat:
        loaded = load_model(folder)
        assert isinstance(loaded, Flat)
        return loaded

    return load


# What is built.


def test_the_network_is_that_of_the_reference() -> None:
    """From projections to emissions, two layers, for the paper's and the release's kind."""
    for kind in ({}, RELEASE):
        model = model_of(num_layers=2, **kind).double()
        text = "长河科技在南京市长江大桥"
        batch = batch_of(model, text, "南京市长江大桥上的云山银行")
        features = model.featurize(Document(text))
        assert len(features.words) > 7
        layers = []
        for layer in model.layers:
            assert isinstance(layer, FlatLayer)
            weights = {name.removeprefix("attention."): value for name, value in layer.state_dict().items()}
            renamed = {"w0": "inner", "w1": "outer"}
            weights |= {
                f"{new}.{part}": weights[f"{old}.{part}"] for new, old in renamed.items() for part in ("weight", "bias")
            }
            layers.append(weights | {"key.bias": torch.zeros(16, dtype=torch.float64)})
        with torch.no_grad():
            characters = model.character_projection(model.embed(batch.characters, batch.bigrams))[0, : len(text)]
            words = model.word_projection(model.words(batch.words))[0, : len(features.words)]
            hidden = reference.flat(
                characters,
                words,
                list(zip(features.starts.tolist(), features.ends.tolist(), strict=True)),
                layers,
                num_heads=2,
                four_positions=model.config.four_positions,
                scaled=model.config.scaled,
                residual=model.config.residual,
                shared_norm=model.config.shared_norm,
            )
            found = model(batch)[0, : len(text)]
        assert torch.allclose(found, model.emission(hidden), rtol=0, atol=1e-10)
        others = [model.emission(reference.flat(
            characters, words, [(0, 2)] * len(words), layers, num_heads=2, four_positions=model.config.four_positions,
            scaled=model.config.scaled, residual=model.config.residual, shared_norm=model.config.shared_norm,
        ))]  # fmt: skip
        assert (others[0] - found).abs().max() > 1e-3


def test_words_that_train_holds_are_learnt_and_the_others_frozen(tmp_path: Path) -> None:
    model = model_of()
    learnt = [model.lexicon.word(id) for id in range(model.words.num_trained - NUM_SPECIAL)]
    whole = "\n".join(TEXTS)
    assert sorted(learnt) == sorted(word for word in tiny.WORDS if word in whole)
    frozen = [word for word in tiny.WORDS if word not in learnt]
    assert len(frozen) > 10
    assert learnt.index("云山银行") < learnt.index("成都")  # the commoner first
    before = {word: vector(model, word) for word in tiny.WORDS}
    composed = model.composer([*frozen], model.character_vocabulary)
    assert torch.equal(torch.stack([before[word] for word in frozen]), composed.half().float())

    trained(model, tmp_path)
    assert all(torch.equal(vector(model, word), before[word]) for word in frozen)
    assert all(not torch.equal(vector(model, word), before[word]) for word in learnt)
    assert {name for name, _ in model.named_parameters() if name.startswith("words")} == {"words.weight"}


def test_only_train_is_read() -> None:
    """Words of dev are not learnt, and characters of dev are unknown."""
    dev = [tiny.marked("⟨address|南京⟩市长去⟨address|台州⟩")]
    of = tiny.data(tiny.DOCUMENTS, dev)
    with_dev, without = (tiny.build("flat", SMALL, of=data) for data in (of, tiny.data()))
    assert isinstance(with_dev, Flat)
    assert with_dev.lexicon.id_of("南京") >= with_dev.words.num_trained - NUM_SPECIAL
    assert with_dev.character_vocabulary.encode("州台").tolist()[1] == UNKNOWN
    assert all(
        torch.equal(a, b) for a, b in zip(with_dev.state_dict().values(), without.state_dict().values(), strict=True)
    )


def test_the_words_of_the_vectors_are_the_lexicon_where_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "some.vec"
    drawn = np.random.default_rng(3).normal(size=(7, 4)).round(3)
    words = ["北", "京", "北京", "上海", "南京市", "长江大桥", "云山银行"]
    rows = [f"{word} {' '.join(map(str, row))}" for word, row in zip(words, drawn, strict=True)]
    path.write_text("\n".join(["7 4", *rows]) + "\n", encoding="utf-8")
    model = model_of(lexicon=[], vectors=str(path), max_word_length=3)
    assert sorted(model.lexicon) == sorted(["北京", "上海", "南京市"])
    assert torch.allclose(vector(model, "北京"), torch.tensor(drawn[2]).float())
    assert torch.equal(vector(model, "南京市"), torch.tensor(drawn[4]).half().float())
    assert list(model.inputs) == ["some.vec"]
    assert any(note.startswith("lexicon: 3 words, 2 of them in train") for note in model.notes)
    scaled = model_of(lexicon=[], vectors=str(path), max_word_length=3, vector_scale=2.0)
    ratio = vector(scaled, "北京") / vector(model, "北京")
    assert torch.allclose(ratio, ratio[0].expand(4), rtol=1e-4)
    assert ratio[0] > 1.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 18, "num_heads": 4}, r"model\.width: must be even and a multiple of num_heads \(4\), but is 18"),
        ({"width": 15, "num_heads": 3}, r"model\.width: must be even and a multiple of num_heads \(3\), but is 15"),
        ({"lexicon": []}, r"model\.lexicon: must name a list of words where model\.vectors is left out, but is empty"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        model_of(**settings)


def test_a_lexicon_that_is_not_there_is_named() -> None:
    with pytest.raises(DataError, match="no-such-list: a lexicon must be a file"):
        model_of(lexicon=["no-such-list"])


# The lexicon is changed.


def test_saved_and_loaded_it_predicts_the_same_bits(learnt: Flat, saved: Callable[[], Flat], tmp_path: Path) -> None:
    loaded = saved()
    for text in [*TEXTS, "南京市长江大桥"]:
        assert torch.equal(emissions(loaded, text), emissions(learnt, text))
    assert list(map(repr, loaded.predict(TEXTS))) == list(map(repr, learnt.predict(TEXTS)))
    assert sum(len(text.entities) for text in loaded.predict(TEXTS)) > 10
    text = (tmp_path / "saved" / LEXICON_FILE).read_text(encoding="utf-8")
    assert "\n云山银行\t\ttiny-words\n" in text
    assert list(loaded.lexicon) == list(learnt.lexicon)
    assert loaded.words.num_trained == learnt.words.num_trained


@pytest.mark.parametrize("kind", [{}, RELEASE], ids=["paper", "release"])
@pytest.mark.parametrize("bigrams", [True, False])
def test_every_kind_can_be_saved(kind: dict[str, Any], bigrams: bool, tmp_path: Path) -> None:
    model = model_of(num_layers=2, use_bigrams=bigrams, **kind)
    model.save(tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, Flat)
    assert torch.equal(emissions(loaded, TEXTS[5]), emissions(model, TEXTS[5]))
    assert (tmp_path / "bigrams.json").exists() == bigrams


HOLDS, LACKS = "新的豆豆云在杭州", TEXTS[5]


def test_a_word_that_is_added_is_found_from_the_next_text_on(saved: Callable[[], Flat]) -> None:
    model, plain = saved(), saved()
    before = {text: emissions(model, text) for text in (HOLDS, LACKS)}
    assert model.lexicon.add(["豆豆云", "无处可寻"]) == 2
    assert words_of(model, HOLDS) == ["豆豆云"]
    assert not torch.equal(emissions(model, HOLDS), before[HOLDS])
    assert torch.equal(emissions(model, LACKS), before[LACKS])
    wanted = model.composer(["豆豆云"], model.character_vocabulary)[0]
    assert torch.equal(vector(model, "豆豆云"), wanted.half().float())
    assert len(model.words.frozen) == len(plain.words.frozen) + 2

    # in the same batch, too, the other texts keep their bits
    def company(of: Flat) -> Tensor:
        with torch.no_grad():
            found: Tensor = of(batch_of(of, HOLDS, LACKS))
        return found

    assert torch.equal(company(model)[1], company(plain)[1])
    assert not torch.equal(company(model)[0], company(plain)[0])

    model.lexicon.remove("豆豆云")
    assert words_of(model, HOLDS) == []
    assert torch.equal(emissions(model, HOLDS), before[HOLDS])
    model.lexicon.add("豆豆云")  # a new id, the same vector
    assert words_of(model, HOLDS) == ["豆豆云"]
    assert torch.equal(vector(model, "豆豆云"), wanted.half().float())


def test_a_word_with_a_label_as_its_kind_is_read_as_that(tmp_path: Path) -> None:
    model = model_of(**QUIET, kind_rate=0.5)
    model.save(tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, Flat)
    loaded.lexicon.add(["豆豆云", "狗狗云", "猫猫云"], kinds=["company", "tiny-words", None])
    assert words_of(loaded, HOLDS) == ["豆豆云"]
    assert model.kinds is not None
    row = model.kinds.weight[model.tag_set.labels.index("company")].detach()
    assert torch.equal(vector(loaded, "豆豆云"), row.half().float())
    composed = model.composer(["狗狗云", "猫猫云"], model.character_vocabulary).half().float()
    assert torch.equal(torch.stack([vector(loaded, "狗狗云"), vector(loaded, "猫猫云")]), composed)

    plain = model_of(**QUIET)  # the control: where no kind was learnt it says nothing
    plain.lexicon.add("豆豆云", kinds=["company"])
    assert words_of(plain, HOLDS) == ["豆豆云"]
    assert torch.equal(
        vector(plain, "豆豆云"), plain.composer(["豆豆云"], plain.character_vocabulary)[0].half().float()
    )


def test_a_share_of_the_entities_is_read_as_if_they_had_been_added() -> None:
    model = model_of(**QUIET, kind_rate=0.5).train()
    assert model.kinds is not None
    documents = list(tiny.DOCUMENTS) * 8
    features = [model.featurize(document) for document in documents]

    def collated(order: list[int], draw: Any) -> Any:
        return model.collate([features[item] for item in order], draw, order)

    def draw(item: int) -> np.random.Generator:
        return generator(1, "input", item)

    order = list(range(len(documents)))
    batch, other = collated(order, draw), collated(order[::-1], draw)
    for name in ("kinds", "words", "characters"):
        assert torch.equal(getattr(batch, name), getattr(other, name).flip(0))  # each item its own
    assert (batch.kinds[batch.words == 0] == -1).all()
    as_kind, as_new, hidden, entities = 0, 0, [], 0
    for row, (document, item) in enumerate(zip(documents, features, strict=True)):
        spans = {(span.start, span.end): span.label for span in document.spans}
        entities += len(spans)
        words = int((batch.words[row] > 0).sum())
        at = slice(batch.positions.seq, batch.positions.seq + words)
        starts = batch.positions.starts[row, at].tolist()
        lengths = [batch.positions.lengths[kind] + 1 for kind in batch.positions.kinds[row, at].tolist()]
        allowed = torch.zeros_like(batch.mask[row])
        for place, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            end = start + length
            label = int(batch.kinds[row, place])
            if place >= len(item.words):
                assert label >= 0
                as_new += 1
            if label >= 0:
                assert model.tag_set.labels[label] == spans[start, end]
                as_kind += 1
                allowed[start:end] = True
                hidden.append(bool((batch.characters[row, start:end] == UNKNOWN).all()))
            else:
                assert batch.words[row, place] == item.words[place]
        assert not (batch.characters[row] == UNKNOWN)[~allowed].any()
    assert 0.3 < as_kind / entities < 0.7
    assert 0 < as_new < as_kind
    assert 0 < sum(hidden) < len(hidden)
    assert collated(order, None).kinds is None  # outside of training

    (model(batch) ** 2).sum().backward()
    assert model.kinds.weight.grad is not None
    assert model.kinds.weight.grad.abs().sum(1).all()


def test_absent_words_change_no_prediction(saved: Callable[[], Flat]) -> None:
    model = saved()
    before = list(map(repr, model.predict(TEXTS)))
    model.lexicon.add(["无处可寻", "豆豆云", "ｚzz"])
    assert list(map(repr, model.predict(TEXTS))) == before
    model.lexicon.add(["云山银行上"])  # the control: one that occurs
    assert list(map(repr, model.predict(TEXTS))) != before


def test_a_learnt_word_that_is_removed_is_no_longer_read(saved: Callable[[], Flat]) -> None:
    model = saved()
    before = {text: emissions(model, text) for text in TEXTS}
    assert "长河科技" in words_of(model, TEXTS[3])
    model.lexicon.remove("长河科技")
    for text in TEXTS:
        assert torch.equal(emissions(model, text), before[text]) == ("长河科技" not in text)


def test_a_list_is_loaded(saved: Callable[[], Flat], tmp_path: Path) -> None:
    model = saved()
    path = tmp_path / "mine.txt"
    path.write_text("豆豆云\t3\tproduct\n北京\n", encoding="utf-8")
    before = emissions(model, HOLDS)
    assert model.lexicon.load(path) == 1
    assert not torch.equal(emissions(model, HOLDS), before)


@pytest.mark.parametrize("read_first", [True, False], ids=["a text is read first", "saved at once"])
def test_a_changed_lexicon_is_saved(saved: Callable[[], Flat], tmp_path: Path, read_first: bool) -> None:
    model = saved()
    model.lexicon.add(["豆豆云", "西安的票"])
    model.lexicon.remove(["北京", "西安的票"])
    if read_first:
        emissions(model, HOLDS)
    model.save(tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, Flat)
    assert words_of(loaded, HOLDS) == ["豆豆云"]
    assert "北京" not in loaded.lexicon
    for text in [*TEXTS, HOLDS]:
        assert torch.equal(emissions(loaded, text), emissions(model, text))
    assert not torch.equal(emissions(loaded, TEXTS[0]), emissions(saved(), TEXTS[0]))
    loaded.lexicon.add("票卖完了")  # and so on
    loaded.save(tmp_path)
    again = load_model(tmp_path)
    assert isinstance(again, Flat)
    assert torch.equal(emissions(again, TEXTS[10]), emissions(loaded, TEXTS[10]))
    assert not torch.equal(emissions(again, TEXTS[10]), emissions(model, TEXTS[10]))


def test_a_word_of_unknown_characters_gets_a_vector(saved: Callable[[], Flat]) -> None:
    model = saved()
    model.lexicon.add(["𠮷😀", "鱻龘"])
    assert vector_of(model, "𠮷😀").isfinite().all()
    assert torch.equal(vector_of(model, "𠮷😀"), vector_of(model, "鱻龘"))  # both: twice "unknown"
    assert words_of(model, "一𠮷😀鱻龘") == ["𠮷😀", "鱻龘"]


def vector_of(model: Flat, word: str) -> Tensor:
    """The same once a text was read."""
    model.featurize(Document(word))
    return vector(model, word)


# Texts of any kind.


def long_text(length: int) -> str:
    alphabet = [*tiny.WORDS, *"的了 \t\n\u3000\u200b\0AＡ１é😀\u200d𠮷\ud800"]
    drawn = generator(1, "text").integers(len(alphabet), size=length)
    return "".join(alphabet[number] for number in drawn)[:length]


@pytest.mark.parametrize(
    "text", ["", "北", "不好", " ", "\t\n \u3000", "😀", "在𠮷王小明😀𠮷工作", long_text(10_000)], ids=len
)
def test_texts_of_any_kind_come_back_with_exact_offsets(learnt: Flat, text: str) -> None:
    (found,) = learnt.predict([text])
    assert found.text == text
    assert all(text[entity.start : entity.end] == entity.text for entity in found.entities)
    features = learnt.featurize(Document(text))
    assert features.length == len(text)
    (tags,) = learnt.predicted_tags([features])
    assert len(tags) == len(text)
    if len(text) > 100:
        assert len(found.entities) > 50
        assert len(features.words) > 500
    if "王小明" in text:
        assert "王小明" in words_of(learnt, text)
    if text == "在𠮷王小明😀𠮷工作":
        assert words_of(learnt, text) == ["王小明", "小明", "😀𠮷", "工作"]
        assert found.entities  # behind and before characters outside the first plane


def test_batched_equals_one_by_one(learnt: Flat) -> None:
    texts = ["", "北", "不好", *TEXTS, "在𠮷王小明😀𠮷工作", long_text(300)]
    together = [
        (text.text, [(entity.span, entity.confidence) for entity in text.entities]) for text in learnt.predict(texts)
    ]
    for (text, entities), alone in zip(together, (learnt.predict([text])[0] for text in texts), strict=True):
        assert text == alone.text
        assert [span for span, _ in entities] == [entity.span for entity in alone.entities]
        for (_, confidence), entity in zip(entities, alone.entities, strict=True):
            assert confidence == pytest.approx(entity.confidence, abs=1e-5)
    with torch.no_grad():
        output = learnt(batch_of(learnt, *texts[1:]))
    for row, text in zip(output, texts[1:], strict=True):
        assert torch.allclose(row[: len(text)], emissions(learnt, text), rtol=0, atol=1e-4)


def test_a_batch_without_any_word_can_be_learnt_and_attacked(tmp_path: Path) -> None:
    items = [tiny.marked("⟨name|丁⟩去", 1), tiny.marked("问问", 2)]
    model = tiny.build("flat", SMALL | QUIET)
    assert isinstance(model, Flat)
    assert batch_of(model, *(item.text for item in items)).words.shape == (2, 0)
    before = model.words.weight.detach().clone()
    tricks = {"fgm": {"epsilon": 0.3}, "gradient_penalty": {"strength": 0.5}}
    trained(model, tmp_path, 2, items, tricks={"fgm": tricks["fgm"]})
    trained(model, tmp_path / "more", 2, items, tricks={"gradient_penalty": tricks["gradient_penalty"]})
    assert torch.equal(model.words.weight, before)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


# Going on.


def test_going_on_with_new_words_and_labels(saved: Callable[[], Flat]) -> None:
    previous = saved()
    previous.lexicon.add(["豆豆云", "票卖完了"])  # not read before training goes on
    other = [tiny.marked("⟨地点|台州⟩的南京市⟨product|豆豆云⟩"), tiny.marked("⟨name|王小明⟩在台州")]
    learnt_before = [previous.lexicon.word(id) for id in range(previous.words.num_trained - NUM_SPECIAL)]
    reseed(3, "weights")
    model = Flat.continue_from(previous.config, previous, tiny.data(other, other)).eval()
    learnt = [model.lexicon.word(id) for id in range(model.words.num_trained - NUM_SPECIAL)]
    assert learnt == [*learnt_before, "台州", "南京", "南京市", "豆豆云"]
    assert sorted(model.lexicon) == sorted(previous.lexicon)
    for word in model.lexicon:
        assert torch.equal(vector(model, word), vector(previous, word)), word
    assert model.labels == ("address", "company", "name", "product", "地点")
    assert any("4 new ones" in note for note in model.notes)
    with model.restricted(previous.labels):
        texts = [*TEXTS, *(document.text for document in other), HOLDS]
        assert list(map(repr, model.predict(texts))) == list(map(repr, previous.predict(texts)))
    model.lexicon.add("豆豆")
    assert torch.equal(vector_of(model, "豆豆"), model.composer(["豆豆"], model.character_vocabulary)[0].half().float())
    previous.lexicon.add("豆豆")
    assert torch.equal(vector_of(model, "豆豆"), vector_of(previous, "豆豆"))


def test_going_on_keeps_what_kinds_mean() -> None:
    previous = model_of(**QUIET, kind_rate=0.2)
    more = [*tiny.DOCUMENTS, tiny.marked("⟨product|豆豆云⟩卖完了")]
    model = Flat.continue_from(previous.config, previous, tiny.data(more))
    assert previous.kinds is not None
    assert model.kinds is not None
    known = len(previous.tag_set.labels)
    assert model.tag_set.labels[known:] == ("product",)
    assert torch.equal(model.kinds.weight[:known], previous.kinds.weight)
    assert model.kinds.weight[known].abs().sum() > 0
    plain = Flat.continue_from(previous.config.model_copy(update={"kind_rate": 0.0}), previous, tiny.data())
    assert plain.kinds is None


def test_going_on_leaves_removed_words_out(saved: Callable[[], Flat]) -> None:
    previous = saved()
    gone = previous.lexicon.word(0)
    previous.lexicon.remove([gone, "北京", "南京"])
    previous.lexicon.add("北京")  # again, as a word that is not learnt
    model = Flat.continue_from(previous.config, previous, tiny.data()).eval()
    assert gone not in model.lexicon
    assert "南京" not in model.lexicon
    assert sorted(model.lexicon) == sorted(previous.lexicon)
    for word in model.lexicon:
        assert torch.equal(vector(model, word), vector_of(previous, word)), word
    assert list(map(repr, model.predict(TEXTS))) == list(map(repr, previous.predict(TEXTS)))


def test_going_on_leaves_the_previous_model_alone(saved: Callable[[], Flat], tmp_path: Path) -> None:
    previous = saved()
    before = emissions(previous, TEXTS[5])
    model = Flat.continue_from(previous.config, previous, tiny.data())
    model.lexicon.add("张伟")
    trained(model, tmp_path, 1)
    assert not torch.equal(emissions(model, TEXTS[5]), before)
    assert torch.equal(emissions(previous, TEXTS[5]), before)
    assert "张伟" not in previous.lexicon


# What training does with it.


def test_attack_points_say_which_sample_a_word_is_of() -> None:
    model = model_of()
    batch = batch_of(model, *TEXTS[:3])
    points = model.attack_points(batch)
    assert set(points) == {"characters", "bigrams", "words"}
    numbers = [len(model.featurize(Document(text)).words) for text in TEXTS[:3]]
    assert len(set(numbers)) == 3
    for name, lengths, ids in (
        ("characters", [len(text) for text in TEXTS[:3]], batch.characters),
        ("bigrams", [len(text) for text in TEXTS[:3]], batch.bigrams),
        ("words", numbers, batch.words),
    ):
        point = points[name]
        assert point.module is getattr(model, name)
        assert point.table is point.module.weight
        assert point.samples.shape == ids.shape
        for row, (samples, length) in enumerate(zip(point.samples.tolist(), lengths, strict=True)):
            assert samples == [row] * length + [-1] * (len(samples) - length)
        assert ((ids > 0) == (point.samples >= 0)).all()
    assert "bigrams" not in model_of(use_bigrams=False).attack_points(batch)


def test_depth_rises_from_tables_to_head() -> None:
    model = model_of(num_layers=3)
    depths = {name: model.depth(name) for name, _ in model.named_parameters()}
    assert {
        depths[f"{name}.weight"]
        for name in ("characters", "bigrams", "words", "character_projection", "word_projection")
    } == {0}
    assert [depths[f"layers.{number}.attention.query.weight"] for number in range(3)] == [1, 2, 3]
    assert {depth for name, depth in depths.items() if name.startswith(("crf", "emission"))} == {4}
    groups = parameter_groups(model, OptimizerSettings(layer_decay=0.5))
    assert {group.factor for group in groups} == {1.0, 0.5, 0.25, 0.125, 0.0625}


def test_words_are_hidden_at_their_rate() -> None:
    model = model_of(unknown_rate=0.3)
    features = [model.featurize(document) for document in tiny.DOCUMENTS]
    hidden = total = 0
    for seed in range(30):
        batch = model.collate(features, lambda item, seed=seed: generator(seed, "input", item), list(range(12)))  # type: ignore[misc]
        hidden += int((batch.words == UNKNOWN).sum())
        total += int((batch.words > 0).sum())
    assert 0.25 < hidden / total < 0.35
    assert not (model.collate(features).words == UNKNOWN).any()


@pytest.mark.parametrize(
    "fields",
    [{"label_smoothing": 0.1}, {"multi_sample_dropout": 3}, {"class_weights": 0.5}, {"dropout_attention": 0.3}],
    ids=str,
)
def test_what_the_head_can_do_is_felt_in_training_and_nowhere_else(fields: dict[str, Any], tmp_path: Path) -> None:
    plain, other = model_of(), model_of(**fields)
    assert torch.equal(emissions(other, TEXTS[5]), emissions(plain, TEXTS[5]))
    plain, other = (trained(model, tmp_path / str(i), 1) for i, model in enumerate((plain, other)))
    assert not torch.equal(emissions(other, TEXTS[5]), emissions(plain, TEXTS[5]))
    assert emissions(other, TEXTS[5]).isfinite().all()


def test_a_lexicon_is_not_shared_between_models() -> None:
    first, second = model_of(), model_of()
    first.lexicon.add("豆豆云")
    assert "豆豆云" not in second.lexicon
    assert isinstance(first.lexicon, Lexicon)
