"""A matcher's folder in sentence-transformers, pylate and transformers: the scores are hanzoo's.

Needs another environment (`make interop`): HANZOO_INTEROP is its interpreter, HANZOO_PYLATE a folder with pylate and the versions
that it wants. With HANZOO_ENCODERS the encoders that are there take part, beside small random ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hanzoo.data.document import Pair
from hanzoo.data.randomness import reseed
from hanzoo.models.model import Matcher, load_model, model_class

PYTHON, PYLATE = (os.environ.get(name, "") for name in ("HANZOO_INTEROP", "HANZOO_PYLATE"))
REAL = Path(os.environ.get("HANZOO_ENCODERS", "/nowhere"))
pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(not PYTHON, reason="HANZOO_INTEROP is not set: run `make interop`"),
]

TEXTS = [
    "花呗怎么还款",
    "如何偿还花呗？",
    "Ｔｏｍ and JERRY went to the Zoo",
    "  前后 有 空格  ",
    "㊣“引号”与`反引号`……𠮷野家",
    "a",
    "借呗 Open 提前还款，会不会 影响 信用?!",
    "好的" * 350 + "完",
    "This is an English sentence about repayment.",
    "。，！",
]
PAIRS = [(TEXTS[one], TEXTS[other]) for one in range(len(TEXTS)) for other in range(one + 1, len(TEXTS))]
SPECIAL = [("写了[SEP]和[MASK]的文本", TEXTS[0]), (TEXTS[1], "[CLS]花呗")]
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    """A matcher, and the libraries that open its folder.

    Attributes:
        model: its name.
        settings: of the recipe's `model` section.
        libraries: see `open_elsewhere.py`.
        encoders: that it is tried with.
    """

    model: str
    settings: Mapping[str, Any]
    libraries: tuple[str, ...]
    encoders: tuple[str, ...] = ("tiny-bert", "tiny-albert", "albert-tiny-zh", "m3e-small")


BI, LATE, CROSS = (
    ("sentence_transformer",),
    ("multi_vector_encoder", "pylate"),
    ("cross_encoder", "sequence_classification"),
)
FIXED = {"expansion": 32.0}  # every query has as many [MASK] as fit, as in the other libraries
CASES = {
    "mean": Case("bi_encoder", {"pooling": "mean"}, BI),
    "cls": Case("bi_encoder", {"pooling": "cls"}, BI),
    "first_last": Case("bi_encoder", {"pooling": "first_last"}, BI),
    "pooler": Case("bi_encoder", {"pooling": "pooler"}, BI, ("tiny-bert", "tiny-albert", "m3e-small")),
    "short": Case("bi_encoder", {"max_pieces": 8}, BI),
    "colbert": Case("colbert", FIXED, LATE),
    "colbert unexpanded": Case("colbert", {"expansion": 0.0, "max_pieces": 20}, LATE),
    "colbert mean": Case("colbert", FIXED | {"mean": True}, LATE[:1]),
    "cross": Case("cross_encoder", {}, CROSS),
    "cross short": Case("cross_encoder", {"max_pieces": 21}, CROSS),
}  # fmt: skip


def build(case: Case, encoder: str) -> Matcher:
    reseed(1, "weights")
    cls = model_class(case.model)
    marker = {"document_marker": "#"} if case.model == "colbert" and "tiny-" in encoder[:5] else {}
    place = encoder if encoder.startswith("tiny-") else str(REAL / encoder)
    data = SimpleNamespace(train=[Pair(*pair) for pair in PAIRS])
    found = cls.build(cls.Config(encoder=place, **marker, **case.settings), data).eval()
    assert isinstance(found, Matcher)
    if encoder.startswith("tiny-"):
        for weight in found.parameters():
            if weight.dim() > 1:
                weight.data *= 10  # else random ones make the same of all texts
    return found


def pairs_of(case: Case) -> list[tuple[str, str]]:
    """ColBERT's markers are special pieces there, so that those in a text are special too."""
    return PAIRS if case.model == "colbert" else PAIRS + SPECIAL


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory, encoders: Path) -> dict[tuple[str, ...], Any]:
    """(case, encoder) -> hanzoo's scores; (case, encoder, library) -> that library's."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "pairs.json").write_text(json.dumps({name: pairs_of(case) for name, case in CASES.items()}))
    found: dict[tuple[str, ...], Any] = {}
    jobs: dict[bool, list[tuple[str, ...]]] = {True: [], False: []}
    for name, case in CASES.items():
        for encoder in case.encoders:
            if not encoder.startswith("tiny-") and not (REAL / encoder).is_dir():
                continue
            place = folder / f"{name} {encoder}"
            place.mkdir()
            build(case, encoder).save(place)
            model = load_model(place)
            assert isinstance(model, Matcher)
            found[name, encoder] = model.scores(pairs_of(case))
            for library in case.libraries:
                if library != "pylate" or PYLATE:
                    jobs[library == "pylate"].append((library, str(place), name, encoder))
    script = Path(__file__).with_name("open_elsewhere.py")
    for pylate, listed in jobs.items():
        (folder / "jobs.json").write_text(json.dumps([(library, place, name) for library, place, name, _ in listed]))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        if pylate:
            environment["PYTHONPATH"] = PYLATE
        ran = subprocess.run(
            [PYTHON, str(script), str(folder / "jobs.json"), str(folder / "pairs.json")],
            capture_output=True, text=True, env=environment, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr[-2000:]
        for (library, _, name, encoder), given in zip(listed, json.loads(ran.stdout.splitlines()[-1]), strict=True):
            found[name, encoder, library] = given
    return found


@pytest.mark.parametrize(
    ("name", "encoder", "library"),
    [(name, encoder, library) for name, case in CASES.items() for encoder in case.encoders for library in case.libraries],
)  # fmt: skip
def test_scores_are_equal(scores: dict[tuple[str, ...], Any], name: str, encoder: str, library: str) -> None:
    if (name, encoder, library) not in scores:
        pytest.skip(f"{encoder} or {library} is not here")
    expected: NDArray[np.float64] = scores[name, encoder]
    found = scores[name, encoder, library]
    assert not isinstance(found, str), found
    assert len(set(expected.round(4).tolist())) > 15  # there is something to compare
    difference = np.abs(np.array(found) - expected)
    # ColBERT's are sums of up to 32 cosines
    size = max(1.0, float(np.abs(expected).max()))
    sys.stdout.write(
        f"largest difference {difference.max():.1e}, scores {expected.min():.3f} to {expected.max():.3f}\n"
    )
    assert difference.max() <= TOLERANCE * size, pairs_of(CASES[name])[int(difference.argmax())]


def test_other_settings_would_be_seen(scores: dict[tuple[str, ...], Any]) -> None:
    """The control: what the settings change is far larger than what is allowed to differ."""
    given = {name: scores[name, "tiny-bert"][: len(PAIRS)] for name in CASES}
    for one, other in (("mean", "cls"), ("mean", "first_last"), ("mean", "short"), ("colbert", "colbert unexpanded")):
        assert np.abs(given[one] - given[other]).max() > 100 * TOLERANCE, (one, other)
