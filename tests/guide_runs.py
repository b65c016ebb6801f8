"""A run of a few steps on a few images, and weights of all kinds, for pages that begin with what has been trained."""

import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import foreign_weights as foreign
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from guide_voc import LISTS
from helpers import run_command, write_lists, write_voc
from networks import narrow_vgg16
from PIL import Image

from fcn_smp.data import splitting
from fcn_smp.data.labels import Array
from fcn_smp.recipe import shipped_recipes

SIZES = ((96, 128), (112, 80))
SETTINGS = (
    "model.encoder_name=test_resnet", "model.encoder_weights=null", "augmentation.crop=64", "trainer.epochs=2",
    "trainer.validate_every=1", "trainer.batch_size=4", "trainer.workers=0", "trainer.samples=1",
    "trainer.accelerator=cpu", "trainer.precision=fp32",
)  # fmt: skip
VOC = "data: {kind: voc, year: 2007, root: data}"
STREETS = "data: {kind: folder, root: streets, names: [road, sky, building, car]}"
MINE = """
model: {encoder_name: test_resnet, encoder_weights: null, decoder_hidden_channels: 8}
augmentation: {crop: 64}
trainer: {epochs: 2, batch_size: 4, workers: 0, samples: 1, accelerator: cpu}
"""
ROAD = """
data: {kind: folder, root: roads, names: [background, road], images: "{split}/images", labels: "{split}/labels"}
"""
_kept: list[tempfile.TemporaryDirectory[str]] = []
"""What lasts as long as the tests."""


def picture(path: Path, height: int = 96, width: int = 128) -> None:
    """Write a picture of a few random colours that run into each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([*path.name.encode()])
    Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((width, height)).save(path)


def save_label(path: Path, label: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(label).save(path)


def voc(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``folder/data`` hold VOC 2007 and 2012 of a few images, and ``folder/my.yaml`` be a recipe for the first."""
    _name_splits(monkeypatch)
    (folder / "data").symlink_to(_data())
    (folder / "my.yaml").write_text(VOC + MINE)


def streets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``folder/streets`` have images of four classes, and ``folder/my.yaml`` be a recipe for them."""
    for number in range(10):
        picture(folder / f"streets/images/{number}.jpg")
        stripes = np.indices((96, 128)).sum(0).astype(np.uint8) // 16 % 4
        save_label(folder / f"streets/labels/{number}.png", stripes)
    (folder / "my.yaml").write_text(STREETS + MINE)


def runs(folder: Path, monkeypatch: pytest.MonkeyPatch, names: Sequence[str]) -> None:
    """Add runs of these names, all the same, and ``folder/dog.jpg``."""
    voc(folder, monkeypatch)
    for name in names:
        shutil.copytree(_run(), folder / "runs" / name, ignore=shutil.ignore_patterns("checkpoints"))
    picture(folder / "dog.jpg")


def stages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let shipped recipes have small crops, since a page trains a dozen stages."""
    voc(folder, monkeypatch)
    small = {}
    for name, path in shipped_recipes().items():
        small[name] = folder / f".recipes/{name}.yaml"
        small[name].parent.mkdir(parents=True, exist_ok=True)
        small[name].write_text(path.read_text().replace("crop: 320", "crop: 64"))
    monkeypatch.setattr("fcn_smp.recipe.shipped_recipes", lambda: small)


def evaluating(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a data set of roads with labels."""
    runs(folder, monkeypatch, ["voc2007", "other", "voc2012"])
    recipe = folder / "runs/voc2012/recipe.yaml"
    recipe.write_text(recipe.read_text().replace("year: 2007", "year: 2012"))
    (folder / "road.yaml").write_text(ROAD)
    for name in "ab":
        picture(folder / f"roads/test/images/{name}.jpg")
        save_label(folder / f"roads/test/labels/{name}.png", np.tri(96, 128, dtype=np.uint8))


def predicting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add pictures here and there."""
    runs(folder, monkeypatch, ["voc2007"])
    for name in ("photos/cat.jpg", "photos/more/cow.png", "trips/alps/1.jpg", "trips/sea/1.jpg", "others/bus.jpg"):
        picture(folder / name)
    (folder / "list.txt").write_text("others/bus.jpg\n")


def training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile nothing."""
    streets(folder, monkeypatch)
    # What the compiler makes of it takes a minute.
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compile_(module, backend="eager"))


def weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add files of weights, of a VGG16 that is eight times as narrow."""
    voc(folder, monkeypatch)
    picture(folder / "photos/dog.jpg")
    monkeypatch.setitem(smp.encoders.encoders, "vgg16", narrow_vgg16(8))
    fcn8s = foreign.random_network("fcn8s", 21, shrink=8)
    (folder / "fcn8s-heavy-pascal.caffemodel").write_bytes(foreign.caffemodel(fcn8s))
    for name in ("fcn8s_from_caffe.pth", "fcn8s-atonce_from_caffe.pth"):
        foreign.write_torch(folder / name, fcn8s)
    foreign.write_keras(folder / "keras-fcn8s.h5", foreign.keras_network("fcn8s", 21, shrink=8))
    classifier = {name: tensor for name, tensor in fcn8s.items() if name.startswith(("conv", "fc"))}
    classifier |= {"fc8.weight": torch.randn(1000, 8, 1, 1), "fc8.bias": torch.zeros(1000)}
    (folder / "VGG_ILSVRC_16_layers.caffemodel").write_bytes(foreign.caffemodel(classifier))
    with torch.device("meta"):
        dilated = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True)
    foreign.write_torch(folder / "fcn_resnet50.pth", foreign.hollow(dilated.state_dict()))


def _name_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "LISTS", _data() / "lists")


@cache
def _lasting() -> Path:
    _kept.append(tempfile.TemporaryDirectory(prefix="fcn-smp-guides-"))
    return Path(_kept[-1].name)


@cache
def _data() -> Path:
    """Return a folder with VOCdevkit and the lists of its splits."""
    data = _lasting() / "data"
    for year, test in ((2007, ["x0", "x1"]), (2012, ["y0", "y1"])):
        ids = [*LISTS[f"voc{year}_trainval"], *test]
        lists = write_voc(data, year, ids, [], SIZES) / "ImageSets/Segmentation"
        (lists / "test.txt").write_text("\n".join(test))
    write_lists(data / "lists", LISTS)
    return data


@cache
def _run() -> Path:
    """Return a run of the recipe voc2007 of a few steps."""
    run = _lasting() / "runs/voc2007"
    with pytest.MonkeyPatch.context() as patch:
        _name_splits(patch)
        code, _, error = run_command("train", "voc2007", f"data.root={_data()}", *SETTINGS, "--output", run)
    assert code == 0, error
    return run
