"""KITTI road: where a car can drive.

Jannik Fritsch, Tobias Kuehnl, Andreas Geiger: A new performance measure and evaluation benchmark for road detection
algorithms. ITSC 2013. ``data_road.zip`` of https://www.cvlibs.net/datasets/kitti/eval_road.php.
"""

from pathlib import Path
from typing import ClassVar

import numpy as np

from fcn_smp.data.dataset import SegmentationDataset, is_picture
from fcn_smp.data.labels import Colors
from fcn_smp.data.splitting import random_split
from fcn_smp.data.storage import open_storage
from fcn_smp.errors import UserError

OTHER, ROAD, VOID = (255, 0, 0), (255, 0, 255), (0, 0, 0)


class KITTIRoad(SegmentationDataset):
    """Road against the rest in the 289 pictures of KITTI road that come with labels; black is void.

    There is no official validation set, so one is drawn. The labels of one's own lane (``um_lane_*``) are left out.

    Args:
        root: The folder that holds ``data_road``, or that folder itself.
        split: One of ``shares``, or ``"all"``.

    Raises:
        UserError: The data set is not there, or the split is unknown.
    """

    classes = ("background", "road")
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[:2] = OTHER, ROAD
    shares: ClassVar[dict[str, float]] = {"train": 0.8, "val": 0.2}
    """Splits, drawn with the seed 42."""
    sizes: ClassVar[dict[str, int]] = {"train": 231, "val": 58, "all": 289}
    """Number of images of each split."""

    def __init__(self, root: Path, split: str) -> None:
        storage = open_storage(Path(root))
        bases = [base for base in ("data_road/training/", "training/", "") if storage.exists(f"{base}gt_image_2")]
        if not bases:
            raise UserError(f"{root} holds no KITTI road: data_road/training/gt_image_2 is not there.")
        base = bases[0]
        labels = {}
        for path in storage.files(f"{base}gt_image_2"):
            scene, kind, number = (*path.rpartition("/")[2].removesuffix(".png").split("_"), "", "")[:3]
            if kind == "road" and is_picture(path):  # um_road_000000.png belongs to um_000000.png
                labels[f"{scene}_{number}"] = path
        ids = random_split(list(labels), self.shares, split, seed=42)
        files = [(id_, f"{base}image_2/{id_}.png", labels[id_]) for id_ in ids]
        super().__init__(storage, files, Colors([OTHER, ROAD], void=[VOID]), split=split, official=self.sizes[split])
