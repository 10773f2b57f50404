"""The source archive and the wheel hold what they should, and the wheel works in an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOT_PUBLISHED = {"tests", "benchmarks"}
PACKAGE_DATA = {
    "hanzoo": {"py.typed"},
    "hanzoo/data/corpora": {"README.md", "dev.jsonl", "samples.txt", "test.jsonl", "train.jsonl"},
}
SAMPLES = ROOT / "data" / "corpora" / "samples.txt"


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def own_files() -> Iterator[str]:
    """The files of the project, relative to its root: what git does not ignore; outside git all but what work leaves behind."""
    if shutil.which("git") and (ROOT / ".git").exists():
        listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout.split("\0")
        yield from (name for name in listed if name and os.path.lexists(ROOT / name))
        return
    for folder, folders, files in os.walk(ROOT):
        here = Path(folder).relative_to(ROOT)
        for name in [*files, *folders]:
            if name in files or (ROOT / here / name).is_symlink():
                yield str(here / name)
        left_behind = {"build", "dist", "runs", "datasets", "__pycache__"}
        folders[:] = [
            name
            for name in folders
            if name not in left_behind
            and (name == ".ci" or not name.startswith("."))
            and not name.endswith(".egg-info")
        ]


def published_files(tree: Path) -> set[str]:
    """What the wheel must hold: every folder of Python files under its published name, and the package data."""
    expected = set()
    for init in tree.rglob("__init__.py"):
        folder = init.parent.relative_to(tree)
        if folder.parts[0] in {*NOT_PUBLISHED, "dist"} or any(
            (tree / parent).is_symlink() for parent in [folder, *folder.parents]
        ):
            continue
        package = folder if folder.parts[0] == "hanzoo" else "hanzoo" / folder
        names = {path.name for path in init.parent.glob("*.py")} | PACKAGE_DATA.get(package.as_posix(), set())
        if package.as_posix() == "hanzoo/recipes":
            names |= {path.name for path in init.parent.glob("*.yaml")}
        expected |= {(package / name).as_posix() for name in names}
    return expected


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, so that a build leaves nothing in it and takes nothing that is not the project's."""
    tree = tmp_path_factory.mktemp("tree")
    for name in own_files():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name, follow_symlinks=False)
    return tree


@pytest.fixture(scope="module")
def archives(tree: Path) -> tuple[Path, Path]:
    """(source archive, wheel), the wheel built from the archive, as installers do. Needs no network."""
    backend = "from setuptools import build_meta; build_meta"
    run(sys.executable, "-c", f"{backend}.build_sdist('dist')", cwd=tree)
    (source,) = (tree / "dist").glob("*.tar.gz")
    unpacked = tree / "dist" / "unpacked"
    with tarfile.open(source) as archive:
        archive.extractall(unpacked, filter="data")
    (folder,) = unpacked.iterdir()
    run(sys.executable, "-c", f"{backend}.build_wheel('..')", cwd=folder)
    (wheel,) = unpacked.glob("*.whl")
    return source, wheel


@pytest.fixture(scope="module")
def installed(archives: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    run(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--target", target,
        archives[1], cwd=target,
    )  # fmt: skip
    return target


def test_wheel_holds_the_packages_and_nothing_else(tree: Path, archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        held = set(wheel.namelist())
    information = {name for name in held if name.partition("/")[0].endswith(".dist-info")}
    assert held - information == published_files(tree)
    assert any(name.endswith("/licenses/LICENSE") for name in information)


def test_a_forgotten_folder_would_be_seen(tree: Path, archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        held = set(wheel.namelist())
    forgotten = tree / "models" / "forgotten"
    forgotten.mkdir()
    (forgotten / "__init__.py").touch()
    assert published_files(tree) - held == {"hanzoo/models/forgotten/__init__.py"}
    shutil.rmtree(forgotten)


def test_source_archive_holds_the_project(tree: Path, archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[0]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        path.relative_to(tree).as_posix()
        for folder in ("data", "evaluation", "models", "recipes", "tasks", "tests", "training")
        for path in (tree / folder).rglob("*")
        if path.is_file()
    }
    wanted |= {"LICENSE", "Makefile", "README.md", "pyproject.toml", "train.py", "evaluate.py", "predict.py", ".ci/run"}
    assert wanted - held == set()


def test_wheel_trains_and_tags_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    here = {"PYTHONPATH": str(installed), "HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    found = run(sys.executable, "-c", "import hanzoo.models as m; print(m.__file__)", cwd=tmp_path, **here).stdout
    assert Path(found.strip()) == installed / "hanzoo" / "models" / "__init__.py"  # not the checkout's

    run(
        installed / "bin" / "hanzoo-train", "demo_bilstm_crf", "--run", "run", "train.epochs=1", "model.hidden=8",
        "model.dimension=8", "train.batch_size=64", cwd=tmp_path, **here,
    )  # fmt: skip
    assert (tmp_path / "run" / "model" / "hanzoo.safetensors").is_file()
    assert (installed / "bin" / "hanzoo-evaluate").is_file()
    tagged = run(installed / "bin" / "hanzoo-predict", "run", SAMPLES, cwd=tmp_path, **here).stdout
    texts = SAMPLES.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in tagged.splitlines()] == texts
    assert len(texts) == 5


# The ways in from a checkout.


def test_ci_can_be_run() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    run("bash", "-n", script, cwd=ROOT)


@pytest.fixture
def makefile(tmp_path: Path) -> Path:
    """A folder with the Makefile and no .venv."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What make would do."""
    return subprocess.run(["make", "-n", *words], cwd=folder, capture_output=True, text=True, check=False)


def test_make_refuses_an_old_python_in_one_line(makefile: Path) -> None:
    old = makefile / "python3.10"
    old.write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")  # answers as an interpreter below 3.11 does: with nothing
    old.chmod(0o755)
    refused = make(makefile, "demo", f"PYTHON={old}")
    assert refused.returncode != 0
    assert refused.stderr.count("\n") == 1
    assert "needs Python 3.11 or newer" in refused.stderr
    assert make(makefile, "demo", f"PYTHON={sys.executable}").returncode == 0


def test_the_demo_deletes_nothing(makefile: Path) -> None:
    assert "--resume" not in make(makefile, "demo", f"PYTHON={sys.executable}").stdout
    (makefile / "runs" / "demo").mkdir(parents=True)
    commands = make(makefile, "demo", f"PYTHON={sys.executable}").stdout
    assert (
        "--run runs/demo --resume" in commands
    )  # somebody's run of that name: gone on with, or refused if it is another
    assert "rm " not in commands


def test_make_installs_again_only_after_a_change(makefile: Path) -> None:
    def installs() -> bool:
        done = make(makefile, "test", f"PYTHON={sys.executable}")
        assert done.returncode == 0, done.stderr
        assert "-m pytest" in done.stdout
        return "-e '.[dev]'" in done.stdout

    assert installs()
    stamp = makefile / ".venv" / ".installed"
    stamp.parent.mkdir()
    stamp.touch()
    later = stamp.stat().st_mtime + 10
    os.utime(stamp, (later, later))
    assert not installs()
    os.utime(makefile / "pyproject.toml", (later + 10, later + 10))
    assert installs()


def test_make_installs_the_named_torch_first() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert text.index("pip install '$(TORCH)'") < text.index("-e '.[dev]'")


def test_make_check_data_says_what_it_needs(makefile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANZOO_DATA", "somewhere")
    monkeypatch.delenv("HANZOO_VECTORS", raising=False)
    refused = make(makefile, "check-data", f"PYTHON={sys.executable}")
    assert refused.returncode != 0
    assert "HANZOO_VECTORS must be set" in refused.stderr
    monkeypatch.setenv("HANZOO_VECTORS", "somewhere")
    done = make(makefile, "check-data", f"PYTHON={sys.executable}")
    assert done.returncode == 0
    assert "-m data" in done.stdout
