"""The recipes of the public projects: what they say, what they build, and that each of them trains."""

import csv
import json
import math
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers import run_command, sbd_tgz, voc2012_tar, write_lists, write_voc
from networks import lean_vgg
from PIL import Image

from fcn_smp.data import splitting
from fcn_smp.data.class_weights import ClassCounts, class_weights
from fcn_smp.recipe import load_recipe, shipped_recipes
from fcn_smp.training.parts import build_network

pytestmark = pytest.mark.usefixtures("undrawn")


class Facts(NamedTuple):
    """What a project says of an experiment; one arch, decay and number of weights for each stage."""

    data: tuple
    arch: str
    optimizer: tuple
    epochs: int
    batch: int
    resize: tuple | None
    crop: int
    classes: int
    weights: str
    published: str


SBD_TRAIN = ("sbd", "train", "val")
KERAS_FCN = ("voc", "keras_fcn_train", "keras_fcn_val")
VOC2007 = ("voc", "train", "val")
VGG16 = ["134,346,581", "134,357,354", "134,362,751"]
ADAM = ("adam", 1e-4, 1e-4, 1e-5)
SIDE = (224, 224)

FACTS = {
    "keras-fcn": Facts(
        KERAS_FCN, "fcn32s fcn16s fcn8s", ("adam", 1e-4, 1e-4, 2e-6), 25, 16, None, 512, 21, " ".join(VGG16),
        ".568 .575 .576 .896 .899 .898 1,252",
    ),
    "keras-fcn-staged": Facts(
        SBD_TRAIN, "fcn32s fcn16s fcn8s", ("adam", 1e-4, 1e-4, 2e-5), 10, 16, None, 512, 21, " ".join(VGG16),
        ".5895 .5958 .6115 .9282 .9285 .9320",
    ),
    "eslam-zaher-fcn32s": Facts(
        KERAS_FCN, "fcn32s", ("adam", 1e-4, 1e-4, 2e-6), 12, 16, None, 512, 21, VGG16[0], ".555 .891"
    ),
    "eslam-zaher-fcn8s": Facts(
        KERAS_FCN, "fcn8s", ("adam", 1e-4, 1e-4, 2e-6), 18, 16, None, 512, 21, VGG16[2], ".578 .899"
    ),
    "ashsne-road": Facts(
        ("carla", "train", "val"), "fcn8s", ("adam", 1e-4, 1e-4, 2e-5), 10, 8, SIDE, 224, 2, "14,716,003", ".9721"
    ),
    "albertnew2012-fcn8s": Facts(
        ("camvid", "train", "val"), "featurefcn8s", ("sgd", 1e-2, 1e-2, 5e-4), 45, 32, SIDE, 224, 12, "16,484,160",
        ".845",
    ),
    "albertnew2012-fcn2s": Facts(
        ("camvid", "train", "val"), "featurefcn2s", ("sgd", 1e-2, 1e-2, 5e-4), 45, 32, SIDE, 224, 12, "16,454,464", ""
    ),
    "jackljk-baseline": Facts(VOC2007, "plainfcn", ADAM, 500, 16, SIDE, 224, 21, "5,493,645", ".055 .704"),
    "jackljk-cosine": Facts(VOC2007, "plainfcn", ADAM, 500, 16, SIDE, 224, 21, "5,493,645", ".0612 .704"),
    "jackljk-augmentation": Facts(VOC2007, "plainfcn", ADAM, 500, 16, SIDE, 224, 21, "5,493,645", ".0321 .704"),
    "jackljk-class-weights": Facts(VOC2007, "plainfcn", ADAM, 500, 16, SIDE, 224, 21, "5,493,645", ".0274 .529"),
    "jackljk-simplified-unet": Facts(
        VOC2007, "simplifiedunet", ADAM, 500, 16, SIDE, 224, 21, "3,015,509", ".0383 .751"
    ),
    "jackljk-transfer": Facts(VOC2007, "transferfcn", ADAM, 500, 16, SIDE, 224, 21, "27,718,293", ".157 .824"),
    "jackljk-unet": Facts(VOC2007, "classicunet", ADAM, 500, 16, SIDE, 224, 21, "31,038,933", ".0358 .751"),
}  # fmt: skip

JACKLJK = [name for name in FACTS if name.startswith("jackljk")]
EACH = pytest.mark.parametrize("name", FACTS)


def load(name, *overrides):
    return load_recipe(f"origins/{name}", overrides)


def stages(recipe):
    return list(recipe.staged().values()) or [recipe]


def header(name):
    text = shipped_recipes()[f"origins/{name}"].read_text()
    return [line[1:] for line in text.splitlines() if line.startswith("#")]


# --- What they say


def test_every_experiment_is_shipped_and_listed_with_what_it_is():
    assert {name for name in shipped_recipes() if name.startswith("origins/")} == {f"origins/{name}" for name in FACTS}
    code, out, err = run_command("recipes", "list")
    assert code == 0, err
    listed = dict(line.split(maxsplit=1) for line in out.splitlines())
    for name in FACTS:
        assert listed[f"origins/{name}"] == header(name)[0].strip()


@EACH
def test_a_recipe_begins_with_its_command_its_differences_and_what_was_published(name):
    about, command, *rest = header(name)
    assert about.endswith(".")
    assert command == f"   fcn-smp train origins/{name} data.root=DIR"
    text = " ".join(line.strip() for line in rest)
    assert re.search(r"Unlike the author'?s'? code|Differences to the author's code are those of origins/", text)
    for other in re.findall(r"origins/([\w-]+)", text):
        assert other in FACTS
    published = text.partition("Published: ")[2]
    assert published
    for figure in FACTS[name].published.split():
        assert re.search(rf"(^|[ (]){re.escape(figure)}\b", text), figure
    assert published.endswith((" not yet measured.", " Not yet measured.")) or "Measured: " in published


@EACH
def test_a_recipe_has_the_settings_of_its_project(name):
    facts, recipe = FACTS[name], load(name)
    assert recipe.name == name
    assert (recipe.data.kind, recipe.data.train, recipe.data.val) == facts.data
    assert [stage.model.arch for stage in stages(recipe)] == facts.arch.split()
    for stage in stages(recipe):
        optimizer = stage.optimizer
        assert (optimizer.kind, optimizer.lr, optimizer.encoder_lr, optimizer.weight_decay) == facts.optimizer
        assert (stage.trainer.epochs, stage.trainer.batch_size) == (facts.epochs, facts.batch)
        assert stage.preprocessing.resize == facts.resize
        assert stage.augmentation.crop == facts.crop
        assert stage.loss.terms == {"cross_entropy": 1}
        assert stage.model.init_from is None
        assert stage.trainer.validate_every == 1


@pytest.mark.parametrize("name", [name for name in FACTS if name not in JACKLJK[2:]])
def test_images_are_not_augmented_where_they_were_not(name):
    augmentation = load(name).augmentation
    assert (augmentation.scale, augmentation.flip, augmentation.color_jitter) == ((1, 1), 0, 0)


def test_the_stages_of_keras_fcn_start_from_imagenet_at_last_and_from_one_another_at_first():
    last, first = load("keras-fcn"), load("keras-fcn-staged")
    assert ["init_from" in stage["model"] for stage in last.stages.values()] == [False, True, True]
    assert ["init_from" in stage["model"] for stage in first.stages.values()] == [False, False, False]
    assert [len(stage.model.frozen) for stage in stages(last)] == [0, 0, 0]
    assert [len(stage.model.frozen) for stage in stages(first)] == [10, 7, 0]


def test_the_improvements_of_jackljk_add_up():
    recipes = {name: load(name) for name in JACKLJK}
    assert [recipe.schedule.kind for recipe in recipes.values()] == ["constant", *["cosine"] * 6]
    zoomed = [(recipe.augmentation.scale, recipe.augmentation.flip) for recipe in recipes.values()]
    assert zoomed == [((1, 1), 0)] * 2 + [((1, 3.5), 0.5)] * 5
    assert [recipe.loss.class_weights for recipe in recipes.values()] == [None] * 3 + ["inverse_frequency"] * 4
    assert {recipe.trainer.early_stop for recipe in recipes.values()} == {30}
    assert {recipe.data.year for recipe in recipes.values()} == {2007}


def test_only_what_was_frozen_is():
    frozen = {name: load(name).model.frozen for name in FACTS}
    assert {name for name, parts in frozen.items() if parts} == {"ashsne-road", "jackljk-transfer"}
    assert frozen["ashsne-road"] == frozen["jackljk-transfer"] == ["encoder"]
    assert [name for name in FACTS if load(name).model.binary] == ["ashsne-road"]


@EACH
def test_the_page_of_the_projects_has_every_recipe_and_figure(name):
    page = (Path(__file__).parent.parent / "docs/results/origins.md").read_text()
    assert f"`origins/{name}`" in page or f"`fcn-smp train origins/{name} data.root=DIR`" in page
    for figure in [*FACTS[name].published.split(), *FACTS[name].weights.split()]:
        assert re.search(rf"(^|[ (*]){re.escape(figure)}\b", page), figure


def test_class_weights_are_those_of_jackljk_up_to_a_factor():
    counts = ClassCounts(*np.array([[900, 80, 20], [4, 2, 1], [1000, 500, 250]]))
    theirs = counts.pixels.sum() / counts.pixels
    theirs /= theirs.sum()
    ours = class_weights(counts, load("jackljk-class-weights").loss.class_weights)
    np.testing.assert_allclose(ours / theirs, ours[0] / theirs[0])


# --- What they build


@EACH
def test_a_network_has_as_many_weights_as_its_projects(name):
    """Those of Keras-FCN and albertnew2012 are published; 1,315 of ashsne's are trained, 1,576 with its last layers."""
    facts = FACTS[name]
    classes = [str(number) for number in range(facts.classes)]
    with torch.device("meta"):  # values do not matter, and drawing them takes long
        built = [build_network(stage, classes)[0] for stage in stages(load(name, "model.encoder_weights=null"))]
    assert [f"{sum(p.numel() for p in network.parameters()):,}" for network in built] == facts.weights.split()
    trained = sum(p.numel() for p in built[0].parameters() if p.requires_grad)
    if name == "ashsne-road":
        assert trained == 3 * 1 + (512 + 512 + 256) + 2 * 4 * 4
    if name == "jackljk-transfer":
        assert trained == 4_210_261


# --- That they train

TINY = [
    "model.encoder_weights=null",
    "trainer={epochs: 1, batch_size: 2, workers: 0, samples: 1, accelerator: cpu, precision: fp32}",
    "augmentation.crop=64",
]


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def write_camvid(root, rng):
    for split in ("train", "val"):
        for number in range(2):
            save(root / f"CamVid/{split}/{number}.png", rng.integers(0, 256, (48, 72, 3)))
            save(root / f"CamVid/{split}annot/{number}.png", np.arange(72) // 6 + np.zeros((48, 1)))


def write_carla(root, rng):
    for number in range(12):
        save(root / f"dataA/dataA/CameraRGB/{number}.png", rng.integers(0, 256, (48, 72, 3)))
        label = np.zeros((48, 72, 3))
        label[24:, :, 0] = 7
        label[24:, 30:34, 0] = 6
        save(root / f"dataA/dataA/CameraSeg/{number}.png", label)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with tiny forms of all the data sets, prepared as the recipes say."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    write_camvid(folder, rng)
    write_carla(folder, rng)
    write_voc(folder, 2007, ["x", "z"], ["y"])
    with pytest.MonkeyPatch.context() as patch:
        lists = write_lists(folder / "lists")
        (lists / "voc2007_train.txt").write_text("x\nz\n")
        (lists / "voc2007_val.txt").write_text("y\n")
        patch.setattr(splitting, "LISTS", lists)
        tar, tgz = voc2012_tar(folder).rename(folder / "a.tar"), sbd_tgz(folder).rename(folder / "b.tgz")
        arguments = ["voc2012_sbd", "--root", folder, "--archive", tar, "--archive", tgz]
        code, _, err = run_command("data", "prepare", *arguments)
        assert code == 0, err
        yield folder


def overrides_of(name, root):
    overrides = [*TINY, f"data.root={root}"]
    if load(name).model.arch.startswith("fcn") and name != "ashsne-road":
        overrides.append("model.decoder_hidden_channels=16")
    if load(name).preprocessing.resize:
        overrides.append("preprocessing.resize=[64, 64]")
    return overrides


@EACH
@lean_vgg("vgg16")  # the width is looked at above
def test_a_recipe_trains_and_is_scored_as_its_project_does(name, root, tmp_path):
    run = tmp_path / "run"
    code, _, err = run_command("train", f"origins/{name}", *overrides_of(name, root), "-o", run)
    assert code == 0, err
    tables = sorted(run.rglob("metrics.csv"))
    assert len(tables) == len(FACTS[name].arch.split())
    for table in tables:
        with table.open() as file:
            [row] = csv.DictReader(file)
        assert math.isfinite(float(row["train_loss"]))
        assert 0 <= float(row["mean_iu"]) <= 1

    text = "\n".join(header(name))
    [protocol] = re.findall(r"--protocol[\s#]+([\w-]+)", text) or ["albertnew2012" if "albert" in name else "jackljk"]
    trained = run / load(name).model.arch if load(name).stages else run
    code, out, err = run_command("eval", trained, "--protocol", protocol, "--device", "cpu", "--json")
    assert code == 0, err
    scores = json.loads(out)
    assert list(scores["protocols"]) == [protocol]
    assert len(scores["per_class"]) == FACTS[name].classes
    shutil.rmtree(run)  # hundreds of megabytes
