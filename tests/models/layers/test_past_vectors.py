"""Vectors of past batches as negatives: what is kept and when, who sees it, what comes back, what a model is saved without."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from hanzoo.data.document import Document, Pair
from hanzoo.data.randomness import reseed
from hanzoo.errors import RecipeError
from hanzoo.models.layers.past_vectors import CrossBatchMemory, MomentumQueue
from hanzoo.models.layers.similarity import cosine_similarities
from hanzoo.models.layers.text_matcher import text_number
from hanzoo.models.model import model_class
from hanzoo.models.objectives.info_nce import InfoNCE, InfoNCESettings
from tests import tiny
from tests.references import matching as reference

pytestmark = pytest.mark.usefixtures("deterministic", "encoders")

TEXTS = [document.text for document in tiny.DOCUMENTS]
SINGLE = [Document(text) for text in TEXTS]
PAIRS = [Pair(TEXTS[number], TEXTS[(number + 5) % 12]) for number in range(12)]
KINDS = ("momentum_queue", "cross_batch_memory")
every_kind = pytest.mark.parametrize("kind", KINDS)


def matcher(settings: dict[str, Any], items: list[Any], name: str = "bi_encoder", **own: Any) -> Any:
    reseed(1, "weights")
    cls = model_class(name)
    data = SimpleNamespace(train=items)
    model: Any = cls.build(cls.Config(**({"encoder": "tiny-bert", "encoder_dropout": 0.0} | own)), data)
    model.objective = InfoNCE.build(InfoNCESettings(**settings), model, data)
    return model.train()


def batch_of(model: Any, items: list[Any]) -> Any:
    return model.collate([model.featurize(item) for item in items])


def losses(model: Any, items: list[Any]) -> Tensor:
    batch = batch_of(model, items)
    found: Tensor = model.losses(model(batch), batch)["info_nce"]
    return found


def encode(model: Any, items: list[Any], view: int) -> Tensor:
    """What the model as it is makes of a view of the items."""
    model.eval()
    with torch.no_grad():
        vectors: Tensor = model(batch_of(model, items)).vectors(view)
    model.train()
    return vectors


def move(model: Any) -> None:
    """Other weights, as a step makes them."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)


@every_kind
@pytest.mark.parametrize(("items", "view"), [(SINGLE, 0), (PAIRS, 1)])
def test_what_stands_as_a_candidate_is_kept_after_the_step(kind: str, items: list[Any], view: int) -> None:
    model = matcher({kind: {"capacity": 6}}, items)
    queue = model.objective.past.queue
    first = encode(model, items[:4], view)
    losses(model, items[:4])
    assert not queue.mask.any()
    move(model)
    model.after_step()
    assert queue.mask.tolist() == [True] * 4 + [False] * 2
    assert queue.ids[:4].tolist() == batch_of(model, items[:4]).keys[:, view].tolist()
    if kind == "cross_batch_memory":  # as they were before the step
        assert torch.allclose(queue.vectors[:4], first, atol=1e-6)
        assert not torch.allclose(queue.vectors[:4], encode(model, items[:4], view), atol=1e-3)
    else:  # by weights that have gone 0.005 of the way
        assert torch.allclose(queue.vectors[:4], first, atol=1e-2)
        assert not torch.equal(queue.vectors[:4], first)
    losses(model, items[4:8])
    model.after_step()
    assert queue.mask.all()
    assert queue.ids.tolist() == batch_of(model, [*items[6:8], *items[2:6]]).keys[:, view].tolist()
    assert not queue.vectors.requires_grad


@every_kind
def test_anchors_alone_see_it_but_for_their_own_texts(kind: str) -> None:
    """The candidates of an anchor, by hand: those of the batch, and what is kept of other texts that do not match it."""
    temperature = 0.5
    model = matcher({kind: {"capacity": 8}, "both_directions": True, "temperature": temperature}, PAIRS)
    plain = matcher({"both_directions": True, "temperature": temperature}, PAIRS)
    now = [PAIRS[0], Pair(TEXTS[1], TEXTS[11]), PAIRS[9]]
    assert torch.equal(losses(model, now), losses(plain, now))  # nothing is there yet
    model.objective.past._seen = None
    losses(model, PAIRS[:6])  # documents 5 to 10: the first pair's positive, the last one's anchor
    model.after_step()
    found, without = losses(model, now), losses(plain, now)
    batch = batch_of(model, now)
    anchors, documents = (encode(model, now, view) for view in (0, 1))
    kept = model.objective.past.queue
    scores = cosine_similarities(anchors, documents)
    past = cosine_similarities(anchors, kept.vectors)
    for row, (anchor, number) in enumerate(((0, 4), (1, 4), (9, 5))):
        # the text five before stands with the anchor too: as the first of a pair
        matching = {text_number(TEXTS[(anchor + step) % 12]) for step in (5, -5)}
        own = {int(key) for key in batch.keys[row]} | matching
        further = [float(past[row, place]) for place in range(6) if int(kept.ids[place]) not in own]
        assert len(further) == number
        forth = reference.info_nce(
            [*scores[row].double(), *torch.tensor(further, dtype=torch.float64)], row, temperature
        )
        back = reference.info_nce(list(scores[:, row].double()), row, temperature)
        assert found[row].item() == pytest.approx(float(forth + back) / 2, rel=1e-5)
    assert (found > without + 1e-3).all()


@every_kind
def test_the_first_pass_of_a_step_is_what_is_kept(kind: str) -> None:
    """An attack and R-Drop run the batch again, moved and with other masks."""
    once, again = (matcher({kind: {"capacity": 6}}, SINGLE, encoder_dropout=0.3) for _ in range(2))
    for model, passes in ((once, 1), (again, 3)):
        reseed(1, "dropout")
        for _ in range(passes):
            losses(model, SINGLE[:4])
        model.after_step()
    assert torch.equal(once.objective.past.queue.vectors, again.objective.past.queue.vectors)
    assert once.objective.past.queue.num_pushed == again.objective.past.queue.num_pushed == 4


def test_a_memory_that_starts_later_keeps_nothing_before() -> None:
    model = matcher({"cross_batch_memory": {"capacity": 6, "start_step": 2}}, SINGLE)
    pushed = []
    for _ in range(4):
        losses(model, SINGLE[:3])
        model.after_step()
        pushed.append(int(model.objective.past.queue.num_pushed))
    assert pushed == [0, 0, 3, 6]


def test_a_momentum_encoder_reads_without_dropout_and_follows() -> None:
    for momentum, moves in ((1.0, False), (0.0, True)):
        model = matcher(
            {"momentum_queue": {"capacity": 4, "momentum": momentum}, "repetition": 1.0}, SINGLE, encoder_dropout=0.3
        )
        before = encode(model, SINGLE[:4], 0)
        losses(model, SINGLE[:4])
        move(model)
        model.after_step()
        expected = encode(model, SINGLE[:4], 0) if moves else before
        assert torch.allclose(model.objective.past.queue.vectors, expected, atol=1e-5)
        assert not torch.allclose(before, encode(model, SINGLE[:4], 0), atol=1e-3)


@every_kind
def test_vectors_that_are_not_finite_are_not_kept(kind: str) -> None:
    model = matcher({kind: {"capacity": 6}}, SINGLE)
    losses(model, SINGLE[:4])
    model.objective.past._seen = (
        model.objective.past._seen * float("nan") if kind == "cross_batch_memory" else model.objective.past._seen
    )
    if kind == "momentum_queue":
        with torch.no_grad():
            model.objective.past.weights.weights()["encoder.model.embeddings.LayerNorm.weight"].fill_(float("nan"))
    model.after_step()
    assert not model.objective.past.queue.mask.any()


@every_kind
def test_outside_of_training_nothing_is_kept(kind: str) -> None:
    model = matcher({kind: {"capacity": 6}}, SINGLE)
    model.eval()
    losses(model, SINGLE[:4])
    model.after_step()
    assert not model.objective.past.queue.mask.any()


@every_kind
def test_it_is_in_the_training_state_and_in_no_model(kind: str, tmp_path: Path) -> None:
    model, plain = matcher({kind: {"capacity": 6}}, SINGLE), matcher({}, SINGLE)
    assert set(model.state_dict()) == set(plain.state_dict())
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in plain.named_parameters()}
    assert plain.training_state() == {}
    losses(model, SINGLE[:4])
    move(model)
    model.after_step()
    state = {name: tensor.clone() for name, tensor in model.training_state().items()}
    other = matcher({kind: {"capacity": 6}}, SINGLE)
    for name, tensor in other.training_state().items():
        tensor.copy_(state[name])
    other.load_state_dict(model.state_dict())
    assert torch.equal(losses(other, SINGLE[6:10]), losses(model, SINGLE[6:10]))
    for each in (model, other):
        move(each)
        each.after_step()
    for name, tensor in other.training_state().items():
        assert torch.equal(tensor, model.training_state()[name]), name
    model.save(tmp_path)
    saved = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    other_folder = tmp_path / "plain"
    other_folder.mkdir()
    plain.save(other_folder)
    assert saved == sum(path.stat().st_size for path in other_folder.rglob("*.safetensors"))


# Refusals.


def test_only_one_of_them() -> None:
    with pytest.raises(ValidationError, match="one of momentum_queue and cross_batch_memory at most"):
        InfoNCESettings(momentum_queue={}, cross_batch_memory={"capacity": 3})  # type: ignore[arg-type]


@every_kind
def test_what_has_no_vector_a_text_keeps_none(kind: str) -> None:
    with pytest.raises(RecipeError, match=rf"objective\.{kind}: must be left out where the model has no one vector"):
        matcher({kind: {"capacity": 6}}, PAIRS, "colbert", document_marker="#")


@every_kind
def test_more_than_there_are_items(kind: str) -> None:
    with pytest.raises(RecipeError, match=rf"objective\.{kind}\.capacity: must be at most the 12 items .* is 13"):
        matcher({kind: {"capacity": 13}}, SINGLE)


def test_the_kinds_are_two() -> None:
    for kind, cls in zip(KINDS, (MomentumQueue, CrossBatchMemory), strict=True):
        assert cls.section == kind
        assert isinstance(matcher({kind: {"capacity": 6}}, SINGLE).objective.past, cls)
