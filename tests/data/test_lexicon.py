"""The lexicon: every match against plain substring search, editing, saving, sources, coverage, and each error."""

from __future__ import annotations

import copy
import gzip
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanzoo.data import lexicon as module
from hanzoo.data.document import Document, Span
from hanzoo.data.lexicon import Coverage, Lexicon, Matches, WordList, coverage, merge, read_words
from hanzoo.data.vocabulary import folded
from hanzoo.errors import DataError, RunError, StorageError

REAL_FOLDER = os.environ.get("HANZOO_LEXICONS", "")  # read before the fixture below takes it away
ALPHABET = "ab中😀Ａ"  # full-width A folds to a
WORDS = st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=12)
TEXTS = st.text(ALPHABET + "\ud800\udfff", max_size=24)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HANZOO_VECTORS", raising=False)
    monkeypatch.delenv("HANZOO_LEXICONS", raising=False)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(content: str | bytes, name: str = "mine.txt") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write


def rows(matches: Matches) -> list[tuple[int, int, int]]:
    for array in (matches.starts, matches.ends, matches.words):
        assert array.dtype == np.int64
        assert array.shape == (len(matches),)
    return list(zip(matches.starts.tolist(), matches.ends.tolist(), matches.words.tolist(), strict=True))


def search(
    text: str, ids: dict[str, int], form: Callable[[str], str] = lambda text: text
) -> list[tuple[int, int, int]]:
    """Every substring of the text looked up, in order: the plain version."""
    compared = form(text)
    spans = [(start, end) for start in range(len(text)) for end in range(start + 1, len(text) + 1)]
    return [(start, end, ids[compared[start:end]]) for start, end in spans if compared[start:end] in ids]


def ids_of(words: Iterable[str], form: Callable[[str], str], shortest: int, longest: int) -> dict[str, int]:
    """Ids by the rule: the order of the words, repeats and those outside the lengths left out."""
    ids: dict[str, int] = {}
    for word in words:
        if shortest <= len(word) <= longest:
            ids.setdefault(form(word), len(ids))
    return ids


# ---- matches


@given(WORDS, st.lists(TEXTS, max_size=4), st.integers(1, 3), st.booleans())
def test_matches_are_those_of_plain_search_one_by_one_and_in_a_batch(
    words: list[str], texts: list[str], shortest: int, fold: bool
) -> None:
    form = folded if fold else str
    lexicon = Lexicon(words, min_length=shortest, max_length=3, fold=fold)
    ids = ids_of(words, form, shortest, 3)
    wanted = [search(text, ids, form) for text in texts]
    assert [rows(lexicon.matches(text)) for text in texts] == wanted
    assert [rows(found) for found in lexicon.match(texts)] == wanted
    assert len(lexicon) == lexicon.num_ids == len(ids)
    long = "".join(texts) * 4
    assert rows(lexicon.matches(long)) == search(long, ids, form)


@given(WORDS, WORDS, st.data(), st.lists(TEXTS, min_size=1, max_size=4))
def test_an_edited_lexicon_finds_what_plain_search_finds(
    words: list[str], more: list[str], data: st.DataObject, texts: list[str]
) -> None:
    lexicon = Lexicon(words, min_length=1)
    ids = ids_of(words, folded, 1, 99)
    given_ids = len(ids)
    for step in (1, 2):
        for word in more[::step]:
            if folded(word) not in ids:
                ids[folded(word)] = given_ids
                given_ids += 1
        lexicon.add(more[::step])
        gone = data.draw(st.lists(st.sampled_from(sorted(ids)), unique=True)) if ids else []
        lexicon.remove(gone)
        for word in gone:
            del ids[word]
        wanted = [search(text, ids, folded) for text in texts]
        assert [rows(lexicon.matches(text)) for text in texts] == wanted
        assert [rows(found) for found in lexicon.match(texts)] == wanted
        assert (len(lexicon), lexicon.num_ids) == (len(ids), given_ids)
        assert lexicon.ids().tolist() == sorted(ids.values())
        assert [lexicon.word(id) for id in lexicon.ids()] == list(lexicon)


def test_a_large_lexicon_with_common_characters_first_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["的一了是的在中国", "，的\udfff一，\udfff", "中国的一\udfff", ""]
    words = ["的一", "一了", "中国", "国的", "，的"]
    plain = [rows(found) for found in Lexicon(words).match(texts)]
    assert sum(map(len, plain)) == 7
    monkeypatch.setattr(module, "_MANY", 1)
    lexicon = Lexicon(words)
    assert [rows(found) for found in lexicon.match(texts)] == plain
    assert [rows(lexicon.matches(text)) for text in texts] == plain
    assert [rows(found) for found in Lexicon(words, fold=False).match(texts)] == plain


def test_no_match_crosses_texts() -> None:
    lexicon = Lexicon(["ab", "aba"])
    assert [rows(found) for found in lexicon.match(["a", "b", "", "ba", "ab", ""])] == [[], [], [], [], [(0, 2, 0)], []]
    assert lexicon.match([]) == []
    assert rows(lexicon.matches("")) == rows(Lexicon().matches("ab")) == []


def test_positions_are_those_of_the_text_as_given() -> None:
    lexicon = Lexicon(["iPhone 7", "ＡＢＣ社", "İst", "ας"])
    text = "😀买ＩＰＨＯＮＥ\u30007，abC社 İST ΑΣα"
    found = [(text[start:end], lexicon.word(id)) for start, end, id in rows(lexicon.matches(text))]
    assert found == [("ＩＰＨＯＮＥ\u30007", "iPhone 7"), ("abC社", "ＡＢＣ社"), ("İST", "İst")]
    assert rows(Lexicon(["iPhone 7", "ＡＢＣ社"], fold=False).matches(text)) == []  # control
    assert "ａｂｃ社" in lexicon
    assert lexicon.id_of("ａｂｃ社") == 1
    assert 5 not in lexicon  # type: ignore[comparison-overlap]


def test_what_folds_lies_below_the_end_of_the_table() -> None:
    folding = [code for code in range(sys.maxunicode + 1) if folded(chr(code)) != chr(code)]
    assert 0x1E900 in folding  # Adlam, not in the basic plane
    table = module._table()
    assert (np.flatnonzero(table != np.arange(len(table))).tolist()) == sorted([*folding, 0xDFFF])
    assert all(table[code] == ord(folded(chr(code))) for code in folding)
    lexicon = Lexicon()
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    short = "".join(lexicon._reversed(every[at : at + 60]) for at in range(0, len(every), 60)[::-1])
    assert short == lexicon._reversed(every)


# ---- words, ids, counts, kinds


def test_ids_are_the_order_of_the_words_and_the_first_to_say_something_holds() -> None:
    lexicon = Lexicon(
        ["中国", "x", "Ab", "ab", "ＡＢ"], counts=[1, 2, None, 4, 5], kinds=["place", None, None, None, "brand"]
    )
    assert list(lexicon) == ["中国", "Ab"]
    assert [(lexicon.count(id), lexicon.kind(id)) for id in lexicon.ids()] == [(1, "place"), (4, "brand")]
    assert lexicon.add(["中国", "国人"], counts=[9, 9], kinds=["x", "y"]) == 1
    assert [(lexicon.count(id), lexicon.kind(id)) for id in lexicon.ids()] == [(1, "place"), (4, "brand"), (9, "y")]
    for ask in (lexicon.word, lexicon.count, lexicon.kind):
        for id in (-1, 3):
            with pytest.raises(IndexError, match=rf"id must lie within 0 and 2, but is {id}"):
                ask(id)
    with pytest.raises(KeyError):
        lexicon.id_of("没有")


def test_a_removed_word_comes_back_with_another_id() -> None:
    lexicon = Lexicon(["ab"])
    lexicon.add("bc")
    lexicon.remove("ab")
    lexicon.add("ab")
    assert rows(lexicon.matches("abc")) == [(0, 2, 2), (1, 3, 1)]
    assert lexicon.word(0) == "ab"


def test_a_failed_edit_changes_nothing() -> None:
    lexicon = Lexicon(["中国人民", "银行"], max_length=5)
    with pytest.raises(
        DataError, match=r"a word to remove must be in the lexicon, but '中国人' is not. Did you mean '中国人民'"
    ):
        lexicon.remove(["银行", "中国人"])
    with pytest.raises(DataError, match=r"'没有' is not\. Nothing was removed"):
        lexicon.remove("没有")
    with pytest.raises(DataError, match=r"at least 2 characters and at most 5, but '行' has 1"):
        lexicon.add(["新词", "行"])
    with pytest.raises(DataError, match=r"'一二三四五六' has 6"):
        lexicon.add(["一二三四五六"])
    with pytest.raises(DataError, match=r"a count must be at least 0, but that of '新词' is -1"):
        lexicon.add("新词", counts=[-1])
    with pytest.raises(DataError, match=r"a kind must be text .* but is 'a\\tb'"):
        lexicon.add("新词", kinds=["a\tb"])
    with pytest.raises(ValueError, match=r"must have one entry a word \(1\), but have 2 and 1"):
        lexicon.add("新词", counts=[1, 2])
    assert (list(lexicon), lexicon.num_ids) == (["中国人民", "银行"], 2)


@pytest.mark.parametrize("word", ["", "a\tb", "a\nb", "a\ud83d"])
def test_what_a_line_cannot_hold_is_no_word(word: str) -> None:
    with pytest.raises(DataError, match=r"a word must be text of at least one character, without tabs, line feeds and"):
        Lexicon(["fine", word])
    with pytest.raises(DataError, match="must be text"):
        Lexicon().add(["fine", word])


def test_lengths_are_checked() -> None:
    with pytest.raises(ValueError, match="min_length: must be at least 1, but is 0"):
        Lexicon(min_length=0)
    with pytest.raises(ValueError, match=r"max_length: must be at least min_length \(2\), but is 1"):
        Lexicon(max_length=1)


# ---- copies and the checkpoint


def edited() -> Lexicon:
    lexicon = Lexicon(
        ["中国", "a b", "国人", "\r\u2028\x85", "😀x", "#x"],
        counts=[3, None, 0, None, None, 1],
        kinds=["p", None, None, "k", None, "c d"],
        min_length=1,
        max_length=9,
    )
    lexicon.remove(["国人", "😀x"])
    lexicon.add(["人", "国人", "新"], counts=[None, 7, None])
    lexicon.remove("新")
    return lexicon


def everything(lexicon: Lexicon) -> list[object]:
    ids = range(lexicon.num_ids)
    return [
        (lexicon.min_length, lexicon.max_length, lexicon.fold, len(lexicon), list(lexicon), lexicon.ids().tolist()),
        [(lexicon.word(id), lexicon.count(id), lexicon.kind(id)) for id in ids],
        [rows(found) for found in lexicon.match(["中国人#Xa b", "😀x\r\u2028\x85新国人"])],
    ]


def test_saved_and_opened_it_is_the_same(tmp_path: Path) -> None:
    lexicon = edited()
    lexicon.save(tmp_path / "lexicon.txt")
    opened = Lexicon.open(tmp_path / "lexicon.txt")
    assert everything(opened) == everything(lexicon)
    assert everything(opened) != everything(Lexicon(list(lexicon), min_length=1, max_length=9))  # control
    opened.save(tmp_path / "again.txt")
    assert (tmp_path / "again.txt").read_bytes() == (tmp_path / "lexicon.txt").read_bytes()
    assert opened.add(["新"]) == 1
    assert opened.id_of("新") == 9  # 8 was given before
    Lexicon(fold=False).save(tmp_path / "empty.txt")
    assert everything(Lexicon.open(tmp_path / "empty.txt")) == everything(Lexicon(fold=False))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(max_size=5), max_size=8), st.booleans())
def test_any_word_comes_back_from_the_file(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], fold: bool
) -> None:
    path = tmp_path_factory.mktemp("lexicon") / "lexicon.txt"
    lexicon = Lexicon([word for word in words if word and not set(word) & set("\t\n")], min_length=1, fold=fold)
    lexicon.save(path)
    assert list(Lexicon.open(path)) == list(lexicon)


def test_the_file_can_be_read_by_a_person(tmp_path: Path) -> None:
    edited().save(tmp_path / "lexicon.txt")
    header, *lines = (tmp_path / "lexicon.txt").read_bytes().decode("utf-8").split("\n")
    assert header.startswith('{"hanzoo": "lexicon", "format": 1, "ids": 9, ')
    assert '"removed": [2, 4, 8]' in header
    assert lines == [
        "中国\t3\tp",
        "a b",
        "国人\t0",
        "\r\u2028\x85\t\tk",
        "😀x",
        "#x\t1\tc d",
        "人",
        "国人\t7",
        "新",
        "",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-3], "must be as it was saved, but is damaged or cut short"),
        (lambda content: content.replace("中国".encode(), "中图".encode()), "is damaged"),
        (lambda content: content.replace(b'"removed": [2', b'"removed": [1'), "is damaged"),
        (lambda content: content.replace(b'"format": 1', b'"format": 2'), "format must be 1, but is 2. Update hanzoo"),
        (lambda content: b"", "must begin with a header in JSON"),
        (lambda content: b"\xff\xfe", "must begin with a header in JSON"),
        (lambda content: b"[1]\n", "format must be 1, but is None"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    path = tmp_path / "lexicon.txt"
    edited().save(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(RunError, match=message):
        Lexicon.open(path)


def test_a_missing_file_and_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="must be a readable file, but No such file"):
        Lexicon.open(tmp_path / "none.txt")
    with pytest.raises(StorageError, match=r"lexicon\.txt: must be written, but"):
        Lexicon().save(tmp_path / "none" / "lexicon.txt")


def test_a_copy_is_a_lexicon_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    lexicon = edited()

    def refuse(*_: object) -> None:
        raise AssertionError("an automaton was pickled")

    monkeypatch.setattr(module._Automaton, "__reduce_ex__", refuse)
    twin = copy.deepcopy(lexicon)
    assert everything(twin) == everything(lexicon)
    twin.add("新词")
    assert "新词" not in lexicon
    assert len(twin.matches("新词")) == 1


# ---- sources


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("中国\t5\tns\n北京\t\tns\n人民\t7\n银行\n", "list.txt"),
        ("中国\tns\t5\n\n北京\tns\n 人民 \t7\t\n银行", "list.txt"),
        ("\ufeff中国 5 ns\r\n北京 ns\r\n人民 7\r\n \r\n银行\r\n", "list.txt"),
        (gzip.compress("中国  5  ns\n北京 ns\n人民 7 \n银行\n".encode(), mtime=0), "list.txt.gz"),
    ],
)
def test_forms_of_a_list(write: Callable[..., Path], content: str | bytes, name: str) -> None:
    found = read_words(write(content, name))
    assert found.words == ("中国", "北京", "人民", "银行")
    assert found.counts == (5, None, 7, None)
    assert found.kinds == ("ns", "ns", "list", "list")
    assert (found.name, len(found), len(found.sha256), found.notes) == (name, 4, 64, ())
    assert read_words(write(content, name), kind="firm").kinds == ("ns", "ns", "firm", "firm")


def test_words_with_blanks(write: Callable[..., Path]) -> None:
    found = read_words(write("New York 5 ns\nA T\nEdu Trust认证\nVisual Studio\t3\n5\t6\n7 8\n"))
    assert found.words == ("New York", "A T", "Edu Trust认证", "Visual Studio", "5", "7")
    assert found.counts == (5, None, None, 3, 6, 8)


def test_repeated_words_of_one_list_and_of_several(write: Callable[..., Path]) -> None:
    first = read_words(write("甲乙\n丙丁\t2\n甲乙\t4\tx\n甲乙\t5\ty\n", "first.txt"), kind=None)
    assert (first.words, first.counts, first.kinds) == (("甲乙", "丙丁"), (4, 2), ("x", "first"))
    assert first.notes == ("2 lines repeat a word: the first count and kind of each word hold",)
    bare = WordList(("丙丁", "戊己"), (None, None), (None, None), "bare", "0" * 64)
    both = merge(bare, first)
    assert (both.words, both.counts) == (("丙丁", "戊己", "甲乙"), (2, None, 4))
    assert both.kinds == ("first", None, "x")
    assert (both.name, both.notes) == ("bare + first.txt", (f"first.txt: {first.notes[0]}",))
    assert both.sha256 == f"{'0' * 64} {first.sha256}"
    assert merge(first, bare).words == ("甲乙", "丙丁", "戊己")
    lexicon = Lexicon.of(bare, first, min_length=1)
    assert (list(lexicon), lexicon.count(0), lexicon.min_length) == (["丙丁", "戊己", "甲乙"], 2, 1)
    assert list(Lexicon.of(bare, max_length=2, fold=False)) == ["丙丁", "戊己"]


@pytest.mark.parametrize("name", ["some.vec", "some.vec.gz", "some.txt"])
def test_words_of_a_word2vec_file(write: Callable[..., Path], name: str) -> None:
    content = b"3 2\n10 0.5 1\n a\xc2\xa0b 1 2\n\xe4\xb8\xad\xe5\x9b\xbd 1 -2e-1\n"
    found = read_words(write(gzip.compress(content) if name.endswith("gz") else content, name))
    assert (found.words[0], found.words[-1], len(found)) == ("10", "中国", 3)
    assert set(found.counts) == set(found.kinds) == {None}


def test_a_list_that_begins_with_two_numbers_is_a_list(write: Callable[..., Path]) -> None:
    assert read_words(write("110 2\n中国 5 ns\n")).words == ("110", "中国")
    assert read_words(write("110 3\n")).words == ("110",)


def test_where_a_list_is_looked_for(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(gzip.compress("甲乙\n".encode()), "here.txt.gz")
    write("1 2\n丙丁 1 2\n", "there.vec")
    with pytest.raises(DataError, match=r"there is none .*HANZOO_LEXICONS is not set; HANZOO_VECTORS is not set"):
        read_words("here")
    monkeypatch.setenv("HANZOO_LEXICONS", str(tmp_path))
    assert read_words("here").words == read_words("here.txt").words == ("甲乙",)
    assert read_words("here").kinds == ("here",)
    monkeypatch.delenv("HANZOO_LEXICONS")
    monkeypatch.setenv("HANZOO_VECTORS", str(tmp_path))
    assert read_words("there.vec").words == ("丙丁",)


def test_jieba_s_own_dictionary() -> None:
    before = "jieba" in sys.modules
    found = read_words("jieba")
    assert len(found) == 349_045
    row = found.words.index("中国")
    assert (found.name, found.kinds[row]) == ("dict.txt", "ns")
    assert (found.counts[row] or 0) > 1_000
    assert ("jieba" in sys.modules) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("中国\n\t5\n", r"mine\.txt:2: a line must begin with a word"),
        ("水\t甲\t乙\n", r"mine\.txt:1: a line must hold a word, and may hold a count .* but holds '水\\t甲\\t乙'"),
        ("中国\n\n水\t0.5\n", r"mine\.txt:3: a line must hold"),
        ("水\t-5\n", r"mine\.txt:1: a line must hold"),
        ("水\t5\t6\n", r"mine\.txt:1: a line must hold"),
        ("\n \n", "must hold at least one word, but holds only blank lines"),
        ("中国\n".encode() + b"\xff\n", r"mine\.txt:2: the text must be UTF-8"),
        ("", "is empty"),
    ],
)
def test_bad_lists(write: Callable[..., Path], content: str | bytes, message: str) -> None:
    lexicon = Lexicon(["国人"])
    with pytest.raises(DataError, match=message):
        lexicon.load(write(content))
    assert list(lexicon) == ["国人"]


def test_a_gz_file_cut_short(write: Callable[..., Path]) -> None:
    packed = gzip.compress("".join(f"word{number}\n" for number in range(999)).encode())
    with pytest.raises(DataError, match="must be a whole gzip file"):
        read_words(write(packed[:-20], "mine.txt.gz"))


def test_a_list_reaches_the_next_match(write: Callable[..., Path]) -> None:
    lexicon = Lexicon(["国人"])
    assert rows(lexicon.matches("中国人民")) == [(1, 3, 0)]
    assert lexicon.load(write("人\n中国\t5\n国人\t8\n人民\n")) == 2
    assert rows(lexicon.matches("中国人民")) == [(0, 2, 1), (1, 3, 0), (2, 4, 2)]
    assert (lexicon.count(0), lexicon.kind(0), lexicon.count(1)) == (8, "mine", 5)


# ---- coverage


def test_coverage_by_hand() -> None:
    lexicon = Lexicon(["中国", "人民银行", "国人", "民银", "行长", "张三"])
    documents = [
        Document("中国人民银行行长", (Span(0, 6, "org"), Span(6, 8, "job"))),
        Document("张三来了", (Span(0, 2, "name"), Span(2, 3, "name"))),
        Document(""),
    ]
    found = coverage(lexicon, documents)
    # matches: 中国 国人 人民银行 民银 行长 | 张三; right: 行长, 张三; at both boundaries: org, job, 张三
    assert (found.num_entities, found.num_known) == (
        {"org": 1, "job": 1, "name": 2},
        {"org": 0, "job": 1, "name": 1},
    )
    assert (found.known, found.bounded, found.precision) == (0.5, 0.75, 2 / 6)
    assert found.known_by_label == {"org": 0.0, "job": 1.0, "name": 0.5}
    assert (found.num_crossing, found.num_characters, found.words_per_character) == (0, 12, 0.5)
    crossing = coverage(Lexicon(["国人", "行行", "人民银行", "中国人民银行行长"]), documents)
    assert (crossing.num_crossing, crossing.num_matches, crossing.crossing) == (1, 4, 0.25)  # 行行 alone
    lines = str(found).split("\n")
    assert lines[0] == "entities that are words of the lexicon: 50.0% (2 of 4)"
    assert lines[1:4] == ["  job: 100.0% (1 of 1)", "  name: 50.0% (1 of 2)", "  org: 0.0% (0 of 1)"]
    assert lines[4:] == [
        "entities with words at both boundaries: 75.0% (3 of 4)",
        "matches that are entities: 33.3% (2 of 6)",
        "matches that cross an entity's boundary: 0.0% (0 of 6)",
        "words per character: 0.50 (12 characters)",
    ]
    nothing = coverage(Lexicon(), [])
    assert nothing == Coverage({}, {}, 0, 0, 0, 0, 0)
    assert str(nothing).startswith("entities that are words of the lexicon: 0.0% (0 of 0)")


# ---- real lists


@pytest.mark.data
@pytest.mark.skipif(not REAL_FOLDER, reason="needs the folder HANZOO_LEXICONS")
def test_every_list_with_a_word_a_line_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(REAL_FOLDER)
    monkeypatch.setenv("HANZOO_LEXICONS", REAL_FOLDER)
    sizes = {path.name: len(read_words(path.name)) for path in folder.iterdir() if "synonym" not in path.name}
    assert sizes["jieba.txt.gz"] == 349_045
    assert read_words("place").kinds[:2] == ("province", "province-short")
    assert set(read_words("thuocl_food").kinds) == {"thuocl_food"}
