from __future__ import annotations

import errno
import os
import re
import tracemalloc
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hanzoo.data.document import Entity
from hanzoo.data.html_page import _COLOURS, HTMLPage
from hanzoo.errors import StorageError

VOID = {"meta"}


class Page(HTMLParser):
    """What a browser would show: the text of each paragraph, and of each mark in it. Fails where tags do not nest."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.paragraphs: list[str] = []
        self.marks: list[tuple[str, str, str]] = []  # label, title, text; of the paragraphs, in order of their end
        self.legend: list[str] = []
        self._waiting: list[tuple[str, str, int]] = []
        self.feed(content)
        self.close()
        assert self.opened == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in VOID:
            return
        self.opened.append(tag)
        values = {name: value or "" for name, value in attrs}
        if tag == "p":
            self.paragraphs.append("")
        if tag == "mark" and "p" in self.opened:
            self._waiting.append((values["data-label"], values["title"], len(self.paragraphs[-1])))

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag
        if tag == "mark" and "p" in self.opened:
            label, title, start = self._waiting.pop()
            self.marks.append((label, title, self.paragraphs[-1][start:]))

    def handle_data(self, data: str) -> None:
        if "p" in self.opened:
            self.paragraphs[-1] += data
        elif "footer" in self.opened and data.strip():
            self.legend.append(data.strip())


def entity(text: str, start: int, end: int, label: str = "company", confidence: float | None = None) -> Entity:
    return Entity(start, end, label, text[start:end], confidence)


def page_of(folder: Path, *items: tuple[str, Sequence[Entity]], title: str = "a title") -> Page:
    with HTMLPage(folder / "page.html", title=title) as page:
        for text, entities in items:
            page.write(text, entities)
    return Page((folder / "page.html").read_text(encoding="utf-8"))


def test_the_text_comes_back_with_its_entities_marked(tmp_path: Path) -> None:
    text = "  浙商银行\t😀<b>&amp;\"叶老桂'𠮷\n新行"
    page = page_of(tmp_path, (text, [entity(text, 17, 20, "name"), entity(text, 2, 6, confidence=0.9731)]), ("", []))
    assert page.paragraphs == [text, ""]
    assert page.marks == [("company", "company, 97.3 %", "浙商银行"), ("name", "name", text[17:20])]
    assert page.legend == ["Labels", "company", "1", "name", "1"]


def test_nothing_in_text_label_or_title_becomes_markup(tmp_path: Path) -> None:
    evil = "</mark><script>alert('1')</script>\" onmouseover=\"x"
    page = page_of(tmp_path, (evil, [Entity(0, len(evil), evil, evil, 0.5)]), title=evil)
    assert page.paragraphs == [evil]
    assert page.marks == [(evil, f"{evil}, 50.0 %", evil)]
    content = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in content
    assert not re.search(r"https?:|src=|href=|url\(|@import", content), "the page must stand alone"


def test_entities_may_nest_cross_and_touch(tmp_path: Path) -> None:
    text = "零一二三四五六七八九"
    spans = [(0, 6, "a"), (1, 3, "b"), (4, 8, "c"), (8, 10, "d"), (1, 3, "e"), (9, 10, "f")]
    page = page_of(tmp_path, (text, [entity(text, *span) for span in spans]))
    assert page.paragraphs == [text]
    by_label = {label: "".join(shown for name, _, shown in page.marks if name == label) for label in "abcdef"}
    assert by_label == {label: text[start:end] for start, end, label in spans}


def test_what_html_cannot_hold_is_shown_as_a_sign(tmp_path: Path) -> None:
    page = page_of(tmp_path, ("\x00a\r\x7f\ud83d\t\n", []))
    assert page.paragraphs == ["␀a␍␡\ufffd\t\n"]


def test_an_error_stands_where_its_text_would(tmp_path: Path) -> None:
    with HTMLPage(tmp_path / "page.html", title="t") as page:
        page.write(None, error="a.txt:2: a <line> must be UTF-8")
        page.write("好")
    assert Page((tmp_path / "page.html").read_text(encoding="utf-8")).paragraphs == [
        "a.txt:2: a <line> must be UTF-8",
        "好",
    ]


def test_many_labels_share_colours_and_keep_their_names(tmp_path: Path) -> None:
    text = "字" * 30
    page = page_of(tmp_path, (text, [entity(text, number, number + 1, f"type{number}") for number in range(30)]))
    assert [label for label, _, _ in page.marks] == [f"type{number}" for number in range(30)]


@pytest.mark.parametrize("colour", _COLOURS)
def test_text_is_readable_on_every_colour(colour: str) -> None:
    def luminance(value: str) -> float:  # WCAG 2.2, relative luminance
        parts = [int(value[index : index + 2], 16) / 255 for index in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    assert (luminance(colour) + 0.05) / (luminance("#1a1a1a") + 0.05) > 10


def test_the_page_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    path.write_text("before")

    def fail() -> None:
        with HTMLPage(path, title="t") as page:
            page.write("text")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()

    def no_room(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(StorageError, match=r"page\.html: .*No space left"), HTMLPage(path, title="t") as page:
        page.write("text")
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_a_long_text_and_many_texts(tmp_path: Path) -> None:
    text = "中国银行，" * 20_000
    entities = [entity(text, start, start + 4) for start in range(0, len(text), 5)]
    page = page_of(tmp_path, (text, entities))
    assert page.paragraphs == [text]
    assert len(page.marks) == 20_000
    assert page.legend == ["Labels", "company", "20,000"]
    tracemalloc.start()
    try:
        with HTMLPage(tmp_path / "page.html", title="t") as many:
            for _ in range(1_500):
                many.write(text[:100], entities[:20])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "page.html").stat().st_size > 2_000_000
    assert peak < 500_000
