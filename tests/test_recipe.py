"""Recipes: read, laid over one another, checked, and written out again."""

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import yaml
from helpers import one_sentence
from torch import nn

from fcn_smp.errors import UserError
from fcn_smp.recipe import Recipe, json_schema, load_recipe, shipped_recipes
from fcn_smp.registry import ARCHITECTURES
from fcn_smp.training.parts import build_network

SHIPPED = sorted(shipped_recipes())
SECTIONS = ["model", "data", "augmentation", "preprocessing", "loss", "optimizer", "schedule", "trainer"]


def write(path: Path, **content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """The shortest recipe."""
    return write(tmp_path / "mine.yaml", data={"kind": "demo"})


# --- Reading and writing


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_is_written_out_and_read_again_unchanged(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == Path(name).name
    (tmp_path / "copy.yaml").write_text(recipe.dump())
    again = load_recipe(tmp_path / "copy.yaml")
    assert again == recipe
    assert again.dump() == recipe.dump()


def test_demo_and_voc_are_shipped() -> None:
    assert {"demo", "voc2007"} <= set(SHIPPED)
    for name, path in shipped_recipes().items():
        assert load_recipe(path) == load_recipe(name)


def test_whole_recipe_survives_being_written_out(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.yaml",
        name="1e-3",
        seed=7,
        model={
            "arch": "fcn4s",
            "decoder_skip_scales": [0.5, 1e-4],
            "encoder_options": {"output_stride": 16, "a": None},
            "decoder_alignment": "caffe",
            "decoder_hidden_weights": None,
            "init_from": "hub/model",
            "frozen": ["encoder", "decoder.hidden.0"],
        },
        data={"kind": "voc", "year": 2012, "root": "~/é", "train": "a: b", "val": "null"},
        augmentation={"crop": [320, 480], "scale": [0.25, 3]},
        preprocessing={"mean": [0, 0.5, 1], "std": [1, 1e-7, 2], "input_space": "BGR", "input_range": [0, 255]},
        loss={"class_weights": {"person": 2.5, "no": 1}, "label_smoothing": 0.1, "reduction": "sum"},
        optimizer={"kind": "sgd", "nesterov": True, "bias_lr_factor": 2},
        schedule={"kind": "poly", "power": 2},
        trainer={"gradient_clip": 0.1, "devices": "auto", "precision": "bf16"},
        stages={"1e-3": {"augmentation": None}, "null": {"optimizer": {"kind": "adam", "lr": 1e-10}, "name": "no"}},
    )
    recipe = load_recipe(path)
    (tmp_path / "copy.yaml").write_text(recipe.dump())
    assert load_recipe(tmp_path / "copy.yaml") == recipe
    assert recipe.data.root == Path.home() / "é"
    assert recipe.model.decoder_skip_scales == [0.5, 1e-4]
    assert (recipe.data.train, recipe.data.val, recipe.name) == ("a: b", "null", "1e-3")
    assert load_recipe(tmp_path / "copy.yaml").staged() == recipe.staged()
    assert list(recipe.staged()) == ["1e-3", "null"]


def test_dump_holds_every_key_with_its_value() -> None:
    recipe = load_recipe("voc2007")
    content = yaml.safe_load(recipe.dump())
    assert list(content) == list(Recipe.model_fields)
    for section in SECTIONS:
        assert list(content[section]) == list(type(getattr(recipe, section)).model_fields)
    assert content["trainer"]["devices"] == 1
    assert content["schedule"]["final"] == 0


def test_recipe_is_named_after_its_file_unless_it_has_a_name(demo: Path, tmp_path: Path) -> None:
    assert load_recipe(demo).name == "mine"
    assert load_recipe(write(tmp_path / "2007.yaml", data={"kind": "demo"})).name == "2007"
    assert load_recipe(write(tmp_path / "other.yaml", name="x", data={"kind": "demo"})).name == "x"


def test_recipe_cannot_be_changed(demo: Path) -> None:
    recipe = load_recipe(demo)
    with pytest.raises(ValueError, match="frozen"):
        recipe.trainer.epochs = 3
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3


def test_architectures_are_those_of_the_registry() -> None:
    for arch in ARCHITECTURES:
        assert load_recipe("demo", [f"model.arch={arch}"]).model.arch == arch
    assert set(Recipe.model_json_schema()["$defs"]["Model"]["properties"]["arch"]["enum"]) == set(ARCHITECTURES)


@pytest.mark.parametrize("kind", ["demo", "voc"])
def test_root_of_the_data_becomes_absolute(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"kind": kind, "root": "below/data"} | ({"year": 2007} if kind == "voc" else {})
    path = write(tmp_path / "recipes/x.yaml", data=data)
    monkeypatch.chdir(tmp_path)
    assert load_recipe(path).data.root == tmp_path / "below/data"
    assert load_recipe(path, ["data.root='~/x'"]).data.root == Path.home() / "x"


def test_what_to_start_from_becomes_absolute_where_it_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs/before").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given, expected in {
        "runs/before": str(tmp_path / "runs/before"),
        "~/runs/before": str(tmp_path / "runs/before"),
        "runs/after": "runs/after",  # a model of the Hub, for all that is known
        "null": None,
    }.items():
        assert load_recipe("demo", [f"model.init_from={given}"]).model.init_from == expected


# --- Extending


def test_extended_recipe_keeps_what_is_not_changed(tmp_path: Path) -> None:
    base = write(
        tmp_path / "base.yaml",
        data={"kind": "demo"},
        trainer={"epochs": 3, "batch_size": 5},
        model={"encoder_options": {"a": 1, "b": 2}, "decoder_skip_scales": [1, 2]},
    )
    child = write(
        tmp_path / "child.yaml",
        extends="base.yaml",
        trainer={"epochs": 4},
        model={"encoder_options": {"b": 3}, "decoder_skip_scales": [5]},
    )
    recipe = load_recipe(child)
    assert (recipe.trainer.epochs, recipe.trainer.batch_size) == (4, 5)
    assert recipe.model.encoder_options == {"a": 1, "b": 3}
    assert recipe.model.decoder_skip_scales == [5]
    assert recipe.name == "child"
    assert load_recipe(base).trainer.epochs == 3


def test_extended_path_is_seen_from_the_recipe_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a/base.yaml", data={"kind": "demo"}, seed=1)
    write(tmp_path / "a/b/middle.yaml", extends="../base.yaml", trainer={"epochs": 2})
    write(tmp_path / "top.yaml", extends="a/b/middle.yaml", trainer={"batch_size": 3})
    monkeypatch.chdir(tmp_path / "a")
    recipe = load_recipe("../top.yaml")
    assert (recipe.seed, recipe.trainer.epochs, recipe.trainer.batch_size) == (1, 2, 3)


def test_extended_may_be_a_shipped_recipe(tmp_path: Path) -> None:
    child = load_recipe(write(tmp_path / "x.yaml", extends="voc2007", trainer={"epochs": 1}))
    base = load_recipe("voc2007")
    assert child.trainer == base.trainer.model_copy(update={"epochs": 1})
    assert child.data == base.data
    assert child.optimizer == base.optimizer


def test_section_of_another_kind_replaces_the_one_before(tmp_path: Path) -> None:
    write(
        tmp_path / "base.yaml", data={"kind": "voc", "year": 2007, "root": "x", "val": "train"}, trainer={"epochs": 9}
    )
    child = write(tmp_path / "child.yaml", extends="base.yaml", data={"kind": "demo"})
    assert load_recipe(child).data.val == "val"
    assert load_recipe(child).trainer.epochs == 9
    same = write(tmp_path / "same.yaml", extends="base.yaml", data={"kind": "voc", "year": 2012})
    assert (load_recipe(same).data.year, load_recipe(same).data.val) == (2012, "train")


@pytest.mark.parametrize("length", [1, 2, 3])
def test_recipes_that_extend_one_another_in_a_circle_are_named(tmp_path: Path, length: int) -> None:
    for number in range(length):
        write(tmp_path / f"{number}.yaml", extends=f"{(number + 1) % length}.yaml")
    with one_sentence(tmp_path / "0.yaml", "extends itself"):
        load_recipe(tmp_path / "0.yaml")


def test_same_recipe_may_be_reached_from_two_others(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", data={"kind": "demo"})
    for name in "ab":
        assert load_recipe(write(tmp_path / f"{name}.yaml", extends="base.yaml")).data.kind == "demo"


def test_missing_extended_recipe_is_named(tmp_path: Path) -> None:
    with one_sentence("nowhere.yaml"):
        load_recipe(write(tmp_path / "x.yaml", extends="nowhere.yaml"))


# --- Overrides


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("trainer.epochs=3", "trainer", "epochs", 3),
        ("optimizer.lr=1e-3", "optimizer", "lr", 1e-3),
        ("optimizer.lr=5E-4", "optimizer", "lr", 5e-4),
        ("model.encoder_weights=null", "model", "encoder_weights", None),
        ("model.encoder_weights=", "model", "encoder_weights", None),
        ("model.decoder_learn_upsampling=true", "model", "decoder_learn_upsampling", True),
        ("augmentation.crop=[320, 480]", "augmentation", "crop", (320, 480)),
        ("augmentation.crop=64", "augmentation", "crop", 64),
        ("model.decoder_skip_scales=[1e-2, 1e-4]", "model", "decoder_skip_scales", [1e-2, 1e-4]),
        ("model.encoder_options.output_stride=16", "model", "encoder_options", {"output_stride": 16}),
        ("model.encoder_options={output_stride: 8}", "model", "encoder_options", {"output_stride": 8}),
        ("loss.class_weights={car: 2}", "loss", "class_weights", {"car": 2.0}),
        ("loss.class_weights.car=2", "loss", "class_weights", {"car": 2.0}),
        ("loss.class_weights=median_frequency", "loss", "class_weights", "median_frequency"),
        ("loss.class_weights=[1, 2e0]", "loss", "class_weights", [1.0, 2.0]),
        ("model.encoder_name=a=b", "model", "encoder_name", "a=b"),
        ("model.frozen=[encoder, decoder.hidden]", "model", "frozen", ["encoder", "decoder.hidden"]),
        ("model.decoder_alignment=caffe", "model", "decoder_alignment", "caffe"),
        ("model.decoder_hidden_weights=null", "model", "decoder_hidden_weights", None),
        ("preprocessing.input_space=BGR", "preprocessing", "input_space", "BGR"),
        ("preprocessing.input_range=[0, 255]", "preprocessing", "input_range", (0, 255)),
        ("loss.reduction=sum", "loss", "reduction", "sum"),
        ("optimizer.bias_lr_factor=2", "optimizer", "bias_lr_factor", 2.0),
        ("trainer.devices=auto", "trainer", "devices", "auto"),
        ("trainer.devices=2", "trainer", "devices", 2),
    ],
)
def test_override_is_read_as_yaml(override: str, section: str, key: str, value: object) -> None:
    recipe = load_recipe("demo", [override])
    changed = getattr(getattr(recipe, section), key)
    assert changed == value
    assert type(changed) is type(value)
    rest = getattr(load_recipe("demo"), section).model_dump(exclude={key})
    assert getattr(recipe, section).model_dump(exclude={key}) == rest


def test_override_at_the_top_level(demo: Path) -> None:
    recipe = load_recipe(demo, ["name=other", "seed=5"])
    assert (recipe.name, recipe.seed) == ("other", 5)


def test_later_override_wins(demo: Path) -> None:
    assert load_recipe(demo, ["trainer.epochs=3", "trainer.epochs=4"]).trainer.epochs == 4


def test_override_of_the_kind_takes_its_own_defaults() -> None:
    optimizer = load_recipe("voc2007", ["optimizer.kind=sgd", "optimizer.momentum=0.5"]).optimizer
    assert (optimizer.kind, optimizer.lr, optimizer.momentum) == ("sgd", 1e-2, 0.5)


def test_order_of_different_overrides_does_not_matter() -> None:
    overrides = ["optimizer.kind=sgd", "optimizer.lr=0.05"]
    recipes = [load_recipe("voc2007", order) for order in (overrides, overrides[::-1])]
    assert [recipe.optimizer.lr for recipe in recipes] == [0.05, 0.05]


def test_schedules_of_every_kind_share_their_warm_up() -> None:
    schedule = load_recipe("voc2007", ["schedule.kind=poly"]).schedule
    assert (schedule.kind, schedule.warmup_steps) == ("poly", 75)


def test_an_optimizer_without_a_kind_is_adamw(tmp_path: Path) -> None:
    path = write(tmp_path / "x.yaml", data={"kind": "demo"}, optimizer={"lr": 0.5})
    optimizer = load_recipe(path).optimizer
    assert (optimizer.kind, optimizer.lr) == ("adamw", 0.5)


def test_augmentation_is_turned_off_and_on_again(tmp_path: Path) -> None:
    assert load_recipe("demo", ["augmentation=null"]).augmentation is None
    whole = write(tmp_path / "whole.yaml", extends="demo", augmentation=None)
    assert load_recipe(whole).augmentation is None
    cropped = write(tmp_path / "cropped.yaml", extends="whole.yaml", augmentation={"crop": 64})
    usual = type(load_recipe("demo").augmentation)()
    assert load_recipe(cropped).augmentation == usual.model_copy(update={"crop": 64})


@pytest.mark.parametrize("override", ["trainer.epochs", "=3", "trainer.=3", ".epochs=3", "trainer..epochs=3", ""])
def test_override_without_key_or_value_is_named(override: str) -> None:
    with one_sentence(repr(override), "key=value"):
        load_recipe("demo", [override])


def test_override_that_is_no_yaml_is_named() -> None:
    with one_sentence("augmentation.crop", "[320"):
        load_recipe("demo", ["augmentation.crop=[320"])


# --- Errors

WRONG = {
    "unknown section": ("modell.arch=fcn8s", "unknown key modell; did you mean model?"),
    "unknown section, nothing near": ("xyz=1", "unknown key xyz; known: name, seed, model, data, "),
    "unknown key": ("trainer.epoch=3", "unknown key trainer.epoch; did you mean epochs?"),
    "unknown key, nothing near": ("loss.xyz=3", "unknown key loss.xyz; known: terms, class_weights, label_smooth"),
    "unknown key of a kind": ("optimizer.encodr_lr=3", "unknown key optimizer.encodr_lr; did you mean encoder_lr?"),
    "key of another kind": ("optimizer.momentum=0.5", "unknown key optimizer.momentum; known: kind, lr, "),
    "unknown key of the data": ("data.yeer=2007", "unknown key data.yeer; did you mean year?"),
    "wrong type": ("trainer.epochs=many", "trainer.epochs is 'many'; it should be a valid integer."),
    "fraction": ("trainer.epochs=1.5", "trainer.epochs is 1.5; it should be a valid integer"),
    "wrong type of a kind": ("optimizer.lr=fast", "optimizer.lr is 'fast'; it should be a valid number."),
    "not a number": ("optimizer.lr=.nan", "optimizer.lr is nan; it should be a finite number."),
    "too small": ("trainer.epochs=0", "trainer.epochs is 0; it should be greater than or equal to 1."),
    "too large": ("augmentation.flip=1.5", "augmentation.flip is 1.5; it should be less than or equal to 1."),
    "inside a list": ("augmentation.scale=[0.5, x]", "augmentation.scale is 'x'; it should be a valid number."),
    "one of several types": ("augmentation.crop=wide", "augmentation.crop is 'wide'; it should be a valid integer or "),
    "wrong choice": ("model.arch=fcn9s", "model.arch is 'fcn9s'; it should be 'fcn32s', 'fcn16s', 'fcn8s', "),
    "wrong number": ("data.year=2008", "data.year is 2008; it should be 2007 or 2012."),
    "choice of methods": ("loss.class_weights=mean", "loss.class_weights is 'mean'; it should be 'inverse_frequency'"),
    "wrong kind": ("optimizer.kind=lion", "optimizer.kind is 'lion'; it should be one of adamw, adam, sgd."),
    "wrong kind of data": (
        "data.kind=coco",
        "data.kind is 'coco'; it should be one of voc, sbd, camvid, kitti_road, carla, folder, demo.",
    ),
    "no section": ("trainer=3", "trainer is 3; it should be a valid dictionary"),
    "no section of a kind": ("optimizer=sgd", "optimizer is 'sgd'; it should be a valid dictionary"),
    "wrong alignment": (
        "model.decoder_alignment=left",
        "model.decoder_alignment is 'left'; it should be 'same' or 'ca",
    ),
    "one part, no list": ("model.frozen=encoder", "model.frozen is 'encoder'; it should be a valid list."),
    "wrong reduction": ("loss.reduction=none", "loss.reduction is 'none'; it should be 'mean' or 'sum'."),
    "wrong order": (
        "preprocessing.input_space=GBR",
        "preprocessing.input_space is 'GBR'; it should be 'RGB' or 'BGR'.",
    ),
    "wrong range": ("preprocessing.input_range=[0, 2]", "preprocessing.input_range is 2; it should be 1 or 255."),
    "range from one": ("preprocessing.input_range=[1, 255]", "preprocessing.input_range is 1; it should be 0."),
    "factor of nothing": ("optimizer.bias_lr_factor=0", "optimizer.bias_lr_factor is 0; it should be greater than 0."),
    "no section that may be null": ("augmentation=3", "augmentation is 3; it should be a valid dictionary"),
    "inside what may be null": ("augmentation.crpo=3", "unknown key augmentation.crpo; did you mean crop?"),
    "name that is a path": ("name=a/b", "name is 'a/b'; it should be usable as the name of a folder."),
    "name that leads up": ("name=..", "name is '..'; it should be usable as the name of a folder."),
    "number as a name": ("name=7", "name is 7; it should be a valid string."),
}


@pytest.mark.parametrize(("override", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_value_is_named_with_what_would_be_right(override: str, sentence: str) -> None:
    with one_sentence("voc2007.yaml: " + sentence):
        load_recipe("voc2007", [override])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({}, "the key data is missing."),
        ({"data": {"kind": "voc", "year": 2007}}, "the key data.root is missing."),
        ({"data": {"kind": "voc", "root": "x"}}, "the key data.year is missing."),
        (
            {"data": {"root": "x"}},
            "data.kind is 'missing'; it should be one of voc, sbd, camvid, kitti_road, carla, folder, demo.",
        ),
        (
            {"data": {"kind": "demo", "year": 2007}},
            "unknown key data.year; known: train, val, classes, on_error, cache, allow_overlap, kind, root.",
        ),
        ({"data": {"kind": "demo"}, "model": {"arch": 8}}, "model.arch is 8; it should be 'fcn32s'"),
        ({"data": {"kind": "demo"}, "schedule": None}, "schedule is None; it should be a valid dictionary"),
    ],
)
def test_wrong_file_is_named_with_its_key(tmp_path: Path, content: dict[str, Any], sentence: str) -> None:
    path = write(tmp_path / "x.yaml", seed=0, **content)
    with one_sentence(f"{path}: {sentence}"):
        load_recipe(path)


@pytest.mark.parametrize(
    "override",
    [
        "data.root=3",
        "augmentation.crop=[320]",
        "preprocessing.mean=[0.5, 0.5]",
        "trainer={1: 2}",
    ],
)
def test_wrong_value_is_told_in_our_words(override: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("voc2007", [override])
    assert not re.search("should be (.* )?(Input|Keys|Field)|pathlib|is missing", str(caught.value))


def test_each_wrong_key_has_a_line_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "x.yaml", data={"kind": "demo"}, seed="x", trainer={"epoch": 1, "batch_size": 0})
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    for line, key in zip(sorted(lines), ["seed", "trainer.batch_size", "unknown key trainer.epoch"], strict=True):
        assert line.startswith(f"{path}: {key}")


@pytest.mark.parametrize("content", ["", "just text", "- a\n- b\n", "3"])
def test_file_without_keys_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.yaml").write_text(content)
    with one_sentence(tmp_path / "x.yaml", "keys and values"):
        load_recipe(tmp_path / "x.yaml")


@pytest.mark.parametrize("content", [b"a: [", b"a: b: c", b"a: 1\n\tb: 2", b"\xff\xfe\x00", b"? [1]\n: 2", b"a: \x00"])
def test_file_that_is_no_yaml_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with one_sentence(tmp_path / "x.yaml", "cannot be read as YAML"):
        load_recipe(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("voc2070", "did you mean voc2007?"), ("Demo.yaml", "did you mean demo?"), ("xyz", ", ".join(shipped_recipes()))],
)
def test_unknown_recipe_is_answered_with_those_there_are(name: str, hint: str) -> None:
    with one_sentence(name, hint):
        load_recipe(name)


# --- Stages

# Nothing in it is a default.
BASE = {
    "seed": 4,
    "model": {"encoder_name": "vgg11", "frozen": ["decoder"]},
    "data": {"kind": "demo", "val": "test"},
    "augmentation": {"crop": 64},
    "preprocessing": {"input_space": "BGR"},
    "loss": {"label_smoothing": 0.25, "class_weights": {"car": 3}},
    "optimizer": {"kind": "adamw", "lr": 0.5},
    "schedule": {"warmup_steps": 6},
    "trainer": {"epochs": 3, "batch_size": 5},
}


def staged(tmp_path: Path, **content: Any) -> Path:
    return write(tmp_path / "staged.yaml", **BASE, **content)


def test_the_base_of_the_stages_here_differs_from_the_defaults_in_every_section(tmp_path: Path) -> None:
    recipe, usual = load_recipe(staged(tmp_path)), load_recipe(write(tmp_path / "x.yaml", data={"kind": "demo"}))
    assert [section for section in SECTIONS if getattr(recipe, section) == getattr(usual, section)] == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        None,
        {"trainer": {"epochs": 7}},
        {"model": {"arch": "fcn16s", "frozen": ["encoder"]}, "seed": 3},
        {"optimizer": {"lr": 0.25}},
        {"optimizer": {"kind": "sgd", "momentum": 0.5}},
        {"data": {"kind": "voc", "year": 2007, "root": "/x"}},
        {"data": {"train": "few"}},
        {"augmentation": None, "loss": {"class_weights": {"car": 2}}},
        {"name": "other", "schedule": {"kind": "poly"}, "preprocessing": {"input_space": "RGB"}},
    ],
    ids=str,
)
def test_a_stage_is_the_recipe_with_its_changes(tmp_path: Path, changes: dict[str, Any] | None) -> None:
    recipe = load_recipe(staged(tmp_path, stages={"before": {"seed": 9, "augmentation": None}, "it": changes}))
    write(tmp_path / "base.yaml", **BASE, name="staged")
    written_out = load_recipe(write(tmp_path / "changed.yaml", extends="base.yaml", **changes or {}))
    assert recipe.staged()["it"] == written_out
    assert load_recipe(tmp_path / "base.yaml") == recipe.model_copy(update={"stages": {}})


def test_stages_come_in_the_order_in_which_they_are_written(tmp_path: Path) -> None:
    names = ["z", "a", "10", "2"]
    path = tmp_path / "x.yaml"
    path.write_text("data: {kind: demo}\nstages:\n" + "".join(f"  '{name}': {{}}\n" for name in names))
    recipe = load_recipe(path, ["stages.2.seed=1"])
    (tmp_path / "copy.yaml").write_text(recipe.dump())
    assert list(recipe.staged()) == list(load_recipe(tmp_path / "copy.yaml").staged()) == names


@pytest.mark.parametrize(
    ("in_stage", "override", "of_stage"), list(product([None, 11], [None, 12], [None, 13])), ids=str
)
def test_an_override_wins_over_a_stage_and_that_of_the_stage_over_both(
    tmp_path: Path, in_stage: int | None, override: int | None, of_stage: int | None
) -> None:
    changes = {"trainer": {"epochs": in_stage}} if in_stage else {"seed": 1}
    path = staged(tmp_path, stages={"one": changes, "two": changes})
    overrides = [f"stages.two.trainer.epochs={of_stage}"] * bool(of_stage) + [f"trainer.epochs={override}"] * bool(
        override
    )
    for order in (overrides, overrides[::-1]):
        recipe = load_recipe(path, order)
        stages = recipe.staged()
        assert recipe.trainer.epochs == (override or 3)
        assert stages["one"].trainer.epochs == (override or in_stage or 3)
        assert stages["two"].trainer.epochs == (of_stage or override or in_stage or 3)
        assert {stage.trainer.batch_size for stage in stages.values()} == {5}


def test_an_override_of_the_kind_takes_the_place_of_a_stages_own(tmp_path: Path) -> None:
    stages = {"one": {"optimizer": {"kind": "adam", "lr": 0.1}}, "two": {}}
    for overrides, kinds in [
        ([], ["adam", "adamw"]),
        (["optimizer.kind=sgd"], ["sgd", "sgd"]),
        (["stages.one.optimizer={kind: sgd, momentum: 0.5}"], ["sgd", "adamw"]),
        (["optimizer.kind=adam", "stages.two.optimizer.kind=sgd"], ["adam", "sgd"]),
    ]:
        recipe = load_recipe(staged(tmp_path, stages=stages), overrides)
        assert [stage.optimizer.kind for stage in recipe.staged().values()] == kinds


@pytest.mark.parametrize(
    ("stages", "override", "sentence"),
    [
        ({"one": {}, "two": {}}, "stages.too.seed=1", "no stage too; its stages: one, two."),
        ({"one": {}, "two": {}}, "stages.too=null", "no stage too; its stages: one, two."),
        ({"one": {}}, "stages={two: {seed: 1}}", "no stage two; its stages: one."),
        ({}, "stages.one.seed=1", "no stage one; its stages: none."),
        (None, "stages.one.seed=1", "no stage one; its stages: none."),
    ],
)
def test_an_override_of_an_unknown_stage_is_answered_with_those_there_are(
    tmp_path: Path, stages: dict[str, Any] | None, override: str, sentence: str
) -> None:
    path = staged(tmp_path, stages=stages)
    with one_sentence(path, sentence):
        load_recipe(path, [override])


def test_an_extending_recipe_changes_adds_and_drops_stages(tmp_path: Path) -> None:
    staged(tmp_path, stages={"one": {"seed": 1, "trainer": {"epochs": 7}}, "two": {"seed": 2}})
    more = write(tmp_path / "a.yaml", extends="staged.yaml", stages={"one": {"seed": 5}, "three": {"seed": 3}})
    stages = load_recipe(more).staged()
    assert {name: stage.seed for name, stage in stages.items()} == {"one": 5, "two": 2, "three": 3}
    assert list(stages) == ["one", "two", "three"]
    assert stages["one"].trainer.epochs == 7

    none = write(tmp_path / "b.yaml", extends="staged.yaml", stages=None)
    again = write(tmp_path / "c.yaml", extends="b.yaml", stages={"four": {}})
    assert load_recipe(none).staged() == load_recipe(tmp_path / "staged.yaml", ["stages=null"]).staged() == {}
    assert list(load_recipe(again).staged()) == ["four"]


def test_a_recipe_without_stages_and_a_stage_have_none(tmp_path: Path) -> None:
    assert load_recipe("demo").staged() == {}
    [stage] = load_recipe(staged(tmp_path, stages={"one": {}})).staged().values()
    assert (stage.stages, stage.staged()) == ({}, {})


@pytest.mark.parametrize("name", ["fcn32s", "a_b-C", "7", "1e-3", "null", "models", "one-model"])
def test_a_stage_is_named_by_letters_digits_underscores_and_hyphens(tmp_path: Path, name: str) -> None:
    assert list(load_recipe(staged(tmp_path, stages={name: {}})).staged()) == [name]


@pytest.mark.parametrize(
    "name", ["model", "checkpoints", "samples", "eval", "", ".", "..", "a/b", "a\\b", "a b", "a.b", "/x", "~", "x\n"]
)
def test_a_stage_whose_folder_would_not_do_is_refused(tmp_path: Path, name: str) -> None:
    path = staged(tmp_path, stages={"good": {}, name: {}})
    with one_sentence(f"{path}: stages is", "named by letters and digits, not model, checkpoints, samples, eval"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("stages", "override", "sentence"),
    [
        ({"one": {"trainer": {"epoch": 3}}}, None, "stages.one: unknown key trainer.epoch; did you mean epochs?"),
        ({"one": {"trainr": {}}}, None, "stages.one: unknown key trainr; did you mean trainer?"),
        ({"one": {"trainer": {"epochs": 0}}}, None, "stages.one: trainer.epochs is 0; it should be greater than or"),
        (
            {"one": {"optimizer": {"kind": "lion"}}},
            None,
            "stages.one: optimizer.kind is 'lion'; it should be one of ad",
        ),
        (
            {"one": {"optimizer": {"momentum": 0.5}}},
            None,
            "stages.one: unknown key optimizer.momentum; known: kind, lr",
        ),
        ({"one": {"extends": "demo"}}, None, "stages.one: unknown key extends; "),
        ({"one": {"data": {"kind": "voc", "root": "x"}}}, None, "stages.one: the key data.year is missing."),
        ({"one": {"name": ".."}}, None, "stages.one: name is '..'; it should be usable as the name of a folder."),
        (
            {"one": {}, "two": {}},
            "stages.two.trainer.epochs=x",
            "stages.two: trainer.epochs is 'x'; it should be a val",
        ),
        ({"one": {}, "two": {}}, "stages.two.modle=x", "stages.two: unknown key modle; did you mean model?"),
        ({"one": {}}, "trainer.epochs=0", "staged.yaml: trainer.epochs is 0"),
        ({"one": 3}, None, "staged.yaml: stages is 3; it should be keys and values."),
        ({"one": {}}, "stages.one=3", "staged.yaml: stages is 3; it should be keys and values."),
        ({"one": {}}, "stages=3", "staged.yaml: stages is 3; it should be keys and values."),
        ({1: {}}, None, "staged.yaml: stages is 1; it should be a valid string."),
        ({"one": {"stages": {"two": {}}}}, None, "without stages of its own."),
        (["one"], None, "staged.yaml: stages is ['one']; it should be keys and values."),
    ],
)
def test_what_is_wrong_in_a_stage_is_told_with_its_name(
    tmp_path: Path, stages: Any, override: str | None, sentence: str
) -> None:
    path = staged(tmp_path, stages=stages)
    with one_sentence(path, sentence):
        load_recipe(path, [override] if override else [])


def test_each_wrong_key_of_a_stage_has_a_line_of_its_own(tmp_path: Path) -> None:
    path = staged(tmp_path, stages={"one": {}, "two": {"seed": "x", "trainer": {"epoch": 1}}})
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    lines = sorted(str(caught.value).splitlines())
    assert [line.startswith(f"{path}: stages.two: ") for line in lines] == [True, True]
    assert ["seed" in lines[0], "trainer.epoch" in lines[1]] == [True, True]


def test_the_staged_recipes_go_from_coarse_to_fine() -> None:
    for name in ("paper-staged", "voc2007-staged", "origins/keras-fcn", "origins/keras-fcn-staged"):
        stages = load_recipe(name).staged()
        assert [stage.model.arch for stage in stages.values()] == list(stages) == ["fcn32s", "fcn16s", "fcn8s"]
    rates = [stage.optimizer.lr for stage in load_recipe("paper-staged").staged().values()]
    assert rates == [1e-10, 1e-12, 1e-14]
    assert load_recipe("paper-at-once").staged() == {}
    assert load_recipe("paper-at-once").model.decoder_skip_scales == [0.01, 0.0001]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_fits_the_network_that_it_names(name: str) -> None:
    recipe = load_recipe(name)
    for stage in recipe.staged().values() or [recipe]:
        bare = {"encoder_weights": None, "init_from": None}
        stage = stage.model_copy(update={"model": stage.model.model_copy(update=bare)})
        with torch.device("meta"):  # values do not matter, and drawing them takes long
            network, *_ = build_network(stage, ["background", "road"] if stage.model.binary else ["class"] * 21)
        if stage.model.frozen and stage.model.frozen != ["encoder"]:
            # Whole blocks, from the first convolution on.
            convs = [c for c in network.encoder.modules() if isinstance(c, nn.Conv2d)]
            frozen = [not any(p.requires_grad for p in conv.parameters()) for conv in convs]
            assert (frozen.index(False), sum(frozen)) in [(10, 10), (7, 7)]
            assert all(p.requires_grad for p in network.decoder.hidden.parameters())


# --- Schema


def resolve(schema: dict[str, Any], node: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the objects that a property may be, with references followed."""
    if "$ref" in node:
        return resolve(schema, schema["$defs"][node["$ref"].removeprefix("#/$defs/")])
    for several in ("oneOf", "anyOf"):
        if several in node:
            return [found for choice in node[several] for found in resolve(schema, choice)]
    return [node] if node.get("type") != "null" else []


@pytest.mark.parametrize("name", SHIPPED)
def test_schema_knows_every_key_of_a_recipe_and_no_other(name: str) -> None:
    schema = json.loads(json.dumps(json_schema()))
    content = yaml.safe_load(load_recipe(name).dump())
    assert set(schema["properties"]) == {*content, "extends"}
    assert schema["additionalProperties"] is False
    for section in SECTIONS:
        choices = resolve(schema, schema["properties"][section])
        if content[section] is None:
            assert {"type": "null"} in schema["properties"][section]["anyOf"]
            continue
        kind = content[section].get("kind")
        [described] = [c for c in choices if len(choices) == 1 or c["properties"]["kind"]["const"] == kind]
        assert set(described["properties"]) == set(content[section])
        assert described["additionalProperties"] is False


@pytest.mark.parametrize("text", ["seed: 1\nseed: 2\n", "stages:\n  a: {seed: 1}\n  a: {seed: 2}\n"])
def test_key_that_is_there_twice_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "twice.yaml").write_text(f"extends: demo\n{text}")
    with one_sentence("twice.yaml", "seed" if text.startswith("seed") else "key a", "twice"):
        load_recipe(tmp_path / "twice.yaml")


def test_schema_asks_for_nothing_that_an_extended_recipe_may_give() -> None:
    schema = json_schema()
    assert "required" not in schema
    assert schema["properties"]["extends"]["type"] == "string"
    kinds = {c["properties"]["kind"]["const"] for c in resolve(schema, schema["properties"]["optimizer"])}
    assert kinds == {"adamw", "adam", "sgd"}


@pytest.mark.parametrize(
    "content",
    [
        {"augmentation": None},
        {"stages": {}},
        {"stages": {"one": {}, "two": {"trainer": {"epochs": 2}, "augmentation": None, "seed": 3}}},
        {"stages": {"one": {"optimizer": {"kind": "adam", "bias_lr_factor": 2}}}},
        {"stages": {"one": {"data": {"kind": "demo", "val": "test"}, "loss": {"reduction": "sum"}}}},
        {"model": {"frozen": ["encoder"], "init_from": None, "decoder_hidden_weights": None}},
        {"preprocessing": {"input_space": "BGR", "input_range": [0, 255], "mean": None}},
        {"stages": None},
        {"stages": {"one": None}},
        {"optimizer": {"lr": 0.5}},
        {"stages": {"one": {"optimizer": {"lr": 0.5}}}},
        {"stages": {"one": {"data": {"train": "few"}}}},
    ],
    ids=str,
)
def test_schema_accepts_what_is_right(tmp_path: Path, content: dict[str, Any]) -> None:
    load_recipe(write(tmp_path / "x.yaml", extends="demo", **content))
    jsonschema.validate({"extends": "demo", **content}, json_schema())


@pytest.mark.parametrize(
    "content",
    [
        {"augmentation": 3},
        {"augmentation": {"crpo": 3}},
        {"stages": 3},
        {"stages": {"one": 3}},
        {"stages": {"one": {"trainer": {"epoch": 3}}}},
        {"stages": {"one": {"trainr": {}}}},
        {"stages": {"one": {"optimizer": {"kind": "lion"}}}},
        {"preprocessing": {"input_range": [0, 2]}},
        {"preprocessing": {"input_space": "GBR"}},
        {"loss": {"reduction": "none"}},
        {"model": {"decoder_alignment": "left"}},
        {"model": {"frozen": "encoder"}},
        {"stages": {"model": {}}},
        {"stages": {"a b": {}}},
        {"stages": {"one": {"stages": {}}}},
        {"stages": {"one": {"extends": "voc2007"}}},
    ],
    ids=str,
)
def test_schema_refuses_what_is_wrong(tmp_path: Path, content: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        load_recipe(write(tmp_path / "x.yaml", extends="demo", **content))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"extends": "demo", **content}, json_schema())


@pytest.mark.parametrize("name", SHIPPED)
def test_schema_accepts_a_shipped_recipe(name: str) -> None:
    jsonschema.validate(yaml.safe_load(shipped_recipes()[name].read_text()), json_schema())
