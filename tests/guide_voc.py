"""PASCAL VOC and SBD of a few images, in archives like those that are handed out."""

import hashlib
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import pack, write_lists, write_sbd, write_voc

from fcn_smp.data import splitting
from fcn_smp.data.labels import Array
from fcn_smp.data.prepare import PREPARATIONS
from fcn_smp.data.sbd import SBD
from fcn_smp.data.voc import VOCSegmentation

TRAIN, VAL, EXTRA = ([f"{kind}{number}" for number in range(count)] for kind, count in (("t", 8), ("v", 4), ("s", 6)))
SBD_TRAIN, SBD_VAL = [*TRAIN[:4], *EXTRA[:4], VAL[0]], [*EXTRA[4:], VAL[1]]
LISTS = {
    "voc2007_train": TRAIN,
    "voc2007_val": VAL,
    "voc2007_trainval": [*TRAIN, *VAL],
    "voc2007_test": ["x0", "x1"],
    "voc2012_train": TRAIN,
    "voc2012_val": VAL,
    "voc2012_trainval": [*TRAIN, *VAL],
    "voc2012_train_aug": [*TRAIN, *EXTRA],
    "voc2012_seg11valid": VAL[1:],
    "voc2012_keras_fcn_train": [*TRAIN, *EXTRA, *VAL[:2]],
    "voc2012_keras_fcn_val": VAL[2:],
    "sbd_train_noval": SBD_TRAIN[:-1],
}
SIZE = (40, 56)


def few_of_voc(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write archives to ``folder``, its ``data`` and ``Downloads``, and let the package take them for the real ones."""
    monkeypatch.setattr("helpers.random_label", _all_classes)
    made = folder / ".made"
    monkeypatch.setattr(splitting, "LISTS", write_lists(made / "lists", LISTS))
    _count_officially(monkeypatch)
    archives = [
        _voc(made, folder / "data/VOCtrainval_06-Nov-2007.tar", 2007, "trainval", LISTS["voc2007_trainval"]),
        _voc(made, folder / "data/VOCtest_06-Nov-2007.tar", 2007, "test", LISTS["voc2007_test"]),
        _voc(made, folder / "data/VOCtrainval_11-May-2012.tar", 2012, "trainval", [*TRAIN, *VAL, *EXTRA]),
        _voc(made, folder / "VOC2012test.tar", 2012, "test", ["y0", "y1"]),
        _sbd(made, folder / "Downloads/benchmark.tgz"),
    ]
    _trust(monkeypatch, {archive.name: archive for archive in archives})


def _all_classes(rng: np.random.Generator, size: tuple[int, int]) -> Array:
    """Return a label with stripes of all classes in some order, so that no split lacks one."""
    return np.tile(np.resize(rng.permutation(21).astype(np.uint8), size[1]), (size[0], 1))


def _voc(made: Path, archive: Path, year: int, split: str, ids: list[str]) -> Path:
    voc = write_voc(made / archive.stem, year, ids, [], sizes=[SIZE])
    lists = voc / "ImageSets/Segmentation"
    (lists / "val.txt").unlink()
    (lists / "train.txt").rename(lists / f"{split}.txt")
    archive.parent.mkdir(parents=True, exist_ok=True)
    return pack(voc.parent, archive, "VOCdevkit")


def _sbd(made: Path, archive: Path) -> Path:
    release = write_sbd(made, SBD_TRAIN, SBD_VAL, SIZE).parent
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as file:
        file.add(release, release.name)
    return archive


def _count_officially(monkeypatch: pytest.MonkeyPatch) -> None:
    for year, splits in VOCSegmentation.splits.items():
        listed = {split: len(LISTS[f"voc{year}_{split}"]) for split in splits if f"voc{year}_{split}" in LISTS}
        sbd = {"sbd_train": len(SBD_TRAIN)} if year == 2012 else {}
        monkeypatch.setitem(VOCSegmentation.splits, year, {**splits, **listed, **sbd})
    counts = {"train": len(SBD_TRAIN), "val": len(SBD_VAL), "train_noval": len(LISTS["sbd_train_noval"])}
    monkeypatch.setattr(SBD, "splits", counts)


def _trust(monkeypatch: pytest.MonkeyPatch, archives: dict[str, Path]) -> None:
    """Let the published checksums be those of our archives."""
    for name in ("voc2007", "voc2012", "sbd", "voc2012_sbd"):
        preparation = PREPARATIONS[name]
        sources = tuple(
            replace(source, checksums=(hashlib.md5(archives[source.names[0]].read_bytes()).hexdigest(),))
            for source in preparation.sources
        )
        monkeypatch.setitem(PREPARATIONS, name, replace(preparation, sources=sources))
