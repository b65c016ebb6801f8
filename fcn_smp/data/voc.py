"""PASCAL VOC 2007 and 2012 segmentation.

Mark Everingham et al.: The PASCAL visual object classes (VOC) challenge. IJCV 88(2), 2010.
Bharath Hariharan et al.: Semantic contours from inverse detectors. ICCV 2011 (SBD, further labels for 2012).
"""

import os
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from fcn_smp.data.dataset import IncompleteError, SegmentationDataset
from fcn_smp.data.labels import Array
from fcn_smp.data.splitting import packaged_ids
from fcn_smp.data.storage import Storage, open_storage
from fcn_smp.errors import UserError

SBD_TRAIN = "ImageSets/Segmentation/sbd_train.txt"
REMEDY = "fcn-smp data prepare voc2012_sbd makes it"


def voc_palette() -> Array:
    """Return VOC's colours, uint8 (256, 3): the bits of a label are dealt in turn to red, green and blue, high first.

    255, void, comes out as (224, 224, 192).
    """
    labels = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((labels >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return palette


class VOCSegmentation(SegmentationDataset):
    """VOC 2007 or 2012 with 20 object classes and background; borders and difficult objects are void (255).

    Args:
        root: The folder or tar archive that holds ``VOCdevkit/VOC<year>``, or that folder itself.
        split: One of ``splits`` of the year, or the path of a text file with one id a line.
            ``auto`` is ``train_aug`` where its labels are present, else ``train``.
        year: 2007 or 2012.

    Raises:
        UserError: The data set or a file of the split is missing, or the split is unknown or empty.
    """

    classes = (
        "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    )  # fmt: skip
    palette = voc_palette()
    splits: ClassVar[dict[int, dict[str, int | None]]] = {
        2007: {"train": 209, "val": 213, "trainval": 422, "test": 210},
        2012: {
            "train": 1464, "val": 1449, "trainval": 2913, "train_aug": 10582, "seg11valid": 736, "auto": None,
            "sbd_train": 8498, "keras_fcn_train": 10831, "keras_fcn_val": 1200,
        },
    }  # fmt: skip
    """Splits with labels, and how many images each has. ``train_aug`` is VOC 2012 train and SBD without VOC 2012 val;
    ``sbd_train`` is what Long et al. train on, SBD's own, and ``seg11valid`` what they validate on, of VOC's val;
    ``keras_fcn_train`` and ``keras_fcn_val`` are those of Keras-FCN."""
    augmented: ClassVar[tuple[str, ...]] = ("train_aug", "sbd_train", "keras_fcn_train", "keras_fcn_val")
    """Splits of 2012 whose labels are those of SBD, in ``SegmentationClassAug/``."""

    def __init__(self, root: Path, split: str, year: Literal[2007, 2012]) -> None:
        storage = open_storage(Path(root))
        base = find_voc(storage, Path(root), year)
        if split == "auto" and year == 2012:
            split = "train_aug" if storage.exists(f"{base}SegmentationClassAug") else "train"
        augmented = year == 2012 and split in self.augmented
        labels = "SegmentationClassAug" if augmented else "SegmentationClass"
        ids = self._read_ids(storage, base, split, year)
        files = [(id_, f"{base}JPEGImages/{id_}.jpg", f"{base}{labels}/{id_}.png") for id_ in ids]
        try:
            super().__init__(storage, files, split=split, official=self.splits[year].get(split))
        except IncompleteError as error:
            if augmented:
                raise IncompleteError(f"{str(error).rstrip('.')}; {REMEDY}.", self) from error
            raise

    @classmethod
    def _read_ids(cls, storage: Storage, base: str, split: str, year: int) -> list[str]:
        if split == "sbd_train" and year == 2012:  # comes with SBD, not with this package
            path = base + SBD_TRAIN
            if not storage.exists(path):
                raise UserError(f"{storage.locate(path)} is missing, which lists the split {split!r}; {REMEDY}.")
            ids = storage.read(path).decode(errors="replace").split()
        elif split in cls.splits[year]:
            ids = packaged_ids(f"voc{year}_{split}")
        elif os.path.isfile(split):  # noqa: PTH113  (False for a name that is too long)
            ids = Path(split).read_text(encoding="utf-8", errors="replace").split()
        elif split.endswith(".txt"):
            raise UserError(f"{split} is not there, which should list the images of a split, one id a line.")
        else:
            raise UserError(
                f"VOC{year} has no split {split!r}; it has {', '.join(cls.splits[year])},"
                " or give the path of a text file with one id a line."
            )
        if not ids:
            raise UserError(f"The split {split} is empty; it must name at least one image.")
        if "/" in ids[0] or "." in ids[0]:
            raise UserError(f"The split {split} names {ids[0]}; it should name ids, such as 2007_000032, one a line.")
        return ids


def find_voc(storage: Storage, root: Path, year: int) -> str:
    """Return the path of ``VOC<year>``, with a slash at its end, below a folder that holds it or is it.

    Raises:
        UserError: It is not there.
    """
    for base in (f"VOCdevkit/VOC{year}/", f"VOC{year}/", ""):
        if storage.exists(f"{base}JPEGImages") and storage.exists(f"{base}SegmentationClass"):
            return base
    raise UserError(
        f"{root} holds no VOC{year}: neither VOCdevkit/VOC{year}/JPEGImages nor SegmentationClass beside it is there."
    )
