"""The benchmark of a fresh clone, on a repository whose make takes no time."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.fresh_clone import clean_environment, measure, outcomes, texts_tagged

# What each command saw goes to $(SAID), outside the clone, which is gone afterwards.
MAKEFILE = """
demo:
	mkdir -p .venv runs/demo
	sleep $(FIRST)
	touch .venv/.installed
	sleep $(SECOND)
	env > $(SAID); ls -A "$$HOME" >> $(SAID); pwd >> $(SAID); cat committed >> $(SAID)
	echo '{"splits": {"dev": {"f1": 0.51234}}}' > runs/demo/results.json
	@echo '{"text": "甲", "entities": []}'
test:
	@echo 'tests/a.py .F..'
	@echo '======= 3 passed, 1 skipped, 2 deselected in 1.20s ======='
check:
	@echo 'all is checked'; exit $(CODE)
"""


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=folder, check=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "Makefile").write_text(MAKEFILE, encoding="utf-8")
    (folder / "committed").write_text("as committed\n", encoding="utf-8")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "first")
    (folder / "committed").write_text("changed since\n", encoding="utf-8")
    return folder


needs_make = pytest.mark.skipif(
    shutil.which("make") is None or shutil.which("git") is None, reason="make or git is not installed"
)


@needs_make
def test_a_clone_is_measured(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = tmp_path / "said"
    path = str(Path(shutil.which("make") or "").parent) + ":/usr/bin:/bin"
    environment = {"PATH": path, "PIP_FIND_LINKS": "/wheels", "HANZOO_DATA": "/data", "HOME": str(tmp_path)}
    record, well = measure(repository, [f"SAID={said}", "CODE=0", "FIRST=0.4", "SECOND=1.0"], environment)
    assert well
    assert 0.01 <= record["install_minutes"] < record["demo_minutes"]  # 0.4 s and 1.0 s
    assert record["tests"] == {"passed": 3, "skipped": 1, "deselected": 2}
    assert (record["texts_tagged"], record["demo_f1"]) == (1, 0.5123)
    assert record["settings"][:2] == [f"SAID={said}", "CODE=0"]
    lines = said.read_text(encoding="utf-8").splitlines()
    assert lines[-1] == "as committed"
    folder, before = Path(lines[-2]), lines[-3]
    assert folder not in (repository, tmp_path)
    assert not folder.exists()
    assert "=" in before, "HOME must be empty, but this was in it"
    assert f"HOME={folder.parent}/home" in lines
    assert "PIP_FIND_LINKS=/wheels" in lines
    assert not any(line.startswith("HANZOO_DATA") for line in lines)
    assert "not committed is not measured" in capsys.readouterr().err


@needs_make
def test_a_command_that_fails_is_said(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environment = {"PATH": "/usr/bin:/bin"}
    _, well = measure(repository, [f"SAID={tmp_path / 'said'}", "CODE=3", "FIRST=0", "SECOND=0"], environment)
    assert not well
    assert "all is checked" in capsys.readouterr().err
    record, well = measure(repository, [f"SAID={tmp_path / 'nowhere' / 'said'}", "FIRST=0", "SECOND=0"], environment)
    assert not well
    assert "test_minutes" not in record


def test_counts_of_pytest() -> None:
    assert outcomes("== 1 failed, 9 passed, 8 warnings in 2s ==\nmake: *** Error 1") == {
        "failed": 1,
        "passed": 9,
        "warnings": 8,
    }
    assert outcomes("collected 9 items") == {}


def test_texts_of_the_demo() -> None:
    assert (
        texts_tagged('.venv/bin/python predict.py\n{"text": "a", "entities": []}\n{"text": "b", "error": "c"}\n') == 1
    )


def test_the_environment_of_a_newcomer() -> None:
    given = {
        "PATH": "/bin", "PIP_CERT": "c", "UV_INDEX": "i", "https_proxy": "p", "NO_PROXY": "n", "HOME": "/old",
        "XDG_CACHE_HOME": "x", "PYTHONPATH": "y", "HANZOO_VECTORS": "v", "VIRTUAL_ENV": "e", "PIPELINE": "z", "MAKEFLAGS": "j",
    }  # fmt: skip
    assert clean_environment(given, Path("/new")) == {
        "PATH": "/bin", "PIP_CERT": "c", "UV_INDEX": "i", "https_proxy": "p", "NO_PROXY": "n", "HOME": "/new",
    }  # fmt: skip
