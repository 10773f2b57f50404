"""Bi-encoder, ColBERT and cross-encoder: what they read, that company and padding change nothing, chunks and their gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModel, AutoTokenizer

from hanzoo.data.document import Document, Pair, Triple
from hanzoo.data.randomness import generator, reseed
from hanzoo.data.subwords import quiet
from hanzoo.errors import DataError, RecipeError, RunError
from hanzoo.models.bi_encoder import BiEncoder
from hanzoo.models.colbert import PUNCTUATION, ColBERT
from hanzoo.models.cross_encoder import CrossEncoder, fitted
from hanzoo.models.layers import encoder, text_encoder
from hanzoo.models.layers.text_matcher import TextMatcher, text_number
from hanzoo.models.model import evaluating
from hanzoo.models.objectives.arccse import ArcCSE
from hanzoo.models.objectives.binary import Binary
from hanzoo.models.objectives.cosent import CoSENT
from hanzoo.models.objectives.info_nce import InfoNCE
from hanzoo.models.objectives.triplet import Triplet

pytestmark = pytest.mark.usefixtures("deterministic", "encoders")

TEXTS = [
    "王小明在北京工作",
    "今天下雨",
    "昨天的会开得太长了，没有人记得最后说了什么",
    "张伟和刘洋都在云山银行实习过一年多",
]
PAIRS = [(TEXTS[0], TEXTS[1]), (TEXTS[2], TEXTS[0]), (TEXTS[3], TEXTS[3]), (TEXTS[1], TEXTS[2])]
DATA = SimpleNamespace(train=[Pair(*pair, label=float(number % 2)) for number, pair in enumerate(PAIRS)])
MATCHERS: list[type[Any]] = [BiEncoder, ColBERT, CrossEncoder]
every_matcher = pytest.mark.parametrize("cls", MATCHERS)


def build(cls: type[Any], **settings: Any) -> Any:
    reseed(1, "weights")
    own = {"document_marker": "#"} if cls is ColBERT else {}  # the small vocabulary has one free piece
    return cls.build(cls.Config(**({"encoder": "tiny-bert"} | own | settings)), DATA).eval()


def learning(cls: type[Any], **settings: Any) -> Any:
    """A matcher in training, and what it is trained towards."""
    model = build(cls, **settings)
    model.objective = CoSENT() if cls is not CrossEncoder else Binary()
    return model.train()


def batch_of(model: TextMatcher, items: list[Any] = DATA.train) -> Any:
    return model.collate([model.featurize(item) for item in items])


@every_matcher
def test_scores_do_not_depend_on_the_company(cls: type[Any]) -> None:
    model = build(cls)
    together = model.scores(PAIRS)
    assert np.allclose(together, [model.score(*pair) for pair in PAIRS], rtol=1e-5, atol=1e-5)
    assert np.allclose(together[::-1], model.scores(PAIRS[::-1]), rtol=1e-5, atol=1e-5)
    assert len(set(together.round(4))) == len(PAIRS)


@every_matcher
@pytest.mark.parametrize("text", ["", "   ", "\u3000"])
def test_a_text_without_pieces_is_refused(cls: type[Any], text: str) -> None:
    model = build(cls)
    with pytest.raises(DataError, match="a text to compare must hold a character that is no blank"):
        model.score(TEXTS[0], text)
    model.objective = CoSENT()
    with pytest.raises(DataError, match=r"pairs\.tsv:7: a text to compare"):
        model.featurize(Pair(text, TEXTS[0], source="pairs.tsv:7"))


@every_matcher
def test_what_is_no_list_of_texts_is_refused(cls: type[Any]) -> None:
    model = build(cls)
    with pytest.raises(TypeError, match="a text must be a string, but is NoneType"):
        model.scores([(TEXTS[0], None)])
    with pytest.raises(TypeError, match=r"a text must be a string, but is list\. For many pairs write scores\("):
        model.score([TEXTS[0]], [TEXTS[1]])
    for pairs in ((TEXTS[0], TEXTS[1]), ["今天", "下雨"], [(TEXTS[0],)], [(TEXTS[0], TEXTS[1], TEXTS[2])]):
        with pytest.raises(TypeError, match=r"a pair must be two strings, but is .*\. Write \[\(first, second\)\]"):
            model.scores(pairs)
    if cls is BiEncoder:
        with pytest.raises(TypeError, match=r"must be a list of strings, but are one string\. Write \[text\]"):
            model.encode(TEXTS[0])


@every_matcher
def test_texts_of_any_content_have_a_score(cls: type[Any]) -> None:
    model = build(cls)
    assert np.isfinite(model.scores([("a\ud83d", "😀𠮷"), ("[SEP]", "[PAD][MASK]"), ("好" * 2000, "。")])).all()


@every_matcher
def test_the_batch_scores_what_scores_does(cls: type[Any]) -> None:
    model = learning(cls).eval()
    with torch.no_grad():
        compared = model(batch_of(model)).paired(0, 1)
    assert np.allclose(compared.numpy(), model.scores(PAIRS), rtol=1e-5, atol=1e-5)


# Bi-encoder.


def test_a_cosine_is_none_above_1() -> None:
    texts = [f"{text}{number}" for text in TEXTS for number in range(10)]
    model = build(BiEncoder)
    found = model.scores([(text, text) for text in texts])
    assert found.max() <= 1.0
    assert found.min() >= 1.0 - 1e-12
    vectors = model.encode(texts).astype(np.float64)
    assert np.square(vectors).sum(1).max() > 1.0  # the control: float32 rounds them to more than length 1


@pytest.mark.parametrize("pooling", ["mean", "cls", "first_last", "pooler"])
def test_vectors_are_those_of_transformers(encoders: Path, pooling: str) -> None:
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(str(encoders / "tiny-bert"))
        plain = AutoModel.from_pretrained(str(encoders / "tiny-bert"), dtype=torch.float32).eval()
    model = build(BiEncoder, pooling=pooling)
    if pooling == "pooler":
        plain.pooler.load_state_dict(model.encoder.model.pooler.state_dict())
    expected = []
    for text in TEXTS:
        with torch.no_grad():
            output = plain(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        layers = [states[0].double() for states in output.hidden_states]
        expected.append(
            {
                "mean": layers[-1].mean(0),
                "cls": layers[-1][0],
                "first_last": (layers[1].mean(0) + layers[-1].mean(0)) / 2,
                "pooler": output.pooler_output[0].double(),
            }[pooling]
        )
    found = model.encode(TEXTS, normalised=False)
    assert np.allclose(found, torch.stack(expected).numpy(), rtol=1e-4, atol=1e-5)
    assert np.allclose(np.linalg.norm(model.encode(TEXTS), axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "pooler"])
def test_a_saved_bi_encoder_is_the_same(tmp_path: Path, pooling: str) -> None:
    model = build(BiEncoder, pooling=pooling)
    model.objective = CoSENT()
    model.save(tmp_path)
    assert np.array_equal(BiEncoder.load(tmp_path).scores(PAIRS), model.scores(PAIRS))


def test_longer_texts_are_cut_and_said() -> None:
    model = build(BiEncoder, max_pieces=8)
    assert model.notes == ("6 of 8 texts have more than 6 pieces: the rest of each is not read",)
    assert np.array_equal(model.encode([TEXTS[0]]), model.encode([TEXTS[0][:6] + "以及"]))
    assert not np.array_equal(model.encode([TEXTS[0]]), model.encode(["很" + TEXTS[0]]))


@pytest.mark.parametrize("max_pieces", [8, 12, None])
def test_what_colbert_cuts_is_said(max_pieces: int | None) -> None:
    model = build(ColBERT, max_pieces=max_pieces, query_pieces=10)
    queries, documents = min(7, (max_pieces or 99) - 2), None if max_pieces is None else max_pieces - 3
    assert (model.query_limit, model.document_limit) == (queries, documents or model.encoder.max_length - 1)
    text = (TEXTS[2] + TEXTS[3]) * 30
    for limit, place, notes in (
        (model.query_limit, 0, model.query_notes),
        (model.document_limit, 1, model.corpus_notes),
    ):
        fits, over = text[:limit], text[: limit + 1]
        pairs = [[TEXTS[1], TEXTS[1]] for _ in range(2)]
        pairs[0][place], pairs[1][place] = fits, over
        cut = [bool(sum(longer for longer, _ in model.cut_counts([Pair(*pair)]).values())) for pair in pairs]
        assert cut == [bool(notes([one])) for one in (fits, over)] == [False, True]
        assert model.score(*pairs[0]) == model.score(*pairs[1])
        pairs[1][place] = fits[:-1] + "很"
        assert model.score(*pairs[0]) != model.score(*pairs[1])


def test_what_a_cross_encoder_may_cut_is_said() -> None:
    model = build(CrossEncoder, max_pieces=13)
    assert model.room == 10
    assert model.query_notes([TEXTS[2][:5]]) == model.corpus_notes([TEXTS[2][:5]]) == ()
    (said,) = model.query_notes([TEXTS[2][:6]])
    assert said.startswith("1 of 1 queries have more than 5 pieces: what does not fit beside the other text")
    assert model.score(TEXTS[2][:6], TEXTS[3][:5]) == model.score(TEXTS[2][:5] + "很", TEXTS[3][:5])


@pytest.mark.parametrize(("cls", "least"), [(BiEncoder, 3), (ColBERT, 4), (CrossEncoder, 5)])
def test_a_limit_leaves_room_for_a_piece_of_each_text(cls: type[Any], least: int) -> None:
    with pytest.raises(ValidationError, match=f"greater than or equal to {least}"):
        cls.Config(encoder="tiny-bert", max_pieces=least - 1)
    model = build(cls, max_pieces=least)
    assert model.score("今", "王") != model.score("今", "天")


def test_a_query_must_fit_into_the_encoder() -> None:
    most = build(ColBERT).encoder.max_length + 2
    text = TEXTS[2] * (most // len(TEXTS[2]) + 1)
    assert np.isfinite(build(ColBERT, query_pieces=most).score(text, text))
    with pytest.raises(
        RecipeError, match=rf"model\.query_pieces: must be {most} at most, .* but is {most + 1}\. Lower it"
    ):
        build(ColBERT, query_pieces=most + 1)


@every_matcher
def test_an_error_leaves_a_model_in_training(cls: type[Any]) -> None:
    model = build(cls).train()
    with pytest.raises(DataError):
        model.scores([(TEXTS[0], " ")])
    with pytest.raises(RuntimeError, match="stop"), evaluating(model):
        assert not model.training
        raise RuntimeError("stop")
    assert model.training


@every_matcher
@pytest.mark.parametrize("items", [DATA.train, [Triple(TEXTS[0], TEXTS[3], (TEXTS[2], TEXTS[1]))]])
def test_the_length_of_an_item_is_what_is_read_of_it(cls: type[Any], items: list[Any]) -> None:
    model = build(cls, max_pieces=16)
    for item in items:
        for model.objective in (None, Triplet()):
            features = model.featurize(item)
            rows = model.collate([features]).rows
            assert features.length == len(rows.lengths) * max(rows.lengths)


@pytest.mark.parametrize("cls", [ColBERT, CrossEncoder])
@pytest.mark.parametrize("rows_at_once", [None, 1])
def test_a_frozen_encoder_stays_as_it_is(cls: type[Any], rows_at_once: int | None) -> None:
    items = [Pair("今天下雨", TEXTS[3] * 3, 1.0), Pair("下雨", "今天", 0.0), Pair("今天", "王", 1.0)]
    model = build(cls, freeze_epochs=1, rows_at_once=rows_at_once)
    model.objective = Binary()
    looked_up: list[int] = []
    model.encoder.table.register_forward_hook(lambda *given: looked_up.append(1))
    learnt = {}
    for epoch in (0, 1):
        model.train().begin_epoch(epoch)
        model.zero_grad()
        batch = model.collate([model.featurize(item) for item in items])
        model.losses(model(batch), batch)["binary"].sum().backward()
        learnt[epoch] = {name.partition(".")[0] for name, weight in model.named_parameters() if weight.grad is not None}
        assert looked_up  # where an attack adds to it
        looked_up.clear()
    assert "encoder" in learnt[1]
    assert learnt[0] == learnt[1] - {"encoder"}


# Chunks.


@every_matcher
@pytest.mark.parametrize("size", [1, 3])
def test_the_gradient_of_chunks_that_are_read_again(cls: type[Any], size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients(seed: int) -> torch.Tensor:
        model = learning(cls, rows_at_once=size)
        reseed(seed, "dropout")
        batch = batch_of(model)
        sum(values.sum() for values in model.losses(model(batch), batch).values()).backward()  # type: ignore[union-attr]
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    again = gradients(1)
    calls: list[Any] = []

    def plainly(function: Callable[..., Any], *given: Any, use_reentrant: bool) -> Any:
        calls.append(given)
        return function(*given)

    monkeypatch.setattr(text_encoder, "checkpoint", plainly)
    once = gradients(1)
    rows = len(PAIRS) if cls is CrossEncoder else 2 * len(PAIRS)
    assert len(calls) >= -(-rows // size)
    assert all(len(mask) <= size for mask, _ in calls)
    assert sum(len(mask) for mask, _ in calls) == rows
    assert torch.allclose(again, once, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(again, gradients(2), rtol=1e-2, atol=1e-4)  # dropout was on


# Rows of like length.


@every_matcher
def test_short_and_long_rows_are_read_apart(cls: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[list[int]] = []

    def gradients() -> tuple[torch.Tensor, torch.Tensor]:
        reseed(1, "weights")
        model = learning(cls, **({"dropout": 0.0} if cls is CrossEncoder else {}), encoder_dropout=0.0)
        read = model.encoder.read
        shapes.append([])

        def seen(mask: torch.Tensor, **inputs: Any) -> Any:
            shapes[-1].append(mask.shape[1])
            return read(mask, **inputs)

        monkeypatch.setattr(model.encoder, "read", seen)
        batch = batch_of(model, [*DATA.train, Pair("好", "坏", label=1.0), Pair("雨", "下", label=0.0)])
        losses = model.losses(model(batch), batch)
        torch.stack([values.sum() for values in losses.values()]).sum().backward()
        found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        return torch.cat([values.detach().flatten() for values in losses.values()]), found

    apart = gradients()
    monkeypatch.setattr(text_encoder, "WORTH_A_PASS", 0.0)
    together = gradients()
    assert len(shapes[0]) > 1
    assert min(shapes[0]) < max(shapes[0])
    assert shapes[1] == [max(shapes[0])]
    for one, other in zip(apart, together, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("lengths", "most", "groups"),
    [
        ((9, 8, 7), None, [[0, 1, 2]]),
        ((5, 40, 6, 39), None, [[1, 3], [2, 0]]),
        ((40, 40, 40, 5), None, [[0, 1, 2, 3]]),  # a pass of its own saves little
        ((9, 8, 7), 2, [[0, 1], [2]]),
        ((40, 5, 40), 2, [[0, 2], [1]]),
        ((7,), 1, [[0]]),
    ],
)
def test_which_rows_are_read_together(lengths: tuple[int, ...], most: int | None, groups: list[list[int]]) -> None:
    assert text_encoder.of_like_length(lengths, most) == groups


@pytest.mark.parametrize("cls", [BiEncoder, CrossEncoder])
def test_on_a_processor_no_column_of_padding_alone_is_trained_on(
    cls: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = learning(cls)
    masks: list[torch.Tensor] = []
    read = model.encoder.read

    def seen(mask: torch.Tensor, **inputs: Any) -> Any:
        masks.append(mask)
        return read(mask, **inputs)

    monkeypatch.setattr(model.encoder, "read", seen)
    batch = batch_of(model, DATA.train[:1])
    model(batch)
    assert not batch.rows.mask.any(0).all()  # the batch itself has such columns
    assert masks
    assert all(mask.any(0).all() for mask in masks)


# Views.


def test_two_views_of_one_text_differ_by_dropout_alone() -> None:
    model = learning(BiEncoder)
    model.objective = InfoNCE()
    batch = batch_of(model, [Document(text) for text in TEXTS])
    first, second = model(batch).views
    assert (first - second).abs().max() > 1e-3
    model.eval()
    first, second = model(batch).views
    assert torch.allclose(first, second, atol=1e-6)


def test_a_text_too_short_for_a_triplet_says_nothing_to_either_loss() -> None:
    model = build(BiEncoder, encoder_dropout=0.1).train()
    model.objective = ArcCSE(least_pieces=10)
    short = model.collate([model.featurize(Document(text)) for text in TEXTS[:3]])
    assert [len(text) >= 10 for text in TEXTS] == [False, False, True, True]
    passes = [model(short) for _ in range(2)]
    assert not torch.equal(passes[0].paired(0, 2), passes[1].paired(0, 2))
    said = model.objective.agreement(*passes, short)["triplet"]
    assert said[:2].tolist() == [0, 0]
    assert said[2] > 0
    model.objective = ArcCSE(triplet_weight=0.0)
    plain = model.collate([model.featurize(Document(text)) for text in TEXTS])
    assert set(model.objective.agreement(model(plain), model(plain), plain)) == {"arccon"}


def test_batches_that_teach_nothing_are_counted_until_one_does() -> None:
    model = learning(BiEncoder)
    for noted in (10, 19):
        model.objective.num_untaught = noted
        assert model.training_notes()[0].startswith(f"{noted} of {noted} batches")
    model.objective.num_untaught += 1
    with pytest.raises(RunError, match="none of 20 did"):
        model.training_notes()
    model.objective.num_taught = 1
    assert model.training_notes()[0].startswith("20 of 21 batches")
    assert model.training_notes() == ()


def test_repeated_pieces_are_drawn_by_item_and_only_in_the_second_view() -> None:
    objective = InfoNCE(repetition=0.3)
    text = np.arange(5, 45)
    seen = set()
    for number in range(40):
        same, longer = objective.views([text], generator(1, "input", number))
        assert same is text
        assert np.array_equal(np.unique(longer), text)
        assert (np.diff(longer) >= 0).all()
        assert np.bincount(longer)[5:].max() <= 2
        seen.add(len(longer) - len(text))
    assert min(seen) == 0
    assert 10 <= max(seen) <= 12
    again = objective.views([text], generator(1, "input", 3))[1]
    assert np.array_equal(again, objective.views([text], generator(1, "input", 3))[1])
    assert objective.views([text], None)[1] is text


def test_the_same_text_twice_in_a_batch_is_no_negative() -> None:
    model = learning(BiEncoder, encoder_dropout=0.0)
    model.objective = InfoNCE()
    once = batch_of(model, [Document(text) for text in TEXTS])
    twice = batch_of(model, [Document(text) for text in [*TEXTS, TEXTS[0]]])
    expected = model.losses(model(once), once)["info_nce"]
    found = model.losses(model(twice), twice)["info_nce"]
    assert torch.allclose(found[0], expected[0], atol=1e-5)
    assert torch.allclose(found[4], expected[0], atol=1e-5)
    assert found[1] > expected[1] + 1e-4  # for the others it is one more


def test_hard_negatives_are_candidates_of_every_row() -> None:
    model = learning(BiEncoder)
    model.objective = InfoNCE()
    batch = batch_of(model, [Triple(TEXTS[0], TEXTS[1], (TEXTS[2],)), Triple(TEXTS[3], TEXTS[0], (TEXTS[1],))])
    assert batch.keys.shape == (2, 3)
    assert batch.num_units == {"info_nce": 2}
    assert model(batch).matrix(0, [1, 2]).shape == (2, 4)
    assert text_number("甲") != text_number("乙")


# ColBERT.


def test_an_untrained_colbert_of_full_width_compares_the_encoders_states() -> None:
    def states_compared(dimension: int) -> tuple[float, float]:
        model = build(ColBERT, dimension=dimension, expansion=0.0)
        rows = [model.query_row(model.read_texts(TEXTS[:1])[0]), model.document_row(model.read_texts(TEXTS[2:3])[0])]
        with torch.no_grad():
            own = [
                model.encoder.read(batch.mask, input_ids=batch.pieces).last_hidden_state[batch.scored]
                for batch in (model.token_rows([row]) for row in rows)
            ]
        query, document = (torch.nn.functional.normalize(vectors, dim=-1) for vectors in own)
        return model.score(TEXTS[0], TEXTS[2]), float((query @ document.T).amax(1).sum())

    width = build(ColBERT).encoder.width
    score, wanted = states_compared(width)
    assert score == pytest.approx(wanted, abs=1e-4)
    score, wanted = states_compared(width // 4)  # the control: fewer dimensions lose something
    assert abs(score - wanted) > 1e-2


def test_what_colbert_reads() -> None:
    model = build(ColBERT, query_pieces=12, query_marker="王", document_marker="北")
    numbers = model.subwords
    pieces = numbers.encode(["今天下雨"])[0]
    query = model.query_row(pieces)
    assert query.pieces.tolist() == [
        numbers.first, numbers.number("王"), *pieces, numbers.last, *[numbers.mask] * 4,
    ]  # fmt: skip
    assert query.attended == 7
    assert query.scored.all()
    full = model.query_row(numbers.encode([TEXTS[2]])[0])
    assert len(full.pieces) == full.attended == 12
    assert full.pieces[-1] == numbers.last
    document = model.document_row(numbers.encode(["会，人X"])[0])
    assert document.pieces[1] == numbers.number("北")
    skipped = [piece for piece, scored in zip(document.pieces, document.scored, strict=True) if not scored]
    assert skipped == [numbers.number("，")]


def test_unknown_pieces_are_never_skipped() -> None:
    model = build(ColBERT, query_marker="王", document_marker="北")
    assert any(model.subwords.number(character) is None for character in PUNCTUATION)
    document = model.document_row(model.subwords.encode(["㊣`会"])[0])
    assert model.subwords.unknown in document.pieces
    assert document.scored[document.pieces == model.subwords.unknown].all()


def test_a_marker_must_be_a_piece() -> None:
    with pytest.raises(RecipeError, match=r"model\.query_marker: must be a piece .* '\[unused0\]' is none"):
        build(ColBERT, query_marker="[unused0]")


# Cross-encoder.


@pytest.mark.parametrize(
    ("lengths", "room", "expected"),
    [((3, 4), None, (3, 4)), ((3, 4), 7, (3, 4)), ((9, 4), 10, (6, 4)), ((2, 9), 10, (2, 8)), ((9, 8), 10, (5, 5)),
     ((9, 8), 11, (6, 5)), ((8, 9), 11, (5, 6))],
)  # fmt: skip
def test_the_longer_text_is_cut_first(lengths: tuple[int, int], room: int | None, expected: tuple[int, int]) -> None:
    first, second = fitted(np.arange(lengths[0]), np.arange(lengths[1]), room)
    assert (len(first), len(second)) == expected
    assert first.tolist() == list(range(expected[0]))
    assert second.tolist() == list(range(expected[1]))


def test_a_pair_is_read_as_the_tokenizer_writes_it(encoders: Path) -> None:
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(str(encoders / "tiny-bert"))
    model = build(CrossEncoder)
    rows = model.pair_rows([tuple(model.read_texts(pair)) for pair in PAIRS])
    for number, pair in enumerate(PAIRS):
        written = tokenizer(*pair)
        length = len(written["input_ids"])
        assert rows.pieces[number, :length].tolist() == written["input_ids"]
        assert rows.types[number, :length].tolist() == written["token_type_ids"]
        assert rows.mask[number].tolist() == [True] * length + [False] * (rows.mask.shape[1] - length)


def test_a_cross_encoder_compares_no_batch() -> None:
    model = learning(CrossEncoder)
    compared = model(batch_of(model))
    with pytest.raises(RecipeError, match="reads pairs together"):
        compared.matrix(0, [1])
    with pytest.raises(RecipeError, match="no vector a text"):
        compared.vectors(0)


@pytest.mark.parametrize(
    ("lengths", "pieces", "groups"),
    [
        ((9, 8, 7), 100, [[0, 1, 2]]),
        ((3, 40, 4, 39), 80, [[1, 3], [2, 0]]),
        ((40, 40, 40, 5), 10, [[0], [1], [2], [3]]),  # one row at least
        ((), 10, []),
    ],
)
def test_how_many_rows_are_read_at_once_without_gradients(
    lengths: tuple[int, ...], pieces: int, groups: list[list[int]]
) -> None:
    assert text_encoder.of_size(lengths, pieces) == groups


@every_matcher
def test_reading_a_few_texts_at_once_changes_no_score(cls: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(cls)
    pairs = [(pair.first, pair.second) for pair in [*DATA.train, Pair("好", "坏", label=1.0)]]
    shapes: list[tuple[int, ...]] = []
    read = model.encoder.read

    def seen(mask: torch.Tensor, **inputs: Any) -> Any:
        shapes.append(tuple(mask.shape))
        return read(mask, **inputs)

    monkeypatch.setattr(model.encoder, "read", seen)
    whole = model.scores(pairs)
    assert np.ptp(whole) > 1e-4
    passes = len(shapes)
    monkeypatch.setattr(encoder, "PIECES_A_PASS_ON_CPU", 40)
    assert np.allclose(model.scores(pairs), whole, rtol=1e-6, atol=1e-6)
    assert len(shapes) - passes > passes
    assert len({columns for _, columns in shapes[passes:]}) > 1  # padded to the longest of its pass, not of the batch
