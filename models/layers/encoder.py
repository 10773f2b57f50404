"""A pretrained encoder of the BERT family under a model: from characters to hidden states, for texts of any length.

Any folder that transformers' `AutoModel` opens, with weights in safetensors, and that reads [CLS] text [SEP]. One piece a
character (`hanzoo.data.subwords`). A text that is longer than a window becomes several rows, in training as at inference, and each
character's state comes from the row in which it is farther from an edge (`hanzoo.data.windows`): what stands above, a CRF say,
sees one sequence, however many windows there were. A text that fits is one row, as without windows.

Sources: BERT, Devlin et al. 2019; ALBERT, Lan et al. 2020 (its layers share their weights).
Differs: weights are float32 whatever the folder stores; the pooler is left out (nothing trains it); states of [CLS] and [SEP] are
not looked at.
Cost: without gradients rows are read a few at a time, so that what a pass needs does not grow with the text; the characters'
states do, by 4 bytes a character and unit of width. A frozen encoder runs as it does otherwise, and no backward pass goes into its
weights.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from hanzoo.data.subwords import CONFIG_FILE, PieceNumbers, Subwords, find_encoder, quiet, weights_sha256
from hanzoo.data.windows import Windows, lay_out
from hanzoo.errors import DataError, RecipeError, RunError
from hanzoo.models.model import AttackPoint, Model, Settings

SHORT_ROW = 256  # pieces a row up to which attention is computed from its parts in training
# without gradients: padded pieces that the encoder reads at once. On a CPU more do not fit its caches
PIECES_A_PASS, PIECES_A_PASS_ON_CPU = 16_384, 1_024
ENCODER_FOLDER = "encoder"  # in a checkpoint: a Hugging Face folder like any other

P = TypeVar("P", bound=PieceNumbers)

_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")


class PretrainedConfig(Settings):
    """Fields of the recipe's `model` section that every model on a pretrained encoder has.

    Attributes:
        encoder: its folder: a path, a name in $HANZOO_ENCODERS, or the name of a model on the Hugging Face hub.
        encoder_dropout: of the encoder's hidden states and attention, in place of what its folder says; None = as it says, and in
            a run that goes on from a trained model (`train.start_from`) as in that model.
        freeze_epochs: epochs at the start in which the encoder's weights stay as they are. Attacks on the activations work as ever;
            one on the table has nothing to move, and is refused.
    """

    encoder: str = Field(min_length=1)
    encoder_dropout: float | None = Field(default=None, ge=0.0, lt=1.0)
    freeze_epochs: int = Field(default=0, ge=0)


class EncoderConfig(PretrainedConfig):
    """Fields of the recipe's `model` section for models that read the characters of texts of any length.

    Attributes:
        window: characters that the encoder reads at once; a longer text is read in several windows. None = as many as it can
            (BERT: 510). Can be changed on a trained model.
        overlap: characters that two windows share at least; no more than half a window is used.
    """

    window: int | None = Field(default=None, ge=1)
    overlap: int = Field(default=128, ge=0)


class Encoder(nn.Module):
    """The layers of a pretrained encoder.

    Args:
        model: of transformers, without anything that the states do not depend on.
        max_length: characters that it can read at once; None = any number.

    Attributes:
        width: of a hidden state.
        frozen: in training its weights get no gradient; that of its input flows.
    """

    def __init__(self, model: nn.Module, max_length: int | None) -> None:
        super().__init__()
        self.model = model
        self.max_length = max_length
        self.width = int(self.config.hidden_size)
        self.frozen = False
        self._attention: str = self.config._attn_implementation

    @classmethod
    def load(cls, folder: Path, subwords: PieceNumbers, dropout: float | None = None, pooler: bool = False) -> Self:
        """The encoder of a folder, in float32.

        Args:
            folder: as `find_encoder` gives it.
            subwords: of the same folder.
            dropout: see `PretrainedConfig.encoder_dropout`.
            pooler: keep the layer on the state of [CLS] that BERT was pretrained with; without it nothing trains it.

        Raises:
            DataError: the folder is damaged, lacks weights, needs code from elsewhere, or does not fit its tokenizer.
        """
        from safetensors import SafetensorError
        from transformers import AutoConfig, AutoModel

        place = str(folder)
        try:
            with quiet():
                config = AutoConfig.from_pretrained(place, trust_remote_code=False, local_files_only=True)
                _set_dropout(config, dropout)
                model, report = AutoModel.from_pretrained(
                    place, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False,
                    local_files_only=True, output_loading_info=True,
                )  # fmt: skip
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
            raise DataError(
                f"{folder}: an encoder must be a folder that transformers opens, but it is not "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]}). Copy the whole folder."
            ) from error
        if pooler and getattr(model, "pooler", None) is None:
            raise DataError(f"{folder}: the encoder must have a pooler, but has none. Take another model.pooling.")
        if not pooler and getattr(model, "pooler", None) is not None:
            model.pooler = None
        wrong = sorted(name for name in report["missing_keys"] if pooler or not name.startswith("pooler."))
        wrong += sorted(str(name) for name in report.get("mismatched_keys") or ())
        if wrong:
            raise DataError(
                f"{folder}: the weights must be those of its {type(model).__name__}, but {', '.join(wrong[:3])}"
                f"{' ...' if len(wrong) > 3 else ''} are not there. Copy the whole folder."
            )
        rows = model.get_input_embeddings().num_embeddings
        if len(subwords) > rows:
            raise DataError(
                f"{folder}: the encoder must have a row for each of its tokenizer's {len(subwords):,} pieces, but has {rows:,}. "
                "Copy the whole folder."
            )
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()  # not a view of the file, which may be written anew
        model.train()  # as every new module is; transformers gives it in evaluation mode
        return cls(model, _max_length(model, subwords))

    def copied(self, dropout: float | None = None) -> Encoder:
        """Another encoder with the same weights; dropout as in `load`, None = as it is here."""
        from transformers import AutoModel

        config = copy.deepcopy(self.config)
        _set_dropout(config, dropout)
        model = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
        if getattr(self.model, "pooler", None) is None and getattr(model, "pooler", None) is not None:
            model.pooler = None
        model.load_state_dict(self.model.state_dict())
        model.set_attn_implementation(self._attention)
        return Encoder(model, self.max_length)

    @property
    def config(self) -> Any:
        """Of transformers."""
        return self.model.config

    @property
    def table(self) -> nn.Embedding:
        """The piece embeddings: what an attack moves the output of."""
        found: nn.Embedding = self.model.get_input_embeddings()  # type: ignore[operator]
        return found

    @property
    def top(self) -> int:
        """The depth of the highest layer."""
        return max(self.depth(name) for name, _ in self.model.named_parameters())

    def depth(self, parameter: str) -> int:
        """0 = embeddings (and what projects them), i + 1 = layer i; ALBERT's layers, which share their weights, are one.

        Args:
            parameter: its name within the model of transformers.
        """
        number = re.search(r"\.(\d+)\.", parameter)
        if number is not None:
            return 1 + int(number[1])
        return 0 if "embed" in parameter else int(self.config.num_hidden_layers)

    @property
    def pieces_a_pass(self) -> int:
        """Padded pieces that are read at once without gradients."""
        return PIECES_A_PASS_ON_CPU if self.table.weight.device.type == "cpu" else PIECES_A_PASS

    def states(self, windows: Windows) -> Tensor:
        """Hidden states of all rows, (rows, width, hidden) float; without gradients the encoder reads a few rows at a time."""
        if torch.is_grad_enabled():
            return self._run(windows.pieces, windows.mask)
        return torch.cat(list(self._parts(windows)))

    def _parts(self, windows: Windows) -> Iterator[Tensor]:
        """Hidden states of a few rows at a time, (some rows, width, hidden) float, in order."""
        rows = max(1, self.pieces_a_pass // windows.pieces.shape[1])
        for pieces, mask in zip(torch.split(windows.pieces, rows), torch.split(windows.mask, rows), strict=True):
            yield self._run(pieces, mask)

    def forward(self, windows: Windows) -> Tensor:
        """Hidden states of the characters, (batch, seq, hidden) float, each from the window it belongs to."""
        places = windows.places.flatten()
        if torch.is_grad_enabled():
            # index_select, not states[places]: its backward is deterministic, and faster
            chosen = self.states(windows).flatten(0, 1).index_select(0, places)
        else:
            chosen = self._choose(windows, places)
        return chosen.view(*windows.places.shape, -1)

    def _choose(self, windows: Windows, places: Tensor) -> Tensor:
        """The states at some places, (places, hidden): those of the overlaps are let go with the rows that they are in."""
        chosen = torch.empty(0)
        start = 0
        for states in self._parts(windows):
            if not start:
                chosen = states.new_empty(len(places), states.shape[2])
            size = states.shape[0] * states.shape[1]
            here = ((places >= start) & (places < start + size)).nonzero().squeeze(1)
            chosen[here] = states.flatten(0, 1).index_select(0, places[here] - start)
            start += size
        return chosen

    def look_up(self, pieces: Tensor) -> Tensor:
        """What `table` gives for pieces, as `read` takes it: (rows, seq) int64 -> (rows, seq, width of the table) float."""
        if not self._is_constant:
            found: Tensor = self.table(pieces)
            return found
        constant = {"weight": self.table.weight.detach()}
        return torch.func.functional_call(self.table, constant, (pieces,))  # type: ignore[no-any-return]

    @property
    def _is_constant(self) -> bool:
        return self.frozen and self.training

    def _run(self, pieces: Tensor, mask: Tensor) -> Tensor:
        states: Tensor = self.read(mask, input_ids=pieces).last_hidden_state
        return states

    def read(self, mask: Tensor, **inputs: Any) -> Any:
        """One pass over rows.

        Args:
            mask: (rows, seq) bool, True = real piece.
            inputs: `input_ids`, (rows, seq) int64, or `inputs_embeds`, from `look_up`; what else transformers takes.

        Returns:
            What transformers gives.
        """
        inputs["attention_mask"] = mask.long()
        # on a CPU the fused kernel's backward pass is slower than that of its parts where bfloat16 rows are short
        short = mask.device.type == "cpu" and torch.is_grad_enabled() and mask.shape[1] <= SHORT_ROW
        wanted = "eager" if short else self._attention
        if self.config._attn_implementation != wanted:
            self.model.set_attn_implementation(wanted)  # type: ignore[operator]
        if not self._is_constant:
            return self.model(**inputs)
        # as constants: they get no gradient, and no optimizer, gatherer or trick need know
        weights = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        return torch.func.functional_call(self.model, weights, (), inputs)

    def save(self, folder: Path) -> None:
        """Write config and weights into `folder` as transformers does."""
        with quiet():
            self.model.save_pretrained(str(folder))  # type: ignore[operator]


def _set_dropout(config: Any, rate: float | None) -> None:
    for name in _DROPOUTS if rate is not None else ():
        if hasattr(config, name):
            setattr(config, name, rate)


def _max_length(model: Any, subwords: PieceNumbers) -> int | None:
    """Characters that a model can read beside [CLS] and [SEP]."""
    limits = []
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions:
        # RoBERTa and its kin count positions from the padding's number on
        offset = hasattr(getattr(model, "embeddings", None), "create_position_ids_from_input_ids")
        limits.append(positions - (subwords.padding + 1 if offset else 0))
    if subwords.max_length is not None:
        limits.append(subwords.max_length)
    return min(limits) - 2 if limits else None


class PretrainedModel(Model):
    """What all models on a pretrained encoder share: its folder, freezing, depth, saving.

    A subclass sets `subwords` and `encoder` (by `open_folder`) and keeps their names.
    """

    libraries: ClassVar[tuple[str, ...]] = ("transformers", "tokenizers")
    kept_apart: ClassVar[tuple[str, ...]] = ("encoder.",)

    config: PretrainedConfig
    encoder: Encoder
    subwords: PieceNumbers

    @staticmethod
    def open_folder(config: PretrainedConfig, reading: type[P], pooler: bool = False) -> tuple[Encoder, P, str]:
        """The encoder and the pieces that a recipe names, and the sha256 of its weights, for `build`.

        Args:
            config: the recipe's.
            reading: how its texts are cut into pieces.
            pooler: see `Encoder.load`.

        Raises:
            DataError: there is no such folder, or it cannot be read.
        """
        folder = find_encoder(config.encoder)
        subwords = reading.load(folder)
        return Encoder.load(folder, subwords, config.encoder_dropout, pooler), subwords, weights_sha256(folder)

    @staticmethod
    def saved_folder(
        config: PretrainedConfig, folder: Path, reading: type[P], pooler: bool = False
    ) -> tuple[Encoder, P]:
        """The encoder and the pieces of a checkpoint, for `from_description`. Raises RunError."""
        inner = folder / ENCODER_FOLDER
        place = (
            inner if inner.exists() or not (folder / CONFIG_FILE).exists() else folder
        )  # see `CrossEncoder.save_files`
        try:
            subwords = reading.load(place)
            return Encoder.load(place, subwords, config.encoder_dropout, pooler), subwords
        except DataError as error:
            raise RunError(str(error)) from error

    def begin_epoch(self, epoch: int) -> None:
        self.encoder.frozen = epoch < self.config.freeze_epochs

    def depth(self, parameter: str) -> int:
        """Those of the encoder, and one more for everything on top of it."""
        prefix = "encoder.model."
        if parameter.startswith(prefix):
            return self.encoder.depth(parameter.removeprefix(prefix))
        return self.encoder.top + 1

    def save_files(self, folder: Path) -> None:
        place = folder / ENCODER_FOLDER
        place.mkdir()
        self.encoder.save(place)
        self.subwords.save(place)


class EncoderModel(PretrainedModel):
    """What the models on the characters of a text share besides: the windows, the attack point.

    A subclass's batch holds `windows`.
    """

    config: EncoderConfig
    subwords: Subwords

    @staticmethod
    def open_encoder(config: EncoderConfig) -> tuple[Encoder, Subwords, str]:
        """The encoder and the pieces that a recipe names, and the sha256 of its weights, for `build`.

        Raises:
            DataError: there is no such folder, or it cannot be read.
            RecipeError: the window is longer than the encoder can read.
        """
        encoder, subwords, digest = EncoderModel.open_folder(config, Subwords)
        check_window(config.window, encoder, "model.window")
        return encoder, subwords, digest

    @staticmethod
    def saved_encoder(config: EncoderConfig, folder: Path) -> tuple[Encoder, Subwords]:
        """The encoder and the pieces of a checkpoint, for `from_description`. Raises RunError."""
        return EncoderModel.saved_folder(config, folder, Subwords)

    def coverage_notes(self, texts: Iterable[str]) -> tuple[str, ...]:
        """What a person should be told of the characters of train that the encoder does not know."""
        share = self.subwords.unknown_share(texts)
        return (f"{self.config.encoder}: {100 * share:.2f} % of the characters of train (blanks included) are [UNK]",)

    @property
    def window(self) -> int | None:
        """Characters that the encoder reads at once; may be set on a trained model, and is saved with it. None = no limit."""
        return self.encoder.max_length if self.config.window is None else self.config.window

    @window.setter
    def window(self, characters: int | None) -> None:
        if characters is not None and characters < 1:
            raise RunError(f"window: must be at least 1 character, but is {characters}. Give another.")
        check_window(characters, self.encoder, "window")
        self.config = self.config.model_copy(update={"window": characters})

    @property
    def overlap(self) -> int:
        """Characters that two windows share at least; may be set like `window`."""
        return self.config.overlap

    @overlap.setter
    def overlap(self, characters: int) -> None:
        if characters < 0:
            raise RunError(f"overlap: must be at least 0 characters, but is {characters}. Give another.")
        self.config = self.config.model_copy(update={"overlap": characters})

    def windows(self, pieces: Sequence[NDArray[np.int64]]) -> Windows:
        """The rows for a batch of texts, for `collate`.

        Args:
            pieces: of each text, as `subwords.encode` gives them.
        """
        window = self.window or max(map(len, pieces))
        subwords, limit = self.subwords, self.encoder.max_length
        return lay_out(
            pieces, window, self.config.overlap, first=subwords.first, last=subwords.last, padding=subwords.padding,
            widest=None if limit is None else limit + 2,
        )  # fmt: skip

    def attack_points(self, batch: Any) -> Mapping[str, AttackPoint]:
        table, windows = self.encoder.table, batch.windows
        return {"pieces": AttackPoint(table, windows.samples, table.weight, len(windows.places))}  # type: ignore[arg-type]


def check_window(window: int | None, encoder: Encoder, place: str) -> None:
    """Raises RecipeError where a window is longer than the encoder can read."""
    if window is not None and encoder.max_length is not None and window > encoder.max_length:
        raise RecipeError(
            f"{place}: must be at most {encoder.max_length} characters, which this encoder can read, but is {window}. "
            "Lower it, or leave it out."
        )
