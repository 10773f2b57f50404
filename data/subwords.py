"""Characters to the pieces of a pretrained encoder: exactly one piece a code point, always.

A tokenizer of its own would drop blanks and control characters, merge runs of digits and letters, and take an upper-case letter
for unknown where the vocabulary is lower-case; labels would shift. Here each distinct character is asked for once:

1. the vocabulary's own entry;
2. else the entry of its lower-case, accent-stripped or half-width form, where that is one code point (for the model only: the text
   stays as it is);
3. else the first piece that the folder's tokenizer makes of it;
4. else [UNK]: also for what the tokenizer drops (blanks, control characters, zero-width joiners, lone surrogates). BERT's free
   entries ([unused1]) would tell a blank from a rare character, but they were never trained; no benefit is published.

An encoder is a Hugging Face folder: config.json, safetensors, the tokenizer's files. It is looked for as a path, in
$HANZOO_ENCODERS, and only then on the hub.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from logging import ERROR
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hanzoo.data.files import expanded
from hanzoo.errors import DataError

CONFIG_FILE = "config.json"
MODULES_FILE = "modules.json"  # of a sentence-transformers folder: which of its folders is what
ENCODER_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]  # what is fetched from the hub: no pickle, no code
SINGLE_WEIGHTS, SPLIT_WEIGHTS = "model.safetensors", "model.safetensors.index.json"

_BARE_MARKS = {"▁", "Ġ"}  # pieces of SentencePiece and byte-level vocabularies that say only: a word begins


def find_encoder(name_or_path: str) -> Path:
    """The folder of an encoder.

    Args:
        name_or_path: a path, or the name of a folder in $HANZOO_ENCODERS, or else the name of a model on the Hugging Face hub.

    Raises:
        DataError: there is none, or its weights are not safetensors.
    """
    root = os.environ.get("HANZOO_ENCODERS", "")
    places = [expanded(name_or_path), *([expanded(root) / name_or_path] if root else [])]
    for place in map(_within, places):
        if (place / CONFIG_FILE).is_file():
            return _with_safetensors(place)
    looked = ", ".join(str(place) for place in dict.fromkeys(places))
    unset = "" if root else "; HANZOO_ENCODERS is not set"
    fetched = _from_hub(name_or_path)
    if isinstance(fetched, Path):
        return _with_safetensors(fetched, name_or_path)
    raise DataError(
        f"{name_or_path}: an encoder must be a Hugging Face folder ({CONFIG_FILE}, {SINGLE_WEIGHTS}, a tokenizer), but there is "
        f"none (looked for: {looked}{unset}; {fetched}). Set HANZOO_ENCODERS to the folder that holds it, or give its path."
    )


def _within(folder: Path) -> Path:
    """Where the encoder of a sentence-transformers folder is; any other folder itself."""
    try:
        modules = json.loads((folder / MODULES_FILE).read_text(encoding="utf-8"))
        paths = [module["path"] for module in modules if module["type"].endswith(".Transformer")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return folder
    return folder / str(paths[0]) if paths else folder


def _from_hub(name: str) -> Path | str:
    """The folder that the hub's copy was fetched to, or why there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if name.count("/") > 1 or name.startswith((".", "~", "/")):
        return "this is no name of the hub"
    try:
        with quiet():
            folder = _within(Path(snapshot_download(name, allow_patterns=ENCODER_FILES)))
    except HFValidationError:
        return "this is no name of the hub"
    except HfHubHTTPError as error:
        return f"the hub says {' '.join(str(error).split())[:120]}"
    except (OSError, ValueError) as error:  # no network, or told to do without
        return f"the hub cannot be reached: {type(error).__name__}"
    return folder if (folder / CONFIG_FILE).is_file() else f"the hub's {name} has no {CONFIG_FILE}"


def _with_safetensors(folder: Path, hub_name: str | None = None) -> Path:
    if (folder / SINGLE_WEIGHTS).is_file() or (folder / SPLIT_WEIGHTS).is_file():
        return folder
    if hub_name is None and not (folder / "pytorch_model.bin").is_file():
        raise DataError(
            f"{folder}: an encoder must hold {SINGLE_WEIGHTS}, but holds no weights. Copy the whole folder."
        )
    # from the hub only safetensors were asked for, so that what else is there is not known
    source, target = (folder, folder) if hub_name is None else (hub_name, hub_name.rpartition("/")[2])
    raise DataError(
        f"{source}: the weights of an encoder must be safetensors, but are pytorch_model.bin or the like, a pickle, which could "
        "run code and is never loaded. If you trust it, convert it once and give the new folder: "
        'python -c "from transformers import AutoModel as M, AutoTokenizer as T; '
        f"s, t = '{source}', '{target}'; M.from_pretrained(s).save_pretrained(t); T.from_pretrained(s).save_pretrained(t)\""
    )


def weights_sha256(folder: Path) -> str:
    """The sha256 of an encoder's weights: of model.safetensors; where they are split, of all its files in order of name."""
    single = folder / SINGLE_WEIGHTS
    total = hashlib.sha256()
    for path in [single] if single.is_file() else sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the reports and progress bars of transformers and of the hub inside a with-block."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    verbosity, bars, hub_bars = (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        not are_progress_bars_disabled(),
    )
    logging.set_verbosity(ERROR)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        if hub_bars:
            enable_progress_bars()


def _plainer_forms(character: str) -> Iterator[str]:
    """Forms of a character that a vocabulary may have instead, nearest first; each is one code point."""
    width = chr(ord(character) - 0xFEE0) if "\uff01" <= character <= "\uff5e" else character
    for form in (character, width):
        bare = "".join(c for c in unicodedata.normalize("NFD", form) if unicodedata.category(c) != "Mn")
        for other in (form, form.lower(), bare, bare.lower()):
            if len(other) == 1:
                yield other


class PieceNumbers:
    """What every reading of a tokenizer shares: the numbers of its special pieces, loading and saving.

    Args:
        tokenizer: of transformers, with [CLS], [SEP] and [UNK].

    Attributes:
        first: number of [CLS], put before each row.
        last: number of [SEP], put behind it.
        padding: number of [PAD], 0 where there is none.
        unknown: number of [UNK].
        mask: number of [MASK]; None where there is none.
        max_length: pieces that the tokenizer's folder says the model reads; None = it says nothing.

    Raises:
        DataError: the tokenizer lacks one of the three, or has no vocabulary.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._vocabulary: dict[str, int] = tokenizer.get_vocab()
        self.first = self._special("cls_token")
        self.last = self._special("sep_token")
        self.unknown = self._special("unk_token")
        self.padding: int = tokenizer.pad_token_id or 0
        self.mask: int | None = tokenizer.mask_token_id
        self.max_length: int | None = tokenizer.model_max_length if tokenizer.model_max_length < 1_000_000 else None
        self._reserved = set(tokenizer.all_special_ids)
        if self._reserved.issuperset(
            self._vocabulary.values()
        ):  # what transformers makes of a folder without a vocabulary
            raise DataError(
                f"{tokenizer.name_or_path}: the tokenizer must know pieces (vocab.txt or tokenizer.json), but knows none. "
                "Copy the whole folder."
            )

    def _special(self, name: str) -> int:
        number = getattr(self._tokenizer, f"{name}_id")
        if number is None:
            raise DataError(
                f"{self._tokenizer.name_or_path}: the tokenizer must have a {name}, but has none. "
                "Use an encoder of the BERT family."
            )
        return int(number)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The pieces of an encoder folder. Raises DataError where its tokenizer cannot be read."""
        from transformers import AutoTokenizer

        try:
            with quiet():
                tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        except Exception as error:  # whatever the file makes the tokenizers library raise, a bare Exception included
            raise DataError(
                f"{folder}: the tokenizer must be one that transformers reads, but is not ({' '.join(str(error).split())[:200]}). "
                "Copy the whole folder."
            ) from error
        return cls(tokenizer)

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files (JSON and text) into `folder`."""
        with quiet():
            self._tokenizer.save_pretrained(str(folder))

    def __len__(self) -> int:
        return max(self._vocabulary.values()) + 1


class Subwords(PieceNumbers):
    """From a text to piece numbers, one a code point; see `PieceNumbers`."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self._numbers: dict[str, int] = {}

    def encode(self, text: str) -> NDArray[np.int64]:
        """Piece numbers, (len(text),) int64; none of them is special but for [UNK]."""
        numbers = self._numbers
        for character in set(text).difference(numbers):
            numbers[character] = self._look_up(character)
        return np.fromiter((numbers[character] for character in text), dtype=np.int64, count=len(text))

    def _look_up(self, character: str) -> int:
        if "\ud800" <= character <= "\udfff":  # no tokenizer takes it
            return self.unknown
        pieces = (*_plainer_forms(character), *self._tokenizer.tokenize(character))
        for piece in pieces:
            number = self._vocabulary.get(piece)
            if number is not None and number not in self._reserved and piece not in _BARE_MARKS:
                return number
        return self.unknown

    def unknown_share(self, texts: Iterable[str]) -> float:
        """The share of the characters of these texts that are read as [UNK]."""
        unknown = total = 0
        for text in texts:
            unknown += int(np.count_nonzero(self.encode(text) == self.unknown))
            total += len(text)
        return unknown / max(1, total)
