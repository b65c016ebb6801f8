"""Drives in the simulator CARLA, as Lyft and Udacity gave them out for their perception challenge of 2018.

Alexey Dosovitskiy et al.: CARLA: an open urban driving simulator. CoRL 2017.
"""

from pathlib import Path
from typing import ClassVar

import numpy as np

from fcn_smp.data.dataset import SegmentationDataset, is_picture
from fcn_smp.data.labels import Numbers
from fcn_smp.data.splitting import random_split
from fcn_smp.data.storage import open_storage
from fcn_smp.errors import UserError


class CARLA(SegmentationDataset):
    """Pictures ``CameraRGB/*.png`` and labels ``CameraSeg/*.png`` of 13 classes, the number in the red channel.

    A road segmenter selects classes: ``classes: {road: [road, road line]}``.

    Args:
        root: A folder (``dataA`` ... ``dataE``, or what holds some of them) in which, at any depth, the two folders lie
            side by side.
        split: One of ``shares``, or ``"all"``. There are no official splits, so they are drawn.

    Raises:
        UserError: There are no such folders, or the split is unknown.
    """

    classes = (
        "none", "building", "fence", "other", "pedestrian", "pole", "road line", "road", "sidewalk", "vegetation",
        "vehicle", "wall", "traffic sign",
    )  # fmt: skip
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[1:5] = (70, 70, 70), (190, 153, 153), (250, 170, 160), (220, 20, 60)
    palette[5:9] = (153, 153, 153), (157, 234, 50), (128, 64, 128), (244, 35, 232)
    palette[9:13] = (107, 142, 35), (0, 0, 142), (102, 102, 156), (220, 220, 0)
    shares: ClassVar[dict[str, float]] = {"train": 0.765, "val": 0.135, "test": 0.1}
    """Splits, drawn with the seed 42; of 1,000 pictures 765, 135 and 100."""

    def __init__(self, root: Path, split: str) -> None:
        storage = open_storage(Path(root))
        files = {}
        for image in storage.files():
            folder, _, name = image.rpartition("/")
            label = f"{folder.removesuffix('CameraRGB')}CameraSeg/{name}"
            if folder.endswith("CameraRGB") and is_picture(image) and storage.exists(label):
                id_ = f"{folder.removesuffix('CameraRGB')}{name.removesuffix('.png')}"
                files[id_] = (id_, image, label)
        if not files:
            raise UserError(f"{root} holds no CameraRGB with a CameraSeg beside it.")
        ids = random_split(list(files), self.shares, split, seed=42)
        decode = Numbers(range(len(self.classes)), channel=0)
        super().__init__(storage, [files[id_] for id_ in ids], decode, split=split)
