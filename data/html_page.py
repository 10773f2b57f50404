"""Tagged texts as one HTML page to look at: entities marked in place, a colour a label, the confidence on hovering.

The page stands alone (no script, no font, no address it would call) and is written as the texts come, in constant memory.
Colour is never the only sign: each mark carries its label's name. The legend, with counts, stays at the foot of the window.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from hanzoo.data.document import Entity
from hanzoo.data.files import AtomicFile

# Light backgrounds on which #1a1a1a keeps a contrast of at least 10:1, far apart for the colour-blind; the 13th label
# starts again at the first, and its name tells the two apart.
_COLOURS = (
    "#ffd59e",
    "#b8dcff",
    "#c5ecc0",
    "#f6c6e6",
    "#fff0a3",
    "#d6cdfa",
    "#b9ece6",
    "#ffc7bd",
    "#dfe3e8",
    "#e6d8c0",
    "#d5efff",
    "#e4f2a8",
)

_HEAD = """<!DOCTYPE html>
<html lang="zh">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ margin: 0 auto; max-width: 60rem; padding: 1rem; background: #fff; color: #1a1a1a;
  font: 1.05rem/2 "PingFang SC", "Noto Sans CJK SC", "Microsoft YaHei", sans-serif; }}
h1 {{ font-size: 1.3rem; }}
ol {{ padding-left: 3.5rem; }}
li {{ padding: .2rem 0; border-bottom: 1px solid #e5e5e5; content-visibility: auto; contain-intrinsic-size: auto 2.4rem; }}
li::marker {{ color: #6b6b6b; font-size: .8rem; }}
p {{ margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }}
mark {{ color: inherit; border-radius: .25rem; padding: .1rem .2rem; box-shadow: inset 0 0 0 1px rgba(0, 0, 0, .25); }}
mark::after {{ content: attr(data-label); margin-left: .3rem; font-size: .7rem; font-weight: 600; }}
.error {{ color: #a40000; }}
footer {{ position: sticky; bottom: 0; background: #fff; border-top: 1px solid #8a8a8a; padding: .4rem 0; }}
footer h2 {{ font-size: .9rem; margin: 0; }}
footer ul {{ display: flex; flex-wrap: wrap; gap: .2rem 1rem; list-style: none; margin: 0; padding: 0; font-size: .9rem; }}
footer li {{ border: 0; padding: 0; }}
{colours}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
<ol>
"""


_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


class HTMLPage:
    """An HTML page of tagged texts; a context manager. The file appears whole at the end of the `with` block, or not at all.

    Args:
        path: the file to write.
        title: the page's heading, as plain text.

    Raises:
        StorageError: the file cannot be created or written.
    """

    def __init__(self, path: str | Path, *, title: str) -> None:
        self._classes: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._file = AtomicFile(path)
        colours = "\n".join(f".c{index} {{ background: {colour}; }}" for index, colour in enumerate(_COLOURS))
        self._write(_HEAD.format(title=_escape(title), colours=colours))

    def write(self, text: str | None, entities: Sequence[Entity] = (), *, error: str | None = None) -> None:
        """Add one text with its entities (in any order; they may nest or overlap), or the error that stands for it."""
        if error is not None:
            shown = "" if text is None else f"<p>{_escape(text)}</p>"
            self._write(f'<li>{shown}<p class="error">{_escape(error)}</p></li>\n')
            return
        for entity in entities:
            self._counts[entity.label] = self._counts.get(entity.label, 0) + 1
        self._write(f'<li><p dir="auto">{self._marked(text or "", entities)}</p></li>\n')

    def _marked(self, text: str, entities: Sequence[Entity]) -> str:
        """The text with each entity inside a <mark>; where two cross, the inner mark is closed and opened again."""
        waiting = sorted(entities, key=lambda entity: (entity.start, -entity.end, entity.label), reverse=True)
        opened: list[Entity] = []
        pieces: list[str] = []
        position = 0
        while waiting or opened:
            stop = min([entity.end for entity in opened] + [entity.start for entity in waiting[-1:]])
            pieces.append(_escape(text[position:stop]))
            position = stop
            reopened: list[Entity] = []
            while any(entity.end <= position for entity in opened):
                pieces.append("</mark>")
                top = opened.pop()
                if top.end > position:
                    reopened.append(top)
            for entity in reversed(reopened):
                pieces.append(self._mark(entity))
                opened.append(entity)
            while waiting and waiting[-1].start <= position:
                opened.append(waiting.pop())
                pieces.append(self._mark(opened[-1]))
        pieces.append(_escape(text[position:]))
        return "".join(pieces)

    def _mark(self, entity: Entity) -> str:
        label = _escape(entity.label)
        title = label if entity.confidence is None else f"{label}, {100 * entity.confidence:.1f} %"
        return f'<mark class="{self._class(entity.label)}" data-label="{label}" title="{title}">'

    def _class(self, label: str) -> str:
        return self._classes.setdefault(label, f"c{len(self._classes) % len(_COLOURS)}")

    def _write(self, content: str) -> None:
        self._file.write(content.encode("utf-8"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._file.__exit__(kind, error, trace)
            return
        with self._file:
            legend = "".join(
                f'<li><mark class="{self._class(label)}">{_escape(label)}</mark> {count:,}</li>'
                for label, count in sorted(self._counts.items())
            )
            foot = f'<footer aria-label="Legend"><h2>Labels</h2><ul>{legend}</ul></footer>\n' if legend else ""
            self._write(f"</ol>\n</main>\n{foot}</body>\n</html>\n")


def _escape(text: str) -> str:
    """Text as HTML shows it: markup escaped; control characters as their pictures, a lone surrogate as U+FFFD."""
    return html.escape(_INVISIBLE.sub(_visible, text))


def _visible(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"
