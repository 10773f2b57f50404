"""One piece a code point, whatever it is; and where an encoder's folder is looked for."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanzoo.data.subwords import Subwords, find_encoder, quiet, weights_sha256
from hanzoo.errors import DataError
from tests import tiny


@pytest.fixture(scope="module")
def pieces(encoders: Path) -> Subwords:
    return Subwords.load(encoders / "tiny-bert")


def names(pieces: Subwords, text: str) -> list[str]:
    return list(pieces._tokenizer.convert_ids_to_tokens(pieces.encode(text).tolist()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("北京", ["北", "京"]),
        ("aA", ["a", "a"]),  # the tokenizer would leave capitals as they are, and the vocabulary has none
        ("Ａ１（", ["a", "１", "（"]),  # full width: its own entry before a plainer one
        ("ａ", ["a"]),
        ("áÀ", ["a", "a"]),
        ("a\u0301", ["a", "[UNK]"]),  # an accent of its own is a code point
        ("12", ["1", "2"]),  # where the tokenizer has no piece for the run
        ("aaa", ["a", "a", "a"]),  # and no ##a
        (" \t\n\u3000\u200b\u00a0\ufeff\ufffd\0\x7f", ["[UNK]"] * 10),
        ("👨\u200d👩", ["[UNK]"] * 3),
        ("𠮷", ["[UNK]"]),
        ("\ud800", ["[UNK]"]),
        ("İß", ["[UNK]", "[UNK]"]),
        ("", []),
    ],
)
def test_one_piece_a_code_point(pieces: Subwords, text: str, expected: list[str]) -> None:
    assert names(pieces, text) == expected
    # what would shift the labels: the tokenizer itself
    if text in ("12", " \t\n\u3000\u200b\u00a0\ufeff\ufffd\0\x7f"):
        assert len(pieces._tokenizer.tokenize(text)) != len(text)


@given(st.text(alphabet=st.characters(), max_size=40))
def test_any_text_has_as_many_pieces_as_code_points(text: str) -> None:
    found = PIECES[0].encode(text)
    assert found.shape == (len(text),)
    assert found.dtype == np.int64
    reserved = {PIECES[0].first, PIECES[0].last, PIECES[0].padding, PIECES[0].mask}
    assert not reserved & set(found.tolist())
    alone = [int(PIECES[0].encode(character)[0]) for character in text]
    assert found.tolist() == alone


PIECES: list[Subwords] = []


@pytest.fixture(autouse=True, scope="module")
def _hold(pieces: Subwords) -> None:
    PIECES.append(pieces)


def test_saved_and_loaded_it_says_the_same(pieces: Subwords, tmp_path: Path) -> None:
    text = "".join(document.text for document in tiny.DOCUMENTS) + "AＡ é\0ｏ😀"
    pieces.save(tmp_path)
    again = Subwords.load(tmp_path)
    assert (again.encode(text) == pieces.encode(text)).all()
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".txt"}
    for name in ("first", "last", "padding", "unknown", "mask", "max_length"):
        assert getattr(again, name) == getattr(pieces, name)
    assert len(again) == len(pieces)


def test_the_share_of_unknown_characters(pieces: Subwords) -> None:
    assert pieces.unknown_share(["北京", "a 𠮷1"]) == pytest.approx(2 / 6)
    assert pieces.unknown_share([]) == 0.0


def test_a_character_that_is_a_special_piece_is_unknown(tmp_path: Path) -> None:
    folder = tiny.write_encoder(tmp_path / "odd")
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"[MASK]"', '"#"'), encoding="utf-8")
    odd = Subwords.load(folder)
    assert names(odd, "#北") == ["[UNK]", "北"]
    assert odd.mask == odd._vocabulary["#"]


# Where a folder is looked for.


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []

    def download(name: str, **_: Any) -> str:
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def test_a_path_then_the_folder_of_encoders_then_the_hub(
    encoders: Path, tmp_path: Path, offline: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_encoder("tiny-bert") == encoders / "tiny-bert"
    here = tiny.write_encoder(tmp_path / "tiny-bert")
    monkeypatch.chdir(tmp_path)
    assert find_encoder("tiny-bert").resolve() == here
    assert find_encoder(str(encoders / "tiny-albert")) == encoders / "tiny-albert"
    assert offline == []
    with pytest.raises(DataError, match=r"(?=.*the hub cannot be reached)(?=.*HANZOO_ENCODERS)") as found:
        find_encoder("org/nothing")
    assert str(encoders / "org" / "nothing") in str(found.value)
    assert offline == ["org/nothing"]
    monkeypatch.delenv("HANZOO_ENCODERS")
    with pytest.raises(DataError, match="HANZOO_ENCODERS is not set"):
        find_encoder("nothing")
    with pytest.raises(DataError, match="no name of the hub"):
        find_encoder("/some/where/nothing")
    assert offline == ["org/nothing", "nothing"]


def test_a_copy_of_the_hub_is_a_folder_like_any_other(encoders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, **options: Any) -> str:
        assert not any("bin" in pattern or "py" in pattern for pattern in options["allow_patterns"])
        return str(encoders / name.partition("/")[2])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_encoder("org/tiny-bert") == encoders / "tiny-bert"


def test_a_pickle_is_refused_with_the_line_that_converts_it(tmp_path: Path) -> None:
    folder = tiny.write_encoder(tmp_path / "old")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"(?=.*pickle)(?=.*python -c .*AutoModel.*save_pretrained)"):
        find_encoder(str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(folder))
        with pytest.raises(DataError, match=r"'org/old', 'old'; M.from_pretrained"):
            find_encoder("org/old")
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(DataError, match=r"holds no weights"):
        find_encoder(str(folder))


@pytest.mark.parametrize("damage", ["tokenizer_config.json", "vocab.txt"])
def test_a_damaged_tokenizer_is_one_error(tmp_path: Path, damage: str) -> None:
    folder = tiny.write_encoder(tmp_path / "damaged")
    (folder / damage).write_text("" if damage == "vocab.txt" else "{", encoding="utf-8")
    with pytest.raises(DataError, match="tokenizer must"):
        Subwords.load(folder)


def test_the_hash_is_that_of_the_weights(tmp_path: Path) -> None:
    folder = tiny.write_encoder(tmp_path / "one")
    content = (folder / "model.safetensors").read_bytes()
    assert weights_sha256(folder) == hashlib.sha256(content).hexdigest()
    (folder / "model.safetensors").rename(folder / "model-2.safetensors")
    (folder / "model-1.safetensors").write_bytes(b"first")
    assert weights_sha256(folder) == hashlib.sha256(b"first" + content).hexdigest()


def test_what_is_silenced_comes_back() -> None:
    from transformers.utils import logging as reports

    before = reports.get_verbosity(), reports.is_progress_bar_enabled()
    with quiet():
        assert reports.get_verbosity() == logging.ERROR
        assert not reports.is_progress_bar_enabled()
    assert (reports.get_verbosity(), reports.is_progress_bar_enabled()) == before
