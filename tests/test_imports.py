"""What importing does and must not do: no second copy of a module, nothing heavy, and a cure where a package is missing."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAPPED = sorted(
    folder.parent.name for folder in ROOT.glob("*/__init__.py") if folder.parent.name not in ("hanzoo", "tests")
)


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command, with nothing of this process's Python settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, env=kept | environment, capture_output=True, text=True, check=False
    )


# A second copy.


def test_the_folders_are_those_of_the_house() -> None:
    assert MAPPED == ["data", "evaluation", "models", "recipes", "tasks", "training"]


@pytest.mark.parametrize("folder", MAPPED)
def test_a_folder_is_only_importable_under_hanzoo(folder: str) -> None:
    with pytest.raises(ImportError, match=f"from hanzoo.{folder} import"):
        importlib.import_module(folder)
    assert folder not in sys.modules
    assert importlib.import_module(f"hanzoo.{folder}").__name__ == f"hanzoo.{folder}"


@pytest.mark.parametrize("folder", MAPPED)
def test_a_folder_is_linked_and_published(folder: str) -> None:
    link = ROOT / "hanzoo" / folder
    assert link.samefile(ROOT / folder)
    with open(ROOT / "pyproject.toml", "rb") as file:
        published = tomllib.load(file)["tool"]["setuptools"]["package-dir"]
    assert published[f"hanzoo.{folder}"] == folder


def test_no_module_is_loaded_twice() -> None:
    program = "\n".join(
        [
            "import collections, os, sys",
            "import hanzoo.cli",
            "files = [getattr(module, '__file__', None) for module in list(sys.modules.values())]",
            "count = collections.Counter(os.path.realpath(file) for file in files if file)",  # the links of hanzoo/ resolved
            "for file, times in count.items(): print(times, file)",
        ]
    )
    done = run(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    loaded = {file: int(times) for times, file in (line.split(" ", 1) for line in done.stdout.splitlines())}
    folders = [ROOT / name for name in ("hanzoo", *MAPPED)]
    ours = {
        file: times for file, times in loaded.items() if any(Path(file).is_relative_to(folder) for folder in folders)
    }
    assert str(ROOT / "hanzoo" / "cli.py") in ours
    assert str(ROOT / "models" / "model.py") in ours
    assert set(ours.values()) == {1}


# Nothing heavy.


def modules_after(statement: str) -> set[str]:
    program = f"import sys; before = set(sys.modules); {statement}; print(*sorted(set(sys.modules) - before))"
    done = run(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_import_of_hanzoo_is_light() -> None:
    assert modules_after("import hanzoo") - sys.stdlib_module_names == {"hanzoo"}


def test_first_use_of_hanzoo_brings_torch() -> None:
    assert {"hanzoo", "torch"} <= modules_after("import hanzoo; hanzoo.load")


def test_the_commands_do_without_what_only_some_inputs_and_scorers_need() -> None:
    brought = modules_after("from hanzoo import cli")
    assert not {"datasets", "pandas", "pyarrow", "seqeval", "sklearn"} & brought  # a second, and a thread of pyarrow's
    assert "torch" in brought


def test_only_a_model_with_an_encoder_brings_transformers() -> None:
    make = "from hanzoo.models.model import model_class; model_class('{}').Config({}); import hanzoo.build"
    assert "transformers" not in modules_after(make.format("bilstm_crf", ""))
    assert "transformers" not in modules_after(make.format("encoder_crf", "encoder='any'"))
    assert "transformers" in modules_after("from hanzoo.data.subwords import quiet; quiet().__enter__()")


def test_an_unknown_name_is_an_attribute_error() -> None:
    import hanzoo

    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        _ = hanzoo.laod


# A cure where a package is missing.


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the standard library and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    venv.EnvBuilder(symlinks=os.name != "nt", with_pip=False).create(folder)
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
def test_a_command_without_its_dependencies_says_what_to_do(bare_python: Path, command: str) -> None:
    done = run(bare_python, f"{command}.py", "--help")
    assert done.returncode != 0
    assert "make demo" in done.stderr
    assert f"{command}.py: " in done.stderr
    assert str(bare_python) in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_command_with_its_dependencies_does_not() -> None:
    done = run(sys.executable, "train.py", "--list")
    assert done.returncode == 0, done.stderr
    assert "demo_bilstm_crf" in done.stdout.split()
    assert done.stderr == ""


def test_a_broken_module_of_our_own_keeps_its_traceback(tmp_path: Path, bare_python: Path) -> None:
    package = tmp_path / "hanzoo"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "start.py").write_bytes((ROOT / "hanzoo" / "start.py").read_bytes())
    (package / "cli.py").write_text("import hanzoo.gone\n", encoding="utf-8")
    done = run(bare_python, "-c", "from hanzoo.start import start; start('train')", cwd=tmp_path)
    assert done.returncode != 0
    assert "No module named 'hanzoo.gone'" in done.stderr
    assert "make demo" not in done.stderr
