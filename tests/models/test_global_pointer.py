"""GlobalPointer against its equations; windows against the whole; nested entities from the file to the figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hanzoo import build
from hanzoo.data.document import Document, Span
from hanzoo.data.windows import cut
from hanzoo.errors import RecipeError, RunError
from hanzoo.evaluation.tagging import score_entities
from hanzoo.models.global_pointer import GlobalPointer, SpanScores, multi_label_loss, own_spans, rotary_table, rotated
from hanzoo.training.distillation import common_form
from tests import tiny
from tests.references import global_pointer as reference

pytestmark = pytest.mark.usefixtures("deterministic", "encoders")

QUIET = {"encoder": "tiny-bert", "dimension": 8, "encoder_dropout": 0.0, "dropout_hidden": 0.0}
TEXT = "王小明在北京工作，李娜说长河科技的电话打不通"
NESTED = Document(
    TEXT,
    (Span(0, 3, "name"), Span(0, 6, "address"), Span(4, 6, "address"), Span(4, 6, "name"), Span(5, 8, "name"),
     Span(12, 16, "company")),
)  # fmt: skip


def model_of(**settings: Any) -> GlobalPointer:
    model = tiny.build("global_pointer", QUIET | settings)
    assert isinstance(model, GlobalPointer)
    return model.eval()


def batch_of(model: GlobalPointer, *documents: Document) -> Any:
    return model.collate([model.featurize(document) for document in documents])


def written_out(
    model: GlobalPointer, document: Document, states: Tensor
) -> tuple[list[Any], list[set[tuple[int, int]]]]:
    """For each label the scores of all spans that some window holds, one at a time, and which are gold.

    Args:
        model: in float64.
        document: the text.
        states: (rows, seq, width): hidden states of the characters of its windows.
    """
    length = len(document.text)
    windows = [(part.start, part.end) for part in cut(length, model.window or length, model.overlap)]
    pairs = states @ model.head.pair.weight.T + model.head.pair.bias
    queries, keys = pairs.chunk(2, dim=-1)
    scores: list[Any] = []
    gold: list[set[tuple[int, int]]] = []
    for number, label in enumerate(model.labels):
        rows = slice(2 * number, 2 * number + 2)
        start, end = model.head.label.weight[rows]
        scores.append({})
        for i, j in reference.all_spans(length):
            row = reference.owner(i, j + 1, windows, length)
            if row is not None:
                first = windows[row][0]
                scores[-1][i, j] = reference.span_score(
                    queries[row], keys[row], i - first, j - first, start, end, model.head.label.bias[rows]
                )
        gold.append({(span.start, span.end - 1) for span in document.spans if span.label == label} & set(scores[-1]))
    return scores, gold


@pytest.mark.parametrize(("window", "overlap"), [(None, 0), (9, 4), (10, 3), (7, 2)])
def test_scores_and_loss_are_those_of_the_equations(window: int | None, overlap: int) -> None:
    model = model_of(window=window, overlap=overlap).double()
    torch.manual_seed(1)
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    documents = [NESTED, Document("今"), Document("去西安", (Span(0, 3, "address"),))]
    batch = batch_of(model, *documents)
    rows = batch.windows.texts
    assert (len(rows) > 3) == (window is not None)
    states = model.encoder.states(batch.windows).detach()[:, 1:-1]
    output = model.head(states)
    all_scores = output.scores()
    found = model.losses(output, batch)["spans"]
    values, other_gold = [], []
    for number, document in enumerate(documents):
        of_text = states[rows == number]
        scores, gold = written_out(model, document, of_text)
        for label, of_label in enumerate(scores):
            for (i, j), score in of_label.items():
                windows = [(part.start, part.end) for part in cut(len(document.text), window or 99, overlap)]
                row = reference.owner(i, j + 1, windows, len(document.text))
                assert row is not None
                first = windows[row][0]
                at = int((rows == number).nonzero()[row])
                assert abs(float((all_scores[at, label, i - first, j - first] - score).detach())) < 1e-10
        values.append(reference.text_loss(scores, gold))
        other_gold.append(reference.text_loss(scores, [set(), *gold[:-1]]))
    expected = torch.stack(values)
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)
    assert float((found[0] - other_gold[0]).abs().detach()) > 1e-4
    weights = list(model.head.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(found.sum(), weights), torch.autograd.grad(expected.sum(), weights), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-9)
        assert theirs.abs().max() > 1e-2


def test_rotary_positions_say_the_distance() -> None:
    torch.manual_seed(2)
    vectors = torch.randn(2, 40, 8, dtype=torch.float64)
    turned = rotated(vectors, *rotary_table(40, 8, vectors))
    for position in (0, 1, 39):
        assert torch.allclose(turned[1, position], reference.rotated(vectors[1, position], position), atol=1e-12)
    one, other = torch.randn(2, 1, 8, dtype=torch.float64).expand(2, 40, 8)
    products = rotated(one, *rotary_table(40, 8, one)) @ rotated(other, *rotary_table(40, 8, one)).T
    assert torch.allclose(products.diagonal(3), products[0, 3].expand(37), atol=1e-12)
    assert (products[0, 1:9] - products[0, 0]).abs().min() > 1e-3


def test_each_span_is_judged_once_where_it_is_farthest_from_the_edges(encoders: Path) -> None:
    model = model_of()
    for length in (1, 2, 9, 10, 13, 21, 40):
        for window in (1, 2, 5, 8, 9):
            for overlap in (0, 1, 2, 3, 4):
                model.window, model.overlap = window, overlap
                batch = batch_of(model, Document("今" * length))
                parts = [(part.start, part.end) for part in cut(length, window, overlap)]
                starts = batch.windows.starts.tolist()
                row, first, last = own_spans(batch.windows).nonzero().unbind(1)
                judged = {}
                for r, i, j in zip(row.tolist(), first.tolist(), last.tolist(), strict=True):
                    span = (i + starts[r], j + starts[r])
                    assert span not in judged
                    judged[span] = r
                for i, j in reference.all_spans(length):
                    owner = reference.owner(i, j + 1, parts, length)
                    assert ((i, j) in judged) == (owner is not None)
                    if owner is not None:
                        distances = [distance(i, j, *parts[r], length) for r in (judged[i, j], owner)]
                        assert distances[0] >= distances[1] - 1  # between two characters "the middle" is either


def distance(first: int, last: int, start: int, end: int, length: int) -> float:
    middle = (first + last + 1) // 2
    return min(length if start == 0 else middle - start, length if end == length else end - 1 - middle)


def context_free(model: GlobalPointer, patch: pytest.MonkeyPatch) -> GlobalPointer:
    """The same model, each character's state being its embedding."""
    patch.setattr(model.encoder, "states", lambda windows: model.encoder.table(windows.pieces))
    return model


def found_in(model: GlobalPointer, text: str) -> dict[tuple[int, int, str], float]:
    return {tuple(entity.span): entity.confidence or 0.0 for entity in model.predict([text])[0].entities}


def test_windows_equal_the_whole_where_there_is_no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(document.text for document in tiny.DOCUMENTS)
    plain = model_of().double()
    torch.nn.init.normal_(plain.head.pair.weight, std=3.0)
    whole_with_context = found_in(plain, text)
    plain.window, plain.overlap = 24, 12
    in_windows = found_in(plain, text)
    changed = [
        span for span in in_windows if in_windows[span] != pytest.approx(whole_with_context.get(span, 0.0), abs=1e-6)
    ]
    assert len(changed) > 20  # with context it does matter how a text is cut
    model = context_free(plain, monkeypatch)
    model.window = None
    whole = found_in(model, text)
    for window, overlap in ((24, 12), (31, 9), (50, 3)):
        model.window, model.overlap = window, overlap
        parts = cut(len(text), window, overlap)
        held = {
            span: confidence
            for span, confidence in whole.items()
            if any(part.start <= span[0] and span[1] <= part.end for part in parts)
        }
        assert 20 < len(held) < len(whole)
        found = found_in(model, text)
        assert found.keys() == held.keys()
        assert all(found[span] == pytest.approx(held[span], abs=1e-9) for span in held)


def test_a_span_longer_than_a_window_is_missed_and_stays_gold() -> None:
    long = Document(TEXT, (Span(0, 3, "name"), Span(2, 14, "company")))
    model = model_of(window=10, overlap=4)
    built = tiny.build("global_pointer", QUIET | {"window": 10, "overlap": 4}, of=tiny.data([long], [long]))
    assert "1 entities of train lie in no window of 10 characters: they cannot be learnt" in built.notes
    assert not any("no window" in note for note in model_of(window=16).notes)
    batch = batch_of(model, long)
    assert len(model.featurize(long).gold) == 2
    gold = model._gold(model(batch).scores(), batch)
    assert int(gold.sum()) == 1
    assert int((gold & ~own_spans(batch.windows).unsqueeze(1)).sum()) == 0
    without = batch_of(model, Document(TEXT, long.spans[:1]))
    assert torch.equal(model.losses(model(batch), batch)["spans"], model.losses(model(without), without)["spans"])
    assert model.confidences(model(batch), batch, [[long.spans[1]]], 1.0) == [[0.0]]
    assert score_entities([long.spans], [long.spans[:1]]).micro.false_negatives == 1


def test_everything_above_zero_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(window=16)
    documents = [NESTED, *tiny.DOCUMENTS]
    batch = batch_of(model, *documents)
    output = model(batch)
    wanted = model._gold(output.scores(), batch)
    monkeypatch.setattr(SpanScores, "scores", lambda self, rows=slice(None): wanted[rows].float() - 0.5)
    monkeypatch.setattr("hanzoo.models.global_pointer.SCORES_AT_ONCE", 2 * wanted[0].numel())  # in several pieces
    assert len(list(output.slices())) > 3
    assert model.decode(output, batch) == [sorted(document.spans) for document in documents]
    with model.restricted(["name"]):
        assert {span.label for spans in model.decode(output, batch) for span in spans} == {"name"}


def test_confidence_is_the_sigmoid_of_the_score() -> None:
    model = model_of(window=9, overlap=4)
    batch = batch_of(model, tiny.DOCUMENTS[0], NESTED)
    output = model(batch)
    spans = model.decode(output, batch)
    scores = output.scores()
    assert min(map(len, spans)) > 5
    assert model.decode(output, batch) == [sorted(row) for row in spans]
    for temperature in (1.0, 2.5):
        values = model.confidences(output, batch, spans, temperature)
        for text, (row, of_row) in enumerate(zip(spans, values, strict=True)):
            parts = cut(len([tiny.DOCUMENTS[0].text, TEXT][text]), 9, 4)
            base = 0 if text == 0 else int((batch.windows.texts == 0).sum())
            for span, value in zip(row, of_row, strict=True):
                number = [part.own_start <= (span.start + span.end) // 2 < part.own_end for part in parts].index(True)
                first = parts[number].start
                score = scores[base + number, model.labels.index(span.label), span.start - first, span.end - 1 - first]
                assert value == pytest.approx(float(torch.sigmoid(score / temperature).detach()), abs=1e-6)
    with model.restricted(["name"]):
        (given,) = model.confidences(output, batch, [[Span(0, 3, "name"), Span(0, 3, "company")], []], 1.0)[:1]
        assert given[0] > 0.0
        assert given[1] == 0.0


def test_the_divergence_is_that_of_independent_spans() -> None:
    model = model_of(window=9, overlap=4).double()
    batch = batch_of(model, NESTED, Document("今"))
    first = model(batch)
    second = SpanScores(first.queries * 1.5, first.keys, first.starts + 0.3, first.ends)
    found = model.divergence(first, second, batch)["spans"]
    own = own_spans(batch.windows)
    expected = []
    for text in range(2):
        sides: list[list[dict[tuple[int, int], Tensor]]] = []
        for scores in (first.scores(), second.scores()):
            rows = (batch.windows.texts == text).nonzero().flatten().tolist()
            sides.append([])
            for label in range(len(model.labels)):
                sides[-1].append(
                    {
                        (100 * row + i, j): scores[row, label, i, j]
                        for row in rows
                        for i, j in own[row].nonzero().tolist()
                    }
                )
        expected.append(reference.divergence(*sides))
    assert torch.allclose(found, torch.stack(expected), rtol=1e-9)
    assert found.min() > 1e-3
    assert model.divergence(first, first, batch)["spans"].abs().max() == 0.0


@pytest.mark.parametrize("size", [1.0, 300.0])
def test_losses_stay_finite_in_bfloat16(size: float) -> None:
    model = model_of(window=9, overlap=4).train()
    batch = batch_of(model, NESTED, Document("今", (Span(0, 1, "name"),)), Document("雨"))
    with torch.no_grad():
        model.head.pair.weight.mul_(size)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch)
        values = model.losses(output, batch)["spans"] + model.divergence(output, model(batch), batch)["spans"]
    assert values.dtype == output.queries.dtype == torch.float32
    assert torch.isfinite(values).all()
    values.sum().backward()  # type: ignore[no-untyped-call]
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_nothing_that_is_no_span_reaches_the_loss() -> None:
    torch.manual_seed(3)
    scores = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    own = torch.ones(4, 4, dtype=torch.bool).triu().expand(2, 4, 4).clone()
    own[1, :, 2:] = False
    gold = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    gold[0, 0, 1, 2] = True
    texts = torch.tensor([0, 1])

    def loss(changed: Tensor) -> Tensor:
        return multi_label_loss(changed, own, gold, texts, 2)

    plain = loss(scores)
    assert torch.equal(loss(torch.where(own.unsqueeze(1), scores, 1e4)), plain)
    assert not torch.equal(loss(scores + own.unsqueeze(1)), plain)
    (gradient,) = torch.autograd.grad(loss(scores.requires_grad_()).sum(), scores)
    assert torch.equal(gradient != 0, own.unsqueeze(1))


def test_it_teaches_nothing_and_learns_from_no_teacher() -> None:
    model = model_of()
    assert model.target_form() is None
    with pytest.raises(RecipeError, match="soft targets"):
        common_form(model, "runs/teacher", model)


def test_going_on_needs_the_same_sizes() -> None:
    model = model_of()
    with pytest.raises(RecipeError, match=r"model\.dimension: must be 8 .* Set model.dimension=8"):
        GlobalPointer.continue_from(GlobalPointer.Config(**(QUIET | {"dimension": 4})), model, tiny.data())


# From a file with nested entities to figures.

NESTED_LINES = [
    {"text": "云山银行上海分行招人", "spans": [[0, 4, "org"], [0, 8, "org"], [4, 6, "loc"]]},
    {"text": "长河科技北京分部招人了", "spans": [[0, 4, "org"], [0, 8, "org"], [4, 6, "loc"]]},
    {"text": "今天下雨", "spans": []},
    {"text": "明月书店搬去广州", "spans": [[0, 4, "org"], [6, 8, "loc"]]},
]


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory, encoders: Path) -> Callable[[str], Path]:
    """Trains a model on the nested lines; the run directory."""
    folder = tmp_path_factory.mktemp("nested")
    file = folder / "nested.jsonl"
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in NESTED_LINES), encoding="utf-8")

    def train(model: str) -> Path:
        recipe = folder / f"{model.partition(',')[0].removeprefix('name: ')}.yaml"
        recipe.write_text(
            f"data: {{train: {file}, dev: {file}}}\nmodel: {{{model}}}\nevaluate: {{calibrate: false}}\n"
            "train: {epochs: 40, batch_size: 2, device: cpu, log_every: 500, optimizer: {learning_rate: 0.03}}\n",
            encoding="utf-8",
        )
        run = folder / recipe.stem
        build.train(recipe, run=run)
        return run

    return train


def test_nested_entities_from_the_file_to_the_figures(nested: Callable[[str], Path]) -> None:
    run = nested("name: global_pointer, encoder: tiny-bert, encoder_dropout: 0.0, dropout_hidden: 0.0, dimension: 8")
    report = build.evaluate_run(run, split="dev")
    figures = report.figures[0]
    assert figures["num_gold"] == 8
    assert figures["f1"] == 1.0
    assert report.legal is None
    assert "legal" not in report.to_json() or report.to_json()["legal"] is None
    (found,) = build.load(run).predict([NESTED_LINES[0]["text"]])  # type: ignore[list-item]
    assert [(entity.start, entity.end, entity.label, entity.text) for entity in found.entities] == [
        (0, 4, "org", "云山银行"), (0, 8, "org", "云山银行上海分行"), (4, 6, "loc", "上海"),
    ]  # fmt: skip
    with pytest.raises(RunError, match="scorer seqeval: predictions must not overlap"):
        build.evaluate_run(run, split="dev", options={"--scorer": ["seqeval"]})

    flat = build.evaluate_run(
        nested("name: bilstm_crf, dimension: 8, hidden: 12"), split="dev", options={"--scorer": ["seqeval"]}
    )
    # it was trained on the outer entities alone; the inner ones are gold all the same, and missed
    assert flat.figures[0]["num_gold"] == 8
    assert flat.figures[0]["recall"] == 0.5
    assert flat.figures[0]["precision"] == 1.0
    assert flat.scores["seqeval"][0].gold_left_out == 4
    assert flat.scores["seqeval"][0].scores.f1 == 1.0
