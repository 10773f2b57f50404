"""A matcher's folder as other libraries open it: sentence-transformers 5 and 6, pylate, and transformers alone.

The files are written here, not by those libraries: hanzoo does not need them installed, and what sentence-transformers 6 writes
its version 5 and pylate cannot read, while all of them read the names that stand here (`sentence_transformers.models.Pooling`).
Weights of the encoder are not written twice: `modules.json` names the folder in which they are.

Source: the formats of sentence-transformers 5.3 and 6.2, pylate 1.6, transformers 5.
Cost: some small files; the pooler's or the projection's weights a second time.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hanzoo.data.subwords import CONFIG_FILE, MODULES_FILE, SINGLE_WEIGHTS, quiet
from hanzoo.models.layers.encoder import Encoder

# of the oldest versions that read all of this; sentence-transformers warns where it is older than what is named
VERSIONS = {"sentence_transformers": "5.0.0", "transformers": "4.50.0", "pytorch": "2.6.0"}
TRANSFORMER = "sentence_transformers.models.Transformer"
IDENTITY, TANH = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Tanh"
# the states of [CLS] times this lie where tanh(x) = x in float32, and are no subnormal numbers in bfloat16
SMALL = 2.0**-12


def write_modules(folder: Path, modules: Sequence[tuple[str, str]], about: Mapping[str, Any]) -> None:
    """Say which modules a text goes through, and make their folders.

    Args:
        folder: of the model.
        modules: of each, in order: its folder in there, the name of its class.
        about: what else stands in config_sentence_transformers.json.
    """
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": kind} for number, (path, kind) in enumerate(modules)
    ]
    write_json(folder / MODULES_FILE, listed)
    general = {"__version__": VERSIONS, "prompts": {}, "default_prompt_name": None}
    write_json(folder / "config_sentence_transformers.json", general | dict(about))
    for path, _ in modules:
        (folder / path).mkdir(exist_ok=True)


def write_transformer(folder: Path, pieces: int | None, **settings: Any) -> None:
    """Beside an encoder's files: how many pieces of a text are read, special ones included; None = any number."""
    limit = {} if pieces is None else {"max_seq_length": pieces}
    write_json(folder / "sentence_bert_config.json", {**limit, "do_lower_case": False, **settings})


def write_pooling(folder: Path, width: int, mode: str) -> None:
    """One vector a text: `mode` is "mean" or "cls"."""
    ways = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    chosen = {f"pooling_mode_{way}": way.startswith(f"{mode}_t") for way in ways}
    write_json(folder / CONFIG_FILE, {"word_embedding_dimension": width, **chosen, "include_prompt": True})


def write_first_last(folder: Path, width: int, layers: int) -> None:
    """The mean of the first and the last layer's states, for each piece."""
    weights = torch.zeros(layers)
    weights[0] = weights[-1] = 1.0
    write_json(folder / CONFIG_FILE, {"word_embedding_dimension": width, "layer_start": 1, "num_hidden_layers": layers})
    save_file({"layer_weights": weights}, folder / SINGLE_WEIGHTS)


def write_dense(folder: Path, weight: Tensor, bias: Tensor | None, activation: str, **settings: Any) -> None:
    """A linear layer.

    Args:
        folder: of the module.
        weight: (out, in).
        bias: (out,); None = none.
        activation: the name of a class of torch.
        settings: what else its config says.
    """
    out, width = weight.shape
    about = {"in_features": width, "out_features": out, "bias": bias is not None, "activation_function": activation}
    write_json(folder / CONFIG_FILE, {**about, **settings})
    weights = {"linear.weight": weight} | ({} if bias is None else {"linear.bias": bias})
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, folder / SINGLE_WEIGHTS)


def pooler_of(model: Any) -> nn.Linear | None:
    """The linear layer under the tanh of BERT's pooler, or ALBERT's; None for an encoder whose pooler is another, or none."""
    pooler = getattr(model, "pooler", None)
    activation = getattr(model, "pooler_activation", None) or getattr(pooler, "activation", None)
    dense = getattr(pooler, "dense", pooler)
    return dense if isinstance(activation, nn.Tanh) and isinstance(dense, nn.Linear) else None


def write_sequence_classifier(folder: Path, encoder: Encoder, output: nn.Linear) -> bool:
    """A linear map of the state of [CLS], as the sequence classification of transformers, with one label.

    BERT's and ALBERT's has its pooler in between, tanh(W x + b). W is SMALL times the identity here and the map as much larger, so
    that the tanh changes nothing that float32 holds. Who trains on from this folder elsewhere should draw the pooler anew.

    Args:
        folder: gets config.json and model.safetensors, from which the encoder can be read too.
        encoder: without its pooler.
        output: (1, width).

    Returns:
        Whether there is such a class for this encoder; otherwise nothing is written.
    """
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(encoder.config)
    config.num_labels = 1
    try:
        with quiet(), torch.device("meta"):  # for its shape alone: nothing is drawn
            whole: Any = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    except ValueError:  # an architecture without one
        return False
    dense, last = pooler_of(whole.base_model), getattr(whole, "classifier", None)
    if dense is None or not isinstance(last, nn.Linear) or last.in_features != encoder.width:
        return False
    names = {id(module): name for name, module in whole.named_modules()}
    weights = {f"{whole.base_model_prefix}.{name}": tensor for name, tensor in encoder.model.state_dict().items()}
    weights[f"{names[id(dense)]}.weight"] = SMALL * torch.eye(encoder.width)
    weights[f"{names[id(dense)]}.bias"] = torch.zeros(encoder.width)
    weights[f"{names[id(last)]}.weight"] = output.weight / SMALL
    weights[f"{names[id(last)]}.bias"] = output.bias
    save_file(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()},
        folder / SINGLE_WEIGHTS,
        metadata={"format": "pt"},
    )
    config.architectures = [type(whole).__name__]
    config.sentence_transformers = {"activation_fn": IDENTITY}  # the score itself, not its sigmoid
    config.save_pretrained(str(folder))
    return True


def set_tokenizer(folder: Path, **settings: Any) -> None:
    """Change the config of a tokenizer that was saved."""
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8")) | settings
    write_json(path, dict(sorted(content.items())))  # as transformers writes it: saved again it is the same


def write_notes(folder: Path, name: str, opened_by: Sequence[str], notes: Sequence[str]) -> None:
    """README.md: how other libraries open the folder, and where they differ."""
    code = "\n".join(opened_by)
    said = "".join(f"\n- {note}" for note in notes)
    text = (
        f"# A {name} of hanzoo\n\n```python\nimport hanzoo\n\nmodel = hanzoo.load('FOLDER')\n```\n\n"
        + (f"Without hanzoo:\n\n```python\n{code}\n```\n" if opened_by else "")
        + (f"\nWhat to know:\n{said}\n" if notes else "")
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """A JSON file as the others of a checkpoint."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
