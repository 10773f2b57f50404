"""The documents say what the code does: commands and settings exist, examples are read, links lead somewhere; two equal READMEs."""

from __future__ import annotations

import ast
import importlib.util
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import yaml

import hanzoo
from hanzoo import cli
from hanzoo.data.catalogue import DATA_SETS
from hanzoo.data.document import Document
from hanzoo.data.readers import FORMATS, read_documents, sniff_format
from hanzoo.errors import HanzooError
from hanzoo.evaluation.scorers import SCORERS
from hanzoo.models.bi_encoder import BiEncoder
from hanzoo.models.layers.encoder import EncoderModel
from hanzoo.models.model import Tagger
from hanzoo.recipe import check_recipe, load_recipe
from hanzoo.recipes.figures import BEGIN, END
from tests import tiny
from tests.fixtures import trained_run

ROOT = Path(__file__).resolve().parents[1]
READMES = ("README.md", "README.zh.md")
DOCUMENTS = (*READMES, "CHANGELOG.md", "CONTRIBUTING.md", "recipes/README.md")

# What a reader brings along: a name in a command that is none of these must be a file of the project or a run made above.
OWN_FILES = {
    "texts.txt", "texts.jsonl", "reviews.csv", "reviews.parquet", "held_out.jsonl",
    "pairs.tsv", "scored.tsv", "tagged.jsonl", "tagged.csv", "tagged.parquet", "page.html", "cluener_predict.json",
    "my_folder", "run.trec",
}  # fmt: skip


MACHINE_PATH = r"(?<![\w.}~/])/(?:root|home|Users|work|tmp|mnt|opt|data)/\S*"


class Block(NamedTuple):
    language: str
    text: str


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def inline_code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", without_blocks(text))


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", without_blocks(text))


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", without_blocks(text), re.MULTILINE)


def anchor(heading: str) -> str:
    """The name under which GitHub links a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def table(text: str) -> str:
    return text.partition(BEGIN)[2].partition(END)[0]


def numbers(text: str) -> Counter[str]:
    """Numbers of the prose; those inside words (F1) and code are left out."""
    prose = re.sub(r"`[^`\n]+`|\]\([^)]*\)|<http[^>]*>", " ", without_blocks(text))
    return Counter(number.rstrip(".,") for number in re.findall(r"(?<![\w.])\d[\d.,]*", prose, re.ASCII))


def sections(text: str) -> list[str]:
    return re.split(
        r"^#+ .+$", re.sub(r"^```.*?^```$", lambda b: b[0].replace("#", ""), text, flags=re.M | re.S), flags=re.M
    )


# The two READMEs.


def differences(english: str, chinese: str) -> list[str]:
    """Where two READMEs say different things, as far as that can be seen without understanding them."""
    found = []
    if [block.language for block in blocks(english)] != [block.language for block in blocks(chinese)]:
        found.append("code blocks: other languages, or another number")
    found += [
        f"code block: {mine.text!r} != {other.text!r}"
        for mine, other in zip(blocks(english), blocks(chinese), strict=False)
        if mine != other
    ]
    if numbers(table(english)) != numbers(table(chinese)) or Counter(inline_code(table(english))) != Counter(
        inline_code(table(chinese))
    ):
        found.append("table of figures")
    pairs = list(zip(sections(english), sections(chinese), strict=False))
    if len(sections(english)) != len(sections(chinese)):
        found.append("sections: another number")
    for number, (mine, other) in enumerate(pairs):
        where = f"section {number} ({headings(english)[number - 1] if number else 'before the title'})"
        for what, here, there in (
            ("numbers", numbers(mine), numbers(other)),
            ("code", Counter(inline_code(mine)), Counter(inline_code(other))),
            ("links", _targets(mine), _targets(other)),
        ):
            if here != there:
                found.append(f"{where}: {what}: only English {dict(here - there)}, only Chinese {dict(there - here)}")
    return found


def _targets(text: str) -> Counter[str]:
    """Link targets; those from one language to the other and within a page are named differently."""
    return Counter(link for link in links(text) if link not in READMES and not link.startswith("#"))


def test_the_two_readmes_say_the_same() -> None:
    assert differences(*map(page, READMES)) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--split dev", "--split test"),  # a code block
        ("# hanzoo\n", "# hanzoo\n\n## More\n"),
        ("600", "700"),  # a number in the prose
        ("`data.view=nam`", "`data.view=all`"),
        ("(LICENSE)", "(LICENCE)"),
        (f"{BEGIN}\n", f"{BEGIN}\n| 71.23 |\n"),
        ("```conll", "```text"),
    ],
)
def test_a_difference_between_the_readmes_would_be_seen(old: str, new: str) -> None:
    english, chinese = map(page, READMES)
    assert old in chinese
    assert differences(english, chinese.replace(old, new, 1)) != []


# Commands.


def command_lines(text: str) -> Iterator[list[str]]:
    """The commands of the shell blocks, pipes taken apart."""
    for block in blocks(text):
        if block.language == "sh":
            for line in block.text.splitlines():
                words: list[str] = []
                for word in shlex.split(line, comments=True):
                    if word == "|":
                        yield words
                        words = []
                    else:
                        words.append(word)
                if words:
                    yield words


def problems(commands: Sequence[Sequence[str]], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is wrong with the commands of one document, run one after the other in a checkout. Nothing is run."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(
        cli, "_run", lambda command, arguments, device=None: arguments
    )  # the real parsers, and nothing behind them
    runs = set(re.findall(r"--run (\S+)", page("Makefile")))
    found = []
    for words in commands:
        try:
            problem = _problem(words, runs)
        except SystemExit:
            problem = "its options are refused"
        except HanzooError as error:
            problem = str(error)
        if problem:
            found.append(f"{shlex.join(words)}: {problem}")
    return found


def _problem(words: Sequence[str], runs: set[str]) -> str:
    match list(words):
        case ["make", target] if target in re.findall(r"^\.PHONY: (.+)$", page("Makefile"), re.MULTILINE)[0].split():
            return ""
        case ["cat", file] if file in OWN_FILES:
            return ""
        case ["export", setting] if setting.partition("=")[0] in environment_keys():
            return ""
        case ["python", ("train.py" | "evaluate.py" | "predict.py") as script, *arguments] if (ROOT / script).is_file():
            return _problem_of_call(script.removesuffix(".py"), arguments, runs)
        case ["torchrun", "--nproc-per-node", "2", "--max-restarts", "3", "--", script, *arguments]:
            return _problem(["python", script, *arguments], runs)
    return "is not a command that is known here"


def _problem_of_call(name: str, arguments: list[str], runs: set[str]) -> str:
    parsed = getattr(cli, name)(arguments)
    if name == "train":
        if parsed.list:
            return ""
        if not (ROOT / parsed.recipe).is_file():
            return f"{parsed.recipe} is not there"
        run = str(parsed.run or f"runs/{load_recipe(parsed.recipe, parsed.settings).name}")
        if (run in runs) is not parsed.resume:
            return f"{run} must be new, or be there and be resumed"
        if not parsed.dry_run:
            runs.add(run)
        return ""
    named = [str(run) for run in (parsed.runs if name == "evaluate" else [parsed.run])]
    if getattr(parsed, "against", None):
        named.append(str(parsed.against))
    given = [parsed.file, parsed.submission] if name == "evaluate" else [parsed.file, parsed.output, parsed.html]
    unknown = [run for run in named if run not in runs]
    unknown += [str(file) for file in given if file is not None and str(file) not in {*OWN_FILES, "-"}]
    record = getattr(parsed, "record", None)
    if record and (record.parent.as_posix(), record.suffix) != ("recipes/results", ".json"):
        unknown.append(str(record))
    return f"unknown: {', '.join(unknown)}" if unknown else ""


def environment_keys() -> set[str]:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "data").glob("*.py"))
    return set(re.findall(r'environ[^\n]*?"(HANZOO_[A-Z]+)"', sources))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_would_be_understood(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = list(command_lines(page(name)))
    assert commands or name == "CHANGELOG.md"
    assert problems(commands, monkeypatch) == []


@pytest.mark.parametrize(
    "line",
    [
        "python train.py recipes/cluener_bilstm_cfr.yaml",
        "python train.py recipes/demo_bilstm_crf.yaml --dry",
        "python train.py recipes/demo_bilstm_crf.yaml modle.hidden=3",
        "python train.py recipes/demo_bilstm_crf.yaml --resume",
        "python train.py recipes/demo_bilstm_crf.yaml --run runs/demo",
        "python train.py recipes/demo_bilstm_crf.yaml --seeds 1;2",
        "python evaluate.py runs/demo --split all",
        "python evaluate.py runs/other",
        "python evaluate.py runs/demo --against runs/other",
        "python predict.py runs/demo other.txt",
        "python predict.py runs/demo texts.txt --json",
        "python serve.py runs/demo",
        "make all",
        "export HANZOO_DATE=here",
        "rm README.md",
        "torchrun --nproc-per-node 2 --max-restarts 3 -- train.py recipes/demo_bilstm_crf.yaml --dry",
    ],
)
def test_a_wrong_command_would_be_seen(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(problems([shlex.split(line)], monkeypatch)) == 1
    good = [
        "python evaluate.py runs/demo --split dev",
        "python train.py recipes/demo_bilstm_crf.yaml --run runs/another",
    ]
    assert problems(list(map(shlex.split, good)), monkeypatch) == []


def options(capsys: pytest.CaptureFixture[str]) -> set[str]:
    for command in (cli.train, cli.evaluate, cli.predict):
        with pytest.raises(SystemExit):
            command(["--help"])
    return set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_options_settings_and_keys_in_the_prose_exist(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    known = options(capsys)
    assert {"--resume", "--errors", "--html"} <= known
    for code in inline_code(page(name)):
        if code.startswith(("--", "hanzoo-", "python ")):
            assert set(re.findall(r"(?<!\S)--[a-z][a-z-]*", code)) <= known, code
        if re.fullmatch(r"(data|model|train|evaluate)\.[a-z_.]+=\S+", code):
            with_it = {"data.name": ["data.path=mine"], "data.path": ["data.name=null"]}.get(code.partition("=")[0], [])
            load_recipe("demo_bilstm_crf", [*with_it, code])
    assert set(re.findall(r"HANZOO_[A-Z]+", page(name))) <= environment_keys()


# Examples.


def test_the_examples_of_the_formats_are_read(tmp_path: Path) -> None:
    shown = [block for block in blocks(page("README.md")) if block.language in ("jsonl", "conll")]
    formats = []
    for number, block in enumerate(shown):
        path = tmp_path / f"{number}.{block.language}"
        path.write_text(block.text, encoding="utf-8")
        documents, report = read_documents(path)
        formats.append(sniff_format(path))
        assert report.remarks() == []
        assert [documents[0].text[span.start : span.end] for span in documents[0].spans] == ["浙商银行", "叶老桂"]
    assert formats == ["spans", "cluener", "columns"]
    assert all(f"`{name}`" in page("README.md") for name in FORMATS)


def test_the_recipe_of_the_readme_is_one() -> None:
    (block,) = (block for block in blocks(page("README.md")) if block.language == "yaml")
    recipe = check_recipe(yaml.safe_load(block.text), name="mine", place="README.md")
    assert recipe.data.path == "my.jsonl"


def run_python(written: str, run: Path) -> dict[str, Any]:
    """Run the README's Python that loads `written`, with another run in its place; what it leaves."""
    (code,) = (
        block.text for block in blocks(page("README.md")) if block.language == "python" and written in block.text
    )
    left: dict[str, Any] = {}
    exec(compile(ast.parse(code.replace(written, str(run))), "README.md", "exec"), left)
    return left


@pytest.mark.usefixtures("lexicons")
def test_the_python_of_the_lexicon_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"lexicon": ["tiny-words"], "dimension": 8, "width": 16, "num_heads": 2, "feed_forward": 24}
    (tmp_path / "model").mkdir()
    model = tiny.build("flat", settings)
    model.save(tmp_path / "model")
    (tmp_path / "my_words.txt").write_text("一下午\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    tagger = run_python("runs/cluener_flat", tmp_path / "model")["tagger"]
    assert {"绝区零", "一下午"} <= set(tagger.lexicon)
    assert "星穹铁道" not in tagger.lexicon
    assert len(tagger.lexicon) == len(model.lexicon) + 2  # type: ignore[arg-type]


def test_the_python_of_the_readme_runs(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained_run(tmp_path_factory)
    capsys.readouterr()
    run_python("runs/cluener_bilstm_crf", run)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("0 4 company 浙商银行 ") for line in lines), lines


@pytest.mark.usefixtures("encoders")
def test_the_python_of_matching_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = BiEncoder.build(BiEncoder.Config(encoder="tiny-bert"), SimpleNamespace(train=[Document("一")]))  # type: ignore[arg-type]
    model.calibration = (4.0, -2.0)
    (tmp_path / "model").mkdir()
    model.save(tmp_path / "model")
    run_python("runs/pairs", tmp_path / "model")
    score, probability, shape = capsys.readouterr().out.splitlines()
    assert float(probability) == pytest.approx(1 / (1 + math.exp(2 - 4 * float(score))))
    assert shape == "(2, 16)"


def test_the_calls_of_the_prose_exist() -> None:
    prose = " ".join(code for name in DOCUMENTS for code in inline_code(page(name)))
    assert all(hasattr(BiEncoder, method) for method in re.findall(r"\bmatcher\.(\w+)", prose))
    methods = set(re.findall(r"\btagger\.(\w+)", prose))
    assert "predict_stream" in methods
    assert all(hasattr(Tagger, method) or hasattr(EncoderModel, method) for method in methods)
    names = set(re.findall(r"(?<![\w/])hanzoo\.([a-z]+)(?!\w*\.)", prose))
    assert names & set(hanzoo.__all__)
    assert all(name in hanzoo.__all__ or importlib.util.find_spec(f"hanzoo.{name}") for name in names)


@pytest.mark.parametrize("name", READMES)
def test_the_data_sets_and_scorers_are_those_of_the_code(name: str) -> None:
    text = page(name)
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", text, re.MULTILINE))
    layout = next(block.text for block in blocks(text) if "$HANZOO_DATA/" in block.text)
    assert set(rows) == {*DATA_SETS, *SCORERS}
    for entry in DATA_SETS.values():
        counts = [f"{sentences:,}" for sentences, _ in entry.counts.values()]
        cells = rows[entry.name].split(" | ")
        assert re.findall(r"\d[\d,]*", cells[1]) == counts, entry.name
        assert set(re.findall(r"https://[\w./-]+\w", entry.source)) == set(re.findall(r"<(https://[^>]+)>", cells[0]))
        if entry.name != "bundled":
            (line,) = (line for line in layout.splitlines() if line.strip().startswith(f"{entry.name}/"))
            assert line.split()[1:] == list(entry.files.values())


# What is named is there.


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    here = (ROOT / name).parent
    for link in links(page(name)):
        if link.startswith("https://"):
            continue
        path, _, place = link.partition("#")
        target = (here / path) if path else ROOT / name
        assert target.exists(), link
        if place:
            assert place in map(anchor, headings(target.read_text(encoding="utf-8"))), link


@pytest.mark.parametrize("name", DOCUMENTS)
def test_nothing_of_one_machine_and_no_badges(name: str) -> None:
    assert re.findall(MACHINE_PATH, page(name)) == []
    assert re.findall(MACHINE_PATH, "in `/home/me/runs`, not $HOME/data/x or <https://a.b/data/c>") == [
        "/home/me/runs`,"
    ]
    assert re.findall(r"!\[[^\]]*\]\(https?:", page(name)) == []


def test_every_recipe_is_described() -> None:
    described = re.findall(r"^\| `(\w+)` \| ", page("recipes/README.md").partition(BEGIN)[0], re.MULTILINE)
    assert sorted(described) == sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("name", [*READMES, "recipes/README.md"])
def test_a_table_of_figures_has_its_place(name: str) -> None:
    assert (page(name).count(BEGIN), page(name).count(END)) == (1, 1)
    assert page(name).index(BEGIN) < page(name).index(END)


def tour() -> list[tuple[list[str], str]]:
    """The rows of CONTRIBUTING's tour: the paths, and what is said of them."""
    section = page("CONTRIBUTING.md").partition("## A tour of the house")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.+?`) \| (.+) \|$", section, re.MULTILINE)
    return [(re.findall(r"`([^`]+)`", paths), said) for paths, said in rows]


def test_the_tour_leads_through_the_house() -> None:
    named = {path for paths, _ in tour() for path in paths}
    for paths, said in tour():
        for path in paths:
            assert (ROOT / path).exists(), path
            assert (ROOT / path).is_dir() is path.endswith("/"), path
        for file in re.findall(r"`(\w+\.py)`", said):
            assert any((ROOT / path / file).is_file() for path in (*paths, ".")), file
    wanted = {f"{path.parent.name}/" for path in ROOT.glob("*/__init__.py")} - {"hanzoo/"} | {"tests/", "benchmarks/"}
    wanted |= {  # models, tricks and readers are found by their names and need no line
        path.relative_to(ROOT).as_posix()
        for folder in ("hanzoo", "data", "training", "evaluation", "tasks", "recipes")
        for path in (ROOT / folder).glob("*.py")
        if path.name not in ("__init__.py", "start.py")
    }
    assert wanted - named == set()


def test_the_changelog_names_this_version() -> None:
    text = page("CHANGELOG.md")
    assert hanzoo.__version__ in text
    assert re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)[0] in ("Unreleased", hanzoo.__version__)
