"""What lies in the reader's folder before a page of the documentation begins, by the name of the page."""

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import guide_runs
import pytest
import segmentation_models_pytorch as smp
import timm
from guide_voc import few_of_voc
from PIL import Image
from safetensors.torch import save_file

from fcn_smp.data.demo import DemoScenes
from fcn_smp.models.encoder import IMAGENET_MEAN, IMAGENET_STD

Prepare = Callable[[Path, pytest.MonkeyPatch], None]
"""Fills the reader's folder."""


def hub(folder: Path, monkeypatch: pytest.MonkeyPatch, encoders: Iterable[str]) -> None:
    """Give the cache of the Hugging Face Hub random weights of encoders, of SMP or timm, in place of ImageNet's."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / ".hub"))
    for name in encoders:
        if name in smp.encoders.encoders:
            settings = smp.encoders.encoders[name]["pretrained_settings"]["imagenet"]
            repository, revision = settings["repo_id"], settings["revision"]
            state = smp.encoders.get_encoder(name, weights=None).state_dict()
        else:
            repository, revision = timm.models.get_pretrained_cfg(name).hf_hub_id, "0" * 40
            state = timm.create_model(name).state_dict()
        place = folder / f".hub/models--{repository.replace('/', '--')}"
        snapshot = place / "snapshots" / revision
        snapshot.mkdir(parents=True)
        save_file(state, snapshot / "model.safetensors")
        (snapshot / "config.json").write_text(json.dumps({"mean": IMAGENET_MEAN, "std": IMAGENET_STD}))
        (place / "refs").mkdir()
        (place / "refs/main").write_text(revision)


def few_scenes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the demonstration have few scenes, in a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / ".cache"))
    monkeypatch.setattr(DemoScenes, "splits", {"train": 24, "val": 6, "test": 4})


def with_weights(prepare: Prepare, *encoders: str) -> Prepare:
    """Let there be weights of encoders as well."""

    def both(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        hub(folder, monkeypatch, encoders)
        prepare(folder, monkeypatch)

    return both


def _harbour(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    water_and_quay = Image.new("RGB", (48, 32), (0, 0, 255))
    water_and_quay.paste((128, 64, 0), (20, 0, 48, 32))
    water_and_quay.paste((0, 0, 0), (18, 0, 20, 32))
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            path = folder / "harbour" / split / kind / "a.png"
            path.parent.mkdir(parents=True)
            water_and_quay.save(path)


INPUTS: dict[str, Prepare] = {
    "own-images": with_weights(few_scenes, "resnet18"),
    "voc": with_weights(few_of_voc, "resnet18"),
    "any-encoder": with_weights(few_scenes, "resnet18", "convnext_atto"),
    "two-classes": few_scenes,
    "data-set": _harbour,
    "recipe": few_scenes,
    "tour": few_scenes,
    "training": with_weights(guide_runs.training, "resnet18"),
    "stages": with_weights(guide_runs.stages, "resnet18"),
    "devices": guide_runs.streets,
    "resuming": guide_runs.streets,
    "evaluating": with_weights(guide_runs.evaluating, "resnet18"),
    "predicting": guide_runs.predicting,
    "reports": partial(guide_runs.runs, names=("voc2007", "resnet18", "resnet34")),
    "export": partial(guide_runs.runs, names=("voc2007",)),
    "weights": guide_runs.weights,
    "imbalance": few_scenes,
    "metrics": partial(guide_runs.runs, names=("voc2007",)),
    "names": guide_runs.weights,
}
