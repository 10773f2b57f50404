"""What all objectives have in common, found by their files."""

from __future__ import annotations

import ast
import inspect
import pkgutil
from pathlib import Path
from typing import Any, get_args

import pytest

from hanzoo.data.training_items import ItemKind
from hanzoo.models import objectives
from hanzoo.models.model import TeacherSettings, model_names, objective_class

FOLDER = Path(objectives.__path__[0])
NAMES = sorted(info.name for info in pkgutil.iter_modules(objectives.__path__))
CUT = {
    "arccse": False,
    "binary": True,
    "cosent": False,
    "distillation": True,
    "info_nce": False,
    "margin_mse": True,
    "pairwise_softmax": True,
    "softmax": True,
    "triplet": True,
}


def test_the_files_are_those_of_the_list() -> None:
    assert sorted(CUT) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_file_holds_one_objective_of_its_name(name: str) -> None:
    objective: Any = objective_class(name)
    assert objective.__name__.lower() == name.replace("_", "")
    assert objective.decomposes is CUT[name]
    assert objective.least_items == (1 if CUT[name] else 2)
    assert set(objective.learns_from) <= set(get_args(ItemKind))
    assert objective.learns_from
    assert issubclass(objective.Settings, TeacherSettings) == (name in ("distillation", "margin_mse"))
    assert callable(objective.losses)
    assert callable(objective.divergence)
    annotations = [parameter.annotation for parameter in inspect.signature(objective).parameters.values()]
    assert {annotation.removesuffix(" | None") for annotation in annotations} <= {
        "int",
        "float",
        "bool",
        "tuple[float, float]",
        "PastVectors",
        "Tensor",
    }


@pytest.mark.parametrize("name", NAMES)
def test_objectives_do_not_import_each_other(name: str) -> None:
    tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {module for module in imported if module and module.startswith("hanzoo.models.objectives")}


def test_objectives_are_no_models() -> None:
    assert not {*NAMES, "objectives"} & set(model_names())
