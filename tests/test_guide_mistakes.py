"""The guide to one's own images lists what mistakes say: word for word what the package says."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from guides import ROOT, blocks, run
from helpers import run_command
from PIL import Image

from fcn_smp.data.demo import DemoScenes
from fcn_smp.training.health import Health

PAGE = ROOT / "docs/guides/own-images.md"
MESSAGES = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(encoding="utf-8").partition("## What mistakes say")[2], re.M)
SMALL = ("model.encoder_name=test_resnet", "model.encoder_weights=null")
CHECK, TRAIN = ("data", "check"), ("train", "--dry-run")


def test_all_are_here():
    assert len(MESSAGES) == len(MISTAKES) + 1


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The page's recipe, and images of its sizes."""
    monkeypatch.chdir(tmp_path)
    (recipe,) = (block for block in blocks(PAGE) if block.text.startswith("# mine.yaml"))
    run(recipe, tmp_path, {})
    for folder in ("images", "labels", "colours"):
        (tmp_path / "farm" / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(20):
        label = np.tile(np.resize(rng.permutation(7).astype(np.uint8), 128), (96, 1))
        Image.fromarray(label).save(f"farm/labels/{number:02}.png")
        Image.fromarray(DemoScenes.palette[label]).save(f"farm/colours/{number:02}.png")
        Image.fromarray(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)).save(f"farm/images/{number:02}.jpg")
    return tmp_path


def _number(farm: Path) -> None:
    _paint(farm / "labels/03.png", 7)


def _color(farm: Path) -> None:
    _paint(farm / "colours/03.png", (215, 94, 72))


def _paint(path: Path, value: int | tuple[int, int, int]) -> None:
    label = Image.open(path).copy()
    label.putpixel((17, 40), value)
    label.save(path)


def _rgb(farm: Path) -> None:
    Image.open(farm / "labels/03.png").convert("RGB").save(farm / "labels/03.png")


def _turned(farm: Path) -> None:
    Image.open(farm / "labels/03.png").rotate(90, expand=True).save(farm / "labels/03.png")


def _twice(farm: Path) -> None:
    Image.open(farm / "images/03.jpg").save(farm / "images/03.png")


def _no_boat(farm: Path) -> None:
    for path in (farm / "labels").iterdir():
        label = np.array(Image.open(path))
        Image.fromarray(np.where(label == 5, 255, label).astype(np.uint8)).save(path)


def _lists(farm: Path) -> None:
    (farm.parent / "train.txt").write_text("\n".join(f"{number:02}" for number in range(20)))
    (farm.parent / "val.txt").write_text("\n".join(f"{number:02}" for number in range(15, 20)))


def _run(farm: Path) -> None:
    (farm.parent / "runs/mine").mkdir(parents=True)
    (farm.parent / "runs/mine/recipe.yaml").write_text("name: mine")


def _nothing(farm: Path) -> None:
    pass


COLOURS = ", ".join(f"c{k}: {DemoScenes.palette[k].tolist()}" for k in range(7))
MISTAKES: dict[str, tuple[Callable[[Path], None], tuple[str, ...], tuple[str, ...]]] = {
    "There is no folder": (_nothing, CHECK, ("data.root=farn",)),
    "There are no pictures": (_nothing, CHECK, ("data.labels=label",)),
    "is missing, which": (lambda farm: (farm / "labels/03.png").unlink(), TRAIN, SMALL),
    "holds the label 7": (_number, TRAIN, SMALL),
    "of mode RGB": (_rgb, TRAIN, SMALL),
    "has the colour": (_color, TRAIN, (*SMALL, "data.labels=colours", f"data.names={{{COLOURS}}}")),
    "must be of one size": (_turned, CHECK, ()),
    "have one name": (_twice, CHECK, ()),
    "it cannot be learnt": (_no_boat, CHECK, ()),
    "in both splits": (_lists, TRAIN, ("data.train=train.txt", "data.val=val.txt")),
    "trainer.batch_size is 32": (_nothing, TRAIN, ("trainer.batch_size=32",)),
    "unknown key": (_nothing, CHECK, ("trainer.epoch=9",)),
    "holds another run": (_run, ("train",), SMALL),
    "cannot be fetched": (_nothing, TRAIN, ()),
}
"""For a part of each message: what is done to the folder, and the command and changes to the recipe that say it."""


@pytest.mark.parametrize("part", MISTAKES)
def test_it_says_what_the_guide_says(place, part, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "hub"))
    (message,) = (each for each in MESSAGES if part in each)
    spoil, command, changes = MISTAKES[part]
    spoil(place / "farm")
    code, out, err = run_command(*command, "mine.yaml", *changes)
    said = (out + err).replace(str(place), "/home/me")
    assert code in (1, 2), said
    assert message in said


def test_the_warning_of_a_collapsed_network_is_the_guides():
    (message,) = (each for each in MESSAGES if each.startswith("Warning: "))
    said: list[str] = []
    health = Health(said.append, ["a"], "background", collapse_steps=300)
    for step in range(300):
        health.step(step, type("Batch", (), {"indices": [0]}), void=0, other=False, something=True)
    assert said[0].startswith(message.removeprefix("Warning: ").removesuffix(" ..."))
