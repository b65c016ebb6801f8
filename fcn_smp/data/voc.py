"""PASCAL VOC 2007 and 2012 segmentation.

Mark Everingham et al.: The PASCAL visual object classes (VOC) challenge. IJCV 88(2), 2010.
Bharath Hariharan et al.: Semantic contours from inverse detectors. ICCV 2011 (the labels of ``train_aug``).
"""

from importlib import resources
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from fcn_smp.data.dataset import SegmentationDataset
from fcn_smp.data.labels import Array
from fcn_smp.data.storage import Storage, open_storage
from fcn_smp.errors import UserError


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
        split: One of :attr:`splits` of the year, or the path of a text file with one id a line.
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
    splits: ClassVar[dict[int, tuple[str, ...]]] = {
        2007: ("train", "val", "trainval", "test"),
        2012: ("train", "val", "trainval", "train_aug", "seg11valid", "auto"),
    }
    """Splits with labels. ``train_aug`` is VOC 2012 train and SBD without VOC 2012 val, 10,582 images, with labels
    in ``SegmentationClassAug/``; ``seg11valid`` the 736 validation images of Long et al."""

    def __init__(self, root: Path, split: str, year: Literal[2007, 2012]) -> None:
        storage = open_storage(Path(root))
        base = _find_base(storage, Path(root), year)
        if split == "auto" and year == 2012:
            split = "train_aug" if storage.exists(f"{base}SegmentationClassAug") else "train"
        labels = "SegmentationClassAug" if split == "train_aug" else "SegmentationClass"
        ids = self._read_ids(split, year)
        files = [(id_, f"{base}JPEGImages/{id_}.jpg", f"{base}{labels}/{id_}.png") for id_ in ids]
        for _, image, label in files:
            for path in (image, label):
                if not storage.exists(path):
                    raise UserError(f"{storage.locate(path)} is missing, which the split {split!r} names.")
        super().__init__(storage, files)

    @classmethod
    def _read_ids(cls, split: str, year: int) -> list[str]:
        if split in cls.splits[year]:
            text = resources.files("fcn_smp.data").joinpath(f"splits/voc{year}_{split}.txt").read_text()
        elif Path(split).is_file():
            text = Path(split).read_text(encoding="utf-8", errors="replace")
        else:
            raise UserError(
                f"VOC{year} has no split {split!r}; it has {', '.join(cls.splits[year])},"
                " or give the path of a text file with one id a line."
            )
        ids = text.split()
        if not ids:
            raise UserError(f"The split {split} is empty; it must name at least one image.")
        return ids


def _find_base(storage: Storage, root: Path, year: int) -> str:
    for base in (f"VOCdevkit/VOC{year}/", f"VOC{year}/", ""):
        if storage.exists(f"{base}JPEGImages") and storage.exists(f"{base}SegmentationClass"):
            return base
    raise UserError(
        f"{root} holds no VOC{year}: neither VOCdevkit/VOC{year}/JPEGImages nor SegmentationClass beside it is there."
    )
