"""The encoder: states are those of transformers, a long text's are those of its windows, folders are plain ones."""

from __future__ import annotations

import copy
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from hanzoo.data.document import Document
from hanzoo.data.subwords import Subwords, quiet
from hanzoo.errors import DataError, RecipeError, RunError
from hanzoo.models.layers import encoder as layer
from hanzoo.models.layers.encoder import Encoder, EncoderConfig, EncoderModel
from tests import tiny

pytestmark = pytest.mark.usefixtures("deterministic", "encoders")

TEXT = "王小明在北京工作，昨天的会开得太长了，没有人记得最后说了什么" * 3


def load(folder: Path, dropout: float | None = None) -> Encoder:
    return Encoder.load(folder, Subwords.load(folder), dropout).eval()


def tagger(**settings: Any) -> Any:
    return tiny.build("encoder_crf", {"encoder": "tiny-bert"} | settings).eval()


def states(model: EncoderModel, texts: list[str]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.encoder(model.windows([model.subwords.encode(text) for text in texts]))
    return found


def context_free(model: Any) -> Any:
    """No layers, no positions: a state depends on its own piece alone."""
    model.encoder.model.encoder.layer = torch.nn.ModuleList()
    with torch.no_grad():
        model.encoder.model.embeddings.position_embeddings.weight.zero_()
    return model


# States.


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-albert"])
def test_states_are_those_of_transformers_in_float32(encoders: Path, name: str) -> None:
    encoder = load(encoders / name)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert {tensor.dtype for tensor in load_file(encoders / name / "model.safetensors").values()} == {torch.float16}
    assert encoder.config._attn_implementation == "sdpa"
    assert not any("pooler" in name for name, _ in encoder.named_parameters())
    model = tagger(encoder=name)
    with quiet():
        plain = AutoModel.from_pretrained(encoders / name, dtype=torch.float32).eval()
    pieces = torch.tensor([[model.subwords.first, *model.subwords.encode(TEXT[:31]).tolist(), model.subwords.last]])
    with torch.no_grad():
        expected = plain(input_ids=pieces).last_hidden_state[:, 1:-1]
    assert torch.allclose(states(model, [TEXT[:31]]), expected, atol=1e-6)
    assert not torch.allclose(states(model, [TEXT[1:32]]), expected, atol=1e-2)


def test_reading_a_few_rows_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tagger(window=16, overlap=4)
    whole = states(model, [TEXT, TEXT[:20], TEXT[3:50]])
    monkeypatch.setattr(layer, "PIECES_A_PASS_ON_CPU", 40)
    assert torch.allclose(states(model, [TEXT, TEXT[:20], TEXT[3:50]]), whole, atol=1e-6)


def test_what_overlaps_is_let_go_with_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tagger(window=16, overlap=8)
    monkeypatch.setattr(layer, "PIECES_A_PASS_ON_CPU", 50)  # two rows
    windows = model.windows([model.subwords.encode(text) for text in (TEXT, TEXT[:20], TEXT[3:50])])
    run, seen = model.encoder._run, []

    def watched(pieces: Tensor, mask: Tensor) -> Tensor:
        assert sum(each() is not None for each in seen) <= 1  # of the pass before
        found: Tensor = run(pieces, mask)
        seen.append(weakref.ref(found))
        return found

    with torch.no_grad():
        everything = model.encoder.states(windows).flatten(0, 1)
        monkeypatch.setattr(model.encoder, "_run", watched)
        found = model.encoder(windows)
    assert len(seen) == -(-len(windows.pieces) // 2) > 3
    assert windows.places.numel() < 0.7 * len(everything)
    assert torch.equal(found, everything[windows.places])


def test_what_stands_at_padding_means_nothing() -> None:
    model = tagger(window=16, overlap=4)
    windows = model.windows([model.subwords.encode(text) for text in (TEXT, "北京")])
    assert not windows.mask.all()
    with torch.no_grad():
        expected = model.encoder(windows)
        changed = copy.copy(windows)
        object.__setattr__(changed, "pieces", torch.where(windows.mask, windows.pieces, 9))
        assert torch.allclose(model.encoder(changed)[:, :2], expected[:, :2], atol=1e-6)
        object.__setattr__(changed, "pieces", torch.where(windows.mask, 9, windows.pieces))
        assert not torch.allclose(model.encoder(changed)[:, :2], expected[:, :2], atol=1e-2)


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-albert"])
def test_attention_from_its_parts_is_that_of_the_fused_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tagger(encoder=name, window=16, overlap=4)
    windows = model.windows([model.subwords.encode(text) for text in (TEXT, TEXT[:9], TEXT[5:30])])
    assert not windows.mask.all()
    weights = torch.randn(*windows.places.shape, model.encoder.width, generator=torch.Generator().manual_seed(1))
    weights *= (windows.places > 0).unsqueeze(-1)

    def run(short_row: int) -> tuple[Tensor, dict[str, Tensor], str]:
        monkeypatch.setattr(layer, "SHORT_ROW", short_row)
        model.zero_grad()
        found = model.encoder(windows)
        (found * weights).sum().backward()
        gradients = {name: each.grad.clone() for name, each in model.encoder.named_parameters()}
        return found.detach(), gradients, model.encoder.config._attn_implementation

    short_row = layer.SHORT_ROW
    assert windows.pieces.shape[1] <= short_row
    fused, fused_gradients, chosen = run(0)
    parts, parts_gradients, other = run(short_row)
    assert (chosen, other) == ("sdpa", "eager")
    assert torch.allclose(parts, fused, atol=1e-5)
    for key, gradient in fused_gradients.items():
        assert torch.allclose(parts_gradients[key], gradient, rtol=1e-4, atol=1e-4), key
        assert key.endswith("key.bias") or gradient.abs().max() > 1e-3, key
    with torch.no_grad():  # only the backward pass is the reason
        model.encoder(windows)
    assert model.encoder.config._attn_implementation == "sdpa"


# Windows.


@pytest.mark.parametrize(("window", "overlap"), [(128, 128), (40, 16), (17, 5), (8, 0), (1, 0)])
def test_without_context_windows_are_the_whole_bit_for_bit(window: int, overlap: int) -> None:
    model = context_free(tagger())
    texts = [TEXT, TEXT[:40], "北京", TEXT[5:]]
    whole = states(model, texts)
    model.window, model.overlap = window, overlap
    assert len(model.windows([model.subwords.encode(text) for text in texts]).pieces) >= 4
    assert torch.equal(states(model, texts), whole)


def test_with_context_windows_are_not_the_whole() -> None:
    model = tagger()
    whole = states(model, [TEXT])
    for overlap in (0, 12, 24):
        model.window, model.overlap = 48, overlap
        assert not torch.allclose(states(model, [TEXT]), whole, atol=1e-2)


def test_a_text_that_fits_is_the_unwindowed_one_exactly() -> None:
    model = tagger()
    whole = states(model, [TEXT])
    model.window = len(TEXT)
    assert torch.equal(states(model, [TEXT]), whole)
    model.window = len(TEXT) - 1
    assert not torch.equal(states(model, [TEXT]), whole)


def test_each_state_comes_from_the_window_it_belongs_to() -> None:
    model = tagger(window=16, overlap=6)
    windows = model.windows([model.subwords.encode(TEXT)])
    found = states(model, [TEXT])[0]
    for start, end, own_start, own_end in zip(
        windows.starts.tolist(), windows.ends.tolist(), windows.own_starts.tolist(), windows.own_ends.tolist(),
        strict=True,
    ):  # fmt: skip
        alone = states(model, [TEXT[start:end]])[0]
        assert torch.allclose(found[own_start:own_end], alone[own_start - start : own_end - start], atol=1e-6)


def test_the_window_can_be_changed_and_is_saved(tmp_path: Path) -> None:
    model = tagger()
    assert model.window == 128  # 130 positions less [CLS] and [SEP]
    model.window, model.overlap = 64, 10
    model.save(tmp_path)
    loaded = type(model).load(tmp_path)
    assert (loaded.window, loaded.overlap) == (64, 10)
    loaded.window = None
    assert loaded.window == 128
    for wrong, cause in ((0, "at least 1"), (129, "at most 128")):
        with pytest.raises((RunError, RecipeError), match=cause):
            loaded.window = wrong
    with pytest.raises(RunError, match="at least 0"):
        loaded.overlap = -1
    with pytest.raises(RecipeError, match=r"model.window: must be at most 128"):
        tagger(window=129)


# Attack points.


def test_an_attack_point_says_whose_each_piece_is() -> None:
    model = tagger(window=16, overlap=4)
    texts = [TEXT[:30], "北京", TEXT[:16]]
    batch = model.collate([model.featurize(Document(text)) for text in texts])
    (point,) = model.attack_points(batch).values()
    assert point.module is model.encoder.table
    assert point.num_samples == 3
    assert point.samples.shape == batch.windows.pieces.shape
    special = torch.isin(
        batch.windows.pieces, torch.tensor([model.subwords.first, model.subwords.last, model.subwords.padding])
    )
    assert (point.samples[special] == -1).all()
    assert (point.samples[~special] >= 0).all()
    for row, text in enumerate(batch.windows.texts.tolist()):
        assert set(point.samples[row].tolist()) <= {-1, text}
    counts = torch.bincount(point.samples[point.samples >= 0])
    assert counts[1:].tolist() == [2, 16]
    assert counts[0] > 30  # an overlap is embedded twice


# Depth, freezing, dropout.


def test_depths() -> None:
    def depths(name: str, **settings: Any) -> dict[str, int]:
        model = tagger(encoder=name, **settings)
        return {name: model.depth(name) for name, _ in model.named_parameters()}

    bert = depths("tiny-bert", lstm_hidden=4)
    assert bert["encoder.model.embeddings.word_embeddings.weight"] == 0
    assert bert["encoder.model.embeddings.LayerNorm.bias"] == 0
    assert bert["encoder.model.encoder.layer.0.attention.self.query.weight"] == 1
    assert bert["encoder.model.encoder.layer.1.output.dense.bias"] == 2
    assert {bert[name] for name in bert if not name.startswith("encoder.")} == {3}
    albert = depths("tiny-albert")
    assert {albert[name] for name in albert if "albert_layer_groups" in name} == {1}
    assert {albert[name] for name in albert if "embed" in name} == {0}
    assert {albert[name] for name in albert if not name.startswith("encoder.")} == {2}


def test_a_frozen_encoder_gets_no_gradient_and_passes_one_on() -> None:
    model = tagger(freeze_epochs=1, encoder_dropout=0.0, dropout_hidden=0.0)
    features = [model.featurize(document) for document in tiny.DOCUMENTS]
    batch = model.collate(features)
    free = model(batch).detach()
    model.train()
    for epoch, frozen in ((0, True), (1, False)):
        model.begin_epoch(epoch)
        seen: list[Tensor] = []

        def keep(module: object, inputs: object, output: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(output.detach().requires_grad_())
            return seen[0]

        hook = model.encoder.table.register_forward_hook(keep)
        output = model(batch)
        hook.remove()
        assert torch.allclose(output, free, atol=1e-6)
        model.zero_grad()
        sum(value.sum() for value in model.losses(output, batch).values()).backward()
        assert seen[0].grad is not None  # what an attack needs
        assert seen[0].grad.any()
        given = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert ("encoder.model.encoder.layer.0.attention.self.query.weight" not in given) == frozen
        assert {"emission.weight", "crf.transitions"} <= given
        assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("kill_at", [1, 3, 5])
def test_freezing_ends_at_its_epoch_also_after_a_kill(tmp_path: Path, kill_at: int) -> None:
    def make(folder: str, resume: bool = False) -> Any:
        model = tiny.build("encoder_crf", {"encoder": "tiny-bert", "freeze_epochs": 2})
        return tiny.trainer(model, tmp_path / folder, epochs=3, batch_size=6, save_every=1, resume=resume,
                            evaluate=lambda _: {"f1": 0.0})  # fmt: skip

    def encoder_of(trainer: Any) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in trainer.model.encoder.parameters()])

    def watched(trainer: Any, stop: int = 99) -> dict[int, bool]:
        """After which steps the encoder has changed."""
        start, moved, step = encoder_of(trainer), {}, trainer._step

        def do(epoch: int, items: Any) -> None:
            if trainer.progress.step == stop:
                raise KeyboardInterrupt
            step(epoch, items)
            moved[trainer.progress.step] = not torch.equal(encoder_of(trainer), start)

        trainer._step = do
        if stop == 99:
            trainer.fit()
        else:
            with pytest.raises(KeyboardInterrupt):
                trainer.fit()
        return moved

    whole = make("whole")
    assert watched(whole) == {1: False, 2: False, 3: False, 4: False, 5: True, 6: True}
    watched(make("cut"), stop=kill_at)
    again = make("cut", resume=True)
    watched(again)
    assert again.progress.step == 6
    last = [torch.cat([p.detach().flatten() for p in each.model.parameters()]) for each in (whole, again)]
    assert torch.equal(last[0], last[1])


def test_dropout_of_the_folder_can_be_overridden(encoders: Path) -> None:
    def rates(encoder: Encoder) -> set[float]:
        return {module.p for module in encoder.modules() if isinstance(module, torch.nn.Dropout)}

    for name, own in (("tiny-bert", 0.1), ("tiny-albert", 0.0)):
        folder = encoders / name
        assert rates(load(folder)) == {own}
        assert rates(load(folder, 0.3)) == {0.3}
        assert load(folder, 0.3).config.attention_probs_dropout_prob == 0.3
        assert rates(load(folder).copied(0.2)) == {0.2}
        assert rates(load(folder, 0.3).copied()) == {0.3}
    encoder = Encoder.load(encoders / "tiny-bert", Subwords.load(encoders / "tiny-bert"), 0.5)
    assert encoder.model.training  # as any new module: an epoch without dropout would go unnoticed


# Folders.


def test_a_checkpoint_holds_a_plain_folder_of_transformers(tmp_path: Path) -> None:
    model = tagger(encoder_dropout=0.2)
    model.save(tmp_path)
    names = set(load_file(tmp_path / "hanzoo.safetensors"))
    assert names == {name for name in model.state_dict() if not name.startswith("encoder.")}
    folder = tmp_path / "encoder"
    assert not [path for path in folder.iterdir() if path.suffix not in {".json", ".safetensors", ".txt"}]
    with quiet():
        plain = AutoModel.from_pretrained(folder)
        tokens = AutoTokenizer.from_pretrained(folder)  # type: ignore[no-untyped-call]
    for name, parameter in model.encoder.model.named_parameters():
        assert torch.equal(plain.state_dict()[name], parameter)
    assert tokens("北京")["input_ids"][1:-1] == model.subwords.encode("北京").tolist()
    assert json.loads((folder / "config.json").read_text())["hidden_dropout_prob"] == 0.2
    loaded = type(model).load(tmp_path)
    assert torch.equal(states(loaded, [TEXT]), states(model, [TEXT]))


@pytest.mark.parametrize("damage", ["cut", "a tensor less", "another shape", "a pickle", "config", "rows"])
def test_a_damaged_folder_is_one_error(tmp_path: Path, damage: str) -> None:
    folder = tiny.write_encoder(tmp_path / "damaged")
    weights, config = folder / "model.safetensors", folder / "config.json"
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}  # the file itself is written below
    match damage:
        case "cut":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "a tensor less":
            del tensors["encoder.layer.1.output.dense.weight"]
            save_file(tensors, weights, {"format": "pt"})
        case "another shape":
            tensors["encoder.layer.1.output.dense.weight"] = torch.zeros(3, 3)
            save_file(tensors, weights, {"format": "pt"})
        case "a pickle":
            torch.save(tensors, weights)
        case "config":
            config.write_text("{}")
        case "rows":
            vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8")
            (folder / "vocab.txt").write_text(vocabulary + "x\ny\n", encoding="utf-8")
    with pytest.raises(DataError, match="damaged") as found:
        load(folder)
    assert "\n" not in str(found.value)


def test_a_folder_that_wants_to_run_code_is_refused(tmp_path: Path) -> None:
    folder = tiny.write_encoder(tmp_path / "code")
    about = json.loads((folder / "config.json").read_text())
    about |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModel": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    with pytest.raises(DataError, match="code"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_a_loaded_model_can_be_saved_where_it_came_from(tmp_path: Path) -> None:
    model = tagger()
    model.save(tmp_path)
    loaded = type(model).load(tmp_path)
    expected = states(loaded, [TEXT])
    (tmp_path / "encoder" / "model.safetensors").write_bytes(b"")
    assert torch.equal(states(loaded, [TEXT]), expected)


def test_a_checkpoint_without_its_encoder_is_an_error_of_the_run(tmp_path: Path) -> None:
    model = tagger()
    model.save(tmp_path)
    (tmp_path / "encoder" / "model.safetensors").unlink()
    with pytest.raises(RunError, match="encoder"):
        type(model).load(tmp_path)


def test_fields_have_their_bounds() -> None:
    for wrong in ({"encoder": ""}, {"window": 0}, {"overlap": -1}, {"encoder_dropout": 1.0}, {"freeze_epochs": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            EncoderConfig(**({"encoder": "x"} | wrong))  # type: ignore[arg-type]
