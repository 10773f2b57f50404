from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hanzoo.errors import RecipeError
from hanzoo.recipe import SECTIONS, bundled_recipes, check_recipe, load_recipe

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
MINIMAL: dict[str, Any] = {"data": {"name": "bundled"}, "model": {"name": "bilstm_crf"}}


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def mistakes_in(values: dict[str, Any]) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        check_recipe(values, name="mine", place="mine.yaml")
    return str(caught.value).split("\n")


# --- the bundled recipes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_bundled_recipe_parses_and_is_complete(path: Path) -> None:
    recipe = load_recipe(path)
    assert load_recipe(path.stem).to_dict() == recipe.to_dict()
    assert recipe.name == path.stem
    assert path.stem.endswith(f"_{recipe.model_name}") or f"_{recipe.model_name}_" in path.stem
    assert recipe.data.name is not None
    assert path.stem.startswith("demo" if recipe.data.name == "bundled" else recipe.data.name)
    written = [yaml.safe_load(path.read_text(encoding="utf-8"))]
    while "include" in written[-1]:
        written.append(yaml.safe_load((path.parent / written[-1].pop("include")).read_text(encoding="utf-8")))
    assert {section for part in written for section in part} <= set(SECTIONS)
    assert any("epochs" in part.get("train", {}) for part in written)


def test_the_bundled_recipes_are_those_of_the_folder() -> None:
    assert bundled_recipes() == [path.stem for path in RECIPES]
    assert "cluener_bilstm_crf" in bundled_recipes()


# --- what a recipe becomes -------------------------------------------------------------------------------------------


def test_a_resolved_recipe_says_all_and_means_the_same(tmp_path: Path) -> None:
    recipe = check_recipe(
        MINIMAL | {"train": {"seed": 7, "tricks": {"fgm": None}}, "evaluate": {"metric": "macro_f1"}},
        name="mine",
        place="mine.yaml",
    )
    again = load_recipe(write(tmp_path, recipe.to_yaml()))
    assert again.to_dict() == recipe.to_dict()
    assert again.train.seed == 7
    assert list(again.tricks) == ["fgm"]
    assert "hidden" in recipe.to_dict()["model"]
    assert "dropout_hidden" in recipe.to_yaml()
    other = recipe.with_seed(8)
    assert other.train.seed == 8
    assert other.to_dict() != recipe.to_dict()
    assert other.with_seed(7).to_dict() == recipe.to_dict()


def test_distillation_is_a_section_that_may_lack(tmp_path: Path) -> None:
    plain = check_recipe(MINIMAL, name="mine", place="mine.yaml")
    assert plain.distillation is None
    assert "distillation" not in plain.to_dict()
    assert check_recipe(MINIMAL | {"distillation": None}, name="mine", place="mine.yaml").distillation is None
    recipe = check_recipe(MINIMAL | {"distillation": {"teacher": ["runs/a", "runs/b"]}}, name="mine", place="mine.yaml")
    assert recipe.distillation is not None
    assert recipe.distillation.teachers == ["runs/a", "runs/b"]
    assert recipe.distillation.files == []
    path = write(tmp_path, recipe.with_seed(3).to_yaml())
    assert load_recipe(path).distillation == recipe.distillation
    one = load_recipe(path, ["distillation.teacher=runs/c", "distillation.unlabelled=more.txt"]).distillation
    assert one is not None
    assert (one.teachers, one.files, one.temperature) == (["runs/c"], ["more.txt"], 2.0)


def test_settings_on_the_command_line_replace_those_of_the_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, "data:\n  name: bundled\nmodel:\n  name: bilstm_crf\n  hidden: 8\ntrain:\n")
    settings = ["model.hidden=16", "train.optimizer.learning_rate=2e-3", "train.tricks.fgm.epsilon=0.5"]
    recipe = load_recipe(path, [*settings, "evaluate.calibrate=false", "data.name=null", "data.path=a=b.jsonl"])
    assert recipe.to_dict()["model"]["hidden"] == 16
    assert recipe.train.optimizer.learning_rate == 0.002
    assert recipe.tricks["fgm"].model_dump()["epsilon"] == 0.5
    assert recipe.evaluate.calibrate is False
    assert (recipe.data.name, recipe.data.path) == (None, "a=b.jsonl")
    assert load_recipe(path).to_dict()["model"]["hidden"] == 8


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("hidden", "a setting must be key.sub=value, but is 'hidden'"),
        ("=3", "a setting must be key.sub=value, but is '=3'"),
        ("model.hidden=[1", "the value of model.hidden must be YAML"),
        ("model.hidden.more=3", "model.hidden.more must name a setting, but hidden is a value"),
        ("model.hiden=3", "model.hiden is not a setting of model. Did you mean 'hidden'?"),
        ("modell.hidden=3", "modell is not a section. Did you mean 'model'?"),
    ],
)
def test_a_wrong_setting_on_the_command_line(tmp_path: Path, setting: str, message: str) -> None:
    path = write(tmp_path, "data: {name: bundled}\nmodel: {name: bilstm_crf, hidden: 8}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [setting])
    assert message in str(caught.value)


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "+1e-3", "1.0e-3", "0.001", ".001"])
def test_numbers_as_people_write_them(tmp_path: Path, number: str) -> None:
    path = write(
        tmp_path,
        f"data: {{name: bundled}}\nmodel: {{name: bilstm_crf}}\ntrain: {{optimizer: {{learning_rate: {number}}}}}\n",
    )
    assert load_recipe(path).train.optimizer.learning_rate == 0.001


def test_a_word_that_begins_as_a_number_stays_a_word(tmp_path: Path) -> None:
    path = write(tmp_path, "data: {path: 1e3.jsonl}\nmodel: {name: bilstm_crf}\n")
    assert load_recipe(path).data.path == "1e3.jsonl"


def test_include_takes_what_recipes_share(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    write(
        tmp_path / "shared",
        "data: {name: bundled}\nmodel: {name: bilstm_crf, hidden: 8}\ntrain: {epochs: 3, seed: 5}\n",
        "base.yaml",
    )
    write(tmp_path, "include: shared/base.yaml\ntrain: {epochs: 4}\n", "middle.yaml")
    recipe = load_recipe(write(tmp_path, "include: middle.yaml\nmodel: {hidden: 16}\n"), ["train.batch_size=2"])
    assert recipe.name == "mine"
    assert recipe.to_dict()["model"]["hidden"] == 16
    assert (recipe.train.epochs, recipe.train.seed, recipe.train.batch_size) == (4, 5, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("include: mine.yaml\n", "include must not lead back"),
        ("include: other.yaml\n", "include must not lead back"),
        ("include: nowhere.yaml\n", "include must be a recipe beside this one, but 'nowhere.yaml' is no file"),
        ("include: [a, b]\n", "include must be a recipe beside this one"),
    ],
)
def test_a_wrong_include(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "include: mine.yaml\n", "other.yaml")
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, text))


def test_yaml_anchors_may_share_settings(tmp_path: Path) -> None:
    text = "data: &all {name: bundled}\nmodel:\n  name: bilstm_crf\nevaluate: &e {metric: f1}\n"
    path = write(tmp_path, text + "train:\n  optimizer: &o {name: sgd}\n")
    assert load_recipe(path).train.optimizer.name == "sgd"
    merged = write(tmp_path, "data:\n  <<: {name: weibo, view: nam}\n  name: bundled\nmodel: {name: bilstm_crf}\n")
    assert (load_recipe(merged).data.name, load_recipe(merged).data.view) == ("bundled", "nam")


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_all_mistakes_are_shown_at_once_each_with_the_nearest_known_key() -> None:
    mistakes = mistakes_in(
        {
            "data": {"name": "bundled", "pth": "x"},
            "model": {"name": "bilstm_crf", "hiden": 3, "dropout_hidden": 1.5},
            "train": {"epochs": "three", "optimizer": {"learning_rat": 1}, "tricks": {"fmg": None}},
            "evaluate": {"metric": "f2"},
            "evalute": {},
        }
    )
    expected = [
        "evalute is not a section. Did you mean 'evaluate'?",
        "data.pth is not a setting of data. Did you mean 'path'?",
        "model.hiden is not a setting of model. Did you mean 'hidden'?",
        "model.dropout_hidden: must be less than 1, but is 1.5",
        "train.epochs: must be a valid integer, but is 'three'",
        "train.optimizer.learning_rat is not a setting of train.optimizer. Did you mean 'learning_rate'?",
        "evaluate.metric: must be 'f1', 'macro_f1' or 'official_macro_f1', but is 'f2'",
    ]
    for line in expected:
        assert any(mistake.startswith(f"mine.yaml: {line}") for mistake in mistakes), (line, mistakes)
    assert len(mistakes) == len(expected)  # tricks are looked at once the rest of `train` is right
    assert check_recipe(MINIMAL, name="mine", place="mine.yaml").name == "mine"


@pytest.mark.parametrize("trick", ["ewc", "l2_sp"])
def test_what_pulls_back_to_a_start_needs_one(trick: str) -> None:
    values = MINIMAL | {"train": {"tricks": {trick: None}}}
    with pytest.raises(RecipeError, match=f"train.tricks.{trick} needs a trained model .* Set train.start_from=RUN"):
        check_recipe(values, name="mine", place="mine.yaml")
    values["train"]["start_from"] = "runs/old"
    assert list(check_recipe(values, name="mine", place="mine.yaml").tricks) == [trick]


def test_a_wrong_trick() -> None:
    known = {"train": {"tricks": {"fgm": {"epsilom": 1.0}, "r_drp": {}}}}
    mistakes = mistakes_in(MINIMAL | known)
    assert len(mistakes) == 2
    assert "train.tricks.fgm.epsilom is not a setting of train.tricks.fgm. Did you mean 'epsilon'?" in mistakes[0]
    assert "train.tricks.r_drp is not a trick. Did you mean 'r_drop'?" in mistakes[1]
    both = mistakes_in(MINIMAL | {"train": {"tricks": {"fgm": {}, "pgd": {}}}})
    assert len(both) == 1
    assert "fgm and pgd must not stand together" in both[0] or "pgd and fgm must not stand together" in both[0]


@pytest.mark.parametrize(("trick", "settings"), [("fgm", {}), ("pgd", {}), ("free_lb", {"epsilon_0": 0.0})])
def test_an_attack_on_a_frozen_table_is_refused(trick: str, settings: dict[str, Any]) -> None:
    model = {"name": "encoder_crf", "encoder": "any", "freeze_epochs": 1}
    attack = settings | {"target": "table"}
    values = MINIMAL | {"model": model, "train": {"tricks": {trick: attack}}}
    (mistake,) = mistakes_in(values)
    assert (
        f"train.tricks.{trick} and model.freeze_epochs must not stand together, but model.freeze_epochs is 1" in mistake
    )
    for section, change in ((attack, {"target": "activations"}), (model, {"freeze_epochs": 0})):
        before = dict(section)
        section.update(change)
        check_recipe(values, name="mine", place="mine.yaml")
        section.update(before)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"train": {"epochs": 0}}, "train.epochs: must be greater than or equal to 1, but is 0."),
        ({"train": {"epochs": 2.0}}, "train.epochs: must be a valid integer, but is 2.0."),
        ({"train": {"epochs": True}}, "train.epochs: must be a valid integer, but is True."),
        ({"train": {"epochs": None}}, "train.epochs: must be a valid integer, but is None."),
        ({"train": {"tricks": {"fgm": 3}}}, "train.tricks.fgm: must be a valid dictionary, but is 3."),
        ({"train": {"tricks": ["fgm"]}}, "train.tricks: must be a valid dictionary, but is ['fgm']."),
        ({"train": 3}, "train must be a section, but is 3."),
        ({"evaluate": {"calibrate": "yes"}}, "evaluate.calibrate: must be a valid boolean, but is 'yes'."),
        ({"data": {"path": 3}}, "data.path: must be a valid string, but is 3."),
        ({"data": {}}, "data must have exactly one of name, path, train, hub, but has none. "),
        ({"data": {"name": "bundled", "path": "x"}}, "data must have exactly one of name, path, train, hub, but has "),
        ({"model": {"name": "bilstm_crff"}}, "model.name must be one of bi_encoder, bilstm_crf"),
        ({"model": {"hidden": 3}}, "model.name must be one of "),
        ({"model": {"name": ["bilstm_crf"]}}, "model.name must be one of "),
    ],
)
def test_a_value_of_the_wrong_kind(section: dict[str, Any], message: str) -> None:
    mistakes = mistakes_in(MINIMAL | section)
    assert len(mistakes) == 1
    assert mistakes[0].startswith(f"mine.yaml: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold the sections data, model, objective, train, distillation, evaluate, but holds NoneType"),
        ("- data\n", "must hold the sections data, model, objective, train, distillation, evaluate, but holds list"),
        ("data: {name: bundled\n", "must be YAML, but is not: "),
        ("data: {name: bundled}\ndata: {name: weibo}\n", "the key 'data' stands twice"),
        ("data:\n  name: bundled\n  name: weibo\n", "the key 'name' stands twice"),
        ("? [data]\n: 3\n", "a key must be a word, but is ['data']"),
        ("1: 2\n", "a key must be a word, but is 1"),
        ("train: {epochs: 2024-13-45}\n", "must be YAML, but is not: month must be in 1..12"),
        ("train: " + "[" * 500, "must be YAML, but is not: "),
        (
            "data: !!python/object/apply:os.system [echo]\n",
            "must be YAML, but is not: could not determine a constructor",
        ),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes("data: {path: 中文.jsonl}\n".encode("gb18030"))
    with pytest.raises(RecipeError, match="a recipe must be UTF-8 text"):
        load_recipe(path)


def test_an_unknown_recipe_names_the_nearest_bundled_one() -> None:
    with pytest.raises(RecipeError, match=r"neither\. Did you mean 'cluener_bilstm_crf'"):
        load_recipe("cluener_bilstm_cfr")
    with pytest.raises(RecipeError, match=r"neither\. Did you mean 'cluener_bilstm_crf'"):
        load_recipe("recipes/cluener_bilstm_cfr.yaml")


# --- the schedule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            {"cycles": 3},
            "train.schedule.cycles is not a setting of train.schedule (linear). It belongs to cosine_restarts.",
        ),
        (
            {"name": "cosine", "patience": 3},
            "train.schedule.patience is not a setting of train.schedule (cosine). It belongs",
        ),
        (
            {"name": "cyclic", "half_perod": 0.1},
            "train.schedule.half_perod is not a setting of train.schedule (cyclic). Did",
        ),
        (
            {"name": "cosin"},
            "train.schedule.name must be one of constant, linear, cosine, cosine_restarts, cyclic, plateau, ",
        ),
        ({"name": ["linear"]}, "train.schedule.name must be one of "),
        ({"name": "plateau", "factor": 1.5}, "train.schedule.factor: must be less than 1, but is 1.5."),
        ({"warmup": 1.0}, "train.schedule.warmup: must be less than 1, but is 1.0."),
        (3, "train.schedule: must be a section, but is 3."),
    ],
)
def test_a_wrong_schedule(schedule: Any, message: str) -> None:
    mistakes = mistakes_in(MINIMAL | {"train": {"schedule": schedule}})
    assert len(mistakes) == 1
    assert mistakes[0].startswith(f"mine.yaml: {message}")


def test_a_schedule_that_training_would_not_live_to_see() -> None:
    plateau = {"name": "plateau", "patience": 2}
    (mistake,) = mistakes_in(MINIMAL | {"train": {"patience": 2, "schedule": plateau}})
    assert mistake.startswith("mine.yaml: train.schedule.patience must be below train.patience (2), but is 2")
    for patience in (0, 3):
        check_recipe(MINIMAL | {"train": {"patience": patience, "schedule": plateau}}, name="mine", place="mine.yaml")


def test_a_schedule_on_the_command_line_takes_the_place_of_the_recipes(tmp_path: Path) -> None:
    text = "data: {name: bundled}\nmodel: {name: bilstm_crf}\ntrain: {schedule: {name: cosine_restarts, cycles: 4}}\n"
    path = write(tmp_path, text)
    changed = load_recipe(path, ["train.schedule.warmup=0.2"]).train.schedule
    assert changed.model_dump() == {"name": "cosine_restarts", "warmup": 0.2, "cycles": 4, "growth": 1, "floor": 0.0}
    assert load_recipe(path, ["train.schedule={name: constant}"]).train.schedule.name == "constant"
    with pytest.raises(RecipeError, match=r"cycles is not a setting of train\.schedule \(constant\)"):
        load_recipe(path, ["train.schedule.name=constant"])
    again = load_recipe(write(tmp_path, load_recipe(path).to_yaml(), "again.yaml"))
    assert again.train.schedule == load_recipe(path).train.schedule


# --- the rate that other rows suggest --------------------------------------------------------------------------------

SWITCH = "train: {batch_size: 8, accumulation: 2, optimizer: {learning_rate: 0.01, sgd_from_epoch: 2, sgd_learning_rate: 0.1}}\n"


@pytest.mark.parametrize(
    ("train", "settings", "ranks", "rates"),
    [
        ("batch_size: 8", ["train.batch_size=32"], 1, ["learning_rate=0.02"]),
        ("batch_size: 8", ["train.accumulation=4"], 1, ["learning_rate=0.02"]),
        ("batch_size: 8", [], 4, ["learning_rate=0.02"]),
        ("batch_size: 8", ["train.batch_size=2"], 1, ["learning_rate=0.005"]),
        ("batch_size: 8", ["train.optimizer.name=sgd"], 4, ["learning_rate=0.04"]),
        ("batch_size: 8", ["train.optimizer.name=adamax"], 4, ["learning_rate=0.02"]),
        ("batch_characters: 800", [], 4, ["learning_rate=0.02"]),
        # as it was, in other words
        ("batch_size: 8", [], 1, []),
        ("batch_size: 8", ["train.batch_size=4", "train.accumulation=2"], 1, []),
        ("batch_size: 8", ["train.batch_size=4"], 2, []),
        # the rate is named: also where it is the same, also inside a section
        ("batch_size: 8", ["train.batch_size=32", "train.optimizer.learning_rate=0.01"], 1, []),
        ("batch_size: 8", ["train.batch_size=32", "train.optimizer={learning_rate: 0.03}"], 1, []),
        # rows against characters: nobody knows
        ("batch_size: 8", ["train.batch_characters=900"], 1, []),
        # both rates, or the one that is not named
        (SWITCH, ["train.batch_size=32"], 1, ["learning_rate=0.02", "sgd_learning_rate=0.4"]),
        (SWITCH, ["train.batch_size=32", "train.optimizer.learning_rate=0.03"], 1, ["sgd_learning_rate=0.4"]),
    ],
)  # fmt: skip
def test_other_rows_than_the_files_suggest_another_rate(
    tmp_path: Path, train: str, settings: list[str], ranks: int, rates: list[str]
) -> None:
    text = train if train == SWITCH else f"train: {{{train}, optimizer: {{learning_rate: 0.01}}}}\n"
    path = write(tmp_path, f"data: {{name: bundled}}\nmodel: {{name: bilstm_crf}}\n{text}")
    recipe = load_recipe(path, settings)
    line = recipe.suggested_rates(ranks)
    assert (line or "").split()[-len(rates) or 99 :] == [f"train.optimizer.{rate}" for rate in rates]
    assert recipe.with_seed(5).suggested_rates(ranks) == line
    assert recipe.to_dict() == recipe.with_seed(recipe.train.seed).to_dict()
    if line:
        assert "\n" not in line
        assert str(path) in line


def test_included_rows_count_and_a_file_that_needs_the_command_line_suggests_nothing(tmp_path: Path) -> None:
    write(tmp_path, "data: {name: bundled}\nmodel: {name: bilstm_crf}\ntrain: {batch_size: 8}\n", "base.yaml")
    path = write(tmp_path, "include: base.yaml\ntrain: {accumulation: 2}\n")
    assert "a step has 32 rows, but the rate of" in str(load_recipe(path, ["train.batch_size=16"]).suggested_rates())
    assert load_recipe(path).suggested_rates() is None
    wrong = write(tmp_path, "include: base.yaml\ntrain: {batch_size: 0}\n", "wrong.yaml")
    assert load_recipe(wrong, ["train.batch_size=16"]).suggested_rates() is None
    assert check_recipe(MINIMAL, name="mine", place="mine.yaml").suggested_rates(2) is None


def test_what_a_run_goes_on_from_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/wang")
    for given, located in (("runs/old", str(tmp_path / "runs" / "old")), ("~/old", "/home/wang/old")):
        recipe = check_recipe(MINIMAL | {"train": {"start_from": given}}, name="mine", place="mine.yaml")
        assert recipe.located().train.start_from == located
        assert recipe.located().located().to_dict() == recipe.located().to_dict()
