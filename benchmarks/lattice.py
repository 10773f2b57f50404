"""Building lattices against the bare scan of pyahocorasick, one thread, in turns; and loading a lexicon from its text.

    HANZOO_DATA=... HANZOO_VECTORS=... python benchmarks/lattice.py [--rounds 15] [--sentences 3000] [--save]

The words are those of two characters or more in zh.64d.vec.gz, the texts the first sentences of each data set that is there.
Bare is `for _ in automaton.iter(text): pass`, with the same words as they stand in the file, a text at a time: no arrays, no
folding of width and case. Ours is `lexicon.matches(text)` a sentence at a time, which gives starts, ends and words as arrays, as
FLAT's `featurize` calls it; and for 32 at a time `lexicon.match(texts)` and `Lattice.of`, padding included. First the matches of
both sides are checked to be the same (without folding). The sides take turns every 160 sentences. A share is the median over rounds
of (bare time / our time in the same round), its range the smallest and the largest. Times are processor seconds of this
single-threaded process, so that other work on the machine does not count.

A bare scan is faster, too, where common characters come first in the automaton. The row `ordered` is that of our automaton, with
folding and without arrays: it says how much of our speed comes from the order.

Loading is `Lexicon.open` of 400,000 words with counts and kinds (those of the vectors and of jieba, filled up), and the
first match. A line of JSON ends the output; --save also writes it to benchmarks/results/lattice.json.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import chain
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # before numpy's libraries read them
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed works too

import ahocorasick  # noqa: E402

from benchmarks.report import report  # noqa: E402
from hanzoo.data.catalogue import load_tagging_data  # noqa: E402
from hanzoo.data.lattice import Lattice  # noqa: E402
from hanzoo.data.lexicon import Lexicon, read_words  # noqa: E402
from hanzoo.errors import DataError  # noqa: E402

WORDS = "zh.64d.vec.gz"
BATCH = 32
NUM_WORDS = 400_000


def in_turn(sides: dict[str, Callable[[list[str]], object]], texts: list[str], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each side for all texts in each round. The sides take turns every 160 texts, and the order of the sides
    turns around with each turn, so that what else the machine does falls on all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    parts = [texts[at : at + 5 * BATCH] for at in range(0, len(texts), 5 * BATCH)]
    for number in range(rounds + 1):  # the first is the warm-up
        sums = dict.fromkeys(sides, 0.0)
        for turn, part in enumerate(parts, start=number):
            for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
                start = time.process_time()
                sides[name](part)
                sums[name] += time.process_time() - start
        for name in sides if number else ():
            seconds[name].append(sums[name])
    return seconds


def bare_automaton(words: list[str]) -> ahocorasick.Automaton:
    automaton = ahocorasick.Automaton()
    for id, word in enumerate(words):
        automaton.add_word(word, id)
    automaton.make_automaton()
    return automaton


def check(words: list[str], bare: ahocorasick.Automaton, texts: list[str]) -> None:
    """Fail unless both sides find the same, and another lexicon would be noticed."""
    ours, other = Lexicon(words, fold=False), Lexicon(words[1:], fold=False)

    def triples(lexicon: Lexicon, text: str) -> list[tuple[int, int, str]]:
        found = lexicon.matches(text)
        return [(s, e, lexicon.word(w)) for s, e, w in zip(found.starts, found.ends, found.words, strict=True)]

    plain = [sorted((end + 1 - len(words[id]), end + 1, words[id]) for end, id in bare.iter(text)) for text in texts]
    assert [triples(ours, text) for text in texts] == plain
    texts = [*texts, words[0]]
    assert triples(other, words[0]) != triples(ours, words[0]), "the check would not notice a difference"


def measure(texts: list[str], lexicon: Lexicon, bare: ahocorasick.Automaton, rounds: int) -> dict[str, list[float]]:
    def scan(part: list[str]) -> None:
        for text in part:
            for _ in bare.iter(text):
                pass

    def sentences(part: list[str]) -> None:
        for text in part:
            lexicon.matches(text)

    def batches(part: list[str]) -> None:
        for at in range(0, len(part), BATCH):
            batch = part[at : at + BATCH]
            found, lengths = lexicon.match(batch), [len(text) for text in batch]
            Lattice.of(lengths, [(some.starts, some.ends) for some in found], max(lengths), max(map(len, found)))

    def ordered(part: list[str]) -> None:
        for text in part:
            for _ in lexicon._frozen.iter(lexicon._reversed(text)):
                pass

    return in_turn({"bare": scan, "sentence": sentences, "batch": batches, "ordered": ordered}, texts, rounds)


def loading(words: list[str]) -> tuple[float, float, float]:
    """Processor seconds of `Lexicon.open` with the first match (the median of three), megabytes of the file."""
    listed = read_words("jieba")
    all_words = [*chain(listed.words, words), *(f"词{number}" for number in range(NUM_WORDS))]
    counts = [*listed.counts, *([1] * (len(all_words) - len(listed)))]
    kinds = [*listed.kinds, *(["n"] * (len(all_words) - len(listed)))]
    whole = Lexicon(all_words, counts=counts, kinds=kinds)
    ids = whole.ids()[:NUM_WORDS].tolist()
    lexicon = Lexicon(
        [whole.word(id) for id in ids], counts=[whole.count(id) for id in ids], kinds=[whole.kind(id) for id in ids]
    )
    assert len(lexicon) == NUM_WORDS
    del whole
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lexicon.txt"
        lexicon.save(path)
        seconds, wall = [], []
        for _ in range(3):
            start, begun = time.process_time(), time.perf_counter()
            opened = Lexicon.open(path)
            found = opened.matches("中国人民银行")
            seconds.append(time.process_time() - start)
            wall.append(time.perf_counter() - begun)
            assert len(opened) == NUM_WORDS
            assert found.words.tolist() == lexicon.matches("中国人民银行").words.tolist()
            del opened
        return statistics.median(seconds), statistics.median(wall), path.stat().st_size / 1e6


def main() -> None:
    """Measure, print the table and the line."""
    parser = argparse.ArgumentParser(description="Building lattices against the bare scan of pyahocorasick.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sentences", type=int, default=3000)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/lattice.json")
    options = parser.parse_args()
    if options.rounds < 1 or options.sentences < 1:
        parser.error("--rounds and --sentences must be at least 1")
    source = read_words(WORDS)
    lexicon = Lexicon.of(source)
    words = [word for word in source.words if len(word) >= 2]
    bare = bare_automaton(words)
    line: dict[str, object] = {"benchmark": "lattice", "words": len(lexicon), "bare_words": len(words)}
    print(f"{'':22}{'characters/s, million':>22}{'share of bare':>15}   range")
    for name in ("cluener", "msra"):
        try:
            texts = [document.text for document in load_tagging_data(name=name).train[: options.sentences]]
        except DataError as error:
            print(f"{name}: left out ({error})", file=sys.stderr)
            continue
        check(words, bare, texts)
        seconds = measure(texts, lexicon, bare, options.rounds)
        characters = sum(map(len, texts))
        found = sum(map(len, lexicon.match(texts)))
        line |= {f"{name}_sentences": len(texts), f"{name}_characters": characters}
        line[f"{name}_words_per_character"] = round(found / characters, 3)
        for side, times in seconds.items():
            speed = characters / statistics.median(times) / 1e6
            shares = [a / b for a, b in zip(seconds["bare"], times, strict=True)]
            share, span = round(statistics.median(shares), 2), [round(min(shares), 2), round(max(shares), 2)]
            line[f"{name}_{side}_million_per_second"] = round(speed, 2)
            if side != "bare":
                line[f"{name}_{side}_share"], line[f"{name}_{side}_share_range"] = share, span
            print(f"{name + ', ' + side:22}{speed:22.2f}{share:15.2f}   {span[0]:.2f} to {span[1]:.2f}")
    opening, wall, size = loading(words)
    print(
        f"{NUM_WORDS:,} words ({size:.1f} MB) opened, first match included: {opening:.2f} s ({wall:.2f} s on the clock)"
    )
    line |= {"open_words": NUM_WORDS, "open_seconds": round(opening, 2), "open_seconds_wall": round(wall, 2)}
    line |= {"rounds": options.rounds, "pyahocorasick": version("pyahocorasick"), "python": platform.python_version()}
    line |= {"machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    report(line, options.save)


if __name__ == "__main__":
    main()
