"""FLAT: time and memory of its attention, and of training, against the plain layer; and a text of 4,000 characters.

    HANZOO_DATA=... HANZOO_VECTORS=... python benchmarks/flat.py [--only attention,memory,training,long] [--save]

attention  One layer and two, forward + backward, width 160, 8 heads, 10 texts (2 of 400 characters): `RelativeAttention` against
           `PlainRelativeAttention` (benchmarks/plain_flat.py) with equal weights, in turns. First both are checked to be equal,
           states and gradients. A round runs the plain layer once and ours `--passes` times; its ratio is that of the seconds a
           pass. Asked: one layer at least 30 times as fast at every length, two layers 8.
memory     Peak resident memory of a fresh process that does one such pass of one layer, its start and libraries included, as the
           system counts it. Asked: ours at most 1/15 of the plain one's at 200 and at 400 characters. `growth_ratio` is the
           same without what a process takes that only loads the libraries.
training   Sentences/s of the recipe, trained as it says, against the same trainer and model with the plain layer in place of ours,
           in turns. First both are checked to give equal emissions. Asked: 10 times.
long       Peak resident memory of a fresh process that reads the recipe's data and lexicon, builds its model and trains one step on
           one text of 4,000 characters: sentences of train, joined. Asked: under 4 GB.

Lattices are real: sentences of MSRA's test, joined and cut to the length, and the words of zh.64d.vec.gz found in them. A ratio is
the median over rounds, its range the smallest and the largest. With one thread, seconds are processor seconds of this process, so
that other work on the machine counts less; else wall-clock seconds. A line of JSON ends the output; --save also puts the parts
that were run into benchmarks/results/flat.json, beside the others.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed works too

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.flat_attention import (  # noqa: E402
    SIDES,
    Lattices,
    OurSide,
    Pass,
    PlainSide,
    copy_weights,
    make_inputs,
    our_layers,
    plain_layers,
)
from benchmarks.plain_flat import PlainRelativeAttention  # noqa: E402
from benchmarks.report import keep, last, report  # noqa: E402
from benchmarks.sides import WARM_UP, difference_of_emissions, in_turn, our_side  # noqa: E402
from hanzoo.build import describe_machine, load_data  # noqa: E402
from hanzoo.data.catalogue import load_tagging_data  # noqa: E402
from hanzoo.data.document import Document, Span  # noqa: E402
from hanzoo.data.lattice import Lattice  # noqa: E402
from hanzoo.data.lexicon import Lexicon, read_words  # noqa: E402
from hanzoo.data.randomness import reseed  # noqa: E402
from hanzoo.models.layers.flat_tagger import FlatConfig, FlatTagger  # noqa: E402
from hanzoo.models.layers.relative_position import RelativeAttention  # noqa: E402
from hanzoo.models.model import model_class  # noqa: E402
from hanzoo.recipe import Recipe, load_recipe  # noqa: E402

PARTS = ("attention", "memory", "training", "long")
LENGTHS = {50: 10, 100: 10, 200: 10, 400: 2}  # characters -> texts
FEW_ROUNDS_FROM = 200  # characters: the plain layer takes many seconds there
LAYERS = {"one": 1, "two": 2}
ASKED_TIMES = {"one": 30, "two": 8}
ASKED_MEMORY = {"ratio": 15, "characters": [200, 400]}
ASKED_TRAINING = 10
ASKED_LONG_GB = 4
LONG = 4_000

# A process's peak counts the memory of the process that it was started from: one that has loaded nothing stands between.
MEASURE = """
import os, subprocess, sys
process = subprocess.Popen([sys.executable, *sys.argv[1:]])
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
sys.exit(os.waitstatus_to_exitcode(status))
"""

TRAIN_ONCE = """
import sys
import tempfile
from pathlib import Path
import torch
from benchmarks.flat import LONG, build_model, cut
from benchmarks.sides import our_side
from hanzoo.build import load_data
from hanzoo.recipe import load_recipe

recipe, threads, *settings = sys.argv[1:]
torch.set_num_threads(int(threads))
recipe = load_recipe(recipe, settings)
data = load_data(recipe)
model = build_model(recipe, data)
document = cut(data.train, LONG)
features = model.featurize(document)
print(len(document.text), len(features.words))
with tempfile.TemporaryDirectory() as folder:
    assert our_side(recipe, model, [features], Path(folder) / "run")(1) == 1
"""


# ---- texts


def cut(documents: Iterable[Document], characters: int) -> Document:
    """One text of so many characters: documents joined without anything between them, as many as it takes, and their entities."""
    text = ""
    spans: list[Span] = []
    for document in documents:
        offset = len(text)
        spans += [Span(start + offset, end + offset, label) for start, end, label in document.spans]
        text += document.text
        if len(text) >= characters:
            return Document(text[:characters], tuple(span for span in spans if span.end <= characters))
    raise ValueError(f"documents: must hold {characters} characters, but hold {len(text)}.")


def lattices_of(documents: Sequence[Document], lexicon: Lexicon, characters: int, texts: int) -> Lattices:
    """So many texts of so many characters, each from where the one before ended, and the words found in them."""
    rest = iter(documents)
    rows = []
    for _ in range(texts):
        found = lexicon.matches(cut(rest, characters).text)
        rows.append(list(zip(found.starts.tolist(), found.ends.tolist(), strict=True)))
    return Lattices(characters, rows)


def real_lattices() -> dict[int, Lattices]:
    """By number of characters."""
    documents = load_tagging_data(name="msra").test
    assert documents is not None
    lexicon = Lexicon.of(read_words("zh.64d.vec.gz"))
    return {characters: lattices_of(documents, lexicon, characters, texts) for characters, texts in LENGTHS.items()}


# ---- attention


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, as a share of the largest number."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def differences(ours: Pass, plain: Pass) -> list[float]:
    """Of states, gradients of hidden states, gradients of W_r."""
    pairs = zip((ours.states, *ours.gradients), (plain.states, *plain.gradients), strict=True)
    return [relative_difference(found, wanted) for found, wanted in pairs]


def compare(lattices: Lattices, layers: int, rounds: int, passes: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Check that both sides are equal, and time them in turns.

    Args:
        lattices: of a batch.
        layers: one behind the other.
        rounds: of one pass of the plain side each.
        passes: of ours in a round.
        clock: seconds.
    """
    hidden, gradient = make_inputs(lattices)
    torch.manual_seed(1)
    mine, theirs = our_layers(layers), plain_layers(layers)
    ours, plain = OurSide(mine, lattices, hidden), PlainSide(theirs, lattices, hidden)
    for own, other in zip(mine, theirs, strict=True):
        copy_weights(other, own)
    wanted = plain(gradient)
    difference = max(differences(ours(gradient), wanted))
    assert difference < 1e-4, f"not the same layer: states or gradients differ by {difference}"
    with torch.no_grad():
        mine[0].fusion.bias.add_(0.1)
    assert min(differences(ours(gradient), wanted)) > 1e-3, "the check would not notice a difference"
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for number in range(rounds):
        for name in SIDES[:: 1 if number % 2 == 0 else -1]:
            start = clock()
            for _ in range(passes if name == "ours" else 1):
                (ours if name == "ours" else plain)(gradient)
            seconds[name].append((clock() - start) / (passes if name == "ours" else 1))
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["plain"], strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 1),
        "range": [round(min(ratios), 1), round(max(ratios), 1)],
        "milliseconds": {name: round(1000 * statistics.median(values), 1) for name, values in seconds.items()},
        "difference": difference,
        "rounds": rounds,
    }


def measure_attention(all_lattices: dict[int, Lattices], options: argparse.Namespace) -> dict[str, Any]:
    """The part "attention"; says a line for each length and number of layers."""
    clock = clock_of(options.threads)
    print(f"{'layers':8}{'characters':>11}{'texts':>7}{'words':>7}{'ours, ms':>10}{'plain':>10}{'ratio':>8}   range")
    measured: dict[str, dict[str, Any]] = {name: {} for name in LAYERS}
    for characters, lattices in all_lattices.items():
        texts = len(lattices.words)
        words = round(sum(map(len, lattices.words)) / texts)
        rounds = options.rounds if characters < FEW_ROUNDS_FROM else options.long_rounds
        for name, layers in LAYERS.items():
            found = compare(lattices, layers, rounds, options.passes, clock)
            measured[name][str(characters)] = {"texts": texts, "words_a_text": words, **found}
            low, high = found["range"]
            own, other = (found["milliseconds"][side] for side in SIDES)
            row = f"{name:8}{characters:11}{texts:7}{words:7}{own:10.1f}{other:10.1f}{found['ratio']:8.1f}"
            print(f"{row}   {low:.1f} to {high:.1f}", flush=True)
    return {"asked": ASKED_TIMES, **measured, "passes": options.passes, "clock": clock.__name__}


# ---- memory


def peak_of(*arguments: str | Path) -> tuple[float, str]:
    """Peak memory of a fresh Python process in MB, and what it printed."""
    command = [sys.executable, "-c", MEASURE, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout
    *printed, peak = found.splitlines()
    return int(peak) / 1e6, "\n".join(printed)


def measure_memory(all_lattices: dict[int, Lattices], options: argparse.Namespace) -> dict[str, Any]:
    """The part "memory"; says a line for each length."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lattices.json"

        def peaks(lattices: Lattices, *more: str) -> dict[str, float]:
            lattices.save(path)
            common = ("-m", "benchmarks.flat_attention")
            return {
                name: round(peak_of(*common, name, path, "--threads", str(options.threads), *more)[0], 1)
                for name in SIDES
            }

        imports = peaks(next(iter(all_lattices.values())), "--imports")
        print(f"{'characters':>10}{'texts':>7}{'ours, MB':>10}{'plain':>10}{'ratio':>8}{'growth':>8}")
        print(f"{'imports':>10}{'':7}{imports['ours']:10.1f}{imports['plain']:10.1f}", flush=True)
        by_length: dict[str, Any] = {}
        for characters, lattices in all_lattices.items():
            found = peaks(lattices)
            growth = {name: found[name] - imports[name] for name in SIDES}
            ratio, growth_ratio = (round(values["plain"] / values["ours"], 1) for values in (found, growth))
            by_length[str(characters)] = {"ratio": ratio, "growth_ratio": growth_ratio, "peak_mb": found}
            row = f"{characters:10}{len(lattices.words):7}{found['ours']:10.1f}{found['plain']:10.1f}"
            print(f"{row}{ratio:8.1f}{growth_ratio:8.1f}", flush=True)
    return {"asked": ASKED_MEMORY, "imports_mb": imports, "characters": by_length}


# ---- training


class PlainInPlace(nn.Module):
    """`PlainRelativeAttention` with the interface of the layer that it stands in for. Columns of padding between characters and
    words, which the plain layer would pay for, are taken out before it and put back behind it.

    Args:
        of: the layer, whose weights it starts with.
    """

    def __init__(self, of: RelativeAttention) -> None:
        super().__init__()
        if of.dropout:
            raise ValueError(
                f"model.dropout_attention: must be 0 for the plain layer, which has none, but is {of.dropout}."
            )
        self.attention = PlainRelativeAttention(
            of.num_heads * of.head_width,
            of.num_heads,
            of.four_positions,
            key_projection=of.key is not None,
            scaled=of.scale != 1.0,
        )
        copy_weights(self.attention, of)
        self.output = copy.deepcopy(of.output)

    def forward(self, hidden: Tensor, positions: Lattice, num_queries: int | None = None) -> Tensor:
        """See `RelativeAttention`."""
        tails = positions.starts + torch.tensor(positions.lengths)[positions.kinds]
        columns = int(positions.mask.sum(dim=1).max())
        order = positions.mask.int().argsort(dim=1, descending=True, stable=True)[:, :columns]
        wide = order.unsqueeze(2).expand(-1, -1, hidden.shape[2])
        found = self.attention(
            hidden.gather(1, wide),
            positions.starts.gather(1, order),
            tails.gather(1, order),
            positions.mask.gather(1, order),
        )
        found = found.new_zeros(hidden.shape).scatter(1, wide, found)[:, :num_queries]
        projected: Tensor = found if self.output is None else self.output(found)
        return projected


def build_model(recipe: Recipe, data: Any) -> FlatTagger:
    """The recipe's untrained model."""
    reseed(recipe.train.seed, "weights")
    assert isinstance(recipe.model, FlatConfig)
    model = model_class(recipe.model_name).build(recipe.model, data)
    assert isinstance(model, FlatTagger)
    return model


def with_plain_attention(model: FlatTagger) -> FlatTagger:
    """A copy with the plain layer; the lexicon is shared."""
    plain = copy.deepcopy(model, {id(model.lexicon): model.lexicon})
    for layer in plain.layers:
        assert isinstance(layer.attention, RelativeAttention)
        layer.attention = PlainInPlace(layer.attention)
    return plain


def check(ours: FlatTagger, plain: FlatTagger, features: Sequence[Any]) -> float:
    """Largest difference of emissions in float32; fails unless small, and unless other weights differ."""
    batch = ours.collate(features)
    other = copy.deepcopy(plain, {id(plain.lexicon): plain.lexicon})
    for parameter in other.layers[-1].get_submodule("attention").parameters():
        nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        emissions = [model.eval()(batch) for model in (plain, ours, other)]
    return difference_of_emissions(emissions[0], emissions[1], emissions[2], batch.mask)


def measure_training(options: argparse.Namespace) -> dict[str, Any]:
    """The part "training"; says its line."""
    recipe = load_recipe(options.recipe, options.set)
    data = load_data(recipe)
    model = build_model(recipe, data)
    plain = with_plain_attention(model)
    features = [model.featurize(document) for document in data.train if document.text]
    difference = check(model, plain, features[: recipe.train.batch_size])
    clock = clock_of(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        models = {"ours": model, "plain": plain}
        sides = {name: our_side(recipe, of, features, Path(folder) / name) for name, of in models.items()}
        torch.set_num_threads(options.threads)  # the trainer may have taken the recipe's
        speeds = in_turn(sides, options.rounds, options.steps, clock)
    ratios = [a / b for a, b in zip(speeds["ours"], speeds["plain"], strict=True)]
    ours, theirs = (round(statistics.median(speeds[name]), 1) for name in SIDES)
    ratio, low, high = (round(value, 1) for value in (statistics.median(ratios), min(ratios), max(ratios)))
    print(f"{'recipe':20}{'ours, sentences/s':>19}{'plain':>8}{'ratio':>8}   range")
    print(f"{options.recipe:20}{ours:19.1f}{theirs:8.1f}{ratio:8.1f}   {low:.1f} to {high:.1f}", flush=True)
    return {
        "asked": ASKED_TRAINING, "ratio": ratio, "range": [low, high],
        "sentences_per_second": {"ours": ours, "plain": theirs}, "recipe": options.recipe, "settings": options.set,
        "precision": recipe.train.precision, "batch_size": recipe.train.batch_size, "emission_difference": difference,
        "rounds": options.rounds, "steps": options.steps, "warm_up": WARM_UP, "clock": clock.__name__,
    }  # fmt: skip


# ---- a long text


def measure_long(options: argparse.Namespace) -> dict[str, Any]:
    """The part "long"; says its line."""
    peak, printed = peak_of("-c", TRAIN_ONCE, options.recipe, str(options.threads), *options.set)
    characters, words = map(int, printed.split())
    print(f"{options.recipe}: one step on {characters} characters and {words} words: {peak / 1000:.2f} GB", flush=True)
    return {
        "asked_gb": ASKED_LONG_GB, "peak_gb": round(peak / 1000, 3), "characters": characters, "words": words,
        "recipe": options.recipe, "settings": options.set,
    }  # fmt: skip


def clock_of(threads: int) -> Callable[[], float]:
    return time.process_time if threads == 1 else time.perf_counter


def main() -> None:
    """Measure, print the tables and the line."""
    parser = argparse.ArgumentParser(
        description="FLAT against the plain layer: time, memory, training; and a long text."
    )
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--characters", default=",".join(map(str, LENGTHS)), help="lengths of the first two parts")
    parser.add_argument("--recipe", default="cluener_flat", help="of the last two parts")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="SETTING", help="settings of that recipe, as train.py takes them"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--long-rounds", type=int, default=3, help=f"of attention from {FEW_ROUNDS_FROM} characters on")
    parser.add_argument("--passes", type=int, default=5, help="of our attention in a round")
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps of each side a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/flat.json")
    options = parser.parse_args()
    if min(options.rounds, options.long_rounds, options.passes, options.steps, options.threads) < 1:
        parser.error("--rounds, --long-rounds, --passes, --steps and --threads must be at least 1")
    parts, lengths = options.only.split(","), options.characters.split(",")
    if set(parts) - set(PARTS) or set(lengths) - set(map(str, LENGTHS)):
        parser.error(f"--only must be of {', '.join(PARTS)}, --characters of {', '.join(map(str, LENGTHS))}")
    torch.set_num_threads(options.threads)
    line: dict[str, Any] = {"benchmark": "flat", **(last("flat") if options.save else {})}
    lattices: dict[int, Lattices] = {}
    if {"attention", "memory"} & set(parts):
        lattices = {length: of for length, of in real_lattices().items() if str(length) in lengths}
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "attention": lambda: measure_attention(lattices, options),
        "memory": lambda: measure_memory(lattices, options),
        "training": lambda: measure_training(options),
        "long": lambda: measure_long(options),
    }
    for part in PARTS:
        if part not in parts:
            continue
        print(part)
        line[part] = {
            **measures[part](), "threads": options.threads, "torch": str(torch.__version__),
            "machine": describe_machine(torch.device("cpu")),
        }  # fmt: skip
        if options.save:
            keep(line)
    report(line, options.save)


if __name__ == "__main__":
    main()
