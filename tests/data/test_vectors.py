"""Reading word2vec text: what is accepted, what is refused with its place, and the cache."""

from __future__ import annotations

import gzip
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanzoo.data import vectors as module
from hanzoo.data.vectors import Vectors, load_vectors
from hanzoo.errors import DataError

REAL_FOLDER = os.environ.get("HANZOO_VECTORS", "")  # read before the fixture below takes it away
PLAIN = "3 2\n中 0.5 -1\n国 1e-2 2.25\n中国 .125 3\n"
MATRIX = np.array([[0.5, -1], [0.01, 2.25], [0.125, 3]], dtype=np.float32)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HANZOO_VECTORS", raising=False)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(content: str | bytes, name: str = "some.vec") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write


def array(values: object) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def rows(count: int) -> str:
    """Return rows of two numbers; row i holds the word `wi` and the numbers i and -i."""
    return "".join(f"w{index} {index} -{index}\n" for index in range(count))


def assert_same(first: Vectors, second: Vectors) -> None:
    assert first.words == second.words
    assert first.matrix.dtype == second.matrix.dtype == np.float32
    np.testing.assert_array_equal(first.matrix, second.matrix)
    assert (first.sha256, first.name, first.notes) == (second.sha256, second.name, second.notes)


# ---- what is accepted


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.removesuffix("\n"),
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", " \n"),  # the C tool writes a blank at the end of each row
        "\ufeff" + PLAIN,
        PLAIN.replace(" ", "\t"),
        PLAIN + "\n\n",
        PLAIN.removeprefix("3 2\n"),  # GloVe: no header
        "\ufeff" + PLAIN.removeprefix("3 2\n"),
        PLAIN.replace("中 ", "中  "),
    ],
    ids=[
        "plain",
        "no last LF",
        "CRLF",
        "blanks",
        "BOM",
        "tabs",
        "blank lines",
        "no header",
        "BOM, no header",
        "2 blanks",
    ],
)
def test_plain_variants_give_the_same_rows(write: Callable[..., Path], content: str) -> None:
    vectors = load_vectors(write(content))
    assert vectors.words == ("中", "国", "中国")
    np.testing.assert_array_equal(vectors.matrix, MATRIX)
    assert vectors.notes == ()
    assert (len(vectors), vectors.dimension, vectors.name) == (3, 2, "some.vec")


def test_gzip_is_known_by_content_and_hashed_as_stored(write: Callable[..., Path]) -> None:
    packed = gzip.compress(PLAIN.encode())
    vectors = load_vectors(write(packed, "packed.txt"))
    np.testing.assert_array_equal(vectors.matrix, MATRIX)
    assert vectors.sha256 == hashlib.sha256(packed).hexdigest()
    assert vectors.sha256 != load_vectors(write(PLAIN)).sha256


def test_words_may_hold_blanks_and_every_separator_of_lines_but_lf(write: Callable[..., Path]) -> None:
    words = ["a b", "\u00a0", "x\u00a0y", "\u3000", "\u2028", "p\u0085q", "\v", "5 o'clock", "\U0001f600"]
    vectors = load_vectors(write("".join(f"{word} 1 2\n" for word in ["w", *words])))
    assert vectors.words == ("w", *words)
    np.testing.assert_array_equal(vectors.matrix, np.tile(array([1, 2]), (len(words) + 1, 1)))


def test_word_of_one_blank(write: Callable[..., Path]) -> None:
    assert load_vectors(write("2 2\nw 1 2\n  3 4\n")).words == ("w", " ")


def test_first_of_repeated_words_holds_and_they_are_counted(write: Callable[..., Path]) -> None:
    vectors = load_vectors(write("4 1\na 1\nb 2\na 3\na 4\n"))
    assert vectors.words == ("a", "b")
    np.testing.assert_array_equal(vectors.matrix, array([[1], [2]]))
    assert vectors.notes == ("2 rows repeat a word: the first row of each word holds",)


@pytest.mark.parametrize(
    "bad", ["short 1", "long 1 2 3", "text 1 x", "joined 1 2,5", "bare", "gap  1", "gap  1-2", "more 1 2-3"]
)
def test_a_few_rows_with_wrong_columns_are_skipped_and_said(write: Callable[..., Path], bad: str) -> None:
    vectors = load_vectors(write("41 2\n" + rows(25) + bad + "\n" + rows(40).removeprefix(rows(25))))
    assert vectors.words == tuple(f"w{index}" for index in range(40))
    np.testing.assert_array_equal(vectors.matrix[:, 0], np.arange(40))
    assert vectors.notes == ("1 of 41 rows skipped, since they do not hold a word and 2 numbers (the first: line 27)",)


@pytest.mark.parametrize("bad", ["gap  1\nmore 5\v6 7\n", "more 5\v6 7\ngap  1\n"])
def test_a_number_too_few_and_one_too_many_do_not_make_up_for_each_other(write: Callable[..., Path], bad: str) -> None:
    vectors = load_vectors(write("52 2\n" + bad + rows(50)))
    assert vectors.words == tuple(f"w{index}" for index in range(50))
    np.testing.assert_array_equal(vectors.matrix[:, 0], np.arange(50))
    assert vectors.notes[0].startswith("2 of 52 rows skipped")


def test_blocks_do_not_show(write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = "62 2\n" + rows(30) + "bad 1\n" + rows(31)  # 30 repeats and a bad row, on both sides of block edges
    whole = load_vectors(write(content))
    monkeypatch.setattr(module, "BLOCK_BYTES", 17)
    assert_same(load_vectors(write(content), cache=tmp_path / "another"), whole)
    assert len(whole) == 31
    assert len(whole.notes) == 2


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=8))
def test_numbers_are_those_of_python(numbers: list[float]) -> None:
    text = " ".join(map(repr, numbers)).encode()
    parsed = module._parse_numbers(text, len(numbers))
    assert parsed is not None
    np.testing.assert_array_equal(parsed, array(numbers))
    assert module._parse_numbers(text + b" x", len(numbers)) is None
    assert module._parse_numbers(text + b" 1", len(numbers)) is None


def test_select_keeps_order_and_lets_the_matrix_go(write: Callable[..., Path]) -> None:
    vectors = load_vectors(write(PLAIN))
    single = vectors.select(lambda word: len(word) == 1)
    assert single.words == ("中", "国")
    np.testing.assert_array_equal(single.matrix, MATRIX[:2])
    assert not np.shares_memory(single.matrix, vectors.matrix)
    assert (single.sha256, single.name) == (vectors.sha256, vectors.name)
    nothing = vectors.select(lambda word: False)
    assert nothing.matrix.shape == (0, 2)
    assert nothing.words == ()


# ---- what is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("4 2\n" + PLAIN.removeprefix("3 2\n"), r"some\.vec:1: the header's count must be .* but is 4, and 3 rows follow"),
        ("2 2\n" + PLAIN.removeprefix("3 2\n"), r"some\.vec:1: the header's count must be .* but is 2, and 3 rows follow"),
        ("3 3\n" + PLAIN.removeprefix("3 2\n"), r"some\.vec:2: a row must hold a word and 3 numbers, as the header says"),
        ("3 1\n" + PLAIN.removeprefix("3 2\n"), r"some\.vec:2: a row must hold a word and 1 numbers, as the header says"),
        ("3 0\n" + PLAIN.removeprefix("3 2\n"), r"some\.vec:1: the header's dimension must be at least 1, but is 0"),
        (f"{10**15} {10**15}\n中 1 2\n", r"some\.vec:2: a row must hold"),
        ("3 2\n", r"some\.vec: vectors must hold at least one row"),
        ("", r"some\.vec: vectors must hold at least one row"),
        ("hello\n", r"some\.vec:1: the first line must be a header .* but is 'hello'"),
        ("not a vector file\nat all\n", r"some\.vec:1: a row must hold a word and 3 numbers, as the first line holds"),
        ("w 1 2\n" + rows(10) + "bad 1\n", r"some\.vec:12: .* is 'bad 1' \(1 of 12 rows are unlike that\)"),
        ("2 2\n中 1 nan\n国 1 2\n", r"some\.vec:2: a vector must hold finite numbers, but that of '中' holds nan"),
        ("2 2\n中 1 2\n国 1 -inf\n", r"some\.vec:3: .* '国' holds -inf"),
        ("2 2\n中 1 2\n国 1 1e300\n", r"some\.vec:3: .* '国' holds inf"),
        ("2 2\n中 1 2\n".encode() + b"\xd6\xd0 1 2\n", r"some\.vec:3: a word must be UTF-8, but is b'\\xd6\\xd0'"),
        ("1 2\n中国 1 2\n".encode("gbk"), r"some\.vec:2: a word must be UTF-8"),
        (gzip.compress(PLAIN.encode() * 50, mtime=0)[:-12], r"some\.vec: vectors must be a whole \.gz file, but unpacking"),
        (gzip.compress(PLAIN.encode())[:-4] + b"\0\0\0\0", r"some\.vec: vectors must be a whole \.gz file"),
        (b"\x1f\x8b" + bytes(100), r"some\.vec: vectors must be a whole \.gz file"),
    ],
    ids=[
        "count too large", "count too small", "dimension too large", "dimension too small", "dimension 0", "huge header",
        "header alone", "empty", "one word", "prose", "more than a few bad rows", "nan", "-inf", "overflow", "not UTF-8",
        "gbk", "truncated gz", "wrong length of gz", "not gz",
    ],
)  # fmt: skip
def test_refused_with_the_place(write: Callable[..., Path], content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_vectors(write(content))
    assert not (tmp_path / "cache").exists()  # nothing of a refused file is kept


def test_binary_form_is_refused(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 1000)
    with pytest.raises(DataError, match="the binary form is not read"):
        load_vectors(write(b"9 400\n" + bytes(9 * 1600)))


def test_missing_file_names_the_places_and_the_key(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        DataError, match=r"^zh\.vec: .*looked for: zh\.vec; HANZOO_VECTORS is not set.*Set HANZOO_VECTORS"
    ):
        load_vectors("zh.vec")
    monkeypatch.setenv("HANZOO_VECTORS", str(tmp_path))
    with pytest.raises(DataError, match=rf"looked for: zh\.vec, {tmp_path}/zh\.vec\)"):
        load_vectors("zh.vec")
    with pytest.raises(DataError, match="there is none"):
        load_vectors(tmp_path)  # a folder is no file
    write(gzip.compress(PLAIN.encode()), "zh.vec.gz")
    assert load_vectors("zh.vec").name == "zh.vec.gz"  # named without .gz
    write(PLAIN, "zh.vec")
    assert load_vectors("zh.vec").name == "zh.vec"  # the file itself comes first


# ---- the cache


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "vectors").iterdir())


def test_second_load_comes_from_the_cache(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("41 2\n" + rows(40) + "bad 1\n")
    first = load_vectors(path)
    assert [file.name for file in cached(tmp_path)] == [f"{first.sha256}.safetensors"]
    monkeypatch.setattr(module, "_parse", None)  # parsing again would fail
    assert_same(load_vectors(path), first)
    assert first.notes
    path.write_text("1 1\na 1\n")  # another content: not that cache
    with pytest.raises(TypeError):
        load_vectors(path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "other file", "older rules", "folder"])
def test_damaged_cache_is_rebuilt(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    path = write(PLAIN)
    first = load_vectors(path)
    (file,) = cached(tmp_path)
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[-1] ^= 1  # safetensors itself does not see that
    other = load_vectors(write("1 1\na 1\n", "other.vec")).sha256
    damaged = {
        "truncated": content[:-3],
        "empty": b"",
        "flipped": bytes(flipped),
        "other file": file.with_name(f"{other}.safetensors").read_bytes(),
        "older rules": content.replace(b'"format":"1"', b'"format":"0"'),
    }
    if damage == "folder":
        file.unlink()
        file.mkdir()
        assert "cannot be written" in load_vectors(path).notes[0]
        return
    assert damaged[damage] != content
    file.write_bytes(damaged[damage])
    parsed = []
    parse = module._parse

    def watched(path: Path, digest: str) -> Vectors:
        parsed.append(path)
        return parse(path, digest)

    monkeypatch.setattr(module, "_parse", watched)
    assert_same(load_vectors(path), first)
    assert parsed == [path]
    monkeypatch.setattr(module, "_parse", None)  # parsing again would fail: the rebuilt cache is whole
    assert_same(load_vectors(path), first)


def test_cache_that_cannot_be_written_costs_only_the_caching(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(PLAIN)
    vectors = load_vectors(path, cache=write("", "a file"))  # no folder can be made there
    np.testing.assert_array_equal(vectors.matrix, MATRIX)
    assert len(vectors.notes) == 1
    assert "cannot be written" in vectors.notes[0]
    assert "set HANZOO_CACHE" in vectors.notes[0]

    def full(tensors: object, beside: Path, metadata: object) -> None:
        beside.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    vectors = load_vectors(path)
    np.testing.assert_array_equal(vectors.matrix, MATRIX)
    assert "No space left on device" in vectors.notes[0]
    assert cached(tmp_path) == []  # the half-written file is gone


def test_safetensors_says_no_room_in_its_own_way(write: Callable[..., Path], tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = write(rows(20_000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (50_000, limits[1])
    )  # no file may grow larger; the matrix has 160,000 bytes
    try:
        vectors = load_vectors(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(vectors) == 20_000
    assert len(vectors.notes) == 1
    assert "cannot be written" in vectors.notes[0]
    assert cached(tmp_path) == []
    assert load_vectors(path).notes == ()  # and with room again all is well
    assert len(cached(tmp_path)) == 1


def test_cache_has_the_usual_permissions(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(PLAIN)
    load_vectors(path)
    assert cached(tmp_path)[0].stat().st_mode == path.stat().st_mode


def test_where_the_cache_lies(write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(PLAIN)
    monkeypatch.setenv("HANZOO_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_vectors(path)
    assert len(list((tmp_path / "xdg" / "hanzoo" / "vectors").iterdir())) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load_vectors(path)
    assert len(list((tmp_path / "home" / ".cache" / "hanzoo" / "vectors").iterdir())) == 1


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_no_home_folder(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("HANZOO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    vectors = load_vectors(write(PLAIN))
    np.testing.assert_array_equal(vectors.matrix, MATRIX)
    assert "Could not determine home directory" in vectors.notes[0]


# ---- the file that the figures were made with


@pytest.mark.data
def test_the_real_file() -> None:
    path = Path(REAL_FOLDER) / "zh.64d.vec.gz"
    vectors = load_vectors(path)
    assert (len(vectors), vectors.dimension, vectors.notes) == (209_892, 64, ())
    assert vectors.sha256 == "318016719cb48f7d94b07859c152736aa02085f608ceadfe5d47b9886d164fd6"
    assert sum(len(word) == 1 for word in vectors.words) == 6_430
    assert float(np.linalg.norm(vectors.matrix, axis=1).mean()) == pytest.approx(1.56, abs=0.005)
    start = time.perf_counter()
    assert_same(load_vectors(path), vectors)
    assert time.perf_counter() - start < 1
